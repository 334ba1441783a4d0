"""The border: numbers, masks, keys, parameters and trajectories, as they are given, become arrays that the rest may trust.

Each function casts, and names what it refuses. Whoever is called with what came through here asks nothing again.
"""

import contextlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from logderiv._core import check
from logderiv._core.trajectories import Stream, Trajectories, Trajectory

_NUMBERS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic, bool, int, float, complex)
_REMEDIES = {  # what helps where this field of a trajectory is missing
    "valid": "ones of dtype bool where all steps are real",
    "final_observation": "a value is taken there",
    "behavior_log_probs": "logderiv.importance.with_behavior fills them in",
}
_REMEDIES_BY_KIND = {  # what helps where an object of this kind is passed as a trajectory; the first that fits
    Stream: "pass stream.steps, trajectories of one step each",
    dict: "use Trajectory(**x)",
    tuple: "use Trajectory(*x)",
    list: "use Trajectory(*x), or stack several with jax.tree.map",
    object: "draw one with logderiv.rollout",
}
_KEPT = "those of trajectory.valid; did one field keep another number of steps?"
HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def expand(mask: jax.Array, like: jax.Array) -> jax.Array:
    """`mask` with trailing axes of length one, so that it broadcasts against `like`."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def nan_unless(right: jax.Array, x: jax.Array) -> jax.Array:
    """`x`, or NaN where it is not `right`, one for each of its leading axes; its derivatives, too, which `jnp.where` would make 0."""
    return x * expand(jnp.where(right, 1, jnp.nan).astype(x.dtype), x)


def unbroken(valid: jax.Array, dtype: Any, name: str = "trajectory.valid") -> jax.Array:
    """The factor of numbers that depend on the order of steps: 1 where the mask is a prefix, NaN where it has a hole. Shape `(*batch, 1)`.

    Raises:
        ValueError: The mask has values, and an entry that is False before one that is True: NaN is for traced ones.
    """
    if isinstance(valid, Tracer):
        holes = jnp.any(valid[..., 1:] & ~valid[..., :-1], axis=-1, keepdims=True)
        return jnp.where(holes, jnp.nan, 1.0).astype(dtype)
    values = np.asarray(valid)
    holes = values[..., 1:] & ~values[..., :-1]
    if holes.any():
        where = tuple(np.argwhere(holes)[0].tolist())
        raise ValueError(
            f"{name}: expected a prefix mask, received a hole: the step at index {where} is invalid and the next one valid, "
            "which would pass for the end of the episode. Keep the step valid (logderiv.distributions.Forced, where its action was not the "
            "policy's own), or split the trajectory there."
        )
    return np.ones((*values.shape[:-1], 1), dtype)  # pyright: ignore[reportReturnType]


def widen(x: jax.Array) -> jax.Array:
    """Integers (booleans too) in 32 bits at least: the sizes that they are compared with may not fit into fewer."""
    return x if x.dtype.itemsize >= 4 else x.astype(jnp.int32)


def named_leaf_by_leaf(function: Any, tree: Any, name: str, is_leaf: Any = None) -> Any:
    """`function` of every leaf of a pytree of this name, and of the leaf's name, such as `params['w']`."""

    def leaf(path: Any, x: Any) -> Any:
        return function(x, name + jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(leaf, tree, is_leaf=is_leaf)


def refuse_complex(**trees: Any) -> None:
    """Raise `TypeError`, naming the leaf, if one of a pytree is complex, as a cast would lose the imaginary part, or a text."""

    def leaf(x: Any, name: str) -> None:
        if isinstance(x, str | bytes):
            raise TypeError(f"{name}: expected an array, received {type(x).__name__}.")
        if isinstance(x, complex) or jnp.issubdtype(getattr(x, "dtype", bool), jnp.complexfloating):
            raise TypeError(
                f"{name}: expected real numbers, received {jnp.result_type(x)}; take real and imaginary part as two arrays."
            )

    for name, tree in trees.items():
        named_leaf_by_leaf(leaf, tree, name)


def array_of(x: Any, name: str = "values") -> jax.Array:
    """`x`, an array, a number or a list of numbers, as a real array.

    Raises:
        TypeError: It is none, or complex; named.
    """
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array of numbers, received {type(x).__name__}: {error}") from error
    refuse_complex(**{name: x})
    return x


def summable(x: Any, name: str = "values") -> jax.Array:
    """`array_of` in 32 bits of floating point at least, in which long sums and powers of a discount come out right."""
    x = array_of(x, name)
    return x.astype(accumulator_dtype(x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.zeros(()).dtype))


def as_mask(x: Any, name: str) -> jax.Array:
    """Booleans, or whole numbers that are 0 where False.

    Raises:
        TypeError: Another dtype.
    """
    return _discrete(x, name, "a boolean mask", "bool").astype(bool)


def _discrete(x: Any, name: str, expected: str, dtype: str) -> jax.Array:
    x = array_of(x, name)
    if jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: expected {expected}, received {x.dtype}; use {name}.astype({dtype}).")
    return x


def alike(**arrays: Any) -> list[jax.Array]:
    """Each `summable`, all in the widest dtype among them. Integers and Python numbers do not decide it, unless there is nothing else."""
    found = [summable(x, name) for name, x in arrays.items()]
    own = [dtype for dtype in map(own_dtype, arrays.values()) if dtype is not None]
    dtype = widest(jnp.float32, *own) if own else jnp.zeros(()).dtype
    return [x.astype(dtype) for x in found]


def set_alike(owner: Any, *names: str) -> None:
    """Bring these fields of a frozen object to one dtype, as of `alike`."""
    for name, x in zip(names, alike(**{name: getattr(owner, name) for name in names}), strict=True):
        object.__setattr__(owner, name, x)


def own_dtype(x: Any) -> Any:
    """The floating dtype of an array; `None` of integers and of Python numbers, which take on that of others."""
    weak = type(x) in (bool, int, float) or getattr(x, "weak_type", False)
    dtype = jnp.asarray(x).dtype
    return dtype if jnp.issubdtype(dtype, jnp.floating) and not weak else None


def scalar_cost(value: Any, name: str = "cost") -> jax.Array:
    """A cost, checked to be one number, `summable`."""
    value = summable(value, name)
    if value.shape != ():
        raise ValueError(f"{name}: expected a scalar for one sample, received shape {value.shape}; sum over the event.")
    return value


def as_keys(keys: Any, name: str = "key") -> jax.Array:
    """Typed keys from typed or raw (uint32) keys.

    Raises:
        TypeError: Something else.
    """
    if isinstance(keys, jax.Array | np.ndarray):
        if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
            return keys  # pyright: ignore[reportReturnType]
        if keys.dtype == np.uint32 and keys.ndim > 0:
            with contextlib.suppress(TypeError):  # raised for raw data of a length that no key has
                return jax.random.wrap_key_data(jnp.asarray(keys))
    received = f"{keys.dtype}{list(keys.shape)}" if hasattr(keys, "dtype") else repr(keys)
    raise TypeError(f"{name}: expected jax.random.key(seed), received {received}.")


def as_key(key: Any, name: str = "key") -> jax.Array:
    """One typed key from a typed or raw (uint32) one.

    Raises:
        TypeError: Something else.
        ValueError: Several keys.
    """
    key = as_keys(key, name)
    if key.ndim:
        raise ValueError(f"{name}: expected one key, received keys of shape {key.shape}; use jax.vmap over them.")
    return key


def widest(*dtypes: Any) -> Any:
    """The floating dtype with the most bits."""
    return max(dtypes, key=lambda dtype: jnp.finfo(dtype).bits)


def accumulator_dtype(dtype: Any) -> Any:
    """The dtype that sums of `dtype` are taken in: at least float32."""
    return widest(dtype, jnp.float32)


def integers(x: Any, name: str) -> jax.Array:
    """Integers or booleans, as integers of 32 bits at least.

    Raises:
        TypeError: Not whole numbers.
    """
    return widen(_discrete(x, name, "integers", "jnp.int32"))


def numbers(tree: Any, name: str = "params") -> Any:
    """Every leaf `summable`. A list of numbers counts as one leaf; a leaf that is no number is named."""
    return named_leaf_by_leaf(summable, tree, name, is_leaf=lambda x: isinstance(x, list))


def wide(tree: Any) -> Any:
    """Floating leaves `summable`, all others as they are."""

    def leaf(x: Any) -> Any:
        real = isinstance(x, float) or jnp.issubdtype(getattr(x, "dtype", bool), jnp.floating)
        return summable(x) if real else x

    return jax.tree.map(leaf, tree)


def row_of(table: jax.Array, state: Any, name: str = "observation") -> jax.Array:
    """The row of a state, or of each of several; NaN, with its derivatives, outside `0 .. S - 1`. An index below 0 counts from no end."""
    state = integers(state, name)
    return nan_unless((state >= 0) & (state < len(table)), table.at[state].get(mode="clip"))


def chances_of(table: jax.Array, *index: jax.Array) -> jax.Array:
    """Entries of a table of probabilities, 0 where an index is out of range, below zero too; `index` arrays from `integers`."""
    index = tuple(jnp.where(i < 0, size, i) for i, size in zip(index, table.shape, strict=False))
    return table.at[index].get(mode="fill", fill_value=0)


def check_params(tree: Any) -> None:
    """Raise unless there are parameters, all of which can be differentiated; a leaf that cannot is named.

    Raises:
        ValueError: There is none.
        TypeError: One is no array of real floating-point numbers.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for path, leaf in leaves:
        name = f"params{jax.tree_util.keystr(path)}"
        if not isinstance(leaf, _NUMBERS):
            raise TypeError(f"{name}: expected an array, received {type(leaf).__name__}.")
        refuse_complex(**{name: leaf})
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"{name}: expected a floating-point array to differentiate, received dtype {jnp.result_type(leaf)}; "
                "use params = jax.tree.map(lambda x: x.astype(jnp.float32), params)."
            )
    if not any(np.size(leaf) for _, leaf in leaves):
        raise ValueError(f"params: expected at least one number to differentiate in, received {tree!r}.")


def refuse_explicit(**arrays: Any) -> None:
    """Raise `ValueError` if an array is sharded over axes of type `Explicit`, where operations must name their shardings."""
    for name, array in arrays.items():
        sharding: Any = jax.typeof(array).sharding
        if any(axis is not None for axis in sharding.spec):
            raise ValueError(
                f"{name}: expected arrays sharded over mesh axes of type AxisType.Auto, received {jax.typeof(array)} over axes of "
                f"types {sharding.mesh.axis_types}; take logderiv.make_mesh(), or jax.make_mesh(..., axis_types=(AxisType.Auto,))."
            )


def as_trajectory(trajectory: Any, *uses: str, prefix: bool = False) -> Trajectory:
    """The border that every trajectory passes once: checked, its numbers in float32 at least and `valid` boolean.

    Rewards that are not used may have further axes, as those of a game with a reward for each player.

    Args:
        trajectory: Leading axes `(*batch, T)`.
        *uses: Fields that the caller looks at: they must not be `None`, and rewards be one number a step.
        prefix: Whether the caller looks at the next step, or at a length: `valid` must then be without holes. Under a trace nothing
            is known of them; multiply by `unbroken`.

    Returns:
        The trajectory.

    Raises:
        TypeError: Not a `Trajectory`; a field is missing, or has a dtype that means nothing: complex numbers, a mask that is none.
        ValueError: `T` is zero, or a field has another shape; outside `jax.jit`, `valid` has a hole.
    """
    check_kind(trajectory)
    for name in uses:
        given(name, getattr(trajectory, name))
    shape = np.shape(trajectory.valid)
    if not shape:
        raise ValueError("trajectory.valid: expected shape (*batch, T), received (); one step is one with T = 1.")
    if shape[-1] == 0:
        raise ValueError("an empty trajectory: expected T >= 1 steps, received T = 0; drop it before calling.")
    for name, axes in (("observations", shape), ("actions", shape), ("final_observation", shape[:-1])):
        check_leading_axes(axes, **{f"trajectory.{name}": getattr(trajectory, name)})
    refuse_complex(**{"trajectory.actions": trajectory.actions})
    found = {"valid": as_mask(trajectory.valid, "trajectory.valid")}
    for name in ("rewards", "discounts", "behavior_log_probs"):
        if getattr(trajectory, name) is None:
            continue
        found[name] = x = summable(getattr(trajectory, name), f"trajectory.{name}")
        further = x.shape[len(shape) :] if name == "rewards" and name not in uses else ()
        if x.shape != (*shape, *further) or 1 in further:
            check.shape(shape, hint="one number for each step, as trajectory.valid", **{f"trajectory.{name}": x})
    if prefix:
        unbroken(found["valid"], jnp.float32)
    return trajectory._replace(**found)


def as_stream(stream: Stream) -> Stream:
    """A stream through the same border: its steps by `as_trajectory`, and its ends, times and returns."""
    steps, ends = as_trajectory(stream.steps, "rewards", "discounts"), as_mask(stream.ends, "stream.ends")
    times, returns = array_of(stream.times, "stream.times"), summable(stream.returns, "stream.returns")
    found = Stream(steps, ends, times, returns)
    if steps.valid.ndim != 3 or steps.valid.shape[-1] != 1:
        raise ValueError(f"stream.steps.valid: expected shape (E, T, 1), received {steps.valid.shape}.")
    shape, hint = steps.valid.shape[:2], "(E, T) as in stream.steps"
    check.shape(shape, hint=hint, **{f"stream.{name}": getattr(found, name) for name in ("ends", "times", "returns")})
    return found


def as_batch(trajectories: Any, *, streams: bool = True) -> tuple[Trajectories, Trajectory]:
    """What an estimate is made of, through the same border, and its steps: trajectories `(N, T)` without holes, or a stream.

    Raises:
        TypeError: Neither, or a stream where there are to be no `streams`.
        ValueError: Not exactly one batch axis, or as of `as_trajectory`.
    """
    check_kind(as_steps(trajectories))
    if isinstance(trajectories, Stream):
        if not streams:
            refuse_stream()
        stream = as_stream(trajectories)
        return stream, stream.steps
    one_axis(trajectories)
    trajectories = as_trajectory(trajectories, "rewards", "discounts", prefix=True)
    return trajectories, trajectories


def refuse_stream() -> None:
    """Raise `TypeError`: an estimator that needs whole episodes was given a stream."""
    raise TypeError(
        "trajectories: this estimator needs whole episodes, received a Stream, which cuts them; use an advantage that "
        "bootstraps (logderiv.advantages.GAE), or logderiv.rollout."
    )


def one_axis(trajectories: Trajectory) -> int:
    """The length N of the only batch axis; `ValueError` where there are none or more."""
    batch = np.shape(trajectories.valid)[:-1]
    if len(batch) != 1:
        raise ValueError(
            f"trajectories: expected a batch of shape (N, T), received (*batch, T) with batch axes {batch}; "
            "an estimate averages over one axis of independent trajectories."
        )
    return batch[0]


def check_kind(x: Any) -> None:
    """Raise `TypeError`, with the likely remedy, unless this is a `Trajectory` with a mask."""
    if isinstance(x, Trajectory):
        return given("valid", x.valid)
    remedy = next(text for kind, text in _REMEDIES_BY_KIND.items() if isinstance(x, kind))
    raise TypeError(f"trajectory: expected a Trajectory, received {type(x).__name__}; {remedy}.")


def given(field: str, value: Any, *, like: Any = None, axis: int = 0) -> None:
    """Raise `TypeError`, with the remedy, if this field of a trajectory is `None`, or without arrays.

    With `like`, another field that has one more `axis`, raise `ValueError` unless structure and shapes fit to it.
    """
    if not jax.tree.leaves(value):
        remedy = _REMEDIES.get(field, "it is used here")
        raise TypeError(f"trajectory.{field}: expected an array, received {value}; {remedy}.")
    one = jax.tree.map(lambda x: np.broadcast_to(0, np.delete(x.shape, axis)), like)
    if like is not None and jax.tree.map(np.shape, value) != jax.tree.map(np.shape, one):
        check.like(f"trajectory.{field}", value, one, hint="without the axis of time that trajectory.observations has")


def check_leading_axes(expected: tuple[int, ...], *, hint: str = _KEPT, **trees: Any) -> None:
    """Raise `ValueError`, naming the leaf, unless all leaves have these leading axes; by default those of a trajectory's `valid`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
        if (shape := jnp.shape(leaf))[: len(expected)] != expected:
            name, axes = path[0].key + jax.tree_util.keystr(path[1:]), "axis" if len(expected) == 1 else "axes"
            raise ValueError(f"{name}: expected the leading {axes} {expected}, received shape {shape}; {hint}.")


def as_steps(trajectories: Trajectories) -> Trajectory:
    """The trajectories themselves; the steps of a stream, `(E, T, 1)`."""
    return trajectories.steps if isinstance(trajectories, Stream) else trajectories
