"""Any deterministic environment is listed like a table; and what was compiled once is used again."""

import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld

from .mostly import mostly_slow, slow
from .worlds import compilations

REWARD = jnp.array([[0.3, 1.0], [-0.2, 2.0], [0.0, 0.0]])
STARTS = np.array([0.25, 0.75])
PARAMS = jnp.array([[0.2, -0.1], [0.4, -0.3], [0.1, 0.3]])
LOO = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut(per="trajectory")), discount=0.9)
DICE = ld.ScoreFunction(surrogate=ld.estimators.DiCE(), discount=0.9)


class Ladder:
    """A user's environment, no pytree: action 1 goes up, the top of the ladder ends it, and so does the limit of time."""

    num_actions = 2
    starts = (np.arange(2, dtype=np.int32), STARTS)

    def __init__(self, limit: int = 10, noise: float = 0.0) -> None:
        self.limit, self.noise = limit, noise

    def reset(self, key, params=None):
        start = jnp.asarray(jax.random.categorical(key, jnp.log(STARTS)) if params is None else params, jnp.int32)
        return {"height": start}, (start, jnp.zeros((), jnp.int32))

    def step(self, key, state, action, params=None):
        height, time = state[0] + action, state[1] + 1
        reward = REWARD[state[0], action] + self.noise * jax.random.normal(key)
        return {"height": height}, (height, time), reward, height == 2, time == self.limit


def tables() -> ld.environments.TabularMDP:
    up, stay = jnp.eye(3)[jnp.array([1, 2, 2])], jnp.eye(3)
    terminal = jnp.array([False, False, True])
    return ld.environments.TabularMDP(jnp.array([0.25, 0.75, 0.0]), jnp.stack([stay, up], axis=1), REWARD, terminal)


def of_height(params, observation):
    return ld.Categorical(params[observation["height"]])


def remembering(params, carry, observation):
    return ld.Categorical(params[observation["height"]] + carry), carry + 0.1


MEMORY = ld.FunctionPolicy(remembering, initial_carry=lambda params: jnp.zeros((), params.dtype))


@pytest.mark.parametrize("policy", [slow(of_height), MEMORY], ids=["memoryless", "memory"])
def test_a_users_environment_and_the_same_as_a_table_have_the_same_answers(policy):
    """The carry shifts both logits alike, so that even the policy with memory plays like the table's."""
    replayed, table = (PARAMS, policy, Ladder()), (PARAMS, ld.tabular_softmax, tables())
    options: Any = {"horizon": 3}
    for function in (ld.exact.value, ld.exact.gradient, ld.exact.hessian):
        ours, expected = (function(*a, discount=0.9, **options) for a in (replayed, table))
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-14)
        assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(ld.exact.fisher(*replayed, **options), ld.exact.fisher(*table, **options), atol=1e-14)
    ours, expected = (ld.exact.moments(*a, LOO, num_trajectories=2, **options) for a in (replayed, table))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-13), ours[:4], expected[:4])
    assert ours.num_evaluations == expected.num_evaluations
    assert np.abs(ours.bias).max() < 1e-14


def test_every_sequence_of_choices_is_listed_once_and_stops_where_the_episode_does():
    every = ld.exact.enumerate_trajectories(Ladder(limit=2), horizon=3, params=PARAMS, policy=of_height)
    steps = [tuple(a[v]) for a, v in zip(np.asarray(every.actions), np.asarray(every.valid), strict=True)]
    starts = np.asarray(every.observations["height"][:, 0])
    expected = [(0, (0, 0)), (0, (0, 1)), (0, (1, 0)), (0, (1, 1)), (1, (0, 0)), (1, (0, 1)), (1, (1,))]
    assert sorted(zip(starts.tolist(), steps, strict=True)) == expected
    assert ld.exact.count_trajectories(Ladder(limit=2), 3) == len(expected)
    np.testing.assert_array_equal(every.discounts.min(axis=1) == 0, every.final_observation["height"] == 2)
    logs = jax.nn.log_softmax(PARAMS)[every.observations["height"], every.actions]
    np.testing.assert_allclose(every.behavior_log_probs, np.where(every.valid, logs, 0), rtol=1e-14)


def test_it_may_be_listed_within_a_compiled_function_of_the_parameters():
    ours = jax.jit(jax.grad(lambda p: ld.exact.value(p, of_height, Ladder(), horizon=3)))(PARAMS)
    np.testing.assert_allclose(ours, ld.exact.gradient(PARAMS, ld.tabular_softmax, tables(), horizon=3), rtol=1e-12)


@pytest.mark.slow
def test_sampled_and_exact_gradient_of_a_users_environment_agree():
    found = ld.exact.compare_expectation(PARAMS, jax.random.key(0), of_height, Ladder(), horizon=3, num_samples=2000)
    assert found.num_trajectories == ld.exact.count_trajectories(Ladder(), 3)
    np.testing.assert_allclose(found.score, found.direct, atol=1e-14)
    direct, sampled, sem = (ravel_pytree(x)[0] for x in (found.direct, found.sampled, found.sem))
    live = sem > 0
    assert np.abs((sampled - direct)[live] / sem[live]).max() < 4.5


class Unnumbered:
    reset, step = Ladder.reset, Ladder.step


class AnyStart(Ladder):
    starts = (None, np.ones(1))


@pytest.mark.parametrize(
    ("environment", "options", "error", "message"),
    [
        (Ladder(noise=1.0), {}, ValueError, "received one that depends on the key"),
        (AnyStart(), {}, ValueError, "the attribute starts where only the start is drawn"),
        (Unnumbered(), {}, TypeError, "an attribute num_actions.*received Unnumbered"),
        (Ladder(), {"limit": 5}, ValueError, "2 actions have too many trajectories of 3 steps, more than limit=5"),
        (3, {}, TypeError, "num_actions.*received int"),
    ],
)
def test_what_cannot_be_listed_is_refused(environment, options, error, message):
    with pytest.raises(error, match=message):
        ld.exact.enumerate_trajectories(environment, horizon=3, **options)


def test_dynamic_programming_needs_tables():
    with pytest.raises(TypeError, match="dynamic programming needs a TabularMDP, received Ladder"):
        ld.exact.value(PARAMS, of_height, Ladder(), horizon=3, method="dynamic")


# --- a second call compiles nothing

PROB = jax.jit(ld.prob)
LADDER = Ladder()


def plain(params, policy, trajectories):
    returns = jnp.sum(jnp.where(trajectories.valid, trajectories.rewards, 0), axis=-1)
    return jax.grad(lambda p: jnp.mean(returns * ld.log_prob(p, policy, trajectories)))(params)


def squared(params):
    return jnp.sum(params**2)


def check_order(params, policy, mdp, **_):
    taus = ld.exact.enumerate_trajectories(mdp, horizon=2)
    probabilities = PROB(params, policy, taus, environment=mdp)
    return ld.testing.check_order(params, policy, DICE, squared, taus, probabilities, order=None, max_order=2)


def listed(params, policy, mdp, **_):
    return ld.exact.enumerate_trajectories(mdp, horizon=2, params=params, policy=policy)


def compared(params, policy, mdp, *, discount):
    key = jax.random.key(int(10 * discount))
    return ld.exact.compare_expectation(params, key, policy, mdp, horizon=2, num_samples=10, discount=discount)


def of(estimator: Any, *, num_trajectories=2, **options):
    def call(*arguments: Any, discount):
        sizes: Any = {"horizon": 2, "num_trajectories": num_trajectories, "discount": discount}
        return ld.exact.moments(*arguments, estimator=copy.copy(estimator), **sizes, **options)

    return call


DISCOUNTED = ("value", "gradient", "hessian", "state_values", "weighted_score_moments")
COSTLY = {
    "check_order",
    "moments of order 2",
    "moments of a user's environment",
    "compare_expectation",
}  # sisters of others
CALLS: dict[str, Any] = {
    **{name: functools.partial(getattr(ld.exact, name), horizon=2) for name in DISCOUNTED},
    "value by enumeration": functools.partial(ld.exact.value, horizon=2, method="enumeration"),
    "occupancy": lambda *a, discount: ld.exact.occupancy(*a, horizon=2),
    "fisher": lambda *a, discount: ld.exact.fisher(*a, horizon=2),
    "policy_table": lambda *a, discount: ld.exact.policy_table(*a),
    "count_trajectories": lambda *a, discount: ld.exact.count_trajectories(LADDER, 2),
    "enumerate_trajectories": listed,
    "compare_expectation": compared,
    "moments": of(LOO),
    "moments of a function": of(plain),
    "moments of order 2": of(DICE, num_trajectories=1, order=2),
    "moments of a user's environment": lambda p, q, m, discount: of(plain)(p, of_height, LADDER, discount=discount),
    "check_order": check_order,
}


@pytest.mark.parametrize("name", mostly_slow(CALLS, CALLS.keys() - COSTLY))
def test_a_second_call_compiles_nothing(name):
    """Other parameters, other tables, another discount, a key, an estimator built anew; the same shapes and functions."""
    again = dataclasses.replace(tables(), reward=2 * REWARD)
    for params, mdp, discount in ((PARAMS, tables(), 0.8), (2 * PARAMS, again, 0.9)):
        with compilations() as found:
            CALLS[name](params, ld.tabular_softmax, mdp, discount=discount)
        assert bool(found) == (discount == 0.8)
