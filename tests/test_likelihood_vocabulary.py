"""Token log-probabilities in blocks of the vocabulary: the plain form's numbers, at every order, in bounded memory."""

import math
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.likelihood.vocabulary import _block_size
from tests.agreement import assert_same, value
from tests.mostly import slow
from tests.plain_tokens import temporary_bytes
from tests.worlds import trajectory


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


NUM, WIDTH, VOCABULARY = 5, 3, 23
UNEMBEDDING = normal(0, VOCABULARY, WIDTH)
HIDDEN = 2 * normal(1, NUM, WIDTH)
TOKENS = jnp.array([0, 22, 7, 7, 16])
ALLOWED = jnp.ones(VOCABULARY, bool).at[jnp.array([1, 2, 3, 4, 5, 6, 20])].set(False)  # more than a block of five
CAPPED = {"soft_cap": 1.5, "temperature": 0.7}


def reference(unembedding, hidden, tokens, *, temperature=1.0, soft_cap=None, allowed=None):
    """What one would write: all logits at once."""
    logits = hidden @ unembedding.T
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    logits = logits / temperature
    if allowed is not None:
        logits = jnp.where(jnp.broadcast_to(allowed, logits.shape), logits, -jnp.inf)
    distribution = ld.Categorical(logits)
    return ld.likelihood.TokenLogProbs(distribution.log_prob(tokens), distribution.entropy())


def close(ours, expected):
    chex.assert_trees_all_close(ours, expected, rtol=1e-12, atol=1e-12)


def blocked(size=5, **options) -> Any:
    """Ours, with entropies."""
    return partial(ld.token_log_probs, entropy=True, block_size=size, **options)


def scalar(found):
    """A weighted sum of everything that comes out, nonlinear so that second derivatives see first ones."""
    weights = normal(2, 2, NUM)
    return jnp.vdot(weights[0], found.log_probs + 0.1 * found.log_probs**2) + jnp.vdot(weights[1], found.entropy)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        slow(({}, 1)),
        ({}, 5),  # does not divide the vocabulary
        ({"temperature": 0.7}, 23),
        slow((CAPPED, 5)),
        slow((CAPPED, 40)),
        ({"allowed": ALLOWED, "soft_cap": 3.0}, 5),
    ],
)
def test_values_and_derivatives_equal_the_plain_form(options, size):
    tangents = (jnp.cos(UNEMBEDDING), jnp.sin(HIDDEN))
    of_scalar = partial(jax.grad, argnums=(0, 1))
    modes = (
        value,
        lambda f: of_scalar(lambda *args: scalar(f(*args))),
        lambda f: lambda *args: jax.jvp(lambda *args: scalar(f(*args)), args, tangents)[1],
        lambda f: lambda *args: jax.jvp(of_scalar(lambda *args: scalar(f(*args))), args, tangents)[1],
    )
    ours, plain = (lambda w, h, f=f: f(w, h, TOKENS) for f in (blocked(size, **options), partial(reference, **options)))
    found = assert_same(ours, plain, UNEMBEDDING, HIDDEN, modes=modes)
    assert min(np.linalg.norm(x) for x in jax.tree.leaves(found)) > 1e-3


def test_a_full_hessian_by_reverse_over_reverse():
    ours, plain = (lambda h, f=f: scalar(f(UNEMBEDDING, h, TOKENS, **CAPPED)) for f in (blocked(), reference))
    hessian = lambda f: (jax.jacrev if f is ours else jax.jacfwd)(jax.grad(f))  # noqa: E731
    (found,) = assert_same(ours, plain, HIDDEN, modes=[hessian])
    assert np.linalg.norm(found) > 1e-3


def test_temperature_and_soft_cap_are_differentiated_too():
    def of(function):
        return lambda t, c: scalar(function(UNEMBEDDING, HIDDEN, TOKENS, temperature=t, soft_cap=c))

    modes = [partial(jax.grad, argnums=(0, 1))]
    (slopes,) = assert_same(of(blocked()), of(reference), jnp.array(0.7), jnp.array(1.5), modes=modes)
    assert np.abs(slopes).min() > 1e-3


def test_a_pair_of_tokens_by_hand():
    # Logits 0 and 2, capped at 1: 0 and tanh(2); at temperature 1/2: 0 and 2 tanh(2).
    unembedding, hidden = jnp.array([[0.0], [1.0]]), jnp.array([[2.0]])
    capped: Any = {"soft_cap": 1.0}
    for options, logit in (({}, 2.0), (capped, math.tanh(2)), (capped | {"temperature": 0.5}, 2 * math.tanh(2))):
        p = 1 / (1 + math.exp(-logit))
        found = ld.token_log_probs(unembedding, hidden, jnp.array([1]), entropy=True, **options)
        close(tuple(found)[:2], (np.array([math.log(p)]), np.array([-p * math.log(p) - (1 - p) * math.log(1 - p)])))
    assert ld.token_log_probs(unembedding, hidden, jnp.array([1])).entropy is None


def test_batch_axes_and_vmap_agree_with_one_row_at_a_time():
    hidden = normal(3, 2, 4, WIDTH)
    tokens = jax.random.randint(jax.random.key(4), (2, 4), 0, VOCABULARY)
    stacked = jnp.stack([UNEMBEDDING, 2 * UNEMBEDDING])

    def everything(function, over_rows):
        def total(w, h, t=tokens):
            return jnp.sum(jnp.cos(function(w, h, t).log_probs))

        def found(stacked, hidden):
            gradient = jax.grad(total, (0, 1))
            values = [of(UNEMBEDDING, hidden, tokens) for of in (function, over_rows)]
            one = function(UNEMBEDDING, hidden[0, 0], tokens[0, 0]).log_probs
            return values, one, gradient(UNEMBEDDING, hidden), jax.vmap(gradient)(stacked, hidden, tokens)

        return found

    ours = everything(blocked(), jax.vmap(blocked(), (None, 0, 0)))
    assert_same(ours, everything(reference, reference), stacked, hidden)


def test_padding_never_matters():
    valid = jnp.array([True, True, False, True, False])

    @jax.jit
    def everything(hidden, tokens):
        def value(unembedding, hidden):
            log_probs, entropy, _ = blocked(valid=valid, soft_cap=2.0)(unembedding, hidden, tokens)
            return jnp.sum(jnp.sin(log_probs) + entropy), (log_probs, entropy)

        gradient = jax.value_and_grad(value, (0, 1), has_aux=True)
        curvature = jax.jvp(lambda w: gradient(w, hidden)[1], (UNEMBEDDING,), (jnp.cos(UNEMBEDDING),))[1]
        return gradient(UNEMBEDDING, hidden), curvature

    clean = everything(HIDDEN, TOKENS)
    (_, (log_probs, entropy)), (_, grad_hidden) = clean[0]
    assert not any(np.asarray(x)[~valid].any() for x in (log_probs, entropy, grad_hidden))
    for number, integer in ((jnp.nan, -1), (jnp.inf, VOCABULARY), (-1e30, 2**40)):
        dirty = everything(jnp.where(valid[:, None], HIDDEN, number), jnp.where(valid, TOKENS, integer))
        jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    rows = np.flatnonzero(valid)
    alone = jax.jit(partial(ld.token_log_probs, soft_cap=2.0))(UNEMBEDDING, HIDDEN[rows], TOKENS[rows]).log_probs
    close(log_probs[rows], alone)
    # Outside jit, a token that is padding may be anything; one that is not may not.
    ld.token_log_probs(UNEMBEDDING, HIDDEN, jnp.where(valid, TOKENS, -1), valid=valid)


@pytest.mark.parametrize("token", [-1, 24, 2**32 + 7])  # in the padding of the last block; one that wraps around
def test_a_token_outside_the_vocabulary_is_impossible_and_not_another(token):
    tokens = TOKENS.at[2].set(token)

    def total(unembedding, hidden, tokens):
        log_probs = ld.token_log_probs(unembedding, hidden, tokens, block_size=5).log_probs
        return jnp.sum(jnp.where(jnp.isneginf(log_probs), 0, log_probs)), log_probs

    (_, log_probs), grads = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(UNEMBEDDING, HIDDEN, tokens)
    assert log_probs[2] == -jnp.inf
    assert np.isfinite(np.delete(log_probs, 2)).all()
    assert not np.any(grads[1][2])
    assert np.isfinite(grads[0]).all()
    with pytest.raises(ValueError, match=rf"0 .. 22, received {token} at index \(2,\)"):
        ld.token_log_probs(UNEMBEDDING, HIDDEN, tokens)


def test_a_token_that_is_not_allowed_is_impossible():
    def value(unembedding):
        return ld.token_log_probs(unembedding, HIDDEN, jnp.full(NUM, 20), allowed=ALLOWED, block_size=5).log_probs

    assert (value(UNEMBEDDING) == -jnp.inf).all()
    assert not np.any(jax.grad(lambda w: jnp.sum(value(w)))(UNEMBEDDING))
    every = jnp.broadcast_to(jnp.arange(VOCABULARY)[:, None], (VOCABULARY, NUM))
    states = jnp.broadcast_to(HIDDEN, (VOCABULARY, NUM, WIDTH))
    logs = ld.token_log_probs(UNEMBEDDING, states, every, allowed=ALLOWED, block_size=5).log_probs
    np.testing.assert_array_equal(logs > -jnp.inf, np.tile(ALLOWED[:, None], NUM))
    np.testing.assert_allclose(jnp.exp(logs).sum(0), 1, rtol=1e-12)


def test_integers_of_any_width_are_tokens():
    unembedding = normal(5, 300, WIDTH)  # more tokens than eight bits can tell apart
    for dtype in (jnp.int8, jnp.uint8, jnp.uint32, jnp.int64):
        found = ld.token_log_probs(unembedding, HIDDEN, TOKENS.astype(dtype)).log_probs
        close(found, reference(unembedding, HIDDEN, TOKENS).log_probs)


def test_half_precision_inputs_are_accumulated_in_single_precision():
    unembedding = normal(0, 64, 8).astype(jnp.bfloat16)
    hidden, tokens = normal(1, 1024, 8).astype(jnp.bfloat16) + jnp.bfloat16(0.5), jnp.zeros(1024, jnp.int32)

    @partial(jax.jit, static_argnums=0)
    def values_and_gradients(function, unembedding, hidden):
        values, pull = jax.vjp(lambda w, h: function(w, h, tokens).log_probs, unembedding, hidden)
        return values, pull(jnp.ones_like(values))

    exact = values_and_gradients(reference, *(x.astype(jnp.float64) for x in (unembedding, hidden)))
    # 32 blocks add to one gradient
    values, grads = values_and_gradients(partial(ld.token_log_probs, block_size=2), unembedding, hidden)
    assert values.dtype == jnp.float32
    assert all(g.dtype == jnp.bfloat16 for g in grads)

    def error(found, exact):
        return float(np.linalg.norm(np.asarray(found, np.float64) - exact) / np.linalg.norm(exact))

    assert error(values, exact[0]) < 1e-6
    rounding = [error(e.astype(jnp.bfloat16), e) for e in exact[1]]
    for found, e, least in zip(grads, exact[1], rounding, strict=True):
        assert error(found, e) < 1.01 * least  # rounded once, at the end
    twin_values, twin = values_and_gradients(reference, unembedding, hidden)
    assert error(twin_values, exact[0]) > 1e-3
    assert error(twin[1], exact[1][1]) > 1.5 * rounding[1]


def bytes_of(function, num, width, vocabulary):
    def value(unembedding, hidden, tokens, weights):
        return jnp.vdot(weights, function(unembedding, hidden, tokens).log_probs)

    tokens = jax.ShapeDtypeStruct((num,), jnp.int32)
    return temporary_bytes(jax.value_and_grad(value, (0, 1)), (vocabulary, width), (num, width), tokens, (num,))


@pytest.mark.usefixtures("blocks_of_a_cpu")
def test_memory_is_that_of_a_block():
    num, width, vocabulary = 2048, 64, 50257
    limit = num * vocabulary * 4 / 10
    assert bytes_of(ld.token_log_probs, num, width, vocabulary) < limit / 2
    assert bytes_of(reference, num, width, vocabulary) > 10 * limit  # the twin holds all logits at least once


def test_a_held_unembedding_costs_no_product():
    def products(argnums):
        def value(unembedding, hidden):
            return jnp.sum(ld.token_log_probs(unembedding, hidden, TOKENS, block_size=5).log_probs)

        return str(jax.make_jaxpr(jax.grad(value, argnums))(UNEMBEDDING, HIDDEN)).count("dot_general")

    assert (products((0, 1)), products(1), products(0)) == (4, 3, 3)


@pytest.mark.usefixtures("blocks_of_a_cpu")
@pytest.mark.parametrize(
    ("tokens", "vocabulary", "block"),
    [
        (2048, 50257, 1733),
        (2048, 128256, 2004),
        (2048, 50263, 2000),
        (8, 50257, 1733),
        (8, 1999, 1999),
        (10**6, 128000, 500),
    ],
)
def test_the_default_block_divides_the_vocabulary_where_it_can(tokens, vocabulary, block):
    assert _block_size(tokens, vocabulary, None) == block


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, r"hidden: .* \(5, 23\), received \(5, 3\); .*unembedding.T", {"unembedding": UNEMBEDDING.T}),
        (
            ValueError,
            r"hidden: expected shape \(4, 3\), received \(5, 3\); .*tokens.shape, D\)",
            {"tokens": TOKENS[:4]},
        ),
        (ValueError, r"unembedding: expected shape \(V, D\), received \(23,\)", {"unembedding": UNEMBEDDING[:, 0]}),
        (ValueError, r"unembedding: expected shape \(V, D\), received \(0, 3\)", {"unembedding": UNEMBEDDING[:0]}),
        (ValueError, r"allowed: expected shape \(23,\), received \(5,\)", {"allowed": jnp.ones(5, bool)}),
        (ValueError, r"valid: expected shape \(5,\), received \(5, 1\)", {"valid": jnp.ones((5, 1), bool)}),
        (ValueError, r"allowed: expected at least one", {"allowed": jnp.zeros(VOCABULARY, bool)}),
        (ValueError, r"block_size: expected a whole number >= 1, received 0", {"block_size": 0}),
        (ValueError, r"temperature: expected a positive number, received 0", {"temperature": 0}),
        (ValueError, r"temperature: expected shape \(\), received \(5,\)", {"temperature": jnp.ones(5)}),
        (ValueError, r"soft_cap: expected a positive number, received -1", {"soft_cap": -1.0}),
        (TypeError, r"tokens: expected dtype integer, received float64", {"tokens": TOKENS.astype(float)}),
        (TypeError, r"hidden: expected dtype floating, received int64", {"hidden": jnp.ones((5, 3), int)}),
        (TypeError, r"valid: expected dtype bool, received int64", {"valid": jnp.ones(5, int)}),
    ],
)
def test_bad_input_is_refused(error, message, change):
    arguments = {"unembedding": UNEMBEDDING, "hidden": HIDDEN, "tokens": TOKENS, **change}
    data = [arguments.pop(name) for name in ("unembedding", "hidden", "tokens")]
    with pytest.raises(error, match=message):
        ld.token_log_probs(*data, **arguments)


def never_step_by_step(params, observation):
    raise NotImplementedError


def answers(vocabulary=11):
    """Answers of random lengths to one prompt, a reward at the end of each, garbage after it."""
    keys, lengths, steps = jax.random.split(jax.random.key(1), 4), jnp.array([[6], [3], [1], [4]]), jnp.arange(6)[None]
    tokens, valid = jax.random.randint(keys[0], (4, 6), 0, vocabulary), steps < lengths
    rewards = jnp.where(steps == lengths - 1, jax.random.normal(keys[1], (4, 1)), 0.0)
    params = {"embedding": jax.random.normal(keys[2], (vocabulary, 3)), "mix": jax.random.normal(keys[3], (3, 3))}
    return params, trajectory(
        observations=jnp.where(valid, jnp.roll(tokens, 1, axis=1).at[:, 0].set(0), -5),
        actions=jnp.where(valid, tokens, 99),
        rewards=jnp.where(valid, rewards, jnp.nan),
        discounts=jnp.where(valid & (rewards != 0), 0.0, 1.0),
        valid=valid,
    )


@pytest.mark.slow
def test_sequence_likelihoods_feed_the_estimators():
    """The embedding is the unembedding; the hidden state of step t has seen the tokens before t."""
    params, taus = answers()
    estimators = [ld.RLOO(), ld.GRPO(group_size=4), ld.estimators.DrGRPO(group_size=2)]

    def under(function):
        def of_one(params, tau):
            hidden = jnp.tanh(jnp.cumsum(params["embedding"][tau.observations], axis=0) @ params["mix"])
            return function(params["embedding"], hidden, tau.actions).log_probs

        policy = ld.FunctionPolicy(never_step_by_step, log_factors=of_one)

        def everything(params):
            factors = ld.log_factors(params, policy, taus)
            drawn = taus._replace(behavior_log_probs=jax.lax.stop_gradient(factors))
            grads = [e.estimate(params, e.init(params), policy, drawn)[0].grads for e in estimators]
            return factors, ld.log_prob(params, policy, taus), grads

        return everything

    ((factors, _, grads),) = assert_same(under(partial(ld.token_log_probs, block_size=4)), under(reference), params)
    assert not np.any(np.asarray(factors)[~np.asarray(taus.valid)])
    assert all(np.linalg.norm(of["embedding"]) > 1e-3 for of in grads)
