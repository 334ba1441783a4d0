r"""Do two learners in the iterated prisoner's dilemma learn to cooperate, and does the second derivative decide it?

LOLA-DiCE: each player ascends its return after the other's anticipated gradient step, so its gradient needs the cross derivative
$\nabla_1 \nabla_2 V_2$. `logderiv.estimators.DiCE` estimates it; a plain surrogate has 0 there, whatever the game. Settings of the
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
from benchmarks.harness import COLORS, Report, Table, at_least, at_most, new_figure

DISCOUNT, INNER, OUTER = 0.96, 0.3, 0.2
SURROGATES = {"dice": ld.estimators.DiCE(), "plain": ld.estimators.Score()}
PUBLISHED = {"plain": "-1.99", "dice": "about -1.1", "exact": "-"}

# Closed forms at uniform play of the model of arXiv:1709.04326; parameters are logits of cooperation in the order CC, CD, DC, DD, start (own
# action first), mine and then the other's; I am paid -1, -3, 0, -2. After any round the next is uniform over the four states: the value is -1.5 / (1 - gamma).
# A logit changes a probability by 1/4; my cooperation costs me 1 in that round and brings nothing later, the other's gives me 2. Each state comes
# gamma / (1 - gamma) / 4 = 6 times, the start once: -1/4 * 6, -1/4, and 2/4 * 6, 2/4. Of three rounds, a choice in round 2 changes the chance of each state
# of round 3 by +- 1/8, the logit in that state then the reward by -1/4 (mine) or 1/2 (the other's): gamma^2 / 4 / 8 * (+- 1/2 -+ 1/4), and for the start,
# where only the other's comes first, gamma / 8 * -+ 1/4. Both choices in one round: -1 + 3 - 0 - 2 = 0.
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
DEFECTS = tuple(name for name, learner in LEARNERS.items() if learner.derivatives == "plain")


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
    estimator = ld.ScoreFunction(
        ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=DISCOUNT, surrogate=SURROGATES[learner.derivatives]
    )
    keys = jax.random.split(key, size.batch)
    taus = game().rewards_of(ld.rollout(params, keys, game().policy, game(), horizon=size.rounds), 0)
    weights, _ = estimator.advantages(params, (), game().policy, taus)
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


def learn(learner: Learner, size: Size) -> list[np.ndarray]:
    """`train` for each seed: `(seeds, updates)` and `(seeds, 2, 5)`."""
    keys = jax.random.split(jax.random.key(0), size.seeds)
    return [np.asarray(x) for x in jax.vmap(functools.partial(train, learner=learner, size=size))(keys)]


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

    def expected(surrogate: Any, order: int) -> float:
        estimator = ld.ScoreFunction(discount=DISCOUNT, surrogate=surrogate)
        mdp = game().mdp(0)
        found = ld.exact.moments(theta, policy, mdp, estimator, horizon=3, num_trajectories=1, order=order)
        return _worst(found.mean, found.exact)

    return [
        Check("value, endless", abs(float(endless[0]) - VALUE)),
        Check("gradient, endless", _worst(endless[1], GRADIENT)),
        Check("cross Hessian, 3 rounds, rows CC and CD", _worst(hessian[:2, 5:], HESSIAN_THREE_ROUNDS)),
        *(
            Check(f"expected {name} of the surrogate, 3 rounds", *(expected(s, order) for s in SURROGATES.values()))
            for order, name in enumerate(("gradient", "Hessian", "third derivative"), start=1)
        ),
    ]


def _worst(found: Any, expected: Any) -> float:
    return float(np.max(np.abs(np.asarray(found) - np.asarray(expected))))


class Row(NamedTuple):
    """Return per round of each seed, mean of the last tenth of the updates; and how the learners play in the end."""

    name: str
    published: str
    returns: np.ndarray
    cooperate: np.ndarray


def main(quick: bool) -> Report:
    size = QUICK_SIZE if quick else Size()
    with jax.enable_x64(True):
        exact = checks()
        runs = {name: learn(LEARNERS[name], size) for name in (QUICK if quick else LEARNERS)}
    rows = []
    for name, (curves, thetas) in runs.items():
        final, cooperate = curves[:, -size.updates // 10 :].mean(axis=1), 1 / (1 + np.exp(-thetas.mean(axis=(0, 1))))
        rows.append(Row(name, PUBLISHED[LEARNERS[name].derivatives], final, cooperate))
    played = " ".join(f"{{r.cooperate[{i}]:.2f}}" for i in range(5))
    tables = [
        Table(
            "At uniform play: largest error",
            "quantity | ours (DiCE) | plain surrogate",
            "{r.quantity} | {r.error:.1e} | {r.plain:.1e}",
            exact,
        ),
        Table(
            f"Return per round, mean of the last tenth of {size.updates} updates (both cooperate: -1, both defect: -2)",
            f"learner | published | ours, {size.seeds} seeds | worst | best | P(cooperate after CC, CD, DC, DD, at the start)",
            "{r.name} | {r.published} | {r.returns.mean:.3f} | {r.returns.min:.3f} | {r.returns.max:.3f} | " + played,
            rows,
            f"{size.batch} games of {size.rounds} rounds for each estimate",
        ),
    ]
    bounds = [
        at_most("closed forms and expected derivatives: largest error, DiCE", max(row.error for row in exact), 1e-12),
        at_least("Hessian: error of the plain surrogate", exact[4].plain, 0.05),
        *(
            at_least(f"return per round, {r.name}, worst seed", r.returns.min(), -1.2)
            for r in rows
            if r.name in COOPERATES
        ),
        *(at_most(f"return per round, {r.name}, best seed", r.returns.max(), -1.9) for r in rows if r.name in DEFECTS),
    ]
    curves = {name: curves for name, (curves, _) in runs.items()}
    numbers = {"checks": exact, "size": size, "rows": rows, "curves": curves}
    return Report(tables, bounds, numbers, functools.partial(_draw, curves))


def _draw(curves: dict[str, np.ndarray]) -> Any:
    figure, ax = new_figure(figsize=(7, 4.2))
    for (name, values), color in zip(curves.items(), COLORS, strict=False):
        ax.plot(values.T, color=color, linewidth=0.6, alpha=0.5)
        style = "--" if name.startswith("exact") else "-"
        ax.plot(np.median(values, axis=0), style, color=color, linewidth=2, label=name)
    for level, label in ((-1, "both cooperate"), (-2, "both defect")):
        ax.axhline(level, color="0.7", linewidth=0.8, linestyle=":")
        ax.text(0, level + 0.01, label, fontsize=8, color="0.4")
    ax.set(xlabel="update", ylabel="return per round, mean of both players", ylim=(-2.08, -0.9))
    ax.set_title("Iterated prisoner's dilemma: looking ahead with the right second derivative")
    return figure
