"""How derivatives pass through a choice: each method against every path, and beside it what would be wrong."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import logderiv as ld
from logderiv.expectations import measures, models

from .mostly import slow

PARAMS = jnp.array([0.3, -0.6])
SIZES: Any = {"num_choices": 3, "num_outcomes": 3}
LOO = {"num_samples": 2, "baseline": "leave_one_out"}
FLIPS = 5
KEY = jax.random.key(1)
P = 0.3


def draw(distribution, method="score"):
    return ld.sample(distribution, method=method).astype(float)


@functools.cache  # a model that is made anew is compiled anew
def dependent(method):
    """Three choices, each with a law that depends on those before it, and a cost that depends on the parameters too."""

    def model(params):
        a = draw(ld.Bernoulli(params[0]), method)
        b = draw(ld.Categorical(jnp.stack([params[1], 0.3 * a, 0.0 * params[0]])), method)
        ld.cost(jnp.square(b) * params[1])
        c = draw(ld.Bernoulli(params[1] * b - a))
        ld.cost(jnp.exp(params[0]) * c * (1.0 + a))

    return model


def flips(method, length=FLIPS):
    """The number of ones, in the probability of a one."""

    def model(p):
        def step(total, _):
            return total + draw(ld.Bernoulli(jnp.log(p) - jnp.log1p(-p)), method), None

        return lax.scan(step, jnp.zeros(()), None, length=length)[0]

    return model


def rows(method):
    """Rows of a plate with one or two choices each, between two choices, and a cost of all together."""

    def model(params):
        first = draw(ld.Bernoulli(params[0]), method)

        def row(x):
            y = draw(ld.Bernoulli(params[0] * x + first), method)
            ld.cost(y * x)
            return y

        ys = ld.plate(row)(jnp.array([1.0, -2.0]))
        last = draw(ld.Bernoulli(params[1] * jnp.sum(ys)), method)
        return ld.cost(jnp.square(jnp.sum(ys)) * params[1] + last * first)

    return model


def listed(model, params: Any = PARAMS, *args, order=1, sizes=SIZES, modes=("forward",), **options):
    objective = ld.expectation(model, **options)
    return ld.exact.program_derivatives(params, objective, *args, order=order, modes=modes, **sizes)


def assert_exact(found):
    for moments in found:
        assert np.max(np.abs(moments.exact)) > 1e-2
        np.testing.assert_allclose(moments.mean, moments.exact, rtol=0, atol=1e-12)


ORDERS = {"score": 3, "enumerate": 3, "alternative": 1}


@pytest.mark.parametrize("options", [{}, slow(LOO)], ids=["alone", "leave one out"])
@pytest.mark.parametrize("method", [slow("score"), "enumerate", "alternative"])
def test_every_derivative_that_a_method_gives_is_exact(method, options):
    order = ORDERS[method] if not options else 1
    assert_exact(listed(dependent(method), order=order, **options))
    assert_exact(listed(dependent(method), order=min(order, 2), modes=("reverse", "forward"), **options))


@pytest.mark.parametrize("method", ["enumerate", "alternative"])
def test_side_by_side_in_a_plate(method):
    order = min(ORDERS[method], 2)
    assert_exact(listed(rows(method), order=order, sizes={"num_choices": 4, "num_outcomes": 2}))


def test_covariances_of_the_methods_are_those_of_closed_forms():
    """Of T flips whose sum is returned: 0 enumerated, T(1 - 2p)² / (4p(1 - p)) by the alternative path, far more by the score."""
    sizes = {"num_choices": FLIPS, "num_outcomes": 2}
    spread = {m: float(listed(flips(m), P, sizes=sizes)[1].covariance[0, 0]) for m in ORDERS}
    assert spread["enumerate"] < 1e-24
    np.testing.assert_allclose(spread["alternative"], FLIPS * (1 - 2 * P) ** 2 / (4 * P * (1 - P)), rtol=1e-12)
    assert spread["score"] > 50 * spread["alternative"]


def test_choices_that_differ_between_worlds_have_no_covariance_here():
    assert listed(dependent("enumerate"))[1].covariance is None
    assert listed(dependent("alternative"))[1].covariance is None
    assert listed(dependent("score"))[1].covariance is not None


@pytest.mark.parametrize(("p", "length"), [(0.3, FLIPS), (0.6, FLIPS), (0.3, 100)])
def test_real_keys_give_the_alternative_path_its_variance(p, length):
    """Of 100 flips at p = 0.3 the variance of one estimate is 38.1 / 2, of its two runs 38.1."""
    objective = ld.expectation(flips("alternative", length), num_samples=4000)
    estimates = jax.jit(jax.jacfwd(lambda p: objective.runs(p, jax.random.key(1)).values))(p)
    expected = length * (1 - 2 * p) ** 2 / (4 * p * (1 - p))
    error = 4 * np.sqrt(np.var(np.square(estimates - np.mean(estimates))) / 4000)
    assert abs(np.var(estimates) - expected) <= error + 1e-20
    ld.testing.assert_unbiased(estimates, float(length), resolution=0.5)


def test_the_alternative_path_of_even_flips_does_not_vary():
    estimates = jax.jit(
        jax.jacfwd(lambda p: ld.expectation(flips("alternative", 100), num_samples=100).runs(p, KEY).values)
    )
    np.testing.assert_allclose(estimates(0.5), 100.0, rtol=1e-12)


def test_another_factor_of_the_alternative_path_is_seen(monkeypatch):
    """The twin that forgets that each pair of outcomes is met twice."""
    monkeypatch.setattr(measures, "HALF", 1.0)
    found = listed(lambda p: 2.0 * draw(ld.Bernoulli(p), "alternative"), P, sizes={"num_choices": 1, "num_outcomes": 2})
    np.testing.assert_allclose(found[1].mean, 2 * found[1].exact, rtol=1e-12)


def within(params):
    """Averages over choices inside, one of them with a drawn choice of its own; K per step."""

    def step(level, x):
        def costs(k):
            drawn = draw(ld.Bernoulli(params[0] * k.astype(float)))
            return jnp.square(k.astype(float) - level) * params[1] + drawn

        ld.expected(ld.Categorical(jnp.stack([params[0], params[1], x])), costs)
        return level + draw(ld.Bernoulli(params[1] * level)), None

    level, _ = lax.scan(step, jnp.zeros(()), jnp.array([0.0]))
    ld.cost(jnp.square(level))


@pytest.mark.parametrize("options", [slow({}), LOO], ids=["alone", "leave one out"])
def test_expected_is_exact_and_draws_nothing_of_its_own(options):
    sizes = {"num_choices": 6, "num_outcomes": 2}
    assert_exact(listed(within, order=1 if options else 3, sizes=sizes, **options))


def test_expected_is_the_sum_over_outcomes():
    def model(logits):
        ld.expected(ld.Categorical(logits), lambda k: jnp.exp(k.astype(float)))

    logits = jnp.array([0.2, -0.4, 0.7])
    value, slope = jax.value_and_grad(ld.expectation(model))(logits, jax.random.key(0))
    p, c = np.asarray(jax.nn.softmax(logits)), np.exp(np.arange(3.0))
    np.testing.assert_allclose(value, p @ c, rtol=1e-14)
    np.testing.assert_allclose(slope, p * (c - p @ c), rtol=1e-13)


@functools.cache
def one_hot(method):
    """The first, second or third power of a number of the choice, as the numbers of `powers` say."""

    def model(logits, powers):
        unit = ld.sample(ld.distributions.OneHotCategorical(logits), method=method)
        x = jnp.dot(unit, jnp.array([1.0, 2.0, -1.0]))
        return jnp.dot(powers, jnp.stack([x, x**2, x**3]))

    return model


LOGITS = jnp.array([0.3, -0.2, 0.5])
FIRST, SECOND, THIRD = jnp.eye(3)


@pytest.mark.parametrize("method", ["score", "enumerate", "alternative"])
def test_every_method_takes_a_one_hot_choice(method):
    assert_exact(listed(one_hot(method), LOGITS, THIRD, sizes={"num_choices": 1, "num_outcomes": 3}))


def test_straight_through_is_biased_and_reinmax_only_beyond_quadratic_costs():
    sizes = {"num_choices": 1, "num_outcomes": 3}

    def bias(method, powers):
        return np.max(np.abs(listed(one_hot(method), LOGITS, powers, sizes=sizes)[1].bias))

    assert bias("reinmax_biased", SECOND) < 1e-12
    assert min(bias("straight_through_biased", powers) for powers in (SECOND, THIRD)) > 0.1
    assert bias("reinmax_biased", THIRD) > 0.1
    assert bias("straight_through_biased", FIRST) < 1e-12


@pytest.mark.parametrize("method", ["alternative", "straight_through_biased", "reinmax_biased"])
def test_a_derivative_beyond_the_order_raises_in_every_mix_of_modes(method):
    objective, key = ld.expectation(one_hot(method)), jax.random.key(0)
    modes = (jax.jacfwd, jax.jacrev, jax.grad)
    for inner in modes:
        for outer in modes[:2]:
            with pytest.raises(ValueError, match="first derivative only"):
                outer(inner(objective))(LOGITS, key, SECOND)
            with pytest.raises(ValueError, match="first derivative only"):
                outer(jax.jit(inner(jax.jit(objective))))(LOGITS, key, SECOND)
    with pytest.raises(ValueError, match="first derivative only"):
        listed(one_hot(method), LOGITS, SECOND, order=2, sizes={"num_choices": 1, "num_outcomes": 3})


def test_without_the_guard_a_hessian_of_the_alternative_path_is_wrong(monkeypatch):
    """Of one flip at p = 0.3: the expected cost is p, so that the Hessian in p is 0."""
    monkeypatch.setattr(models, "once_differentiable", lambda value, reason: value)

    def flip(p):
        return ld.sample(ld.Bernoulli(jnp.log(p) - jnp.log1p(-p)), method="alternative").astype(float)

    found = listed(flip, P, order=2, sizes={"num_choices": 1, "num_outcomes": 2})
    np.testing.assert_allclose(found[1].mean, 1.0, atol=1e-12)
    assert np.abs(found[2].bias) > 1.0


def test_sites_say_how_each_choice_is_made():
    def model(logits):
        ld.sample(ld.Bernoulli(logits[0]))
        x = draw(ld.Categorical(logits), "enumerate")
        return x * ld.sample(ld.Normal(logits[0], jnp.ones(())), method="pathwise")

    objective = ld.expectation(model)
    told = [(s.distribution, s.method, s.num_outcomes, s.order) for s in objective.sites(LOGITS)]
    assert told == [
        ("Bernoulli", "score", 1, None),
        ("Categorical", "enumerate", 3, None),
        ("Normal", "pathwise", 1, None),
    ]
    assert all(s.place.startswith("test_expectations_methods.py:") for s in objective.sites(LOGITS))
    assert objective.num_worlds(LOGITS) == 3


def test_worlds_are_counted_over_visits():
    def row(logit):
        return draw(ld.Bernoulli(logit), "enumerate")

    def step(total, logit):
        x = row(logit)
        branch = lax.cond(x == 1, lambda: draw(ld.Categorical(jnp.zeros(3)), "enumerate"), lambda: x)
        return total + branch + jnp.sum(ld.plate(row)(jnp.ones(2))), None

    def model(logit):
        return lax.scan(step, jnp.zeros(()), jnp.stack([logit, logit]))[0]

    objective = ld.expectation(model)
    assert objective.num_worlds(0.3) == (2 * 3 * 4) ** 2
    one, sigmoid = 1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(-0.3))
    np.testing.assert_allclose(jax.jit(objective)(0.3, jax.random.key(0)), 2 * (sigmoid + 2 * one), rtol=1e-12)
    with pytest.raises(ValueError, match="worlds, more than 100"):
        ld.expectation(model, max_worlds=100)(0.3, jax.random.key(0))


def test_runs_have_values_aux_and_a_standard_error():
    def model(logit):
        x = ld.sample(ld.Bernoulli(logit)).astype(float)
        return 2.0 * x, x

    objective = ld.expectation(model, num_samples=5, has_aux=True)
    mean, draws = objective(0.3, jax.random.key(0))
    runs = objective.runs(0.3, jax.random.key(0))
    np.testing.assert_array_equal(runs.values, 2 * draws)
    np.testing.assert_allclose(
        [mean, runs.standard_error], [np.mean(runs.values), np.std(runs.values, ddof=1) / np.sqrt(5)]
    )


def test_a_model_that_closes_over_a_transformation_leaks_nothing():
    def cost(t):
        return ld.expectation(lambda p: draw(ld.Bernoulli(t * p)), num_samples=2)(0.3, jax.random.key(1))

    with jax.checking_leaks():
        np.testing.assert_allclose(jax.jit(jax.grad(cost))(0.2), jax.grad(cost)(0.2), rtol=1e-6)


def test_the_log_probability_of_a_one_hot_choice_carries_a_derivative_in_it():
    """As a variational bound needs it: by enumeration, E[log p(D)] is minus the entropy; where it was cut the methods lost it."""
    logits = jnp.array([0.3, -jnp.inf, 0.5])
    law = ld.distributions.OneHotCategorical(logits)
    slope = jax.grad(law.log_prob)(jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(slope, jnp.where(logits > -jnp.inf, jax.nn.log_softmax(logits), 0.0), rtol=1e-12)
    assert law.log_prob(jnp.array([0.0, 1.0, 0.0])) == law.log_prob(jnp.array([1.0, 0.0, 1.0])) == -jnp.inf

    def bound(params):
        q = ld.distributions.OneHotCategorical(params)
        return q.log_prob(ld.sample(q, method="reinmax_biased"))

    def entropy(params):
        return ld.expectation(bound).sites(params) and ld.distributions.OneHotCategorical(params).entropy()

    found = listed(bound, LOGITS, sizes={"num_choices": 1, "num_outcomes": 3})[1]
    np.testing.assert_allclose(found.exact, -jax.grad(entropy)(LOGITS), atol=1e-12)
    np.testing.assert_allclose(found.mean, found.exact, atol=1e-12)


def test_a_mask_with_fewer_axes_is_of_the_leading_ones():
    """In square batches, too, where a mask of the last axis would fit as well."""
    weights, logits = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[1.0, 1.2], [-1.0, 0.3]])
    rows = jnp.array([True, False])

    def model(p):
        return jnp.sum(ld.sample(ld.Bernoulli(logits * p), where=rows).astype(float) * weights)

    def exact(p):
        return jnp.sum(jax.nn.sigmoid(logits * p)[0] * weights[0])

    with jax.numpy_rank_promotion("allow"):
        estimates = jax.jacfwd(lambda p: ld.expectation(model, num_samples=20_000).runs(p, jax.random.key(0)).values)(
            1.0
        )
        ld.testing.assert_unbiased(estimates, jax.grad(exact)(1.0), resolution=0.1)
        with pytest.raises(ValueError, match="where: expected the leading axes of the choices"):
            ld.expectation(lambda p: draw_where(ld.Categorical(p * jnp.ones(2)), rows))(1.0, jax.random.key(0))


def draw_where(distribution, where):
    return jnp.sum(ld.sample(distribution, where=where)).astype(float)


def scored_then_enumerated(params):
    x = draw(ld.Bernoulli(params[0]))
    y = draw(ld.Bernoulli(params[1] + 2.0 * x), "enumerate")
    return (1.0 + y) * (1.0 + 3.0 * x * y)


def test_leave_one_out_is_refused_where_a_choice_is_enumerated_after_a_scored_one(monkeypatch):
    """The others' cost in one world is no baseline there: the world has a probability that the scored choice decides."""
    sizes = {"num_choices": 2, "num_outcomes": 2}
    assert_exact(listed(scored_then_enumerated, order=2, sizes=sizes))
    with pytest.raises(ValueError, match="enumerates a choice after a scored one"):
        listed(scored_then_enumerated, sizes=sizes, **LOO)
    monkeypatch.setattr(models.Model, "check_leave_one_out", lambda _: None)
    wrong = listed(lambda params: scored_then_enumerated(params), sizes=sizes, **LOO)[1]
    assert np.max(np.abs(wrong.bias)) > 0.1


def test_an_object_that_changed_is_run_anew():
    class Scaled:
        factor = 1.0

        def cost(self, p):
            return self.factor * draw(ld.Bernoulli(p), "enumerate")

    scaled = Scaled()
    first = float(ld.expectation(scaled.cost)(0.0, jax.random.key(0)))
    scaled.factor = 5.0
    assert (first, float(ld.expectation(scaled.cost)(0.0, jax.random.key(0)))) == (0.5, 2.5)
