"""Bad input is answered with what was expected, what came and the likely fix: the exception, the words that matter, the call."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import pytest

import logderiv as ld
from logderiv import estimators
from logderiv.advantages import GAE, Grouped, Standardized, ToGo, VTrace, generalized_advantages, reward_to_go, vtrace
from logderiv.baselines import LearnedValue, MovingAverage, Value
from logderiv.estimators import DiCE, clipped
from logderiv.importance import Importance
from tests.worlds import batch, two_states

TAU = batch(jax.random.key(0), (5,))
TAUS = batch(jax.random.key(0), (3, 5))
MLP = ld.MLP(2, hidden=(4,))
PARAMS = MLP.init(jax.random.key(0), jnp.zeros(4))
LOO = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
BLIND = jnp.zeros(2)
ONE = jax.tree.map(lambda x: x[:1], TAUS)


def _log_prob(policy: Any = MLP, tau=TAU, params=PARAMS):
    return ld.log_prob(params, policy, tau)


def _with(**parts):
    return _log_prob(tau=TAU._replace(**parts))


def _chooses(distribution: Any, **parts):
    """A policy that always has one distribution."""
    return _log_prob(policy=lambda params, observation: distribution, tau=TAU._replace(**parts))


def _world(**parts):
    """A decision process of two states and one action of which some tables are wrong."""
    usual: Any = {"initial": jnp.array([1.0, 0.0]), "transition": jnp.ones((2, 1, 2)) / 2, "reward": jnp.zeros((2, 1))}
    return ld.environments.TabularMDP(**usual | {"terminal": jnp.zeros(2, bool)} | parts)


def _where() -> dict[str, Any]:
    return {"key": jax.random.key(0), "policy": ld.shared_softmax, "environment": ld.environments.short_corridor()}


def _rollout(**options):
    return ld.rollout(BLIND, **_where() | options)


def _train(**options):
    how: dict[str, Any] = {"estimator": LOO, "optimizer": optax.sgd(0.1), "num_updates": 1, "params": BLIND}
    arguments: Any = _where() | how | {"batch": ld.Episodes(2, horizon=2)} | options
    return ld.train(**arguments)


class _Growing:
    def reset(self, key, params=None):
        return jnp.zeros(2), jnp.zeros(2)

    def step(self, key, state, action, params=None):
        return jnp.zeros(3), state, 1.0, jnp.array(False), jnp.array(False)


class _Rounded:
    def reset(self, key, params=None):
        return jnp.zeros(3), {"speed": jnp.zeros(2, int)}

    def step(self, key, state, action, params=None):
        return jnp.zeros(3), {"speed": jnp.full(2, 0.5)}, 1.0, jnp.array(False), jnp.array(False)


class _Restructured(_Growing):
    def step(self, key, state, action, params=None):
        return jnp.zeros(2), (state, state), 1.0, jnp.array(False), jnp.array(False)


class _Returning(_Growing):
    """A step that returns these values after observation and state."""

    def __init__(self, *rest):
        self.rest = rest

    def step(self, key, state, action, params=None):
        return jnp.zeros(2), state, *self.rest


def _steps(environment):
    return _rollout(environment=environment, horizon=2)


def _linear(params, observation):
    return ld.Categorical(observation @ params["w"])


_two_factors = ld.FunctionPolicy(MLP.apply, log_factors=lambda params, tau: jnp.zeros((5, 2)))
THREE, COLUMN = jnp.ones(3), jnp.ones((3, 1))
LEAVE_ONE_OUT: Any = ld.baselines.LeaveOneOut()
CONSTANT: Any = ld.baselines.Constant(1.0)


def _any(wrong: Any) -> Any:
    """What the type checker would refuse."""
    return wrong


STREAM: Any = ld.types.Stream(
    jax.tree.map(lambda x: x[:, :, None], TAUS)._replace(final_observation=TAUS.observations),
    ends=jnp.zeros((3, 5), bool),
    times=jnp.zeros((3, 5), int),
    returns=jnp.zeros((3, 5)),
)
OFF_POLICY = ld.ScoreFunction(importance=Importance())
BOOTSTRAP = ld.ScoreFunction(GAE(0.5, Value(jnp.sum)))


def _lacks(field, estimator: Any = LOO):
    return estimator.estimate(BLIND, (), ld.shared_softmax, TAUS._replace(**{field: None}))


def _weigh(advantage):
    return ld.ScoreFunction(advantage).advantages(PARAMS, (), MLP, TAUS)


CASES = [
    (ValueError, r"trajectory\.rewards.*\(5,\).*\(4,\)", lambda: _with(rewards=jnp.ones(4))),
    (ValueError, r"observations\['x'\].*\(5,\).*\(6, 4\)", lambda: _with(observations={"x": jnp.ones((6, 4))})),
    (TypeError, r"boolean mask.*float64.*astype\(bool\)", lambda: _with(valid=jnp.ones(5))),
    (ValueError, "empty trajectory.*T = 0", lambda: _log_prob(tau=jax.tree.map(lambda x: x[:0], TAU))),
    (ValueError, r"\(\*batch, T\)", lambda: _log_prob(tau=jax.tree.map(lambda x: x[0], TAU))),
    (TypeError, "expected integers.*float64.*int32", lambda: _with(actions=jnp.ones(5))),
    (ValueError, r"0 \.\. 1, received 2 at index \(3,\)", lambda: _with(actions=TAU.actions.at[3].set(2))),
    (ValueError, "received -1", lambda: _with(actions=TAU.actions.at[0].set(-1))),
    (TypeError, r"params\['w'\].*int64.*astype", lambda: ld.grad_prob({"w": jnp.zeros((4, 2), int)}, _linear, TAU)),
    (TypeError, "floating-point", lambda: ld.compare(jnp.zeros(2, int), ld.shared_softmax, TAU)),
    (TypeError, "floating-point", lambda: LOO.estimate(jnp.zeros(2, int), (), ld.shared_softmax, TAUS)),
    (TypeError, "floating-point", lambda: _train(params=jnp.zeros(2, int))),
    (TypeError, "int", lambda: jax.grad(ld.log_prob)(jnp.zeros(2, int), ld.shared_softmax, TAU)),  # by JAX itself
    (TypeError, "expected a policy.*received int", lambda: _log_prob(policy=3)),
    (TypeError, r"log_prob method.*Categorical", lambda: _log_prob(policy=lambda p, x: x)),
    (
        ValueError,
        r"scalar, received shape \(3,\).*batch.*event axis",
        lambda: _chooses(ld.Categorical(jnp.zeros((3, 2)))),
    ),
    (
        ValueError,
        r"scalar, received shape \(4,\)",
        lambda: _chooses(ld.Bernoulli(jnp.ones(4)), actions=jnp.ones((5, 4), int)),
    ),
    (ValueError, r"policy\.log_factors.*\(5,\).*\(5, 2\)", lambda: _log_prob(policy=_two_factors)),
    (ValueError, "block_size: .*>= 1, received 0", lambda: ld.log_factors(PARAMS, MLP, TAU, block_size=0)),
    (
        ValueError,
        "known densities.*_Growing",
        lambda: ld.log_prob(BLIND, ld.shared_softmax, TAU, environment=_Growing()),
    ),
    (ValueError, r"one trajectory.*\(3,\).*vmap", lambda: ld.grad_prob(PARAMS, MLP, TAUS)),
    (ValueError, "one trajectory", lambda: ld.compare(PARAMS, MLP, TAUS)),
    (ValueError, "horizon.*>= 1, received 0", lambda: _rollout(horizon=0)),
    (ValueError, "pass horizon=", lambda: _rollout(environment=two_states())),
    (TypeError, r"jax\.random\.key", lambda: _rollout(key=jnp.zeros(2), horizon=2)),
    (TypeError, "reset.*step.*received int", lambda: _rollout(environment=4, horizon=2)),
    (
        TypeError,
        "expected .observation.*truncated.*received 4 values",
        lambda: _steps(_Returning(1.0, jnp.array(False))),
    ),
    (
        ValueError,
        r"environment.step: value 4, truncated: expected shape \(\), received \(2,\)",
        lambda: _steps(_Returning(1.0, False, jnp.zeros(2, bool))),
    ),
    (
        ValueError,
        r"environment.step: value 0, observation: expected shape \(2,\), received \(3,\); not as reset returned it",
        lambda: _steps(_Growing()),
    ),
    (TypeError, r"\['speed'\].*int64 after reset and float64 after step.*cut off", lambda: _steps(_Rounded())),
    (ValueError, "structure", lambda: _steps(_Restructured())),
    (ValueError, ">= 2, received 1; this estimator", lambda: LOO.estimate(BLIND, (), ld.shared_softmax, ONE)),
    (ValueError, ">= 2, received 1; this estimator", lambda: _train(batch=ld.Episodes(1, horizon=2))),
    (ValueError, "num_updates", lambda: _train(num_updates=0)),
    (ValueError, r"batch of shape \(N, T\)", lambda: LOO.estimate(PARAMS, (), MLP, TAU)),
    (ValueError, r"\[0, 1\], received 1\.1", lambda: ld.ScoreFunction(discount=1.1)),
    (ValueError, "'step' or 'trajectory'", lambda: ld.baselines.LeaveOneOut(per=cast("Any", "batch"))),
    (ValueError, "outputs", lambda: ld.MLP(0)),
    (ValueError, r"\(3, 5\), received \(3, 1\)", lambda: ld.estimators.Score()(jnp.zeros((3, 5)), jnp.zeros((3, 1)))),
    (ValueError, r"initial.*\(3,\).*\(2,\)", lambda: _world(reward=jnp.zeros((3, 1)))),
    (ValueError, "transition.*sum to 1.*off by 1", lambda: _world(transition=jnp.ones((2, 1, 2)))),
    (ValueError, "no mass on terminal", lambda: _world(terminal=jnp.array([True, False]))),
    (ValueError, r"trajectories of 30 steps.*value", lambda: ld.exact.enumerate_trajectories(two_states(), horizon=30)),
    (ValueError, "horizon", lambda: ld.exact.enumerate_trajectories(two_states(), horizon=0)),
    # parts of estimators
    (ValueError, "discount: expected", lambda: ld.ScoreFunction(discount=float("nan"))),
    (ValueError, "discount: expected", lambda: ld.ScoreFunction(discount=2.0, gamma_t=False)),
    (ValueError, r"discount: .*received -0\.01", lambda: ld.PPO(discount=-0.01)),
    (ValueError, "bootstraps from values.*received NoneType", lambda: GAE(0.5, _any(None))),
    (ValueError, "bootstraps from values.*received LeaveOneOut", lambda: GAE(0.5, _any(LEAVE_ONE_OUT))),
    (ValueError, "bootstraps from values.*received LeaveOneOut", lambda: VTrace(_any(LEAVE_ONE_OUT))),
    (ValueError, "expected None, since VTrace", lambda: ld.ScoreFunction(VTrace(), importance=Importance())),
    (ValueError, "lambda_: expected", lambda: VTrace(lambda_=2.0)),
    *(
        (ValueError, f"{clip}: expected a positive number", lambda clip=clip: VTrace(**_any({clip: 0.0})))
        for clip in ("clip_rho", "clip_c", "clip_pg")
    ),
    (ValueError, "per: expected 'step' or 'trajectory'", lambda: Standardized(ToGo(), _any("batch"))),
    (ValueError, "ddof: expected a whole number >= 0, received -1", lambda: Standardized(ToGo(), ddof=-1)),
    (ValueError, "epsilon: expected a number >= 0", lambda: Standardized(ToGo(), epsilon=-1e-8)),
    (ValueError, "epsilon: .*received inf", lambda: Standardized(ToGo(), epsilon=float("inf"))),
    (ValueError, "value: .*received inf", lambda: ld.baselines.Constant(float("inf"))),
    (ValueError, r"lambda_: expected a number in \[0, 1\], received -0\.1", lambda: GAE(-0.1)),
    (ValueError, r"lambda_: expected a number in \[0, 1\], received 1\.1", lambda: GAE(1.1)),
    (ValueError, "lambda_: expected", lambda: estimators.LoadedDiCE(-0.01)),
    (ValueError, "lambda_: expected", lambda: estimators.LoadedDiCE(1.01)),
    (ValueError, "clip: expected a positive number", lambda: ld.PPO(clip=0.0)),
    (ValueError, "normalizer: expected 'per_trajectory'", lambda: ld.PPO(normalizer=_any("per_batch"))),
    (ValueError, "received 'mean'", lambda: estimators.reduce_steps(jnp.ones(2), jnp.ones(2, bool), _any("mean"))),
    (ValueError, r"weight: expected shape \(3, 1\), received \(3,\)", lambda: clipped(COLUMN, THREE, 0.1)),
    (
        ValueError,
        r"weights: expected shape \(3, 5\), received \(3, 1\); that of trajectory.valid",
        lambda: ld.ScoreFunction().objective(PARAMS, MLP, TAUS, COLUMN),
    ),
    (ValueError, "group_size: expected a whole number >= 2", lambda: ld.RLOO(group_size=1)),
    (ValueError, "group_size: expected a whole number >= 2", lambda: Grouped(ToGo(LEAVE_ONE_OUT), 1)),
    (ValueError, "multiple of group_size = 2, received 3", lambda: _weigh(Grouped(ToGo(), 2))),
    (ValueError, "expected one without state in groups", lambda: Grouped(ToGo(MovingAverage()), 2).init(BLIND)),
    (ValueError, "folds: expected a whole number >= 2", lambda: estimators.OptimalPerParameter(folds=1)),
    (ValueError, "folds: expected a whole number >= 2, received 1", lambda: ld.baselines.Optimal(folds=1)),
    (ValueError, r"folds: .*received 2\.5", lambda: ld.baselines.Optimal(folds=_any(2.5))),
    (ValueError, r"decay: expected a number in \[0, 1\)", lambda: MovingAverage(1.0)),
    (ValueError, r"decay: .*received -0\.01", lambda: MovingAverage(-0.01)),
    (ValueError, "per: expected 'step' or 'trajectory'", lambda: ld.baselines.Constant(1.0, per=_any("batch"))),
    (ValueError, "per: expected 'step' or 'trajectory'", lambda: ld.baselines.BatchMean(per=_any("batch"))),
    (ValueError, "per: expected 'step' or 'trajectory', received 'decision'", lambda: Importance(per=_any("decision"))),
    (ValueError, "truncate: expected a positive number, received 0.0", lambda: Importance(truncate=0.0)),
    (ValueError, "num_steps", lambda: LearnedValue(MLP.apply, _any(None), optax.sgd(0.1), num_steps=0)),
    (
        ValueError,
        r"received \(3, 5, 2\); a scalar for one observation; squeeze its last axis",
        lambda: _weigh(ToGo(Value(lambda s: jnp.ones(2)))),
    ),
    (ValueError, "entropy_weight: expected a number >= 0", lambda: ld.ActorCritic(LOO, entropy_weight=-1.0)),
    (ValueError, "entropy_weight: .*received inf", lambda: ld.ActorCritic(LOO, entropy_weight=float("inf"))),
    (ValueError, "value_weight: expected a number >= 0", lambda: ld.ActorCritic(LOO, value_weight=-1.0)),
    (ValueError, "value_weight: .*received inf", lambda: ld.ActorCritic(LOO, value_weight=float("inf"))),
    (ValueError, r"surrogate: expected Score\(\)", lambda: ld.ActorCritic(ld.ScoreFunction(surrogate=DiCE()))),
    (TypeError, "OptimalPerParameter", lambda: ld.ActorCritic(_any(estimators.OptimalPerParameter()))),
    (
        ValueError,
        "outputs - state_independent: expected a whole number >= 1, received 0",
        lambda: ld.MLPActorCritic(2, state_independent=2),
    ),
    # returns
    (ValueError, r"received rewards \(3, 1\).*use jax.vmap", lambda: reward_to_go(COLUMN, COLUMN)),
    (ValueError, r"received .*discounts \(2,\)", lambda: ld.advantages.total_return(THREE, jnp.ones(2))),
    (ValueError, r"received .* values \(4,\)", lambda: ld.advantages.td_residuals(THREE, THREE, jnp.ones(4), THREE)),
    (ValueError, r"received .*next_values \(4,\)", lambda: ld.advantages.lambda_returns(THREE, THREE, jnp.ones(4))),
    (ValueError, r"received .*next_values \(\)", lambda: generalized_advantages(THREE, THREE, THREE, jnp.ones(()))),
    (ValueError, r"received rewards \(3,\), ratios \(2,\)", lambda: vtrace(THREE, THREE, THREE, THREE, jnp.ones(2))),
    # diagnostics
    (ValueError, "at least 2", lambda: ld.diagnostics.sem(jnp.ones((1, 3)))),
    (ValueError, "common leading axis", lambda: ld.diagnostics.sem({"a": jnp.ones((3, 3)), "b": jnp.ones(2)})),
    (ValueError, "common leading axis", lambda: ld.diagnostics.sem(jnp.ones(()))),
    (ValueError, "positive", lambda: ld.diagnostics.summary(jnp.ones((3, 2))).samples_needed(0.0)),
    (ValueError, "of the structure", lambda: ld.diagnostics.cosine({"a": jnp.ones(2)}, {"b": jnp.ones(2)})),
    (ValueError, "expected shape", lambda: ld.diagnostics.cosine(jnp.ones(2), jnp.ones(3))),
    (ValueError, "expected shape", lambda: ld.diagnostics.variance_ratio(jnp.ones((3, 2)), jnp.ones((4, 2)))),
    # what is no trajectory, or lacks a field that is used
    (TypeError, r"expected a Trajectory, received tuple; use Trajectory\(\*x\)", lambda: _log_prob(tau=tuple(TAU))),
    (TypeError, r"received dict; use Trajectory\(\*\*x\)", lambda: _log_prob(tau=TAU._asdict())),
    (TypeError, "received Stream; pass stream.steps", lambda: _log_prob(tau=STREAM)),
    (TypeError, "received Stream; pass stream.steps", lambda: ld.compare(PARAMS, MLP, STREAM)),
    (TypeError, "received Stream; pass stream.steps", lambda: ld.likelihood.fisher_matrix(PARAMS, MLP, STREAM)),
    (TypeError, "received Stream; pass stream.steps", lambda: ld.types.next_observations(STREAM)),
    (TypeError, "received Stream; pass stream.steps", lambda: ld.importance.with_behavior(PARAMS, MLP, STREAM)),
    (TypeError, "received Stream; pass stream.steps", lambda: LOO.objective(PARAMS, MLP, STREAM, jnp.ones((3, 5, 1)))),
    (TypeError, "needs whole episodes, received a Stream", lambda: ld.ScoreFunction().weigh(PARAMS, (), MLP, STREAM)),
    (TypeError, "needs whole episodes, received a Stream", lambda: LOO.estimate(PARAMS, (), MLP, STREAM)),
    (TypeError, "received tuple", lambda: LOO.estimate(PARAMS, (), MLP, _any(tuple(TAUS)))),
    (TypeError, "received dict", lambda: ld.types.batch_info(_any(TAUS._asdict()))),
    (TypeError, "received list", lambda: ld.types.num_trajectories(_any([TAU, TAU]))),
    (TypeError, r"trajectory\.rewards: expected an array, received None", lambda: _lacks("rewards")),
    (TypeError, r"trajectory\.discounts: expected an array, received None", lambda: _lacks("discounts")),
    (TypeError, r"trajectory\.valid: .*received None; ones of dtype bool", lambda: _lacks("valid")),
    (TypeError, r"trajectory\.actions: .*received None", lambda: _lacks("actions")),
    (TypeError, r"trajectory\.behavior_log_probs: .*with_behavior", lambda: _lacks("behavior_log_probs", ld.PPO())),
    (TypeError, r"behavior_log_probs: .*with_behavior", lambda: _lacks("behavior_log_probs", OFF_POLICY)),
    (TypeError, r"trajectory\.observations: .*received None", lambda: _lacks("observations", BOOTSTRAP)),
    (
        TypeError,
        r"trajectory\.final_observation: .*received None; a value",
        lambda: _lacks("final_observation", BOOTSTRAP),
    ),
    (
        TypeError,
        r"trajectory\.rewards: .*received None",
        lambda: ld.types.batch_info(TAUS._replace(rewards=_any(None))),
    ),
    (TypeError, r"params\['a'\]: expected an array, received str", lambda: _train(params={"a": "x"})),
    # expectations
    (ValueError, "num_samples: expected a whole number >= 1", lambda: ld.expectation(_any(None), num_samples=0)),
    (ValueError, "num_samples: .* >= 2", lambda: ld.expectation(_any(None), baseline="leave_one_out")),
    (
        ValueError,
        "num_samples: .* >= 2, received 1; baseline='leave_one_out' .* baseline=None",
        lambda: ld.expectation(_any(None), num_samples=1, baseline="leave_one_out"),
    ),
    (
        ValueError,
        "num_samples: .* >= 4, received 2; baseline='leave_one_out'",
        lambda: ld.expectation(_any(None), num_samples=2, baseline="leave_one_out", draws="antithetic"),
    ),
    (ValueError, "received Constant.*tape.sample", lambda: ld.expectation(_any(0), num_samples=2, baseline=CONSTANT)),
]
CASES += [
    # arguments of train
    (
        TypeError,
        r"checkpoints: expected logderiv.Checkpoints\(directory.*received str",
        lambda: _train(checkpoints="dir"),
    ),
    (TypeError, "checkpoints: .*received the class Checkpoints; call it", lambda: _train(checkpoints=ld.Checkpoints)),
    (TypeError, r"evaluation: expected logderiv.Evaluation\(every=.*received int", lambda: _train(evaluation=3)),
    (TypeError, "reporters: expected a sequence.*received int; put it in a list", lambda: _train(reporters=3)),
    (TypeError, "received CSVWriter; put it in a list", lambda: _train(reporters=ld.reporting.CSVWriter("x.csv"))),
    (TypeError, r"reporters\[0\]: expected a reporter.*received int", lambda: _train(reporters=[3])),
    (TypeError, "received the class CSVWriter", lambda: _train(reporters=[ld.reporting.CSVWriter])),
    (
        TypeError,
        "estimator: expected an estimator.*the class ScoreFunction; call it",
        lambda: _train(estimator=ld.ScoreFunction),
    ),
    (TypeError, "estimator: expected an estimator.*received NoneType", lambda: _train(estimator=None)),
    (
        TypeError,
        "optimizer: expected a transformation of optax.*received the function adam; call it",
        lambda: _train(optimizer=optax.adam),
    ),
    (
        TypeError,
        "batch: expected logderiv.Episodes, .*received the class Episodes; call it",
        lambda: _train(batch=ld.Episodes),
    ),
    (TypeError, "received int", lambda: _train(batch=16)),
]


@pytest.mark.parametrize(("error", "words", "call"), CASES, ids=[words for _, words, _ in CASES])
def test_bad_input_is_answered_in_words(error, words, call):
    with pytest.raises(error, match=words):
        call()


def test_an_action_out_of_range_under_jit_has_log_probability_minus_infinity_and_in_the_padding_is_no_error():
    bad = TAU._replace(actions=TAU.actions.at[3].set(2))
    assert jax.jit(ld.log_prob)(PARAMS, MLP, bad) == -jnp.inf
    assert jax.jit(ld.prob)(PARAMS, MLP, bad) == 0
    assert jnp.isfinite(ld.log_prob(PARAMS, MLP, bad._replace(valid=jnp.arange(5) < 3)))
