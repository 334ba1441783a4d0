"""Euler-Maruyama chains: Gaussian moments in closed form, the transfer operator, Girsanov's weights, and expectations by quadrature."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.processes import EulerMaruyama, double_well_drift, girsanov_log_ratios, ornstein_uhlenbeck_drift
from logderiv.processes.diffusion import ornstein_uhlenbeck_moments, transfer_value
from tests.quadrature import gauss_hermite

OU = jnp.array([0.7, 0.3])
WELL = jnp.array([1.0, 0.8])
double_well = functools.partial(
    EulerMaruyama, double_well_drift, **{"noise": 0.5, "initial": -1.0, "dt": 0.05, "horizon": 100}
)


def square(x):
    return x**2


def test_ornstein_uhlenbeck_moments_by_recursion_and_by_the_transfer_operator():
    """Value and gradient of E[X_T^2] + sum E[X_k] dt: the closed form and the operator know nothing of each other."""
    process = EulerMaruyama(
        ornstein_uhlenbeck_drift, 0.5, 0.5, horizon=12, dt=0.1, terminal=square, running=jnp.positive
    )
    mean, variance, total = 0.5, 0.0, 0.0
    for _ in range(12):
        total += 0.1 * mean
        mean, variance = mean + 0.7 * (0.3 - mean) * 0.1, variance * (1 - 0.07) ** 2 + 0.25 * 0.1

    def closed(params):
        mean, variance = ornstein_uhlenbeck_moments(params, process)
        decay = 1 - params[0] * 0.1
        powers = decay ** jnp.arange(12.0)
        return mean**2 + variance + 0.1 * jnp.sum(params[1] + powers * (0.5 - params[1])), (mean, variance)

    def operator(params, low=-4.0, high=4.0, **options):
        return transfer_value(params, process, low=low, high=high, **options)

    ((value, moments), slope), (found, found_slope) = jax.jit(
        lambda p: (jax.value_and_grad(closed, has_aux=True)(p), jax.value_and_grad(operator)(p))
    )(OU)
    np.testing.assert_allclose(moments, (mean, variance), rtol=1e-13)
    np.testing.assert_allclose(value, mean**2 + variance + total, rtol=1e-13)
    np.testing.assert_allclose(found, value, rtol=1e-12)
    np.testing.assert_allclose(found_slope, slope, rtol=1e-11)
    # a grid that is too coarse or too narrow is wrong
    coarse, narrow = jax.jit(lambda p: (operator(p, num_points=30), operator(p, -1.0, 1.0)))(OU)
    assert min(abs(coarse - value), abs(narrow - value)) > 1e-6


def quadrature(params, process, num_points):
    """Every path of two steps through Gauss-Hermite nodes of its noise, as a batch of trajectories, and their weights."""
    nodes, weights = gauss_hermite(2, num_points)

    def path(z):
        x, scale, positions = process.first()[0], process.noise * math.sqrt(process.dt), []
        for k in range(2):
            x = x + process.drift(params, x, k * process.dt) * process.dt + scale * z[k]
            positions.append(x)
        return process.trajectory(jnp.stack(positions))

    return ld.importance.with_behavior(params, process.policy, jax.vmap(path)(nodes)), jnp.asarray(weights)


def test_estimators_have_the_exact_expectation_without_sampling():
    """The double well's two-step expectation of each estimator by quadrature, exact for polynomials, against the operator's gradient."""
    process = double_well(horizon=2, dt=0.2, initial=-0.6, terminal=square)
    drawn = WELL + jnp.array([0.05, -0.03])
    plain = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.Constant(0.4)))
    weighted = ld.ScoreFunction(ld.advantages.Return(), importance=ld.importance.Importance(per="trajectory"))

    def expectation(estimator, params, behavior, nodes):
        taus, weights = quadrature(behavior, process, nodes)
        terms, _ = estimator.advantages(params, (), process.policy, taus)
        gradient = jax.grad(lambda p: jnp.sum(weights[:, None] * terms * ld.log_factors(p, process.policy, taus)))
        ratio = jnp.exp(ld.importance.log_ratios(params, process.policy, taus).sum(1))
        return jnp.sum(weights * ratio * taus.rewards.sum(1)), gradient(params)

    @jax.jit
    def run(params):
        exact = jax.value_and_grad(lambda p: transfer_value(p, process, low=-4.0, high=4.0))(params)
        on = expectation(plain, params, params, 24)
        return exact, on, expectation(weighted, params, drawn, 32), expectation(plain, params, drawn, 24)

    (value, slope), on, off, wrong = run(WELL)
    np.testing.assert_allclose(on[0], value, rtol=1e-12)
    np.testing.assert_allclose(on[1], slope, rtol=1e-11)
    np.testing.assert_allclose(off[0], value, rtol=1e-10)
    np.testing.assert_allclose(off[1], slope, rtol=1e-9)
    assert (abs(wrong[1] - slope) > 1e-4).all()  # paths of another drift, unweighted


def rotating(params, x, t):
    return params["pull"] * (jnp.flip(x) - x) + jnp.sin(params["pulse"] * t)


def calm(params, x, t):
    return -params["pull"] * x * jnp.cos(t)


def louder_outside(x):
    return 0.3 + 0.1 * x**2


def test_girsanov_is_the_difference_of_log_factors():
    """Two drifts in two dimensions, depending on time, with noise that depends on the position; to 1e-12 per step. Padding does not matter."""
    params = {"pull": jnp.array(0.8), "pulse": jnp.array(1.1)}
    target, reference = (EulerMaruyama(f, louder_outside, [0.2, -1.0], 0.1, 8) for f in (rotating, calm))
    keys = jax.random.split(jax.random.key(0), 6)
    taus = ld.rollout(params, keys, reference.policy, reference)
    assert ld.types.batch_info(taus).truncated_fraction == 0
    cut = taus._replace(valid=taus.valid.at[0, 5:].set(False), actions=taus.actions.at[0, 5:].set(jnp.nan))

    @jax.jit
    def both(taus):
        ours = girsanov_log_ratios(params, target, taus, reference_params=params, reference=reference)
        return ours, ld.importance.log_ratios(
            params, target.policy, ld.importance.with_behavior(params, reference.policy, taus)
        )

    for batch in (taus, cut):
        ours, library = both(batch)
        np.testing.assert_allclose(ours, library, atol=1e-12)
        assert (abs(ours[1:]) > 1e-12).all()
    assert (ours[0, 5:] == 0).all()
    # one step by hand: f - g = 0.5, dX = 0.3, dt = 0.1, g = 0.2, sigma = 2
    constant = EulerMaruyama(lambda p, x, t: p * x, 2.0, 1.0, 0.1, 1)
    tau = ld.rollout(jnp.array(0.2), jax.random.key(1), constant.policy, constant)._replace(actions=jnp.array([1.3]))
    found = girsanov_log_ratios(jnp.array(0.7), constant, tau, reference_params=jnp.array(0.2))
    assert float(found[0]) == pytest.approx((0.5 * (0.3 - 0.02) - 0.5 * 0.25 * 0.1) / 4, rel=1e-14)
    # paths of the process itself have weight 1
    assert (girsanov_log_ratios(params, target, taus, reference_params=params) == 0).all()


@pytest.mark.slow
def test_sampled_double_well_and_its_sensitivities():
    """From the left well, 2000 paths in batches of 20 by leave-one-out; free paths (no wells) weighted by Girsanov give the same value."""
    process = double_well(horizon=16, dt=0.1, noise=0.8)
    free = jnp.zeros(2)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))

    @jax.jit
    def run(key):
        keys = jax.random.split(key, (2, 100, 20))
        taus = ld.rollout(WELL, keys[0], process.policy, process)
        grads = jax.vmap(lambda taus: estimator.estimate(WELL, (), process.policy, taus)[0].grads)(taus)
        loose = ld.rollout(free, keys[1], process.policy, process)
        weights = jnp.exp(girsanov_log_ratios(WELL, process, loose, reference_params=free).sum(-1))
        exact = jax.value_and_grad(lambda p: transfer_value(p, process, low=-4.0, high=4.0))(WELL)
        return exact, grads, taus.rewards.sum(-1), weights * loose.rewards.sum(-1), loose.rewards.sum(-1)

    (value, slope), grads, *samples = run(jax.random.key(5))
    ld.testing.assert_unbiased(grads, slope, resolution=0.3, k=4)
    with pytest.raises(AssertionError, match="BIASED"):
        ld.testing.assert_unbiased(0.5 * grads, slope, resolution=0.3, k=4)
    z = [abs(x.mean() - value) / (x.std() / math.sqrt(x.size)) for x in samples]
    assert max(z[0], z[1]) < 4 < z[2]


def test_factors_are_the_normal_densities_of_the_steps():
    process = double_well(noise=[0.5, 0.2], initial=[1.0, -2.0], dt=0.04, horizon=3, running=lambda x: x[1])
    tau = ld.rollout(WELL, jax.random.key(0), process.policy, process)
    x = np.concatenate([np.asarray(tau.observations.x), np.asarray(tau.final_observation.x)[None]])
    np.testing.assert_allclose(tau.observations.time, [0, 0.04, 0.08], atol=1e-15)
    loc = x[:-1] + (1.0 * x[:-1] - 0.8 * x[:-1] ** 3) * 0.04
    scale = np.array([0.5, 0.2]) * 0.2
    density = np.prod(np.exp(-0.5 * ((x[1:] - loc) / scale) ** 2) / (scale * math.sqrt(2 * math.pi)), axis=1)
    np.testing.assert_allclose(np.exp(ld.log_factors(WELL, process.policy, tau)), density, rtol=1e-12)
    np.testing.assert_allclose(ld.log_prob(WELL, process.policy, tau, environment=process), np.log(density).sum())
    np.testing.assert_allclose(tau.rewards, 0.04 * x[:-1, 1] + np.array([0, 0, x[-1, 0]]), rtol=1e-14)
    assert tau.discounts.tolist() == [1, 1, 0]
    with pytest.warns(UserWarning, match=r"cuts 100\.00% of the paths"):
        short = ld.rollout(WELL, jax.random.key(0), process.policy, process, horizon=2)
    assert ld.types.batch_info(short).truncated_fraction == 1


def test_a_start_may_be_a_list():
    assert double_well(initial=[0.5]) == double_well(initial=(0.5,))
