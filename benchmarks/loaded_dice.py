r"""What does forgetting earlier choices buy in a Hessian: how do bias and variance of Loaded DiCE depend on its lambda?

Loaded DiCE lets the dependence of a step on the choices `k` steps before it decay like $\lambda^k$. Claim of Farquhar et al. (2019),
arXiv:1909.10549: $\lambda$ trades bias against variance in the higher derivatives, and the gradient is untouched. Here nothing is sampled: on a
small process with two states every trajectory is listed, its Hessian computed, and mean and variance are finite sums (float64), with the exact
state value as baseline and without one. Figures are totals over the entries of the Hessian, relative to the exact one.

Finding (2 CPU cores, jax 0.10.2): as claimed. At T = 5 forgetting everything leaves a fourteenth of the variance (27th with the state value) and a bias as large as
the Hessian; in between the bias is nearly proportional to $1 - \lambda$, whatever the baseline, and the variance rises with $\lambda$ throughout. So the best $\lambda$
rises with the number of trajectories, with the state value: 0 for one, 0.6 for a hundred, 0.9 for a thousand, 1 (plain DiCE) from ten thousand on.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import logderiv as ld
from benchmarks.harness import Report, Table, at_least, at_most, new_figure
from tests.worlds import two_states

LAMBDAS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
SAMPLES = (1, 10, 100, 1000, 10_000, 100_000)


class Curve(NamedTuple):
    r"""For each of `LAMBDAS`, with $H$ the exact Hessian and $h$ the estimate from one trajectory.

    Attributes:
        bias: $|\mathbb{E}h - H| / |H|$.
        variance: $\operatorname{tr}\operatorname{Cov} h / |H|^2$.
        gradient_error: Largest deviation of a trajectory's gradient from that at $\lambda = 1$.
        moments_error: Largest deviation of the mean from the library's own, `logderiv.exact.moments`.
    """

    bias: np.ndarray
    variance: np.ndarray
    gradient_error: float
    moments_error: float


def world() -> tuple[ld.environments.TabularMDP, jax.Array]:
    """Two states, two actions, no end; and logits away from uniform."""
    return two_states(), jnp.array([[0.2, -0.1], [0.4, -0.3]])


def curve(horizon: int, *, baseline: bool, lambdas: tuple[float, ...] = LAMBDAS) -> Curve:
    """Bias and variance of the Hessian of one trajectory, for each lambda, by listing all trajectories."""
    mdp, params = world()
    policy = ld.tabular_softmax
    every = ld.exact.enumerate_trajectories(mdp, horizon=horizon)
    probability = np.asarray(jax.jit(ld.prob)(params, policy, every, environment=mdp))
    hessian = jax.jit(lambda p, mdp: ld.exact.hessian(p, policy, mdp, horizon=horizon))
    exact = np.asarray(hessian(params, mdp)).reshape(4, 4)
    weights = every.rewards @ jnp.tril(jnp.ones((horizon, horizon)))  # reward-to-go
    if baseline:
        values = ld.exact.state_values(params, policy, mdp, horizon=horizon)
        weights = weights - values[jnp.arange(horizon)[None], every.observations]
    derivatives = jax.jit(_each, static_argnums=0)
    found = [derivatives(policy, jnp.asarray(x), params, every, weights) for x in lambdas]
    gradients, hessians = (np.asarray([x[i] for x in found]) for i in (0, 1))
    means = np.einsum("k,lkij->lij", probability, hessians)
    spread = np.einsum("k,lkij->l", probability, np.square(hessians - means[:, None]))
    size = np.linalg.norm(exact)
    errors = [] if baseline else [_against_library(mean, x, horizon) for mean, x in zip(means, lambdas, strict=True)]
    return Curve(
        bias=np.linalg.norm(means - exact, axis=(1, 2)) / size,
        variance=spread / size**2,
        gradient_error=float(np.max(np.abs(gradients - gradients[-1]))),
        moments_error=max(errors, default=0.0),
    )


def _each(policy: Any, lambda_: Any, params: jax.Array, every: ld.Trajectory, weights: jax.Array) -> Any:
    """Gradient and Hessian of the surrogate for each trajectory: `(K, D)` and `(K, D, D)`."""
    surrogate = ld.estimators.LoadedDiCE(lambda_)
    flat, unravel = ravel_pytree(params)

    def objective(flat: jax.Array, tau: ld.Trajectory, w: jax.Array) -> jax.Array:
        return surrogate(ld.log_factors(unravel(flat), policy, tau), w)

    def both(tau: ld.Trajectory, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.grad(objective)(flat, tau, w), jax.hessian(objective)(flat, tau, w)

    return jax.vmap(both)(every, weights)


def _against_library(mean: np.ndarray, lambda_: float, horizon: int) -> float:
    mdp, params = world()
    estimator = ld.ScoreFunction(surrogate=ld.estimators.LoadedDiCE(lambda_))
    policy = ld.tabular_softmax
    found = ld.exact.moments(params, policy, mdp, estimator, horizon=horizon, num_trajectories=1, order=2)
    return float(np.max(np.abs(found.mean - mean)))


def best_lambda(found: Curve, number: int) -> tuple[float, float]:
    """The lambda of least root-mean-square error from `number` trajectories, and that error."""
    errors = np.sqrt(found.bias**2 + found.variance / number)
    return LAMBDAS[int(np.argmin(errors))], float(np.min(errors))


def main(quick: bool) -> Report:
    jax.config.update("jax_disable_most_optimizations", True)  # each program runs once
    horizons = (2, 3) if quick else (2, 3, 4, 5)
    with jax.enable_x64(True):
        curves = {(T, b): curve(T, baseline=b) for T in horizons for b in (False, True)}
    every, baselines = list(curves.values()), {False: "none", True: "state value"}
    unbiased, same = max(f.bias[-1] for f in every), max(f.gradient_error for f in every)
    tables = [
        Table(
            f"{quantity} of the Hessian of one trajectory, relative",
            " | ".join(["horizon, baseline", *(f"{x:g}" for x in LAMBDAS)]),
            " | ".join(["{r[0]}", *(f"{{r[1][{i}]:.2g}}" for i in range(len(LAMBDAS)))]),
            [(f"T = {T}, {baselines[b]}", np.where(x > 1e-12, x, 0)) for (T, b), f in curves.items() for x in [f[i]]],
        )
        for i, quantity in enumerate(("bias", "variance"))
    ]
    tables.append(
        Table(
            f"The lambda of least error at T = {horizons[-1]}, by the number of trajectories: lambda, relative RMS error",
            " | ".join(["baseline", *map(str, SAMPLES)]),
            " | ".join(["{r[0]}", *(f"{{r[1][{i}][0]:g}}, {{r[1][{i}][1]:.2g}}" for i in range(len(SAMPLES)))]),
            [(name, [best_lambda(curves[horizons[-1], b], n) for n in SAMPLES]) for b, name in baselines.items()],
            f"Farquhar et al. (2019): at lambda = 1 unbiased (ours: {unbiased:.0e}), the gradient the same for every lambda\n"
            f"(ours: {same:.0e}), more bias and less variance for a lower one (ours: the last two bounds)",
        )
    )
    bounds = [
        at_most("bias at lambda = 1", unbiased, 1e-12),
        at_most("gradients: largest difference between lambdas", same, 1e-12),
        at_most("means: largest difference from the library's", max(f.moments_error for f in every), 1e-12),
        at_most("bias falls with lambda: largest rise", max(np.diff(f.bias).max() for f in every), 0.0),
        at_least("variance rises with lambda: smallest rise", min(np.diff(f.variance).min() for f in every), 0.0),
    ]
    numbers = {"lambdas": LAMBDAS, "curves": {f"T = {T}, {baselines[b]}": found for (T, b), found in curves.items()}}
    return Report(tables, bounds, numbers, functools.partial(_draw, curves, horizons[-1]))


def _draw(curves: dict[tuple[int, bool], Curve], longest: int) -> Any:
    figure, (left, right) = new_figure(ncols=2, figsize=(9.5, 3.9))
    for b, style in ((False, "-"), (True, "--")):
        found, label = curves[longest, b], "state value" if b else "no baseline"
        left.plot(LAMBDAS, found.bias, "o" + style, color="C1", label=f"bias, {label}")
        left.plot(LAMBDAS, np.sqrt(found.variance), "s" + style, color="C0", label=f"std, {label}")
        for j, x in enumerate((0.0, 0.6, 0.9, 1.0)):
            i = LAMBDAS.index(x)
            errors = np.sqrt(found.bias[i] ** 2 + found.variance[i] / np.array(SAMPLES))
            right.loglog(SAMPLES, errors, style, color=f"C{j + 2}", label=f"{x:g}" if b is False else None)
    left.set(xlabel="lambda", ylabel="relative to the exact Hessian", title=f"T = {longest}")
    left.set_yscale("symlog", linthresh=0.1)
    right.set(xlabel="trajectories", ylabel="relative RMS error of the Hessian", title="dashed: state value")
    right.legend(title="lambda")
    return figure
