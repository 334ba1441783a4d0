"""Running moments: by hand, against NumPy in float64, far from 0 in float32, and what has no moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logderiv.policies import RunningMoments

START = RunningMoments.start(jnp.zeros(3))


def after(batches, start=START):
    """The moments after batches `(N, T, ...)` all of whose steps are real."""
    for batch in batches:
        start = jax.jit(RunningMoments.including)(start, batch, jnp.ones(batch.shape[:2], bool))
    return start


def test_by_hand_over_real_steps_only():
    """1 and 3, then 5: mean 3, variance 8/3. What is padded is no number, and stops nobody who looks for them."""
    moments = RunningMoments.start(jnp.zeros(()))
    with jax.debug_nans(True):
        moments = moments.including(jnp.array([[1.0], [3.0]]), jnp.ones((2, 1), bool))
        np.testing.assert_allclose(jax.tree.leaves(moments), [2, 2, 1], rtol=1e-15)
        moments = moments.including(np.array([[5.0, np.nan, np.inf]]), jnp.array([[True, False, False]]))
    np.testing.assert_allclose(jax.tree.leaves(moments), [3, 3, 8 / 3], rtol=1e-15)
    nothing = moments.including(jnp.full((1, 2), jnp.nan), jnp.zeros((1, 2), bool))
    np.testing.assert_array_equal(jax.tree.leaves(nothing), jax.tree.leaves(moments))
    np.testing.assert_allclose(moments.standardize(jnp.array(7.0)), 4 / np.sqrt(8 / 3), rtol=1e-15)


def test_of_nothing_they_change_nothing():
    values = jnp.array([1e4, -0.3, 0.0])
    np.testing.assert_array_equal(START.standardize(values), values)
    empty = START.including(jnp.ones((2, 2, 3)), jnp.zeros((2, 2), bool))
    np.testing.assert_array_equal(empty.standardize(values), values)


@pytest.mark.parametrize("sizes", [(7,), (1, 1, 5), (30, 2, 8)])
def test_batches_of_any_size_against_all_values_at_once(sizes):
    keys = jax.random.split(jax.random.key(0), len(sizes))
    batches = [3 + 2 * jax.random.normal(key, (n, 2, 3)) for key, n in zip(keys, sizes, strict=True)]
    together, found = np.concatenate(batches).reshape(-1, 3), after(batches)
    np.testing.assert_allclose(found.mean, together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, together.var(axis=0), rtol=1e-12)
    assert found.num_steps == len(together)


def test_far_from_0_in_float32_they_keep_their_digits_and_a_mean_of_squares_does_not():
    """Offsets of 1e4: a deviation of 0.1 is right to 1e-4. The twin, E[x²] − E[x]², is wrong by more than itself."""
    far = np.array([1e4, -1e4, 0.0]) + np.array([0.1, 1.0, 1.0]) * np.random.default_rng(0).normal(size=(40, 50, 8, 3))
    batches, exact = far.astype(np.float32), far.astype(np.float32).astype(np.float64).reshape(-1, 3)
    found = after(batches, RunningMoments.start(jnp.zeros(3, jnp.float32)))
    assert found.mean.dtype == found.variance.dtype == jnp.float32
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=2e-7, atol=1e-6)
    np.testing.assert_allclose(found.deviation, exact.std(axis=0), rtol=1e-4)
    flat = batches.reshape(-1, 3)
    twin = np.mean(flat**2, axis=0) - np.mean(flat, axis=0) ** 2
    assert np.abs(twin / exact.var(axis=0) - 1)[:2].max() > 1


@pytest.mark.parametrize(("size", "shown"), [(1e18, 1.0), (1e-18, 1.0), (1e20, 0.0), (1e-23, 1e-23)])
def test_deviations_whose_squares_have_no_number_in_float32_are_as_declared(size, shown):
    values = jnp.asarray([[size, -size]], jnp.float32)
    found = RunningMoments.start(jnp.zeros((), jnp.float32)).including(values, jnp.ones((1, 2), bool))
    np.testing.assert_allclose(found.standardize(values, 2), [[shown, -shown]], rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 5.0, 1e4 / 3])
def test_what_is_always_the_same_is_shifted_and_not_scaled(constant):
    """The mean of float32 numbers is off by a rounding, which must not pass for a deviation."""
    batches = [jnp.full((50 + k, 3, 3), constant, jnp.float32) for k in range(5)]
    found = after(batches, RunningMoments.start(jnp.zeros(3, jnp.float32)))
    np.testing.assert_array_equal(found.deviation, 0)
    np.testing.assert_allclose(found.standardize(batches[0][0], 1), 0, atol=2e-6 * constant)


def test_leaves_that_are_not_floating_point_are_left_alone_and_others_keep_their_dtype():
    values = {
        "x": jnp.array([[1.0, 3.0]], jnp.bfloat16),
        "state": jnp.array([[4, 5]]),
        "mask": jnp.array([[True, False]]),
    }
    start = RunningMoments.start(jax.tree.map(lambda x: x[0, 0], values))
    found = start.including(values, jnp.ones((1, 2), bool))
    assert found.mean["state"] is found.variance["mask"] is None
    assert found.mean["x"].dtype == jnp.float32
    shown = found.standardize(values, 2)
    assert jax.tree.map(lambda x: x.dtype, shown) == jax.tree.map(lambda x: x.dtype, values)
    np.testing.assert_array_equal(shown["x"].astype(float), [[-1, 1]])
    for name in ("state", "mask"):
        np.testing.assert_array_equal(shown[name], values[name])


def test_each_seed_has_its_own():
    values = jax.random.normal(jax.random.key(1), (4, 5, 2, 3))
    valid = jnp.ones((5, 2), bool)
    seeds = jax.vmap(START.including, (0, None))(values, valid)
    for k in range(4):
        one = START.including(values[k], valid)
        np.testing.assert_allclose(seeds.variance[k], one.variance, rtol=1e-14)


def test_other_values_than_before_are_named():
    with pytest.raises(
        ValueError, match=r"observation: expected shape \(3,\), received \(2,\); as those that were measured"
    ):
        START.standardize(jnp.zeros(2), name="observation")
    with pytest.raises(ValueError, match=r"values: expected shape \(3,\), received \(4,\)"):
        START.including(jnp.zeros((2, 2, 4)), jnp.ones((2, 2), bool))
    with pytest.raises(ValueError, match=r"values: expected a pytree of the structure"):
        START.standardize({"x": jnp.zeros(3)})
