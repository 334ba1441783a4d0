"""The evidence bound of `program_speed`, where NumPyro is not installed."""

import jax
import pytest

from benchmarks import program_elbo, program_speed


def test_without_numpyro_its_row_is_left_out_and_said(monkeypatch):
    assert (program_elbo.NUMPYRO in program_elbo.forms(1, 1)) == bool(pytest.importorskip("numpyro"))
    monkeypatch.setattr(program_elbo, "OPTIONAL", "numpyro_that_is_missing")
    bounds, rows, table = program_speed._of_coins(2, 1, jax.random.key(0))
    assert (bounds, list(rows)) == ([], ["plain calls, scan", program_elbo.UNROLLED])
    assert "numpyro_that_is_missing is not installed, its row is left out" in table.title
