"""Static objects in words: what two runs are compared by."""

import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def static_text(value: Any) -> str:
    """A static object (estimator, optimizer, configuration) as text that is the same in every process.

    Dataclasses, tuples and sets by what is in them, members of an enum by their names, functions by their name and what
    they close over, arrays by their digest; of anything else only the type. The code of a function is not looked at.

    Example:
        >>> import optax
        >>> static_text(optax.adam(1e-2)) == static_text(optax.adam(1e-2)), static_text(optax.adam(1e-3))[:20]
        (True, 'GradientTransformati')
    """
    return _text(value, ())


def _text(value: Any, above: tuple[int, ...]) -> str:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if id(value) in above:
        return "..."
    text = functools.partial(_text, above=(*above, id(value)))
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(jnp.asarray(value)) if is_key else value)
        return f"{value.dtype}{list(value.shape)} {hashlib.sha256(data.tobytes()).hexdigest()[:16]}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text(key)}: {text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(text, value))) + "}"
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return f"({', '.join(map(text, value))})"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{name}({', '.join(f'{key}={text(item)}' for key, item in _fields(value).items())})"


def _fields(value: Any) -> dict[str, Any]:
    """What a static object is made of."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords}
    if isinstance(value, types.MethodType):
        return {"self": value.__self__, "func": value.__func__}
    if isinstance(value, types.FunctionType):
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        held = {name: cell.cell_contents for name, cell in cells.items() if cell != types.CellType()}
        defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__}
        return held | {name: default for name, default in defaults.items() if default}
    wrapped = getattr(value, "__wrapped__", None)
    return {} if wrapped is None else {"wrapped": wrapped}
