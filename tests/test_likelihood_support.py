"""Token log-probabilities within the tokens that a truncated sampler kept: the plain form's numbers, in bounded memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.plain_tokens import temporary_bytes

from .test_likelihood_vocabulary import (
    ALLOWED,
    CAPPED,
    HIDDEN,
    NUM,
    TOKENS,
    UNEMBEDDING,
    VOCABULARY,
    blocked,
    close,
    reference,
    scalar,
)

# Six tokens for each place, of which some are padding; the drawn one stands among them.
SUPPORT = jnp.array(
    [[3, 0, 9, -1, 5, 21], [22, 4, -1, -1, -1, -1], [7, 8, 1, 2, 3, 4], [20, 7, 6, 5, 19, 0], [1, 2, 3, 16, 4, 5]]
)


def within(unembedding, hidden, tokens, *, support=SUPPORT, allowed=None, **options):
    """The plain form of what is left of the vocabulary at each place."""
    kept = jax.nn.one_hot(support, VOCABULARY, dtype=bool).any(axis=-2)
    return reference(unembedding, hidden, tokens, allowed=kept if allowed is None else kept & allowed[None], **options)


@pytest.mark.parametrize(
    ("options", "size"), [({}, None), ({}, 2), (CAPPED, 1), ({"allowed": ALLOWED, "temperature": 0.3}, 3)]
)
def test_values_and_derivatives_within_a_support(options, size):
    @partial(jax.jit, static_argnums=0)
    def everything(function, unembedding, hidden):
        def total(unembedding, hidden):
            found = function(unembedding, hidden, TOKENS, **options)
            return scalar(found), found

        def total_alone(unembedding, hidden):
            return total(unembedding, hidden)[0]

        gradient = jax.grad(total_alone, (0, 1))
        curvature = jax.jvp(gradient, (unembedding, hidden), (jnp.cos(unembedding), jnp.sin(hidden)))[1]
        return total(unembedding, hidden), gradient(unembedding, hidden), curvature

    ours = everything(partial(blocked(size), support=SUPPORT), UNEMBEDDING, HIDDEN)
    close(ours, everything(within, UNEMBEDDING, HIDDEN))
    whole = everything(reference, UNEMBEDDING, HIDDEN)
    assert float(jnp.max(jnp.abs(ours[0][0] - whole[0][0]))) > 0.1  # what is left out counts


def test_a_support_of_the_whole_vocabulary_is_none_and_its_probabilities_add_up():
    support = jnp.stack([jax.random.permutation(key, VOCABULARY) for key in jax.random.split(jax.random.key(3), NUM)])
    close(blocked(support=support)(UNEMBEDDING, HIDDEN, TOKENS), blocked()(UNEMBEDDING, HIDDEN, TOKENS))
    each = [blocked(support=SUPPORT)(UNEMBEDDING, HIDDEN, jnp.maximum(ids, 0)).log_probs for ids in SUPPORT.T]
    np.testing.assert_allclose(np.sum(np.exp(each) * np.asarray(SUPPORT.T >= 0), axis=0), 1, rtol=1e-12)


def test_where_nothing_is_kept_there_is_no_entropy():
    """NaN as of logits that allow nothing, 0 where it is padding, and the other places as they were."""
    support, valid = SUPPORT.at[1].set(-1).at[3].set(-1), jnp.arange(NUM) != 3
    options: Any = {"entropy": True, "valid": valid}
    found: Any = ld.token_log_probs(UNEMBEDDING, HIDDEN, TOKENS, support=support, **options)
    right: Any = ld.token_log_probs(UNEMBEDDING, HIDDEN, TOKENS, support=SUPPORT, **options)
    assert found.log_probs[1] == -jnp.inf
    assert np.isnan(found.entropy).tolist() == [False, True, False, False, False]
    assert found.entropy[3] == found.log_probs[3] == 0
    np.testing.assert_array_equal(found.entropy[np.array([0, 2, 4])], right.entropy[np.array([0, 2, 4])])


def test_a_token_outside_the_support_is_impossible_and_nothing_else_changes():
    tokens = TOKENS.at[1].set(5)

    @jax.jit
    def everything(tokens, support):
        def total(unembedding):
            found = blocked(support=support)(unembedding, HIDDEN, tokens).log_probs
            return jnp.sum(jnp.where(found > -jnp.inf, found, 0)), found

        return jax.value_and_grad(total, has_aux=True)(UNEMBEDDING)

    (_, found), gradient = everything(tokens, SUPPORT)
    (_, others), _ = everything(TOKENS, SUPPORT)
    assert found[1] == -jnp.inf
    np.testing.assert_array_equal(np.delete(found, 1), np.delete(others, 1))
    (_, empty), of_empty = everything(TOKENS, SUPPORT.at[1].set(-1))
    assert empty[1] == -jnp.inf
    close(of_empty, gradient)
    (_, beyond), _ = everything(TOKENS, SUPPORT.at[1, 2].set(VOCABULARY))  # under jit such an id is left out
    np.testing.assert_array_equal(beyond, others)


def test_padding_never_matters_within_a_support():
    valid = jnp.array([True, True, False, True, False])

    @jax.jit
    def everything(hidden, tokens, support):
        def total(unembedding, hidden):
            found = blocked(valid=valid, support=support)(unembedding, hidden, tokens)
            return scalar(found), found

        return jax.value_and_grad(total, (0, 1), has_aux=True)(UNEMBEDDING, hidden)

    clean = everything(HIDDEN, TOKENS, SUPPORT)
    dirty = everything(
        jnp.where(valid[:, None], HIDDEN, jnp.nan),
        jnp.where(valid, TOKENS, -7),
        jnp.where(valid[:, None], SUPPORT, 2**40),
    )
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@pytest.mark.usefixtures("blocks_of_a_cpu")
def test_memory_within_a_support_is_that_of_a_block():
    num, width, vocabulary, kept = 4096, 64, 4096, 256

    def bytes_of(function):
        def value(unembedding, hidden, tokens, support):
            return jnp.sum(function(unembedding, hidden, tokens, support=support))

        integers = [jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((num,), (num, kept))]
        return temporary_bytes(jax.grad(value, (0, 1)), (vocabulary, width), (num, width), *integers)

    def plain(unembedding, hidden, tokens, support):
        logits = jnp.einsum("nd,nkd->nk", hidden, unembedding[support])
        return jnp.sum(jnp.where(support == tokens[:, None], jax.nn.log_softmax(logits), 0), axis=1)

    gathered = num * kept * width * 4
    assert bytes_of(lambda *args, support: ld.token_log_probs(*args, support=support).log_probs) < gathered / 3
    assert bytes_of(plain) >= gathered


@pytest.mark.parametrize(
    ("error", "message", "support"),
    [
        (ValueError, r"support: expected shape \(5, 'K'\), .* received \(4, 6\)", SUPPORT[:4]),
        (ValueError, r"support: expected shape \(5, 'K'\), .* received \(5, 0\)", SUPPORT[:, :0]),
        (ValueError, r"support: expected integers in 0 .. 22, received 23 at index \(0, 5\)", SUPPORT + 2),
        (ValueError, r"support: .* received -2 at index \(0, 3\)", SUPPORT - 1),
        (TypeError, r"support: expected dtype integer, received float64", SUPPORT.astype(float)),
    ],
)
def test_bad_input_is_refused(error, message, support):
    with pytest.raises(error, match=message):
        ld.token_log_probs(UNEMBEDDING, HIDDEN, TOKENS, support=support)
