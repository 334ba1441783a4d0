"""Sums over tokens, and their log-probabilities, where something is infinite, padded, alone or of few digits."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.likelihood.logits import Arithmetic
from tests.agreement import assert_same
from tests.plain_tokens import normal, numbers_of

NUM, WIDTH, VOCABULARY = 7, 3, 23
UNEMBEDDING, HIDDEN = normal(0, VOCABULARY, WIDTH), normal(1, NUM, WIDTH)
TOKENS = jnp.array([0, 22, 7, 7, 16, 3, 9])
WEIGHTS, OLD = normal(2, NUM), normal(3, NUM) - 3


def weighted(token, weight):
    return weight * token.log_prob


def over_entropy(token, factor):
    """Infinite where the numbers of a token are 0."""
    return factor * token.log_prob / token.entropy


@pytest.mark.parametrize("valid", [None, jnp.arange(NUM) < 4, jnp.zeros(NUM, bool)], ids=["all", "some", "none"])
def test_terms_that_are_infinite_at_zeros_have_finite_derivatives_whatever_the_chunks_are(valid):
    """Neither the rows that fill the last chunk nor padding are evaluated at numbers that no token has."""
    real = jnp.ones(NUM, bool) if valid is None else valid

    def ours(size):
        def total(scale, factors):
            term = lambda token, factor: scale * over_entropy(token, factor)  # noqa: E731
            options: Any = {"valid": valid, "entropy": True, "chunk_size": size}
            return ld.token_sum(term, UNEMBEDDING, HIDDEN, TOKENS, factors, **options).value

        return total

    def plain(scale, factors):
        values = jax.vmap(over_entropy)(numbers_of(UNEMBEDDING, HIDDEN, TOKENS), factors)
        return scale * jnp.sum(values, where=real)

    for size in (3, 7):
        assert_same(ours(size), plain, jnp.array(2.0), WEIGHTS, modes=[partial(jax.value_and_grad, argnums=(0, 1))])


def test_ratios_that_overflow_beside_numbers_of_zero_stay_finite():
    unembedding, old = jnp.zeros((VOCABULARY, WIDTH)).at[1].set(20.0), jnp.full(NUM, -2000.0)
    tokens = jnp.zeros(NUM, int)  # their log-probability is far below that of a token whose numbers are 0

    def total(scale):
        term = lambda token, old: scale * jnp.exp(token.log_prob - old - 1940)  # noqa: E731
        return ld.token_sum(
            term, unembedding, 1 + 0 * HIDDEN, tokens, old, valid=jnp.arange(NUM) < 4, chunk_size=3
        ).value

    value, slope = jax.value_and_grad(total)(jnp.array(2.0))
    assert slope == value / 2 == 4.0 * np.exp(2000 - 1940 - 60)


def test_the_derivative_at_a_hidden_state_that_is_nan_is_nan():
    """Forwards as backwards; that of an impossible token is 0."""
    tokens, towards = TOKENS.at[2].set(VOCABULARY), jnp.ones_like(HIDDEN)

    @jax.jit
    def both(hidden, tokens):
        function = lambda x: ld.token_log_probs(UNEMBEDDING, x, tokens).log_probs  # noqa: E731
        return jax.jvp(function, (hidden,), (towards,))[1], jax.vjp(function, hidden)[1](jnp.ones(NUM))[0]

    slopes, gradient = both(HIDDEN.at[1].set(jnp.nan), tokens)
    right, of_right = both(HIDDEN, tokens)
    others = jnp.arange(NUM) != 1
    assert np.isnan(slopes[1])
    assert np.isnan(gradient[1]).all()
    assert right[2] == 0
    np.testing.assert_allclose(slopes[others], right[others], rtol=1e-12)
    np.testing.assert_allclose(gradient[others], of_right[others], rtol=1e-12)


def test_python_numbers_are_captured_and_returned():
    slope = jax.grad(lambda b: ld.token_sum(lambda t: b * t.log_prob, UNEMBEDDING, HIDDEN, TOKENS).value)(2.0)
    np.testing.assert_allclose(slope, jnp.sum(numbers_of(UNEMBEDDING, HIDDEN, TOKENS).log_prob), rtol=1e-12)
    assert ld.token_sum(lambda t: 1.5, UNEMBEDDING, HIDDEN, TOKENS).value == 1.5 * NUM


def test_what_a_term_reads_is_read_at_each_call():
    """One function, and what it closes over is differentiated twice."""
    held = {}

    def term(token):
        return held["scale"] * token.log_prob

    def total(scale):
        held["scale"] = scale
        return ld.token_sum(term, UNEMBEDDING, HIDDEN, TOKENS).value

    expected = jnp.sum(numbers_of(UNEMBEDDING, HIDDEN, TOKENS).log_prob)
    np.testing.assert_allclose([jax.grad(total)(scale) for scale in (2.0, 3.0)], [expected] * 2, rtol=1e-12)


def test_traced_masks_and_integers_may_be_captured_and_differentiated_around():
    """The tokens that are allowed, and an integer in the term, are arguments of a program that is differentiated as a whole."""
    allowed = jnp.arange(len(UNEMBEDDING)) != 1

    def total(unembedding, allowed, times):
        found = ld.token_sum(lambda token: times * token.log_prob, unembedding, HIDDEN, 0 * TOKENS, allowed=allowed)
        return found.value

    expected = 3 * jax.grad(total)(UNEMBEDDING, allowed, 1)
    for mode in (jax.grad(jax.jit(total)), jax.jit(jax.grad(jax.checkpoint(total)))):
        np.testing.assert_allclose(mode(UNEMBEDDING, allowed, 3), expected, rtol=1e-12)


@pytest.mark.parametrize("given", [jnp.float32, jnp.bfloat16])
def test_an_unembedding_in_fewer_digits_than_the_hidden_states(given):
    narrow = UNEMBEDDING.astype(given)

    def ours(unembedding):
        return ld.token_sum(weighted, unembedding, HIDDEN, TOKENS, WEIGHTS, chunk_size=3).value

    def plain(unembedding):
        return jnp.vdot(WEIGHTS, numbers_of(unembedding, HIDDEN, TOKENS).log_prob)

    found, right = jax.jit(jax.grad(ours))(narrow), jax.jit(jax.grad(plain))(narrow.astype(float))
    np.testing.assert_allclose(found.astype(float), right, rtol=0.01, atol=1e-2 * np.abs(right).max())
    assert found.dtype == given


def test_a_mean_in_float16_does_not_overflow_before_it_is_divided():
    num = 20000
    arguments = jnp.zeros((4, 1), jnp.float16), jnp.full((num, 1), 8, jnp.float16)

    def mean(unembedding, hidden):
        return ld.token_sum(lambda t: t.log_prob, unembedding, hidden, jnp.zeros(num, jnp.int32)).value / num

    found = jax.jit(jax.grad(mean))(*arguments)
    np.testing.assert_allclose(found[:, 0].astype(float), [6, -2, -2, -2], rtol=1e-3)


def test_a_single_token_without_an_axis():
    found = ld.token_sum(weighted, UNEMBEDDING, HIDDEN[0], TOKENS[0], WEIGHTS[0])
    expected = numbers_of(UNEMBEDDING, HIDDEN[0], TOKENS[0])
    np.testing.assert_allclose(found.value, WEIGHTS[0] * expected.log_prob, rtol=1e-12)
    assert found.numbers.log_prob.shape == ()


@pytest.mark.parametrize("given", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_log_probabilities_of_half_precision_on_a_device_that_multiplies_it(monkeypatch, given):
    """The operands are rounded once on the way back; values are those of exact products."""
    monkeypatch.setattr(jax, "default_backend", lambda: "another")
    exact = [normal(i, n, 16).astype(given).astype(jnp.float64) for i, n in enumerate((64, 256))]
    weights, tokens = normal(2, 256), jax.random.randint(jax.random.key(3), (256,), 0, 64)

    def pulled(function, *arguments):
        values, pull = jax.vjp(function, *arguments)
        return values, *pull(weights.astype(values.dtype))

    def ours(unembedding, hidden):
        return ld.token_log_probs(unembedding, hidden, tokens, block_size=8).log_probs

    right = jax.jit(partial(pulled, lambda w, h: numbers_of(w, h, tokens).log_prob))(*exact)
    found = jax.jit(partial(pulled, ours))(*(x.astype(given) for x in exact))
    errors = [
        np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b) for a, b in zip(found, right, strict=True)
    ]
    assert errors[0] < 1e-6
    assert max(errors[1:]) < (1e-5 if given == jnp.float32 else 2**-8)
    assert [x.dtype for x in found[1:]] == [given, given]


def test_half_precision_is_multiplied_as_such_where_a_device_does_and_rounded_once():
    wide = Arithmetic(jnp.dtype(jnp.float32), jnp.dtype(jnp.float32), None)
    half = Arithmetic(jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32), None)
    x, y = normal(0, 64, 32).astype(jnp.bfloat16), normal(1, 48, 32).astype(jnp.bfloat16)
    np.testing.assert_allclose(half.product(x, y), wide.product(x, y), rtol=1e-5, atol=1e-5)
    program = str(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(half.product(x, y, rounded=True))))(x.astype(jnp.float32)))
    assert "dot_general" in program
    assert not [line for line in program.splitlines() if "dot_general" in line and "f32[64,32] = dot" in line]


@pytest.mark.parametrize("compute_dtype", [None, jnp.bfloat16])
def test_gradients_of_half_precision_are_summed_in_float32(monkeypatch, compute_dtype):
    monkeypatch.setattr(jax, "default_backend", lambda: "another")  # as a device that multiplies bfloat16
    num, width, vocabulary = 512, 16, 64
    given = jnp.float32 if compute_dtype else jnp.bfloat16
    exact = [normal(i, n, width).astype(jnp.bfloat16).astype(jnp.float64) for i, n in enumerate((vocabulary, num))]
    weights, tokens = 1 + normal(2, num).astype(jnp.float32) ** 2, jnp.zeros(num, jnp.int32)

    def total(unembedding, hidden):
        options: Any = {"chunk_size": 8, "compute_dtype": compute_dtype}
        return ld.token_sum(weighted, unembedding, hidden, tokens, weights, **options).value

    def plain(unembedding, hidden):
        return jnp.vdot(weights.astype(jnp.float64), numbers_of(unembedding, hidden, tokens).log_prob)

    expected = jax.jit(jax.grad(plain, (0, 1)))(*exact)
    arguments = [x.astype(given) for x in exact]
    found = jax.jit(jax.grad(total, (0, 1)))(*arguments)
    program = str(jax.make_jaxpr(jax.grad(total, (0, 1)))(*arguments))
    products = [line for line in program.splitlines() if "= dot_general" in line]
    assert len(products) == 3
    assert all("preferred_element_type=float32" in program for _ in products)
    for ours, right in zip(found, expected, strict=True):
        assert ours.dtype == given
        error = np.linalg.norm(np.asarray(ours, np.float64) - right) / np.linalg.norm(right)
        assert error < (2e-3 if compute_dtype else 2**-8)
    summed = jax.lax.scan(lambda s, w: (s + w, None), jnp.bfloat16(0), weights.astype(jnp.bfloat16))[0]
    assert abs(float(summed) / float(jnp.sum(weights)) - 1) > 2**-8  # a sum in bfloat16 stands still
