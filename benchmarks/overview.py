r"""What is this library for: the identity both ways, an estimate, its exact expectation, and training by optax?

`python -m benchmarks` without a name runs it, and it says at each step what it does. A decision process of two states and three steps has eight trajectories,
so that whatever is estimated there is also known, in float64. Then gymnax's CartPole-v1, REINFORCE on whole episodes and PPO on a stream.

The figure, which the README shows (`notebooks/overview.png` is a copy). Left, the identity: the product of the factors' probabilities, differentiated directly,
until it underflows in float32; P times the score goes on. Middle, why estimators are proved and not only sampled: E[g] over grad J. Right, what it is for.

Finding (2 CPU cores, jax 0.10.2): the product of a fair coin's factors is 0 from some 150 on; a batch mean that contains the own sample leaves 1 - 1/N of
the gradient, and leave-one-out all of it, to rounding; both ways of training reach 475.
"""

from functools import partial
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import logderiv as ld
from benchmarks import peers
from benchmarks.harness import Report, Table, at_least, at_most, cells, new_figure
from logderiv import plots
from logderiv.estimators.advantages import Return

say = partial(print, end="\n\n", flush=True)  # each step is told when it is taken
POLICY, HORIZON = ld.tabular_softmax, 3
LENGTHS = (1, 10, 20, 40, 60, 80, 100, 120, 140, 160, 200, 250, 300)
NETWORK = ld.MLPActorCritic(2)
ESTIMATORS = {
    "leave one out": ld.ScoreFunction(Return(ld.baselines.LeaveOneOut(per="trajectory"))),
    "batch mean": ld.ScoreFunction(Return(ld.baselines.BatchMean())),
    "standardized": ld.ScoreFunction(ld.advantages.Standardized(Return(), per="trajectory")),
}


def world() -> tuple[ld.environments.TabularMDP, jax.Array]:
    """Two states, of which the second action takes one to the other; and logits."""
    moves = jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])
    rewards, ends = jnp.array([[1.0, -0.5], [0.25, 2.0]]), jnp.array([False, False])
    mdp = ld.environments.TabularMDP(jnp.array([1.0, 0.0]), moves, rewards, ends)
    return mdp, jnp.array([[0.2, -0.1], [0.4, 0.3]])


def both_sides() -> ld.likelihood.Comparison:
    """The identity on sequences of coin tosses, float32, of growing length."""
    params = jnp.array([0.1, -0.1], jnp.float32)
    steps = jnp.arange(max(LENGTHS))
    actions = jax.random.bernoulli(jax.random.key(0), 0.6, steps.shape).astype(jnp.int32)
    tosses = peers.trajectory(jnp.ones(steps.shape, jnp.float32), actions)

    def compared(length: jax.Array) -> ld.likelihood.Comparison:
        return ld.compare(params, ld.shared_softmax, tosses._replace(valid=steps < length))

    return jax.jit(jax.vmap(compared))(jnp.array(LENGTHS))


def factor(moments: ld.exact.Moments) -> float:
    """E[g] projected on grad J, relative to it."""
    mean, exact = np.ravel(moments.mean), np.ravel(moments.exact)
    return float(mean @ exact / (exact @ exact))


def finite_world(sizes: tuple[int, ...]) -> tuple[Any, Any, dict[str, list[float]]]:
    """Where every trajectory can be listed, the identity, three routes to grad E[R], and E[g] / grad J; each step says what it does."""
    mdp, params = world()
    keys = jax.random.split(jax.random.key(1), 3)
    say("1. One trajectory is drawn. P, a product of probabilities, is differentiated directly, and by P * grad log P:")
    identity = ld.compare(params, POLICY, ld.rollout(params, keys[0], POLICY, mdp, horizon=HORIZON), environment=mdp)
    say(identity)

    say("2. grad E[R]: over every trajectory, each P multiplied out; the same by scores; and a mean of R * grad log P")
    say("   over trajectories that were drawn, where P does not occur: drawing supplies it.")
    routes = ld.exact.compare_expectation(params, keys[1], POLICY, mdp, horizon=HORIZON)
    say(routes)

    say("3. An estimate from a batch of 16, each return judged by the mean of the others (leave one out):")
    batch = ld.rollout(params, jax.random.split(keys[2], 16), POLICY, mdp, horizon=HORIZON)
    estimator = ESTIMATORS["leave one out"]
    say(estimator.estimate(params, estimator.init(params), POLICY, batch)[0])

    say("4. Was that luck? The estimator's expectation, from every batch that could have been drawn, without sampling:")
    exact = partial(ld.exact.moments, params, POLICY, mdp, horizon=HORIZON)
    found = {name: [exact(e, num_trajectories=n) for n in sizes] for name, e in ESTIMATORS.items()}
    say(found["leave one out"][-1])
    return identity, routes, {name: [factor(moments) for moments in row] for name, row in found.items()}


def train(*, seeds: int, scale: float) -> dict[str, ld.training.Training]:
    """CartPole-v1: REINFORCE with leave-one-out on whole episodes, PPO on a stream."""
    environment = ld.environments.Gymnax(*gymnax.make("CartPole-v1"))
    leave_one_out = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
    clipped = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(5e-3, eps=1e-5))
    stream = {"batch": ld.Steps(64, 32), "epochs": 4, "minibatches": 4, "num_updates": int(75 * scale)}
    episodes = {"batch": ld.Episodes(16), "num_updates": int(90 * scale)}
    recipes: dict[str, dict[str, Any]] = {
        "REINFORCE, leave one out": {"estimator": leave_one_out, "optimizer": optax.adam(5e-3), **episodes},
        "PPO": {"estimator": ld.PPOActorCritic(NETWORK.value), "optimizer": clipped, **stream},
    }
    say(f"5. Training on gymnax's CartPole-v1, where 500 is the most: {seeds} seeds at once, optax takes the steps.")
    trained = {}
    for name, how in recipes.items():
        keys = jax.vmap(jax.random.split, out_axes=1)(jax.random.split(jax.random.key(1), seeds))
        params = jax.vmap(lambda key: NETWORK.init(key, jnp.zeros(4)))(keys[0])
        trained[name] = ld.train(params, keys[1], NETWORK, environment, **how)
        say(f"{name}\n{trained[name]}")
    return trained


def main(quick: bool) -> Report:
    sizes = (2, 3, 4) if quick else (2, 3, 4, 5, 6)
    with jax.enable_x64(True):
        identity, routes, factors = finite_world(sizes)
        apart = float(np.max(np.abs(routes.direct - routes.score)))
        z = float(np.max(np.abs((routes.sampled - routes.direct) / routes.sem)))
    compared = both_sides()
    trained = train(seeds=2 if quick else 8, scale=0.1 if quick else 1.0)
    last = {name: np.nanmean(np.asarray(run.metrics.mean_return)[:, -10:]) for name, run in trained.items()}
    table = Table(
        "E[g] / grad J over every batch of N trajectories",
        " | ".join(["baseline", *(f"N = {n}" for n in sizes)]),
        "{r[name]} | " + cells(range(len(sizes)), ".6f"),
        [{"name": name} | dict(enumerate(row)) for name, row in factors.items()],
    )
    sides = float(identity.difference)
    error = max(abs(x - 1) for x in factors["leave one out"])
    shrunk = max(abs(x - (1 - 1 / n)) for x, n in zip(factors["batch mean"], sizes, strict=True))
    bounds = [
        at_most("grad P against P grad log P, relative", sides, 1e-12),
        at_most("grad E[R] from products against from scores", apart, 1e-12),
        at_most("grad E[R] sampled: largest number of standard errors", z, 5),
        at_most("leave one out: |E[g] / grad J - 1|", error, 1e-12),
        at_most("batch mean: |E[g] / grad J - (1 - 1/N)|", shrunk, 1e-12),
    ]
    if not quick:
        bounds += [at_least(f"{name}: last return", value, 475.0) for name, value in last.items()]
    lost = next(n for n, p in zip(LENGTHS, compared.prob, strict=True) if p == 0)
    reached = ", ".join(f"{name} {x:.0f}" for name, x in last.items())
    summary = [
        f"Identity     both sides of grad P = P grad log P differ by {sides:.0e}; at {lost} factors P is 0 in float32, the score is not.",
        f"Estimate     the mean of R grad log P is within {z:.1f} standard errors of grad E[R]; nobody multiplied P out.",
        f"Expectation  leave one out has grad E[R] as its mean, to {error:.0e}; a batch mean that holds the own sample loses 1/N.",
        f"Training     mean return of the last ten updates: {reached}.",
        "Figure       overview.png, beside all numbers in overview.jsonl. What next: notebooks/start.md.",
    ]
    draw = partial(_draw, compared, sizes, factors, trained)
    return Report([table], bounds, {"factors": factors, "last_return": last}, draw, summary=summary)


def _draw(compared: Any, sizes: tuple[int, ...], factors: dict[str, list[float]], trained: dict[str, Any]) -> Any:
    figure, axes = new_figure(ncols=3, figsize=(15, 4.2))
    plots.identity(compared, ax=axes[0]).set_title("grad P = P grad log P, in float32")
    for (name, row), marker in zip(factors.items(), "os^", strict=True):
        axes[1].plot(sizes, row, marker=marker, label=name)
    axes[1].set(title="E[g] / grad J, over every batch", xlabel="trajectories N", ylim=(0, None), xticks=sizes)
    axes[1].axhline(1.0, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    right = plots.learning_curves(trained, threshold=475.0, ax=axes[2])
    right.set(title="CartPole-v1", xlim=(0, 150_000), ylim=(0, 510))
    return figure
