"""Models with plain calls against loops in Python over every path: every derivative, in every mode, by listing and by real keys."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld

from . import models_by_hand, models_of_our_own, models_truth
from .models import PUBLISHED
from .models_of_our_own import OUR_OWN
from .mostly import mostly_slow

MODELS = PUBLISHED | OUR_OWN


@pytest.fixture
def case(name):
    """A model; those of another library mix dtypes."""
    if name != "foreign":
        yield MODELS[name]
    else:
        pytest.importorskip("numpyro")
        with jax.numpy_dtype_promotion("standard"):
            yield MODELS[name]


def twin(name):
    return models_of_our_own.TWINS[name] if name in OUR_OWN else getattr(models_by_hand, name)


def by_hand(name):
    case = MODELS[name]
    return models_by_hand.derivatives(twin(name), ravel_pytree(case.params)[0], case.direction)


def truth(name):
    """Value, gradient, Hessian and third derivative along the direction."""
    if name in OUR_OWN:
        return by_hand(name)
    known = models_truth.PUBLISHED[name]
    return known.value, np.array(known.gradient), known.hessian, known.third


def assert_close(found, expected, scale=1e-12):
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale)


@pytest.mark.parametrize("name", mostly_slow(PUBLISHED, ("prepaid", "twice")))
def test_the_twins_in_python_have_the_published_derivatives(name):
    for found, expected in zip(by_hand(name), truth(name), strict=True):
        assert_close(found, expected, 5e-14)


@pytest.mark.parametrize("name", mostly_slow(MODELS, ("crowd",)))
def test_value_and_three_derivatives_are_exact(name, case):
    objective = ld.expectation(case.model)
    found = ld.exact.program_derivatives(case.params, objective, *case.extras, order=3, **case.sizes)
    for moments, expected in zip(found, truth(name), strict=True):
        assert np.max(np.abs(expected)) > 1e-2
        for third in (moments.mean, moments.exact):
            for _ in range(np.ndim(third) - np.ndim(expected)):
                third = third @ np.array(case.direction)
            assert_close(third, expected)


@pytest.mark.parametrize("name", mostly_slow(MODELS, ("fresh",)))
def test_every_mode_has_the_same_derivatives(name, case):
    """A gradient in both modes, and a Hessian in all four mixes of them."""
    objective, mixes = ld.expectation(case.model), itertools.product(("forward", "reverse"), repeat=2)
    for modes in mixes if case.reverse else (("forward", "forward"),):
        options: Any = {"order": 2, "modes": modes, **case.sizes}
        found = ld.exact.program_derivatives(case.params, objective, *case.extras, **options)
        for moments, expected in zip(found, truth(name), strict=False):
            assert_close(moments.mean, expected)


@pytest.mark.parametrize("name", mostly_slow(["detour", "menu", "vault", "queue"], ("detour",)))
def test_leave_one_out_is_exact_too(name, case):
    """Also where one branch has choices of more outcomes than another: what is not drawn has no part in it."""
    objective = ld.expectation(case.model, num_samples=2, baseline="leave_one_out")
    found = ld.exact.program_derivatives(case.params, objective, order=1 if name == "vault" else 2, **case.sizes)
    for moments, expected in zip(found, truth(name), strict=False):
        assert_close(moments.mean, expected)


def samples(case, number):
    """Value, gradient, and the Hessian's diagonal of single runs, from keys."""
    objective, theta = ld.expectation(lambda theta: case.model(theta)), case.params  # traced anew at each call

    def of(key):
        def frozen(theta):
            return objective(theta, jax.random.clone(key))

        value, gradient = jax.value_and_grad(frozen)(theta)
        return {"value": value, "gradient": gradient, "curvature": jnp.diagonal(jax.hessian(frozen)(theta))}

    return jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(11), number))


def exact(name):
    value, gradient, hessian, _ = truth(name)
    return {"value": value, "gradient": gradient, "curvature": np.diagonal(hessian)}


RESOLUTION = {"value": 0.3, "gradient": 0.5, "curvature": 1.0}


def reused(source, num):
    """As `Keys.split`, but the source to go on with is the one that was given: every choice has the first one's key."""
    return source, jax.random.split(source.bits.keys(), num + 1)[1:]


@pytest.mark.parametrize("name", mostly_slow(["urn", "crowd", "cellar", "queue"], ("urn",)))
def test_real_keys_have_the_derivatives_too_and_a_key_that_is_used_twice_has_not(name, monkeypatch):
    case = MODELS[name]
    for bad in (False, True):
        if bad:
            monkeypatch.setattr(type(ld.Tape.start(jax.random.key(0)).source), "split", reused)
        found = samples(case, 20_000)
        report = ld.testing.assert_unbiased(found, exact(name), resolution=RESOLUTION, k=4.0, raises=False)
        assert bad or bool(report.passed), report
        assert bool(report.holds["centered"]) != bad, report
