"""Blocks of Python on a page, and what they print in a fresh interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RARELY = "import gc; gc.freeze(); gc.set_threshold(100_000, 20, 50)"  # as in `conftest.py`


def blocks(page: Path, language: str = "python") -> list[str]:
    """The blocks of Python of a page, or those of text (what the Python prints), in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def run(source: str, folder: Path) -> str:
    """What a source prints, run in `folder` with a user's types and promotion; hardly optimized, since compiling is what costs."""
    user = {k: v for k, v in os.environ.items() if k not in ("JAX_ENABLE_X64", "JAX_DEBUG_NANS")}
    user |= {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "MPLBACKEND": "Agg"}
    user["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"
    command = [sys.executable, "-c", f"{RARELY}\n{source}"]
    done = subprocess.run(command, cwd=folder, env=user, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout
