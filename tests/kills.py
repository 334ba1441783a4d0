"""A loop that saves, killed with SIGKILL before each operation on the file system, or at random moments.

`python -m tests.kills WRITER DIRECTORY operations STRIDE` or `... random COUNT` prints a JSON list with an entry for each kill, up
to the first that loses something: `saved`, the last step whose save had returned, and `found`, what a new process then reads:
its step, or what is wrong.

The processes are forked before JAX has started any thread, which costs far less than new interpreters.
"""

import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from logderiv.training import checkpoints

# What orbax does from C++ is not among these; random moments meet it.
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def payload(step, size):
    return {"numbers": np.arange(size) + 0.5 * step, "step": step}


class Orbax:
    size = 20_000

    def __init__(self, directory):
        self.checkpoints = checkpoints.Checkpoints(directory, every=1, keep=2)

    def save(self, step):
        self.checkpoints.save(step, payload(step, self.size))

    def restore(self):
        found = self.checkpoints.restore(lambda step: payload(step, self.size))
        return None if found is None else found[1]


class InPlace:
    """The wrong twin: after the removal there is nothing, and while it writes, piece by piece, neither the old state nor the new."""

    size = 20_000

    def __init__(self, directory):
        self.path = Path(directory) / "state.pickle"

    def save(self, step):
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self.path.parent.mkdir(parents=True)
        data = pickle.dumps(payload(step, self.size))
        with self.path.open("wb", buffering=0) as file:
            for start in range(0, len(data), 64):
                file.write(data[start : start + 64])

    def restore(self):
        return pickle.loads(self.path.read_bytes()) if self.path.exists() else None


def look(writer):
    """The step of what is found, or what is wrong with it."""
    try:
        found = writer.restore()
        if found is None:
            return 0
        good = np.array_equal(found["numbers"], payload(found["step"], writer.size)["numbers"])
        return found["step"] if good else "other numbers"
    except Exception as error:
        return repr(error)


def save_on(writer, report, kill_at, directory):
    """Say what is there, then save step after step; of the second save only the operations before number `kill_at` happen."""
    watched, count = False, 0

    def hook(event, args):
        nonlocal count
        if watched and event in OPERATIONS and str(args[0]).startswith(directory):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    found = look(writer)
    report.write(json.dumps({"found": found}) + "\n")
    first = found + 1 if isinstance(found, int) else 1
    if kill_at is not None:
        sys.addaudithook(hook)
    for step in range(first, first + 10**6):
        watched = step > first
        writer.save(step)
        report.write(json.dumps({"saved": step}) + "\n")
        if watched and kill_at is not None:
            return  # the second save needs fewer operations


def start(writer, kill_at, directory):
    """A new process that saves on: its id and the pipe of its reports."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        save_on(writer, os.fdopen(write, "w", buffering=1), kill_at, directory)
        os._exit(0)
    os.close(write)
    return pid, os.fdopen(read)


def survived(kill):
    """What a save had returned for is there, or the one that was under way, complete."""
    return kill["found"] in (kill["saved"], kill["saved"] + 1)


def main(name, directory, mode, number):
    checkpoints.require()
    writer = {"orbax": Orbax, "in-place": InPlace}[name](directory)
    moments = random.Random(0)
    found, saved, status = [], [0], signal.SIGKILL
    while status == signal.SIGKILL and (mode == "operations" or len(found) <= number):
        pid, reports = start(writer, 1 + number * len(found) if mode == "operations" else None, directory)
        found.append(json.loads(reports.readline())["found"])
        if not survived({"saved": saved[-1], "found": found[-1]}):
            os.kill(pid, signal.SIGKILL)
            break
        first = json.loads(reports.readline())["saved"]
        if mode == "random":
            time.sleep(moments.uniform(0.0, 0.1))
            os.kill(pid, signal.SIGKILL)
        saved.append(max([first, *(json.loads(line)["saved"] for line in reports)]))
        _, status = os.waitpid(pid, 0)
    print(json.dumps([{"saved": s, "found": f} for s, f in zip(saved[1:], found[1:], strict=False)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
