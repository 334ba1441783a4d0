import dataclasses
import json
import platform
from functools import partial

import gymnasium
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")


import logderiv as ld
from benchmarks import __main__ as command
from benchmarks import control_tasks, harness, likelihood_accuracy, product_vs_score, reinforce_table
from benchmarks.likelihood_accuracy import Row

# First T at which a product of T equal factors, by lax.scan on XLA's CPU backend, is zero; None: it never is.
# Source: own enumeration, jax 0.10.2, file numerics_underflow of the project's truths, field jax_scan_first_zero.
FIRST_ZERO = {
    "float16": {0.99: None, 0.9: None, 0.5: 25, 1 / 3: 16, 0.25: 13, 0.1: 8, 0.01: 4},
    "bfloat16": {0.99: 7182, 0.9: 819, 0.5: 127, 1 / 3: 80, 0.25: 64, 0.1: 38, 0.01: 19},
    "float32": {0.99: 8690, 0.9: 829, 0.5: 127, 1 / 3: 80, 0.25: 64, 0.1: 38, 0.01: 19},
    "float64": {0.99: 70485, 0.9: 6724, 0.5: 1023, 1 / 3: 645, 0.25: 512, 0.1: 308, 0.01: 154},
}


def rows(path):
    def refuse(word):
        raise AssertionError(f"not JSON: {word}")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_list_names_every_benchmark_and_its_question(capsys):
    assert command.main(["--list"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert {"product_vs_score", "likelihood_accuracy", "reinforce_table"} <= set(listed)
    assert not {"harness", "control_tasks", "__main__", "__init__"} & set(listed)
    assert all(question.endswith("?") for question in listed.values()), listed


def test_unknown_name_is_an_error_that_names_the_known_ones(capsys):
    assert command.main(["nile", "nil", "--quick"]) == 2
    captured = capsys.readouterr()
    assert "unknown benchmark nil" in captured.err
    assert all(name in captured.err for name in command.questions())
    assert captured.out == ""  # nothing was run


def test_the_command_runs_what_was_named(monkeypatch, capsys):
    seen = []

    class Module:
        main = staticmethod(seen.append)

    monkeypatch.setattr(command.importlib, "import_module", lambda name: seen.append(name) or Module)
    assert command.main(["nile", "--quick"]) == 0
    assert seen == ["benchmarks.nile", True]

    ran = []
    monkeypatch.setattr(command, "_run_alone", lambda name, question, quick: ran.append(name) or name != "nile")
    assert command.main([]) == 1
    assert ran == list(command.questions())
    assert capsys.readouterr().err == "failed: nile\n"


@pytest.mark.parametrize(
    ("dtype", "factors"),
    [
        ("float16", (0.9,)),
        ("float16", (0.5, 1 / 3, 0.25, 0.1, 0.01)),
        ("bfloat16", (0.5, 1 / 3, 0.25, 0.1, 0.01)),
        ("bfloat16", (0.9,)),
        ("float32", (0.99, 0.9, 0.5, 1 / 3, 0.25, 0.1, 0.01)),
        ("float64", (0.9, 0.5, 1 / 3, 0.25, 0.1, 0.01)),
        pytest.param("float16", (0.99,), marks=pytest.mark.slow),
        pytest.param("bfloat16", (0.99,), marks=pytest.mark.slow),
        pytest.param("float64", (0.99,), marks=pytest.mark.slow),
    ],
)
def test_underflow_table_equals_the_truths(dtype, factors):
    found = product_vs_score.collapses(dtype, factors)
    assert {c.factor: c.prob for c in found} == {p: FIRST_ZERO[dtype][p] for p in factors}
    for c in found:
        if c.prob is None:
            assert c.last_prob > 0
            assert (c.grad, c.ratio) == (None, None)
        else:  # grad P = T P_{T-1}: it is there for one step more, and over a P of zero it is infinite
            more = (
                4 if (dtype, c.factor) == ("bfloat16", 0.99) else 1
            )  # its products from the other end round differently
            assert (c.grad, c.last_prob) == (c.prob + more, 0.0)
            assert c.ratio == c.prob


def test_collapse_of_fair_coins_by_hand():
    (single,) = product_vs_score.collapses("float32", (0.5,))
    assert single[2:] == (127, 128, 127, 127, 0.0)  # 2^-126 is the smallest normal number
    (half,) = product_vs_score.collapses("float16", (0.5,))
    assert half[2:] == (25, 26, 25, 16, 0.0)  # 2^-24 the smallest subnormal; 1 / 2^-16 is more than 65504


def _fails_from(truth, limit, num):
    assert 1 <= num <= limit
    return num >= truth


def test_first_length_equals_a_linear_search():
    for limit in (1, 7, 40):
        for truth in range(1, limit + 2):
            for guess in range(1, limit + 1):
                found = product_vs_score.first_length(partial(_fails_from, truth, limit), guess, limit)
                assert found == (truth if truth <= limit else None)


def test_score_side_goes_on_and_a_float16_parameter_does_not(monkeypatch):
    monkeypatch.setattr(product_vs_score, "LONG", 10**5)
    (single,) = product_vs_score.survivals("float32", "float32", (0.9,))
    assert max(single.score, single.log_prob, single.log_grad_prob) < 1e-5
    (mixed,) = product_vs_score.survivals("float16", "float32", (0.5,))
    assert max(mixed.score, mixed.log_prob, mixed.log_grad_prob) < 2.0**-11
    assert mixed.score_overflows is None
    (half,) = product_vs_score.survivals("float16", "float16", (0.5,))
    assert half.score == half.log_grad_prob == np.inf
    assert half.log_prob < 2.0**-11
    # 2 T > 65504; the sum takes 14 + 14 additions in float16, each of which rounds by at most 2^-11
    assert half.score_overflows is not None
    assert abs(half.score_overflows / 32752 - 1) <= 28 * 2.0**-11


def test_relative_error_is_exact_and_shows_what_is_not_a_number():
    score, logp, log_grad = product_vs_score.exact_forms(0.5, 4)
    assert (float(score), float(logp)) == (8.0, 4 * np.log(0.5))
    assert float(log_grad) == pytest.approx(np.log(4 * 0.5**3), rel=1e-15)
    assert product_vs_score.relative_error(8.0 * (1 + 2.0**-30), score) == 2.0**-30
    assert product_vs_score.relative_error(float("-inf"), score) == np.inf
    assert np.isnan(product_vs_score.relative_error(float("nan"), score))


def test_product_vs_score_runs_and_saves(results, monkeypatch, capsys):
    monkeypatch.setattr(product_vs_score, "DTYPES", ("float32",))
    monkeypatch.setattr(product_vs_score, "FACTORS", (0.9, 0.6, 0.5))
    monkeypatch.setattr(product_vs_score, "LONG", 2000)
    product_vs_score.main(quick=True)
    (row,) = rows(results / "product_vs_score.jsonl")
    assert [c["prob"] for c in row["figures"]["collapse"]] == [829, 171, 127]  # 0.6^170 > 2^-126 > 0.6^171
    assert row["figures"]["relative_error"]["log P"]["the product"][-1] == "inf"
    assert row["figures"]["relative_error"]["grad log P"]["logderiv, value_and_grad"][-1] < 1e-6
    assert (results / "product_vs_score.png").stat().st_size > 10_000
    assert "kept    grad_prob, float32" in capsys.readouterr().out


def test_accuracy_references_are_exact():
    logits = np.array([[0.3, -0.2, 0.1], [1.0, 0.5, -0.5]], np.float32)
    counts = np.array([[3, 1, 2], [0, 4, 1]])
    logp, score = likelihood_accuracy._exact_tabular(logits, counts)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float64))
    assert float(logp) == pytest.approx(float(np.sum(counts * np.asarray(log_probs))), rel=1e-14)
    expected = counts - np.exp(log_probs) * counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(score, float), expected, rtol=1e-12)


def test_likelihood_accuracy_beats_a_plain_scan():
    """The plain scan is the wrong twin: it misses by more than ten times what the library's error is held to here."""
    measured = [*likelihood_accuracy.signed_rows(10**5), *likelihood_accuracy.same_action_rows(10**5, 1e-5)]
    for row in measured:
        assert row.error < 1e-5, row
        assert row.plain > 1e-4, row


def test_likelihood_accuracy_reports_a_missed_bound(results, monkeypatch, capsys):
    row = Row("log P, made up", 1000, 2e-6, 1e-3, 1e-6)
    for name, value in (("value_rows", [row]), ("signed_rows", [row]), ("same_action_rows", [row])):
        monkeypatch.setattr(likelihood_accuracy, name, lambda *_, value=value: value)
    monkeypatch.setattr(
        likelihood_accuracy, "coherent_row", lambda _: row._replace(quantity="grad log P, made up", error=1e-7)
    )
    likelihood_accuracy.main(quick=True)
    (saved,) = rows(results / "likelihood_accuracy.jsonl")
    held = {bound["name"]: bound["holds"] for bound in saved["bounds"]}
    assert held["grad log P, made up, T = 1e+03"]
    assert not held["log P, made up, T = 1e+03"]
    output = capsys.readouterr().out
    assert "MISSED  log P, made up, T = 1e+03: 2e-06 <= 1e-06" in output


def made_up_run(curve, final):
    steps = np.cumsum(np.full(curve.shape, 1000), axis=1)
    return reinforce_table.Run(None, curve, steps, final, final, 1.0, 2.0)


def test_steps_to_a_threshold_and_the_interval_by_hand():
    curve = np.array([[475.0, 0, 500], [0, 474, 475], [500, 0, 0], [0, 400, 474]])
    run = made_up_run(curve, np.array([0.0, 0, 0, 4]))
    assert run.steps_to(475.0).tolist() == [1000, 3000, 1000, np.inf]
    # of four seeds a resample holds the fourth 0 times with probability 0.32, 3 times or more with 0.05, 4 times with 0.004
    assert run.interval() == (0.0, 3.0)


def corridor(**options):
    task = control_tasks.Task(
        "corridor",
        lambda: ld.short_corridor(horizon=40),
        -20.0,
        (("somebody", "-11.7", "1 k", "a book"),),
        {
            "REINFORCE": control_tasks.reinforce(
                ld.MLP(2, hidden=()), control_tasks.LEAVE_ONE_OUT, rate=0.1, updates=24, num_trajectories=4
            )
        },
    )
    return dataclasses.replace(task, **options)


@pytest.mark.usefixtures("standard_promotion")
def test_seeds_are_trained_on_scaled_rewards_and_reported_on_the_task():
    """Every step costs 1: a return is minus a length, between 2 and 40."""
    task = corridor(reward_scale=0.01, episodes=2)
    run = reinforce_table.train_seeds(task, task.recipes["REINFORCE"], seeds=2)
    assert run.curve.shape == run.steps.shape == (2, control_tasks.POINTS)
    assert ((run.curve >= -40) & (run.curve <= -2)).all()
    assert ((run.final >= -40) & (run.final <= -2)).all()
    assert (run.steps[:, 0] >= 2 * 4).all()
    assert (run.steps[:, -1] <= 24 * 4 * 40).all()
    assert (np.diff(run.steps) >= 2 * 4).all()


def test_gymnasium_returns_equal_a_plain_loop():
    """A policy of zeros takes action 0, greedily: each episode falls as it does in one environment with that seed."""
    policy = ld.MLP(2)
    params = jax.tree.map(jnp.zeros_like, policy.init(jax.random.key(0), jnp.zeros(4, jnp.float32)))
    params = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    expected = []
    for seed in range(6):
        world = gymnasium.make("CartPole-v1")
        world.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = world.step(0)
            total, over = total + float(reward), terminated or truncated
        expected.append(total)
        world.close()
    played = reinforce_table.play_gymnasium(policy, params, episodes=3, greedy=True)
    assert played.shape == (2, 3)
    assert played.ravel().tolist() == expected
    sampled = reinforce_table.play_gymnasium(policy, params, episodes=20)
    assert sampled.mean() > 1.5 * np.mean(expected)  # fair coins balance for about 22 steps, one direction for 9


def test_reinforce_table_prints_bounds_and_what_it_skips(results, monkeypatch, capsys):
    def missing():
        raise ImportError("brax is not installed")

    ends = {"PPO": 480.0, "A2C": 470.0}
    monkeypatch.setattr(reinforce_table.control_tasks, "all_tasks", lambda: (cartpole, corridor(make=missing)))
    cartpole = control_tasks.cartpole()
    cartpole = dataclasses.replace(cartpole, recipes={name: cartpole.recipes[name] for name in ends})

    def train_seeds(task, recipe):
        (name,) = (name for name, other in task.recipes.items() if other is recipe)
        return made_up_run(np.linspace(20, ends[name], 24)[None].repeat(8, axis=0), np.full(8, ends[name]))

    monkeypatch.setattr(reinforce_table, "train_seeds", train_seeds)
    monkeypatch.setattr(reinforce_table, "play_gymnasium", lambda *_, **__: np.full((8, 100), 470.0))
    reinforce_table.main(quick=False)
    (row,) = rows(results / "reinforce_table.jsonl")
    assert set(row["figures"]["CartPole-v1"]) == set(ends)
    assert row["figures"]["CartPole-v1"]["PPO"]["steps_to_threshold"] == [24000.0] * 8  # only the last evaluation
    assert row["figures"]["CartPole-v1"]["A2C"]["steps_to_threshold"] == ["inf"] * 8
    held = {bound["name"]: (bound["value"], bound["holds"]) for bound in row["bounds"]}
    assert held["CartPole-v1, PPO: seeds that return 475"] == (8, True)
    assert held["CartPole-v1, A2C: seeds that return 475"] == (0, False)
    assert held["CartPole-v1, PPO: steps"] == (24000, True)
    assert held["Gymnasium, PPO, mean over seeds"] == (470, False)
    output = capsys.readouterr().out
    assert "corridor: skipped, brax is not installed" in output
    assert "published: PPO 500.0 +- 0.0 after 100 k steps" in output
    assert (results / "reinforce_table.png").stat().st_size > 10_000


def test_rows_are_appended_as_strict_json_without_the_host(results):
    bounds = [harness.Bound("too slow", 1.0, 2.0, at_least=True)]
    figures = {"a": float("nan"), "b": np.float32(0.5), "c": jnp.array([1.0, jnp.inf]), 3: (True, None)}
    harness.save_row("made_up", figures, bounds, quick=True)
    path = harness.save_row("made_up", {}, quick=False)
    first, second = rows(path)
    assert first["figures"] == {"a": "nan", "b": 0.5, "c": [1.0, "inf"], "3": [True, None]}
    assert first["bounds"] == [{"name": "too slow", "value": 1.0, "limit": 2.0, "at_least": True, "holds": False}]
    assert (first["quick"], second["quick"]) == (True, False)
    assert first["machine"]["jax"] == jax.__version__
    assert all(0 < value < 1e6 for value in first["floor"].values())
    assert len(first["floor"]) == 3
    assert platform.node() not in json.dumps(first["machine"])


def test_bound_by_hand():
    assert harness.Bound("", 1.0, 1.0).holds
    assert not harness.Bound("", 1.1, 1.0).holds
    assert harness.Bound("", 1.1, 1.0, at_least=True).holds
    assert not harness.Bound("", float("nan"), 1.0).holds
    assert not harness.Bound("", float("nan"), 1.0, at_least=True).holds


def test_timing_is_interleaved_and_takes_the_median(monkeypatch):
    order, clock = [], [0.0]
    monkeypatch.setattr(harness.time, "perf_counter", lambda: clock[0])
    durations = {"a": iter([100.0, 3.0, 1.0, 2.0]), "b": iter([100.0, 5.0, 5.0, 50.0])}

    def run(name):
        order.append(name)
        clock[0] += next(durations[name])

    medians = harness.interleaved_medians({n: lambda n=n: run(n) for n in "ab"}, repeats=3)
    assert medians == {"a": 2.0, "b": 5.0}
    rounds = ["".join(order[i : i + 2]) for i in range(0, 8, 2)]
    assert set(rounds) == {"ab", "ba"}  # each once a round, and not always after the same one


def test_compile_call_runs_the_function():
    call = harness.compile_call(lambda x: jnp.sum(x * x), jnp.arange(4.0))
    assert float(call.run()) == 14.0
    assert call.compile_seconds > 0
    assert call.temp_bytes is None or call.temp_bytes >= 0


def test_table_is_aligned(capsys):
    harness.print_table("title", ("name", "value"), [("a", 1), ("long name", 10.5)])
    assert capsys.readouterr().out.splitlines() == [
        "",
        "title",
        "  name       value",
        "  ---------  -----",
        "  a              1",
        "  long name   10.5",
    ]
