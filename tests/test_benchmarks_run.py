"""Every benchmark runs, keeps its bounds, prints all of its rows, and leaves a JSON row and its figure."""

import importlib
import json

import pytest

import logderiv as ld
from benchmarks import __main__ as command
from benchmarks import (
    accelerator,
    estimator_frontier,
    harness,
    jump_processes,
    prisoners_dilemma,
    tasks,
    token_speed,
    training_speed,
)
from tests.mostly import mostly_slow
from tests.test_benchmarks_objectives import TINY as TINY_TABLE
from tests.test_benchmarks_solved import corridor
from tests.test_benchmarks_training_speed import TINY

EASY = corridor(threshold=-40.0, held={"reward-to-go, leave-one-out": 2})  # where every return is at least -40
MEMORY = {"ours": 30, "ours, value": 20, "plain": 90, "plain, value": 0}
# What `tests/test_training_devices.py` measures in a process with so many devices.
SCALED = {"kind": "strong", "environments": 4, "communication": 0.1, "compile_seconds": 1.0}
# Where a quick run is still more than a test should take.
SMALLER = {
    "accelerator": {
        "QUICK": accelerator.Sizes(
            64, 8, {"MLP 4-64-2": [50], "GRU 16": [9]}, ((50, 1),), 1, {2: 1}, (20,), (9, 9, 9, 9)
        )
    },
    "estimator_frontier": {
        "QUICK": ("total return", estimator_frontier.PATHWISE),
        "SIZES": {"quick": ((2,), 64)},
        "all_tasks": lambda: (tasks.random_walk(), tasks.linear_quadratic()),
    },
    "jump_processes": {"SIZES": {name: {True: (2000, 200)} for name in jump_processes.SIZES}},
    "likelihood_speed": {
        "QUICK_POINTS": ((600, 1), (20, 4)),
        "ROWS": (256,),
        "block_floor": lambda: {"tanh": 1e-3},
        "growth": lambda lengths, _: [
            {"T": t, "compile": 0.1, "temp": 30, "inputs": 21, "vectorized": 900, "beyond": 9} for t in lengths
        ],
    },
    "objectives": TINY_TABLE,
    "prisoners_dilemma": {"QUICK": ("exact, 1 step",), "QUICK_SIZE": prisoners_dilemma.Size(1, 4, 20, 5)},
    "product_vs_score": {"DTYPES": ("float32",)},
    "proof_table": {"QUICK": ("total return", "biased: batch mean", "biased: standardized")},
    "reporting_cost": {"SIZES": {"quick": dict.fromkeys(("0.1 s", "nothing", "ld.train"), (2, 1))}},
    "scaling": {"scale": lambda counts, **_: [SCALED | {"devices": n, "steps_per_second": 10.0 * n} for n in counts]},
    "solved": {"QUICK": (EASY,)},
    "structure_speed": {
        "NET": ld.MLP(2, hidden=(5, 4)),
        "recurrent_memory": lambda lengths: [MEMORY | {"T": t} for t in lengths],
    },
    "token_speed": {"QUICK_SIZES": (token_speed.Size(8, 6, 48),)},
    "training_speed": {
        "SIZES": (2,),
        "LEARNING": TINY,
        "METHODS": {"PPO": training_speed.ppo(TINY, every=1, num_updates=2)},
        "PEERS": {},
    },
}
# Processes that are killed take a minute: `test_the_benchmark_counts_what_survives` has lives that are made up.
ELSEWHERE = ("kill_and_resume",)
# One of each kind: proofs, precision, speed, variance, learning to a known optimum.
KINDS = ("proof_table", "product_vs_score", "likelihood_speed", "estimator_frontier", "short_corridor")
# Learning to a threshold takes more than a test has time for: there the bounds are only printed.
LEARNS = ("training_speed",)


@pytest.fixture(autouse=True)
def as_users_run_them(monkeypatch, as_shipped):
    """The default precision and promotion, here and now instead of in processes of their own, without the machine's floor."""

    def here(_, function, *args):
        return json.loads(json.dumps(harness._plain(harness._named(function)(*args))))

    one_place = lambda: {"one core": 1}  # noqa: E731
    for name, value in (
        ("on_cores", here),
        ("places", one_place),
        ("peak_rss", lambda *_: 2**20),
        ("machine_floor", lambda: {"exp": 1.0}),
    ):
        monkeypatch.setattr(harness, name, value)


@pytest.mark.parametrize("name", mostly_slow([name for name in command.questions() if name not in ELSEWHERE], KINDS))
def test_a_quick_run_keeps_its_bounds_and_leaves_a_row_and_a_figure(name, results, monkeypatch, capsys):
    module = importlib.import_module(f"benchmarks.{name}")
    for attribute, value in SMALLER.get(name, {}).items():
        monkeypatch.setattr(module, attribute, value)
    report = module.main(quick=True)
    missed = harness.publish(name, report, quick=True)
    assert [*report.bounds, *report.timings]
    assert name in LEARNS or not missed
    printed = capsys.readouterr().out
    assert all(table.rows and str(table) in printed for table in report.tables)
    (row,) = map(json.loads, (results / f"{name}.jsonl").read_text().splitlines())
    assert row["numbers"]
    assert row["figure"] == (f"{name}.png" if report.draw else None)
    assert len(row["bounds"]) == len(report.bounds)
    assert (results / f"{name}.png").exists() == (report.draw is not None)
