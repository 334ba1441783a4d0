"""All that is public runs under the strict modes of JAX, as far as optax does: `optax.adam` does not, `optax.sgd` does."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from tests import modes

ROOT = Path(__file__).resolve().parent.parent


def test_every_public_function_is_called_under_them():
    assert modes.missing() == []


@pytest.mark.parametrize("kind", ["traced", pytest.param("eager", marks=pytest.mark.slow)])
def test_nothing_is_promoted_and_no_key_is_used_twice(kind):
    command = [sys.executable, "-m", "tests.modes", kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""


def test_the_check_sees_a_promotion_and_a_key_that_is_used_twice(monkeypatch, capsys):
    twice = {
        "dtypes": lambda: jnp.ones(2, jnp.float32) + jnp.ones(2, int),
        "ranks": lambda: jnp.ones((2, 2)) + jnp.ones(2),
        "keys": lambda: (jax.random.normal(modes.KEY), jax.random.normal(modes.KEY)),
        "nothing": lambda: jax.random.normal(modes.KEY),
    }
    monkeypatch.setattr(modes, "TRACED", twice)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)  # conftest has set them
    modes.main("traced")
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == ["dtypes", "ranks", "keys"]
