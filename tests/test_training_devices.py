"""The same training on 1 device, 8 devices and in 2 processes, and what is communicated; bad input."""

import json
import socket
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from benchmarks import harness, scaling
from logderiv._core.sharding import spread
from tests import on_devices
from tests.mostly import slow

RUN = """
import os
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count={devices}"
import jax
{start}
from tests import on_devices
on_devices.main()
"""
# However long the machine is busy with something else, neither process gives the other one up.
INITIALIZE = "jax.distributed.initialize('localhost:{port}', 2, {index}, heartbeat_timeout_seconds=900)"
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}


@pytest.fixture(scope="module")
def found():
    """What processes with one device and with eight print, both at once."""
    return printed({"one": RUN.format(devices=1, start=""), "eight": RUN.format(devices=8, start="")})


@pytest.fixture(scope="module")
def two_processes():
    """The same of two with four devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    starts = (INITIALIZE.format(port=port, index=i) for i in range(2))
    return printed({f"process {i}": RUN.format(devices=4, start=start) for i, start in enumerate(starts)})


def printed(codes: dict[str, str]) -> dict[str, Any]:
    """What each prints, `None` of two processes where this platform cannot."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runs = {name: subprocess.Popen([sys.executable, "-c", code], **options) for name, code in codes.items()}
    ends = {name: (*run.communicate(), run.returncode) for name, run in runs.items()}
    found: dict[str, Any] = {}
    for name, (out, error, code) in ends.items():
        cannot = "Multiprocess computations aren't implemented" in error
        assert code == 0 or cannot, error
        found[name] = None if cannot else json.loads(out.splitlines()[-1])
    return found


def gap(a, b):
    """The largest difference of two pytrees of numbers."""
    return max(
        np.max(np.abs(np.subtract(x, y)), initial=0)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.mark.parametrize(("place", "processes"), [("eight", 1), slow(("process 0", 2)), slow(("process 1", 2))])
def test_training_is_the_same_on_one_device_on_eight_and_in_two_processes(found, request, place, processes):
    """Gradient, parameters and statistics after three updates, and the evaluation: the last gradient saw all that went before."""
    if processes == 2:
        found = found | request.getfixturevalue("two_processes")
    if found[place] is None:
        pytest.skip("this jaxlib has no collectives between CPU processes")
    assert (found[place]["devices"], found[place]["processes"]) == (8, processes)
    for case, numbers in found[place]["numbers"].items():
        assert gap(numbers[:2], found["one"]["numbers"][case][:2]) < TOLERANCE[case.split(", ")[-1]], case
        np.testing.assert_equal(numbers[2], found["one"]["numbers"][case][2])


def test_leave_one_out_of_a_spread_batch_is_over_all_and_inside_shard_map_is_not(found):
    """Two trajectories a device: inside `shard_map` each is compared with one other instead of 15."""
    estimates = found["eight"]["estimates"]
    assert gap(estimates["spread"], estimates["whole"]) < 1e-12
    assert gap(estimates["shard_map"], estimates["whole"]) > 0.1


def test_no_trajectory_leaves_its_device(found):
    """A gradient has 9 numbers and leave-one-out 8 sums, a batch 96 or 128 of each kind; minibatches of whole episodes are moved."""
    for case in (on_devices.STREAM, on_devices.EPISODES, on_devices.NORMALIZED):
        said = found["eight"][case]
        assert said["moves"] == 0
        assert said["sums"] > 0
        assert said["largest"] <= 2 * 9  # of two seeds
    assert found["eight"]["whole"]["largest"] >= 8 * 8


def test_spread_trajectories_give_the_same_numbers_and_are_never_gathered(found):
    """The wrong twin scans over the spread axis: right numbers, but every device receives every trajectory."""
    cases = found["eight"]["sharded"]
    assert cases.pop("scan over trajectories")["gathers"] > 0
    for name, case in cases.items():
        assert case["gap"] < 1e-12, name
        assert case["gathers"] == 0 < case["sums"], name


def test_a_run_over_several_devices_reports_each_update_once(found):
    reported = found["eight"]["reported"]
    assert reported["update"] == [0, 1, 2]
    assert reported["mean_return"] == reported["run"]


def test_devices_wait_for_each_other_once_a_gradient_where_the_mesh_is_in_use(found):
    """The wrong twin is the same program without it: a sum over devices in every block, or in every step of a recurrent policy."""
    for case, said in found["eight"]["blocks"].items():
        (plain, without), (meshed, within) = said["plain"], said["mesh"]
        assert gap(plain, meshed) < 1e-12, case
        assert without["moves" if case == "tokens" else "in loops"] > 0, case
        assert within["in loops"] == 0, case
        assert within["moves"] == 0, case


def test_trajectories_that_the_devices_do_not_divide_and_parts_of_a_large_block_are_the_same(found):
    """Padded ones, with captured parameters. Parts of a block lie on one device each: the devices meet once, and nothing is moved."""
    undivided, parts = (found["eight"][name] for name in ("undivided", "parts"))
    assert gap(undivided["one"], undivided["eight"]) < 1e-12
    assert gap(parts["one"], parts["eight"]) < 1e-12
    assert parts["communication"]["in loops"] == parts["communication"]["moves"] == 0
    assert parts["communication"]["largest"] <= 12  # numbers of one leaf


def test_bad_numbers_of_devices_and_batches_are_named(found):
    errors = found["eight"]["errors"]
    assert "params on cpu:1, key on cpu:0" in errors["apart"].replace("TFRT_CPU_", "cpu:")
    assert "from 1 to 8" in errors["devices"]
    assert "received 9" in errors["devices"]
    for name, number, instead in (("trajectories", 12, 16), ("environments", 20, 24), ("evaluation", 10, 16)):
        assert f"multiple of the 8 devices of the mesh, received {number}; take {instead}" in errors[name]
    assert "AxisType.Auto" in errors["explicit"]


def test_a_batch_that_a_mesh_in_use_does_not_divide_is_not_spread():
    """A user's own `jax.set_mesh` around `evaluate` of three episodes is no error."""
    mesh = jax.sharding.AbstractMesh((2,), ("n",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.sharding.use_abstract_mesh(mesh):
        programs = [str(jax.make_jaxpr(spread)(np.zeros(n))) for n in (3, 4)]
    assert ["sharding_constraint" in program for program in programs] == [False, True]


def test_a_mesh_of_devices_that_there_are_not_and_what_is_no_mesh():
    numbers: Any = (0, -1, 2, 1.0)
    for number in numbers:
        with pytest.raises(ValueError, match=r"num_devices: expected a whole number from 1 to 1"):
            ld.make_mesh(number)
    how: Any = {"estimator": ld.ScoreFunction(), "optimizer": optax.sgd(0.1), "num_updates": 1, "mesh": 8}
    where = ld.shared_softmax, ld.environments.short_corridor(), ld.Episodes(2, horizon=3)
    with pytest.raises(TypeError, match=r"mesh: expected a jax.sharding.Mesh"):
        ld.train(np.zeros(2), jax.random.key(0), *where, **how)


def test_speedups_of_the_scaling_benchmark_by_hand(monkeypatch):
    """Tiny, in this process; speeds of more devices than there are here are made up."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        first = scaling.measure(1, 4, 4, 1, 1)
        exchanged = scaling.communicate(jnp.zeros(()), ld.make_mesh(1), {"weight": np.ones((2, 3))}, 2, 1)
        likelihood = scaling.measure_likelihood(1, 4, 2, 1)
    assert exchanged == 0
    assert set(first) == {"steps_per_second", "compile_seconds", "communication"}
    assert first["steps_per_second"] > 0
    assert set(likelihood) == {"logderiv", "vectorized", "vectorized, one device"}

    def made_up(count, function, *args):
        if function.endswith("measure_likelihood"):
            return {"logderiv": 1.0, "vectorized": 3.0, "vectorized, one device": 5.0}
        return first | {"steps_per_second": 100.0 * args[1] / count**0.5}

    monkeypatch.setattr(harness, "on_devices", made_up)
    report = scaling.main(quick=False)
    assert {row["ahead"] for row in report.numbers["likelihoods"]} == {5.0}
    rows = {(r["kind"], r["devices"]): r["speedup"] for r in report.numbers["rows"]}
    assert rows["weak", 4] == pytest.approx(2)
    assert rows["strong", 4] == pytest.approx(0.5)
    assert len(rows) == 7
