"""The benchmarks of estimators: their tasks are what they say, their errors are by hand, and a wrong declaration is seen."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import estimator_frontier, proof_table, tasks
from logderiv._core.pytrees import pytree
from tests.zoo import possible_numbers, zoo


def test_value_of_the_linear_quadratic_task_by_forward_moments():
    """E[x_t^2] forwards in place of V_t backwards."""
    task = tasks.linear_quadratic()
    world, params = task.environment.inner, task.params
    gain, variance = params.gain.item(), math.exp(2 * params.log_std.item())
    a, b, c = (x.item() for x in (world.transition, world.control, world.noise))
    q, r = world.state_cost.item(), world.control_cost.item()
    square, total = 1.0, 0.0
    for t in range(task.horizon):
        total -= task.discount**t * (q * square + r * (gain**2 * square + variance))
        square = (a + b * gain) ** 2 * square + b**2 * variance + c**2
    np.testing.assert_allclose(jax.jit(task.value)(params), total, rtol=1e-12)
    start, end = (jax.jit(task.state_value)((jnp.ones(1), jnp.int32(t))) for t in (0, task.horizon))
    np.testing.assert_allclose([start, end], [total, 0], rtol=1e-12)


def test_pathwise_gradient_of_the_linear_quadratic_task_is_that_of_its_value():
    task = tasks.linear_quadratic()

    run = jax.jit(jax.vmap(lambda key: tasks.pathwise(task, task.params, key)))
    exact = jax.jit(jax.grad(task.value))(task.params)
    samples = run(jax.random.split(jax.random.key(0), 4096))
    for values, expected in zip(samples, exact, strict=True):
        mean, sem = jnp.mean(values), jnp.std(values, ddof=1) / 64
        assert abs(mean - expected.item()) < 4 * sem
        assert abs(1.2 * mean - expected.item()) > 4 * sem


@pytest.mark.parametrize("build", [tasks.short_corridor, tasks.five_states, tasks.random_walk])
def test_values_of_the_finite_tasks_start_at_the_objective(build):
    task = build()
    mdp, _ = task.mdp
    start = jax.jit(jax.vmap(lambda s: task.state_value((s, jnp.int32(0)))))(jnp.arange(mdp.num_states))
    live = jnp.where(mdp.terminal, 0, start)
    wide = jax.tree.map(lambda x: x.astype(jnp.float64), task.params)
    expected = jax.jit(task.value)(wide)
    np.testing.assert_allclose(np.asarray(mdp.initial) @ np.asarray(live), expected, rtol=1e-5)


def test_observations_carry_the_time():
    task = tasks.five_states()
    tau = jax.jit(lambda key: ld.rollout(task.params, key, task.policy, task.environment, horizon=4))(jax.random.key(0))
    np.testing.assert_array_equal(tau.observations[1], [0, 1, 2, 3])
    assert tau.final_observation[1] == 4


def test_errors_by_hand():
    """Exact gradient (3, 4); after the first quarter the estimates are twice it, it, and nothing."""
    exact = np.array([3.0, 4.0])
    found = estimator_frontier.point(np.array([[99, 99], [6, 8], [3, 4], [0, 0]], float), exact, 0.5, 1.0)
    assert found.rmse == pytest.approx(math.sqrt(2 / 3))
    assert found.rescaled == pytest.approx(math.sqrt(1 - 1 / (5 / 3)))  # the best factor is 3 / 5
    assert found.squared == pytest.approx((50 / 3, 25 / 3))
    assert found.sem == pytest.approx(25 / 3 / (2 * found.rmse * 25))
    points = {"a": {2: found}, "b": {2: found}}
    assert estimator_frontier.disagreement(points, {"a": 100 / 3}) == pytest.approx(0)
    assert estimator_frontier.disagreement(points, {"a": 100 / 3, "b": 50}) == pytest.approx(1)
    assert estimator_frontier.disagreement(points, {"c": 1.0}) == 0


@pytest.mark.slow
def test_sampled_errors_agree_with_computed_ones_and_not_with_half_of_them():
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        task = dataclasses.replace(tasks.five_states(), name="five")
        variances = estimator_frontier.exact_variances(task)
        found = estimator_frontier.frontier(task, (4,), 8192, ("reward-to-go", "reward-to-go, exact value"))
    assert estimator_frontier.disagreement(found, variances) < 4
    assert estimator_frontier.disagreement(found, {name: v / 2 for name, v in variances.items()}) > 4


def test_a_right_declaration_is_proved_and_a_wrong_one_is_not():
    """The mean with its own sample is 1 - 1/N of the gradient, whatever it declares."""

    @pytree(static=("per",))
    class Claims(ld.baselines.BatchMean):
        declaration = ld.estimators.Declaration()  # pyright: ignore

    right = zoo()["biased: batch mean"]
    row = proof_table.examine(right, most=3, orders=1)
    assert row.proved
    assert (row.numbers, row.factor) == ((2, 3), pytest.approx(2 / 3))
    assert row.bias == pytest.approx(1 / 3, abs=1e-12)
    row = proof_table.examine(dataclasses.replace(right, advantage=ld.advantages.ToGo(Claims())), most=2, orders=1)
    assert not row.proved
    assert row.error > 0.05


def test_numbers_are_those_the_groups_divide_and_worlds_shrink_with_them():
    entries = zoo()
    numbers = [possible_numbers(entries[name], most) for name, most in (("GRPO", 8), ("leave one out per step", 4))]
    assert numbers == [[2, 4, 6, 8], [2, 3, 4]]
    horizons = [proof_table.world_for(entries["optimal scalar, 2 folds"], n).horizon for n in (2, 4, 5, 6, 8)]
    assert horizons == [3, 3, 2, 1, 1]
    assert proof_table.world_for(entries["total return"], 8).horizon == 3
