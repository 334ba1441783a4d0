r"""Does a run that is killed again and again end with the same bits as one that is left alone?

Two runs, each in processes of its own: REINFORCE in the short corridor, and PPO with epochs and minibatches on a stream of gymnax's CartPole. Each
is left alone once. Then it is killed with SIGKILL at random moments, in turn while Python starts, while JAX compiles, while updates run and while a
checkpoint is being saved, and the same command is given again until it ends. A kill counts as survived if what the next process finds is not older
than the last checkpoint that was announced as saved, and if the run that it belongs to ends with bitwise the parameters, optimizer state, environment
states, keys and metrics of the run left alone.

Finding (2 CPU cores, jax 0.10.2, orbax-checkpoint 0.12.8): 20 of 20 kills survived. A save takes 90 ms for the 44 leaves of PPO's run, about 20 ms and
2 ms a leaf, and 4 ms a megabyte. At one checkpoint a minute that is 0.15 % of the time; every ten updates of this small a network, most of it.
"""

import hashlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import logderiv as ld
from benchmarks import harness
from benchmarks.harness import Report, Table, at_least

# What a process is at after it has announced this.
DURING = {"start": "start", "compile": "compile", "found": "compile", "save": "save", "saved": "update", "end": "end"}


class Task(NamedTuple):
    """What `train` is called with.

    Attributes:
        arguments: Parameters, policy and environment.
        options: Keyword arguments.
        every: Updates between two checkpoints.
    """

    arguments: tuple[Any, Any, Any]
    options: dict[str, Any]
    every: int


def reinforce() -> Task:
    """Whole episodes, a baseline with a state."""
    options = {"estimator": ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.MovingAverage()))}
    options |= {"optimizer": optax.adam(1e-2), "batch": ld.Episodes(64, horizon=64)}
    return Task((jnp.zeros(2), ld.shared_softmax, ld.environments.short_corridor()), options, 100)


def ppo() -> Task:
    """A network, environments that go on across updates, evaluation in between."""
    import gymnax

    environment = ld.environments.Gymnax(gymnax.make("CartPole-v1")[0])
    network = ld.MLPActorCritic(2, hidden=(64,))
    rate = optax.linear_schedule(2.5e-3, 0.0, 400 * 16)
    options = {"estimator": ld.PPOActorCritic(network.value), "evaluation": ld.Evaluation(every=10, num_episodes=8)}
    options |= {"optimizer": optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate))}
    options |= {"batch": ld.Steps(16, 128), "epochs": 4, "minibatches": 4}
    return Task((network.init(jax.random.key(1), jnp.zeros(4)), network, environment), options, 10)


TASKS = {"REINFORCE, corridor": reinforce, "PPO, CartPole": ppo}


class Announcing(ld.Checkpoints):
    """Checkpoints that say on standard output when they begin and end a save, and what was found."""

    def save(self, step: int, payload: Any, run: Any = None) -> None:
        """Announced."""
        print(json.dumps({"save": step}), flush=True)
        super().save(step, payload, run)
        print(json.dumps({"saved": step}), flush=True)

    def restore(self, like: Any, run: Any = None) -> Any:
        """Announced."""
        found = super().restore(like, run)
        print(json.dumps({"found": 0 if found is None else found[0]}), flush=True)
        return found


def run(task: str, directory: str, chunks: str) -> None:
    """One process of a run, from the newest checkpoint to the end; the last line has the digest of each leaf."""
    print(json.dumps({"compile": True}), flush=True)
    (params, policy, environment), options, every = TASKS[task]()
    options |= {"num_updates": every * int(chunks), "checkpoints": Announcing(directory, every)}
    training = ld.train(params, jax.random.key(0), policy, environment, **options)
    print(json.dumps({"end": digests(training)}), flush=True)


def digests(tree: Any) -> dict[str, str]:
    """SHA-256 of the bits of each leaf."""

    def digest(leaf: Any) -> str:
        leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        return hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()

    return {jax.tree_util.keystr(path): digest(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


class Life(NamedTuple):
    """What one process announced.

    Attributes:
        found: The update it went on from; `None` if it was killed before it knew.
        saved: The last checkpoint whose save had returned.
        at: During what it was killed, or `"end"`.
        end: The digests, if it came to them.
        lines: When it announced what, seconds since its start.
    """

    found: int | None
    saved: int | None
    at: str
    end: dict[str, str] | None
    lines: list[tuple[float, dict[str, Any]]]


class Moment(NamedTuple):
    """So many seconds after a process has announced something for the so-manieth time."""

    announced: str
    times: int
    seconds: float


def live(task: str, directory: str, chunks: int, kill: Moment | None = None) -> Life:
    """Give the run's command, and kill it at a moment."""
    code = "import sys; from benchmarks import kill_and_resume; kill_and_resume.run(*sys.argv[1:])"
    root = Path(__file__).resolve().parent.parent
    start = time.perf_counter()
    lines: list[tuple[float, dict[str, Any]]] = [(0.0, {"start": True})]
    command = [sys.executable, "-c", code, task, directory, str(chunks)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while kill is None or sum(kill.announced in line for _, line in lines) < kill.times:
            if not (line := process.stdout.readline()):
                break
            lines.append((time.perf_counter() - start, json.loads(line)))
        if kill is not None:
            time.sleep(kill.seconds)
            process.kill()
        lines += [(time.perf_counter() - start, json.loads(line)) for line in process.stdout]
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{task}: the process ended with {process.returncode}.")
    said = {name: value for _, line in lines for name, value in line.items()}
    at = DURING[next(iter(lines[-1][1]))]
    return Life(said.get("found"), said.get("saved"), at, said.get("end"), lines)


def typical(life: Life) -> dict[str, float]:
    """How long a process takes to start, to compile, for the updates between two checkpoints and for one: left alone."""
    at = {name: np.array([when for when, line in life.lines if name in line]) for name in DURING}
    update, save = np.median(at["save"][1:] - at["saved"][:-1]), np.median(at["saved"] - at["save"])
    compiling = at["save"][0] - at["compile"][0] - update
    return {"start": at["compile"][0], "compile": compiling, "update": update, "save": save}


class Kill(NamedTuple):
    """A process that was killed.

    Attributes:
        at: During what.
        saved: The newest checkpoint announced by then, by any process of the run.
        found: The one from which the next process that came so far went on.
    """

    at: str
    saved: int
    found: int


def moment(during: str, durations: dict[str, float], chance: random.Random) -> Moment:
    """Somewhere in one of the first three saves or the updates before the next, or in what comes only once."""
    announced = "saved" if during == "update" else during
    times = chance.randint(1, 3) if during in ("save", "update") else 1
    return Moment(announced, times, chance.random() * durations[during])


def killed_run(
    task: str, chunks: int, plan: Sequence[str], durations: dict[str, float], chance: random.Random
) -> tuple[list[Kill], dict[str, str]]:
    """A run that is killed during each of `plan`, one life after the other, and what it ends with."""
    kills: list[Kill] = []
    with tempfile.TemporaryDirectory() as directory:
        waiting, saved = [], 0
        for during in (*plan, None):
            life = live(task, directory, chunks, None if during is None else moment(during, durations, chance))
            if life.found is not None:
                kills += [Kill(at, before, life.found) for at, before in waiting]
                waiting = []
            saved = max(saved, life.saved or 0)
            if life.end is not None:
                return kills, life.end
            waiting.append((life.at, saved))
    raise RuntimeError(f"{task}: the last life did not come to an end.")


def saving_seconds(sizes: Sequence[int]) -> list[tuple[int, float, float]]:
    """Of a float32 array of each size: saving and restoring it, medians of five."""
    found = []
    for size in sizes:
        array = jax.random.normal(jax.random.key(0), (size,), jnp.float32)
        with tempfile.TemporaryDirectory() as directory:
            checkpoints, steps = ld.Checkpoints(directory, 1), iter(range(100))
            calls = {
                "save": lambda c=checkpoints, s=steps, a=array: c.save(next(s), a),
                "restore": lambda c=checkpoints, a=array: c.restore(lambda _: a),
            }
            medians = harness.interleaved_medians(calls, repeats=5)
        found.append((4 * size, medians["save"], medians["restore"]))
    return found


def main(quick: bool, *, tasks: Sequence[str] = tuple(TASKS)) -> Report:
    tasks, chunks = (tasks[:1], 10) if quick else (tasks, 40)
    plans = [("start", "compile", "save")] if quick else [("compile", "save", "start", "update", "save")] * 2
    chance = random.Random(0)
    rows, costs = [], []
    for task in tasks:
        with tempfile.TemporaryDirectory() as directory:
            alone = live(task, directory, chunks)
        durations = typical(alone)
        for plan in plans:
            kills, end = killed_run(task, chunks, plan, durations, chance)
            same = sum(end.get(name) == digest for name, digest in (alone.end or {}).items())
            whole = bool(alone.end) and same == len(alone.end) == len(end)
            of_run = {"run": task, "same": f"{same} of {len(end)}"}
            rows += [of_run | k._asdict() | {"survived": whole and k.found >= k.saved} for k in kills]
        saving = durations["save"] / (durations["save"] + durations["update"])
        costs.append({"run": task, "share": saving, "each minute": durations["save"] / 60} | durations)
    saves = saving_seconds((10**3, 10**5) if quick else (10**3, 10**5, 10**6, 10**7))
    kept, wanted = sum(row["survived"] for row in rows), len(tasks) * sum(map(len, plans))
    tables = [
        Table(
            "Each kill: the last checkpoint announced, what the next process found, leaves that end with the same bits",
            "run | killed at | saved | found | same leaves | survived",
            "{r[run]} | {r[at]} | {r[saved]} | {r[found]} | {r[same]} | {r[survived]}",
            rows,
            f"{kept} of {len(rows)} kills survived",
        ),
        Table(
            "A run left alone, seconds; what saving takes of its time",
            "run | to start | to compile | updates between saves | a save | saving | at one a minute",
            "{r[run]} | "
            + harness.cells(("start", "compile", "update", "save"), ".3f")
            + " | {r[share]:.0%} | {r[each minute]:.2%}",
            costs,
        ),
        Table("One array", "bytes | save, s | restore, s", "{r[0]:.0e} | {r[1]:.4f} | {r[2]:.4f}", saves),
    ]
    bounds = [at_least(f"kills survived, of {wanted}", kept, wanted)]
    return Report(tables, bounds, {"kills": rows, "costs": costs, "saves": saves})
