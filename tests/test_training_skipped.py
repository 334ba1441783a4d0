"""A batch that is not finite leaves nothing behind: not in the parameters, the optimizer, the estimator, or anything drawn later."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.advantages import GAE, Grouped, Return, Standardized, ToGo
from logderiv.baselines import LeaveOneOut, MovingAverage
from logderiv.estimators.batch import prepare
from logderiv.policies import as_policy
from logderiv.training.loop import Plan, advance, start
from tests.mostly import mostly_slow, slow
from tests.zoo import LEARNED, table_value, wrong_values

pytestmark = pytest.mark.usefixtures("standard_promotion")
POLICY = ld.FunctionPolicy(lambda params, observation: ld.Categorical(params["logits"][observation]))
PARAMS = {"logits": jnp.array([[0.3, -0.2], [0.1, 0.4]]), "values": jnp.zeros(2)}
ADAM = ld.baselines.LearnedValue(table_value, wrong_values, optax.apply_if_finite(optax.adam(0.1), 3), num_steps=2)


class Failing:
    """Two states, an action moves and pays; now and then a simulator gives a reward that is not finite, in one step of many."""

    horizon = 4

    def __init__(self, failure: float = jnp.nan):
        self.failure = failure

    def reset(self, key, params=None):
        return jnp.zeros((), int), jnp.zeros((), int)

    def step(self, key, state, action, params=None):
        keys = jax.random.split(key)
        reward = jnp.where(jax.random.bernoulli(keys[0], 0.02), self.failure, 1.0 * action + 0.3 * state)
        done = jax.random.bernoulli(keys[1], 0.2)
        return action, action, reward, done, jnp.zeros((), bool)


def value(params, observation):
    return params["values"][observation]


MINIBATCHES: Any = {"epochs": 2, "minibatches": 2}
EPISODES, STREAM = ld.Episodes(4), ld.Steps(4, 4)
RUNS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "moving average": (ld.ScoreFunction(ToGo(MovingAverage(0.9))), EPISODES, {}),
    "learned value, sgd": (ld.ScoreFunction(ToGo(LEARNED)), EPISODES, {}),
    "learned value, guarded adam": (ld.ScoreFunction(Return(ADAM)), EPISODES, {}),
    "leave one out": (ld.RLOO(), EPISODES, {}),
    "groups": (ld.PPO(Grouped(Standardized(Return(LeaveOneOut())), 2)), ld.Groups(2, 2), MINIBATCHES),
    "stream, learned value": (ld.PPO(GAE(0.9, ADAM)), STREAM, MINIBATCHES),
    "stream, one step": (ld.ScoreFunction(GAE(0.9, LEARNED)), STREAM, {}),
    "PPO": (ld.PPOActorCritic(value), STREAM, MINIBATCHES),
    "actor-critic, learned value": (ld.ActorCritic(ld.PPO(ToGo(LEARNED)), value), EPISODES, MINIBATCHES),
    "optimal per parameter": (
        ld.estimators.OptimalPerParameter(ToGo(MovingAverage(0.9))),
        EPISODES,
        {},
    ),
}


def plan_of(name, world=None) -> Plan:
    estimator, batch, passes = RUNS[name]
    passes: Any = {"epochs": 1, "minibatches": 1} | passes
    world = Failing() if world is None else world
    parts: Any = {"policy": as_policy(POLICY), "environment": world, "environment_params": None, "evaluation": None}
    return Plan(**parts, batch=batch, estimator=estimator, optimizer=optax.adam(0.1), **passes)


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


USUAL = ("learned value, guarded adam",)


@pytest.mark.parametrize("name", mostly_slow(RUNS, USUAL))
def test_the_end_is_that_of_a_run_from_which_the_bad_batches_were_left_out(name):
    """The second run is given the keys and environments of the first, and never meets a bad batch: equal bit for bit."""
    plan = plan_of(name)
    state = other = start(PARAMS, jax.random.key(3), plan)
    learned = lambda s: (s.params, s.opt_state, s.estimator_state)  # noqa: E731
    bad = 0
    for i in range(24):
        before = state
        state, row = advance(before, np.int32(i), np.int32(i + 1), 1, plan)
        assert row.num_skipped == (row.num_nonfinite_rewards > 0), name
        assert row.num_nonfinite == 0
        if row.num_skipped:
            bad += 1
            assert bits(learned(state)) == bits(learned(before))
        else:
            other = advance(
                other._replace(key=before.key, streams=before.streams), np.int32(i), np.int32(i + 1), 1, plan
            )[0]
            assert bits(state.params) != bits(before.params)
    assert 2 < bad < 12
    assert bits(learned(state)) == bits(learned(other))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(learned(state)))


@pytest.mark.parametrize(("name", "failure"), [slow(("moving average", jnp.inf)), ("PPO", jnp.nan)])
def test_runs_of_several_seeds_settings_and_under_jit_leave_out_each_their_own(name, failure):
    """One compiled call over seeds and learning rates; each row has the skips of its own keys, and all end finite."""
    estimator, batch, passes = RUNS[name]
    keys = jax.random.split(jax.random.key(1), 3)
    starts = jax.tree.map(lambda x: jnp.broadcast_to(x, (3, *x.shape)), PARAMS)

    @jax.jit
    @jax.vmap
    def run(rate):
        options: Any = {"estimator": estimator, "optimizer": optax.sgd(rate), "num_updates": 12, **passes}
        return ld.train(starts, keys, POLICY, Failing(failure), batch, **options)

    result = run(jnp.array([0.0, 0.1]))
    metrics = jax.tree.map(np.asarray, result.metrics)
    np.testing.assert_array_equal(metrics.num_skipped, metrics.num_nonfinite_rewards > 0)
    counts = metrics.num_skipped.sum(axis=-1)
    assert ((counts > 0) & (counts < 12)).all()
    assert len({tuple(row) for row in metrics.num_skipped[1].tolist()}) > 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(result.params))
    assert np.isnan(metrics.grad_norm[metrics.num_skipped > 0]).all()


def test_training_says_how_many_batches_were_left_out_and_why():
    options: Any = {"estimator": RUNS["moving average"][0], "optimizer": optax.sgd(0.1), "num_updates": 24}
    with pytest.warns(
        UserWarning, match=r"\d batches were left out whole.*, \d of them with rewards that are not finite"
    ):
        result = ld.train(PARAMS, jax.random.key(3), POLICY, Failing(), EPISODES, **options)
    assert f"{result.metrics.num_skipped.sum()} batches left out" in str(result)


GOOD = ld.Trajectory(
    jnp.zeros((2, 2), int),
    jnp.array([[0, 1], [1, 1]]),
    jnp.array([[1.0, 2.0], [0.5, -1.0]]),
    jnp.array([[1.0, 0.0], [1.0, 1.0]]),
    jnp.ones((2, 2), bool),
    jnp.full((2, 2), -0.7),
    jnp.zeros(2, int),
)


@pytest.mark.parametrize("name", ["moving average", slow("learned value, guarded adam"), slow("optimal per parameter")])
def test_by_hand_the_state_that_comes_back_is_the_old_one(name):
    """From `estimate` and `advantages`, bit for bit; the twin, what the parts alone would carry on, is another one."""
    estimator = RUNS[name][0]
    poor = GOOD._replace(rewards=GOOD.rewards.at[0, 1].set(jnp.nan))

    @jax.jit
    def run(state):
        bad, after = estimator.estimate(PARAMS, state, POLICY, poor)
        weights, direct = estimator.advantages(PARAMS, state, POLICY, poor)
        return bad.grads, weights, (after, direct)

    _, seen = estimator.estimate(PARAMS, estimator.init(PARAMS), POLICY, GOOD)
    grads, weights, states = run(seen)
    assert np.isnan(grads["logits"]).any()
    assert np.isnan(jax.tree.leaves(weights)[0]).all()
    for state in states:
        assert bits(state) == bits(seen)
    actor = getattr(estimator, "actor", estimator)
    if jax.tree.leaves(seen):
        spoiled = actor.advantage(PARAMS, seen, prepare(actor, PARAMS, as_policy(POLICY), poor))[2]
        assert bits(spoiled) != bits(seen)


@jax.tree_util.register_static
class Counting(ld.estimators.Estimator):
    """Someone's own: its state is a sum of rewards, and a count of batches."""

    @property
    def structure(self) -> ld.estimators.Structure:
        return ld.estimators.Structure()

    def init(self, params):
        return jnp.zeros(()), jnp.zeros((), int)

    def advantages(self, params, state, policy, trajectories: Any):
        total, count = state
        return jnp.ones_like(trajectories.rewards), (total + jnp.sum(trajectories.rewards), count + 1)

    def term(self, params, step, distribution, log_prob, weights):
        return weights * log_prob


def test_a_state_that_is_not_finite_leaves_the_batch_out_whatever_its_weights():
    """The weights are ones; also of an estimator of one's own. A state that never was finite is nobody's fault."""
    estimator, infinite = Counting(), (jnp.array(jnp.inf), jnp.array(3))
    poor = GOOD._replace(rewards=GOOD.rewards.at[0, 1].set(-jnp.inf))
    found, state = estimator.estimate(PARAMS, estimator.init(PARAMS), POLICY, poor)
    assert np.isnan(found.grads["logits"]).any()
    assert state == (0.0, 0)
    found, state = estimator.estimate(PARAMS, infinite, POLICY, GOOD)
    assert np.isfinite(found.grads["logits"]).all()
    assert state == (jnp.inf, 4)
