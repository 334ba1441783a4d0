"""Exact divergences and entropies against sums by hand, and against what objectives estimate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld

from .answers import world
from .mostly import slow
from .worlds import TERMINATING_LOGITS, terminating


@functools.cache
def found(name):
    """Values and raveled gradients."""
    where = world(name)
    horizon = where.model.horizon

    def of(params):
        return ld.exact.divergences(params, where.reference, where.model.policy, where.model, horizon=horizon)

    values, gradients = jax.jit(lambda params: (of(params), jax.jacrev(of)(params)))(where.params)
    return values, np.stack([ravel_pytree(x)[0] for x in gradients])


@pytest.mark.parametrize("name", ["bigram", "prompted", slow("gru")])
def test_values_and_gradients_are_the_sums_over_every_answer(name):
    where, (values, gradients) = world(name), found(name)
    reference = where.chances(where.reference)
    by_hand = {
        "reverse_kl": lambda p: p @ (jnp.log(p) - jnp.log(reference)),
        "forward_kl": lambda p: reference @ (jnp.log(reference) - jnp.log(p)),
        "entropy": lambda p: -p @ jnp.log(p),
    }
    for field, gradient in zip(values._fields, gradients, strict=True):
        function = by_hand[field]
        np.testing.assert_allclose(getattr(values, field), function(jnp.asarray(where.probabilities)), rtol=1e-13)
        np.testing.assert_allclose(gradient, where.gradient(function), rtol=0, atol=1e-13)
    assert len({round(float(x), 3) for x in values}) == 3
    assert np.abs(gradients).max(axis=1).min() > 0.05


def test_the_reverse_kl_is_that_of_the_choices_in_a_random_world():
    """By dynamic programming: the occupancy of each state times the divergence of its choices."""
    reference = jnp.array([[0.5, 0.1], [-0.2, 0.3], [0.0, 0.0]])
    mdp = terminating()
    exact = ld.exact.divergences(TERMINATING_LOGITS, reference, ld.tabular_softmax, mdp, horizon=3)
    occupancy = np.zeros(3)
    policy, other = (np.asarray(jax.nn.softmax(x)) for x in (TERMINATING_LOGITS, reference))
    at = np.asarray(mdp.initial)
    for _ in range(3):
        at = at * [1, 1, 0]
        occupancy += at
        at = np.einsum("s,sa,sat->t", at, policy, mdp.transition)
    divergence, entropy = (policy * np.log(policy / other)).sum(1), -(policy * np.log(policy)).sum(1)
    np.testing.assert_allclose(exact.reverse_kl, occupancy @ divergence, rtol=1e-12)
    np.testing.assert_allclose(exact.entropy, occupancy @ entropy, rtol=1e-12)


def test_impossible_choices_count_for_nothing_or_make_it_infinite():
    def policy(params, state):
        del state
        return ld.Categorical(ld.masked(params[:2], params[2:] > 0))

    mdp, half, both = terminating(), jnp.array([0.3, 0.1, 1.0, -1.0]), jnp.array([0.3, 0.1, 1.0, 1.0])
    narrow = ld.exact.divergences(half, both, policy, mdp, horizon=2)
    assert np.isfinite(narrow.reverse_kl)
    assert np.isinf(narrow.forward_kl)
    gradient = jax.grad(lambda p: ld.exact.divergences(p, both, policy, mdp, horizon=2).reverse_kl)(half)
    assert np.isfinite(gradient).all()


def test_a_choice_whose_probability_underflows_is_possible_all_the_same():
    """exp(-800) is 0 in float64, and 0 times infinity NaN: what the product alone, the wrong twin, would give."""
    of = functools.partial(
        ld.exact.divergences, policy=ld.shared_softmax, environment=ld.environments.short_corridor(), horizon=2
    )
    unlikely, impossible, even = jnp.array([800.0, 0.0]), jnp.array([0.0, -jnp.inf]), jnp.zeros(2)
    found, turned = of(unlikely, impossible), of(impossible, unlikely)
    assert found.reverse_kl == turned.forward_kl == jnp.inf
    assert [found.forward_kl, turned.reverse_kl, found.entropy, turned.entropy] == [0.0] * 4
    np.testing.assert_allclose(of(unlikely, even).reverse_kl, 2 * np.log(2), rtol=1e-15)  # two steps to the left
    np.testing.assert_allclose(of(even, unlikely).reverse_kl, 2 * (400 - np.log(2)), rtol=1e-15)
    assert of(impossible, impossible) == (0.0, 0.0, 0.0)
    assert np.isnan(jnp.exp(-800.0) * jnp.inf)


def test_a_reference_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match=r"reference: expected shape \(2,\), received \(3,\)"):
        ld.exact.divergences(jnp.zeros(2), jnp.zeros(3), ld.shared_softmax, ld.environments.short_corridor(), horizon=2)
