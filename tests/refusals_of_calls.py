"""What loops' conditions, rules by hand and models may not be, each at the line that ends in `# here`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld

from .refusals import Table, coin

ROWS = np.arange(3.0)
TABLE = Table()
EXPECTED: Any = ld.expected
COST: Any = ld.cost
refused = TABLE.refused


# Conditions of loops: JAX drops what they write.


@refused("body")
def the_condition_of_a_while_loop(theta):
    ld.cost(lax.while_loop(lambda i: (ld.sample(ld.Bernoulli(theta)) > 0) & (i < 3.0), lambda i: i + 1, 0.0))  # here


@refused("body")
def the_condition_of_a_while_loop_that_calls_a_helper(theta):
    def goes_on(i):
        return (i < 3.0) & lax.cond(i > 0, lambda: ld.sample(ld.Bernoulli(theta)) > 0, lambda: jnp.array(True))  # here

    ld.cost(lax.while_loop(goes_on, lambda i: i + 1, 0.0))


@refused("body")
def a_cost_in_the_condition_of_a_while_loop(theta):
    def goes_on(i):
        ld.cost(theta)  # here
        return i < 3.0

    lax.while_loop(goes_on, lambda i: i + 1, 0.0)


@refused("body")
def the_condition_of_a_bounded_loop(theta):
    def goes_on(i):
        return (ld.sample(ld.Bernoulli(theta)) > 0) & (i < 3.0)  # here

    ld.cost(ld.bounded_while_loop(goes_on, lambda i: i + 1, 0.0, max_steps=3)[0])


@refused("body")
def a_cost_in_the_condition_of_a_bounded_loop(theta):
    def goes_on(i):
        ld.cost(theta)  # here
        return i < 3.0

    ld.bounded_while_loop(goes_on, lambda i: i + 1, 0.0, max_steps=3)


# Functions with derivative rules of their own, which would silently be ignored.


@refused("custom_vjp")
def a_custom_vjp(theta):
    @jax.custom_vjp
    def twice(x):
        return 2 * x * ld.sample(ld.Bernoulli(x)).astype(float)  # here

    twice.defvjp(lambda x: (twice(x), None), lambda _, g: (2 * g,))
    ld.cost(twice(theta))


@refused("custom_jvp")
def a_custom_jvp(theta):
    @jax.custom_jvp
    def twice(x):
        return 2 * x * ld.sample(ld.Bernoulli(x)).astype(float)  # here

    twice.defjvp(lambda x, t: (twice(*x), 2 * t[0]))
    ld.cost(twice(theta))


@refused("custom_vjp|custom_gradient")
def a_custom_gradient(theta):
    @jax.custom_gradient
    def twice(x):
        return 2 * x * ld.sample(ld.Bernoulli(x)).astype(float), lambda g: 2 * g  # here

    ld.cost(twice(theta))


@refused("custom_root")
def a_custom_root(theta):
    def residual(x):
        return x - theta * ld.sample(ld.Bernoulli(theta)).astype(float)  # here

    ld.cost(lax.custom_root(residual, theta, lambda f, x: x - f(x), lambda g, y: y / g(1.0)))


@refused("custom_root")
def the_solver_of_a_custom_root(theta):
    def solve(f, x):
        return x - f(x) * ld.sample(ld.Bernoulli(theta)).astype(float)  # here

    ld.cost(lax.custom_root(lambda x: x - theta, theta, solve, lambda g, y: y / g(1.0)))


@refused("custom_linear_solve")
def a_custom_linear_solve(theta):
    def product(x):
        return x * (1 + ld.sample(ld.Bernoulli(theta)).astype(float))  # here

    ld.cost(lax.custom_linear_solve(product, theta, lambda _, b: b / 2, symmetric=True))


@refused("custom_linear_solve")
def the_solver_of_a_custom_linear_solve(theta):
    def solve(_, b):
        return b * ld.sample(ld.Bernoulli(theta)).astype(float)  # here

    ld.cost(lax.custom_linear_solve(lambda x: 2 * x, theta, solve, symmetric=True))


# What a model is.


@refused(r"return.*(ld|logderiv)\.cost")
def a_returned_cost_beside_others(theta):
    ld.cost(theta)  # here
    return coin(theta)  # here


@refused(r"return.*(ld|logderiv)\.cost")
def no_cost_at_all(theta):  # here
    coin(theta)


@refused("scalar")
def a_returned_vector(theta):  # here
    return theta * ROWS


@refused("scalar")
def a_cost_of_a_vector(theta):
    ld.cost(theta * ROWS)  # here


@refused("real number")
def a_complex_cost(theta):
    ld.cost(jnp.asarray(theta).astype(complex))  # here


@refused(r"(ld|logderiv)\.sample")
def a_tape_by_hand(theta):
    tape, x = ld.Tape.start(jax.random.key(0)).sample(ld.Bernoulli(theta))  # here
    return tape.cost(x).total


OUTSIDE = jax.new_ref(jnp.zeros(()))


@refused("Ref")
def a_ref_from_outside_that_is_written(theta):
    OUTSIDE[...] = coin(theta).astype(OUTSIDE.dtype)  # here
    ld.cost(theta)


@refused("Ref")
def a_ref_from_outside_that_is_read(theta):
    ld.cost(theta * OUTSIDE[...] * coin(theta))  # here


# Values that Python wants while the model is traced.


@refused(r"jax\.lax\.cond")
def a_python_if_of_a_choice(theta):
    if coin(theta) > 0:  # here
        return theta
    return 2 * theta


@refused(r"jax\.lax\.cond")
def a_python_if_in_a_scan(theta):
    def step(total, _):
        return total + (1.0 if coin(theta) > 0 else 2.0), None  # here

    return lax.scan(step, theta, length=2)[0]


@refused(r"bounded_while_loop")
def a_python_while_of_a_choice(theta):
    total = theta
    while ld.sample(ld.Bernoulli(theta)) > 0:  # here
        total = total + 1
    return total


@refused(r"jax\.lax\.cond")
def a_python_if_in_a_part(theta):
    ld.expected(ld.Bernoulli(theta), lambda x: theta if x > 0 else 2 * theta)  # here


@refused(r"jax\.lax\.fori_loop")
def a_python_range_of_a_choice(theta):
    return sum(coin(theta) for _ in range(ld.sample(ld.Bernoulli(theta))))  # here


@refused(r"jax\.lax\.fori_loop.*index an array")
def an_index_of_a_list(theta):
    return [theta, 2 * theta][ld.sample(ld.Bernoulli(theta))]  # here


@refused(r"jax\.numpy")
def a_function_of_numpy(theta):
    return np.exp(coin(theta))  # here


@refused(r"astype\(float\)")
def a_python_number(theta):
    return theta * float(coin(theta))  # here


# What costs return, and what a model is called with.


@refused("NoneType.*return None; scale")
def twice_an_average(theta):
    return 2 * EXPECTED(ld.Bernoulli(theta), lambda x: theta * x.astype(float))  # here


@refused("NoneType.*return None; scale")
def minus_a_cost(theta):
    return -COST(coin(theta))  # here


@refused("NoneType.*return None; scale")
def the_square_of_an_average(theta):
    return jnp.square(EXPECTED(ld.Bernoulli(theta), lambda x: theta * x.astype(float)))  # here


@refused(r"missing.*'key'.*(ld|logderiv)\.key\(\)")
def a_key_of_its_own(theta, key):  # here
    return coin(theta) * jax.random.uniform(key)


@refused("missing.*'x'.*after its key")
def an_argument_that_is_missing(theta, x):  # here
    return coin(theta) * x
