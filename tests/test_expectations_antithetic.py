"""Antithetic runs: each has its own law, both together that of the cells of their uniform numbers, and none is another's baseline."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import logderiv as ld
from logderiv.expectations import tape

from .mostly import mostly_slow, slow

PARAMS = jnp.array([0.3, -0.6])
ANTITHETIC: Any = {"draws": "antithetic", "num_samples": 2}
LOO: Any = {"draws": "antithetic", "num_samples": 4, "baseline": "leave_one_out"}


def draw(distribution, **options):
    return ld.sample(distribution, **options).astype(float)


def dependent(params):
    """Two choices of which the second depends on the first, and a cost that depends on the parameters too."""
    a = draw(ld.Bernoulli(params[0]))
    b = draw(ld.Categorical(jnp.stack([params[1], 0.3 * a, 0.0 * params[0]])))
    ld.cost(jnp.square(b) * params[1])
    ld.cost(jnp.exp(params[0]) * b * (1.0 + a))


def branching(params):
    """Runs of a pair may take different branches: with one choice, or two, before the last one."""

    def two(_):
        return draw(ld.Bernoulli(params[0])) + draw(ld.Bernoulli(params[1]))

    first = draw(ld.Bernoulli(params[1]))
    middle = lax.cond(first > 0, two, lambda _: draw(ld.Bernoulli(params[0])), None)
    return jnp.square(middle + params[0] * draw(ld.Bernoulli(params[0] + first)))


def side_by_side(params):
    """Parts of a plate with one choice or two, and one behind it, whose key does not depend on how many they were."""

    def row(x):
        y = draw(ld.Bernoulli(params[0] * x))
        ld.cost(y * x)
        return lax.cond(y > 0, lambda: draw(ld.Bernoulli(params[1])), lambda: 0.0 * y)

    more = jnp.sum(ld.plate(row)(jnp.array([1.0, -2.0])))
    return ld.cost(more * draw(ld.Bernoulli(params[1])) + params[0] * more)


def padded(params):
    """The second choice is padding in some runs."""
    first = draw(ld.Bernoulli(params[0]))
    second = draw(ld.Bernoulli(params[1]), where=first > 0)
    return (1.0 + first) * (second + params[0] * draw(ld.Bernoulli(params[0])))


def enumerated(params):
    """A choice of which all outcomes are taken, before one that is drawn."""
    a = draw(ld.Bernoulli(params[0]), method="enumerate")
    ld.expected(ld.Bernoulli(params[1]), lambda x: x.astype(float) * a)
    return ld.cost(jnp.square(a + draw(ld.Bernoulli(params[1]))) * params[0])


def by_hand(params, tape):
    tape, x = tape.sample(ld.Bernoulli(params[0]))
    tape, y = tape.sample(ld.Bernoulli(params[1]))
    return tape.cost((x * y + y).astype(float) * params[0])


MODELS = {
    "dependent": (dependent, 2, 3),
    "branching": (branching, 4, 2),
    "side by side": (side_by_side, 5, 2),
    "padded": (padded, 3, 2),
    "a program": (by_hand, 2, 2),
}


def listed(name, *, order=1, modes=("forward",), **options):
    model, num_choices, num_outcomes = MODELS[name]
    sizes = {"num_choices": num_choices, "num_outcomes": num_outcomes}
    return ld.exact.program_derivatives(PARAMS, ld.expectation(model, **options), order=order, modes=modes, **sizes)


def assert_exact(found):
    for moments in found:
        assert np.max(np.abs(moments.exact)) > 1e-2
        np.testing.assert_allclose(moments.mean, moments.exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", mostly_slow(MODELS, ("branching", "side by side", "a program")))
def test_every_derivative_of_a_pair_is_exact(name):
    assert_exact(listed(name, order=2, **ANTITHETIC))
    assert_exact(listed(name, order=2, modes=("reverse", "forward"), **ANTITHETIC))


@pytest.mark.parametrize("name", ["dependent", slow("padded"), "a program"])
def test_leave_one_out_leaves_the_whole_pair_out(name):
    assert_exact(listed(name, order=1, modes=("reverse",), **LOO))


def test_enumerated_choices_beside_antithetic_ones():
    model = ld.expectation(enumerated, **ANTITHETIC)
    assert_exact(ld.exact.program_derivatives(PARAMS, model, order=2, num_choices=2, num_outcomes=2))


def test_leave_one_out_inside_a_pair_is_rejected(monkeypatch):
    """The twin that compares a run with the other one of its pair, which is drawn jointly: biased."""

    def all_the_others(values, peers):
        values = lax.stop_gradient(values)
        return (lax.psum(values, peers) - values) / (lax.psum(1, peers) - 1)

    monkeypatch.setattr(tape, "others_mean", all_the_others)
    flip = ld.expectation(lambda logit: draw(ld.Bernoulli(logit)), **LOO)
    found = ld.exact.program_derivatives(jnp.zeros(()), flip, order=1, num_choices=1, num_outcomes=2)[1]
    np.testing.assert_allclose(found.mean, 4 / 3 * found.exact, rtol=1e-12)  # at p = 1/2 one of its three is 1 - x


@pytest.mark.parametrize(
    ("name", "options"),
    [("branching", ANTITHETIC), ("side by side", ANTITHETIC), slow(("padded", ANTITHETIC)), ("padded", LOO)],
)
def test_real_keys_have_the_covariance_of_the_cells(name, options):
    """And independent runs, passed off as pairs, have not."""
    number = 40_000
    objectives = (ld.expectation(MODELS[name][0], **(options | {"draws": d})) for d in ("antithetic", "independent"))
    keys = (jax.random.split(jax.random.key(seed), number) for seed in (3, 4))
    ours, twin = (jax.jit(jax.vmap(jax.grad(f), (None, 0)))(PARAMS, k) for f, k in zip(objectives, keys, strict=True))
    expected = listed(name, **options)[1]

    def errors(samples):
        deviations = np.asarray(samples) - expected.mean
        products = deviations[:, :, None] * deviations[:, None, :]
        return np.abs(np.mean(products, axis=0) - expected.covariance) / (np.std(products, axis=0) / np.sqrt(number))

    assert np.max(errors(ours)) < 4
    assert np.max(errors(twin)) > 10
    assert np.max(np.abs(np.mean(ours, axis=0) - expected.exact) / (np.std(ours, axis=0) / np.sqrt(number))) < 4


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9])
def test_two_flips_of_a_pair_have_the_law_of_one_uniform_number(p):
    """Both are 1 with probability max(0, 2p - 1): the variance of their mean is (p + max(0, 2p - 1)) / 2 - p²."""
    objective = ld.expectation(lambda logit: draw(ld.Bernoulli(logit)), **ANTITHETIC)
    logit = jnp.log(p / (1 - p))
    values = jax.jit(jax.vmap(objective, (None, 0)))(logit, jax.random.split(jax.random.key(0), 20_000))
    expected = (p + max(0.0, 2 * p - 1)) / 2 - p**2
    assert abs(np.mean(values) - p) <= 4 * np.sqrt(expected / 20_000) + 1e-12
    squares = np.square(np.asarray(values) - p)
    assert abs(np.mean(squares) - expected) <= 4 * np.std(squares) / np.sqrt(20_000) + 1e-12
    if p == 0.5:
        np.testing.assert_array_equal(values, 0.5)


def test_a_pathwise_choice_is_mirrored_at_its_mean():
    """Of a linear cost the pair's mean and its derivative have no variance."""
    objective = ld.expectation(lambda p: 3.0 * ld.sample(ld.Normal(p, jnp.exp(p)), method="pathwise"), **ANTITHETIC)
    value, slope = jax.vmap(jax.value_and_grad(objective), (None, 0))(0.3, jax.random.split(jax.random.key(0), 100))
    np.testing.assert_allclose(value, 0.9, rtol=1e-12)
    np.testing.assert_allclose(slope, 3.0, rtol=1e-12)


def test_other_randomness_of_a_pair_is_independent():
    def model(p):
        return p * jax.random.normal(ld.key()) + draw(ld.Bernoulli(p))

    runs = ld.expectation(model, draws="antithetic", num_samples=20_000).runs(0.0, jax.random.key(0), *())
    noise = jax.jit(
        ld.expectation(lambda p: p + jax.random.normal(ld.key()), draws="antithetic", num_samples=20_000).runs
    )
    both = np.asarray(noise(0.0, jax.random.key(1)).values).reshape(-1, 2)
    assert abs(np.corrcoef(both.T)[0, 1]) < 4 / np.sqrt(10_000)
    assert np.std(both) > 0.9
    assert set(np.sum(np.asarray(runs.values).reshape(-1, 2), axis=1)) == {1.0}


def test_the_standard_error_is_that_of_the_pairs():
    objective = ld.expectation(dependent, draws="antithetic", num_samples=200)
    runs = jax.jit(jax.vmap(objective.runs, (None, 0)))(PARAMS, jax.random.split(jax.random.key(0), 2000))
    means = np.mean(np.asarray(runs.values), axis=1)
    errors = jax.vmap(lambda runs: runs.standard_error)(runs)
    np.testing.assert_allclose(np.mean(errors), np.std(means), rtol=0.06)
    naive = np.std(runs.values, axis=1, ddof=1) / np.sqrt(200)
    assert np.mean(naive) > 1.3 * np.std(means)  # what independent runs would have


def test_peers_may_lie_along_any_axis():
    """A tape made by hand, with samples along an axis of another name."""

    def one(key):
        end = by_hand(PARAMS, ld.Tape.start(key, peers="mine"))
        return tape.settled(end)

    keys = jax.random.split(jax.random.key(0), 4)
    found = jax.vmap(one, axis_name="mine")(keys)
    expected = ld.expectation(by_hand, num_samples=4, baseline="leave_one_out").runs(PARAMS, jax.random.key(0))
    np.testing.assert_allclose(found, expected.values)


REFUSED = {
    "odd": (lambda: ld.expectation(dependent, draws="antithetic", num_samples=3), ValueError, "even number"),
    "one pair": (lambda: ld.expectation(dependent, **(LOO | {"num_samples": 2})), ValueError, "num_samples"),
    "name": (lambda: ld.expectation(dependent, draws="mirrored"), ValueError, "draws.*'antithetic'"),  # pyright: ignore
    "alternative": (
        lambda: ld.expectation(lambda p: draw(ld.Bernoulli(p), method="alternative"), **ANTITHETIC)(
            0.0, jax.random.key(0)
        ),
        ValueError,
        "alternative.*antithetic",
    ),
    "no quantiles": (
        lambda: ld.expectation(
            lambda p: jnp.sum(ld.sample(ld.distributions.MultivariateNormal(jnp.zeros(2) + p, jnp.eye(2)))),
            **ANTITHETIC,
        )(0.0, jax.random.key(0)),
        TypeError,
        "quantile function.*MultivariateNormal",
    ),
    "listing a pathwise choice": (
        lambda: ld.exact.program_derivatives(
            jnp.zeros(()),
            ld.expectation(lambda p: ld.sample(ld.Normal(p, 1.0 + 0 * p), method="pathwise"), **ANTITHETIC),
            order=1,
            num_choices=1,
            num_outcomes=2,
        ),
        TypeError,
        "listed",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_paired_is_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
