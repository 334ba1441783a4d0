"""Optimizers that want more than a gradient: a value, a function to search along, gradients elsewhere; and those that cannot climb."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.training.loop import Plan, improve, start
from logderiv.training.optimizers import further_arguments

START = jnp.array([0.3, -0.2])
CORRIDOR = ld.environments.short_corridor()
TO_GO = ld.advantages.ToGo(ld.baselines.LeaveOneOut())
SCORE, PPO = ld.ScoreFunction(TO_GO), ld.PPO(TO_GO)
EPISODES = ld.Episodes(8, horizon=12)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def train(optimizer, *, estimator: Any = SCORE, batch: Any = EPISODES, num_updates=3, **options):
    options = {"estimator": estimator, "optimizer": optimizer, "num_updates": num_updates, **options}
    return ld.train(START, jax.random.key(0), ld.shared_softmax, CORRIDOR, batch, **options)


class Seen(NamedTuple):
    values: jax.Array
    number: jax.Array


def recorder(size=8):
    """An optimizer that keeps the values that it is given, in their order."""

    def update(updates, state, params=None, *, value, **_):
        return updates, Seen(state.values.at[state.number].set(value), state.number + 1)

    made: Any = optax.GradientTransformationExtraArgs
    return made(lambda params: Seen(jnp.zeros(size), jnp.int32(0)), update)


def test_the_value_is_minus_the_mean_return_of_the_batch():
    result = train(optax.chain(recorder(), optax.sgd(0.1)), num_updates=8)
    kept = next(
        x for x in jax.tree.leaves(result.state.opt_state, is_leaf=lambda x: isinstance(x, Seen)) if isinstance(x, Seen)
    )
    np.testing.assert_allclose(kept.values, -result.metrics.mean_return, rtol=1e-12)


def test_the_rate_is_reduced_where_the_mean_return_does_not_rise():
    """Of a run that stands still every update is a plateau: the scale is halved after each two."""
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2, rtol=0.0, atol=1e9)
    result = train(optax.chain(optax.sgd(0.0), plateau), num_updates=7)
    scales = [
        x.scale
        for x in jax.tree.leaves(result.state.opt_state, is_leaf=lambda x: hasattr(x, "scale"))
        if hasattr(x, "scale")
    ]
    assert len(scales) == 1
    assert float(scales[0]) == 0.5**3


def test_polyaks_step_is_the_gap_of_the_value_over_the_squared_gradient():
    """One update by hand: the rate is (value - f_min) / |g|², bounded by its largest."""
    result = train(optax.polyak_sgd(max_learning_rate=1e9, f_min=0.0, eps=0.0), num_updates=1)
    _, grads = _first_batch(SCORE)
    value = -float(result.metrics.mean_return[0])
    np.testing.assert_allclose(result.params, START + value * grads / np.sum(np.square(grads)), rtol=1e-9)


def _first_batch(estimator):
    """The batch of the first update of `train`, and the gradient of its objective."""
    state = start(START, jax.random.key(0), _plan(estimator))
    _, key, _ = jax.random.split(state.key, 3)
    drawn: Any = EPISODES.draw(START, key, ld.policies.as_policy(ld.shared_softmax), CORRIDOR, None, ())[0]
    weights = estimator.advantages(START, (), ld.shared_softmax, drawn)[0]
    return (drawn, weights), jax.grad(estimator.objective)(START, ld.shared_softmax, drawn, weights)


def _plan(estimator):
    policy = ld.policies.as_policy(ld.shared_softmax)
    return Plan(policy, CORRIDOR, None, EPISODES, estimator, optax.sgd(0.1), 1, 1, None)


def test_value_gradient_and_the_function_to_search_along_are_of_one_function():
    (batch, weights), grads = _first_batch(PPO)

    def objective(params):
        return PPO.objective(params, ld.shared_softmax, batch, weights)

    given = further_arguments(objective, objective(START), grads, batch, reusable=True)
    other = START + jnp.array([0.05, -0.02])
    np.testing.assert_allclose(given["value_fn"](START), given["value"], rtol=1e-12)
    np.testing.assert_allclose(jax.grad(given["value_fn"])(START), given["grad"], rtol=1e-12)
    np.testing.assert_allclose(given["grad"], -grads, rtol=1e-12)
    np.testing.assert_allclose(
        given["value_fn"](other) - given["value"], objective(START) - objective(other), rtol=1e-9
    )
    np.testing.assert_allclose(given["grad_fn"](other), jax.grad(given["value_fn"])(other), rtol=1e-12)


@pytest.mark.parametrize(
    "optimizer", [optax.lbfgs(), optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))]
)
def test_a_line_search_does_not_leave_the_surrogate_lower_than_it_was(optimizer):
    (batch, weights), _ = _first_batch(PPO)

    def objective(params):
        return PPO.objective(params, ld.shared_softmax, batch, weights)

    climbing = ld.maximize(optimizer)
    options: Any = {"estimator": PPO, "optimizer": climbing, "epochs": 3}
    state = climbing.init(START)
    params, _, _ = jax.jit(lambda p, s, k: improve(p, s, k, ld.shared_softmax, batch, weights, **options))(
        START, state, jax.random.key(1)
    )
    assert objective(params) > objective(START) + 1e-3
    assert np.all(np.isfinite(train(optimizer, estimator=PPO, epochs=2).params))


def test_sharpness_aware_steps_are_those_of_its_definition():
    """Two updates on one batch: up to the neighbor where the objective is lowest, back, and along the gradient found there."""
    (batch, weights), grads = _first_batch(PPO)
    rate, radius = 0.1, 0.05

    def gradient(params):
        return jax.grad(PPO.objective)(params, ld.shared_softmax, batch, weights)

    neighbor = START - radius * grads / jnp.linalg.norm(grads)
    expected = START + rate * gradient(neighbor)
    inner = optax.sgd(rate), optax.chain(optax.contrib.normalize(), optax.sgd(radius))
    for optimizer, epochs in ((optax.contrib.sam(*inner), 2), (optax.contrib.sam(*inner, opaque_mode=True), 1)):
        climbing = ld.maximize(optimizer)
        options: Any = {"estimator": PPO, "optimizer": climbing, "epochs": epochs}
        params, _, _ = improve(
            START, climbing.init(START), jax.random.key(1), ld.shared_softmax, batch, weights, **options
        )
        np.testing.assert_allclose(params, expected, rtol=1e-9)
    assert np.all(np.isfinite(train(optax.contrib.sam(*inner)).params))


ACTOR_CRITIC = ld.PPOActorCritic(lambda params, observation: 0.0 * params[0] * observation)
REFUSED = {
    "a line search": (lambda: train(optax.lbfgs()), ValueError, "scale_by_zoom_linesearch.*PPO"),
    "one inside": (
        lambda: train(optax.chain(optax.clip(1.0), optax.apply_if_finite(optax.lbfgs(), 2))),
        ValueError,
        "linesearch",
    ),
    "another": (
        lambda: train(optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5))),
        ValueError,
        "scale_by_backtracking_linesearch",
    ),
    "gradients elsewhere": (
        lambda: train(optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True)),
        ValueError,
        "gradients at several parameters.*PPO",
    ),
    "two copies": (lambda: train(optax.lookahead(optax.sgd(0.1), 5, 0.5)), TypeError, "lookahead.*two copies"),
    "examples": (
        lambda: train(optax.chain(optax.contrib.differentially_private_aggregate(1.0, 0.1, 0), optax.sgd(0.1))),
        TypeError,
        "a gradient for each example",
    ),
    "a value of a stream": (
        lambda: train(optax.polyak_sgd(), estimator=ACTOR_CRITIC, batch=ld.Steps(2, 4, horizon=12)),
        ValueError,
        "scale_by_polyak.*mean return.*Episodes",
    ),
    "several steps": (
        lambda: train(optax.MultiSteps(optax.lookahead(optax.sgd(0.1), 5, 0.5), 2)),
        TypeError,
        "lookahead",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_climb_an_estimate_is_refused_by_name(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()
