"""What an environment returns, taken on: in the protocol's order, in one shape and one dtype throughout, with ends that are booleans."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import array_of, summable
from logderiv.types import Key, Step

START = ("observation", "state")
_ORDER = f"the order is ({', '.join(Step._fields)})"
_KINDS = (jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating)


def reward_shape(environment: Any) -> tuple[int, ...]:
    """Shape of one reward: `()`, or a place for each player of a game, an environment with the attribute `num_players`."""
    players = getattr(environment, "num_players", None)
    return () if players is None else (int(players),)


def reset(environment: Any, key: Key, params: Any = None) -> tuple[Any, Any]:
    """Observation and state at a start, as arrays.

    Raises:
        TypeError: Not two values.
    """
    start = _values("reset", environment.reset(key, params), START)
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), tuple(start))


def step(environment: Any, key: Key, before: tuple[Any, Any], action: Any, params: Any = None) -> Step:
    """One transition from observation and state `before`, of which the new ones have structure, shapes and dtypes.

    Raises:
        TypeError, ValueError: Not five values in the protocol's order; a reward or an end that is not one real number; observation or
            state of another structure, shape or kind than `before`.
    """
    new = Step(*_values("step", environment.step(key, before[1], action, params), Step._fields))
    hint = f"not as reset returned it; {_ORDER}, and not Gymnasium's"
    named = enumerate(zip(START, new[:2], before, strict=True))
    place = [as_before(f"environment.step: value {i}, {name}", now, old, hint=hint) for i, (name, now, old) in named]
    reward = summable(_number(2, new, reward_shape(environment)))
    terminated, truncated = (_number(i, new).astype(bool) for i in (3, 4))
    return Step(place[0], place[1], reward, terminated, truncated)


def as_before(name: str, new: Any, old: Any, *, source: str = "reset", hint: str) -> Any:
    """`new` in the dtypes of `old`, which the function `source` returned.

    Raises:
        ValueError: Another structure or other shapes.
        TypeError: Numbers of another kind, or wider than the narrow ones of `old`: they would be cut off.
    """
    check.like(name, new, old, hint=hint)

    def leaf(path: Any, a: Any, b: Any) -> Any:
        before = jnp.result_type(b)
        if not _holds(before, a):
            after = jnp.result_type(a)
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} is {before} after {source} and {after} after step; let {source} return {after} "
                f"too, or fractions and large numbers would be cut off; {hint}."
            )
        return jnp.asarray(a, before)

    return jax.tree_util.tree_map_with_path(leaf, new, old)


def _holds(before: Any, new: Any) -> bool:
    """Whether an array of dtype `before` can take these numbers: of the same kind or a simpler one, and not cut off in fewer than 32 bits."""
    after = jnp.result_type(new)
    if before == after or jnp.issubdtype(before, jax.dtypes.prng_key) or jnp.issubdtype(after, jax.dtypes.prng_key):
        return before == after
    kinds = [next(i for i, kind in enumerate(_KINDS) if jnp.issubdtype(dtype, kind)) for dtype in (before, after)]
    weak = getattr(jax.typeof(new), "weak_type", False)
    return kinds[1] < kinds[0] or (kinds[1] == kinds[0] and (weak or before.itemsize >= min(after.itemsize, 4)))


def _values(method: str, found: Any, names: tuple[str, ...]) -> Any:
    """The values that a method returned, as many as they should be."""
    expected = f"environment.{method}: expected ({', '.join(names)}), {len(names)} values"
    if not isinstance(found, (tuple, list)):
        hint = "an environment of a suite is passed as it is, or wrapped"
        raise TypeError(f"{expected}, received one {type(found).__name__}; {hint}.")
    if len(found) != len(names):
        raise TypeError(f"{expected}, received {len(found)} values: {', '.join(map(_described, found))}.")
    return found


def _number(position: int, new: Step, shape: tuple[int, ...] = ()) -> jax.Array:
    """The reward or an end, as an array of this shape; where the shape is `()`, any array with one entry will do."""
    value, name = new[position], Step._fields[position]
    address = f"environment.step: value {position}, {name}"
    if not isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex, list)):
        raise TypeError(f"environment.step: value {position} is a {type(value).__name__}, expected {name}; {_ORDER}.")
    value = array_of(value, address)
    if shape == () and value.size == 1:
        return value.reshape(())
    of_games = "; a game has the attribute num_players, and a place for each player" if name == "reward" else ""
    check.shape(shape, hint=f"one number{of_games}", **{address: value})
    return value


def _described(value: Any) -> str:
    shaped = isinstance(value, (jax.Array, np.ndarray, np.generic))
    return f"{value.dtype}{list(value.shape)}" if shaped else f"a {type(value).__name__}"
