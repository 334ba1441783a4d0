"""Devices and hosts: a mesh of devices, and batches spread over it under plain `jax.jit`.

Nothing here communicates. A batch is *marked* as spread over the mesh's devices (`jax.sharding`) and XLA's partitioner does
the rest, so that a mean, a leave-one-out baseline or a normalizer is taken over the whole batch, wherever its trajectories
are. Inside `jax.shard_map` the same code would see the trajectories of one device only, which is another estimator.
"""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from logderiv._core import check
from logderiv._core.pytrees import TRACED
from logderiv._core.shared import of_each_part, with_captured


def make_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis, `"batch"`, over devices of all processes.

    Args:
        num_devices: How many; `None` for all. With several processes, all: each must take part.

    Returns:
        A `jax.sharding.Mesh` whose axis is of type `Auto`: the library leaves to XLA what is sharded how.

    Raises:
        ValueError: Fewer than 1, or more than there are; with several processes, not all.

    Example:
        >>> make_mesh(1).axis_names
        ('batch',)
    """
    there = jax.device_count()
    least = there if jax.process_count() > 1 else 1
    hint = f"there are {there} {jax.default_backend()} devices"
    hint += "; virtual ones: XLA_FLAGS=--xla_force_host_platform_device_count=8" if there == 1 else ""
    num_devices = there if num_devices is None else num_devices
    num_devices = check.whole(at_least=least, at_most=there, hint=hint, num_devices=num_devices)
    return Mesh(np.array(jax.devices()[:num_devices]), ("batch",), axis_types=(AxisType.Auto,))


def as_mesh(mesh: Any) -> Mesh:
    """The same devices with axes of type `Auto`, which is not what `jax.make_mesh` gives.

    Raises:
        TypeError: Not a mesh.
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh: expected a jax.sharding.Mesh, as of make_mesh(), received {type(mesh).__name__}.")
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def check_divides(number: int, mesh: Mesh | None, name: str) -> None:
    """Raise `ValueError` unless `number` trajectories or environments divide over the mesh, where there is one."""
    if mesh is not None and number % mesh.size:
        raise ValueError(
            f"{name}: expected a multiple of the {mesh.size} devices of the mesh, received {number}; "
            f"take {number + -number % mesh.size}."
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The arrays and real numbers of `tree`, whole on every device of the mesh, in every process; other leaves as they are.

    Raises:
        AssertionError: They are not the same in all processes.
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def put(x: Any) -> Any:
        if not isinstance(x, TRACED):
            return x
        here = isinstance(x, jax.Array) and not check.is_traced(x)
        if here and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        if here and x.is_fully_addressable and not whole.is_fully_addressable:
            x = np.asarray(x)  # of a process's own arrays JAX makes global ones from values only
        return jax.device_put(x, whole)

    return jax.tree.map(put, tree)


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """Within it, `spread` and `gather` speak of this mesh, and blocks of rows are taken device by device."""
    return contextlib.nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def by_shard(function: Callable[[Any, Any], Any], params: Any, inputs: Any) -> Any:
    """`function(params, inputs)` of the trajectories of each device, where their axis is spread over a mesh in use.

    Each device has its own copy of `params`, and of what `function` closes over, whose derivatives are added up over the
    devices at the very end: a sum inside the loops over blocks or steps would make the devices wait for each other every time around.

    Args:
        function: From `params` and `inputs` to a pytree with a leading axis.
        params: Shared.
        inputs: Leading axis of trajectories.

    Returns:
        What `function` returns, the leading axes of the devices as one.
    """
    num = jax.tree.leaves(inputs)[0].shape[0]
    if not divides(num):
        return function(params, inputs)
    size = _size()
    parts = jax.tree.map(lambda x: x.reshape((size, num // size, *x.shape[1:])), inputs)
    function, shared = with_captured(function, params, parts, axes=1)
    results = of_each_part(function, shared, parts, spread)
    return jax.tree.map(lambda y: y.reshape((size * y.shape[1], *y.shape[2:])), results)


def divides(num: int) -> bool:
    """Whether there is a mesh in use of more than one device, and so many trajectories are as many for each of them."""
    return _size() > 1 and num % _size() == 0


def spread(tree: Any) -> Any:
    """Mark the leading axis of every array as spread over the mesh in use, if that divides it; without a mesh, nothing."""
    size, spec = _size(), PartitionSpec(_axes())
    return jax.tree.map(lambda x: _mark(x, spec) if x.shape[0] % size == 0 else x, tree)


def gather(tree: Any) -> Any:
    """Mark every array as whole on each device of the mesh in use; without one, nothing."""
    return _mark(tree, PartitionSpec())


def _mark(tree: Any, spec: PartitionSpec) -> Any:
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, spec), tree) if _axes() else tree


def _size() -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in _axes())


def _axes() -> tuple[str, ...]:
    """Those that XLA partitions over: inside `jax.shard_map`, say, none are left."""
    return jax.sharding.get_abstract_mesh().auto_axes
