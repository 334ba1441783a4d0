"""AR(1): closed forms against the library's likelihood, scipy, and exact Gaussian expectations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.processes import Autoregressive, AutoregressiveParams
from tests.quadrature import gauss_hermite, normal_logpdf

PARAMS = AutoregressiveParams(jnp.array(0.6), jnp.array(-0.3))
SERIES = jnp.array([0.4, -1.1, 0.3, 0.9, 2.0, -0.7])
PROCESSES = pytest.mark.parametrize(
    "process", [Autoregressive(), Autoregressive(initial=1.5)], ids=["stationary", "known"]
)


@PROCESSES
def test_log_prob_and_score_are_the_closed_forms(process):
    @jax.jit
    def run(params, series):
        tau = process.trajectory(series)
        return (
            jax.value_and_grad(ld.log_prob)(params, process.policy, tau),
            *jax.value_and_grad(process.log_likelihood)(params, series),
            process.moments(params, series.shape[0]),
        )

    (logp, score), closed, closed_score, moments = run(PARAMS, SERIES)
    np.testing.assert_allclose(logp, closed, rtol=1e-12)
    np.testing.assert_allclose(score, closed_score, rtol=1e-8)
    dense = normal_logpdf(SERIES, moments.mean, moments.covariance)
    np.testing.assert_allclose(logp, dense, rtol=1e-12)


@functools.cache
def expectations(process):
    """Expected score, its second moment, and expected `score * sum of rewards`, by quadrature over the three shocks."""
    nodes, weights = gauss_hermite(3, 4)  # score times reward has degree 4 in each shock

    def path(shocks):
        phi, scale = PARAMS.coefficient, jnp.exp(PARAMS.log_scale)
        first = scale * shocks[0]
        x0 = first / jnp.sqrt(1 - phi**2) if process.initial is None else phi * process.initial + first
        x1 = phi * x0 + scale * shocks[1]
        return jnp.stack([x0, x1, phi * x1 + scale * shocks[2]])

    @jax.jit
    def run(nodes, weights):
        taus = jax.vmap(lambda shocks: process.trajectory(path(shocks)))(nodes)
        scores = jnp.stack(jax.vmap(jax.grad(ld.log_prob), (None, None, 0))(PARAMS, process.policy, taus), axis=-1)
        returns = jnp.sum(taus.rewards, axis=-1)
        return weights @ scores, jnp.einsum("k,ki,kj->ij", weights, scores, scores), (weights * returns) @ scores

    return run(jnp.asarray(nodes), jnp.asarray(weights))


@PROCESSES
def test_expected_score_is_zero_and_its_covariance_the_fisher_information(process):
    mean, second, _ = expectations(process)
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    information = jax.jit(lambda p: process.fisher_information(p, 3))(PARAMS)
    np.testing.assert_allclose(second, information, rtol=1e-8, atol=1e-12)
    off_by_one = jax.jit(lambda p: process.fisher_information(p, 4))(PARAMS)
    assert not np.allclose(second, off_by_one, rtol=1e-2)


@PROCESSES
def test_return_times_score_is_the_gradient_of_the_expected_squares(process):
    def value(params):
        mean, covariance = process.moments(params, 3)
        return jnp.sum(jnp.square(mean)) + jnp.trace(covariance)

    exact = jnp.stack(jax.jit(jax.grad(value))(PARAMS))
    np.testing.assert_allclose(expectations(process)[2], exact, rtol=1e-8)


def test_sampled_paths_have_scores_and_those_of_another_start_have_not():
    """`check_score`: E[score] = 0 and E[score score^T] = -E[Hessian], step by step."""
    process, other = Autoregressive(horizon=3), Autoregressive(initial=0.0)

    def check(scored):
        ld.testing.check_score(
            PARAMS,
            jax.random.key(0),
            lambda params, tau: ld.log_factors(params, scored.policy, tau),
            lambda params, key: ld.rollout(params, key, process.policy, process),
            num_samples=8000,
        )

    check(process)
    with pytest.raises(AssertionError, match=r"E\[score\] is not 0"):
        check(other)


def test_an_estimator_of_the_library_takes_the_process_as_it_is():
    process = Autoregressive(horizon=3)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))

    def value(params):
        return jnp.trace(process.moments(params, 3).covariance)

    @jax.jit
    def run(keys):
        def one(keys):
            taus = ld.rollout(PARAMS, keys, process.policy, process)
            return estimator.estimate(PARAMS, estimator.init(PARAMS), process.policy, taus)[0].grads

        return jax.vmap(one)(keys), jax.grad(value)(PARAMS)

    samples, exact = run(jax.random.split(jax.random.key(1), (3000, 8)))
    ld.testing.assert_unbiased(samples, exact, resolution=1.0)
    wrong = exact._replace(coefficient=1.5 * exact.coefficient)
    with pytest.raises(AssertionError, match="BIASED"):
        ld.testing.assert_unbiased(samples, wrong, resolution=1.0)


def test_float32_and_a_batch_of_series():
    process = Autoregressive()
    params = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
    batch = jnp.stack([SERIES, 2 * SERIES]).astype(jnp.float32)
    logs = jax.jit(lambda p, xs: ld.log_prob(p, process.policy, jax.vmap(process.trajectory)(xs)))(params, batch)
    assert logs.dtype == jnp.float32
    np.testing.assert_allclose(logs[1], process.log_likelihood(PARAMS, 2 * SERIES), rtol=1e-5)


def test_bad_input():
    process = Autoregressive()
    with pytest.raises(ValueError, match=r"series: expected shape \(T,\).*use jax.vmap"):
        process.log_likelihood(PARAMS, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="same number of rows"):
        process.trajectory(jnp.ones(0))
    with pytest.raises(ValueError, match=r"actions.state: expected shape \(\), received \(3,\)"):
        process.trajectory(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="no default"):
        ld.rollout(PARAMS, jax.random.key(0), process.policy, process)
    explosive = PARAMS._replace(coefficient=jnp.array(1.5))
    assert jnp.isnan(process.log_likelihood(explosive, SERIES))
    assert jnp.isnan(ld.log_prob(explosive, process.policy, process.trajectory(SERIES)))
