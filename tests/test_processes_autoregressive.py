"""AR(1): closed forms against the library's likelihood, scipy, and exact Gaussian expectations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.processes import Autoregressive, AutoregressiveParams
from tests.quadrature import gauss_hermite, normal_logpdf

PARAMS = AutoregressiveParams(jnp.array(0.6), jnp.array(-0.3))
SERIES = jnp.array([0.4, -1.1, 0.3, 0.9, 2.0, -0.7])
PROCESSES = pytest.mark.parametrize("process", [Autoregressive(), Autoregressive(1.5)], ids=["stationary", "known"])


@PROCESSES
def test_log_prob_and_score_are_the_closed_forms(process):
    @jax.jit
    def run(params, series):
        ours = jax.value_and_grad(ld.log_prob)(params, process.policy, process.trajectory(series))
        return ours, *jax.value_and_grad(process.log_likelihood)(params, series), process.moments(params, 6)

    (logp, score), closed, closed_score, moments = run(PARAMS, SERIES)
    np.testing.assert_allclose(logp, closed, rtol=1e-12)
    np.testing.assert_allclose(score, closed_score, rtol=1e-8)
    np.testing.assert_allclose(logp, normal_logpdf(SERIES, moments.mean, moments.covariance), rtol=1e-12)


@PROCESSES
def test_expectations_by_quadrature_over_three_shocks(process):
    """E[score] = 0, its covariance is the Fisher information, and E[score * return] the gradient of the expected squares."""

    def path(shocks):
        phi, scale = PARAMS.coefficient, jnp.exp(PARAMS.log_scale)
        first = scale * shocks[0]
        x0 = first / jnp.sqrt(1 - phi**2) if process.initial is None else phi * process.initial + first
        x1 = phi * x0 + scale * shocks[1]
        return process.trajectory(jnp.stack([x0, x1, phi * x1 + scale * shocks[2]]))

    def value(params):
        mean, covariance = process.moments(params, 3)
        return jnp.sum(jnp.square(mean)) + jnp.trace(covariance)

    @jax.jit
    def run(params, nodes, weights):
        taus = jax.vmap(path)(nodes)
        scores = jnp.stack(jax.vmap(jax.grad(ld.log_prob), (None, None, 0))(params, process.policy, taus), axis=-1)
        found = weights @ scores, scores.T @ (weights[:, None] * scores), (weights * taus.rewards.sum(-1)) @ scores
        return found, jnp.stack(jax.grad(value)(params)), [process.fisher_information(params, n) for n in (3, 4)]

    # score times reward has degree 4 in each shock
    (mean, second, estimate), gradient, (information, off_by_one) = run(PARAMS, *gauss_hermite(3, 4))
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(second, information, rtol=1e-8, atol=1e-12)
    assert not np.allclose(second, off_by_one, rtol=1e-2)
    np.testing.assert_allclose(estimate, gradient, rtol=1e-8)


@pytest.mark.slow
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


def test_an_explosive_process_has_no_stationary_start():
    process, explosive = Autoregressive(), PARAMS._replace(coefficient=jnp.array(1.5))
    log_prob = ld.log_prob(explosive, process.policy, process.trajectory(SERIES))
    assert np.isnan([log_prob, process.log_likelihood(explosive, SERIES)]).all()
