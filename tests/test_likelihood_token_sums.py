"""Sums over tokens with their gradient in one pass: the plain form's numbers at every order, three products, the memory of a chunk."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.agreement import assert_same, value
from tests.mostly import slow
from tests.plain_tokens import multiplications, normal, numbers_of, temporary_bytes

NUM, WIDTH, VOCABULARY = 7, 3, 23
UNEMBEDDING, HIDDEN = normal(0, VOCABULARY, WIDTH), normal(1, NUM, WIDTH)
TOKENS = jnp.array([0, 22, 7, 7, 16, 3, 9])
WEIGHTS, OLD = normal(2, NUM), normal(3, NUM) - 3
REFERENCE = normal(4, VOCABULARY, 2), normal(5, NUM, 2)
ALLOWED = jnp.ones(VOCABULARY, bool).at[jnp.array([1, 2, 20])].set(False)
MODES = (
    value,
    lambda f: jax.grad(f, (0, 1, 2)),
    lambda f: lambda *args: jax.jvp(f, args, jax.tree.map(jnp.cos, args))[1],
    lambda f: lambda *args: jax.jvp(jax.grad(f, (0, 1, 2)), args, jax.tree.map(jnp.sin, args))[1],
)


def clipped(token, weight, old):
    """Everything that a term may use."""
    ratio = jnp.exp(token.log_prob - old)
    surrogate = jnp.minimum(ratio * weight, jnp.clip(ratio, 0.8, 1.2) * weight)
    return surrogate + 0.1 * token.entropy - 0.3 * token.kl + 0.01 * token.log_normalizer**2


def weighted(token, weight):
    return weight * token.log_prob


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"soft_cap": 1.5, "temperature": 0.7, "allowed": ALLOWED}, 3),  # chunks of 3, 3 and 1
        slow(({}, 1)),
        slow(({"temperature": 0.7}, 40)),
    ],
)
def test_values_and_derivatives_equal_the_plain_form(options, size):
    def ours(unembedding, hidden, weights):
        arguments = (clipped, unembedding, hidden, TOKENS, weights, OLD)
        return ld.token_sum(*arguments, entropy=True, reference=REFERENCE, chunk_size=size, **options).value

    def plain(unembedding, hidden, weights):
        numbers = numbers_of(unembedding, hidden, TOKENS, reference=REFERENCE, **options)
        return jnp.sum(jax.vmap(clipped)(numbers, weights, OLD))

    found = assert_same(ours, plain, UNEMBEDDING, HIDDEN, WEIGHTS, modes=MODES)
    assert min(np.linalg.norm(x) for x in jax.tree.leaves(found)) > 1e-3


@pytest.mark.parametrize("size", [5, slow(40)])
def test_log_probabilities_of_single_tokens_come_with_the_divergence_too(size):
    """In blocks of the vocabulary, the last of which is filled up."""
    options: Any = {"soft_cap": 1.5, "temperature": 0.7, "allowed": ALLOWED, "reference": REFERENCE}

    def total(log_probs, kl):
        return jnp.vdot(WEIGHTS, log_probs * kl + jnp.sin(kl))

    def ours(unembedding, hidden):
        found = ld.token_log_probs(unembedding, hidden, TOKENS, block_size=size, **options)
        return total(found.log_probs, found.kl)

    def plain(unembedding, hidden):
        found = numbers_of(unembedding, hidden, TOKENS, **options)
        return total(found.log_prob, found.kl)

    found = assert_same(ours, plain, UNEMBEDDING, HIDDEN, modes=[value, partial(jax.grad, argnums=(0, 1)), jax.hessian])
    assert min(np.linalg.norm(x) for x in jax.tree.leaves(found)) > 1e-3
    dirty = UNEMBEDDING, HIDDEN.at[2].set(jnp.nan), TOKENS
    valid, reference = jnp.arange(NUM) != 2, (REFERENCE[0], REFERENCE[1].at[2].set(jnp.nan))
    masked = ld.token_log_probs(*dirty, valid=valid, reference=reference, block_size=size)
    clean = ld.token_log_probs(UNEMBEDDING, HIDDEN, TOKENS, valid=valid, reference=REFERENCE, block_size=size)
    jax.tree.map(np.testing.assert_array_equal, masked, clean)
    with pytest.raises(ValueError, match=r"reference: .* expected none with a support"):
        ld.token_log_probs(UNEMBEDDING, HIDDEN, TOKENS, reference=REFERENCE, support=TOKENS[:, None])


def test_a_hessian_in_both_orders_of_modes():
    def of(hessian):
        def total(hidden):
            return ld.token_sum(
                clipped, UNEMBEDDING, hidden, TOKENS, WEIGHTS, OLD, entropy=True, reference=REFERENCE
            ).value

        return hessian(total)

    def plain(hidden):
        return jnp.sum(jax.vmap(clipped)(numbers_of(UNEMBEDDING, hidden, TOKENS, reference=REFERENCE), WEIGHTS, OLD))

    for hessian in (jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        assert_same(lambda h, of=of, hessian=hessian: of(hessian)(h), jax.hessian(plain), HIDDEN)


def test_a_batch_of_models_by_vmap_is_one_after_the_other():
    stacked = jnp.stack([UNEMBEDDING, 2 * UNEMBEDDING]), jnp.stack([HIDDEN, HIDDEN[::-1]])

    def gradient(unembedding, hidden):
        def total(unembedding, hidden):
            return ld.token_sum(weighted, unembedding, hidden, TOKENS, WEIGHTS, chunk_size=3).value

        return jax.grad(total, (0, 1))(unembedding, hidden)

    assert_same(jax.vmap(gradient), lambda *args: jax.lax.map(lambda x: gradient(*x), args), *stacked)


def test_no_token_and_no_sequence_are_refused():
    for tokens, hidden, by in ((TOKENS[:0], HIDDEN[:0], "token"), (TOKENS[0], HIDDEN[0], "sequence")):
        with pytest.raises(ValueError, match=f"tokens: expected at least one {by}, received shape"):
            ld.token_sum(
                weighted, UNEMBEDDING, hidden, tokens, WEIGHTS[: len(hidden)] if tokens.ndim else WEIGHTS[0], by=by
            )


def test_temperature_soft_cap_and_what_a_term_closes_over_are_differentiated_too():
    def ours(temperature, soft_cap, scale):
        def term(token, weight):
            return scale * weight * token.log_prob

        scales: Any = {"temperature": temperature, "soft_cap": soft_cap}
        return ld.token_sum(term, UNEMBEDDING, HIDDEN, TOKENS, WEIGHTS, chunk_size=3, **scales).value

    def plain(temperature, soft_cap, scale):
        numbers = numbers_of(UNEMBEDDING, HIDDEN, TOKENS, temperature=temperature, soft_cap=soft_cap)
        return scale * jnp.vdot(WEIGHTS, numbers.log_prob)

    (slopes,) = assert_same(ours, plain, jnp.array(0.7), jnp.array(1.5), jnp.array(2.0), modes=MODES[1:2])
    assert np.abs(slopes).min() > 1e-3


def test_numbers_of_tokens_come_back_detached():
    def ours(unembedding):
        found = ld.token_sum(
            weighted, unembedding, HIDDEN, TOKENS, WEIGHTS, entropy=True, reference=REFERENCE, chunk_size=3
        )
        return jnp.sum(jnp.cos(found.numbers.log_prob)), found.numbers

    gradient, numbers = jax.jit(jax.grad(ours, has_aux=True))(UNEMBEDDING)
    assert not np.any(gradient)
    expected = numbers_of(UNEMBEDDING, HIDDEN, TOKENS, reference=REFERENCE)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12), numbers, expected)


VALID = jnp.array([[True, True, False, True], [True, False, False, False], [False] * 4])


def sequence_ratio(token, old, advantage, counts):
    """The clipped ratio of a sequence, to the power of one over its length."""
    length = jnp.sum(counts, dtype=old.dtype)
    ratio = jnp.exp(jnp.sum(token.log_prob - old) / length)
    return jnp.minimum(ratio, 1.2) * advantage[0] - 0.1 * jnp.sum(token.entropy) / length


def test_terms_of_whole_sequences_with_padding_that_may_hold_anything():
    hidden, tokens = normal(6, 3, 4, WIDTH), jnp.arange(12).reshape(3, 4)
    old, advantages = normal(7, 3, 4), jnp.repeat(normal(8, 3, 1), 4, axis=1)

    def ours(unembedding, hidden, advantages, tokens, old):
        extras = (old, advantages, VALID)
        options: Any = {"by": "sequence", "valid": VALID, "entropy": True, "chunk_size": 8}  # two sequences and one
        return ld.token_sum(sequence_ratio, unembedding, hidden, tokens, *extras, **options).value

    def plain(unembedding, hidden, advantages, tokens, old):
        numbers = jax.tree.map(lambda x: jnp.where(VALID, x, 0), numbers_of(unembedding, hidden, tokens))
        rows = (numbers, jnp.where(VALID, old, 0), advantages, VALID)
        return sum(sequence_ratio(*jax.tree.map(lambda x, i=i: x[i], rows)) for i in (0, 1))

    arguments = (UNEMBEDDING, hidden, advantages, tokens, old)
    modes = [MODES[1]]
    assert_same(ours, plain, *arguments, modes=modes)
    dirty = (
        UNEMBEDDING,
        jnp.where(VALID[..., None], hidden, jnp.nan),
        jnp.where(VALID, advantages, jnp.inf),
        jnp.where(VALID, tokens, 99),
        jnp.where(VALID, old, jnp.nan),
    )
    gradient = jax.jit(modes[0](ours))
    jax.tree.map(np.testing.assert_array_equal, gradient(*dirty), gradient(*arguments))


def test_padding_of_single_tokens_never_matters():
    valid = jnp.array([True, False, True, True, False, False, True])

    @jax.jit
    def ours(hidden, tokens, old):
        def total(unembedding, hidden, weights):
            extras = (weights, old)
            options: Any = {"valid": valid, "entropy": True, "reference": REFERENCE, "chunk_size": 2}
            return ld.token_sum(clipped, unembedding, hidden, tokens, *extras, **options)

        def both(*args):
            value, numbers = total(*args)
            return value, numbers

        return jax.value_and_grad(both, (0, 1, 2), has_aux=True)(UNEMBEDDING, hidden, WEIGHTS)

    clean = ours(HIDDEN, TOKENS, OLD)
    assert not np.any(clean[0][1].log_prob[~valid])
    dirty = ours(
        jnp.where(valid[:, None], HIDDEN, jnp.nan), jnp.where(valid, TOKENS, -3), jnp.where(valid, OLD, jnp.inf)
    )
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


def test_a_token_outside_the_vocabulary_is_impossible_and_moves_nothing():
    def total(hidden, tokens):
        found = ld.token_sum(
            lambda t: jnp.where(jnp.isneginf(t.log_prob), 0.0, t.log_prob), UNEMBEDDING, hidden, tokens
        )
        return found.value, found.numbers.log_prob

    (_, logs), slopes = jax.jit(jax.value_and_grad(total, has_aux=True))(HIDDEN, TOKENS.at[2].set(VOCABULARY))
    assert logs[2] == -jnp.inf
    assert not np.any(slopes[2])
    assert np.linalg.norm(slopes[1]) > 1e-3
    with pytest.raises(ValueError, match=r"tokens: .* received 23 at index \(2,\)"):
        ld.token_sum(weighted, UNEMBEDDING, HIDDEN, TOKENS.at[2].set(VOCABULARY), WEIGHTS)


@pytest.mark.parametrize(
    ("argnums", "reference", "products"), [((0, 1), None, 3), ((1,), None, 2), ((0,), None, 2), ((0, 1), 1, 4)]
)
def test_value_and_gradients_take_three_products(argnums, reference, products):
    num, width, vocabulary = 64, 16, 128

    def total(unembedding, hidden):
        other = None if reference is None else (unembedding, hidden)
        return ld.token_sum(
            lambda t: t.log_prob, unembedding, hidden, jnp.zeros(num, int), reference=other, chunk_size=16
        ).value

    arguments = jnp.ones((vocabulary, width)), jnp.ones((num, width))
    found = multiplications(jax.make_jaxpr(jax.value_and_grad(total, argnums))(*arguments).jaxpr)
    assert found == products * num * width * vocabulary

    def twin(unembedding, hidden):
        return jnp.sum(ld.token_log_probs(unembedding, hidden, jnp.zeros(num, int), block_size=32).log_probs)

    blocks = multiplications(jax.make_jaxpr(jax.value_and_grad(twin, (0, 1)))(*arguments).jaxpr)
    assert blocks == 4 * num * width * vocabulary


def test_memory_is_that_of_a_chunk_and_of_the_gradient_that_is_asked_for():
    num, width, vocabulary, chunk = 2048, 64, 16384, 64
    shapes = (vocabulary, width), (num, width), (num,)

    def total(unembedding, hidden, weights):
        return ld.token_sum(weighted, unembedding, hidden, jnp.zeros(num, jnp.int32), weights, chunk_size=chunk).value

    logits, of_unembedding = 4 * chunk * vocabulary, 4 * vocabulary * width
    held = temporary_bytes(jax.value_and_grad(total, 1), *shapes)
    assert held < 3 * logits + 4 * 4 * num * width
    both = temporary_bytes(jax.value_and_grad(total, (0, 1)), *shapes)
    assert both < 3 * logits + 2 * of_unembedding + 4 * 4 * num * width
    assert both < 4 * num * vocabulary / 4  # all logits, of which the plain form keeps one at least

    def along(unembedding, hidden, weights):
        gradient = lambda w, h: jax.grad(total, (0, 1))(w, h, weights)  # noqa: E731
        return jax.jvp(gradient, (unembedding, hidden), (unembedding, hidden))[1]

    if jax.default_backend() == "cpu":  # a GPU's compiler keeps a copy of the logits more
        assert temporary_bytes(along, *shapes) < 3 * both


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (
            ValueError,
            r"extras\[0\]: expected the leading axes of the tokens, \(7,\), received shape \(6,\)",
            {"extras": WEIGHTS[:6]},
        ),
        (
            ValueError,
            r"term: expected it to return one real number, received shape \(2,\)",
            {"term": lambda t, w: jnp.ones(2)},
        ),
        (TypeError, r"term: expected a function, received ArrayImpl", {"term": WEIGHTS}),
        (TypeError, r"compute_dtype: expected a floating dtype, received 'foo'", {"compute_dtype": "foo"}),
        (ValueError, r"term: expected it to return one real number, received NoneType", {"term": lambda t, w: None}),
        (ValueError, r"chunk_size: expected a whole number >= 1, received 0", {"chunk_size": 0}),
        (ValueError, r"by: expected .*token.*sequence.*, received 'batch'", {"by": "batch"}),
        (ValueError, r"reference\[0\]: expected shape \(23, D\)", {"reference": (REFERENCE[0][:5], REFERENCE[1])}),
        (
            ValueError,
            r"reference\[1\]: expected shape \(7, 2\), received \(6, 2\)",
            {"reference": (REFERENCE[0], REFERENCE[1][:6])},
        ),
        (ValueError, r"reference\[1\]: .*received \(7, 2, 1\)", {"reference": (REFERENCE[0], REFERENCE[1][..., None])}),
        (TypeError, r"reference: expected a pair \(unembedding, hidden\), received ", {"reference": REFERENCE[0]}),
        (ValueError, r"precision: expected .*received 'exact'", {"precision": "exact"}),
        (ValueError, r"compute_dtype: expected a floating dtype, received int8", {"compute_dtype": jnp.int8}),
        (ValueError, r"temperature: expected a positive number, received 0", {"temperature": 0}),
    ],
)
def test_bad_input_is_refused(error, message, change):
    arguments = {"term": weighted, "extras": WEIGHTS, **change}
    term, extras = arguments.pop("term"), arguments.pop("extras")
    with pytest.raises(error, match=message):
        ld.token_sum(term, UNEMBEDDING, HIDDEN, TOKENS, extras, **arguments)
