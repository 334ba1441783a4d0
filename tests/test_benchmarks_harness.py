import contextlib
import importlib
import itertools
import json
import platform
import re
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import __main__ as command
from benchmarks import harness, likelihood_accuracy, overview, product_vs_score
from tests.mostly import slow

# First T at which a product of T equal factors is zero on XLA's CPU backend (jax 0.10.2); None: it never is. Counted by
#     lax.scan(lambda x, _: (x * p, x * p), dtype(1), None, length=10**6)[1] == 0
# with p in that dtype; without rounding it is the first T with p^T < 2^-126 (float32, bfloat16), 2^-1022 (float64), and p^T <= 2^-25 in float16, which keeps subnormals.
FIRST_ZERO = {
    "float16": {0.99: None, 0.9: None, 0.5: 25, 1 / 3: 16, 0.25: 13, 0.1: 8, 0.01: 4},
    "bfloat16": {0.99: 7182, 0.9: 819, 0.5: 127, 1 / 3: 80, 0.25: 64, 0.1: 38, 0.01: 19},
    "float32": {0.99: 8690, 0.9: 829, 0.5: 127, 1 / 3: 80, 0.25: 64, 0.1: 38, 0.01: 19},
    "float64": {0.99: 70485, 0.9: 6724, 0.5: 1023, 1 / 3: 645, 0.25: 512, 0.1: 308, 0.01: 154},
}


def test_list_names_every_benchmark_and_its_question_and_an_unknown_name_is_an_error(capsys):
    assert command.main(["--list"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"product_vs_score", "likelihood_accuracy", "solved"} <= set(listed)
    assert not {"harness", "solved_tasks", "__main__", "__init__"} & set(listed)
    assert all(question.endswith("?") for question in listed.values()), listed

    assert command.main(["nile", "nil", "--quick"]) == 2
    captured = capsys.readouterr()
    assert "unknown benchmark nil" in captured.err
    assert all(name in captured.err for name in command.questions())
    assert captured.out == ""  # nothing was run


@pytest.fixture
def made_up(monkeypatch, tmp_path):
    """Benchmarks `kept`, `missed`, `slow`, `raises`, `needs`, `beside` instead of the real ones, run here instead of in processes."""
    modules = {
        "kept": lambda quick: made_up_report(bounds=[harness.at_most("x", 1, 1)], draw=lambda: harness.new_figure()[0]),
        "missed": lambda quick: made_up_report(),
        "slow": lambda quick: made_up_report(bounds=[], timings=[harness.at_most("seconds", 2, 1)]),
        "raises": lambda quick: 1 / 0,
        "needs": lambda quick: importlib.import_module("no_such_package"),
        "beside": lambda quick, peers=False: made_up_report(bounds=[harness.at_least("peers", peers, 1)]),
    }
    real = importlib.import_module

    def import_module(name):
        made = modules.get(name.removeprefix("benchmarks."))
        return real(name) if made is None else SimpleNamespace(main=made)

    def run(arguments, **_):
        with contextlib.suppress(ZeroDivisionError):
            command.main([x for x in arguments[3:] if x != "--all"])

    monkeypatch.setattr(command, "importlib", SimpleNamespace(import_module=import_module))
    monkeypatch.setattr(command.subprocess, "run", run)
    monkeypatch.setattr(command, "questions", lambda *, by_name=False: {} if by_name else dict.fromkeys(modules, "?"))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "machine_floor", lambda: {"exp": 1.0})


def last_table(printed):
    """Words of each row of the table that all of them end in."""
    lines = printed[printed.index("All of them") :].splitlines()[3:]
    return {words[0]: words[1:] for words in map(str.split, lines) if words}


@pytest.mark.usefixtures("results", "made_up")
def test_all_of_them_end_in_one_table(capsys):
    assert command.main(["--all", "--quick"]) == 1
    captured = capsys.readouterr()
    table = last_table(captured.out)
    assert all(row.pop(3).isdigit() for row in table.values())  # seconds: the machine may be busy
    assert table == {
        "kept": ["1", "0", "0", "kept.png"],
        "missed": ["0", "1", "0", "-", "missed", "a", "bound"],
        "slow": ["0", "0", "1", "-"],
        "raises": ["-", "-", "-", "-", "failed"],
        "needs": ["-", "-", "-", "-", "failed"],
        "beside": ["0", "1", "0", "-", "missed", "a", "bound"],
    }
    assert command.main(["kept", "slow"]) == 0
    assert set(last_table(capsys.readouterr().out)) == {"kept", "slow"}


@pytest.mark.usefixtures("results", "made_up")
def test_one_benchmark_fails_by_an_exception_and_by_a_bound_that_is_none_of_time():
    assert [command.main([name]) for name in ("kept", "missed", "slow")] == [0, 1, 0]
    with pytest.raises(ZeroDivisionError):
        command.main(["raises"])


@pytest.mark.usefixtures("results", "made_up")
def test_peers_are_for_benchmarks_that_can():
    assert [command.main(arguments) for arguments in (["beside"], ["beside", "--peers"], ["kept", "--peers"])] == [
        1,
        0,
        0,
    ]
    assert command.main(["beside", "kept", "--peers"]) == 0


@pytest.mark.usefixtures("results", "made_up")
def test_a_missing_package_is_one_sentence_with_the_remedy(capsys):
    assert command.main(["needs"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("needs cannot run: No module named 'no_such_package'; pip install -e '.[all]'")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("made_up")
def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(monkeypatch, tmp_path, capsys):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setattr(command, "RESULTS", tmp_path / "a_file" / "results")
    assert command.main(["kept"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"cannot write to {tmp_path}/a_file/results: ")
    assert captured.err.endswith("LOGDERIV_RESULTS=FOLDER\n")
    assert captured.out == ""


def test_without_a_name_the_main_job_is_run(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "_run_here", lambda name, quick, peers: ran.append((name, quick, peers)) or 0)
    assert command.main([]) == command.main(["--quick"]) == 0
    assert ran == [("overview", False, False), ("overview", True, False)]


@pytest.mark.usefixtures("as_shipped")
def test_the_main_job_explains_each_step_and_is_exact(monkeypatch, capsys):
    monkeypatch.setattr(
        overview, "train", lambda **_: {"PPO": ld.training.Training(cast("Any", None), overview_metrics())}
    )
    report = overview.main(quick=True)
    assert len(report.bounds) == 5
    assert all(bound.holds for bound in report.bounds), report.bounds
    assert len(report.summary) == 5
    printed = "\n" + capsys.readouterr().out
    assert [printed.count(f"\n{number}. ") for number in range(1, 5)] == [1] * 4
    assert "both forms agree" in printed
    half = report.numbers["factors"]["batch mean"][0]
    assert half == pytest.approx(0.5, abs=1e-12)  # of two trajectories, the mean of both loses half


def overview_metrics():
    rows = jnp.ones((2, 10))
    return ld.training.Metrics(rows, rows, rows, 0 * rows, rows, 0 * rows)


SMALL = (0.9, 0.5, 1 / 3, 0.25, 0.1, 0.01)
SLOW = [slow((dtype, (0.99,))) for dtype in ("float16", "bfloat16", "float64")]


@pytest.mark.parametrize(
    ("dtype", "factors"),
    [slow(("float16", SMALL)), ("bfloat16", SMALL), ("float32", (0.99, *SMALL)), ("float64", SMALL), *SLOW],
)
def test_products_become_zero_where_a_plain_scan_does(dtype, factors):
    found = product_vs_score.collapses(dtype, factors)
    assert {c.factor: c.prob for c in found} == {p: FIRST_ZERO[dtype][p] for p in factors}
    for c in found:
        if c.prob is None:
            assert (c.last_prob > 0, c.grad, c.ratio) == (True, None, None)
        else:  # grad P = T P_{T-1}: it is there for one step more, and over a P of zero it is infinite
            # bfloat16's products from the other end round differently
            more = 4 if (dtype, c.factor) == ("bfloat16", 0.99) else 1
            assert (c.grad, c.last_prob, c.ratio) == (c.prob + more, 0.0, c.prob)


def test_collapse_of_fair_coins_by_hand():
    """2^-126 is the smallest normal number; 2^-24 the smallest subnormal of float16, where 1 / 2^-16 is more than 65504."""
    for dtype, by_hand in (("float32", (127, 128, 127, 127, 0.0)), ("float16", (25, 26, 25, 16, 0.0))):
        assert product_vs_score.collapses(dtype, (0.5,))[0][2:] == by_hand


def test_first_length_equals_a_linear_search():
    def fails_from(truth, limit, num):
        assert 1 <= num <= limit
        return num >= truth

    for limit in (1, 7, 40):
        for truth, guess in itertools.product(range(1, limit + 2), range(1, limit + 1)):
            found = product_vs_score.first_length(partial(fails_from, truth, limit), guess, limit)
            assert found == (truth if truth <= limit else None)


def test_score_side_goes_on_and_a_float16_parameter_does_not():
    long = 10**5
    (single,) = product_vs_score.survivals("float32", "float32", (0.9,), long)
    assert max(single.score, single.log_prob, single.log_grad_prob) < 1e-5
    (mixed,) = product_vs_score.survivals("float16", "float32", (0.5,), long)
    assert max(mixed.score, mixed.log_prob, mixed.log_grad_prob) < 2.0**-11
    assert mixed.score_overflows is None
    (half,) = product_vs_score.survivals("float16", "float16", (0.5,), long)
    assert half.score == np.inf  # it has the dtype of the parameter
    assert max(half.log_prob, half.log_grad_prob) < 2.0**-11
    assert half.log_prob < 2.0**-11
    # 2 T > 65504; the sum takes 14 + 14 additions in float16, each of which rounds by at most 2^-11
    assert half.score_overflows is not None
    assert abs(half.score_overflows / 32752 - 1) <= 28 * 2.0**-11


def test_relative_error_is_exact_and_shows_what_is_not_a_number():
    score, logp, log_grad = product_vs_score.exact_forms(0.5, 4)
    assert (float(score), float(logp)) == (8.0, 4 * np.log(0.5))
    assert float(log_grad) == pytest.approx(np.log(4 * 0.5**3), rel=1e-15)
    errors = [product_vs_score.relative_error(x, score) for x in (8.0 * (1 + 2.0**-30), -np.inf, np.nan)]
    np.testing.assert_array_equal(errors, [2.0**-30, np.inf, np.nan])


def test_the_product_is_lost_where_it_is_zero_and_the_score_goes_on():
    found = product_vs_score.collapses("float32", (0.6,))
    assert [c.prob for c in found] == [171]  # 0.6^170 > 2^-126 > 0.6^171
    errors = product_vs_score.errors_by_length(0.9, [828, 2000])
    product, _, ours = product_vs_score.METHODS
    assert errors["log P"][product][0] < 1e-4 < errors["log P"][product][1] == np.inf
    assert max(errors["grad log P"][ours]) < 1e-6
    assert max(errors["log P"][ours]) < 2e-6  # equal factors: all roundings have one sign


def test_accuracy_references_are_exact():
    logits = np.array([[0.3, -0.2, 0.1], [1.0, 0.5, -0.5]], np.float32)
    counts = np.array([[3, 1, 2], [0, 4, 1]])
    logp, score = likelihood_accuracy._exact_tabular(logits, counts)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float64))
    assert float(logp) == pytest.approx(float(np.sum(counts * np.asarray(log_probs))), rel=1e-14)
    expected = counts - np.exp(log_probs) * counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(score, float), expected, rtol=1e-12)


@pytest.mark.slow
def test_likelihood_accuracy_beats_a_plain_scan():
    """The plain scan is the wrong twin: it misses by more than ten times what the library's error is held to here."""
    measured = [*likelihood_accuracy.signed_rows(10**5), *likelihood_accuracy.same_action_rows(10**5, 1e-5)]
    for row in measured:
        assert row.error < 1e-5, row
        assert row.plain > 1e-4, row


# The harness


def made_up_report(**parts):
    rows = [("a", 1), ("long name", 10.5), ("none", None)]
    table = harness.Table("title", "name | value", "{r[0]} | {r[1]:.1f}", rows, "a note")
    return harness.Report([table], [harness.at_most("too slow", 2.0, 1.0)], {"x": 1})._replace(**parts)


def test_a_report_is_printed_and_a_missed_bound_comes_back(results, capsys):
    kept = harness.at_least("fast", 2.0, 1.5)
    report = made_up_report(timings=[kept], draw=lambda: harness.new_figure()[0])
    assert harness.publish("made_up", report, quick=True) == report.bounds
    printed = capsys.readouterr().out
    assert "name       value\n" in printed
    assert "long name   10.5\n  none           -\n  a note" in printed
    assert "MISSED  too slow: 2 <= 1" in printed
    assert {p.name for p in results.iterdir()} == {"made_up.jsonl", "made_up.png"}


def test_rows_are_appended_as_strict_json_without_the_host(results):
    figures = {"a": float("nan"), "b": np.float32(0.5), "c": jnp.array([1.0, jnp.inf]), 3: (True, None)}
    figures |= {"row": harness.Bound("x", 1, 2)}
    report = made_up_report(numbers=figures, timings=[harness.at_least("b", 1.0, 2.0)])
    for quick in (True, False):
        path = harness.save_row("made_up", report, quick=quick)
    assert not {"NaN", "Infinity"} & set(re.findall(r"\w+", path.read_text()))
    first, second = map(json.loads, path.read_text().splitlines())
    row = {"name": "x", "value": 1, "limit": 2, "at_least": False}
    assert first["numbers"] == {"a": "nan", "b": 0.5, "c": [1.0, "inf"], "3": [True, None], "row": row}
    missed = {"value": 2.0, "limit": 1.0, "at_least": False, "holds": False}
    assert first["bounds"] == [{"name": "too slow"} | missed]
    assert first["timings"] == [{"name": "b"} | missed | {"value": 1.0, "limit": 2.0, "at_least": True}]
    assert (first["quick"], second["quick"]) == (True, False)
    assert first["machine"]["jax"] == jax.__version__
    assert [0 < value < 1e6 for value in first["floor"].values()] == [True] * 3
    assert platform.node() not in json.dumps(first["machine"])


def test_bound_by_hand():
    assert [harness.at_most("", x, 1.0).holds for x in (1.0, 1.1, np.nan)] == [True, False, False]
    assert [harness.at_least("", x, 1.0).holds for x in (1.1, 0.9, np.nan)] == [True, False, False]


def test_timing_is_interleaved_and_takes_the_median(monkeypatch):
    order, clock, durations = [], [0.0], {"a": iter([100.0, 3.0, 1.0, 2.0]), "b": iter([100.0, 5.0, 5.0, 50.0])}
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])

    def run(name):
        order.append(name)
        clock[0] += next(durations[name])

    medians = harness.interleaved_medians({n: lambda n=n: run(n) for n in "ab"}, repeats=3)
    assert medians == {"a": 2.0, "b": 5.0}
    rounds = ["".join(order[i : i + 2]) for i in range(0, 8, 2)]
    assert set(rounds) == {"ab", "ba"}  # each once a round, and not always after the same one


def test_compile_call_runs_the_function():
    call = harness.compile_call(lambda x: jnp.sum(x * x), jnp.arange(4.0))
    assert float(call.run()) == float(call()) == 14.0
    assert call.compile_seconds > 0
    assert call.temp_bytes is None or call.temp_bytes >= 0
