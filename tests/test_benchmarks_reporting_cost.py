"""The benchmark of reporters: its costs are differences of pairs."""

import pytest

from benchmarks import reporting_cost


def test_a_cost_is_the_difference_to_the_run_just_before(monkeypatch):
    """By a clock of its own. The machine slows down as it goes, which a pair does not see; the first pair is not counted."""
    clock, load = [0.0], [10.0]

    def takes(seconds):
        def run():
            clock[0] += load[0] * seconds
            load[0] = 1.0 if load[0] == 10 else 1.01 * load[0]

        return run

    monkeypatch.setattr(reporting_cost.time, "perf_counter", lambda: clock[0])
    found = reporting_cost.costs({"nothing": takes(0.01), "half more": takes(0.015), "same": takes(0.01)}, 10, 3)
    assert found["half more"].percent == pytest.approx(51.5)
    assert found["same"].percent == pytest.approx(1)
    assert 500 < found["half more"].microseconds < 600
    assert 900 < found["same"].rate < 1000
