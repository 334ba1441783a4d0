"""Common mistakes with keys, parts, states, policies and environments are answered by their name, and with the remedy."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv import advantages, baselines, estimators, expectations, processes, testing
from logderiv.environments import Brax, Gymnax, Jumanji, as_environment
from tests import examples
from tests.test_project_messages import BLIND, TAU, TAUS, _any, _log_prob, _rollout, _steps, _train, _where

WORLD = ld.environments.short_corridor(horizon=4)
TO_GO = advantages.ToGo()
TWO, RAW = jax.random.split(jax.random.key(0)), np.zeros(3, np.uint32)
HIDDEN, _, HIDDEN_PARAMS = examples.process("HiddenMarkovModel")
AVERAGED = ld.ScoreFunction(advantages.ToGo(baselines.MovingAverage()))
LEARNED = ld.ScoreFunction(
    advantages.GAE(0.5, baselines.LearnedValue(lambda w, o: w[0], lambda p: jnp.zeros(1), optax.sgd(0.1)))
)
ONE_KEY = r"key: expected one key, received keys of shape \(2,\); use jax.vmap"
NOT_KEY = r"key: expected jax.random.key\(seed\), received uint32\[3\]"


def _of_law(params: Any, x: Any):
    return ld.Normal(params, jnp.ones(())).log_prob(x)


def _draw(params: Any, key: Any):
    return jax.lax.stop_gradient(ld.Normal(params, jnp.ones(())).sample(key))


def _flip(logit: Any, tape: ld.Tape):
    tape, x = tape.sample(ld.Bernoulli(logit))
    return tape.cost(x)


def _one(x: Any) -> Any:
    del x
    return jnp.ones(())


def _estimate(estimator: Any, state: Any, params: Any = BLIND):
    return estimator.estimate(params, state, ld.shared_softmax, TAUS)


def _score(advantage: Any = TO_GO, **parts: Any):
    return ld.ScoreFunction(advantage, **parts)


class Remembering(NamedTuple):
    """A policy with memory whose step returns these two."""

    first: Any
    second: Any
    log_factors: Any = None
    table: Any = None

    def initial_carry(self, params):
        del params
        return jnp.zeros(())

    def apply(self, params, carry, observation):
        del params, carry, observation
        return self.first, self.second


class Stateful(NamedTuple):
    """An environment that returns these after observation and state."""

    rest: tuple = ()

    def reset(self, key, params=None):
        del key, params
        return jnp.zeros(2), jnp.int32(0)

    def step(self, key, state, action, params=None):
        del key, action, params
        return jnp.zeros(2), state, *self.rest


LAW, GRU = ld.Categorical(BLIND), ld.GRU(2)
KEYS = {
    "evaluate": lambda key: ld.evaluate(BLIND, key, ld.shared_softmax, WORLD, num_episodes=2),
    "start_streams": lambda key: ld.sampling.start_streams(key, WORLD, 2),
    "collect": lambda key: ld.sampling.collect(BLIND, key, ld.shared_softmax, WORLD, _any(None), num_steps=2),
    "expectation": lambda key: ld.expectation(_flip)(jnp.zeros(()), key),
    "Tape.start": lambda key: ld.Tape.start(key),
    "gradients_score": lambda key: expectations.gradients_score(jnp.zeros(()), key, ld.Bernoulli, _one, num_samples=2),
    "gradients_pathwise": lambda key: expectations.gradients_pathwise(BLIND, key, _any(None), _one, num_samples=2),
    "gradients_measure_valued": lambda key: expectations.gradients_measure_valued(
        BLIND, key, _any(None), _one, num_samples=2
    ),
    "check_score": lambda key: testing.check_score(jnp.zeros(()), key, _of_law, _draw),
    "compare_expectation": lambda key: ld.exact.compare_expectation(
        BLIND, key, ld.shared_softmax, WORLD, horizon=2, num_samples=9
    ),
    "sample_states": lambda key: HIDDEN.sample_states(HIDDEN_PARAMS, key, jnp.zeros(4, int)),
    "fisher_score_samples": lambda key: processes.fisher_score_samples(
        HIDDEN_PARAMS, key, HIDDEN, jnp.zeros(4, int), num_samples=2
    ),
    "MLP.init": lambda key: ld.MLP(2).init(key, BLIND),
    "GRU.init": lambda key: GRU.init(key, BLIND),
    "MLPActorCritic.init": lambda key: ld.MLPActorCritic(2).init(key, BLIND),
    "look_ahead": lambda key: processes.look_ahead(BLIND, key, lambda p, k: jnp.sum(p), learning_rate=0.1, steps=1),
}
CASES = [
    *((ValueError, ONE_KEY, lambda call=call: call(TWO)) for call in KEYS.values()),
    *((TypeError, NOT_KEY, lambda call=call: call(RAW)) for call in KEYS.values()),
    (TypeError, NOT_KEY, lambda: _rollout(key=RAW, horizon=2)),
    (TypeError, NOT_KEY, lambda: _train(key=RAW)),
    (TypeError, r"key: expected jax.random.key\(seed\), received 0", lambda: _rollout(key=0, horizon=2)),
    (TypeError, "start_key: .*received 0", lambda: _rollout(start_key=0, horizon=2)),
    # parts
    (TypeError, r"baseline: expected .*Constant\(0.5\), received float", lambda: advantages.ToGo(_any(0.5))),
    (TypeError, "baseline: .*the class LeaveOneOut; call it", lambda: advantages.Return(_any(baselines.LeaveOneOut))),
    (TypeError, "baseline: .*the class SharedValue; call it", lambda: advantages.GAE(0.9, _any(baselines.SharedValue))),
    (TypeError, "baseline: .*the class SharedValue; call it", lambda: advantages.VTrace(_any(baselines.SharedValue))),
    (TypeError, "advantage: .*the class GAE; call it", lambda: _score(advantages.GAE)),
    (TypeError, "advantage: .*such as ToGo.*received str", lambda: _score("reward_to_go")),
    (TypeError, "advantage: .*received function", lambda: _score(advantages.reward_to_go)),
    (TypeError, "advantage: .*received LeaveOneOut", lambda: ld.PPO(_any(baselines.LeaveOneOut()))),
    (TypeError, "advantage: .*the class ToGo; call it", lambda: advantages.Standardized(_any(advantages.ToGo))),
    (TypeError, "advantage: .*the class ToGo; call it", lambda: advantages.Grouped(_any(advantages.ToGo), 2)),
    (TypeError, "advantage: .*the class", lambda: estimators.OptimalPerParameter(_any(advantages.ToGo))),
    (TypeError, "function: .*reward_to_go, received str", lambda: advantages.Credit(_any("reward_to_go"))),
    (TypeError, "function: .*received ToGo", lambda: advantages.Credit(_any(advantages.ToGo()))),
    (TypeError, "importance: .*the class Importance; call", lambda: _score(importance=ld.importance.Importance)),
    (TypeError, "importance: .*received bool", lambda: _score(importance=True)),
    (TypeError, "surrogate: .*the class LoadedDiCE; call it", lambda: _score(surrogate=estimators.LoadedDiCE)),
    (TypeError, "surrogate: .*received str", lambda: _score(surrogate="dice")),
    (TypeError, "actor: .*the class ScoreFunction; call it", lambda: ld.ActorCritic(_any(ld.ScoreFunction))),
    (
        TypeError,
        "estimator: .*the class ScoreFunction; call it",
        lambda: ld.exact.moments(BLIND, ld.shared_softmax, WORLD, ld.ScoreFunction, horizon=2, num_trajectories=1),
    ),
    (
        TypeError,
        "estimator: .*the class ScoreFunction; call it",
        lambda: ld.diagnostics.gradient_moments(BLIND, ld.shared_softmax, TAUS, _any(ld.ScoreFunction)),
    ),
    # states
    (ValueError, r"state: .*; that of estimator.init\(params\)", lambda: _estimate(AVERAGED, ())),
    (ValueError, r"state: .*; that of estimator.init\(params\)", lambda: _estimate(AVERAGED, None)),
    (ValueError, r"state: .*; that of estimator.init\(params\)", lambda: _estimate(LEARNED, AVERAGED.init(BLIND))),
    (ValueError, r"state: .*; that of", lambda: AVERAGED.advantages(BLIND, (), ld.shared_softmax, TAUS)),
    # parameters
    (TypeError, r"params\['a'\]: expected an array, received str", lambda: _estimate(_score(), (), {"a": "x"})),
    (TypeError, r"params\['a'\]: expected an array, received str", lambda: _log_prob(params={"a": "x"})),
    (TypeError, r"params\['a'\]: expected an array, received str", lambda: ld.rollout({"a": "x"}, **_where())),
    (ValueError, "params: expected at least one number", lambda: _estimate(_score(), (), {})),
    (ValueError, "params: expected at least one number", lambda: ld.compare({}, ld.shared_softmax, TAU)),
    # policies
    (
        TypeError,
        "received them in the other order",
        lambda: _rollout(policy=Remembering(jnp.zeros(()), LAW), horizon=2),
    ),
    (TypeError, "received them in the other order", lambda: _log_prob(Remembering(jnp.zeros(()), LAW), params=BLIND)),
    (TypeError, r"with a log_prob method.*Categorical\(logits\)", lambda: _rollout(policy=lambda p, x: p, horizon=2)),
    (
        TypeError,
        r"\(Categorical, NoneType\).*initial_carry",
        lambda: _rollout(policy=lambda p, x: (LAW, None), horizon=2),
    ),
    (TypeError, r"\(Categorical, NoneType\).*initial_carry", lambda: _log_prob(lambda p, x: (LAW, None), params=BLIND)),
    (TypeError, "policy: .*with initial_carry, .*received .params", lambda: _rollout(policy=GRU.apply, horizon=2)),
    (
        TypeError,
        r"expected apply to return a pair \(distribution, carry\), received Categorical",
        lambda: _rollout(policy=ld.FunctionPolicy(lambda p, c, x: LAW, lambda p: jnp.zeros(())), horizon=2),
    ),
    # environments
    (TypeError, r"value 4 is a dict, expected truncated", lambda: _steps(Stateful((1.0, False, {})))),
    (TypeError, "received the class Stateful; call it", lambda: _steps(Stateful)),
    (TypeError, r"Gymnax: expected .*gymnax.make\(id\)\[0\], received str", lambda: Gymnax("CartPole-v1")),
    (TypeError, "Gymnax: .*received tuple", lambda: Gymnax((Stateful(), None))),
    (TypeError, r"gymnax.make\(id\)\[0\].*received tuple", lambda: as_environment((Stateful(), None))),
    (TypeError, "Brax: expected an environment.*received str", lambda: Brax("ant")),
    (TypeError, "Jumanji: expected an environment.*received str", lambda: Jumanji("Snake-v1")),
    (TypeError, "curves: expected .*received list", lambda: ld.plots.learning_curves(_any([1.0, 2.0]))),
]


@pytest.mark.parametrize(("error", "words", "call"), CASES)
def test_a_common_mistake_is_named_with_its_remedy(error, words, call):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("three", [np.int64(3), np.array(3), np.uint8(3), jnp.array(3), 3])
def test_whole_numbers_of_numpy_and_jax_are_whole(three):
    """The same trajectories and returns as with 3, without a second program."""
    taus = _rollout(horizon=three)
    assert taus.rewards.shape == (3,)
    returns = ld.evaluate(BLIND, jax.random.key(1), ld.shared_softmax, WORLD, num_episodes=three, horizon=three)
    assert returns.shape == (3,)
    assert (ld.MLP(three).outputs, ld.Episodes(three).num_trajectories, type(ld.Episodes(three).size(WORLD))) == (
        3,
        3,
        int,
    )
    assert hash(ld.Episodes(three)) == hash(ld.Episodes(3))
    assert ld.exact.value(BLIND, ld.shared_softmax, WORLD, horizon=three) == -3


def test_learning_curves_take_what_train_returned(monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    import matplotlib.pyplot as plt

    rows = jnp.arange(6.0).reshape(2, 3)
    whole = jnp.ones((2, 3), int)
    metrics = ld.training.Metrics(rows, whole, whole, rows, rows, whole)
    for given in (metrics, ld.training.Training(_any(None), metrics)):
        drawn = ld.plots.learning_curves(given, ax=plt.figure().gca()).lines[0].get_xydata()
        np.testing.assert_allclose(drawn[[0, -1]], [[1, 1.5], [3, 3.5]])  # the mean over seeds, against steps
    plt.close("all")


def test_a_distribution_that_is_a_tuple_is_one():
    class Fair(NamedTuple):
        size: int = 2

        def log_prob(self, action):
            del action
            return jnp.asarray(-0.7)

        def sample(self, key):
            return jax.random.randint(key, (), 0, 2)

    assert _rollout(policy=lambda params, observation: Fair(), horizon=2).actions.shape == (2,)
