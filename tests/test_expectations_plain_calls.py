"""Plain calls against the tape: the same draws from the same keys, the same derivatives, and no larger a compiled program."""

import gc
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

import logderiv as ld

from .models import PUBLISHED
from .mostly import mostly_slow

LOO = "leave_one_out"


def flip(tape: Any, logit: Any) -> Any:
    tape, x = tape.sample(ld.Bernoulli(logit))
    return tape, x.astype(float)


def pick(tape: Any, *logits: Any) -> Any:
    return tape.sample(ld.Categorical(jnp.stack([jnp.asarray(x, float) for x in logits])))


def urn(theta, tape):
    def draw(carry, _):
        tape, red = carry
        tape, new = flip(tape, theta @ jnp.stack([jnp.ones(()), red]))
        return (tape.cost(new * red / 2), red + new), new

    (tape, red), _ = lax.scan(draw, (tape, jnp.zeros(())), length=4)
    return tape.cost((red - 1) ** 2)


def menu(theta, tape):
    def plain(tape, price):
        return tape.cost(price), -price

    def second(tape, price):
        tape, x = flip(tape, theta[1])
        return tape, price * x

    def third(tape, price):
        tape, start = flip(tape, theta[0] - 1)
        tape, x = flip(tape.cost(2 * start), theta[1] + start)
        return tape, start + price * x

    tape, dish = pick(tape, theta[0], theta[1], 0.0)
    tape, joy = lax.switch(dish, (plain, second, third), tape, 1 + theta[0])
    tape, tip = flip(tape.cost(joy**2), joy - 0.5)
    return tape.cost(tip * (3 - joy))


def crowd(theta, tape):
    tape, warm = flip(tape, theta[0])

    def person(tape, taste):
        tape, goes = flip(tape, theta[1] * taste + warm)
        tape, stays = flip(tape.cost(theta[0] * taste * goes), theta[0] - goes)
        return tape.cost(1 + taste * stays), goes * stays

    tape, both = tape.plate(person, jnp.array([1.0, 2.0]))
    return tape.cost(warm * both.sum() ** 2)


def family(theta, tape):
    def generation(carry, _):
        def place(carry, i):
            tape, born = carry

            def children(tape):
                tape, x = pick(tape, 0.3 * alive, *theta)
                return tape, x.astype(float)

            tape, more = lax.cond(i < alive, children, lambda tape: (tape, jnp.zeros(())), tape)
            return (tape, born + more), None

        tape, alive = carry
        (tape, born), _ = lax.scan(place, (tape, jnp.zeros(())), jnp.arange(3.0))
        return (tape.cost(theta[1] * born), jnp.minimum(born, 3)), None

    (tape, alive), _ = lax.scan(generation, (tape, jnp.ones(())), length=3)
    return tape.cost(alive**2)


PROGRAMS = {"urn": urn, "menu": menu, "crowd": crowd, "family": family}


def both(name: str, **options: Any) -> list[Any]:
    return [ld.expectation(x, **options) for x in (PUBLISHED[name].model, PROGRAMS[name])]


def derivatives(objective: Any, theta: Any, *, hessian: bool) -> Any:
    """Of each of many keys, one run at a time."""

    def of(key):
        def frozen(theta):
            return objective(theta, jax.random.clone(key))

        found = jax.value_and_grad(frozen)(theta)
        return (*found, jax.hessian(frozen)(theta)) if hessian else found

    return jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(7), 64))


@pytest.mark.parametrize("baseline", [None, LOO])
@pytest.mark.parametrize("name", mostly_slow(PROGRAMS, ("crowd",)))
def test_value_and_derivatives_are_those_of_the_tape(name, baseline):
    objectives = both(name, num_samples=3 if baseline else 1, baseline=baseline)
    ours, theirs = (derivatives(x, PUBLISHED[name].params, hessian=baseline is None) for x in objectives)
    for found, expected in zip(ours, theirs, strict=True):
        assert np.std(expected) > 1e-3
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13 * np.max(np.abs(expected)))


def digits(tell: Callable[[Any, Any, Any], Any], plate: Any) -> Any:
    """A program whose cost is all of its draws, as the digits of a number in base 4: `tell(tape, logits, digit)` makes one."""

    def program(theta, tape):
        def step(tape, digit):
            return tell(tape, jnp.stack([theta, digit / 4, -theta]), digit)[0], None

        def row(tape, digit):
            tape, x = tell(tape, jnp.stack([theta, -digit / 8]), digit)
            return lax.cond(x > 0, lambda tape: step(tape, digit + 1)[0], lambda tape: tape, tape), x

        tape = lax.scan(step, tape, jnp.arange(4.0))[0]
        return plate(tape, row, jnp.array([4.0, 6.0, 8.0]))[0]

    return program


def test_draws_are_those_of_the_tape():
    def by_tape(tape, logits, digit):
        tape, x = tape.sample(ld.Categorical(logits))
        return tape.cost(x.astype(float) * 4**digit), x

    def plainly(_, logits, digit):
        x = ld.sample(ld.Categorical(logits))
        ld.cost(x.astype(float) * 4**digit)
        return None, x

    tape = digits(by_tape, lambda tape, row, xs: tape.plate(row, xs))
    plain = digits(plainly, lambda _, row, xs: (None, ld.plate(lambda x: row(None, x)[1])(xs)))
    found, expected = (
        jax.jit(jax.vmap(ld.expectation(model), (None, 0)))(0.3, jax.random.split(jax.random.key(3), 100))
        for model in (lambda theta: plain(theta, None), tape)
    )
    assert len(set(np.asarray(expected).tolist())) > 80
    np.testing.assert_array_equal(found, expected)


def test_a_choice_that_was_drawn_with_a_key_of_ones_own_is_scored_as_one_that_is_sampled():
    def own(theta):
        x = ld.Bernoulli(lax.stop_gradient(theta[0])).sample(ld.key())
        ld.score(ld.Bernoulli(theta[0]), x)
        ld.cost(x.astype(float) * theta[1])

    def sampled(theta):
        ld.cost(ld.sample(ld.Bernoulli(theta[0])).astype(float) * theta[1])

    theta = jnp.array([0.3, 2.0])
    found, expected = (derivatives(ld.expectation(x), theta, hessian=True) for x in (own, sampled))
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-13)


@pytest.fixture
def optimized():
    """Programs as users have them."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def equations(jaxpr: Any) -> int:
    """At any depth, without calls, which compute nothing by themselves."""
    inner = sum(equations(x) for eqn in jaxpr.eqns for x in jaxprs_in_params(eqn.params))
    return inner + sum("call" not in eqn.primitive.name and eqn.primitive.name != "jit" for eqn in jaxpr.eqns)


def size(objective: Any, theta: Any) -> dict[str, int]:
    """Of a value with its gradient: equations, operations of the compiled program, and its memory beside inputs and outputs."""
    traced = jax.jit(jax.value_and_grad(objective)).trace(theta, jax.random.key(0))
    compiled: Any = traced.lower().compile()
    return {
        "equations": equations(traced.jaxpr),
        "operations": len(re.findall(r"^\s+(?:ROOT )?%?[\w.-]+ = ", compiled.as_text(), re.MULTILINE)),
        "memory": compiled.memory_analysis().temp_size_in_bytes,
    }


@pytest.mark.parametrize("name", mostly_slow(PROGRAMS, ("urn",)))
def test_the_compiled_program_is_no_larger_than_with_a_tape(name, optimized):
    """The equations are as many, or JAX's counters of a scan more (3 of 180 on JAX 0.12); XLA's operations differ by a few in a thousand."""
    ours, theirs = (size(x, PUBLISHED[name].params) for x in both(name, num_samples=16, baseline=LOO))
    assert theirs["operations"] > 100
    assert ours["equations"] <= theirs["equations"] + 3
    assert all(ours[what] <= 1.02 * theirs[what] for what in theirs), (ours, theirs)


@pytest.mark.parametrize("pays", [True, False])
def test_what_a_model_returns_beside_its_cost_is_stacked_over_the_runs(pays):
    def model(theta):
        x = ld.sample(ld.Bernoulli(theta)).astype(float)
        if pays:
            return ld.cost(3 * x), {"draw": x}
        return 3 * x, {"draw": x}

    objective = ld.expectation(model, num_samples=50, baseline=LOO, has_aux=True)
    (value, aux), slope = jax.value_and_grad(objective, has_aux=True)(0.3, jax.random.key(0))
    alone = ld.expectation(lambda theta: model(theta)[0], num_samples=50, baseline=LOO)
    assert set(aux["draw"].tolist()) == {0.0, 1.0}
    np.testing.assert_allclose(value, 3 * aux["draw"].mean(), rtol=1e-14)
    np.testing.assert_allclose(jax.grad(alone)(0.3, jax.random.key(0)), slope, rtol=1e-14)


def test_a_model_may_close_over_what_an_outer_function_traces():
    """Derivatives flow there, too, as they do with a tape."""

    def cost(x, weight):
        return x.astype(float) * jnp.sin(weight) + weight**2

    def outer(weight, plain, key):
        def model(theta):
            ld.cost(cost(ld.sample(ld.Bernoulli(theta * weight)), weight))

        def program(theta, tape):
            tape, x = tape.sample(ld.Bernoulli(theta * weight))
            return tape.cost(cost(x, weight))

        return ld.expectation(model if plain else program, num_samples=20)(0.3, key)

    def slopes(plain):
        slope = jax.grad(outer)
        return jax.jit(
            lambda weight: (
                slope(weight, plain, jax.random.key(0)),
                jax.hessian(outer)(weight, plain, jax.random.key(0)),
            )
        )(0.7)

    found, expected = slopes(True), slopes(False)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    assert np.min(np.abs(expected)) > 1e-2


@jax.custom_jvp
def steep(x):
    """x, with a derivative of 7 by its own rule."""
    return x


@jax.custom_vjp
def steep_in_reverse(x):
    return x


steep.defjvp(lambda x, t: (steep(*x), 7 * t[0]))
steep_in_reverse.defvjp(lambda x: (x, None), lambda _, g: (7 * g,))

NESTS: dict[str, Any] = {  # around `rule`, beside a choice that has no influence
    "alone": lambda rule, theta, choice: rule(theta) + choice(),
    "jit": lambda rule, theta, choice: jax.jit(lambda x: rule(x) + choice())(theta),
    "checkpoint": lambda rule, theta, choice: jax.checkpoint(lambda x: rule(x) + choice())(theta),
    "scan": lambda rule, theta, choice: lax.scan(lambda x, _: (rule(x) + choice(), None), theta, length=1)[0],
    "scan in scan": lambda rule, theta, choice: lax.scan(
        lambda x, _: (NESTS["scan"](rule, x, choice), None), theta, length=1
    )[0],
    "cond": lambda rule, theta, choice: lax.cond(choice() < 1, lambda x: rule(x) + choice(), lambda x: x, theta),
    "plate": lambda rule, theta, choice: ld.plate(lambda x: rule(theta * x) + choice())(jnp.ones(1)).sum(),
    "bounded_while_loop": lambda rule, theta, choice: ld.bounded_while_loop(
        lambda carry: carry[1], lambda carry: (rule(carry[0]) + choice(), False), (theta, True), max_steps=1
    )[0][0],
}


@pytest.mark.parametrize("rule", [steep, steep_in_reverse])
@pytest.mark.parametrize("nest", NESTS)
def test_derivative_rules_of_the_functions_that_a_model_calls_hold(nest, rule):
    """JAX's `discharge_state` drops them by default, in silence: 1 for 7."""

    def model(theta):
        ld.cost(NESTS[nest](rule, theta, lambda: 0.0 * ld.sample(ld.Bernoulli(jnp.zeros(()))).astype(float)))

    modes = (jax.grad, jax.jacfwd) if rule is steep else (jax.grad,)
    slopes = [jax.jit(mode(ld.expectation(model)))(0.3, jax.random.key(0)) for mode in modes]
    np.testing.assert_allclose(slopes, 7.0, rtol=1e-12)


@pytest.mark.slow
def test_a_hundred_calls_leave_nothing_more_behind_than_three():
    """Counted: the Python objects that are alive, cache entries among them; a lambda made anew each time does leave some."""

    def alive():
        gc.collect()
        return len(gc.get_objects())

    def growth(calls: Callable[[int], Any], number: int) -> int:
        for i in range(3):
            calls(i)
        before = alive()
        for i in range(number):
            calls(3 + i)
        return alive() - before

    def model(p):
        return ld.sample(ld.Bernoulli(p)).astype(float)

    gradient = jax.grad(ld.expectation(model, num_samples=4, baseline=LOO))
    assert growth(lambda i: gradient(0.3, jax.random.key(i)), 100) < 50  # not one for each call
    assert growth(lambda i: ld.expectation(lambda p: model(p), num_samples=4)(0.3, jax.random.key(i)), 10) > 100
