"""The instruments for users: each accepts what is right, rejects its wrong twin, and refuses to answer without power."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

import logderiv as ld
from logderiv import testing
from logderiv._core.pytrees import pytree
from logderiv.estimators import Declaration, Structure
from tests.worlds import TWO_STATES_LOGITS, terminating, two_states

# assert_unbiased


@pytree
class OwnBatchMean(ld.baselines.Baseline):
    """The popular mistake: the mean of the batch, the own sample included; E = (1 - 1/N) grad J."""

    structure, declaration = Structure(), Declaration()  # wrongly declared

    def values(self, state, credit, batch):
        del state, batch
        return jnp.broadcast_to(jnp.mean(credit, axis=0, keepdims=True), credit.shape)


def trajectory_estimates(baseline):
    """Replicates of an estimate from two trajectories of the two-state world, T = 2, gamma = 0.9."""
    estimator = ld.ScoreFunction(ld.advantages.ToGo(baseline), discount=0.9)
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
        trajectory_estimates(ld.baselines.LeaveOneOut()),
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
        report = testing.assert_unbiased(
            estimates(jax.random.split(key, replicates)), exact, resolution=resolution, raises=False
        )
        return report.passed, report.holds["powered"] & report.holds["varies"]

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
    noise = [jax.random.normal(jax.random.key(seed), shape) for seed, shape in enumerate(((400, 2), (400,)))]
    samples = {"a": 1.0 + noise[0], "b": noise[1]}
    exact = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(0.0)}
    with pytest.raises(AssertionError, match="BIASED") as caught:
        testing.assert_unbiased(samples, exact, resolution=0.4)
    row = next(line for line in str(caught.value).splitlines() if "['a']" in line)
    mean, true, sem, z, seen, resolution = map(float, row.split()[1:])
    assert true == 2
    assert z == pytest.approx((mean - 2) / sem, rel=0.05)
    assert seen == pytest.approx(testing.familywise(5, 3) * sem, rel=0.1)
    assert resolution == 0.4
    right = {"a": jnp.ones(2), "b": jnp.zeros(())}
    good = testing.assert_unbiased(samples, right, resolution={"a": jnp.full(2, 0.4), "b": 0.3})
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

    def one(key):
        samples = jax.random.normal(key, (200, 20))
        report = testing.assert_unbiased(samples, jnp.zeros(20), resolution=9.0, k=2.0, raises=False)
        return ~report.holds["centered"]

    alarms = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 2000))
    expected = 1 - (1 - math.erfc(2 / math.sqrt(2)) / 20) ** 20  # 0.0445
    assert abs(alarms.mean() - expected) < 4.5 * math.sqrt(expected / 2000)


@pytest.mark.parametrize(
    ("samples", "exact", "options", "message"),
    [
        (jnp.ones((10, 2)), jnp.ones(2), {"resolution": 1.0}, "at least 30"),
        (jnp.ones((50, 2)), jnp.ones(3), {"resolution": 1.0}, "expected shape"),
        ({"a": jnp.ones((50, 2))}, jnp.ones(2), {"resolution": 1.0}, "of the structure"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": 0.0}, "positive"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": {"a": 1.0}}, "one number or a pytree"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": 1.0, "k": 0.0}, "k: expected a number in"),
    ],
)
def test_bad_calls_of_assert_unbiased(samples, exact, options, message):
    with pytest.raises(ValueError, match=message):
        testing.assert_unbiased(samples, exact, **options)


@pytest.mark.slow
def test_two_hundred_seeds_of_every_estimator():
    """Every right one fails at most once in 200 fresh seeds; every wrong twin is rejected 200 times of 200.

    Counted: four right estimators, 0 failures of 800; their wrong twins, 0 passes of 800. All with power. With the scores of
    `test_testing_score`, about 4 minutes on one busy core.
    """
    for name in UNBIASED:
        check_unbiased(name, num_seeds=200)


# check_order


@pytree(static=("gamma_t",))
class Doubled(ld.ScoreFunction):
    def objective(self, params, policy, trajectories, weights):
        return 2 * super().objective(params, policy, trajectories, weights)


def _order_call(estimator, **options):
    mdp, policy, params = terminating(), ld.tabular_softmax, jnp.array([[0.2, -0.1], [0.4, -0.3], [0.1, 0.3]])
    taus = ld.exact.enumerate_trajectories(mdp, horizon=2)
    probabilities = jax.jit(lambda p: ld.prob(p, policy, taus, environment=mdp))(params)
    exact = functools.partial(ld.exact.value, policy=policy, environment=mdp, horizon=2, discount=0.9)
    return testing.check_order(params, policy, estimator, exact, taus, probabilities, **options)


@pytest.mark.parametrize(
    ("surrogate", "baseline", "order"),
    [(ld.estimators.Score(), None, 1), (ld.estimators.DiCE(), ld.baselines.LeaveOneOut(), 3)],
)
def test_orders_are_found_exactly(surrogate, baseline, order):
    estimator = ld.ScoreFunction(ld.advantages.ToGo(baseline), surrogate=surrogate, discount=0.9)
    report = _order_call(estimator, order=order, max_order=max(order, 2))
    assert report.order == order
    assert max(report.error[:order]) < 1e-12
    if order == 1:
        assert min(report.error[1:]) > 1e-2


def test_claiming_too_much_is_rejected():
    with pytest.raises(AssertionError, match="claimed order 2; right up to order 1"):
        _order_call(ld.ScoreFunction(discount=0.9), order=2, max_order=2)
    own_mean = ld.ScoreFunction(ld.advantages.ToGo(OwnBatchMean()), discount=0.9)
    for estimator, options in ((Doubled(discount=0.9), {}), (own_mean, {"num_trajectories": 2})):
        with pytest.raises(AssertionError, match="right up to order 0"):
            _order_call(estimator, order=1, max_order=1, **options)


def test_check_order_refuses_bad_input():
    mdp, policy = terminating(), ld.tabular_softmax
    taus = ld.exact.enumerate_trajectories(mdp, horizon=2)
    call = lambda probabilities, **kw: testing.check_order(  # noqa: E731
        jnp.zeros((3, 2)), policy, ld.ScoreFunction(), jnp.sum, taus, probabilities, order=1, **kw
    )
    count = taus.valid.shape[0]
    with pytest.raises(ValueError, match="sum of one"):
        call(jnp.ones(count))
    with pytest.raises(ValueError, match="more than limit=65536"):
        call(jnp.full(count, 1 / count), num_trajectories=8)
