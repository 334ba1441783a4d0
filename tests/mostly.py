"""Tables of which every kind is checked by default, and the rest where the slow tests are run."""

from collections.abc import Container, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], kept: Container[Any]) -> list[Any]:
    """The cases, all marked slow but those that are kept, which are of every kind that there is."""
    return [case if case in kept else slow(case) for case in cases]


def slow(case: Any) -> Any:
    """A case of several arguments is a tuple."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
