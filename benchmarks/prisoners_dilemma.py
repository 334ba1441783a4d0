r"""Do two learners in the iterated prisoner's dilemma learn to cooperate, and does the second derivative decide it?

LOLA-DiCE: each player ascends its return after the other's anticipated gradient step, so its gradient needs the cross derivative
$\nabla_1 \nabla_2 V_2$. `logderiv.dice_surrogate` estimates it; a plain surrogate has 0 there, whatever the game. Settings of the
published code: discount 0.96, inner step 0.3, Adam with 0.2 outside, batches of 128 games of 150 rounds, 200 updates from uniform
play; but the baseline is leave-one-out in place of a learned value, and the outer rate decays along a cosine. The published constant rate stands
beside it. "Exact" differentiates the closed-form value instead of sampling. Before the learning, values and expected derivatives are held
against closed forms.

Finding (2 CPU cores, jax 0.10.2, five seeds): with the plain surrogate, looking ahead or not, every pair defects (-1.998 per round). With DiCE every pair
cooperates, at the end of 200 updates too: -1.019 with one step of look-ahead (worst seed -1.060), -1.005 with two (-1.008). At the constant rate all pairs
cooperate by update 100, and some leave again: -1.291 over the last 20 updates (worst -1.501), where the exact derivative stays at -1.002.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import logderiv as ld
from benchmarks import harness

DISCOUNT, INNER, OUTER = 0.96, 0.3, 0.2
SURROGATES = {"plain": ld.score_surrogate, "dice": ld.dice_surrogate}

# Closed forms at uniform play, parameters are logits of cooperation in the order CC, CD, DC, DD, start (own action first).
# Source: own derivation, file higher_order of the project's truths, model as in arXiv:1709.04326.
VALUE = -37.5
GRADIENT = np.array([-1.5, -1.5, -1.5, -1.5, -0.25, 3.0, 3.0, 3.0, 3.0, 0.5])
HESSIAN_THREE_ROUNDS = np.array([[0.0072, -0.0216, 0.0072, -0.0216, -0.03], [0.0216, -0.0072, 0.0216, -0.0072, 0.03]])


class Learner(NamedTuple):
    """How a player sees the game, and how many of the other's steps it anticipates."""

    derivatives: Literal["plain", "dice", "exact"]
    steps: int
    decays: bool = True  # the outer rate, along a cosine; the published code keeps it


class Size(NamedTuple):
    """How much is sampled and learned."""

    seeds: int = 5
    batch: int = 128
    rounds: int = 150
    updates: int = 200


LEARNERS = {
    "no look-ahead": Learner("plain", 0),
    "plain, 1 step": Learner("plain", 1),
    "DiCE, 1 step": Learner("dice", 1),
    "DiCE, 2 steps": Learner("dice", 2),
    "DiCE, 1 step, constant rate": Learner("dice", 1, decays=False),
    "exact, 1 step": Learner("exact", 1),
}
QUICK, QUICK_SIZE = ("plain, 1 step", "DiCE, 1 step"), Size(rounds=100, updates=100)
COOPERATES = tuple(name for name, learner in LEARNERS.items() if learner.derivatives == "dice" and learner.decays)


def game() -> ld.processes.MatrixGame:
    """The game, in the precision that is set when it is called."""
    return ld.processes.prisoners_dilemma()


def logits(theta: jax.Array) -> jax.Array:
    """Both actions' logits from that of cooperation."""
    return jnp.stack([theta, jnp.zeros_like(theta)], axis=-1)


def objective(mine: jax.Array, theirs: jax.Array, key: jax.Array, learner: Learner, size: Size) -> jax.Array:
    """A scalar whose derivatives are those of my return, or estimate them. The game is symmetric: I am always the first."""
    params = (logits(mine), logits(theirs))
    if learner.derivatives == "exact":
        return game().value(params, discount=DISCOUNT)[0]
    estimator = ld.score_function(
        baseline=ld.baseline_leave_one_out(), discount=DISCOUNT, surrogate=SURROGATES[learner.derivatives]
    )
    keys = jax.random.split(key, size.batch)
    taus = game().rewards_of(ld.rollout(params, keys, game().policy, game(), horizon=size.rounds), 0)
    weights, _ = estimator.weigh(params, (), game().policy, taus)
    return estimator.objective(params, game().policy, taus, weights)


def shaped(mine: jax.Array, theirs: jax.Array, key: jax.Array, learner: Learner, size: Size) -> jax.Array:
    """My objective against the other as it will be after its next steps."""
    key_inner, key_outer = jax.random.split(key)

    def others(theirs: jax.Array, key: jax.Array) -> jax.Array:
        return objective(theirs, mine, key, learner, size)

    theirs = ld.processes.look_ahead(theirs, key_inner, others, learning_rate=INNER, steps=learner.steps)
    return objective(mine, theirs, key_outer, learner, size)


@functools.partial(jax.jit, static_argnames=("learner", "size"))
def train(key: jax.Array, learner: Learner, size: Size) -> tuple[jax.Array, jax.Array]:
    """Both players learn at once. Mean return per round after each update, exactly, `(updates,)`; their parameters, `(2, 5)`."""
    rate = optax.cosine_decay_schedule(OUTER, size.updates) if learner.decays else OUTER
    optimizer = ld.maximize(optax.adam(rate))
    gradient = jax.vmap(jax.grad(functools.partial(shaped, learner=learner, size=size)))

    def update(carry: Any, _: None) -> tuple[Any, jax.Array]:
        thetas, opt_state, key = carry
        key, key_players = jax.random.split(key)
        grads = gradient(thetas, thetas[::-1], jax.random.split(key_players))
        updates, opt_state = optimizer.update(grads, opt_state, thetas)
        thetas: Any = optax.apply_updates(thetas, updates)
        values = game().value((logits(thetas[0]), logits(thetas[1])), horizon=size.rounds)
        return (thetas, opt_state, key), jnp.mean(values) / size.rounds

    start = jnp.zeros((2, 5))
    (thetas, _, _), curve = jax.lax.scan(update, (start, optimizer.init(start), key), None, length=size.updates)
    return curve, thetas


def learn(learner: Learner, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """`train` for each seed: `(seeds, updates)` and `(seeds, 2, 5)`."""
    keys = jax.random.split(jax.random.key(0), size.seeds)
    curves, thetas = jax.vmap(functools.partial(train, learner=learner, size=size))(keys)
    return np.asarray(curves), np.asarray(thetas)


class Check(NamedTuple):
    """One quantity at uniform play: the largest error of ours, and that of the plain surrogate where it has one."""

    quantity: str
    error: float
    plain: float | None = None


def checks() -> list[Check]:
    """Values and derivatives at uniform play against closed forms; expected derivatives by listing all 64 games of three rounds."""
    theta = jnp.zeros(10)

    def value(theta: jax.Array, **options: Any) -> jax.Array:
        return game().value((logits(theta[:5]), logits(theta[5:])), **options)[0]

    policy = ld.FunctionPolicy(lambda theta, state: game().policy.apply((logits(theta[:5]), logits(theta[5:])), state))
    hessian = np.asarray(jax.hessian(functools.partial(value, horizon=3, discount=DISCOUNT))(theta))
    endless = jax.value_and_grad(functools.partial(value, discount=DISCOUNT))(theta)
    rows = [
        Check("value, endless", abs(float(endless[0]) - VALUE)),
        Check("gradient, endless", _worst(endless[1], GRADIENT)),
        Check("cross Hessian, 3 rounds, rows CC and CD", _worst(hessian[:2, 5:], HESSIAN_THREE_ROUNDS)),
    ]
    for order, name in enumerate(("gradient", "Hessian", "third derivative"), start=1):
        errors = [
            _worst(found.mean, found.exact)
            for surrogate in (ld.dice_surrogate, ld.score_surrogate)
            for found in [
                ld.exact.surrogate_derivatives(
                    ld.score_function(discount=DISCOUNT, surrogate=surrogate),
                    theta,
                    policy,
                    game().mdp(0),
                    horizon=3,
                    num_trajectories=1,
                    order=order,
                )
            ]
        ]
        rows.append(Check(f"expected {name} of the surrogate, 3 rounds", *errors))
    return rows


def _worst(found: Any, expected: Any) -> float:
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))


def main(quick: bool) -> None:
    jax.config.update("jax_enable_x64", True)
    exact = checks()
    size = QUICK_SIZE if quick else Size()
    print(f"{size.seeds} seeds, {size.batch} games of {size.rounds} rounds, {size.updates} updates")
    runs = {name: learn(LEARNERS[name], size) for name in (QUICK if quick else tuple(LEARNERS))}
    final = {name: curves[:, -size.updates // 10 :].mean(axis=1) for name, (curves, _) in runs.items()}
    _print(exact, final, runs)
    _draw({name: curves for name, (curves, _) in runs.items()})
    bounds = [
        harness.Bound(
            "closed forms and expected derivatives: largest error, DiCE", max(row.error for row in exact), 1e-12
        ),
        harness.Bound("Hessian: error of the plain surrogate", exact[4].plain or 0.0, 0.05, at_least=True),
        *(
            harness.Bound(f"return per round, {name}, worst seed", float(values.min()), -1.2, at_least=True)
            for name, values in final.items()
            if name in COOPERATES
        ),
        *(
            harness.Bound(f"return per round, {name}, best seed", float(values.max()), -1.9)
            for name, values in final.items()
            if LEARNERS[name].derivatives == "plain"
        ),
    ]
    figures = {
        "checks": [row._asdict() for row in exact],
        "size": size._asdict(),
        "curves": {name: curves[:, :: max(1, size.updates // 50)] for name, (curves, _) in runs.items()},
    }
    harness.finish("prisoners_dilemma", figures, bounds, quick=quick)


def _print(exact: list[Check], final: dict[str, np.ndarray], runs: dict[str, Any]) -> None:
    harness.print_table(
        "At uniform play: largest error",
        ("quantity", "ours (DiCE)", "plain surrogate"),
        [(row.quantity, f"{row.error:.1e}", "-" if row.plain is None else f"{row.plain:.1e}") for row in exact],
    )
    published = {"plain": "-1.99", "dice": "about -1.1", "exact": "-"}
    rows = []
    for name, values in final.items():
        cooperate = 1 / (1 + np.exp(-runs[name][1].mean(axis=(0, 1))))
        rows.append(
            (
                name,
                published[LEARNERS[name].derivatives],
                f"{values.mean():.3f}",
                f"{values.min():.3f} .. {values.max():.3f}",
                " ".join(f"{p:.2f}" for p in cooperate),
            )
        )
    harness.print_table(
        "Return per round, mean of the last tenth (both cooperate: -1, both defect: -2)",
        ("learner", "published", "ours", "seeds", "P(cooperate | CC, CD, DC, DD, start)"),
        rows,
    )


def _draw(curves: dict[str, np.ndarray]) -> None:
    figure, ax = harness.new_figure(figsize=(7, 4.2))
    colors = ("0.55", "#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7")
    for (name, values), color in zip(curves.items(), colors, strict=False):
        ax.plot(values.T, color=color, linewidth=0.6, alpha=0.5)
        style = "--" if name.startswith("exact") else "-"
        ax.plot(np.median(values, axis=0), style, color=color, linewidth=2, label=name)
    for level, label in ((-1, "both cooperate"), (-2, "both defect")):
        ax.axhline(level, color="0.7", linewidth=0.8, linestyle=":")
        ax.annotate(label, (0, level), xytext=(2, 3), textcoords="offset points", fontsize=8, color="0.4")
    ax.set(xlabel="update", ylabel="return per round, mean of both players", ylim=(-2.08, -0.9))
    ax.set_title("Iterated prisoner's dilemma: looking ahead with the right second derivative")
    ax.legend(frameon=False)
    harness.save_figure(figure, "prisoners_dilemma")
