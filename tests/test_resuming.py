"""Training with checkpoints: bitwise the same with and without interruptions; other runs refused."""

import functools
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from benchmarks import kill_and_resume
from logderiv.training import loop
from logderiv.training.checkpoints import Checkpoints
from tests.test_checkpoints import same
from tests.worlds import TERMINATING_LOGITS, terminating

pytest.importorskip("orbax.checkpoint")
pytestmark = pytest.mark.usefixtures("standard_promotion")

OPTIMIZER = ld.maximize(optax.adam(0.3))
MDP = terminating()
STREAM = {"num_environments": 4, "num_steps": 3, "horizon": 6}


VALUE = ld.baseline_value(lambda state: jnp.array([1.5, 1.0, 0.0])[state])
A2C = ld.score_function_without_gamma_t(credit=ld.gae(0.9), baseline=VALUE, discount=0.9)


def train(num_updates, directory, key=0, every=2, **options):
    key = jax.random.key(key) if isinstance(key, int) else key
    checkpoints = None if directory is None else Checkpoints(directory, every)
    options = {"optimizer": OPTIMIZER, "estimator": A2C, "checkpoints": checkpoints, **STREAM, **options}
    return ld.train(TERMINATING_LOGITS, key, ld.tabular_softmax, MDP, num_updates=num_updates, **options)


def programs():
    run: Any = loop.run
    return run._cache_size()


def test_an_interrupted_run_ends_bitwise_as_one_that_was_not(tmp_path):
    """State, environments, keys and metrics; all parts, the restored ones too, are calls of one compiled program."""
    before = programs()
    whole = train(6, tmp_path / "whole")
    train(2, tmp_path / "parts")
    train(4, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "4" / "note")
    with pytest.warns(UserWarning, match="4 is damaged"):
        parts = train(6, tmp_path / "parts")
    assert same(parts, whole)
    assert same(train(6, tmp_path / "parts"), whole)  # there was nothing left to do
    assert programs() == before + 1
    assert not same(train(6, tmp_path / "other", key=1), whole)
    plain = train(6, None)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), plain.metrics, whole.metrics)
    np.testing.assert_allclose(plain.params, whole.params, rtol=1e-12)


def test_another_run_in_the_directory_is_refused(tmp_path):
    train(4, tmp_path)
    for setting, change in {
        "key": {"key": 1},
        "optimizer": {"optimizer": ld.maximize(optax.adam(0.2))},
        "num_steps": {"num_steps": 4},
        "evaluation": {"evaluation": ld.Evaluation(every=3)},
    }.items():
        with pytest.raises(ValueError, match=f"of another run: {setting}: expected .*, found "):
            train(4, tmp_path, **change)
    with pytest.raises(ValueError, match="is at update 4 already, num_updates is 2"):
        train(2, tmp_path)
    with pytest.raises(ValueError, match=r"expected a multiple of checkpoints.every = 2, received 3"):
        train(3, tmp_path)
    with pytest.raises(ValueError, match=r"inside jax.jit or jax.vmap"):
        jax.vmap(lambda key: train(2, tmp_path, key))(jax.random.split(jax.random.key(0), 2))


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    evaluation = ld.Evaluation(every=2, num_episodes=2, stop_at=-1e9)
    first = train(6, tmp_path, evaluation=evaluation)
    assert first.state.stopped
    assert first.state.num_updates == 2
    assert np.isnan(first.metrics.mean_return).tolist()[2:] == [True] * 4
    assert first.metrics.num_steps.tolist() == [12, 12, 0, 0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert same(train(6, tmp_path, evaluation=evaluation), first)


def test_the_file_of_a_resumed_run_has_each_row_once(tmp_path):
    """Rows are there before the checkpoint after them, and those that a killed run wrote after it are written again."""
    rows = ld.CSVWriter(tmp_path / "rows.csv")
    whole = train(6, tmp_path / "run", writers=(rows,))
    text = (tmp_path / "rows.csv").read_text()
    assert [line.split(",")[0] for line in text.splitlines()] == ["update", *"012345"]
    for step in (4, 6):
        shutil.rmtree(tmp_path / "run" / str(step))
    assert same(train(6, tmp_path / "run", writers=(rows,)), whole)
    assert (tmp_path / "rows.csv").read_text() == text


def _life(first, last, end=None):
    lines = [(0.0, {"start": True}), (1.0, {"compile": True}), (1.1, {"found": first})]
    for step in range(first + 1, last + 1):
        lines += [(2.0 * step, {"save": step}), (2.0 * step + 1, {"saved": step})]
    return kill_and_resume.Life(first, last, "update" if end is None else "end", end, lines)


@pytest.mark.parametrize(
    ("found", "end", "kept"), [(2, {"w": "a"}, 3), (1, {"w": "a"}, 2), (2, {"w": "b"}, 0), (2, {"w": "a", "v": "a"}, 0)]
)
def test_the_benchmark_counts_what_survives(found, end, kept, monkeypatch, capsys, results):
    """Three kills; the second loses a checkpoint, or the run ends with other bits."""
    lives = iter([_life(0, 3, {"w": "a"}), _life(0, 1), _life(1, 2), _life(found, 3), _life(3, 4, end)])
    monkeypatch.setattr(kill_and_resume, "live", lambda *_: next(lives))
    monkeypatch.setattr(kill_and_resume, "saving_seconds", lambda _: [(4, 0.1, 0.1)])
    kill_and_resume.main(True)
    assert f"{kept} of 3 kills survived" in capsys.readouterr().out
    assert [bound["holds"] for bound in json.loads((results / "kill_and_resume.jsonl").read_text())["bounds"]] == [
        kept == 3
    ]
