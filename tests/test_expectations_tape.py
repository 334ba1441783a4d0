"""The tape: what a choice is scored with, that each tape is used once, and what else must raise."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import logderiv as ld
from logderiv._core.pytrees import pytree

LOO = "leave_one_out"
HALF: Any = 0.5
COIN = ld.Bernoulli(jnp.asarray(0.0))


def test_a_scored_sample_is_detached():
    """Normal(theta, 1), cost x^2: one gradient is x^2 (x - theta), not the 2 x of the path."""

    def program(theta, tape):
        tape, x = tape.sample(ld.Normal(theta, jnp.asarray(1.0)))
        return tape.cost(jnp.square(x))

    value, grad = jax.jit(jax.value_and_grad(ld.expectation(program)))(HALF, jax.random.key(0))
    assert min(abs(grad - value * (x - 0.5)) for x in (jnp.sqrt(value), -jnp.sqrt(value))) < 1e-12


def test_a_batch_of_choices_is_scored_as_their_sum():
    logits = jnp.array([0.1, 0.2, -0.4])
    tape, values = ld.Tape.start(jax.random.key(0)).sample(ld.Bernoulli(logits))
    assert values.shape == (3,)
    np.testing.assert_allclose(tape.log_prob, jnp.sum(ld.Bernoulli(logits).log_prob(values)), rtol=1e-15)


def test_other_libraries(standard_promotion):
    numpyro = pytest.importorskip("numpyro.distributions")

    def program(rate, tape):
        tape, count = tape.sample(numpyro.Poisson(rate))
        tape, x = tape.sample_pathwise(numpyro.Normal(rate, 1.0))
        return tape.cost(count + x)

    grad = jax.jit(jax.grad(ld.expectation(program, num_samples=2000, baseline=LOO)))(2.0, jax.random.key(0))
    assert abs(grad - 2.0) < 0.3
    for discrete in (numpyro.Bernoulli(logits=0.3), numpyro.Categorical(logits=jnp.zeros(3)), numpyro.Poisson(2.0)):
        with pytest.raises(TypeError, match="differentiable in its parameters"):
            ld.Tape.start(jax.random.key(0)).sample_pathwise(discrete)


@pytree
class Foreign:
    """An exponential waiting time whose sampler JAX cannot differentiate."""

    rate: jax.Array

    def log_prob(self, value):
        return jnp.log(self.rate) - self.rate * value

    def sample(self, key):
        uniform = jax.random.uniform(key)
        like = jax.ShapeDtypeStruct((), uniform.dtype)
        return jax.pure_callback(lambda u, r: -np.log(u) / r, like, uniform, self.rate, vmap_method="sequential")


def test_a_sampler_needs_no_derivative():
    def program(rate, tape):
        tape, wait = tape.sample(Foreign(rate))
        return tape.cost(wait)

    value, grad = jax.value_and_grad(ld.expectation(program))(2.0, jax.random.key(0))
    np.testing.assert_allclose(grad, value * (0.5 - value), rtol=1e-12)


# What must raise.


def _twice(params, tape):
    tape.sample(COIN)
    return tape.sample(COIN)[0]


def _dropped(params, tape):
    tape.cost(1.0)
    return tape


def _returned_after_a_scan(params, tape):
    lax.scan(lambda tape, _: (tape.sample(COIN)[0], None), tape, None, length=2)
    return tape


SPENT = {
    "sampled twice": _twice,
    "cost dropped": _dropped,
    "returned after a scan": _returned_after_a_scan,
    "used after a scan": lambda params, tape: _returned_after_a_scan(params, tape).cost(1.0),
    "carried": lambda params, tape: lax.scan(lambda t, _: (_dropped(params, t), None), tape, None, length=2)[0],
    "two closures": lambda params, tape: lax.cond(params > 0, lambda: tape.cost(1.0), lambda: tape.cost(2.0)),
    "in a plate": lambda params, tape: tape.plate(lambda t, x: (_dropped(params, t), None), jnp.ones(2))[0],
}


@pytest.mark.parametrize("program", SPENT.values(), ids=SPENT)
def test_a_spent_tape_raises(program):
    with pytest.raises(ValueError, match="tape: used twice"):
        ld.expectation(program)(HALF, jax.random.key(0))


def test_a_good_tape_passes_without_jit():
    def program(logit, tape):
        tape = lax.scan(lambda tape, x: (tape.cost(x), None), tape, jnp.ones(2))[0]
        return lax.cond(logit > 0, lambda tape: tape.cost(1.0), lambda tape: tape, tape)

    with jax.disable_jit():
        assert float(ld.expectation(program)(HALF, jax.random.key(0))) == 3.0


@pytest.mark.parametrize(
    ("program", "error", "match"),
    [
        (lambda p, tape: tape.sample_pathwise(ld.Categorical(jnp.zeros(3)))[0], TypeError, "received Categorical"),
        (lambda p, tape: tape.sample_pathwise(COIN)[0], TypeError, "received Bernoulli"),
        (lambda p, tape: tape.sample(0.5)[0], TypeError, "log_prob method, received float"),
        (lambda p, tape: tape.sample(COIN, baseline=jnp.ones(2))[0], ValueError, "baseline: expected a scalar"),
        (lambda p, tape: tape.score(0.5, 1), TypeError, "log_prob method, received float"),
        (lambda p, tape: tape.cost(jnp.ones(2)), ValueError, r"a scalar for one sample, received shape \(2,\)"),
        (lambda p, tape: tape.sample(COIN), TypeError, "the program: expected to return its tape, received tuple"),
        (lambda p, tape: tape.plate(lambda t, x: (x, t), jnp.ones(2))[0], TypeError, "the function of a plate"),
        (lambda p, tape: tape.plate(lambda t, x: (t, x), 1.0)[0], ValueError, "xs: expected leaves with one common"),
    ],
)
def test_a_wrong_program_is_told_so(program, error, match):
    with pytest.raises(error, match=match):
        ld.expectation(program)(HALF, jax.random.key(0))


def test_a_tape_that_a_plain_vmap_has_split_is_refused_and_a_plate_is_right():
    """Three coins cost 3 sigma(0), with the derivative 3 sigma(0) sigma(-0). As it was, `jax.vmap` gave a third of both, in silence."""

    def part(tape: Any, _: Any) -> Any:
        tape, x = tape.sample(ld.Bernoulli(jnp.zeros(())))
        return tape.cost(x)

    three = jnp.arange(3)
    splits: list[Any] = [
        lambda tape: jax.vmap(lambda x: part(tape, x))(three),
        lambda tape: jax.vmap(part, (None, 0))(tape, three),
        lambda tape: lax.map(lambda x: part(tape, x), three),
        lambda tape: jax.vmap(lambda x: part(tape, x))(three).cost(1.0),
        lambda tape: jax.vmap(lambda x: part(tape, x))(three).sample(COIN)[0],
        lambda tape: jax.vmap(jax.vmap(lambda x: part(tape, x)))(three[None]),
        lambda tape: tape.plate(lambda t, x: (jax.vmap(lambda y: part(t, y))(three), x), three)[0],
    ]
    for split in splits:
        with pytest.raises(ValueError, match=r"split by a plain jax.vmap .*tape.plate\(function, xs\)"):
            ld.expectation(lambda _, tape, split=split: split(tape))(HALF, jax.random.key(0))

    def coins(logit: Any, tape: Any) -> Any:
        def coin(tape: Any, _: Any) -> Any:
            tape, x = tape.sample(ld.Bernoulli(logit))
            return tape.cost(x), None

        return tape.plate(coin, three)[0]

    value, slope = jax.jit(jax.value_and_grad(ld.expectation(coins, num_samples=4000)))(0.0, jax.random.key(1))
    np.testing.assert_allclose((value, slope), (1.5, 0.75), atol=0.1)  # six standard errors


def test_costs_of_any_dtype_are_those_of_float32_and_complex_ones_are_refused():
    tape = lambda: ld.Tape.start(jax.random.key(0))  # noqa: E731
    for cost in (True, 3, np.int8(3), jnp.uint8(200), jnp.bfloat16(0.37), np.float16(0.37), jnp.float32(0.37)):
        np.testing.assert_array_equal(tape().cost(cost).cost(cost).total, 2 * float(cost))
    for call in (lambda: tape().cost(1j), lambda: tape().sample(COIN, baseline=1j)):
        with pytest.raises(TypeError, match=r"(cost|baseline): expected real numbers, received complex128"):
            call()
    with pytest.raises(TypeError, match="params: expected real numbers"):
        ld.expectation(lambda params, tape: tape.cost(1.0))(jnp.zeros(2, complex), jax.random.key(0))
