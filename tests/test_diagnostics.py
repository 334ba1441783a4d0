"""Statistics by hand, contributions against a loop and against exact variances."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv import diagnostics
from logderiv._core.pytrees import pytree
from tests.listed import TWO_STATES_VARIANCES
from tests.worlds import TERMINATING_LOGITS, TWO_STATES_LOGITS, batch, terminating, two_states

SAMPLES = {"a": jnp.array([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]]), "b": jnp.array([2.0, 2.0, 5.0])}


# Statistics


def test_statistics_by_hand():
    close, found = np.testing.assert_allclose, diagnostics.summary(SAMPLES)
    assert found.num_samples == 3
    close(found.mean["a"], [3, 4])
    close(found.variance["a"], [4, 4])
    close(found.variance["b"], 3)
    close(found.sem["a"], [np.sqrt(4 / 3)] * 2)
    close(diagnostics.sem(SAMPLES)["b"], 1)
    close(found.leaf_variance["a"], 8)
    close(found.trace, 11)
    close(found.signal_to_noise["a"], [1.5, 2.0])
    # |mean|^2 = 9 + 16 + 9 = 34, and its noise is 11 / 3
    close(found.noise_scale(), 11 / (34 - 11 / 3))
    close(found.noise_scale(group_size=8), 88 / (34 - 11 / 3))
    close(found.samples_needed(0.5), 44)
    close(found.samples_needed(0.1, relative=True), np.ceil(11 / (0.01 * (34 - 11 / 3))))


def test_noise_scale_is_the_two_batch_estimate_of_mccandlish_et_al():
    """Appendix A.1 with batches of 1 and N; the estimate of the squared gradient has no bias."""
    g = jax.random.normal(jax.random.key(0), (50, 4)) + 0.5
    small, big = jnp.mean(jnp.sum(g**2, axis=1)), jnp.sum(jnp.mean(g, axis=0) ** 2)
    squared = (50 * big - small) / 49
    trace = (small - big) / (1 - 1 / 50)
    np.testing.assert_allclose(diagnostics.summary(g).noise_scale(), trace / squared, rtol=1e-12)


def test_a_pilot_that_resolves_nothing_says_so():
    pilot = diagnostics.summary(jnp.array([[1.0], [-1.0]]))
    assert pilot.noise_scale() < 0
    assert jnp.isnan(pilot.samples_needed(0.1, relative=True))


def test_samples_needed_reaches_the_accuracy():
    g = jax.random.normal(jax.random.key(1), (100_000, 3)) * jnp.array([[1.0, 2.0, 3.0]]) + 1
    n = int(diagnostics.summary(g[:2000]).samples_needed(0.5))
    assert 50 < n < 62  # exact: 14 / 0.25 = 56
    means = g[: 100_000 // n * n].reshape((-1, n, 3)).mean(axis=1)
    rms = jnp.sqrt(jnp.mean(jnp.sum((means - 1) ** 2, axis=1)))
    np.testing.assert_allclose(rms, 0.5, rtol=0.06)


def test_cosine():
    a, b = ({"x": jnp.array(x), "y": jnp.array(y)} for x, y in (([3.0, 0.0], 4.0), ([1.0, 1.0], 0.0)))
    np.testing.assert_allclose(diagnostics.cosine(a, a), 1)
    np.testing.assert_allclose(diagnostics.cosine(a, jax.tree.map(jnp.negative, a)), -1)
    np.testing.assert_allclose(diagnostics.cosine(a, b), 3 / (5 * np.sqrt(2)))
    assert jnp.isnan(diagnostics.cosine(a, jax.tree.map(jnp.zeros_like, a)))


def test_mixed_dtypes_and_float32():
    samples = {"a": SAMPLES["a"].astype(jnp.float32), "b": SAMPLES["b"].astype(jnp.float16)}
    assert diagnostics.sem(samples)["b"].dtype == jnp.float16
    trace = diagnostics.summary(samples).trace
    assert trace.dtype == jnp.float32
    np.testing.assert_allclose(trace, 11, rtol=1e-3)
    np.testing.assert_allclose(diagnostics.cosine(samples, samples), 1, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnostics.sem(jnp.ones((1, 3))), "at least 2"),
        (lambda: diagnostics.sem({"a": jnp.ones((3, 3)), "b": jnp.ones(2)}), "common leading axis"),
        (lambda: diagnostics.sem(jnp.ones(())), "common leading axis"),
        (lambda: diagnostics.summary(SAMPLES).samples_needed(0.0), "positive"),
        (lambda: diagnostics.cosine({"a": jnp.ones(2)}, {"b": jnp.ones(2)}), "of the structure"),
        (lambda: diagnostics.cosine(jnp.ones(2), jnp.ones(3)), "expected shape"),
        (lambda: diagnostics.variance_ratio(jnp.ones((3, 2)), jnp.ones((4, 2))), "expected shape"),
    ],
)
def test_bad_samples_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Contributions


ESTIMATORS = {
    "none": ld.ScoreFunction(discount=0.9),
    "leave-one-out": ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.9),
    "dice": ld.ScoreFunction(
        ld.advantages.Return(ld.baselines.LeaveOneOut(per="trajectory")), surrogate=ld.estimators.DiCE()
    ),
}


def _batch(num=12, horizon=6):
    """A padded batch and a linear policy."""
    policy = ld.MLP(2, hidden=())
    taus = batch(jax.random.key(3), (num, horizon))
    lengths = 1 + jnp.arange(num) % horizon
    valid = jnp.arange(horizon)[None] < lengths[:, None]
    garbage = jnp.where(valid, taus.rewards, jnp.nan)
    observations = jnp.where(valid[..., None], taus.observations, jnp.nan)
    taus = taus._replace(valid=valid, rewards=garbage, observations=observations)
    return policy.init(jax.random.key(4), jnp.zeros(4)), policy, taus


@pytest.mark.parametrize("name", ["leave-one-out", "dice"])
def test_contributions_average_to_the_estimate_and_equal_a_loop(name):
    estimator, (params, policy, taus) = ESTIMATORS[name], _batch()

    @jax.jit
    def run(params):
        samples = diagnostics.per_trajectory_gradients(params, policy, taus, estimator, block_size=12)
        groups = diagnostics.per_trajectory_gradients(params, policy, taus, estimator, num_groups=4)
        weights, _ = estimator.advantages(params, (), policy, taus)
        # the term of one trajectory: the objective with all other weights at zero, times N
        alone = jax.vmap(lambda i: jnp.where(jnp.arange(12)[:, None] == i, weights, 0))(jnp.arange(12))
        loop = jax.vmap(lambda w: jax.grad(estimator.objective)(params, policy, taus, w))(alone)
        return (samples, groups, jax.tree.map(lambda x: 12 * x, loop), estimator.estimate(params, (), policy, taus)[0])

    samples, groups, loop, estimate = run(params)
    for got, want, group, whole in zip(*map(jax.tree.leaves, (samples, loop, groups, estimate.grads)), strict=True):
        assert got.shape == (12, *whole.shape)
        np.testing.assert_allclose(got, want, atol=1e-13)
        np.testing.assert_allclose(got.mean(axis=0), whole, atol=1e-13)
        np.testing.assert_allclose(got.reshape((4, 3, *whole.shape)).mean(axis=1), group, atol=1e-13)


@pytest.mark.parametrize("block_size", [None, 5, 100])
def test_streamed_moments_are_those_of_all_contributions(block_size):
    params, policy, taus = _batch()
    estimator = ESTIMATORS["leave-one-out"]

    @jax.jit
    def run(params):
        samples = diagnostics.per_trajectory_gradients(params, policy, taus, estimator)
        return samples, diagnostics.gradient_moments(params, policy, taus, estimator, block_size=block_size)

    samples, moments = run(params)
    for name in ("mean", "variance", "sem"):
        got, want = getattr(moments, name), getattr(diagnostics.summary(samples), name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14), got, want)


def test_streamed_moments_never_hold_all_gradients():
    policy = ld.MLP(2, hidden=(256,))
    params = jax.tree.map(lambda x: x.astype(jnp.float32), policy.init(jax.random.key(0), jnp.zeros(4)))
    taus = batch(jax.random.key(1), (4096, 3), dtype=jnp.float32)
    everything = 4096 * sum(x.size for x in jax.tree.leaves(params)) * 4

    def run(p, taus):
        return diagnostics.gradient_moments(p, policy, taus, ESTIMATORS["none"], block_size=8)

    analysis: Any = jax.jit(run).lower(params, taus).compile().memory_analysis()
    assert analysis.temp_size_in_bytes + analysis.output_size_in_bytes < everything / 10


# Variance traces of single-trajectory estimators of the two-state process: twice the sum of the variances that were enumerated.
TRACES = {
    (T, name): 2 * TWO_STATES_VARIANCES[T][name].sum()
    for T, name in ((2, "full_return"), (2, "reward_to_go"), (3, "reward_to_go"))
}


@pytest.mark.parametrize(("horizon", "credit"), TRACES)
def test_contributions_have_the_exact_variance(horizon, credit):
    mdp, params = two_states(), TWO_STATES_LOGITS
    estimator = ld.ScoreFunction(
        ld.advantages.Return() if credit == "full_return" else ld.advantages.ToGo(), discount=0.9
    )
    taus = ld.exact.enumerate_trajectories(mdp, horizon=horizon)

    @jax.jit
    def trace(params):
        probs = ld.prob(params, ld.tabular_softmax, taus, environment=mdp)
        samples = diagnostics.per_trajectory_gradients(params, ld.tabular_softmax, taus, estimator)
        mean = jnp.tensordot(probs, samples, axes=1)
        return jnp.tensordot(probs, jnp.sum((samples - mean[None]) ** 2, axis=(1, 2)), axes=1)

    np.testing.assert_allclose(trace(params), TRACES[horizon, credit], rtol=1e-12)


def test_variance_by_step_adds_up_and_equals_the_covariances_of_the_steps():
    params, policy, taus = _batch()
    estimator = ESTIMATORS["leave-one-out"]

    @jax.jit
    def run(params):
        weights, _ = estimator.advantages(params, (), policy, taus)
        by_step = diagnostics.variance_by_step(params, policy, taus, weights, block_size=5)
        samples = diagnostics.per_trajectory_gradients(params, policy, taus, estimator)
        scores = jax.jacrev(lambda p: ld.log_factors(p, policy, taus))(params)
        steps = jax.tree.map(lambda s: weights.reshape(12, 6, *(1,) * (s.ndim - 2)) * s, scores)
        steps = jnp.concatenate([s.reshape((12, 6, -1)) for s in jax.tree.leaves(steps)], axis=-1)
        return by_step, diagnostics.summary(samples).trace, steps

    by_step, trace, steps = run(params)
    total = steps.sum(axis=1)
    for t in range(6):
        covariance = np.cov(steps[:, t].T, total.T)
        size = total.shape[1]
        np.testing.assert_allclose(by_step[t], np.trace(covariance[:size, size:]), atol=1e-12)
    np.testing.assert_allclose(by_step.sum(), trace, rtol=1e-12)


def test_variance_by_step_ignores_weights_of_invalid_steps():
    params, policy, taus = _batch()
    weights = jnp.ones((12, 6))
    run = jax.jit(lambda weights: diagnostics.variance_by_step(params, policy, taus, weights))
    clean, dirty = run(jnp.where(taus.valid, weights, 0)), run(jnp.where(taus.valid, weights, jnp.nan))
    np.testing.assert_array_equal(clean, dirty)


def test_objectives_that_are_no_mean_over_trajectories_are_refused():
    @pytree(static=("gamma_t",))
    class TokenMean(ld.ScoreFunction):
        def objective(self, params, policy, trajectories, weights):
            logs = ld.log_factors(params, policy, trajectories)
            return jnp.sum(weights * logs) / jnp.sum(trajectories.valid).astype(logs.dtype)

    @pytree(static=("gamma_t",))
    class Scalars(ld.ScoreFunction):
        def advantages(self, params, state, policy, trajectories):
            return jnp.ones(3), state

    params, policy, taus = _batch()
    contributions = functools.partial(diagnostics.per_trajectory_gradients, params, policy)
    with pytest.raises(ValueError, match="not a mean over"):
        contributions(taus, TokenMean())
    with pytest.raises(ValueError, match="leading axis of N = 12"):
        contributions(taus, Scalars())
    with pytest.raises(ValueError, match="divisor of the N = 12"):
        contributions(taus, ESTIMATORS["none"], num_groups=5)
    with pytest.raises(ValueError, match="at least 2 for this estimator"):
        contributions(jax.tree.map(lambda x: x[:1], taus), ESTIMATORS["leave-one-out"])
    with pytest.raises(ValueError, match=r"shape \(N, T\)"):
        diagnostics.variance_by_step(params, policy, taus, jnp.ones(12))
    with pytest.raises(ValueError, match="block_size: expected a whole number >= 1"):
        diagnostics.gradient_moments(params, policy, taus, ESTIMATORS["none"], block_size=0)


# The alarm


def _ratio(key, constant, num):
    """Gradients (R - constant) * score against R * score over `num` trajectories of the two-state world, T = 2."""
    params = TWO_STATES_LOGITS
    taus = ld.rollout(params, jax.random.split(key, num), ld.tabular_softmax, two_states(), horizon=2)
    scores = jax.vmap(jax.grad(ld.log_prob), (None, None, 0))(params, ld.tabular_softmax, taus)
    returns = jnp.sum(taus.rewards * jnp.array([[1.0, 0.9]]), axis=1)[:, None, None]
    return diagnostics.variance_ratio((returns - constant) * scores, returns * scores)


def test_variance_ratio_of_a_good_baseline_and_alarm_for_a_bad_one():
    """Exact, from the variances of `tests.listed`: minus J 0.8358457889336828, plain 2.2862939330787517."""
    run = jax.jit(lambda constant: _ratio(jax.random.key(0), constant, 4000))
    good = run(1.2545818476558974)
    assert abs(good.ratio - 0.8358457889336828 / 2.2862939330787517) < 4 * good.sem
    assert good.sem < 0.02
    assert not good.raised
    bad = run(-2.0)
    assert bad.ratio > 2
    assert bad.raised
    same = run(0.0)
    assert (same.ratio, same.sem, bool(same.raised)) == (1.0, 0.0, False)


def test_the_alarm_knows_its_error():
    """400 replicates: the spread of the ratio is the standard error it states."""
    keys = jax.random.split(jax.random.key(5), 400)
    runs = jax.jit(jax.vmap(lambda key: _ratio(key, 0.7, 200)))(keys)
    np.testing.assert_allclose(jnp.mean(runs.sem), jnp.std(runs.ratio), rtol=0.15)
    assert not jnp.any(runs.raised)


def test_contributions_on_episodes_that_end():
    mdp, params, estimator = terminating(), TERMINATING_LOGITS, ESTIMATORS["leave-one-out"]

    @jax.jit
    def run(key):
        taus = ld.rollout(params, jax.random.split(key, 16), ld.tabular_softmax, mdp, horizon=5)
        samples = diagnostics.per_trajectory_gradients(params, ld.tabular_softmax, taus, estimator)
        return samples, estimator.estimate(params, (), ld.tabular_softmax, taus)[0]

    samples, estimate = run(jax.random.key(0))
    np.testing.assert_allclose(samples.mean(axis=0), estimate.grads, atol=1e-13)
    assert bool(jnp.all(samples[:, 2] == 0))  # nothing is chosen in the goal
