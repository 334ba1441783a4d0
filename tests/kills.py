"""A loop that saves, killed with SIGKILL before each operation on the file system.

`python -m tests.kills WRITER DIRECTORY STRIDE` prints a JSON list of what each new process finds: the step, or what is wrong with it.
Each saves the next step and begins to save the one after it, of which only some operations happen, so many more in each process
until one comes to its end. A list ends with the first loss, too. `benchmarks/kill_and_resume` kills at random moments.

The processes are forked before JAX has started any thread, which costs far less than new interpreters.
"""

import json
import os
import pickle
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from logderiv.training import checkpoints

# What orbax does from C++ is not among these; random moments meet it.
OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")


def payload(step):
    return {"numbers": np.arange(20_000) + 0.5 * step, "step": step}


class Orbax:
    def __init__(self, directory):
        self.checkpoints = checkpoints.Checkpoints(directory, every=1, keep=2)

    def save(self, step):
        self.checkpoints.save(step, payload(step))

    def restore(self):
        found = self.checkpoints.restore(payload)
        return None if found is None else found[1]


class InPlace:
    """The wrong twin: after the removal there is nothing, and while it writes neither the old state nor the new."""

    def __init__(self, directory):
        self.path = Path(directory) / "state.pickle"

    def save(self, step):
        shutil.rmtree(self.path.parent, ignore_errors=True)
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(pickle.dumps(payload(step)))

    def restore(self):
        return pickle.loads(self.path.read_bytes()) if self.path.exists() else None


def look(writer):
    """The step of what is found, or what is wrong with it."""
    try:
        found = writer.restore() or payload(0)
        good = np.array_equal(found["numbers"], payload(found["step"])["numbers"])
        return found["step"] if good else "other numbers"
    except Exception as error:
        return repr(error)


def kill_before(number, directory):
    """From now on only the operations before this one happen in the directory."""
    count = 0

    def hook(event, args):
        nonlocal count
        if event in OPERATIONS and str(args[0]).startswith(directory):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def live(writer, kill_at, directory):
    """What a new process finds, and whether it was killed."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = look(writer)
        os.write(write, json.dumps(found).encode())
        if isinstance(found, int):
            writer.save(found + 1)
            kill_before(kill_at, directory)
            writer.save(found + 2)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return json.loads(os.read(read, 10_000)), status == signal.SIGKILL


def main(name, directory, stride):
    checkpoints.require()
    writer = {"orbax": Orbax, "in-place": InPlace}[name](directory)
    found, killed = [], True
    while killed:
        step, killed = live(writer, 1 + stride * len(found), directory)
        killed = killed and step not in found
        found.append(step)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
