"""How `test_project_dtypes` calls a function: the arguments that are numbers, and the rest of the call."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Lists and numbers are given where the signatures say arrays.

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from logderiv import environments, exact

KEY = jax.random.key(0)
ROW, TABLE = [0.3, -0.9, 120.2], [[0.3, -0.2, 1.4], [0.5, 2.1, -0.7]]
ENDS, UNIT, MASK = [1.0, 1.0, 0.0], [0.999, 0.37, 0.0], [1.0, 1.0, 0.0]
EYE, LOGITS = [[1.0, 0.0], [0.0, 1.0]], [0.3, -0.9]


class Case(NamedTuple):
    """A call; its arguments that are numbers, those among them that are whole; and what messages call an argument, a pattern."""

    call: Callable[..., Any]
    numbers: dict[str, np.ndarray]
    whole: tuple[str, ...] = ()
    names: dict[str, str] = {}  # noqa: RUF012, not changed


def case(
    call: Callable[..., Any], whole: tuple[str, ...] = (), names: dict[str, str] | None = None, **numbers: Any
) -> Case:
    return Case(call, {name: np.asarray(x, float) for name, x in numbers.items()}, whole, names or {})


class Clock:
    """Three steps, of which it is given what they pay and whether they are the last."""

    horizon, num_actions = 3, 2

    def __init__(self, reward: Any, terminated: Any) -> None:
        self.reward, self.terminated = jnp.asarray(reward), jnp.asarray(terminated)

    def reset(self, key: Any, params: Any = None) -> Any:
        return jnp.int32(0), jnp.int32(0)

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        return state + 1, state + 1, self.reward[state], self.terminated[state], 0


def taus(**fields: Any) -> ld.Trajectory:
    """Two trajectories of three steps, with these fields."""
    ones = jnp.ones((2, 3))
    usual = {"observations": jnp.zeros((2, 3), int), "actions": jnp.array([[0, 1, 1], [1, 0, 0]]), "rewards": ones}
    usual |= {"discounts": ones, "valid": ones > 0, "behavior_log_probs": -ones, "final_observation": jnp.zeros(2, int)}
    return ld.Trajectory(**usual | fields)


def one(**fields: Any) -> ld.Trajectory:
    """The first of `taus`."""
    return jax.tree.map(lambda x: x[0], taus())._replace(**fields)


def estimate(estimator: Any, trajectories: Any = None, params: Any = None) -> Any:
    params = jnp.array(LOGITS) if params is None else params
    trajectories = taus() if trajectories is None else trajectories
    return estimator.estimate(params, estimator.init(params), ld.shared_softmax, trajectories)[0].grads


def estimated(make: Callable[[], Any]) -> Case:
    """The gradient of an estimator, from trajectories with these fields."""

    def call(**fields: Any) -> Any:
        return estimate(make(), taus(**fields))

    return case(call, rewards=TABLE, discounts=[ENDS, [1, 1, 1]], valid=[MASK, [1, 1, 1]], behavior_log_probs=TABLE)


def set_to(make: Callable[..., Any], **settings: Any) -> Case:
    """The gradient of an estimator with these settings."""
    return case(lambda **kwargs: estimate(make(**kwargs), taus(rewards=jnp.array(TABLE))), **settings)


def by_log_prob(make: Callable[..., Any], action: Any, whole: bool = False, **parameters: Any) -> Case:
    """Log-probability of an action, entropy where there is one, and a draw."""

    def call(action: Any, **parameters: Any) -> Any:
        made = make(**parameters)
        entropy = made.entropy() if hasattr(made, "entropy") else 0.0
        return made.log_prob(action), entropy, made.sample(KEY)

    return case(call, ("action",) if whole else (), {"action": r"action|\bx\b"}, action=action, **parameters)


def flip(params: Any, tape: ld.Tape) -> ld.Tape:
    tape, x = tape.sample(ld.Bernoulli(params))
    return tape.cost(2.5 * x)


def pays(cost: Any, baseline: Any) -> Callable[[Any], None]:
    """A model of every call that takes numbers."""

    def model(params: Any) -> None:
        ld.cost(cost)
        ld.sample(ld.Bernoulli(params), baseline=baseline)
        ld.score(ld.Bernoulli(params), 1, baseline=baseline)
        ld.plate(ld.cost)(jnp.stack([jnp.asarray(params), jnp.asarray(params)]))
        ld.expected(ld.Bernoulli(params), lambda x: 2.5 * x)

    return model


def mdp(reward: Any, **tables: Any) -> Any:
    tables = {"initial": jnp.array([1.0, 0.0]), "transition": jnp.ones((2, 2, 2)) / 2, "terminal": [0, 0]} | tables
    made = environments.TabularMDP(tables["initial"], tables["transition"], reward, tables["terminal"])
    where: Any = (jnp.array([LOGITS, LOGITS]), ld.tabular_softmax, made)
    by_hand = exact.value(*where, horizon=2, discount=0.9, method="enumeration")
    return exact.value(*where, horizon=2, discount=0.9), by_hand


def of_exact(function: Callable[..., Any], **numbers: Any) -> Case:
    def call(params: Any, **kwargs: Any) -> Any:
        return function(params, ld.shared_softmax, environments.short_corridor(horizon=3), horizon=3, **kwargs)

    return case(call, params=LOGITS, **numbers)


def of_trajectories(function: Callable[..., Any]) -> Case:
    """A function of parameters, policy and trajectories."""

    def call(params: Any, valid: Any) -> Any:
        return function(params, ld.shared_softmax, taus(valid=valid))

    return case(call, params=LOGITS, valid=[MASK, [1, 1, 1]])


def score_of_normal(distribution: Any) -> Case:
    def call(params: Any) -> Any:
        made = lambda p: ld.Normal(p, 0.9)  # noqa: E731
        return distribution(params, KEY, made, lambda x: jnp.sum(x**2), num_samples=3)

    return case(call, params=0.37)
