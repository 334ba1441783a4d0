"""Static objects in words: what two runs are compared by.

What is seen of an object is what it is made of, and of what the user wrote also the code. "The user's" is all Python code
that belongs neither to Python, nor to an installed package, nor to this library: those are known by their names.

Code reads differently to different versions of Python, so there are two parts to it: the constants and names that it
uses, which all versions agree on, and a digest of the bytecode beside the version that made it (`#3.11.7:0f3a...#`), which
`differ` compares only where the versions are the same.
"""

import dataclasses
import dis
import enum
import functools
import hashlib
import platform
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_HERE = Path(__file__).parent.parent
_FOLDERS = {*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), str(_HERE), str(_HERE.resolve())}
_VERSION = platform.python_version()
_VERSIONED = re.compile("#([^#:]*):[0-9a-f]*#")
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LONGEST = 200  # characters of a text that is written out
_DIGESTED = 2**20  # numbers of an array that is compared by what is in it


def static_text(value: Any) -> str:
    """A static object (estimator, optimizer, configuration) as text that is the same in every process.

    Dataclasses by their fields, other objects by what pickle would keep of them, which is their attributes unless they say
    otherwise; members of an enum by their names; functions by their name, what they close over, their defaults and attributes; arrays by their digest.
    Of a function or a class that the user wrote also the code, nested functions included: constants, names, bytecode.
    Not seen are the values of globals, files, and what lives outside of Python: of such an object only the type.

    Example:
        >>> import optax
        >>> static_text(optax.adam(1e-2)) == static_text(optax.adam(1e-2)), static_text(optax.adam(1e-3))[:20]
        (True, 'GradientTransformati')
        >>> static_text(lambda x: 2 * x) == static_text(lambda x: 3 * x)
        False
    """
    return _text(value, ())


def globals_text(function: Any) -> str | None:
    """What a function of the user reads beside its arguments, as text: globals, what it closes over, and its defaults.

    So do the user's functions, classes and modules among these, as far as they are reached by name. Not seen are attributes that
    are looked up by a name that is computed, and numbers in the middle of a large array that is changed in place.

    Returns:
        The text; `None` where something is traced, whose value is not known.

    Example:
        >>> def scaled(x):
        ...     return scale * x
        >>> scale = 2.0
        >>> before = globals_text(scaled)
        >>> scale = 3.0
        >>> globals_text(scaled) == before
        False
    """
    found: dict[int, str] = {}
    seen, todo = [], [function]  # what was seen is kept alive, so that no other thing gets its number
    try:
        while todo:
            one = todo.pop()
            if id(one) not in found:
                seen.append(one)
                named = _named(one)
                found[id(one)] = ", ".join(f"{name}={_read(x)}" for name, x in named.items())
                todo += [x for x in jax.tree.leaves(list(named.values())) if not isinstance(x, _PLAIN)]
    except jax.errors.TracerArrayConversionError:
        return None
    return "; ".join(filter(None, found.values()))


def _named(thing: Any) -> dict[str, Any]:
    """What is reached by name from a function, and from anything else of the user's that has functions in it."""
    if isinstance(thing, types.FunctionType):
        wrapped = {"wrapped": x} if (x := getattr(thing, "__wrapped__", None)) is not None else {}
        if not _is_users(thing):
            return wrapped
        names = sorted({name for code in _codes(thing) for name in code.co_names})
        read = {name: thing.__globals__[name] for name in names if name in thing.__globals__}
        for module in [x for x in read.values() if isinstance(x, types.ModuleType) and _is_users_module(x)]:
            read |= {f"{module.__name__}.{name}": getattr(module, name) for name in names if hasattr(module, name)}
        return read | _parts(thing) | wrapped
    if isinstance(thing, (functools.partial, types.MethodType, property)) or hasattr(thing, "__wrapped__"):
        return _parts(thing)
    kind = thing if isinstance(thing, type) else type(thing)
    bases = [base for base in kind.__mro__ if _is_users(base)]
    members = {f"{base.__qualname__}.{name}": x for base in bases for name, x in vars(base).items()}
    functions = {name: getattr(x, "__func__", x) for name, x in members.items()}
    return {name: x for name, x in functions.items() if isinstance(x, (types.FunctionType, property))}


def _is_users_module(module: types.ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return module.__name__ not in sys.builtin_module_names and (file is None or not _in_library(file))


def _read(value: Any) -> str:
    if isinstance(value, (np.ndarray, jax.Array)) and value.size > _DIGESTED:
        return f"{id(value)} {static_text(np.asarray(value.ravel()[:: value.size // _DIGESTED * 64]))}"
    return static_text(value)


def differ(one: str, other: str) -> bool:
    """Whether two texts are of different objects; bytecode of different versions of Python says nothing.

    Example:
        >>> differ("f#3.11.7:ab#", "f#3.11.7:cd#"), differ("f#3.11.7:ab#", "f#3.12.1:cd#"), differ("f#3.11.7:ab#", "g#3.12.1:cd#")
        (True, False, True)
    """
    if set(_VERSIONED.findall(one)) != set(_VERSIONED.findall(other)):
        one, other = (_VERSIONED.sub("", text) for text in (one, other))
    return one != other


def readable(one: str, other: str) -> tuple[str, str]:
    """Two texts that differ, without the bytecode unless that is all the difference."""
    short = _VERSIONED.sub("", one), _VERSIONED.sub("", other)
    return short if short[0] != short[1] else (one, other)


def _text(value: Any, above: tuple[Any, ...]) -> str:
    if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
        written = repr(value)
        return written if len(written) <= _LONGEST else f"{written[:20]}... {_sha256(written)}"
    if any(value is other for other in above):
        return "..."
    text = functools.partial(_text, above=(*above, value))
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}{_members(value, text)}"
    if isinstance(value, types.ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and value.dtype != object:
        is_key = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        data = np.asarray(jax.random.key_data(jnp.asarray(value)) if is_key else value)
        return f"{value.dtype}{list(value.shape)} {_sha256(data.tobytes())}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{text(key)}: {text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(text, value))) + "}"
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return f"({', '.join(map(text, value))})"
    name = getattr(value, "__qualname__", None) or type(value).__qualname__ + _members(type(value), text)
    return f"{name}({', '.join(f'{key}={text(item)}' for key, item in _parts(value).items())}){_code(value, text)}"


def _parts(value: Any) -> dict[str, Any]:
    """What a static object is made of."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, functools.partial):
        return {"func": value.func, "args": value.args, "keywords": value.keywords} | vars(value)
    if isinstance(value, types.MethodType):
        return {"self": value.__self__, "func": value.__func__}
    if isinstance(value, property):
        return {"get": value.fget}
    if isinstance(value, types.FunctionType):
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        held = {name: cell.cell_contents for name, cell in cells.items() if cell != types.CellType()}
        defaults = {"defaults": value.__defaults__, "keywords": value.__kwdefaults__} | vars(value)
        return held | {name: default for name, default in defaults.items() if default}
    if (wrapped := getattr(value, "__wrapped__", None)) is not None:
        # `jax.custom_jvp` keeps its rule in a public attribute; what `jax.jit` keeps in private ones is not part of the function.
        public = {name: x for name, x in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
        return {"wrapped": wrapped} | public
    return _attributes(value)


def _attributes(value: Any) -> dict[str, Any]:
    """What pickle would keep of any other object: its attributes, in the order of their names, unless its class says otherwise."""
    try:
        kept: Any = value.__reduce_ex__(4)
        args, state, items = kept[1], (*kept, None)[2], kept[3:5]
    except Exception:  # raised by what cannot be copied: a lock, a generator, a compiled program
        return {}
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    attributes, slots = attributes or {}, slots or {}
    if not isinstance(attributes, dict) or not isinstance(slots, dict):
        return {"args": args, "state": state}
    args = args[1:] if args[:1] == (type(value),) else args
    made = {"args": args, "items": [list(x) for x in items if x is not None]}
    shown = {name: part for name, part in made.items() if part}
    for name, part in sorted((attributes | slots).items()):
        # A cached property is among the attributes after its first use only.
        if not (_is_dunder(name) or isinstance(getattr(type(value), name, None), functools.cached_property)):
            shown[name] = part
    return shown


def _members(kind: type, text: Any) -> str:
    """A digest of what the user wrote in a class and its bases."""
    found = []
    for base in kind.__mro__:
        if _is_users(base):
            members = {name: x for name, x in vars(base).items() if not _is_dunder(name) or hasattr(x, "__get__")}
            left_out = "__dict__", "__weakref__"
            found += [f"{name}={text(members[name])}" for name in sorted(members) if name not in left_out]
    whole = "; ".join(found)
    return f"<{_sha256(_VERSIONED.sub('', whole))}>#{_VERSION}:{_sha256(whole)}#" if found else ""


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


@functools.cache
def _in_library(file: str) -> bool:
    return file.startswith("<frozen") or any(Path(file).is_relative_to(folder) for folder in _FOLDERS)


def _is_users(thing: Any) -> bool:
    """Whether a function or a class was written by the user."""
    if isinstance(thing, types.FunctionType):
        return not _in_library(thing.__code__.co_filename)
    module = vars(thing).get("__module__")  # there is none in a class that was not written in Python
    if not isinstance(module, str) or module.partition(".")[0] in sys.stdlib_module_names - {"builtins"}:
        return False
    return not _in_library(getattr(sys.modules.get(module), "__file__", None) or "")


def _code(value: Any, text: Any) -> str:
    """Constants, names and bytecode of a function that the user wrote."""
    if not isinstance(value, types.FunctionType) or not _is_users(value):
        return ""
    constants, names, digests = [], [], []
    for code in _codes(value):
        # Constants that are loaded: a docstring is not.
        loads = [i for i in dis.get_instructions(code) if i.opcode in dis.hasconst or i.opname == "LOAD_SMALL_INT"]
        loaded = [text(i.argval) for i in loads if not isinstance(i.argval, types.CodeType)]
        constants, names = constants + loaded, [*names, *code.co_names]
        digests.append(f"{code.co_code.hex()} {loaded} {code.co_names} {code.co_varnames}")
    constants, names = sorted({x for x in constants if x != "None"}), sorted(set(names))
    return f"[constants: {', '.join(constants)}; names: {', '.join(names)}]#{_VERSION}:{_sha256(' '.join(digests))}#"


def _codes(function: types.FunctionType) -> Iterator[types.CodeType]:
    """The code of a function, and of those that are written in it."""
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        todo += [x for x in code.co_consts if isinstance(x, types.CodeType)]
        yield code


def _sha256(data: str | bytes) -> str:
    return hashlib.sha256(data.encode(errors="replace") if isinstance(data, str) else data).hexdigest()[:16]
