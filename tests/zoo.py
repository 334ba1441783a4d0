"""Every public estimator, once or more, with what it needs to be computed exactly. For tests and the proof table."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from logderiv import estimators as e
from logderiv.estimators import baselines as b
from logderiv.estimators import credit as c
from logderiv.estimators import importance as i
from logderiv.estimators import surrogates as s

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


GIVEN = b.baseline_value(table_value, wrong_values)
LEARNED = b.baseline_learned_value(table_value, wrong_values, optax.sgd(0.1), num_steps=2)
LOO = b.baseline_leave_one_out()
LOO_RETURN = b.baseline_leave_one_out(per="trajectory")
MOVING = b.baseline_moving_average(0.9)


def _moving_state(params: Any) -> Any:
    del params
    return type(MOVING.init(None))(jnp.array(0.8), jnp.array(0.5))


def _score(**parts: Any) -> e.ScoreFunction:
    return e.score_function(discount=DISCOUNT, **parts)


def zoo() -> dict[str, Entry]:
    """Name to entry; `DISCOUNT` is the discount of all."""
    dice, decision, whole = s.dice_surrogate, i.importance_per_decision(), i.importance_trajectory()
    return {
        "total return": Entry(_score(credit=c.total_return)),
        "reward-to-go": Entry(_score()),
        "reward-to-go, gamma^t left out": Entry(e.score_function_without_gamma_t(discount=DISCOUNT)),
        "total return, no gamma^t to leave out": Entry(
            e.score_function_without_gamma_t(credit=c.total_return, discount=DISCOUNT)
        ),
        "gae(1), given value": Entry(_score(credit=c.gae(1.0), baseline=GIVEN), ending=True),
        "gae(0.5), given value": Entry(_score(credit=c.gae(0.5), baseline=GIVEN)),
        "gae(0), learned value": Entry(_score(credit=c.gae(0.0), baseline=LEARNED), _learned_state),
        "constant": Entry(_score(baseline=b.baseline_constant(0.6))),
        "constant per step": Entry(_score(baseline=b.baseline_constant(0.6, per="step"))),
        "moving average": Entry(_score(baseline=MOVING), _moving_state),
        "leave one out per step": Entry(_score(baseline=LOO)),
        "leave one out per trajectory": Entry(_score(credit=c.total_return, baseline=LOO_RETURN)),
        "given value": Entry(_score(baseline=GIVEN)),
        "learned value": Entry(_score(baseline=LEARNED), _learned_state),
        "optimal scalar, 2 folds": Entry(_score(baseline=b.baseline_optimal())),
        "optimal per parameter, 2 folds": Entry(e.optimal_per_parameter(discount=DISCOUNT)),
        "biased: batch mean": Entry(_score(credit=c.total_return, baseline=b.baseline_biased_batch_mean())),
        "biased: batch mean, reward-to-go": Entry(_score(baseline=b.baseline_biased_batch_mean())),
        "biased: batch mean per step": Entry(_score(baseline=b.baseline_biased_batch_mean(per="step"))),
        "biased: optimal in sample": Entry(_score(baseline=b.baseline_biased_optimal_in_sample())),
        "biased: optimal per parameter in sample": Entry(e.optimal_per_parameter_biased_in_sample(discount=DISCOUNT)),
        "biased: standardized": Entry(_score(baseline=b.baseline_biased_standardized())),
        "biased: standardized gae": Entry(_score(credit=c.gae(0.9), baseline=b.baseline_biased_standardized(GIVEN))),
        "biased: group-normalized": Entry(
            _score(credit=c.total_return, baseline=b.baseline_biased_group_normalized(2))
        ),
        "per decision": Entry(_score(importance=decision), off_policy=True),
        "per decision, given value": Entry(_score(importance=decision, baseline=GIVEN), off_policy=True),
        "per decision, leave one out": Entry(_score(importance=decision, baseline=LOO), off_policy=True),
        "per decision, gae(1)": Entry(
            _score(importance=decision, credit=c.gae(1.0), baseline=GIVEN), off_policy=True, ending=True
        ),
        "trajectory ratio": Entry(_score(importance=whole, credit=c.total_return), off_policy=True),
        "trajectory ratio, leave one out": Entry(
            _score(importance=whole, credit=c.total_return, baseline=LOO_RETURN), off_policy=True
        ),
        "per decision, optimal scalar": Entry(
            _score(importance=decision, baseline=b.baseline_optimal()), off_policy=True
        ),
        "per decision, optimal per parameter": Entry(
            e.optimal_per_parameter(importance=decision, discount=DISCOUNT), off_policy=True
        ),
        "biased: per decision, batch mean": Entry(
            _score(importance=decision, baseline=b.baseline_biased_batch_mean()), off_policy=True
        ),
        "biased: self-normalized": Entry(_score(importance=i.importance_self_normalized()), off_policy=True),
        "biased: self-normalized trajectory": Entry(
            _score(importance=i.importance_self_normalized(product="trajectory")), off_policy=True
        ),
        "biased: truncated": Entry(_score(importance=i.importance_truncated(1.1)), off_policy=True),
        "biased: V-trace": Entry(e.vtrace_gradient(baseline=GIVEN, discount=DISCOUNT), off_policy=True),
        "DiCE": Entry(_score(surrogate=dice)),
        "DiCE, total return": Entry(_score(surrogate=dice, credit=c.total_return)),
        "DiCE, constant": Entry(_score(surrogate=dice, baseline=b.baseline_constant(0.6, per="step"))),
        "DiCE, moving average": Entry(_score(surrogate=dice, baseline=MOVING), _moving_state),
        "DiCE, given value": Entry(_score(surrogate=dice, baseline=GIVEN)),
        "DiCE, leave one out": Entry(_score(surrogate=dice, baseline=LOO)),
        "DiCE, leave one out per trajectory": Entry(_score(surrogate=dice, baseline=LOO_RETURN)),
        "DiCE, optimal scalar": Entry(_score(surrogate=dice, baseline=b.baseline_optimal())),
        "DiCE, gae(1)": Entry(_score(surrogate=dice, credit=c.gae(1.0), baseline=GIVEN), ending=True),
        "DiCE, per decision, given value": Entry(
            _score(surrogate=dice, importance=decision, baseline=GIVEN), off_policy=True
        ),
        "DiCE, trajectory ratio": Entry(
            _score(surrogate=dice, importance=whole, credit=c.total_return), off_policy=True
        ),
        "biased: DiCE, batch mean": Entry(_score(surrogate=dice, baseline=b.baseline_biased_batch_mean())),
        "loaded DiCE(1), given value": Entry(_score(surrogate=s.loaded_dice(1.0), baseline=GIVEN)),
        "loaded DiCE(0.5)": Entry(_score(surrogate=s.loaded_dice(0.5))),
        "PPO, leave one out": Entry(e.ppo(baseline=LOO, discount=DISCOUNT)),
        "PPO, gamma^t left out": Entry(e.ppo_without_gamma_t(discount=DISCOUNT)),
        "actor-critic, gae(1), given value": Entry(
            e.actor_critic(_score(credit=c.gae(1.0), baseline=GIVEN)), ending=True
        ),
        "actor-critic, learned value, PPO": Entry(
            e.actor_critic(e.ppo(baseline=LEARNED, discount=DISCOUNT)), _learned_state
        ),
        "actor-critic, leave one out": Entry(e.actor_critic(_score(baseline=LOO))),
        "PPO per token": Entry(e.ppo(discount=DISCOUNT, normalizer="per_token")),
        "RLOO": Entry(e.rloo(discount=DISCOUNT)),
        "RLOO in groups of 2": Entry(e.rloo(group_size=2, discount=DISCOUNT)),
        "GRPO": Entry(e.grpo(group_size=2, discount=DISCOUNT)),
        "Dr. GRPO": Entry(e.dr_grpo(group_size=2, discount=DISCOUNT)),
    }
