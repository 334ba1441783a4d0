r"""What is this library about, in one figure?

Left, the identity: the product of the factors' probabilities, differentiated directly, until it underflows; P times the score goes on. Middle, why
estimators are proved and not only sampled: E[g] / grad J over every batch that a small world can give. Right, what it is for: gymnax's CartPole-v1.
The README shows the figure (`notebooks/overview.png` is a copy).

Finding (2 CPU cores, jax 0.10.2): in float32 the product of a fair coin's factors is 0 from some 150 on; a batch mean that contains the own sample leaves 1 - 1/N of
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

NETWORK = ld.MLPActorCritic(2)
ADVANTAGES = {
    "leave one out": Return(ld.baselines.LeaveOneOut(per="trajectory")),
    "batch mean": Return(ld.baselines.BatchMean()),
    "standardized": ld.advantages.Standardized(Return(), per="trajectory"),
}


def both_sides(lengths: tuple[int, ...]) -> ld.likelihood.Comparison:
    """The identity on sequences of coin tosses, float32, of growing length."""
    params, length = jnp.array([0.1, -0.1], jnp.float32), max(lengths)
    actions = jax.random.bernoulli(jax.random.key(0), 0.6, (length,)).astype(jnp.int32)
    taus = [peers.trajectory(jnp.ones(n, jnp.float32), actions[:n]) for n in lengths]  # padding would count as factors
    compared = [jax.jit(ld.compare)(params, ld.shared_softmax, tau) for tau in taus]
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(leaf) for leaf in x]), *compared)


def factors(sizes: tuple[int, ...]) -> dict[str, list[float]]:
    """E[g] projected on grad J, relative to it: every batch of a world with two states and two steps, float64."""
    with jax.enable_x64(True):
        world = ld.environments.TabularMDP(
            initial=jnp.array([1.0, 0.0]),
            transition=jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
            reward=jnp.array([[1.0, -0.5], [0.25, 2.0]]),
            terminal=jnp.array([False, False]),
        )
        params = jnp.array([[0.2, -0.1], [0.4, 0.3]])

        def factor(estimator: Any, n: int) -> float:
            moments = ld.exact.moments(params, ld.tabular_softmax, world, estimator, horizon=2, num_trajectories=n)
            mean, exact = np.ravel(moments.mean), np.ravel(moments.exact)
            return float(mean @ exact / (exact @ exact))

        return {name: [factor(ld.ScoreFunction(a), n) for n in sizes] for name, a in ADVANTAGES.items()}


def curves(*, seeds: int, scale: float) -> dict[str, ld.training.Metrics]:
    """CartPole-v1: REINFORCE with leave-one-out on whole episodes, PPO on a stream."""
    world = ld.environments.Gymnax(*gymnax.make("CartPole-v1"))
    leave_one_out = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
    clipped = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(5e-3, eps=1e-5))
    stream = {"batch": ld.Steps(64, 32), "epochs": 4, "minibatches": 4, "num_updates": int(100 * scale)}
    episodes = {"batch": ld.Episodes(16), "num_updates": int(90 * scale)}
    recipes: dict[str, dict[str, Any]] = {
        "REINFORCE, leave one out": {"estimator": leave_one_out, "optimizer": optax.adam(5e-3), **episodes},
        "PPO": {"estimator": ld.PPOActorCritic(NETWORK.value), "optimizer": clipped, **stream},
    }

    def run(key: jax.Array, options: dict[str, Any]) -> ld.training.Metrics:
        key_init, key_train = jax.random.split(key)
        return ld.train(NETWORK.init(key_init, jnp.zeros(4)), key_train, NETWORK, world, **options).metrics

    keys = jax.random.split(jax.random.key(1), seeds)
    return {name: jax.vmap(partial(run, options=how))(jax.random.clone(keys)) for name, how in recipes.items()}


def main(quick: bool) -> Report:
    lengths = (1, 3, 10, 30, 60, 90, 120, 140, 160, 200, 400, 1000)
    sizes = (2, 3, 4) if quick else (2, 3, 4, 5, 6)
    compared, found = both_sides(lengths), factors(sizes)
    trained = curves(seeds=2 if quick else 8, scale=0.1 if quick else 1.0)
    last = {name: np.nanmean(np.asarray(m.mean_return)[:, -10:]) for name, m in trained.items()}
    table = Table(
        "E[g] / grad J over every batch of N trajectories",
        " | ".join(["baseline", *(f"N = {n}" for n in sizes)]),
        "{r[name]} | " + cells(range(len(sizes)), ".6f"),
        [{"name": name} | dict(enumerate(row)) for name, row in found.items()],
        "CartPole-v1, mean return of the last ten updates: " + ", ".join(f"{k} {v:.0f}" for k, v in last.items()),
    )
    error = max(abs(x - 1) for x in found["leave one out"])
    shrunk = max(abs(x - (1 - 1 / n)) for x, n in zip(found["batch mean"], sizes, strict=True))
    bounds = [
        at_most("leave one out: |E[g] / grad J - 1|", error, 1e-12),
        at_most("batch mean: |E[g] / grad J - (1 - 1/N)|", shrunk, 1e-12),
    ]
    if not quick:
        bounds += [at_least(f"{name}: last return", value, 475.0) for name, value in last.items()]
    draw = partial(_draw, compared, sizes, found, trained)
    return Report([table], bounds, {"factors": found, "last_return": last}, draw)


def _draw(compared: Any, sizes: tuple[int, ...], found: dict[str, list[float]], trained: dict[str, Any]) -> Any:
    figure, axes = new_figure(ncols=3, figsize=(15, 4.2))
    plots.identity(compared, ax=axes[0]).set_title("grad P = P grad log P, in float32")
    for name, row in found.items():
        axes[1].plot(sizes, row, marker="o", label=name)
    axes[1].set(title="E[g] / grad J, over every batch", xlabel="trajectories N", ylim=(0, None), xticks=sizes)
    axes[1].axhline(1.0, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    returns = {name: m.mean_return for name, m in trained.items()}
    steps = {name: np.cumsum(m.num_steps, axis=1) for name, m in trained.items()}
    right = plots.learning_curves(returns, steps=steps, threshold=475.0, ax=axes[2])
    right.set(title="CartPole-v1", xlim=(0, 150_000), ylim=(0, 510))
    return figure
