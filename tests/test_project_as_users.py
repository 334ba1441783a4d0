"""A leg with a user's defaults, in a process of its own."""

import os
import subprocess
import sys

import numpy as np

from tests.__main__ import ROOT
from tests.as_users import Check


def test_numbers_are_right_under_a_users_defaults():
    ours = ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-m", "tests.as_users"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert not [line for line in lines if not line.startswith("ok  ")]
    assert len(lines) == 10 + 3 + 6 + 3


def test_a_wrong_number_fails():
    check = Check("", np.array([1.0, -2.0]), np.array([1.0, -2.00001]), 1e-5)
    assert check.holds
    assert not check._replace(found=np.array([1.0, -2.1])).holds
    assert not check._replace(found=np.array([np.nan, -2.0])).holds
