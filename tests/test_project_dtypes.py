"""The dtype of data does not decide the arithmetic: what every public function makes of numbers of any kind.

The numbers of a call are given in each kind, together and each alone, and the answer is that for the same numbers in float32, or an
error that names the argument. The public names are walked: one that is in neither table of `dtype_cases` is named.
"""

import inspect
import itertools
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.dtype_calls import Case
from tests.dtype_cases import APART, AS_OTHERS, CASES, LIGHT
from tests.mostly import mostly_slow

DTYPES = {"bool": bool, "int8": np.int8, "uint8": np.uint8, "int32": np.int32, "float16": np.float16}
DTYPES |= {"bfloat16": jnp.bfloat16, "float32": np.float32}


def arrays(x: np.ndarray, dtype: Any) -> Any:
    return jnp.asarray(np.abs(np.round(x)).astype(dtype) if dtype == np.uint8 else x.astype(dtype))


KINDS: dict[str, Callable[[np.ndarray], Any]] = {
    **{name: (lambda x, dtype=dtype: arrays(x, dtype)) for name, dtype in DTYPES.items()},
    "numpy": lambda x: x.astype(np.float32),
    "numpy, 64 bits": lambda x: x,
    "Python": lambda x: x.tolist(),
    "Python, whole": lambda x: np.round(x).astype(int).tolist(),
}
ALONE = ("uint8", "float16", "Python")  # the kinds that one argument is given in among others in float32
# Compiled anew for each dtype; others of the same room are walked by default.
COSTLY = {
    "TanhNormal",
    "LinearQuadratic",
    "JumpProcess",
    "EulerMaruyama",
    "LocalLevel",
    "HiddenMarkovModel",
    "NormalSearch",
    "particle_filter",
}
COSTLY |= {
    "Autoregressive",
    "VTrace",
    "PPO",
    "hessian",
    "moments",
    "compare_expectation",
    "enumerate_trajectories: a clock",
}
COSTLY |= {
    "gradients_score",
    "gradients_measure_valued",
    "gradients_measure_valued: of a choice",
    "Expectation",
    "TabularMDP",
}
MASKS = ("valid", "mask", "observed", "terminal")


def plain(case: Case, name: str, given: Any) -> Any:
    """The same numbers in float32; of what takes whole numbers only, in int32; of a mask, as booleans."""
    dtype = bool if name in MASKS else np.int32 if name in case.whole else np.float32
    return jnp.asarray(np.asarray(given).astype(dtype))


def compare(found: Any, expected: Any) -> None:
    """Leaf by leaf as one vector: a list of parameters has a list of derivatives."""
    for a in jax.tree.leaves(found):
        dtype = jnp.result_type(a)
        assert not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize >= 4, dtype
    both = (
        np.concatenate([np.ravel(np.asarray(x, float)) for x in jax.tree.leaves(tree)]) for tree in (found, expected)
    )
    np.testing.assert_allclose(*both, rtol=2e-5, atol=2e-5)


def answer(case: Case, given: dict[str, Any]) -> Any:
    try:
        return case.call(**given)
    except (TypeError, ValueError) as error:
        return error


def check(case: Case, given: dict[str, Any], varied: list[str]) -> str:
    """What is wrong with the answer, nothing if it is right."""
    expected = answer(case, {name: plain(case, name, x) for name, x in given.items()})
    found = answer(case, given)
    if isinstance(found, Exception):
        named = any(re.search(case.names.get(name, name), str(found)) for name in varied)
        return "" if named else f"does not name {varied}: {type(found).__name__}: {str(found)[:200]}"
    if isinstance(expected, Exception):
        return f"is accepted, while float32 is not: {expected}"
    try:
        compare(found, expected)
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return ""


def complaints(name: str, kinds: Iterable[str], alone: Iterable[str]) -> list[str]:
    """What is wrong with the answers to one case."""
    case, wrong = CASES[name], []
    base = {key: plain(case, key, x) for key, x in case.numbers.items()}
    for kind in kinds:
        masks = {
            key: base[key] for key in MASKS if key in base and kind not in ("bool", "int8", "int32")
        }  # no real numbers
        given = {key: KINDS[kind](x) for key, x in case.numbers.items()} | masks
        wrong += [f"{kind}: {w}" for w in [check(case, given, list(given))] if w]
    for kind, (key, x) in itertools.product(alone, case.numbers.items()):
        wrong += [f"{key}, {kind}: {w}" for w in [check(case, base | {key: KINDS[kind](x)}, [key])] if w]
    for key, x in case.numbers.items():
        found = answer(case, base | {key: jnp.asarray(x, jnp.complex64)})
        if not (isinstance(found, TypeError) and re.search(case.names.get(key, key), str(found))):
            wrong.append(f"{key}, complex: {str(found)[:200]}")
    return wrong


@pytest.mark.parametrize("name", mostly_slow(CASES, CASES.keys() - COSTLY))
def test_numbers_of_any_kind_are_those_of_float32_or_are_refused_by_name(name, as_shipped):
    kinds = ("uint8", "bfloat16", "Python") if name in LIGHT else ("bfloat16",)
    assert not (wrong := complaints(name, kinds, ())), "\n".join(["", *wrong])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_each_argument_may_be_of_another_kind_than_the_others(name, as_shipped):
    assert not (wrong := complaints(name, KINDS, ALONE)), "\n".join(["", *wrong])


def public() -> dict[str, Any]:
    """Every name of every room."""
    rooms = [ld, *(getattr(ld, name) for name in ld.__all__)]
    rooms = [room for room in rooms if inspect.ismodule(room)]
    found = {name: getattr(room, name) for room in rooms for name in room.__all__}
    return {name: x for name, x in found.items() if not inspect.ismodule(x)}


def missing(names: Iterable[str]) -> list[str]:
    told = {name.partition(":")[0] for name in CASES}
    assert set(AS_OTHERS.values()) <= told
    return sorted(set(names) - told - set(APART) - set(AS_OTHERS))


def test_every_public_name_is_told():
    assert missing(public()) == []
    assert missing([*public(), "new_function"]) == ["new_function"]


def test_half_precision_and_eight_bits_would_be_seen():
    """The twins that compute in the dtype of the data."""
    half = Case(lambda x: (x * x).astype(jnp.float32), {"x": np.array([0.3, 1.7])})
    assert "Not equal" in check(half, {"x": KINDS["bfloat16"](half.numbers["x"])}, ["x"])
    bits = Case(lambda x: jnp.cumsum(x, dtype=x.dtype), {"x": np.array([200.0, 200.0])})
    assert "Not equal" in check(bits, {"x": KINDS["uint8"](bits.numbers["x"])}, ["x"])
