"""Every public estimator, baseline and advantage, once or more, to be computed exactly. For tests and the proof table.

A class that is new in `logderiv.baselines` or `logderiv.advantages` and needs no arguments is found and walked by itself; of one
that does, `missing` tells the name until it has an example here.
"""

import dataclasses
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax

import logderiv as ld
from logderiv.advantages import GAE, Advantage, Credit, Grouped, Return, ScaledRewards, Standardized, ToGo, VTrace
from logderiv.baselines import (
    BatchMean,
    Constant,
    LearnedValue,
    LeaveOneOut,
    MovingAverage,
    MovingAverageState,
    Optimal,
    Value,
)
from logderiv.estimators import Declaration, DiCE, DrGRPO, LoadedDiCE, OptimalPerParameter
from logderiv.estimators.declaration import Part
from logderiv.importance import Importance
from logderiv.policies import RunningMoments

DISCOUNT = 0.9
SPREAD = 2.5  # of rewards, in a state that has seen some


def table_value(values: Any, observation: Any) -> Any:
    """A value function: one number per live state, the goal sharing the last."""
    return values[jnp.minimum(observation, values.shape[0] - 1)]


def wrong_values(params: Any) -> Any:
    """Numbers that are not the values of anything."""
    del params
    return jnp.array([0.7, -0.3])


def wrong_value(params: Any, observation: Any) -> Any:
    """The same as the value of an actor-critic."""
    return table_value(wrong_values(params), observation)


def own_credit(rewards: Any, discounts: Any) -> Any:
    """A user's credit, which declares itself."""
    return ld.advantages.reward_to_go(rewards, discounts)


setattr(own_credit, "declaration", Declaration())  # noqa: B010, the type checker knows no attributes of functions
GIVEN = Value(table_value, wrong_values)
LEARNED = LearnedValue(table_value, wrong_values, optax.sgd(0.1), num_steps=2)
LOO = LeaveOneOut()
UNBIASED = {
    "constant": Constant(0.6),
    "constant per step": Constant(0.6, per="step"),
    "moving average": MovingAverage(0.9),
    "leave one out per step": LOO,
    "leave one out per trajectory": LeaveOneOut(per="trajectory"),
    "given value": GIVEN,
    "learned value": LEARNED,
    "optimal scalar, 2 folds": Optimal(),
}
BASELINES = {
    **UNBIASED,
    "biased: batch mean": BatchMean(),
    "biased: batch mean per step": BatchMean(per="step"),
    "biased: optimal in sample": Optimal(in_sample=True),
}


def _score(*advantage: Any, **parts: Any) -> ld.ScoreFunction:
    return ld.ScoreFunction(*advantage, discount=DISCOUNT, **parts)


def zoo() -> dict[str, Any]:
    """Name to estimator; `DISCOUNT` is the discount of all."""
    known = {**_on_policy(), **_off_policy(), **_any_order(), **_named()}
    used, new = set().union(*map(_classes, known.values())), {}
    for name, part in listed().items():
        settings = inspect.signature(part).parameters.values()
        if part not in used and all(setting.default is not setting.empty for setting in settings):
            new[name] = _score(part() if issubclass(part, Advantage) else ToGo(part()))
    return known | new


def listed() -> dict[str, Any]:
    """Public baselines and advantages by name, without those that are only bases."""
    found = {name: getattr(family, name) for family in (ld.baselines, ld.advantages) for name in family.__all__}
    parts = {name: part for name, part in found.items() if inspect.isclass(part) and issubclass(part, Part)}
    return {name: part for name, part in parts.items() if dataclasses.is_dataclass(part)}


def missing() -> list[str]:
    """Names of those that no estimator of the zoo is made of."""
    used = set().union(*map(_classes, zoo().values()))
    return [name for name, part in listed().items() if part not in used]


def _classes(part: Any) -> set[type]:
    """The classes of an object and of all that it is made of."""
    fields = dataclasses.fields(part) if dataclasses.is_dataclass(part) else ()
    return {type(part)}.union(*(_classes(getattr(part, field.name)) for field in fields))


def off_policy(estimator: Any) -> bool:
    """Whether it takes trajectories that another policy drew."""
    actor = getattr(estimator, "actor", estimator)
    return actor.importance is not None or actor.advantage.own_ratios


def ending(estimator: Any) -> bool:
    """Whether its declaration assumes that every trajectory terminates within the horizon."""
    return any("terminates within the horizon" in assumed for assumed in estimator.declaration.assumes)


def seen(estimator: Any, params: Any) -> Any:
    """The first state, but a moving average and running moments have seen something."""

    def known(state: Any) -> bool:
        return isinstance(state, MovingAverageState | RunningMoments)

    def leaf(state: Any) -> Any:
        if isinstance(state, RunningMoments):
            return RunningMoments(*map(jnp.array, (7.0, 0.3, SPREAD**2)))
        return MovingAverageState(jnp.array(0.8), jnp.array(0.5)) if known(state) else state

    return jax.tree.map(leaf, estimator.init(params), is_leaf=known)


def possible_numbers(estimator: Any, most: int) -> list[int]:
    """Batch sizes up to `most` that the estimator takes."""
    size = getattr(estimator, "group_size", None) or getattr(getattr(estimator, "advantage", None), "group_size", 1)
    return [n for n in range(estimator.structure.min_trajectories, most + 1) if n % size == 0]


def _on_policy() -> dict[str, Any]:
    return {
        "total return": _score(Return()),
        "reward-to-go": _score(),
        "credit of one's own": _score(Credit(own_credit, past_rewards=False)),
        "reward-to-go, gamma^t left out": _score(gamma_t=False),
        "total return, no gamma^t to leave out": _score(Return(), gamma_t=False),
        "gae(1), given value": _score(GAE(1.0, GIVEN)),
        "gae(0.5), given value": _score(GAE(0.5, GIVEN)),
        "gae(0), learned value": _score(GAE(0.0, LEARNED)),
        **{name: _score(ToGo(baseline)) for name, baseline in BASELINES.items()},
        "optimal per parameter, 2 folds": OptimalPerParameter(discount=DISCOUNT),
        "biased: optimal per parameter in sample": OptimalPerParameter(discount=DISCOUNT, in_sample=True),
        "biased: standardized": _score(Standardized(ToGo())),
        "biased: standardized gae": _score(Standardized(GAE(0.9, GIVEN))),
        "biased: rewards over a fixed scale": _score(ScaledRewards(ToGo(), 2.5)),
        "biased: rewards over a running scale": _score(ScaledRewards(ToGo())),
        "biased: group-normalized": _score(Grouped(Standardized(Return(), "trajectory", 1, 1e-4), 2)),
    }


def _off_policy() -> dict[str, Any]:
    decision, whole = Importance(), Importance(per="trajectory")
    return {
        "per decision": _score(importance=decision),
        "per decision, given value": _score(ToGo(GIVEN), importance=decision),
        "per decision, gae(1)": _score(GAE(1.0, GIVEN), importance=decision),
        "per decision, leave one out": _score(ToGo(LOO), importance=decision),
        "trajectory ratio": _score(Return(), importance=whole),
        "trajectory ratio, leave one out": _score(Return(LeaveOneOut(per="trajectory")), importance=whole),
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


def _any_order() -> dict[str, Any]:
    return {
        "DiCE": _score(surrogate=DiCE()),
        "DiCE, total return": _score(Return(), surrogate=DiCE()),
        **{f"DiCE, {name}": _score(ToGo(baseline), surrogate=DiCE()) for name, baseline in UNBIASED.items()},
        "DiCE, gae(1)": _score(GAE(1.0, GIVEN), surrogate=DiCE()),
        "biased: DiCE, batch mean": _score(ToGo(BatchMean()), surrogate=DiCE()),
        "loaded DiCE(1), given value": _score(ToGo(GIVEN), surrogate=LoadedDiCE(1.0)),
        "loaded DiCE(0.5)": _score(surrogate=LoadedDiCE(0.5)),
    }


def _named() -> dict[str, Any]:
    return {
        "PPO, leave one out": ld.PPO(ToGo(LOO), discount=DISCOUNT),
        "PPO, gamma^t left out": ld.PPO(discount=DISCOUNT, gamma_t=False),
        "actor-critic, gae(1), given value": ld.ActorCritic(_score(GAE(1.0, GIVEN))),
        "actor-critic, gae(1), its own value": ld.ActorCritic(_score(GAE(1.0)), wrong_value),
        "actor-critic, learned value, PPO": ld.ActorCritic(ld.PPO(ToGo(LEARNED), discount=DISCOUNT)),
        "actor-critic, leave one out": ld.ActorCritic(_score(ToGo(LOO))),
        "PPO per step of the batch": ld.PPO(discount=DISCOUNT, normalizer="per_step_of_batch"),
        "RLOO": ld.RLOO(discount=DISCOUNT),
        "RLOO in groups of 2": ld.RLOO(group_size=2, discount=DISCOUNT),
        "GRPO": ld.GRPO(group_size=2, discount=DISCOUNT),
        "Dr. GRPO": DrGRPO(group_size=2, discount=DISCOUNT),
    }
