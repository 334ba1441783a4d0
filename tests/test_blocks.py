"""Blocks of rows: every layout gives the plain result, in value and at every order of derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv._core.blocks import map_rows, sum_rows
from logderiv._core.layout import Layout
from logderiv._core.segments import scan_steps
from logderiv.likelihood.steps import log_factor, over_steps
from tests.worlds import batch


def _row(params, x):
    return jnp.sin(x @ params["w"]) * params["b"] + jnp.sum(x**2) * params["b"] ** 2


def _inputs(num, length):
    return jax.random.normal(jax.random.key(0), (num, length, 3))


PARAMS = {"w": jnp.array([0.3, -0.7, 0.2]), "b": jnp.asarray(1.3)}


@pytest.mark.parametrize("num", [1, 2, 6, 7, 16, 97, 1024, 1031])
@pytest.mark.parametrize("length", [1, 2, 13, 97, 1000])
@pytest.mark.parametrize("rows", [1, 4, 16, 512])
def test_a_layout_covers_every_step_with_blocks_no_larger_than_asked(num, length, rows):
    shape = Layout.of(num, length, rows)
    assert shape.together * shape.turns == num
    covered = shape.outer * shape.inner * shape.steps
    assert covered >= length
    assert shape.together * shape.steps <= max(rows, 1)
    # The padding costs at most a block column: less than one step of every block, or the round-up of the group.
    assert covered - length < max(shape.outer * shape.inner, shape.inner * shape.steps)


def test_a_long_trajectory_is_cut_in_two_levels_of_about_the_square_root():
    shape = Layout.of(1, 10**7, 512)
    assert shape.together == shape.turns == 1
    assert 100 < shape.outer < 200
    assert 100 < shape.inner < 200


@pytest.mark.parametrize(
    ("num", "length", "rows"), [(7, 13, 4), (7, 13, 16), (7, 13, 512), (12, 5, 4), (1, 50, 8), (33, 2, 16)]
)
def test_blocked_values_and_derivatives_equal_plain_ones(num, length, rows):
    inputs, weights = _inputs(num, length), jax.random.normal(jax.random.key(1), (num, length))

    @jax.jit
    def check(params):
        def blocked(params):
            return jnp.sum(weights * map_rows(_row, params, inputs, block_size=rows))

        def plain(params):
            return jnp.sum(weights * jax.vmap(jax.vmap(lambda x: _row(params, x)))(inputs))

        return [(f(blocked)(params), f(plain)(params)) for f in (lambda f: f, jax.grad, jax.hessian)]

    for ours, expected in check(PARAMS):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, expected)


@pytest.mark.parametrize(("length", "rows"), [(50, 8), (131, 5), (7, 7)])
def test_the_one_pass_sum_equals_the_plain_sum_in_every_mode_of_differentiation(length, rows):
    inputs, valid = _inputs(1, length), jnp.arange(length)[None] < length - 3
    modes = {
        "value": lambda f: f,
        "reverse": jax.grad,
        "forward": jax.jacfwd,
        "forward over reverse": jax.hessian,
        "reverse over reverse": lambda f: jax.jacrev(jax.grad(f)),
        "reverse over forward": lambda f: jax.jacrev(jax.jacfwd(f)),
        "third order": lambda f: jax.jacfwd(jax.hessian(f)),
        "vmap of grad": lambda f: lambda p: jax.vmap(jax.grad(f))(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), p)),
    }

    @jax.jit
    def check(params):
        def one_pass(params):
            return sum_rows(_row, params, inputs, valid, block_size=rows)

        def plain(params):
            return jnp.sum(jax.vmap(lambda x: _row(params, x))(inputs[0])[:-3])

        return {name: (mode(one_pass)(params), mode(plain)(params)) for name, mode in modes.items()}

    for ours, expected in check(PARAMS).values():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11), ours, expected)


def test_the_one_pass_sum_differentiates_inputs_and_captured_arrays():
    inputs = _inputs(1, 40)

    @jax.jit
    def check(scale):
        def of(sum_):
            return lambda scale, x: sum_(lambda p, row: scale * _row(p, row), PARAMS, x)

        def plain(f, p, x):
            return jnp.sum(jax.vmap(lambda row: f(p, row))(x[0]))

        ours = of(lambda f, p, x: sum_rows(f, p, x, jnp.ones((1, 40), bool), block_size=8))
        return [jax.grad(f, (0, 1))(scale, inputs) for f in (ours, of(plain))]

    ours, expected = check(jnp.asarray(0.7))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, expected)


def test_the_one_pass_gradient_of_half_precision_is_added_up_in_float32():
    """2048 blocks of one sign; a running sum in bfloat16 is off by 2 %."""
    x = jax.random.uniform(jax.random.key(2), (1, 2**14), jnp.bfloat16, 0.5, 1.5)

    @jax.jit
    def gradient(p):
        return jax.grad(lambda p: sum_rows(lambda p, x: p * x, p, x, jnp.ones((1, 2**14), bool), block_size=8))(p)

    exact = np.sum(np.asarray(x, np.float64))
    assert abs(float(gradient(jnp.bfloat16(1))) / exact - 1) < 2**-8


def test_the_one_pass_sum_takes_parameters_that_are_no_floats():
    """A step counter or a mask among the parameters, as `jax.grad` of the other ones meets it."""
    inputs, valid = _inputs(1, 40), jnp.ones((1, 40), bool)

    @jax.jit
    def check(params):
        def of(rows):
            def total(params):
                both = params, jnp.array([2, 3])
                return sum_rows(
                    lambda p, row: p[1][0].astype(float) * _row(p[0], row), both, inputs, valid, block_size=rows
                )

            return total

        return [(jax.grad(of(rows))(params), jax.hessian(of(rows))(params)) for rows in (8, 40)]

    ours, expected = check(PARAMS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-11), ours, expected)


@pytest.mark.parametrize(("num", "length"), [(3, 1), (3, 10), (2, 17)])
def test_segmented_scan_equals_the_plain_scan(num, length):
    inputs = _inputs(num, length)
    valid = jnp.arange(length)[None] < jnp.array([[length], [length - 1], [length // 2]])[:num]

    def step(params, carry, x):
        carry = jnp.tanh(carry * params["b"] + x @ params["w"])
        return carry, carry**2

    @jax.jit
    def check(params):
        def segmented(params, total=False):
            return scan_steps(step, params, jnp.asarray(0.1), inputs, valid, total=total)

        def plain(params):
            return jax.vmap(lambda xs: jax.lax.scan(lambda c, x: step(params, c, x), jnp.asarray(0.1), xs)[1])(inputs)

        def both(params):
            return jnp.where(valid, segmented(params), 0), segmented(params, total=True)

        def expected(params):
            ys = jnp.where(valid, plain(params), 0)
            return ys, jnp.sum(ys, axis=1)

        return [(m(both)(params), m(expected)(params)) for m in (lambda f: f, jax.jacrev, jax.hessian)]

    for ours, expected in check(PARAMS):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), ours, expected)


def test_a_block_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="block_size"):
        ld.log_prob(jnp.zeros(2), ld.shared_softmax, batch(jax.random.key(0), (2, 3)), block_size=0)
    with pytest.raises(ValueError, match="block_size"):
        over_steps(log_factor, jnp.zeros(2), ld.shared_softmax, batch(jax.random.key(0), (3,)), block_size=0)
