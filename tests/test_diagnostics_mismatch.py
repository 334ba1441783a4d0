"""What drew the answers beside what is trained: by hand, by expectations over every answer, and what must not matter."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld
from logderiv.diagnostics import sampler_mismatch

from .answers import graded

NAN = np.nan
TRAINER = jnp.log(jnp.array([[0.5, 0.25, NAN], [0.9, 0.5, 0.2]]))
SAMPLER = jnp.log(jnp.array([[0.5, 0.5, 0.3], [0.6, NAN, 0.4]]))
MASK = jnp.array([[True, True, False], [True, False, True]])  # a hole: a token that a tool wrote


def as_dict(found):
    return {name: float(x) for name, x in found._asdict().items()}


def test_by_hand():
    found = sampler_mismatch(TRAINER, SAMPLER, MASK)
    tokens = np.array([1, 0.5, 1.5, 0.5])
    for level, ratios in ((found.tokens, tokens), (found.sequences, np.array([0.5, 0.75]))):
        logs = np.log(ratios)
        expected = {
            "number": len(ratios),
            "mean": np.mean(np.abs(logs)),
            "largest": np.log(2),
            "k1": -np.mean(logs),
            "k3": np.mean(ratios - 1 - logs),
            "chi_squared": np.mean((ratios - 1) ** 2),
            "effective": np.sum(ratios) ** 2 / len(ratios) / np.sum(ratios**2),
            "mass": np.mean(ratios),
        }
        assert as_dict(level) == pytest.approx(expected, rel=1e-14)


@pytest.fixture(scope="module")
def world():
    model = ld.processes.TokenModel(ld.MLP(3, hidden=()), graded, vocabulary=3, end=0, horizon=3)
    flat, unravel = ravel_pytree(model.policy.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(5))
    trainer, sampler = (unravel(flat + 0.7 * jax.random.normal(key, flat.shape)) for key in keys)
    return model, trainer, sampler, ld.exact.enumerate_trajectories(model, horizon=3)


@pytest.mark.parametrize("top_k", [None, 2])
def test_expectations_over_every_answer(world, top_k):
    """Each answer alone, weighed by what draws it: k1 and k3 give KL(μ‖π), and the mass is what π gives to what may be drawn."""
    model, params, drawn_by, every = world
    policy = model.policy if top_k is None else ld.policies.Truncated(model.policy, top_k=top_k)
    chances = np.asarray(ld.prob(drawn_by, policy, every, environment=model))
    every = jax.tree.map(lambda x: x[chances > 0], every)
    logs, of_sampler = ld.log_factors(params, model.policy, every), ld.log_factors(drawn_by, policy, every)
    chances, probs = chances[chances > 0], np.exp(np.sum(logs, axis=1))

    @jax.jit
    @jax.vmap
    def alone(trainer, sampler, mask):
        return sampler_mismatch(trainer[None], sampler[None], mask[None]).sequences

    found: Any = jax.tree.map(lambda x: chances @ np.asarray(x), alone(logs, of_sampler, every.valid))
    divergence = chances @ np.log(chances / probs)
    np.testing.assert_allclose(found.k1, divergence, rtol=1e-12)
    np.testing.assert_allclose(found.mass, probs.sum(), rtol=1e-12)
    np.testing.assert_allclose(found.k3, divergence + probs.sum() - 1, rtol=1e-12)
    np.testing.assert_allclose(found.chi_squared, chances @ (probs / chances - 1) ** 2, rtol=1e-12)
    assert abs(found.k1 - probs @ np.log(probs / chances)) > 1e-2  # the other way around is another number
    if top_k is None:
        exact = ld.exact.divergences(drawn_by, params, model.policy, model, horizon=3)
        divergence = float(exact.reverse_kl)
        np.testing.assert_allclose([found.k1, found.k3, found.mass], [divergence, divergence, 1.0], rtol=1e-12)
    else:
        assert found.mass < 0.95


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_k3_of_the_rounding_of_an_engine_keeps_its_digits_and_its_derivatives(dtype):
    """Against its series, down to d = 1e-9; the difference itself, the wrong twin, loses them."""
    sizes = np.concatenate([10.0 ** np.arange(-9, 0), [0.3, 0.49, 0.51, 2.0]])
    d = jnp.asarray(np.concatenate([sizes, -sizes]), dtype)
    exact = np.asarray(sum(np.asarray(d, np.longdouble) ** k / math.factorial(k) for k in range(2, 40)), float)

    def k3(d):
        return sampler_mismatch(d[None, None], jnp.zeros((1, 1), dtype)).tokens.k3

    found = [jax.jit(jax.vmap(f))(d) for f in (k3, jax.grad(k3), jax.grad(jax.grad(k3)))]
    eps = float(jnp.finfo(dtype).eps)
    for got, expected in zip(found, (exact, np.expm1(np.asarray(d, float)), np.exp(np.asarray(d, float))), strict=True):
        np.testing.assert_allclose(got, expected, rtol=8 * eps)
    assert np.abs(np.asarray(jnp.expm1(d) - d, float) / exact - 1).max() > 1e3 * eps
    assert [float(f(jnp.zeros((), dtype))) for f in (k3, jax.grad(k3), jax.grad(jax.grad(k3)))] == [0, 0, 1]


def test_packed_rows_are_padded_ones():
    logs = np.random.default_rng(0).normal(size=(2, 3, 5))
    lengths = np.array([3, 0, 5])
    mask = np.arange(5) < lengths[:, None]
    trainer, sampler = np.where(mask, logs, NAN)
    padded = sampler_mismatch(trainer, sampler, mask)
    row, segments = (np.full((*shape, 12), fill) for shape, fill in (((2,), NAN), ((), -1)))
    row[:, :8], segments[:8] = logs[:, mask], np.repeat(np.arange(3), lengths)
    packed = jax.jit(sampler_mismatch)(row[:1], row[1:], segments=segments[None])
    for one, two in zip(padded, packed, strict=True):
        assert as_dict(one) == pytest.approx(as_dict(two), rel=1e-14)
    assert as_dict(padded.sequences)["number"] == 2  # an answer without tokens is none


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_the_effective_sample_size_has_a_number_where_ratios_have_none(shift):
    found = sampler_mismatch(jnp.array([[0.0], [np.log(3)]]) + shift, jnp.zeros((2, 1)))
    np.testing.assert_allclose([found.tokens.effective, found.sequences.effective], 16 / 2 / 10, rtol=1e-12)


def test_what_counts_nowhere_is_0_and_what_is_impossible_is_infinite():
    nothing = sampler_mismatch(TRAINER, SAMPLER, jnp.zeros((2, 3), bool))
    assert set(as_dict(nothing.tokens).values()) == set(as_dict(nothing.sequences).values()) == {0.0}
    found = sampler_mismatch(jnp.array([[-np.inf, 0.0]]), jnp.zeros((1, 2))).tokens
    assert (found.k1, found.largest, found.mass, found.effective) == (np.inf, np.inf, 0.5, 0.5)


def test_half_precision_is_summed_in_single():
    logs = jnp.full((1, 4096), -1.0, jnp.bfloat16)
    found = sampler_mismatch(logs, jnp.zeros((1, 4096), jnp.bfloat16))
    assert found.sequences.k1.dtype == jnp.float32
    assert (found.tokens.k1, found.sequences.k1) == (1, 4096)


def test_it_prints_as_a_table():
    lines = str(sampler_mismatch(TRAINER, SAMPLER, MASK)).splitlines()
    assert lines[1].split() == ["tokens", "sequences"]
    assert lines[2].split() == ["number", "4", "2"]
    assert lines[9].split() == ["mass", "kept", "0.875", "0.625"]
    assert jax.jit(lambda x: len(str(sampler_mismatch(x, x))))(TRAINER) < 40  # without numbers, no table


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TRAINER, SAMPLER[:1]), ValueError, "sampler: expected shape"),
        ((TRAINER, SAMPLER, MASK[:1]), ValueError, "mask: expected shape"),
        ((TRAINER, SAMPLER, jnp.ones((2, 3))), TypeError, "mask: expected a boolean mask"),
        ((TRAINER[0], SAMPLER[0]), ValueError, r"expected shape \(N, T\)"),
        ((TRAINER.astype(complex), SAMPLER), TypeError, "trainer"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        sampler_mismatch(*arguments)
