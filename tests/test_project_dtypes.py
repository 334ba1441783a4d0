"""The dtype of data does not decide the arithmetic: what every public function makes of numbers of any kind.

The numbers of a call are given in each kind, together and each alone, and the answer is that for the same numbers in float32, or an
error that names the argument. The public names are walked: one that is in neither table of `dtype_cases` is named.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.dtype_cases import CASES, Case

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
MASKS = ("valid", "mask", "observed", "terminal")


def plain(case: Case, name: str, given: Any) -> Any:
    """The same numbers in float32; of what takes whole numbers only, in int32; of a mask, as booleans."""
    dtype = bool if name in MASKS else np.int32 if name in case.whole else np.float32
    return jnp.asarray(np.asarray(given).astype(dtype))


def compare(found: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        dtype = jnp.result_type(a)
        assert not jnp.issubdtype(dtype, jnp.floating) or dtype.itemsize >= 4, dtype
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=2e-5, atol=1e-5)


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
        named = any(case.names.get(name, name) in str(found) for name in varied)
        return "" if named else f"does not name {varied}: {type(found).__name__}: {str(found)[:200]}"
    if isinstance(expected, Exception):
        return f"is accepted, while float32 is not: {expected}"
    try:
        compare(found, expected)
    except AssertionError as error:
        return " ".join(str(error).split())[:300]
    return ""


@pytest.mark.parametrize("name", CASES)
def test_numbers_of_any_kind_are_those_of_float32_or_are_refused_by_name(name, as_shipped):
    case, wrong = CASES[name], []
    base = {key: plain(case, key, x) for key, x in case.numbers.items()}
    for kind, made in KINDS.items():
        given = {key: made(x) for key, x in case.numbers.items()}
        wrong += [f"{kind}: {w}" for w in [check(case, given, list(given))] if w]
    for kind in ALONE:
        for key, x in case.numbers.items():
            w = check(case, base | {key: KINDS[kind](x)}, [key])
            wrong += [f"{key} alone, {kind}: {w}"] if w else []
    for key, x in case.numbers.items():
        found = answer(case, base | {key: jnp.asarray(x, jnp.complex64)})
        if not (isinstance(found, TypeError) and case.names.get(key, key) in str(found)):
            wrong.append(f"{key} complex: {str(found)[:200]}")
    assert not wrong, "\n".join(["", *wrong])
