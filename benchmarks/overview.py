r"""What is this library about, in one figure?

Left, the identity: the product of the factors' probabilities, differentiated directly, until it underflows; P times the score goes on. Middle, why
estimators are proved and not only sampled: E[g] / grad J over every batch that a small world can give. Right, what it is for: gymnax's CartPole-v1.
The README shows the figure (`notebooks/overview.png` is a copy).

Finding (2 CPU cores, jax 0.10.2): in float32 the product of a fair coin's factors is 0 from some 150 on; a batch mean that contains the own sample leaves 1 - 1/N of
the gradient, and leave-one-out all of it, to rounding; both ways of training reach 475.
"""

from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import logderiv as ld
from benchmarks import harness
from logderiv import plots

NETWORK = ld.MLPActorCritic(2)
BASELINES = {
    "leave one out": ld.baseline_leave_one_out(per="trajectory"),
    "batch mean": ld.baseline_biased_batch_mean(),
    "standardized": ld.baseline_biased_standardized(per="trajectory"),
}


def both_sides(lengths: tuple[int, ...]) -> ld.Comparison:
    """The identity on sequences of coin tosses, float32, of growing length."""
    params, length = jnp.array([0.1, -0.1], jnp.float32), max(lengths)
    actions = jax.random.bernoulli(jax.random.key(0), 0.6, (length,)).astype(jnp.int32)
    ones = jnp.ones(length, jnp.float32)
    compared = []
    for n in lengths:  # each of its own length: padding would count as factors of 1
        tau = ld.Trajectory(ones[:n], actions[:n], ones[:n], ones[:n], ones[:n] > 0, ones[:n], ones[0])
        compared.append(jax.jit(ld.compare)(params, ld.shared_softmax, tau))
    return jax.tree.map(lambda *x: jnp.stack([jnp.asarray(leaf) for leaf in x]), *compared)


def factors(sizes: tuple[int, ...]) -> dict[str, list[float]]:
    """E[g] projected on grad J, relative to it: every batch of a world with two states and two steps, float64."""
    with jax.enable_x64(True):
        world = ld.TabularMDP(
            initial=jnp.array([1.0, 0.0]),
            transition=jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]]),
            reward=jnp.array([[1.0, -0.5], [0.25, 2.0]]),
            terminal=jnp.array([False, False]),
        )
        params = jnp.array([[0.2, -0.1], [0.4, 0.3]])
        found: dict[str, list[float]] = {}
        for name, baseline in BASELINES.items():
            estimator = ld.score_function(credit=ld.total_return, baseline=baseline)
            for n in sizes:
                moments = ld.exact.estimator_moments(
                    estimator, params, ld.tabular_softmax, world, horizon=2, num_trajectories=n
                )
                mean, exact = np.ravel(moments.mean), np.ravel(moments.gradient)
                found.setdefault(name, []).append(float(mean @ exact / (exact @ exact)))
    return found


def curves(*, seeds: int, scale: float) -> dict[str, ld.Metrics]:
    """CartPole-v1: REINFORCE with leave-one-out on whole episodes, PPO on a stream."""
    environment, environment_params = gymnax.make("CartPole-v1")
    recipes: dict[str, tuple[Any, dict[str, Any]]] = {
        "REINFORCE, leave one out": (
            optax.adam(5e-3),
            {
                "estimator": ld.score_function(baseline=ld.baseline_leave_one_out()),
                "num_trajectories": 16,
                "num_updates": int(90 * scale),
            },
        ),
        "PPO": (
            optax.chain(optax.clip_by_global_norm(0.5), optax.adam(5e-3, eps=1e-5)),
            {
                "estimator": ld.ppo_actor_critic(NETWORK.value),
                "num_environments": 64,
                "num_steps": 32,
                "epochs": 4,
                "minibatches": 4,
                "num_updates": int(100 * scale),
            },
        ),
    }

    def run(key: jax.Array, optimizer: Any, options: dict[str, Any]) -> ld.Metrics:
        key_init, key_train = jax.random.split(key)
        params = NETWORK.init(key_init, jnp.zeros(4))
        world = {"environment": environment, "environment_params": environment_params}
        return ld.train(params, key_train, NETWORK, **world, optimizer=ld.maximize(optimizer), **options).metrics

    keys = jax.random.split(jax.random.key(1), seeds)
    return {
        name: jax.vmap(lambda key, o=optimizer, p=options: run(key, o, p))(keys)
        for name, (optimizer, options) in recipes.items()
    }


def main(quick: bool) -> None:
    lengths = (1, 3, 10, 30, 60, 90, 120, 140, 160, 200, 400, 1000)
    sizes = (2, 3, 4) if quick else (2, 3, 4, 5, 6)
    compared, found = both_sides(lengths), factors(sizes)
    trained = curves(seeds=3 if quick else 8, scale=0.3 if quick else 1.0)
    last = {name: np.nanmean(np.asarray(m.mean_return)[:, -10:]) for name, m in trained.items()}
    harness.print_table(
        "E[g] / grad J over every batch of N trajectories",
        ("baseline", *(f"N = {n}" for n in sizes)),
        [(name, *(f"{x:.6f}" for x in row)) for name, row in found.items()],
    )
    print("\nCartPole-v1, mean return of the last ten updates: " + ", ".join(f"{k} {v:.0f}" for k, v in last.items()))
    error = max(abs(x - 1) for x in found["leave one out"])
    shrunk = max(abs(x - (1 - 1 / n)) for x, n in zip(found["batch mean"], sizes, strict=True))
    bounds = [
        harness.Bound("leave one out: |E[g] / grad J - 1|", error, 1e-12),
        harness.Bound("batch mean: |E[g] / grad J - (1 - 1/N)|", shrunk, 1e-12),
    ]
    if not quick:
        bounds += [harness.Bound(f"{name}: last return", float(v), 475.0, at_least=True) for name, v in last.items()]
    _draw(compared, sizes, found, trained)
    harness.finish("overview", {"factors": found, "last_return": last}, bounds, quick=quick)


def _draw(compared: ld.Comparison, sizes: tuple[int, ...], found: dict[str, list[float]], trained: dict) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    plots.identity(compared, ax=axes[0]).set_title("grad P = P grad log P, in float32")
    for name, row in found.items():
        axes[1].plot(sizes, row, marker="o", label=name)
    axes[1].set(title="E[g] / grad J, over every batch", xlabel="trajectories in a batch, N", ylim=(0, None))
    axes[1].set_xticks(sizes)
    axes[1].axhline(1.0, color="0.4", linewidth=0.8, linestyle=(0, (1, 2)))
    axes[1].legend(frameon=False)
    plots.learning_curves(
        {name: m.mean_return for name, m in trained.items()},
        steps={name: np.cumsum(m.num_steps, axis=1) for name, m in trained.items()},
        threshold=475.0,
        ax=axes[2],
    ).set(title="CartPole-v1", xlim=(0, 150_000), ylim=(0, 510))
    harness.save_figure(figure, "overview")
