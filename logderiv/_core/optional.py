"""Packages that only some features need."""

import importlib
from typing import Any


def optional(module: str, need: str, extra: str) -> Any:
    """A module of a package that need not be installed.

    Args:
        module: Its name.
        need: What needs which package, for the message.
        extra: The extra of this library that installs it.

    Returns:
        The module.

    Raises:
        ImportError: It is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{need}; install it, or the extra: pip install 'logderiv[{extra}]'.") from error
