"""Every public estimator, once or more, with what it needs to be computed exactly. For tests and the proof table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import logderiv as ld
from logderiv.estimators import DiCE, DrGRPO, LoadedDiCE, OptimalPerParameter
from logderiv.estimators.advantages import Grouped, Return, Standardized, ToGo
from logderiv.estimators.baselines import BatchMean, Constant, LeaveOneOut, MovingAverage
from logderiv.estimators.bootstrapped import GAE, VTrace
from logderiv.estimators.importance import Importance
from logderiv.estimators.least_variance import Optimal
from logderiv.estimators.values import LearnedValue, Value

DISCOUNT = 0.9


class Entry(NamedTuple):
    """One estimator.

    Attributes:
        estimator: The estimator.
        state: From parameters to a state that has seen something; `None` for `estimator.init`.
        off_policy: It takes trajectories that another policy drew.
        ending: Its declaration assumes that every trajectory terminates within the horizon.
    """

    estimator: Any
    state: Callable[[Any], Any] | None = None
    off_policy: bool = False
    ending: bool = False


def table_value(values: Any, observation: Any) -> Any:
    """A value function: one number per live state, the goal sharing the last."""
    return values[jnp.minimum(observation, values.shape[0] - 1)]


def wrong_values(params: Any) -> Any:
    """Numbers that are not the values of anything."""
    del params
    return jnp.array([0.7, -0.3])


def _learned_state(params: Any) -> Any:
    return LEARNED.init(params)


GIVEN = Value(table_value, wrong_values)
LEARNED = LearnedValue(table_value, wrong_values, optax.sgd(0.1), num_steps=2)
LOO = LeaveOneOut()
LOO_RETURN = LeaveOneOut(per="trajectory")
MOVING = MovingAverage(0.9)


def _moving_state(params: Any) -> Any:
    del params
    return type(MOVING.init(jnp.zeros(2)))(jnp.array(0.8), jnp.array(0.5))


def _score(*advantage: Any, **parts: Any) -> ld.ScoreFunction:
    return ld.ScoreFunction(*advantage, discount=DISCOUNT, **parts)


def zoo() -> dict[str, Entry]:
    """Name to entry; `DISCOUNT` is the discount of all."""
    return {**_on_policy(), **_off_policy(), **_any_order(), **_named()}


def _on_policy() -> dict[str, Entry]:
    return {
        "total return": Entry(_score(Return())),
        "reward-to-go": Entry(_score()),
        "reward-to-go, gamma^t left out": Entry(_score(gamma_t=False)),
        "total return, no gamma^t to leave out": Entry(_score(Return(), gamma_t=False)),
        "gae(1), given value": Entry(_score(GAE(1.0, GIVEN)), ending=True),
        "gae(0.5), given value": Entry(_score(GAE(0.5, GIVEN))),
        "gae(0), learned value": Entry(_score(GAE(0.0, LEARNED)), _learned_state),
        "constant": Entry(_score(ToGo(Constant(0.6)))),
        "constant per step": Entry(_score(ToGo(Constant(0.6, per="step")))),
        "moving average": Entry(_score(ToGo(MOVING)), _moving_state),
        "leave one out per step": Entry(_score(ToGo(LOO))),
        "leave one out per trajectory": Entry(_score(Return(LOO_RETURN))),
        "given value": Entry(_score(ToGo(GIVEN))),
        "learned value": Entry(_score(ToGo(LEARNED)), _learned_state),
        "optimal scalar, 2 folds": Entry(_score(ToGo(Optimal()))),
        "optimal per parameter, 2 folds": Entry(OptimalPerParameter(discount=DISCOUNT)),
        "biased: batch mean": Entry(_score(Return(BatchMean()))),
        "biased: batch mean, reward-to-go": Entry(_score(ToGo(BatchMean()))),
        "biased: batch mean per step": Entry(_score(ToGo(BatchMean(per="step")))),
        "biased: optimal in sample": Entry(_score(ToGo(Optimal(in_sample=True)))),
        "biased: optimal per parameter in sample": Entry(OptimalPerParameter(discount=DISCOUNT, in_sample=True)),
        "biased: standardized": Entry(_score(Standardized(ToGo()))),
        "biased: standardized gae": Entry(_score(Standardized(GAE(0.9, GIVEN)))),
        "biased: group-normalized": Entry(_score(Grouped(Standardized(Return(), "trajectory", 1, 1e-4), 2))),
    }


def _off_policy() -> dict[str, Entry]:
    decision, whole = Importance(), Importance(per="trajectory")
    entries = {
        "per decision": _score(importance=decision),
        "per decision, given value": _score(ToGo(GIVEN), importance=decision),
        "per decision, leave one out": _score(ToGo(LOO), importance=decision),
        "trajectory ratio": _score(Return(), importance=whole),
        "trajectory ratio, leave one out": _score(Return(LOO_RETURN), importance=whole),
        "per decision, optimal scalar": _score(ToGo(Optimal()), importance=decision),
        "per decision, optimal per parameter": OptimalPerParameter(discount=DISCOUNT, importance=decision),
        "biased: per decision, total return": _score(Return(), importance=decision),
        "biased: per decision, batch mean": _score(ToGo(BatchMean()), importance=decision),
        "biased: self-normalized": _score(importance=Importance(normalize=True)),
        "biased: self-normalized trajectory": _score(importance=Importance(per="trajectory", normalize=True)),
        "biased: truncated": _score(importance=Importance(truncate=1.1)),
        "biased: V-trace": _score(VTrace(GIVEN)),
        "DiCE, per decision, given value": _score(ToGo(GIVEN), importance=decision, surrogate=DiCE()),
        "DiCE, trajectory ratio": _score(Return(), importance=whole, surrogate=DiCE()),
    }
    ending = {"per decision, gae(1)": Entry(_score(GAE(1.0, GIVEN), importance=decision), off_policy=True, ending=True)}
    return {name: Entry(estimator, off_policy=True) for name, estimator in entries.items()} | ending


def _any_order() -> dict[str, Entry]:
    dice = DiCE()
    return {
        "DiCE": Entry(_score(surrogate=dice)),
        "DiCE, total return": Entry(_score(Return(), surrogate=dice)),
        "DiCE, constant": Entry(_score(ToGo(Constant(0.6, per="step")), surrogate=dice)),
        "DiCE, moving average": Entry(_score(ToGo(MOVING), surrogate=dice), _moving_state),
        "DiCE, given value": Entry(_score(ToGo(GIVEN), surrogate=dice)),
        "DiCE, leave one out": Entry(_score(ToGo(LOO), surrogate=dice)),
        "DiCE, leave one out per trajectory": Entry(_score(ToGo(LOO_RETURN), surrogate=dice)),
        "DiCE, optimal scalar": Entry(_score(ToGo(Optimal()), surrogate=dice)),
        "DiCE, gae(1)": Entry(_score(GAE(1.0, GIVEN), surrogate=dice), ending=True),
        "biased: DiCE, batch mean": Entry(_score(ToGo(BatchMean()), surrogate=dice)),
        "loaded DiCE(1), given value": Entry(_score(ToGo(GIVEN), surrogate=LoadedDiCE(1.0))),
        "loaded DiCE(0.5)": Entry(_score(surrogate=LoadedDiCE(0.5))),
    }


def _named() -> dict[str, Entry]:
    return {
        "PPO, leave one out": Entry(ld.PPO(ToGo(LOO), discount=DISCOUNT)),
        "PPO, gamma^t left out": Entry(ld.PPO(discount=DISCOUNT, gamma_t=False)),
        "actor-critic, gae(1), given value": Entry(ld.ActorCritic(_score(GAE(1.0, GIVEN))), ending=True),
        "actor-critic, learned value, PPO": Entry(
            ld.ActorCritic(ld.PPO(ToGo(LEARNED), discount=DISCOUNT)), _learned_state
        ),
        "actor-critic, leave one out": Entry(ld.ActorCritic(_score(ToGo(LOO)))),
        "PPO per step of the batch": Entry(ld.PPO(discount=DISCOUNT, normalizer="per_step_of_batch")),
        "RLOO": Entry(ld.RLOO(discount=DISCOUNT)),
        "RLOO in groups of 2": Entry(ld.RLOO(group_size=2, discount=DISCOUNT)),
        "GRPO": Entry(ld.GRPO(group_size=2, discount=DISCOUNT)),
        "Dr. GRPO": Entry(DrGRPO(group_size=2, discount=DISCOUNT)),
    }
