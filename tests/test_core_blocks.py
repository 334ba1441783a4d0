"""Blocks of rows: every layout gives the plain result, in value and at every order of derivative."""

import math
import os
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from logderiv._core import blocks
from logderiv._core.blocks import Layout, map_rows, rows_in_block, scan_steps, sum_rows
from tests.agreement import assert_same, value
from tests.mostly import slow

PARAMS = {"w": jnp.array([0.3, -0.7, 0.2]), "b": jnp.asarray(1.3)}


def _row(params, x):
    return jnp.sin(x @ params["w"]) * params["b"] + jnp.sum(x**2) * params["b"] ** 2


def _inputs(num, length):
    return jax.random.normal(jax.random.key(0), (num, length, 3))


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


def test_off_a_cpu_a_block_is_as_many_rows_as_fit_into_a_part_of_the_memory_that_there_is(monkeypatch):
    """Whatever is free: the same program in every run. Parameters are kept once, not with each row."""
    assert rows_in_block(_row, PARAMS, _inputs(2, 3)) == 512
    monkeypatch.setattr(jax, "default_backend", lambda: "another")

    def rows(limit, width=1, shape=(2, 3)):
        stats = {"bytes_limit": limit, "bytes_in_use": limit // 2}
        monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: stats)])
        weights = jnp.ones((width, 2))
        return rows_in_block(lambda w, x: jnp.sum(jnp.tanh(x @ w)), weights, jnp.ones((*shape, width)))

    small = rows(32_000_000)
    assert 1e6 / 200 < small < 1e6 / 16  # a row keeps itself and two slopes, in float64, perhaps with copies
    assert rows(32_000_000, shape=(7, 50)) == small
    assert abs(rows(64_000_000) / small - 2) < 1e-3
    assert rows(32_000_000, width=100) < small / 10
    assert rows(32_000_000, shape=(0, 3)) == small
    assert rows(10**15) == rows(10**14)
    assert rows(32) == 1
    assert rows_in_block(_row, PARAMS, _inputs(2, 3), 17) == 17


@pytest.mark.parametrize(
    ("num", "length", "rows"),
    [(7, 13, 4), slow((7, 13, 16)), slow((7, 13, 512)), slow((12, 5, 4)), (1, 50, 8), (33, 2, 16)],
)
def test_blocked_values_and_derivatives_equal_plain_ones(num, length, rows):
    inputs, weights = _inputs(num, length), jax.random.normal(jax.random.key(1), (num, length))
    assert_same(
        lambda params: jnp.sum(weights * map_rows(_row, params, inputs, block_size=rows)),
        lambda params: jnp.sum(weights * jax.vmap(jax.vmap(partial(_row, params)))(inputs)),
        PARAMS,
        modes=(value, jax.grad, jax.hessian),
    )


@pytest.mark.parametrize(("length", "rows"), [slow((50, 8)), (131, 5), (7, 7)])
def test_the_one_pass_sum_equals_the_plain_sum_in_every_mode_of_differentiation(length, rows):
    inputs, valid = _inputs(1, length), jnp.arange(length)[None] < length - 3
    modes = (
        value,
        jax.grad,
        jax.jacfwd,
        jax.hessian,
        lambda f: jax.jacrev(jax.grad(f)),
        lambda f: jax.jacrev(jax.jacfwd(f)),
        lambda f: jax.jacfwd(jax.hessian(f)),
        lambda f: lambda p: jax.vmap(jax.grad(f))(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), p)),
    )
    assert_same(
        lambda params: sum_rows(_row, params, inputs, valid, block_size=rows),
        lambda params: jnp.sum(jax.vmap(partial(_row, params))(inputs[0])[:-3]),
        PARAMS,
        modes=modes,
        atol=1e-11,
    )


def test_the_one_pass_sum_differentiates_inputs_and_captured_arrays():
    every = jnp.ones((1, 40), bool)
    assert_same(
        lambda scale, x: sum_rows(lambda p, row: scale * _row(p, row), PARAMS, x, every, block_size=8),
        lambda scale, x: jnp.sum(jax.vmap(lambda row: scale * _row(PARAMS, row))(x[0])),
        jnp.asarray(0.7),
        _inputs(1, 40),
        modes=[partial(jax.grad, argnums=(0, 1))],
    )


def test_the_one_pass_gradient_of_half_precision_is_added_up_in_float32():
    """2048 blocks of one sign; a running sum in bfloat16 is off by 2 %."""
    x = jax.random.uniform(jax.random.key(2), (1, 2**14), jnp.bfloat16, 0.5, 1.5)

    @jax.jit
    @jax.grad
    def gradient(p):
        return sum_rows(lambda p, x: p * x, p, x, jnp.ones((1, 2**14), bool), block_size=8)

    exact = np.sum(np.asarray(x, np.float64))
    assert abs(float(gradient(jnp.bfloat16(1))) / exact - 1) < 2**-8


def test_a_mean_of_half_precision_does_not_overflow_before_it_is_divided():
    num = 20000
    inputs, valid = jnp.full((1, num, 1), 8, jnp.float16), jnp.ones((1, num), bool)

    def mean(weight):
        return sum_rows(lambda weight, x: jnp.sum(weight * x), weight, inputs, valid, block_size=64) / num

    assert jax.jit(jax.grad(mean))(jnp.ones(1, jnp.float16)) == 8  # the sum's, 160 000, is beyond what float16 holds


def test_the_one_pass_sum_takes_parameters_that_are_no_floats():
    """A step counter or a mask among the parameters, as `jax.grad` of the other ones meets it."""
    inputs, valid = _inputs(1, 40), jnp.ones((1, 40), bool)

    def row(params, x):
        return params[1][0].astype(float) * _row(params[0], x)

    def total(rows):
        return lambda params: sum_rows(row, (params, jnp.array([2, 3])), inputs, valid, block_size=rows)

    assert_same(total(8), total(40), PARAMS, modes=(jax.grad, jax.hessian), atol=1e-11)


def _units(params, x):
    return jnp.sum(jnp.sin(x @ params["w"] + params["b"]) ** 2)


_UNITS = {"w": jnp.arange(6.0).reshape(3, 2) / 5, "b": jnp.array([0.2, -0.3])}
_SUMS = {
    "map_rows": lambda f, p, x, valid, rows: jnp.sum(map_rows(f, p, x, block_size=rows), where=valid),
    "sum_rows": lambda f, p, x, valid, rows: sum_rows(f, p, x, valid, block_size=rows),
}


@pytest.mark.parametrize("form", _SUMS)
@pytest.mark.parametrize(("num", "length", "rows"), [(2, 18, 36), (1, 37, 37), slow((2, 18, 12)), (1, 37, 13)])
def test_parts_of_a_large_block_give_the_plain_derivatives(num, length, rows, form, monkeypatch):
    """They divide the rows, or the last part is filled; of all rows or of several blocks; what is captured is shared, too."""
    monkeypatch.setattr(blocks, "_SUMMED", 5)
    inputs, valid = _inputs(num, length), jnp.arange(length)[None] < jnp.array([[length - 2], [length]])[:num]

    def ours(params, scale):
        return _SUMS[form](lambda p, x: scale * _units(p, x), params, inputs, valid, rows)

    def plain(params, scale):
        values = jax.vmap(jax.vmap(lambda x: scale * _units(params, x)))(inputs)
        return jnp.sum(values, where=valid)

    def stacked(f):
        return lambda *args: jax.vmap(jax.grad(f))(*jax.tree.map(lambda x: jnp.stack([x, 2 * x]), args))

    both = {"argnums": (0, 1)}
    modes = value, partial(jax.grad, **both), partial(jax.jacfwd, **both), partial(jax.hessian, **both), stacked
    assert_same(ours, plain, _UNITS, jnp.asarray(0.7), modes=modes, atol=1e-11)


def _longest_product(jaxpr):
    """Terms that a product of matrices adds up at most, within loops and functions, too."""
    longest = 1
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (over, _), _ = eqn.params["dimension_numbers"]
            longest = max(longest, math.prod(eqn.invars[0].aval.shape[axis] for axis in over))
        for inner in jaxprs_in_params(eqn.params):
            longest = max(longest, _longest_product(inner))
    return longest


@pytest.mark.parametrize("form", _SUMS)
@pytest.mark.parametrize("rows", [120, 60])
def test_no_gradient_is_one_sum_over_a_large_block(rows, form, monkeypatch):
    """The wrong twin gives the parameters once to all rows of a block."""
    inputs, valid = _inputs(1, 120), jnp.ones((1, 120), bool)

    def longest(summed, mode):
        monkeypatch.setattr(blocks, "_SUMMED", summed)
        function = mode(lambda params: _SUMS[form](_units, params, inputs, valid, rows))
        return _longest_product(jax.make_jaxpr(function)(_UNITS).jaxpr)

    for mode in (jax.grad, jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        assert longest(10, mode) == 10
        assert longest(1000, mode) >= rows


@pytest.mark.parametrize("form", _SUMS)
@pytest.mark.parametrize("rows", [10**6, slow(10**6 - 1), slow(300_000)])
def test_a_gradient_of_a_million_rows_of_one_sign_keeps_its_digits_in_a_large_block(rows, form, monkeypatch):
    """One sum over the block loses 5e-7 on two cores and 1.3e-6 on one; more cores share it, so that the twin is run on few."""
    inputs = jax.random.uniform(jax.random.key(0), (1, 10**6, 2), jnp.float32, 0.5, 1.5)
    weights, valid = jnp.full((2, 8), 0.1, jnp.float32), jnp.ones((1, 10**6), bool)
    x = np.asarray(inputs, np.float64)[0]
    exact = 2 * x.T @ (x @ np.asarray(weights, np.float64))

    def error():
        squares = lambda w, x: jnp.sum(jnp.matmul(x, w, precision="highest") ** 2)  # noqa: E731
        found = jax.grad(lambda w: _SUMS[form](squares, w, inputs, valid, rows))
        return np.max(np.abs(np.asarray(jax.jit(found)(weights), np.float64) / exact - 1))

    assert error() < 2e-7
    monkeypatch.setattr(blocks, "_SUMMED", 10**7)
    if rows >= 10**6 and jax.default_backend() == "cpu" and (os.cpu_count() or 1) <= 2:
        assert error() > 3e-7


def test_the_parts_gradients_of_half_precision_are_added_up_in_float32(monkeypatch):
    """4096 parts of one sign; the wrong twin adds them up as they are."""
    monkeypatch.setattr(blocks, "_SUMMED", 4)
    x = jax.random.uniform(jax.random.key(2), (1, 2**14), jnp.bfloat16, 0.5, 1.5)
    exact = np.sum(np.asarray(x, np.float64))

    def error(function):
        return abs(float(jax.jit(jax.grad(function))(jnp.bfloat16(1))) / exact - 1)

    def plain(p):
        return jnp.sum(jax.vmap(lambda p, x: jnp.sum(p * x))(jnp.broadcast_to(p, 2**12), x.reshape(2**12, 4)))

    for total in _SUMS.values():
        assert error(lambda p, total=total: total(lambda p, x: p * x, p, x, x > 0, 2**14)) < 2**-8
    assert error(plain) > 2**-8


@pytest.mark.parametrize("form", _SUMS)
def test_what_a_function_closes_over_is_looked_up_at_each_call_and_not_kept(form, monkeypatch):
    """`jax.closure_convert` (0.10.2) keeps it, and finds the first call's tracer again at the second."""
    monkeypatch.setattr(blocks, "_SUMMED", 5)
    held, x, valid = {}, jnp.arange(1.0, 13.0)[None], jnp.ones((1, 12), bool)

    def row(p, x):
        return p * held["scale"] * x

    def total(scale):
        held["scale"] = scale
        return _SUMS[form](row, 2.0, x, valid, 12)

    for scale in (3.0, 4.0):
        value, slope = jax.value_and_grad(total)(scale)
        assert (float(value), float(slope)) == (156 * scale, 156)

    held.clear()

    def of_table(n):
        table = jnp.full(1000, float(n))
        return float(_SUMS[form](lambda p, x: p * table[0] * x, 2.0, x, valid, 12))

    before = len(jax.live_arrays())
    assert [of_table(n) for n in (1, 2, 3)] == [156, 312, 468]
    assert len(jax.live_arrays()) <= before


@pytest.mark.parametrize("form", _SUMS)
def test_traced_integers_masks_and_keys_may_be_captured_and_differentiated_around(form):
    """A program whose arguments they are is differentiated as a whole: the derivative's rule is used after they were traced."""
    x, valid = jnp.arange(1.0, 13.0)[None], jnp.ones((1, 12), bool)

    def total(p, times, mask, seed):
        def row(p, x):
            drawn = jax.random.uniform(jax.random.wrap_key_data(seed))
            return p * jnp.where(mask, x, 0.0) * times * drawn

        return _SUMS[form](row, p, x, valid, 4)

    given = jnp.asarray(3), jnp.asarray(True), jax.random.key_data(jax.random.key(0))
    expected = 234 * float(jax.random.uniform(jax.random.key(0)))
    for mode in (jax.grad(jax.jit(total)), jax.jit(jax.grad(jax.jit(total))), jax.jit(jax.grad(jax.checkpoint(total)))):
        np.testing.assert_allclose(mode(2.0, *given), expected, rtol=1e-12)
    by_mask = jax.vmap(jax.grad(jax.jit(total)), (None, None, 0, None))(
        2.0, given[0], jnp.array([True, False]), given[2]
    )
    np.testing.assert_allclose(by_mask, [expected, 0.0], rtol=1e-12)


def test_a_key_that_rows_share_is_the_same_in_every_part(monkeypatch):
    """Copies of it would draw differently: under `vmap` some kinds of keys do."""
    x = jnp.ones((1, 12))

    def drawn(summed):
        monkeypatch.setattr(blocks, "_SUMMED", summed)
        shared = {"scale": jnp.asarray(2.0), "key": jax.random.key(0, impl="rbg"), "times": 3}
        return map_rows(
            lambda p, x: p["scale"] * p["times"] * x * jax.random.uniform(p["key"]), shared, x, block_size=12
        )

    np.testing.assert_array_equal(drawn(5), drawn(100))
    assert len(np.unique(drawn(5))) == 1


def test_parts_are_larger_where_as_many_gradients_would_not_fit(monkeypatch):
    inputs, valid = _inputs(1, 120), jnp.ones((1, 120), bool)

    def longest(room):
        monkeypatch.setattr(blocks, "_SUMMED", 10)
        monkeypatch.setattr(blocks, "_BYTES", room)
        function = jax.grad(lambda params: sum_rows(_units, params, inputs, valid, block_size=valid.size))
        return _longest_product(jax.make_jaxpr(function)(_UNITS).jaxpr)

    gradient = 8 * (6 + 2)
    assert [longest(gradient * room) for room in (12, 6, 1)] == [10, 20, 120]
    inputs, valid = _inputs(1, 121), jnp.ones((1, 121), bool)
    assert longest(gradient * 6) == 21  # no more than six copies, the last of them filled


@pytest.mark.parametrize(("num", "length"), [slow((3, 1)), (3, 10), slow((2, 17))])
def test_segmented_scan_equals_the_plain_scan(num, length):
    inputs, start = _inputs(num, length), jnp.asarray(0.1)
    valid = jnp.arange(length)[None] < jnp.array([[length], [length - 1], [length // 2]])[:num]

    def step(params, carry, x):
        carry = jnp.tanh(carry * params["b"] + x @ params["w"])
        return carry, carry**2

    def segmented(params):
        steps, total = (scan_steps(step, params, start, inputs, valid, total=total) for total in (False, True))
        return jnp.where(valid, steps, 0), total

    def plain(params):
        steps = jax.vmap(lambda xs: jax.lax.scan(partial(step, params), start, xs)[1])(inputs)
        return jnp.where(valid, steps, 0), jnp.sum(jnp.where(valid, steps, 0), axis=1)

    assert_same(segmented, plain, PARAMS, modes=(value, jax.jacrev, jax.hessian))
