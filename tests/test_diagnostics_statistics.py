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
from tests.mostly import slow
from tests.worlds import TWO_STATES_LOGITS, batch, trajectory, two_states

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


def test_cosine():
    a, b = ({"x": jnp.array(x), "y": jnp.array(y)} for x, y in (([3.0, 0.0], 4.0), ([1.0, 1.0], 0.0)))
    np.testing.assert_allclose(diagnostics.cosine(a, a), 1)
    np.testing.assert_allclose(diagnostics.cosine(a, jax.tree.map(jnp.negative, a)), -1)
    np.testing.assert_allclose(diagnostics.cosine(a, b), 3 / (5 * np.sqrt(2)))
    assert jnp.isnan(diagnostics.cosine(a, jax.tree.map(jnp.zeros_like, a)))


@pytest.mark.parametrize("scale", [1e-37, 1e-20, 1.0, 1e20, 1e37])
def test_ratios_of_squares_do_not_depend_on_the_scale_in_float32(scale):
    """The squares themselves are 0 or infinite at either end."""
    scale = jnp.float32(scale)
    assert (scale**2 in (0, np.inf)) == (scale != 1)
    first, second = jnp.array([1.0, 2.0], jnp.float32), jnp.array([2.0, 1.0], jnp.float32)
    run = jax.jit(jax.value_and_grad(diagnostics.cosine))
    for one, two in ((scale * first, second), (first, scale * second), (scale * first, scale * second)):
        found, slope = run(one, two)
        np.testing.assert_allclose(found, 0.8, rtol=1e-6)
        if one[0] > 1e-20:  # whose derivative has a number
            np.testing.assert_allclose(slope * one[0], [0.24, -0.12], rtol=1e-5)  # (2, 1)/5 - 0.8 (1, 2)/5
    plain = scale * jnp.array([[1.0], [2.0], [4.0]], jnp.float32)
    ratio = diagnostics.variance_ratio(2 * plain, plain)
    np.testing.assert_allclose([ratio.ratio, ratio.sem], [4, 0], rtol=1e-5, atol=1e-5)


def test_mixed_dtypes_and_float32():
    samples = {"a": SAMPLES["a"].astype(jnp.float32), "b": SAMPLES["b"].astype(jnp.float16)}
    assert diagnostics.sem(samples)["b"].dtype == jnp.float32
    trace = diagnostics.summary(samples).trace
    assert trace.dtype == jnp.float32
    np.testing.assert_allclose(trace, 11, rtol=1e-3)
    np.testing.assert_allclose(diagnostics.cosine(samples, samples), 1, rtol=1e-3)


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


@pytest.mark.parametrize("name", ["leave-one-out", slow("dice")])
def test_contributions_average_to_the_estimate_and_equal_a_loop(name):
    """And the moments that are streamed, in blocks of any size, are theirs."""
    estimator, (params, policy, taus) = ESTIMATORS[name], _batch()

    @jax.jit
    def run(params):
        samples = diagnostics.per_trajectory_gradients(params, policy, taus, estimator, block_size=12)
        groups = diagnostics.per_trajectory_gradients(params, policy, taus, estimator, num_groups=4)
        weights, _ = estimator.advantages(params, (), policy, taus)
        # the term of one trajectory: the objective with all other weights at zero, times N
        alone = jnp.where(jnp.eye(12, dtype=bool)[..., None], weights[None], 0)
        loop = jax.vmap(lambda w: jax.grad(estimator.objective)(params, policy, taus, w))(alone)
        sizes = (None, 5, 100) if name == "leave-one-out" else ()
        moments = [diagnostics.gradient_moments(params, policy, taus, estimator, block_size=size) for size in sizes]
        return samples, groups, loop, estimator.estimate(params, (), policy, taus)[0].grads, moments

    samples, groups, loop, estimate, moments = run(params)
    for got, want, group, whole in zip(*map(jax.tree.leaves, (samples, loop, groups, estimate)), strict=True):
        assert got.shape == (12, *whole.shape)
        np.testing.assert_allclose(got, 12 * want, atol=1e-13)
        np.testing.assert_allclose(got.mean(axis=0), whole, atol=1e-13)
        np.testing.assert_allclose(got.reshape((4, 3, *whole.shape)).mean(axis=1), group, atol=1e-13)
    summary = diagnostics.summary(samples)
    want = summary.mean, summary.variance, summary.sem
    for found in moments:
        got = found.mean, found.variance, found.sem
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-14), got, want)


@pytest.mark.usefixtures("blocks_of_a_cpu")
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
    advantage = ld.advantages.Return() if credit == "full_return" else ld.advantages.ToGo()
    estimator = ld.ScoreFunction(advantage, discount=0.9)
    taus = ld.exact.enumerate_trajectories(mdp, horizon=horizon)

    @jax.jit
    def trace(params):
        probs = ld.prob(params, ld.tabular_softmax, taus, environment=mdp)
        samples = diagnostics.per_trajectory_gradients(params, ld.tabular_softmax, taus, estimator)
        mean = jnp.tensordot(probs, samples, axes=1)
        return jnp.tensordot(probs, jnp.sum((samples - mean[None]) ** 2, axis=(1, 2)), axes=1)

    np.testing.assert_allclose(trace(params), TRACES[horizon, credit], rtol=1e-12)


def test_variance_by_step_adds_up_and_equals_the_covariances_of_the_steps():
    """Weights of invalid steps are ignored."""
    params, policy, taus = _batch()
    estimator = ESTIMATORS["leave-one-out"]

    @jax.jit
    def run(params):
        weights, _ = estimator.advantages(params, (), policy, taus)
        dirty = jnp.where(taus.valid, weights, jnp.nan)
        by_step = [diagnostics.variance_by_step(params, policy, taus, w, block_size=5) for w in (weights, dirty)]
        samples = diagnostics.per_trajectory_gradients(params, policy, taus, estimator)
        scores = jax.jacrev(lambda p: ld.log_factors(p, policy, taus))(params)
        scores = jnp.concatenate([s.reshape((12, 6, -1)) for s in jax.tree.leaves(scores)], axis=-1)
        return *by_step, diagnostics.summary(samples).trace, weights[..., None] * scores

    by_step, dirty, trace, steps = map(np.asarray, run(params))
    np.testing.assert_array_equal(by_step, dirty)
    centered, total = steps - steps.mean(axis=0), steps.sum(axis=1)
    covariances = np.einsum("ntd,nd->t", centered, total - total.mean(axis=0)) / 11
    np.testing.assert_allclose(by_step, covariances, atol=1e-12)
    np.testing.assert_allclose(by_step.sum(), trace, rtol=1e-12)


@pytree(static=("gamma_t",))
class TokenMean(ld.ScoreFunction):
    def objective(self, params, policy, trajectories, weights):
        logs = ld.log_factors(params, policy, trajectories)
        return jnp.sum(weights * logs) / jnp.sum(trajectories.valid).astype(logs.dtype)


LOGITS = jnp.array([0.5, 0.25, -0.5], jnp.bfloat16)


def _answers(num, lengths, spread=1.0):
    """Choices of one softmax, answers of different lengths, in float32."""
    actions = jax.random.categorical(jax.random.key(0), LOGITS.astype(jnp.float32), shape=(num, lengths[1]))
    last = jax.random.randint(jax.random.key(1), (num, 1), lengths[0], lengths[1] + 1)
    rewards = 1 + spread * jax.random.normal(jax.random.key(3), actions.shape, jnp.float32)
    zeros = jnp.zeros(actions.shape, jnp.float32)
    return trajectory(observations=zeros, actions=actions, rewards=rewards, valid=jnp.arange(lengths[1])[None] < last)


@pytest.mark.parametrize("of", [diagnostics.per_trajectory_gradients, diagnostics.gradient_moments])
@pytest.mark.parametrize(("num", "lengths"), [(256, (5, 10)), slow((1024, (28, 30))), (4096, (5, 10))])
def test_a_mean_over_steps_is_refused_in_large_batches_and_a_mean_over_trajectories_is_not(of, num, lengths):
    """In float32, where the two part by less and less."""
    params, taus = LOGITS.astype(jnp.float32), _answers(num, lengths)
    of(params, ld.shared_softmax, taus, ESTIMATORS["leave-one-out"])
    with pytest.raises(ValueError, match="not a mean over"):
        of(params, ld.shared_softmax, taus, TokenMean())


def test_gradients_in_half_precision_are_taken_apart_in_single():
    """The noise is a hundredth of the mean: rounded to bfloat16, the entries of the steps would add up to less than 0."""

    @jax.jit
    def run(params):
        taus, estimator = _answers(64, (4, 4), 0.01), ESTIMATORS["none"]
        weights, _ = estimator.advantages(params, (), ld.shared_softmax, taus)
        samples = diagnostics.per_trajectory_gradients(params, ld.shared_softmax, taus, estimator)
        moments = diagnostics.gradient_moments(params, ld.shared_softmax, taus, estimator)
        by_step = diagnostics.variance_by_step(params, ld.shared_softmax, taus, weights)
        return diagnostics.summary(samples).trace, moments.trace, jnp.sum(by_step)

    half, single = map(run, (LOGITS, LOGITS.astype(jnp.float32)))
    np.testing.assert_array_equal(half, single)
    np.testing.assert_allclose(half, single[0], rtol=1e-4)


def test_objectives_that_are_no_mean_over_trajectories_are_refused():
    @pytree(static=("gamma_t",))
    class Scalars(ld.ScoreFunction):
        def advantages(self, params, state, policy, trajectories):
            return jnp.ones(3), state

    params, policy, taus = _batch()
    contributions = functools.partial(diagnostics.per_trajectory_gradients, params, policy)
    with pytest.raises(ValueError, match="not a mean over"):
        contributions(taus, TokenMean())
    with pytest.raises(ValueError, match="not a mean over"):
        diagnostics.gradient_moments(params, policy, taus, TokenMean())
    with pytest.raises(ValueError, match=r"weights.*the leading axis \(12,\)"):
        contributions(taus, Scalars())
    with pytest.raises(ValueError, match="divisor of the N = 12"):
        contributions(taus, ESTIMATORS["none"], num_groups=5)
    with pytest.raises(ValueError, match=r">= 2, received .*this estimator needs as many"):
        contributions(jax.tree.map(lambda x: x[:1], taus), ESTIMATORS["leave-one-out"])
    with pytest.raises(ValueError, match=r"shape \(N, T\)"):
        diagnostics.variance_by_step(params, policy, taus, jnp.ones(12))
    with pytest.raises(ValueError, match="block_size: expected a whole number >= 1"):
        diagnostics.gradient_moments(params, policy, taus, ESTIMATORS["none"], block_size=0)


# The alarm


@functools.cache
def _sampled():
    """400 x 200 returns and scores of the two-state world, T = 2."""

    @jax.jit
    def draw(keys):
        taus = ld.rollout(TWO_STATES_LOGITS, keys, ld.tabular_softmax, two_states(), horizon=2)
        scores = jax.vmap(jax.grad(ld.log_prob), (None, None, 0))(TWO_STATES_LOGITS, ld.tabular_softmax, taus)
        return (taus.rewards @ jnp.array([1.0, 0.9]))[:, None, None], scores

    return draw(jax.random.split(jax.random.key(0), 80_000))


@jax.jit
def _ratio(constant, returns, scores):
    """Gradients (R - constant) * score against R * score."""
    return diagnostics.variance_ratio((returns - constant) * scores, returns * scores)


def test_variance_ratio_of_a_good_baseline_and_alarm_for_a_bad_one():
    """Exact, from the variances of `tests.listed`: minus J 0.8358457889336828, plain 2.2862939330787517."""
    good, bad, same = (_ratio(c, *(x[:4000] for x in _sampled())) for c in (1.2545818476558974, -2.0, 0.0))
    assert abs(good.ratio - 0.8358457889336828 / 2.2862939330787517) < 4 * good.sem
    assert good.sem < 0.02
    assert bad.ratio > 2
    assert [bool(x.raised) for x in (good, bad, same)] == [False, True, False]
    assert (same.ratio, same.sem) == (1.0, 0.0)


def test_the_alarm_knows_its_error():
    """400 replicates: the spread of the ratio is the standard error it states."""
    replicates = [x.reshape((400, 200, *x.shape[1:])) for x in _sampled()]
    runs = jax.vmap(_ratio, (None, 0, 0))(0.7, *replicates)
    np.testing.assert_allclose(jnp.mean(runs.sem), jnp.std(runs.ratio), rtol=0.15)
    assert not jnp.any(runs.raised)
