"""Padded choices, `where=`, by every method: exactly the model without them, whatever stands in their place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import logderiv as ld
from logderiv.distributions import OneHotCategorical, Poisson
from tests.mostly import mostly_slow

PARAMS = jnp.array([0.3, -0.6])
VALID = np.array([False, True, False, True, False])
METHODS = ["score", "enumerate", "alternative", "straight_through_biased", "reinmax_biased"]
FINITE: dict[str, int] = {"num_choices": 2, "num_outcomes": 3}


def chain(method, padded=True):
    """Two choices of three in a scan, the second one's law by the first; with padding whose logits are no numbers."""
    valid = VALID if padded else VALID[VALID]

    def model(params):
        def step(level, real):
            logits = jnp.stack([params[0], params[1] * level, 0.5 * params[0]])
            logits = jnp.where(real, logits, jnp.nan)
            unit = ld.sample(OneHotCategorical(logits), method=method, where=real if padded else None)
            return level + jnp.dot(unit, jnp.array([1.0, -0.5, 2.0])) * (1 + level), None

        level, _ = lax.scan(step, jnp.zeros(()), valid)
        ld.cost(jnp.square(level) * params[1])

    return model


@pytest.mark.parametrize(
    "options", [{}, {"num_samples": 2, "baseline": "leave_one_out"}], ids=["alone", "leave one out"]
)
@pytest.mark.parametrize("method", mostly_slow(METHODS, ("score", "enumerate", "alternative")))
def test_every_method_has_the_moments_of_the_model_without_padding(method, options):
    found, expected = (
        ld.exact.program_derivatives(
            PARAMS, ld.expectation(chain(method, padded), **options), order=1, modes=("reverse",), **FINITE
        )
        for padded in (True, False)
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.exact, theirs.exact, rtol=1e-12)
        np.testing.assert_allclose(ours.mean, theirs.mean, rtol=0, atol=1e-12)
        assert (ours.covariance is None) == (theirs.covariance is None)
        if ours.covariance is not None:
            np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=0, atol=1e-12)
    if "biased" not in method:
        np.testing.assert_allclose(found[1].mean, found[1].exact, rtol=0, atol=1e-12)


def test_a_choice_whose_value_is_dropped_is_no_padding():
    """The twin that draws all the same: exact, but one of its runs has more to be picked from, and so more variance."""

    def drawn(padded):
        def model(p):
            x = ld.sample(ld.Bernoulli(p), method="alternative").astype(float)
            real = jnp.asarray(False)
            y = ld.sample(ld.Bernoulli(p), method="alternative", where=real if padded else None).astype(float)
            return x + jnp.where(real, y, 0)

        return ld.exact.program_derivatives(0.8, ld.expectation(model), order=1, num_choices=2, num_outcomes=2)[1]

    padded, dropped = drawn(True), drawn(False)
    np.testing.assert_allclose([padded.mean[0], dropped.mean[0]], padded.exact[0], rtol=1e-12)
    assert dropped.covariance[0, 0] > 2 * padded.covariance[0, 0]


@pytest.mark.parametrize("batched", [False, True])
def test_pathwise_values_of_padding_are_zero_and_still(batched):
    """Each run has the derivative that its draws have by hand, where half of the means are no numbers."""

    def model(params):
        locs = jnp.where(VALID, params[0] * jnp.arange(5.0), jnp.nan)
        if batched:
            xs = ld.sample(
                ld.Normal(locs[:, None], jnp.exp(params[1]) * jnp.ones((5, 1))), method="pathwise", where=VALID
            )[:, 0]
        else:

            def step(carry, x):
                loc, real = x
                return carry, ld.sample(ld.Normal(loc, jnp.exp(params[1])), method="pathwise", where=real)

            xs = lax.scan(step, None, (locs, VALID))[1]
        return jnp.sum(jnp.sin(xs)), xs

    runs = ld.expectation(model, num_samples=3, has_aux=True)
    xs = np.asarray(runs.runs(PARAMS, jax.random.key(0)).aux)
    found = jax.jit(jax.jacrev(lambda params: runs.runs(params, jax.random.key(0)).values))(PARAMS)
    assert np.all(xs[:, ~VALID] == 0)
    means = np.asarray(PARAMS[0]) * np.arange(5.0)[VALID][None]
    real = xs[:, VALID]
    slopes = [np.cos(real) * np.arange(5.0)[VALID][None], np.cos(real) * (real - means)]
    np.testing.assert_allclose(found, np.sum(slopes, axis=2).T, rtol=1e-12)


@pytest.mark.parametrize("law", ["Normal", "Poisson"])
def test_real_numbers_and_counts_made_otherwise(law):
    """Of a sum each run has the derivative of its law's mean times the number of real choices, but for which one is picked."""

    def model(params):
        def step(total, real):
            logit = jnp.where(real, params[0], jnp.nan)
            made = ld.Normal(logit, jnp.exp(params[1])) if law == "Normal" else Poisson(logit)
            return total + ld.sample(made, method="alternative", where=real).astype(float), None

        return lax.scan(step, jnp.zeros(()), VALID)[0]

    runs = ld.expectation(model, num_samples=20)
    found = jax.jit(jax.jacrev(lambda params: runs.runs(params, jax.random.key(0)).values))(PARAMS)
    np.testing.assert_allclose(found[:, 0], 2.0 if law == "Normal" else 2 * np.exp(PARAMS[0]), rtol=1e-12)


def test_worlds_of_padding_are_counted_where_the_mask_is_known_only_in_the_run():
    def model(logit, real):
        x = ld.sample(ld.Bernoulli(logit), method="enumerate", where=real)
        return (x + ld.sample(ld.Bernoulli(logit), method="enumerate")).astype(float)

    def known(real):
        return lambda logit: model(logit, real)

    assert [ld.expectation(known(real)).num_worlds(0.3) for real in (False, np.array(False), True)] == [2, 2, 4]
    assert ld.expectation(model).num_worlds(0.3, jnp.array(False)) == 4
    value, slope = jax.value_and_grad(ld.expectation(model))(0.3, jax.random.key(0), jnp.array(False))
    p = 1 / (1 + np.exp(-0.3))
    np.testing.assert_allclose([value, slope], [p, p * (1 - p)], rtol=1e-12)


@pytest.mark.parametrize("method", ["pathwise", "reinmax_biased"])
def test_a_mask_of_another_shape_than_the_choices(method):
    def model(p):
        made = ld.Normal(p * jnp.ones(2), jnp.ones(2)) if method == "pathwise" else OneHotCategorical(p * jnp.ones(2))
        return jnp.sum(ld.sample(made, method=method, where=np.array([True, False])))

    with pytest.raises(
        ValueError, match=r"where: expected the leading axes of the choices, \(\), received shape \(2,\)"
    ):
        ld.expectation(model)(0.3, jax.random.key(0))


def test_a_tape_by_hand_takes_padding_too():
    def program(params, tape):
        def step(carry, real):
            tape, total = carry
            loc = jnp.where(real, params[0], jnp.nan)
            tape, x = tape.sample_pathwise(ld.Normal(loc, jnp.ones_like(loc)), where=real)
            return (tape, total + x), None

        (tape, total), _ = lax.scan(step, (tape, jnp.zeros(())), VALID)
        return tape.cost(total)

    np.testing.assert_allclose(jax.grad(ld.expectation(program))(PARAMS, jax.random.key(0)), [2.0, 0.0], rtol=1e-12)
