r"""How do training and log P speed up with devices: the same batch on more of them (strong), and a batch for each (weak)?

Environment steps a second of PPO on gymnax's CartPole-v1 (MLP 64-64, 4 epochs of 4 minibatches) by `ld.train(mesh=...)`, compiled program only; each
number of devices in a process of its own, on as many cores as it has devices, at most all. On a CPU the devices are XLA's virtual ones, which share its
cores: more of them than cores cannot be expected to gain. Communication: the sums over devices that the compiled program holds (a flag for every step of
the environments, and every gradient), timed in a program that does nothing else.

Value and gradient of the mean log P, MLP 4-64-2, float32: two devices with a mesh in use and trajectories spread over them beforehand, a vectorized form likewise, and the vectorized form
on one of the two devices, which takes all cores.

Finding (2 CPU cores, jax 0.10.2; 128 steps): one device on one core makes 440 000 steps a second with 256 environments. Two devices on two cores make 1.13 times that with
the same batch, with 6 % of the time on communication, and 1.31 times with twice the batch; four and eight devices on the same two cores only add communication (28 and 39 %).
Log P of 10^6 steps takes 100 to 113 ms on two devices, of 65 536 6.7 ms: a vectorized form takes 1.6 to 3.2 times as long there, and 3.1 to 3.8 times on one device.
"""

import os
from functools import partial
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

import logderiv as ld
from benchmarks import harness, peers
from benchmarks.harness import Bound, Report, Table, at_least
from benchmarks.likelihood_speed import LARGE, MLP, parameters, trajectories
from logderiv._core.sharding import gather, replicate, spread, using

NET = ld.MLPActorCritic(2, hidden=(64, 64))
EPOCHS, MINIBATCHES = 4, 4
COUNTS = (1, 2, 4, 8)
LEAST = 1.2  # of two cores, which two devices share with everything else
POINTS = ((500_000, 2), (65536, 16), (1024, 1024), (1024, 64))  # the first is one of 10^6 steps, cut in two
QUICK_POINTS = ((8192, 2),)
AHEAD = 4.0  # of the vectorized form on one device, which takes all cores


def measure(devices: int, environments: int, steps: int, updates: int, repeats: int) -> dict[str, float]:
    """Steps a second, seconds of compiling and the share of communication, on the first devices of this process."""
    mesh = ld.make_mesh(devices)
    environment = ld.environments.Gymnax(*gymnax.make("CartPole-v1"))
    params = NET.init(jax.random.key(0), jnp.zeros(4))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(2.5e-4))
    options = {"estimator": ld.PPOActorCritic(NET.value), "optimizer": optimizer, "num_updates": updates, "mesh": mesh}
    options |= {"batch": ld.Steps(environments, steps), "epochs": EPOCHS, "minibatches": MINIBATCHES}
    train = jax.jit(lambda params, key: ld.train(params, key, NET, environment, **options))
    program = harness.compile_call(train, params, jax.random.key(1))
    runs = {"train": program}
    if devices > 1:
        runs["exchange"] = harness.compile_call(lambda x: communicate(x, mesh, params, steps, updates), jnp.zeros(()))
    seconds = harness.interleaved_medians(runs, repeats)
    return {
        "steps_per_second": environments * steps * updates / seconds["train"],
        "compile_seconds": program.compile_seconds,
        "communication": seconds.get("exchange", 0.0) / seconds["train"],
    }


def communicate(x: jax.Array, mesh: Any, params: Any, steps: int, updates: int) -> jax.Array:
    """The sums over devices of so many updates and nothing else: a flag at every step, and every gradient."""
    rows = jax.tree.map(lambda p: jnp.zeros((mesh.size, *p.shape), p.dtype), params)

    def flag(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.any(spread(jnp.full(mesh.size, x) > 0)).astype(x.dtype), None

    def gradient(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        sums = jax.tree.map(lambda r: gather(jnp.sum(spread(r + x), axis=0)), rows)
        return sum((jnp.ravel(s)[0] for s in jax.tree.leaves(sums)), x) * 0, None

    def update(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        x, _ = lax.scan(flag, x, None, length=steps)
        return lax.scan(gradient, x, None, length=EPOCHS * MINIBATCHES)

    with using(mesh):
        return lax.scan(update, replicate(x, mesh), None, length=updates)[0]


def measure_likelihood(devices: int, length: int, num: int, repeats: int) -> dict[str, float]:
    """Milliseconds of value and gradient of the mean log P, a mesh of so many devices in use; vectorized there, and on one device alone."""
    params, taus = parameters(), trajectories(length, num)
    mesh = ld.make_mesh(devices)
    placed = replicate(params, mesh), jax.device_put(taus, NamedSharding(mesh, PartitionSpec("batch")))
    calls = {"vectorized, one device": peers.compiled(peers.vectorized, params, taus)}
    with jax.set_mesh(mesh):
        calls["logderiv"] = peers.compiled(peers.ours(MLP), *placed)
        calls["vectorized"] = peers.compiled(peers.vectorized, *placed)
    return {name: 1e3 * s for name, s in harness.interleaved_medians(calls, repeats).items()}


def scale(counts: tuple[int, ...], *, environments: int, steps: int, updates: int, repeats: int, weak: bool) -> Any:
    """A row per number of devices and kind of scaling; one device is where both start."""
    rows = []
    for devices in counts:
        for kind, total in (("strong", environments), ("weak", environments * devices)):
            if kind == "strong" or (weak and devices > 1):
                args = (devices, total, steps, updates, repeats)
                found = harness.on_devices(devices, "benchmarks.scaling:measure", *args)
                rows.append({"kind": kind, "devices": devices, "environments": total} | found)
    return rows


def main(quick: bool) -> Report:
    cores, cpu = os.cpu_count() or 1, jax.default_backend() == "cpu"
    there = max(COUNTS) if cpu else jax.device_count()
    counts = tuple(n for n in ((1, 2) if quick else COUNTS) if n <= there)
    size = {"environments": 128, "steps": 32} if quick else {"environments": 256, "steps": 128}
    rows = scale(counts, **size, updates=4, repeats=5, weak=not quick)
    for row in rows:
        row["speedup"] = row["steps_per_second"] / rows[0]["steps_per_second"]
    allowed = min(max(counts), cores if cpu else there)
    table = Table(
        f"PPO on CartPole-v1, {size['steps']} steps an update: environment steps/s",
        "scaling | devices | environments | steps/s | times one | communication | compile s",
        "{r[kind]} | {r[devices]} | {r[environments]} | {r[steps_per_second]:.3g} | {r[speedup]:.2f}"
        " | {r[communication]:.1%} | {r[compile_seconds]:.1f}",
        rows,
        f"this machine: {cores} cores, {'virtual' if cpu else there} devices; at most {allowed} times one device",
    )
    two = [row for row in rows if row["devices"] == 2 and allowed > 1]
    timings = [at_least(f"{row['kind']} scaling, 2 devices over 1", row["speedup"], LEAST) for row in two]
    likelihoods = [
        likelihood_row(*point, 3 if quick else 7) for point in (QUICK_POINTS if quick else POINTS) if there > 1
    ]
    timings += _ahead(likelihoods) if cpu and allowed > 1 else []
    found = {"rows": rows, "size": size, "likelihoods": likelihoods}
    return Report([table, _likelihoods(likelihoods)], [], found, partial(_draw, rows, allowed), timings)


def likelihood_row(length: int, num: int, repeats: int) -> dict[str, Any]:
    """Two devices beside one, in a process that has two."""
    found = harness.on_devices(2, "benchmarks.scaling:measure_likelihood", 2, length, num, repeats)
    return {"length": length, "num": num, "ahead": found["vectorized, one device"] / found["logderiv"]} | found


def _ahead(rows: list[dict[str, Any]]) -> list[Bound]:
    """Where there is enough to do for two cores."""
    words = "log P, T = {r[length]}, B = {r[num]}: vectorized on one device over two"
    return [at_least(words.format(r=row), row["ahead"], AHEAD) for row in rows if row["length"] * row["num"] >= LARGE]


def _likelihoods(rows: list[dict[str, Any]]) -> Table:
    return Table(
        "value and gradient of the mean log P, MLP 4-64-2, float32, two devices: ms",
        "T, B | logderiv | vectorized | vectorized, one device | over logderiv",
        "{r[length]}, {r[num]} | {r[logderiv]:.3g} | {r[vectorized]:.3g} | {r[vectorized, one device]:.3g} | {r[ahead]:.2f}",
        rows,
    )


def _draw(rows: list[dict[str, Any]], allowed: int) -> Any:
    figure, ax = harness.new_figure(figsize=(5, 4))
    for kind in ("strong", "weak"):
        found = [(row["devices"], row["speedup"]) for row in rows if row["kind"] == kind or row["devices"] == 1]
        ax.plot(*zip(*found, strict=True), "o-", label=kind)
    counts = sorted({row["devices"] for row in rows})
    ax.plot(counts, [min(n, allowed) for n in counts], ":", color="0.2", label="what the machine allows")
    ax.set(xscale="log", yscale="log", xlabel="devices", ylabel="environment steps/s, times one device", title="PPO")
    ax.set_xticks(counts, [str(n) for n in counts])
    return figure
