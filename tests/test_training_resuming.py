"""Training with checkpoints: bitwise the same with and without interruptions; other runs refused."""

import functools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from benchmarks import kill_and_resume
from logderiv.training import Checkpoints
from logderiv.training.reporting import CSVWriter
from tests.test_training_checkpoints import same
from tests.worlds import TERMINATING_LOGITS, terminating

pytest.importorskip("orbax.checkpoint")
pytestmark = pytest.mark.usefixtures("standard_promotion", "nans_are_errors")

MDP = terminating()
OPTIMIZER = optax.adam(0.3)
VALUE = ld.baselines.Value(lambda state: jnp.array([1.5, 1.0, 0.0])[state])
A2C = ld.ScoreFunction(ld.advantages.GAE(0.9, VALUE), discount=0.9, gamma_t=False)
STEPS = ld.Steps(4, 3, horizon=6)


CALLS = []


@ld.FunctionPolicy
def counted(params, observation):
    CALLS.append(observation)
    return ld.tabular_softmax.apply(params, observation)


def train(num_updates, directory, *, key: Any = 0, every=2, batch: Any = STEPS, params=TERMINATING_LOGITS, **options):
    key = jax.random.key(key) if isinstance(key, int) else key
    permitted = {name: options.pop(name) for name in ("version", "may_differ") if name in options}
    checkpoints = None if directory is None else Checkpoints(directory, every, **permitted)
    options = {"optimizer": OPTIMIZER, "estimator": A2C, "checkpoints": checkpoints, **options}
    options = {"policy": counted, "environment": MDP, **options}
    return ld.train(params, key, batch=batch, num_updates=num_updates, **options)


def test_an_interrupted_run_ends_bitwise_as_one_that_was_not(tmp_path):
    """State, environments, keys, metrics and the file of its rows. The last piece is a shorter one, and all pieces, also after a
    restart, with reporters or without, are calls of one program."""
    key, params = jax.random.split(jax.random.key(0)), jnp.tile(TERMINATING_LOGITS, (2, 1, 1))

    def run(num_updates, directory, key=key, **options):
        return train(num_updates, directory, key=jax.random.clone(key), params=params, **options)

    whole = run(5, tmp_path / "whole", reporters=[CSVWriter(tmp_path / "whole.csv")])
    text, count = (tmp_path / "whole.csv").read_text(), len(CALLS)
    run(2, tmp_path / "parts")
    run(3, tmp_path / "parts")  # saved at its end too
    run(4, tmp_path / "parts")
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["2", "3", "4"]
    shutil.rmtree(tmp_path / "parts" / "4" / "note")
    (tmp_path / "parts.csv").write_text(text[:-3])  # of rows behind the checkpoint, killed in the last
    with pytest.warns(UserWarning, match="4 is damaged"):
        parts = run(5, tmp_path / "parts", reporters=[CSVWriter(tmp_path / "parts.csv")])
    assert same(parts, whole)
    assert (tmp_path / "parts.csv").read_text() == text
    assert same(run(5, tmp_path / "parts"), whole)  # there was nothing left to do
    assert len(CALLS) == count
    assert not same(run(5, tmp_path / "other", key=jax.random.split(jax.random.key(1))), whole)
    plain = run(5, None)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12), plain.metrics, whole.metrics)
    np.testing.assert_allclose(plain.params, whole.params, rtol=1e-12)


class Paying:
    """A world of one's own, of a plain class."""

    horizon = 2

    def __init__(self, pay):
        self.pay = pay

    def reset(self, key, params=None):
        return jnp.int32(0), jnp.int32(0)

    def step(self, key, state, action, params=None):
        return state, state + 1, jnp.asarray(self.pay), state >= 1, False


def test_another_run_in_the_directory_is_refused_and_may_be_permitted(tmp_path):
    """Also where what differs is an attribute of an object, or a constant in a function; a schedule makes a longer run another one."""

    def halved(params, observation):
        return ld.Categorical(0.5 * params[observation])

    def doubled(params, observation):
        return ld.Categorical(2.0 * params[observation])

    batch, plain = ld.Episodes(2), ld.ScoreFunction()
    schedules = [optax.sgd(optax.linear_schedule(0.3, 0.0, num_updates)) for num_updates in (4, 6)]
    usual: dict[str, Any] = {"policy": halved, "environment": Paying(1.0), "batch": batch, "estimator": plain}
    longer: dict[str, Any] = {**usual, "optimizer": schedules[1]}
    usual["optimizer"] = schedules[0]
    train(4, tmp_path, **usual)
    others: dict[str, Any] = {"key": 1, "optimizer": optax.adam(0.2), "batch": ld.Episodes(3)}
    others |= {"evaluation": ld.Evaluation(every=3), "policy": doubled, "environment": Paying(-5.0)}
    others |= {
        "estimator": ld.ScoreFunction(ld.advantages.Credit(lambda r, d: 2 * r, past_rewards=False)),
        "version": 2,
    }
    for setting, other in others.items():
        with pytest.raises(ValueError, match=f"of another run: {setting}: expected .*, found .*may_differ=..{setting}"):
            train(4, tmp_path, **usual | {setting: other})
    with pytest.raises(ValueError, match="is at update 4 already, num_updates is 2"):
        train(2, tmp_path, **usual)
    with pytest.raises(ValueError, match=r"may_differ: expected some of \['policy', .*\], received \['polcy'\]"):
        train(6, tmp_path, may_differ=["polcy"], **usual)
    with pytest.raises(TypeError, match=r"write \('policy',\)"):
        Checkpoints(tmp_path, 2, may_differ="policy")
    with pytest.raises(ValueError, match="of another run: optimizer"):
        train(6, tmp_path, **longer)
    extended = train(6, tmp_path, may_differ=["optimizer"], **longer)
    assert extended.state.num_updates == 6
    assert same(train(6, tmp_path, **longer), extended)
    with pytest.raises(ValueError, match="of another run: optimizer"):
        train(6, tmp_path, **usual)


def test_a_reward_that_is_no_number_is_still_found():
    with pytest.raises(FloatingPointError, match="nan"):
        train(1, None, environment=Paying(jnp.nan), batch=ld.Episodes(2), estimator=ld.ScoreFunction())


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    """In the middle of a piece."""
    options: Any = {"every": 4, "evaluation": ld.Evaluation(every=2, num_episodes=2, stop_at=-1e9)}
    first = train(6, tmp_path, **options)
    assert first.state.stopped
    assert first.state.num_updates == 2
    assert np.isnan(first.metrics.mean_return).tolist()[2:] == [True] * 4
    assert first.metrics.num_steps.tolist() == [12, 12, 0, 0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["2"]
    assert same(train(6, tmp_path, **options), first)


def _life(first, last, end=None):
    lines = [(0.0, {"start": True}), (1.0, {"compile": True}), (1.1, {"found": first})]
    for step in range(first + 1, last + 1):
        lines += [(2.0 * step, {"save": step}), (2.0 * step + 1, {"saved": step})]
    return kill_and_resume.Life(first, last, "update" if end is None else "end", end, lines)


@pytest.mark.parametrize(
    ("found", "end", "kept"), [(2, {"w": "a"}, 3), (1, {"w": "a"}, 2), (2, {"w": "b"}, 0), (2, {"w": "a", "v": "a"}, 0)]
)
def test_the_benchmark_counts_what_survives(found, end, kept, monkeypatch):
    """Three kills; the second loses a checkpoint, or the run ends with other bits."""
    lives = iter([_life(0, 3, {"w": "a"}), _life(0, 1), _life(1, 2), _life(found, 3), _life(3, 4, end)])
    monkeypatch.setattr(kill_and_resume, "live", lambda *_: next(lives))
    monkeypatch.setattr(kill_and_resume, "saving_seconds", lambda _: [(4, 0.1, 0.1)])
    report = kill_and_resume.main(True)
    assert [(bound.value, bound.limit) for bound in report.bounds] == [(kept, 3)]
