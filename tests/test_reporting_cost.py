"""The benchmark of reporters: its costs are differences of pairs, and it runs."""

import time

import jax

import logderiv as ld
from benchmarks import reporting_cost


def test_a_cost_is_the_difference_to_the_run_just_before():
    def waits(seconds):
        return lambda: time.sleep(seconds)

    found = reporting_cost.costs({"nothing": waits(0.01), "half more": waits(0.015), "same": waits(0.01)}, 10, 3)
    assert 25 < found["half more"].percent < 100
    assert 250 < found["half more"].microseconds < 1000
    assert abs(found["same"].percent) < 25
    assert 500 < found["same"].rate <= 1000


def test_reporting_cost_prints_and_saves(results, monkeypatch, capsys):
    sizes = {"0.1 s": (2, 1), "1 ms": (2, 1), "nothing": (5, 1), "ld.train": (2, 1)}
    monkeypatch.setattr(reporting_cost, "SIZES", {"quick": sizes})
    monkeypatch.setattr(reporting_cost, "WAITS", {"0.1 s": 1e-3, "nothing": 0.0})
    monkeypatch.setattr(reporting_cost, "reporter_sets", lambda folder: {"CSV": (ld.CSVWriter(folder / "run.csv"),)})
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        reporting_cost.main(quick=True)
    printed = capsys.readouterr().out
    for line in ("0.1 s: CSV", "nothing: CSV", "ld.train: CSV", "updates of 0.1 s, CSV: % of the run"):
        assert line in printed
    assert {p.name for p in results.iterdir()} == {"reporting_cost.jsonl"}
