"""Gymnasium environments by rows: one after the other, or CartPole in numpy; what their spaces hold and allow."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.optional import optional
from logderiv.environments._masks import LEAF, host_mask
from logderiv.environments._spaces import action_space, from_start, map_spaces, parts_of
from logderiv.environments.gymnasium.host import Leaves

_CARTPOLE = "gymnasium.envs.classic_control.cartpole:CartPoleVectorEnv"


def remake(spec: Any) -> Any:
    """What makes further environments like the one of a spec: its JSON, or its own function where JSON cannot say it."""
    try:
        words = spec.to_json()
    except (TypeError, ValueError):  # something in it is a function
        return spec.make
    return words if _spec(words) == spec else spec.make


def make(source: Any) -> Any:
    """One environment from an id, a spec as JSON, or a function that makes one."""
    return source() if callable(source) else _spec(source).make()


@functools.cache
def described(source: Any) -> tuple[int | None, Any, Any]:
    """Its time limit, and the spaces of what it observes and takes, as `nested` gives them.

    Raises:
        TypeError: It is a vector environment.
    """
    single = make(source)
    if is_vector(single):
        single.close()
        raise TypeError(
            f"make: expected a function that makes one environment, received one that makes {single}; pass "
            "logderiv.environments.Gymnasium(id), or a function with gymnasium.make: as many are made here as the batch has rows."
        )
    limit = getattr(getattr(single, "spec", None), "max_episode_steps", None)
    spaces = nested(single.observation_space), nested(single.action_space)
    single.close()
    return limit, *spaces


def is_vector(environment: Any) -> bool:
    """Whether it steps several environments at once."""
    return getattr(environment, "num_envs", None) is not None


def maker(source: Any, mask: str | None = None) -> Callable[[int], Any]:
    """How to make `n` environments at once: in numpy where that is known to be the same environment, without a mask."""
    spec: Any = source if callable(source) else _spec(source)
    if getattr(spec, "vector_entry_point", None) == _CARTPOLE and not spec.additional_wrappers and mask is None:
        options = {k: v for k, v in spec.kwargs.items() if k != "render_mode"}
        return lambda n: CartPoles(n, spec.max_episode_steps, options)
    return lambda n: OneByOne([make(source) for _ in range(n)], mask)


class OneByOne:
    """A list of environments; with `mask` the entry of this name of their `info` is a leaf of the observation."""

    def __init__(self, environments: list[Any], mask: str | None = None) -> None:
        self.environments, self.mask = environments, mask
        self.times = np.zeros(len(environments), int)
        self.seen = nested(environments[0].observation_space)
        self.space = action_space(nested(environments[0].action_space))
        self.structure = jax.tree.structure(nested(environments[0].action_space))

    def restart(self, rows: np.ndarray, seeds: np.ndarray) -> Leaves:
        """Reset these rows."""
        pairs = zip(rows.tolist(), seeds.tolist(), strict=True)
        self.times[rows] = 0
        return _stack([self._observed(row, *self.environments[row].reset(seed=seed)) for row, seed in pairs])

    def step(self, rows: np.ndarray, action: Leaves) -> tuple[Leaves, np.ndarray]:
        """Step these rows."""
        actions = (jax.tree.unflatten(self.structure, [a[i] for a in action]) for i in range(len(rows)))
        new = [self.environments[row].step(a) for row, a in zip(rows.tolist(), actions, strict=True)]
        outcomes = np.array([_outcome(x) for x in new])
        self.times[rows] += 1
        over = [bool(o.any()) for o in outcomes[:, 1:]]
        seen = (self._observed(row, x[0], x[4], o) for row, x, o in zip(rows.tolist(), new, over, strict=True))
        return _stack(list(seen)), outcomes

    def _observed(self, row: int, observation: Any, info: Any, over: bool = False) -> Any:
        """What a policy sees: the observation, and the mask where there is one."""
        observation = _arranged(self.seen, observation)
        if self.mask is None:
            return observation
        where = f"info[{self.mask!r}] after step {self.times[row]} of row {row}"
        if self.mask not in info:
            raise ValueError(f"{where}: expected the mask of the actions, received info with {list(info)}.")
        return {"observation": observation, LEAF: host_mask(self.space, info[self.mask], where, over=over)}

    def close(self) -> None:
        """Close all."""
        for environment in self.environments:
            environment.close()


class CartPoles:
    """Gymnasium's `CartPoleVectorEnv`, with its auto-reset off and each row seeded as a single environment would be."""

    def __init__(self, n: int, max_episode_steps: int | None, options: dict[str, Any]) -> None:
        vectorized = _library().envs.registration.load_env_creator(_CARTPOLE)
        self.vector = vectorized(n, max_episode_steps=max_episode_steps or 2**30, **options)
        self.vector.reset(seed=0)

    def restart(self, rows: np.ndarray, seeds: np.ndarray) -> Leaves:
        """Draw a start for each of these rows."""
        vector, generator = self.vector, _library().utils.seeding.np_random
        starts = [generator(seed)[0].uniform(vector.low, vector.high, size=4) for seed in seeds.tolist()]
        vector.state[:, rows] = np.stack(starts, 1)
        vector.steps[rows] = 0
        return [vector.state.T[rows].astype(np.float32)]

    def step(self, rows: np.ndarray, action: Leaves) -> tuple[Leaves, np.ndarray]:
        """Step these rows; numpy steps the others too, and they are put back."""
        vector, everyone = self.vector, np.zeros(self.vector.num_envs, np.int64)
        everyone[rows] = action[0]
        state, steps = vector.state, vector.steps.copy()
        observation, reward, terminated, truncated, _ = vector.step(everyone)
        vector.prev_done[:] = False
        resting = np.ones(len(everyone), bool)
        resting[rows] = False
        vector.state[:, resting], vector.steps[resting] = state[:, resting], steps[resting]
        return [observation[rows]], np.stack([reward[rows], terminated[rows], truncated[rows]], 1)

    def close(self) -> None:
        """Nothing is held."""
        self.vector.close()


def nested(space: Any) -> Any:
    """The spaces of arrays that a space is made of: one, or tuples and dicts of them.

    Raises:
        TypeError: A space without a fixed shape.
    """
    inner = parts_of(space)
    if inner is not None:
        return map_spaces(nested, inner)
    if getattr(space, "shape", None) is None or getattr(space, "dtype", None) is None:
        raise TypeError(f"Gymnasium: expected spaces of arrays, received {space}; flatten it with a gymnasium wrapper.")
    return space


def checked(space: Any, action: np.ndarray, clip: bool) -> np.ndarray:
    """Actions of all rows, inside their space of arrays, in its dtype; whole ones are counted from 0 and leave here from its `start`.

    Raises:
        ValueError: One is outside; says which.
    """
    low, high, fix = _bounds(space)
    if clip and type(space).__name__ == "Box":
        action = np.clip(action, low, high)
    least, largest = low, high
    if jnp.issubdtype(action.dtype, jnp.floating):  # a bound of the space may have more digits than actions have
        least, largest = (np.asarray(x).astype(action.dtype) for x in (low, high))
    outside = ~((action >= least) & (action <= largest))  # NaN too
    if outside.any():
        row = int(np.argwhere(outside)[0, 0])
        raise ValueError(f"action: expected one of {space}, received {action[row]} in row {row}; {fix}.")
    return from_start(space, np.clip(action.astype(space.dtype), low, high))


def _library() -> Any:
    return optional("gymnasium", "Gymnasium needs the package gymnasium", "envs")


def _spec(source: str) -> Any:
    """Gymnasium's description of an environment, from an id or from JSON."""
    library = _library()
    return library.envs.registration.EnvSpec.from_json(source) if source.startswith("{") else library.spec(source)


def _bounds(space: Any) -> tuple[Any, Any, str]:
    """The least and the largest action, and what helps where one is outside."""
    name, fix = type(space).__name__, "counted from 0, is the last layer as wide as the number of actions?"
    if name in ("Discrete", "MultiDiscrete"):
        return 0, (space.n if name == "Discrete" else space.nvec) - 1, fix
    if name == "MultiBinary":
        return 0, 1, fix
    return (
        space.low,
        space.high,
        "use logderiv.distributions.TanhNormal with these bounds, or Gymnasium(..., clip=True)",
    )


def _outcome(found: Any) -> list[float]:
    """Reward, terminated and truncated of one step."""
    if not isinstance(found, tuple) or len(found) != 5:
        received = f"{len(found)} values" if isinstance(found, tuple) else type(found).__name__
        raise TypeError(
            f"environment.step: expected (observation, reward, terminated, truncated, info), received {received}."
        )
    for position, name in enumerate(("reward", "terminated", "truncated"), 1):
        value = np.asarray(found[position])
        if value.size != 1 or value.dtype.kind in "cOSU":
            raise TypeError(
                f"environment.step: value {position}, {name}: expected one real number, received {found[position]!r}."
            )
    return [float(np.asarray(value).item()) for value in found[1:4]]


def _arranged(space: Any, observation: Any, path: str = "") -> Any:
    """An observation in the form of its space, by keys and not by their order.

    Raises:
        ValueError: Of another shape, or a whole number that the dtype of its space does not hold.
        TypeError: Real numbers for whole ones, which would be cut off.
    """
    inner = parts_of(space)
    if inner is not None:
        keys = inner if isinstance(inner, dict) else range(len(inner))
        rows = {key: _arranged(inner[key], observation[key], f"{path}[{key!r}]") for key in keys}
        return rows if isinstance(inner, dict) else tuple(rows.values())
    value = np.asarray(observation)
    if value.shape != space.shape:
        raise ValueError(f"observation{path}: expected shape {space.shape} of {space}, received {value.shape}.")
    if jnp.issubdtype(value.dtype, jnp.inexact) and not jnp.issubdtype(space.dtype, jnp.inexact):
        raise TypeError(f"observation{path}: expected whole numbers of {space}, received {value.dtype}.")
    return in_dtype(f"observation{path}", value, space.dtype)


def in_dtype(name: str, numbers: np.ndarray, dtype: Any) -> np.ndarray:
    """The numbers in this dtype, real ones rounded.

    Raises:
        ValueError: A whole number that it does not hold, which would wrap around.
    """
    found = numbers.astype(dtype, copy=False)
    if not jnp.issubdtype(dtype, jnp.inexact) and (wrapped := np.asarray(found != numbers)).any():
        raise ValueError(
            f"{name}: expected whole numbers that {np.dtype(dtype)} holds, received {numbers[wrapped][0]}; scale them, or give the "
            "space a wider dtype: one of 64 bits needs jax.config.update('jax_enable_x64', True)."
        )
    return found


def _stack(values: list[Any]) -> Leaves:
    return [np.stack(leaves) for leaves in zip(*map(jax.tree.leaves, values), strict=True)]
