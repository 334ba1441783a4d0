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
from tests.mostly import slow
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

    def one(key):
        taus = ld.rollout(TWO_STATES_LOGITS, jax.random.split(key, 2), ld.tabular_softmax, two_states(), horizon=2)
        return estimator.estimate(TWO_STATES_LOGITS, (), ld.tabular_softmax, taus)[0].grads

    exact = jnp.array([[0.3600762392217371, -0.3600762392217371], [-0.3182649256447019, 0.3182649256447019]])
    return jax.vmap(one), exact, 0.12, 3000


def gaussian_estimates(num, weights):
    """E[x^2 + 10], x ~ N(0.7, 1), derivative 1.4 in the mean: mean over `num` samples of weight times score."""

    def many(keys):
        x = 0.7 + jax.vmap(lambda key: jax.random.normal(key, (num,)))(keys)
        return jnp.mean(jax.vmap(weights)(jnp.square(x) + 10) * (x - 0.7), axis=1)

    return many, jnp.asarray(1.4), 0.35, 3000


def of_both(estimates, right, wrong):
    return estimates(right), estimates(wrong)


# name: (right, wrong). optax.monte_carlo's moving average, at its early decay (1 + 0) / (10 + 0), puts the batch in first.
UNBIASED = {
    "batch mean with its own sample": of_both(trajectory_estimates, ld.baselines.LeaveOneOut(), OwnBatchMean()),
    "doubled surrogate": of_both(
        functools.partial(gaussian_estimates, 8), lambda cost: cost - 11.49, lambda cost: 2 * (cost - 11.49)
    ),
    "moving average updated first": of_both(
        functools.partial(gaussian_estimates, 2), lambda cost: cost - 11, lambda cost: cost - 1.1 - 0.9 * jnp.mean(cost)
    ),
    "NetKet's factor 1 - 1/N": of_both(
        functools.partial(gaussian_estimates, 3),
        lambda cost: 1.5 * (cost - jnp.mean(cost)),
        lambda cost: cost - jnp.mean(cost),
    ),
}


def unbiased_verdicts(case, keys):
    """Whether the check passed, and whether it had power, for each seed."""
    estimates, exact, resolution, replicates = case

    def one(key):
        samples = estimates(jax.random.split(key, replicates))
        report = testing.assert_unbiased(samples, exact, resolution=resolution, raises=False)
        return report.passed, report.holds["powered"] & report.holds["varies"]

    return jax.jit(lambda keys: jax.lax.map(one, keys))(keys)


@pytest.mark.parametrize("num_seeds", [3, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_passes_and_its_wrong_twin_does_not(name, num_seeds):
    """Of 200 fresh seeds every right one fails at most once. Counted: 0 failures of 800; of the wrong twins, 0 passes of 800."""
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


def test_familywise_reaches_into_the_tail():
    """k_D solves erfc(k_D / √2) = erfc(k / √2) / D, by mpmath with 50 digits: a Normal quantile in float64 ends at k = 8.3."""
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(50):
        for k, num in (
            (1e-3, 7),
            (1.0, 10**9),
            (8.0, 1000),
            (8.2, 1000),
            (15.0, 10),
            (30.0, 1),
            (30.0, 3),
            (30.0, 10**40),
        ):
            tail = mpmath.log(mpmath.erfc(k / mpmath.sqrt(2)) / num)
            at = mpmath.findroot(lambda x, t=tail: mpmath.log(mpmath.erfc(x / mpmath.sqrt(2))) - t, max(k, 3.0))
            assert testing.familywise(k, num) == pytest.approx(float(at), rel=1e-13)
    assert [round(testing.familywise(k, 1000), 4) for k in (8.0, 8.2)] == [8.8107, 8.9931]
    assert testing.assert_unbiased(jax.random.normal(jax.random.key(0), (60, 3)), jnp.zeros(3), resolution=9.0, k=30.0)


def test_the_row_of_a_leaf_shows_the_resolution_that_was_seen_worst():
    """The second entry is noisier, and may be: what is printed must not look like a bias of 5 that a resolution of 0.1 let pass."""
    samples = jax.random.normal(jax.random.key(0), (400, 2)) * jnp.array([[0.1, 10.0]])
    report = testing.assert_unbiased(samples, jnp.zeros(2), resolution=jnp.array([0.1, 10.0]))
    seen, resolution = map(float, str(report).splitlines()[-1].split()[-2:])
    assert seen <= resolution
    assert (
        testing.familywise(5, 2) * float(report.sem[1]) > 0.1
    )  # the largest beside the smallest would contradict "passed"


@pytest.mark.slow
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
        (jnp.ones((10, 2)), jnp.ones(2), {}, "at least 30"),
        (jnp.ones((50, 2)), jnp.ones(3), {}, "expected shape"),
        ({"a": jnp.ones((50, 2))}, jnp.ones(2), {}, "of the structure"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": 0.0}, "positive"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": {"a": 1.0}}, "prefix"),
        (jnp.ones((50, 2)), jnp.ones(2), {"k": 0.0}, "k: expected a number in"),
        (jnp.ones((50, 2)), jnp.ones(2), {"k": 30.1}, "k: expected a number in"),
        (jnp.ones((50, 2)), jnp.ones(2), {"k": jnp.nan}, "k: expected a number in"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": jnp.inf}, "resolution: expected a finite"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": jnp.nan}, "resolution: expected a positive"),
        (jnp.ones((50, 2)), jnp.ones(2), {"resolution": jnp.array([1.0, jnp.inf])}, "resolution: expected a finite"),
        (jnp.full((50, 2), 1 + 5j), jnp.ones(2), {}, "samples: expected real numbers, received complex128"),
        (jnp.ones((50, 2)), jnp.full(2, 1 + 5j), {}, "exact: expected real numbers, received complex128"),
        ({}, {}, {}, "samples: expected leaves"),
        (jnp.ones((50, 0)), jnp.ones(0), {}, "numbers in exact: expected a whole number >= 1, received 0"),
    ],
)
def test_bad_calls_of_assert_unbiased(samples, exact, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        testing.assert_unbiased(samples, exact, **{"resolution": 1.0} | options)


# check_order


@pytree(static=("gamma_t",))
class Doubled(ld.ScoreFunction):
    def objective(self, params, policy, trajectories, weights):
        return 2 * super().objective(params, policy, trajectories, weights)


TAUS = ld.exact.enumerate_trajectories(terminating(), horizon=2)


def _order_call(estimator, **options):
    mdp, policy, params = terminating(), ld.tabular_softmax, jnp.array([[0.2, -0.1], [0.4, -0.3], [0.1, 0.3]])
    exact = functools.partial(ld.exact.value, policy=policy, environment=mdp, horizon=2, discount=0.9)
    usual = {"exact": exact, "trajectories": TAUS, "order": 1}
    if "probabilities" not in options:
        usual["probabilities"] = jax.jit(ld.prob)(params, policy, TAUS, environment=mdp)
    return testing.check_order(params, policy, estimator, **usual | options)


@pytest.mark.parametrize(
    ("surrogate", "baseline", "order"),
    [slow((ld.estimators.Score(), None, 1)), (ld.estimators.DiCE(), ld.baselines.LeaveOneOut(), 3)],
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


def test_check_order_prints_what_decided():
    """The error of a doubled objective is the gradient itself, and what is allowed is the tolerance times that size."""
    with pytest.raises(AssertionError, match="order 0 of 1") as caught:
        _order_call(Doubled(discount=0.9), order=1, max_order=1, tolerance=0.25)
    order, error, allowed, exact, _ = str(caught.value).splitlines()[-1].split()
    assert order == "1"
    assert float(error) == pytest.approx(float(exact), rel=0.01)
    assert float(allowed) >= 0.25 * float(exact) * 0.99
    assert float(error) > float(allowed)


def test_check_order_refuses_what_would_pass_everything():
    signed = jnp.zeros(len(TAUS.valid)).at[:3].set(jnp.array([2.0, -2.0, 1.0]))
    for options, message in (
        ({"order": 0}, "order: expected a whole number >= 1"),
        ({"order": -1}, "order: expected"),
        ({"max_order": 0}, "max_order: expected"),
        ({"num_trajectories": 0}, "num_trajectories: expected"),
        ({"tolerance": math.inf}, "tolerance: expected a number in"),
        ({"tolerance": math.nan}, "tolerance: expected"),
        ({"tolerance": 2.0}, "tolerance: expected"),  # no deviation is larger than twice the scale
        ({"probabilities": signed}, "none negative.*smallest -2"),
        ({"probabilities": jnp.full(len(TAUS.valid), jnp.nan)}, "sum of one"),
        ({"probabilities": signed.astype(complex)}, "probabilities: expected real numbers"),
        ({"exact": lambda p: jnp.sum(p).astype(complex)}, "objective: expected real numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            _order_call(ld.ScoreFunction(), **options)


def test_check_order_refuses_bad_input():
    with pytest.raises(ValueError, match="sum of one"):
        _order_call(ld.ScoreFunction(), probabilities=jnp.ones(len(TAUS.valid)))
    with pytest.raises(ValueError, match="more than limit=65536"):
        _order_call(
            ld.ScoreFunction(), probabilities=jnp.full(len(TAUS.valid), 1 / len(TAUS.valid)), num_trajectories=8
        )
