"""Sums over tokens with their gradient in one pass: the plain form's numbers at every order, three products, the memory of a chunk."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.likelihood.logits import Arithmetic
from tests.agreement import assert_same, value
from tests.mostly import slow
from tests.plain_tokens import multiplications, normal, numbers_of

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


def test_python_numbers_are_captured_and_returned():
    slope = jax.grad(lambda b: ld.token_sum(lambda t: b * t.log_prob, UNEMBEDDING, HIDDEN, TOKENS).value)(2.0)
    np.testing.assert_allclose(slope, jnp.sum(numbers_of(UNEMBEDDING, HIDDEN, TOKENS).log_prob), rtol=1e-12)
    assert ld.token_sum(lambda t: 1.5, UNEMBEDDING, HIDDEN, TOKENS).value == 1.5 * NUM


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


def temporary(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    analysis: Any = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return analysis.temp_size_in_bytes


def test_memory_is_that_of_a_chunk_and_of_the_gradient_that_is_asked_for():
    num, width, vocabulary, chunk = 2048, 64, 16384, 64
    shapes = (vocabulary, width), (num, width), (num,)

    def total(unembedding, hidden, weights):
        return ld.token_sum(weighted, unembedding, hidden, jnp.zeros(num, jnp.int32), weights, chunk_size=chunk).value

    logits, of_unembedding = 4 * chunk * vocabulary, 4 * vocabulary * width
    held = temporary(jax.value_and_grad(total, 1), *shapes)
    assert held < 3 * logits + 4 * 4 * num * width
    both = temporary(jax.value_and_grad(total, (0, 1)), *shapes)
    assert both < 3 * logits + 2 * of_unembedding + 4 * 4 * num * width
    assert both < 4 * num * vocabulary / 4  # all logits, of which the plain form keeps one at least

    def along(unembedding, hidden, weights):
        gradient = lambda w, h: jax.grad(total, (0, 1))(w, h, weights)  # noqa: E731
        return jax.jvp(gradient, (unembedding, hidden), (unembedding, hidden))[1]

    if jax.default_backend() == "cpu":  # a GPU's compiler keeps a copy of the logits more
        assert temporary(along, *shapes) < 3 * both


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
