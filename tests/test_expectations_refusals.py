"""What a model may not do is refused at the file and line of the user's call, with what to do; what stands beside it is not."""

import functools
import inspect
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback

import logderiv as ld

from . import refusals_of_arguments, refusals_of_calls, refusals_of_transformations
from .refusals import coin, jitted

POINT: Any = 0.3
ROWS = np.arange(3.0)
REFUSED = refusals_of_transformations.TABLE | refusals_of_calls.TABLE | refusals_of_arguments.TABLE
ALLOWED: dict[str, tuple[Any, Any]] = {}


def allowed(cost):
    """A row: the model, and its expected cost as a function of p, the probability of a one."""

    def add(model):
        ALLOWED[model.__name__] = model, cost
        return model

    return add


def value(model):
    return ld.expectation(model)(POINT, jax.random.key(0))


def slope(model):
    objective = ld.expectation(model, num_samples=2, baseline="leave_one_out")
    return jax.jit(jax.grad(objective))(POINT, jax.random.key(0))


def listed(model):
    return ld.exact.program_value(jnp.asarray(POINT), model, num_choices=3, num_outcomes=2)


def places(function):
    """The lines of a function that end in `# here`, as a message has them."""
    lines, first = inspect.getsourcelines(inspect.unwrap(function))
    numbers = [str(first + i) for i, line in enumerate(lines) if line.rstrip().endswith("# here")]
    assert numbers
    file = re.escape(Path(inspect.getfile(inspect.unwrap(function))).name)
    return rf"{file}(:|\", line )({'|'.join(numbers)})\b"


def assert_told(caught, function, words):
    message = str(caught.value)
    assert re.search(places(function), message), message
    assert re.search(words, message, re.DOTALL), message


@pytest.mark.parametrize("run", [value, slope, listed])
@pytest.mark.parametrize("name", REFUSED)
def test_what_a_model_may_not_do_is_refused_at_its_line(name, run):
    model, words, in_lists = REFUSED[name]
    if run is listed and not in_lists:
        pytest.skip("the exact value makes no such choice, and reruns nothing")
    with pytest.raises((TypeError, ValueError)) as caught:
        run(model)
    assert_told(caught, model, words)


def choices_at_once(theta):
    ld.cost(ld.sample(ld.Bernoulli(theta * ROWS)).sum().astype(float))  # here


def test_choices_at_once_are_drawn_but_not_listed():
    assert np.isfinite(slope(choices_at_once))
    with pytest.raises(TypeError) as caught:
        ld.exact.program_derivatives(POINT, ld.expectation(choices_at_once), order=1, num_choices=3, num_outcomes=2)
    assert_told(caught, choices_at_once, r"sample of Bernoulli, \(3,\) choices at once.*logderiv\.plate")


def a_none_of_its_own(theta):
    ld.cost(coin(theta))
    raise TypeError("expected a number, received one of my own kind")


def test_another_error_of_the_user_stays_as_it_is():
    with pytest.raises(TypeError, match=r"^expected a number, received one of my own kind\n"):
        value(a_none_of_its_own)


# What JAX has, and is no mistake.


@allowed(lambda p: 3 * p)
def a_vmap_and_a_gradient_of_what_has_no_choice(theta):
    ld.cost(jax.grad(lambda x: jax.vmap(jnp.square)(x * ROWS[1:2]).sum())(1.5) * coin(theta))


@allowed(lambda p: 1 + p)
def a_ref_of_its_own(theta):
    total = jax.new_ref(jnp.ones(()))
    total[...] = total[...] + coin(theta)
    ld.cost(total[...])


@allowed(lambda p: p)
def a_returned_call_of_cost(theta):
    return ld.cost(coin(theta))


@allowed(lambda p: 2 * p)
def a_traced_number_of_turns(theta):
    turns = (2 + 0 * theta).astype(int) if isinstance(theta, jax.Array) else 2
    ld.cost(lax.fori_loop(0, turns, lambda _, total: total + coin(theta), jnp.zeros(())))


@allowed(lambda p: p**2)
def a_shape_that_is_asked_for(theta):
    like = jax.eval_shape(jitted, theta)
    ld.cost(jnp.prod(jnp.stack([jitted(theta).astype(like.dtype), coin(theta)])))


@allowed(lambda p: p)
def no_jit(theta):
    with jax.disable_jit():
        ld.cost(lax.cond(coin(theta) > 0, lambda: lax.scan(lambda c, x: (c + x, None), 0.0, ROWS[:2])[0], lambda: 0.0))


@allowed(lambda p: p)
def a_custom_rule_of_what_has_no_choice(theta):
    @jax.custom_jvp
    def same(x):
        return x

    same.defjvp(lambda x, t: (x[0], t[0]))
    ld.cost(same(coin(same(theta))))


def _with_another_argument(model):
    @functools.wraps(model)
    def call(theta):
        return model(theta, 2.0)

    return call


@allowed(lambda p: 2 * p)
@_with_another_argument
def a_decorator_that_passes_another_argument(theta, factor):
    ld.cost(factor * coin(theta))


@allowed(lambda p: p + (1 + 1 / (1 + np.exp(-1.0))))
def an_expectation_within(theta):
    def inside(logit):
        ld.cost(1 + jax.nn.sigmoid(logit))

    ld.cost(coin(theta))
    ld.cost(ld.expectation(inside)(1.0, jax.random.key(0)))


@pytest.mark.parametrize("name", ALLOWED)
def test_what_stands_beside_it_is_right(name):
    model, cost = ALLOWED[name]
    sigmoid = 1 / (1 + np.exp(-POINT))
    np.testing.assert_allclose(listed(model), cost(sigmoid), rtol=1e-12)
    assert np.all(np.isfinite([value(model), jax.jit(jax.jacfwd(ld.expectation(model)))(POINT, jax.random.key(1))]))


def _by_a_rule(theta):
    same = jax.custom_jvp(lambda x: x * jitted(POINT))
    same.defjvp(lambda x, t: (same(*x), t[0]))
    return same(theta)


def _by_a_root(theta):
    return lax.custom_root(lambda x: x - jitted(POINT), theta, lambda f, x: x - f(x), lambda g, y: y / g(1.0))


def _by_a_solve(theta):
    return lax.custom_linear_solve(lambda x: x * (1 + jitted(POINT)), theta, lambda _, b: b / 2, symmetric=True)


def _within(loop, **options):
    return lambda theta: loop(lambda x: (x < 3.0) & (jitted(theta) > 0), lambda x: x + 1, 0.0, **options)


CACHED: dict[str, Any] = {  # a jitted function that the model has called before: JAX does not look into it again
    "vmap": (r"(ld|logderiv)\.plate", lambda theta: jax.vmap(jitted)(theta * ROWS)),
    "vmap of none": (r"(ld|logderiv)\.plate", lambda theta: jax.vmap(lambda x: x * jitted(theta))(ROWS)),
    "map in batches": (r"(ld|logderiv)\.plate", lambda theta: lax.map(lambda x: x * jitted(theta), ROWS, batch_size=2)),
    "grad": ("expectation", lambda theta: jax.grad(jitted)(theta)),
    "grad of none": ("expectation", lambda theta: jax.grad(lambda x: x * jitted(theta))(theta)),
    "jvp of none": ("expectation", lambda theta: jax.jvp(lambda x: x * jitted(theta), (2.0,), (1.0,))),
    "associative scan": (r"lax\.scan", lambda theta: lax.associative_scan(lambda a, b: a + b * jitted(theta), ROWS)),
    "while_loop": ("body", _within(lax.while_loop)),
    "bounded_while_loop": ("body", _within(ld.bounded_while_loop, max_steps=3)),
    "custom_jvp": ("custom_jvp", _by_a_rule),
    "custom_root": ("custom_root", _by_a_root),
    "custom_linear_solve": ("custom_linear_solve", _by_a_solve),
}


@pytest.mark.parametrize("name", CACHED)
def test_a_jitted_function_that_was_used_before_is_refused_as_a_new_one(name):
    words, use = CACHED[name]

    def model(theta):
        ld.cost(jitted(POINT) + jitted(theta))
        use(theta)

    for run in (value, slope, listed):
        with pytest.raises((TypeError, ValueError)) as caught:
            run(model)
        assert_told(caught, jitted, words)
    assert float(listed(lambda theta: ld.cost(jitted(theta)))) == pytest.approx(1 / (1 + np.exp(-POINT)), rel=1e-12)


def _sample():
    return ld.sample(ld.Bernoulli(jnp.zeros(())))  # here


def _cost():
    return ld.cost(1.0)  # here


def _plate():
    return ld.plate(lambda x: x)(ROWS)  # here


def _key():
    return ld.key()  # here


def _score():
    return ld.score(ld.Bernoulli(jnp.zeros(())), 1)  # here


def _compiled():
    return jax.jit(lambda logit: ld.sample(ld.Bernoulli(logit)))(0.0)  # here


@pytest.mark.parametrize("call", [_sample, _cost, _plate, _key, _score, _compiled])
def test_outside_of_an_expectation(call):
    with pytest.raises(TypeError) as caught:
        call()
    assert_told(caught, call, r"(ld|logderiv)\.expectation")


def test_a_jitted_function_is_refused_outside_also_where_a_model_has_traced_it():
    for _ in range(2):
        with pytest.raises(TypeError) as caught:
            jitted(POINT)
        assert_told(caught, jitted, r"(ld|logderiv)\.expectation")
        value(lambda theta: ld.cost(jitted(theta)))


def test_a_program_with_a_tape_makes_its_choices_there():
    def program(theta, tape):
        return tape.cost(ld.sample(ld.Bernoulli(theta)))  # here

    with pytest.raises(TypeError) as caught:
        value(program)
    assert_told(caught, program, r"tape\.sample|without.*tape")


@pytest.mark.parametrize("callback", [jax.pure_callback, io_callback])
def test_a_callback(callback):
    def model(theta):
        def outside(x):
            return np.asarray(ld.sample(ld.Bernoulli(x)), np.float32)  # here

        like = jax.ShapeDtypeStruct((), jnp.float32)
        ld.cost(callback(outside, like, theta))

    with pytest.raises((TypeError, ValueError, jax.errors.JaxRuntimeError)) as caught:
        value(model)
    assert_told(caught, model, r"(ld|logderiv)\.expectation|callback")


@pytest.mark.parametrize("mode", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize(("method", "distribution"), [("alternative", ld.Bernoulli), ("reinmax_biased", None)])
def test_a_derivative_beyond_the_order_of_a_method(mode, method, distribution):
    def model(logit):
        if distribution is None:
            choice = ld.distributions.OneHotCategorical(jnp.stack([logit, 0 * logit]))
            ld.cost(ld.sample(choice, method=method)[0])  # here
        else:
            ld.cost(ld.sample(distribution(logit), method=method).astype(float))  # here

    objective = ld.expectation(model)
    assert np.isfinite(jax.grad(objective)(POINT, jax.random.key(0)))
    for first in (jax.grad, jax.jacfwd):
        with pytest.raises(ValueError, match="enumerate") as caught:
            mode(first(objective))(POINT, jax.random.key(0))
        assert_told(caught, model, "first derivative only")
