"""The instruments for users: each accepts what is right, rejects its wrong twin, and refuses to answer without power."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv import testing
from logderiv.estimators.baselines import Stateless
from logderiv.estimators.declaration import Bias
from tests.worlds import TWO_STATES_LOGITS, batch, terminating, two_states

# assert_unbiased


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OwnBatchMean(Stateless):
    """The popular mistake: the mean of the batch, the own sample included; E = (1 - 1/N) grad J."""

    bias = Bias()  # wrongly declared

    def values(self, state, trajectories, batch):
        del state, trajectories
        return jnp.broadcast_to(jnp.mean(batch.credit, axis=0, keepdims=True), batch.credit.shape)


def trajectory_estimates(baseline):
    """Replicates of an estimate from two trajectories of the two-state world, T = 2, gamma = 0.9."""
    estimator = ld.score_function(baseline=baseline, discount=0.9)
    params, policy = TWO_STATES_LOGITS, ld.tabular_softmax

    def one(key):
        taus = ld.rollout(params, jax.random.split(key, 2), policy, two_states(), horizon=2)
        return estimator.estimate(params, (), policy, taus)[0].grads

    exact = jnp.array([[0.3600762392217371, -0.3600762392217371], [-0.3182649256447019, 0.3182649256447019]])
    return jax.vmap(one), exact, 0.12, 3000


def gaussian_estimates(weights, num):
    """E[x^2 + 10], x ~ N(0.7, 1), derivative 1.4 in the mean: mean over `num` samples of weight times score."""

    def many(keys):
        x = 0.7 + jax.vmap(lambda key: jax.random.normal(key, (num,)))(keys)
        return jnp.mean(jax.vmap(weights)(jnp.square(x) + 10) * (x - 0.7), axis=1)

    return many, jnp.asarray(1.4), 0.35, 3000


def moving_average(cost, *, old_value):
    """optax.monte_carlo's, second batch, its early-training decay (1 + 0) / (10 + 0): the batch is put in first, or not."""
    old = 11.0
    return cost - (old if old_value else 0.1 * old + 0.9 * jnp.mean(cost))


# name: (right, wrong)
UNBIASED = {
    "batch mean with its own sample": (
        trajectory_estimates(ld.baseline_leave_one_out()),
        trajectory_estimates(OwnBatchMean()),
    ),
    "doubled surrogate": (
        gaussian_estimates(lambda cost: cost - 11.49, 8),
        gaussian_estimates(lambda cost: 2 * (cost - 11.49), 8),
    ),
    "moving average updated first": (
        gaussian_estimates(lambda cost: moving_average(cost, old_value=True), 2),
        gaussian_estimates(lambda cost: moving_average(cost, old_value=False), 2),
    ),
    "NetKet's factor 1 - 1/N": (
        gaussian_estimates(lambda cost: 1.5 * (cost - jnp.mean(cost)), 3),
        gaussian_estimates(lambda cost: cost - jnp.mean(cost), 3),
    ),
}


def unbiased_verdicts(case, keys):
    """Whether the check passed, and whether it had power, for each seed."""
    estimates, exact, resolution, replicates = case

    def one(key):
        report = testing.unbiased_report(estimates(jax.random.split(key, replicates)), exact, resolution=resolution)
        return report.passed, report.powered & report.varies

    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys)


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_passes_and_its_wrong_twin_does_not(name):
    check_unbiased(name, num_seeds=3)


def check_unbiased(name, num_seeds):
    right, wrong = UNBIASED[name]
    passed, powered = unbiased_verdicts(right, jax.random.split(jax.random.key(2024), num_seeds))
    assert jnp.sum(~passed) <= num_seeds // 200
    assert jnp.all(powered)
    passed, powered = unbiased_verdicts(wrong, jax.random.split(jax.random.key(2025), num_seeds))
    assert not jnp.any(passed)
    assert jnp.all(powered)  # rejected for its bias, not for want of power


def test_the_report_names_the_worst_parameter_and_what_it_could_see():
    samples = {
        "a": 1.0 + jax.random.normal(jax.random.key(0), (400, 2)),
        "b": jax.random.normal(jax.random.key(1), (400,)),
    }
    exact = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(0.0)}
    with pytest.raises(AssertionError, match="BIASED") as caught:
        testing.assert_unbiased(samples, exact, resolution=0.4)
    row = next(line for line in str(caught.value).splitlines() if "['a']" in line)
    mean, true, sem, z, seen, resolution = map(float, row.split()[1:])
    assert true == 2
    assert z == pytest.approx((mean - 2) / sem, rel=0.05)
    assert seen == pytest.approx(testing.familywise(5, 3) * sem, rel=0.1)
    assert resolution == 0.4
    good = testing.assert_unbiased(
        samples, {"a": jnp.ones(2), "b": jnp.zeros(())}, resolution={"a": jnp.full(2, 0.4), "b": 0.3}
    )
    assert str(good).startswith("passed")


def test_under_powered_checks_are_refused_and_say_how_many_replicates():
    samples = jax.random.normal(jax.random.key(0), (100, 3))
    with pytest.raises(AssertionError, match="UNDER-POWERED: 100 replicates") as caught:
        testing.assert_unbiased(samples, jnp.zeros(3), resolution=0.1)
    needed = float(str(caught.value).split("about ")[1].split(" ")[0])
    assert needed == pytest.approx((testing.familywise(5, 3) / 0.1) ** 2, rel=0.4)
    enough = jax.random.normal(jax.random.key(1), (int(1.2 * needed), 3))
    assert testing.assert_unbiased(enough, jnp.zeros(3), resolution=0.1).passed


@pytest.mark.parametrize(
    "samples",
    [jnp.zeros((50, 2)), jnp.full((50, 2), 0.1), 0.1 + 1e-17 * jnp.arange(100.0).reshape(50, 2)]
    + [jax.random.normal(jax.random.key(0), (50, 2)).at[3, 1].set(bad) for bad in (jnp.nan, jnp.inf)]
    + [jax.random.normal(jax.random.key(0), (50, 2)).at[:, 1].set(0.0)],
    ids=["zero", "constant", "rounding", "nan", "inf", "one dead parameter"],
)
def test_no_variation_or_nan_never_passes(samples):
    exact = jnp.array([samples[0, 0] if samples[0, 0] == samples[1, 0] else 0.0, samples[0, 1]])
    with pytest.raises(AssertionError, match=r"FAILED|UNDER-POWERED"):
        testing.assert_unbiased(samples, exact, resolution=100.0)


def test_familywise_control():
    """The union of D normal tails at k_D is the tail at k; at k = 2, D = 20, false alarms are as rare as promised."""
    for k, num in ((2.0, 20), (5.0, 1), (5.0, 10_000)):
        tail = math.erfc(testing.familywise(k, num) / math.sqrt(2)) * num
        assert tail == pytest.approx(math.erfc(k / math.sqrt(2)), rel=1e-6)
    alarms = jax.jit(
        jax.vmap(
            lambda key: (
                ~testing.unbiased_report(
                    jax.random.normal(key, (200, 20)), jnp.zeros(20), resolution=9.0, k=2.0
                ).centered
            )
        )
    )(jax.random.split(jax.random.key(0), 2000))
    expected = 1 - (1 - math.erfc(2 / math.sqrt(2)) / 20) ** 20  # 0.0445
    assert abs(alarms.mean() - expected) < 4.5 * math.sqrt(expected / 2000)


@pytest.mark.parametrize(
    ("samples", "exact", "options", "message"),
    [
        (jnp.ones((10, 2)), jnp.ones(2), {"resolution": 1.0}, "at least 30"),
        (jnp.ones((50, 2)), jnp.ones(3), {"resolution": 1.0}, "one shape"),
        ({"a": jnp.ones((50, 2))}, jnp.ones(2), {"resolution": 1.0}, "one structure"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": 0.0}, "positive"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": {"a": 1.0}}, "one number or a pytree"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": 1.0, "k": 0.0}, "standard errors"),
    ],
)
def test_bad_calls_of_assert_unbiased(samples, exact, options, message):
    with pytest.raises(ValueError, match=message):
        testing.assert_unbiased(samples, exact, **options)


# check_score

POINT = {"mu": jnp.asarray(0.4), "log_sigma": jnp.asarray(-0.3)}


def normal(params):
    return ld.Normal(params["mu"], jnp.exp(params["log_sigma"]))


def held(params, key):
    return jax.lax.stop_gradient(normal(params).sample(key))


def uniform_log_prob(params, x):
    del x  # the density is constant inside
    return -jnp.log(params["high"] - params["low"])


def uniform_sample(params, key):
    return jax.lax.stop_gradient(params["low"] + (params["high"] - params["low"]) * jax.random.uniform(key))


def factors(params, tau):
    return ld.log_factors(params, ld.tabular_softmax, tau)


def draw(params, key):
    return ld.rollout(params, key, ld.tabular_softmax, two_states(), horizon=2)


def wrong_step(params, tau):
    return factors(params, tau) * jnp.array([1.0, 1.5])


BOUNDS = {"low": jnp.asarray(-1.0), "high": jnp.asarray(2.0)}
RIGHT_SCORES = {
    "normal": (lambda p, x: normal(p).log_prob(x), held, POINT),
    "categorical": (
        lambda p, x: ld.Categorical(p).log_prob(x),
        lambda p, k: ld.Categorical(p).sample(k),
        jnp.array([0.3, -0.2, 0.5]),
    ),
    "probability": (
        lambda p, x: jnp.log(jnp.where(x, p, 1 - p)),
        lambda p, k: jax.random.bernoulli(k, jax.lax.stop_gradient(p)),
        jnp.asarray(0.3),
    ),
    "trajectory": (factors, draw, TWO_STATES_LOGITS),
}
# name: (log_prob, sample, params, what the report must say)
WRONG_SCORES = {
    "reparameterized": (
        lambda p, x: normal(p).log_prob(x),
        lambda p, k: normal(p).sample(k),
        POINT,
        "reparameterized",
    ),
    "moving support": (uniform_log_prob, uniform_sample, BOUNDS, r"E\[score\] is not 0"),
    "doubled": (lambda p, x: 2 * normal(p).log_prob(x), held, POINT, "is not -E"),
    "mean over steps": (lambda p, t: jnp.mean(factors(p, t)), draw, TWO_STATES_LOGITS, "is not -E"),
    "one step scaled": (wrong_step, draw, TWO_STATES_LOGITS, "is not -E"),
    "no normalizer": (
        lambda p, x: -jnp.square(x - p["mu"]) * jnp.exp(-2 * p["log_sigma"]) / 2,
        held,
        POINT,
        r"E\[score\] is not 0",
    ),
    "another sampler": (
        lambda p, x: normal(p).log_prob(x),
        lambda p, k: 0.2 + held(p, k),
        POINT,
        r"E\[score\] is not 0",
    ),
}


def score_verdicts(case, keys):
    log_prob, sample, params = case[:3]

    def one(key):
        report = testing.score_report(log_prob, sample, params, key, num_samples=20_000, batch_size=20_000)
        return report.passed, report.powered

    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys)


@pytest.mark.parametrize("name", RIGHT_SCORES)
def test_right_scores_pass(name):
    check_right_score(name, num_seeds=3)


def check_right_score(name, num_seeds):
    passed, powered = score_verdicts(RIGHT_SCORES[name], jax.random.split(jax.random.key(7), num_seeds))
    assert jnp.sum(~passed) <= num_seeds // 200
    assert jnp.all(powered)


@pytest.mark.parametrize("name", ["reparameterized", "moving support", "doubled", "no normalizer"])
def test_wrong_scores_are_rejected(name):
    check_wrong_score(name, num_seeds=3)


def check_wrong_score(name, num_seeds):
    passed, powered = score_verdicts(WRONG_SCORES[name], jax.random.split(jax.random.key(7), num_seeds))
    assert not jnp.any(passed)
    assert jnp.all(powered)


@pytest.mark.slow
def test_two_hundred_seeds_of_every_statistical_check():
    """Every right one fails at most once in 200 fresh seeds; every wrong twin is rejected 200 times of 200.

    Counted: `assert_unbiased`, four right estimators, 0 failures of 800; their wrong twins, 0 passes of 800.
    `check_score`, four right scores, 0 failures of 800; seven wrong ones, 0 passes of 1400. All with power. About 4
    minutes on one busy core.
    """
    for name in UNBIASED:
        check_unbiased(name, num_seeds=200)
    for name in RIGHT_SCORES:
        check_right_score(name, num_seeds=200)
    for name in WRONG_SCORES:
        check_wrong_score(name, num_seeds=200)


@pytest.mark.parametrize("name", ["reparameterized", "moving support", "one step scaled"])
def test_check_score_raises_and_names_the_cause(name):
    log_prob, sample, params, message = WRONG_SCORES[name]
    with pytest.raises(AssertionError, match=message) as caught:
        testing.check_score(log_prob, sample, params, jax.random.key(0), num_samples=20_000)
    if name == "one step scaled":
        assert "t=1" in str(caught.value)
        assert "3 = params[1, 1]" in str(caught.value)


def test_score_of_a_uniform_with_moving_support_is_the_known_constant():
    """E[score] = (1, -1) / (high - low); Mohamed et al. (2020), section 4.3.1, on support."""
    report = testing.score_report(uniform_log_prob, uniform_sample, BOUNDS, jax.random.key(0), num_samples=100)
    np.testing.assert_allclose(report.score[:2, 0], [-1 / 3, 1 / 3], rtol=1e-12)  # leaves in order: high, low


def test_check_score_passes_refuses_and_prints():
    log_prob, sample, params = RIGHT_SCORES["normal"]
    report = testing.check_score(log_prob, sample, params, jax.random.key(0))
    assert str(report).startswith("passed")
    with pytest.raises(AssertionError, match="under-powered"):
        testing.check_score(log_prob, sample, params, jax.random.key(0), num_samples=50)
    with pytest.raises(AssertionError, match="does not depend"):
        testing.check_score(lambda p, x: log_prob(jax.lax.stop_gradient(p), x), sample, params, jax.random.key(0))
    with pytest.raises(ValueError, match="sum over the event axes"):
        testing.check_score(lambda p, x: log_prob(p, x) * jnp.ones((2, 2)), sample, params, jax.random.key(0))
    with pytest.raises(TypeError, match="floating"):
        testing.check_score(log_prob, sample, jnp.arange(2), jax.random.key(0))


# check_padding


def _padded():
    taus = batch(jax.random.key(0), (4, 5))
    lengths = jnp.array([5, 1, 3, 2])
    return taus._replace(valid=jnp.arange(5)[None] < lengths[:, None], observations=jnp.abs(taus.observations) + 0.1)


def _logits(params, observation):
    return ld.Categorical(jnp.log(observation) @ params)


PARAMS = 0.1 * jnp.arange(8.0).reshape(4, 2)
ESTIMATOR = ld.score_function(baseline=ld.baseline_leave_one_out())


def _objective(params, taus):
    weights, _ = ESTIMATOR.weigh(params, (), _logits, taus)
    return {
        "objective": ESTIMATOR.objective(params, _logits, taus, weights),
        "logs": ld.log_prob(params, _logits, taus),
    }


def _unmasked_input(params, taus):
    """Right value, NaN derivatives: the output is masked, the input is not."""
    logits = jnp.log(taus.observations) @ params
    logs = jax.nn.log_softmax(logits)[..., 0]
    return jnp.sum(jnp.where(taus.valid, logs, 0))


def _multiplied_credit(params, taus):
    return jnp.sum(params) * jnp.sum(taus.rewards * taus.valid.astype(taus.rewards.dtype))


def _discounted_unmasked(params, taus):
    rewards = jnp.where(taus.valid, taus.rewards, 0)
    return jnp.sum(jax.vmap(ld.reward_to_go)(rewards, taus.discounts)) * jnp.sum(params)


def _counts_padding(params, taus):
    return jnp.sum(params) * jnp.mean(taus.actions.astype(params.dtype))


def _divides_by_the_length(params, taus):
    return jnp.mean(ld.log_factors(params, _logits, taus))


def test_the_number_of_invalid_steps_matters_to_a_mean_over_time():
    """What fills the padding is masked, yet a mean over T counts it."""
    with pytest.raises(AssertionError, match=r"2 more invalid steps: the value changes\n.*the gradient changes"):
        testing.check_padding(_divides_by_the_length, PARAMS, _padded())
    assert testing.check_padding(_divides_by_the_length, PARAMS, _padded(), num_extra=0).passed


def test_padding_passes_where_it_does_not_matter():
    report = testing.check_padding(_objective, PARAMS, _padded())
    assert report.num_cases == 24
    assert report.num_invalid == 9
    assert str(report).endswith("no bit changed")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_unmasked_input, "NaN in observations: the gradient changes"),
        (_multiplied_credit, "NaN in rewards: the value changes"),
        (_discounted_unmasked, "NaN in discounts: the value changes"),
        (_counts_padding, "largest, .*in actions: the value changes"),
    ],
)
def test_padding_that_matters_is_caught_and_named(function, message):
    with pytest.raises(AssertionError, match=message) as caught:
        testing.check_padding(function, PARAMS, _padded())
    if function is _unmasked_input:
        assert "NaN in observations: the value changes" not in str(caught.value)


def test_padding_needs_padding_and_a_finite_start():
    taus = _padded()
    with pytest.raises(ValueError, match="some invalid steps"):
        testing.check_padding(_objective, PARAMS, taus._replace(valid=jnp.ones((4, 5), bool)))
    dirty = taus._replace(rewards=jnp.where(taus.valid, taus.rewards, jnp.nan))
    with pytest.raises(AssertionError, match="NaN with the padding as given"):
        testing.check_padding(_multiplied_credit, PARAMS, dirty)
    with pytest.raises(TypeError, match="floating"):
        testing.check_padding(_objective, jnp.arange(8), taus)


# check_order


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Doubled(type(ESTIMATOR)):
    def objective(self, params, policy, trajectories, weights):
        return 2 * super().objective(params, policy, trajectories, weights)


def _order_call(estimator, **options):
    mdp, policy, params = terminating(), ld.tabular_softmax, jnp.array([[0.2, -0.1], [0.4, -0.3], [0.1, 0.3]])
    taus = ld.exact.enumerate_trajectories(mdp, horizon=2)
    probabilities = jax.jit(lambda p: ld.prob(p, policy, taus, environment=mdp))(params)
    return testing.check_order(
        estimator,
        lambda p: ld.exact.value(p, policy, mdp, horizon=2, discount=0.9),
        params,
        policy,
        taus,
        probabilities,
        **options,
    )


@pytest.mark.parametrize(
    ("surrogate", "baseline", "order"),
    [
        (ld.score_surrogate, None, 1),
        (ld.dice_surrogate, ld.baseline_leave_one_out(), 3),
    ],
)
def test_orders_are_found_exactly(surrogate, baseline, order):
    estimator = ld.score_function(baseline=baseline, surrogate=surrogate, discount=0.9)
    report = _order_call(estimator, order=order, max_order=max(order, 2))
    assert report.order == order
    assert max(report.error[:order]) < 1e-12
    if order == 1:
        assert min(report.error[1:]) > 1e-2


def test_claiming_too_much_is_rejected():
    with pytest.raises(AssertionError, match="claimed order 2; right up to order 1"):
        _order_call(ld.score_function(discount=0.9), order=2, max_order=2)
    with pytest.raises(AssertionError, match="right up to order 0"):
        _order_call(Doubled(discount=0.9), order=1, max_order=1)
    with pytest.raises(AssertionError, match="right up to order 0"):
        _order_call(
            ld.score_function(baseline=OwnBatchMean(), discount=0.9),
            order=1,
            max_order=1,
            num_trajectories_per_batch=2,
        )


def test_check_order_refuses_bad_input():
    mdp, policy = terminating(), ld.tabular_softmax
    taus = ld.exact.enumerate_trajectories(mdp, horizon=2)
    call = lambda probabilities, **kw: testing.check_order(  # noqa: E731
        ld.score_function(), jnp.sum, jnp.zeros((3, 2)), policy, taus, probabilities, order=1, **kw
    )
    count = taus.valid.shape[0]
    with pytest.raises(ValueError, match="sum of one"):
        call(jnp.ones(count))
    with pytest.raises(ValueError, match="at most 65536 batches"):
        call(jnp.full(count, 1 / count), num_trajectories_per_batch=8)
