"""One script on one device, on many, and in several processes; this file is no benchmark.

    python -m benchmarks.devices
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m benchmarks.devices
    python -m benchmarks.devices localhost:1234 2 0 & python -m benchmarks.devices localhost:1234 2 1

The last line starts two processes: where the first one listens, how many there are, and which this is. On a cluster that
JAX knows, `jax.distributed.initialize()` finds that out itself.
"""

import sys

import jax
import jax.numpy as jnp
import optax

import logderiv as ld


def run(arguments: list[str]) -> None:
    if arguments:
        address, processes, index = arguments
        jax.distributed.initialize(address, int(processes), int(index))
    start, world = (jnp.array([2.0, -2.0]), jax.random.key(0)), ld.environments.short_corridor(horizon=200)
    how = {"estimator": ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut())), "optimizer": optax.adam(5e-2)}
    mesh = ld.make_mesh()
    training = ld.train(*start, ld.shared_softmax, world, ld.Episodes(16), num_updates=100, mesh=mesh, **how)
    probability = jax.nn.softmax(training.params)[1]  # at best 2 - sqrt 2 = 0.586
    place = f"process {jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices"
    print(f"{place}: p(right) {probability:.6f}")


if __name__ == "__main__":
    run(sys.argv[1:])
