"""What `tests/test_training_devices.py` runs on several sets of devices, in processes of their own."""

import gc
import json
import math
import re
import tempfile
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import logderiv as ld
from logderiv._core import blocks as core_blocks
from tests import worlds

POLICY = ld.FunctionPolicy(lambda params, observation: ld.Categorical(params["logits"][observation]))
LEAVE_ONE_OUT = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
STREAM, EPISODES, NORMALIZED = "ppo", "leave one out, natural", "normalized"


def value(params, observation):
    return params["values"][observation]


def seen(params, observation):
    return ld.Categorical(observation["x"][:3] @ params["logits"])


def value_of_seen(params, observation):
    return jnp.dot(observation["x"][:3], params["values"])


def remember() -> optax.GradientTransformation:
    """Keeps the last gradient in the optimizer's state."""
    return optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params), lambda updates, state, params=None: (updates, updates)
    )


def cases() -> dict[str, dict[str, Any]]:
    """A stream with minibatches and standardized advantages; whole episodes with leave-one-out, and a natural gradient."""
    natural = ld.natural_gradient(POLICY, damping=0.1, iterations=4, tolerance=0.0)
    ppo = {"estimator": ld.PPOActorCritic(value), "optimizer": optax.chain(remember(), optax.adam(0.1)), "epochs": 2}
    leave_one_out = {
        "estimator": LEAVE_ONE_OUT,
        "optimizer": optax.chain(remember(), natural, optax.sgd(0.1)),
        "batch": ld.Groups(4, 4, horizon=8),  # more in a group than each of 8 devices has
        "evaluation": ld.Evaluation(every=3, num_episodes=8),
    }
    advantage = ld.advantages.Standardized(ld.advantages.ScaledRewards(ld.advantages.GAE(0.9)))
    normalized = {"estimator": ld.ActorCritic(ld.PPO(advantage, discount=0.9, gamma_t=False), value_of_seen)}
    episodes = {"batch": ld.Episodes(16, horizon=8)}
    return {
        STREAM: ppo | {"batch": ld.Steps(16, 6, horizon=5), "minibatches": 3},
        EPISODES: leave_one_out,
        NORMALIZED: ppo | normalized | {"batch": ld.Steps(16, 6, horizon=5), "minibatches": 3},
        "minibatches of episodes": ppo | episodes | {"minibatches": 2},
    }


def start(dtype):
    """Parameters and world."""
    params = {"logits": worlds.TERMINATING_LOGITS, "values": jnp.zeros(3)}
    return worlds.cast((params, worlds.terminating()), dtype)


def run(name, dtype, mesh):
    """The function of parameters and key that gives gradient, parameters and evaluation after three updates."""

    def trained(params, key):
        policy, world = POLICY, start(dtype)[1]
        if name == NORMALIZED:
            policy, world = ld.policies.Normalized(seen), worlds.InUnits(dtype)
        result = ld.train(params, key, policy, world, num_updates=3, mesh=mesh, **cases()[name])
        found = result.metrics.evaluation
        moments = result.state.statistics, result.state.estimator_state
        trained = result.params, jax.tree.map(lambda x: jnp.log1p(jnp.abs(x)), moments)  # in units of 1e6 some of them
        return result.state.opt_state[1][0], trained, () if found is None else found[-1]

    return trained


def alone(name, dtype, mesh):
    """As a script calls it."""
    return run(name, dtype, mesh)(start(dtype)[0], jax.random.key(0))


def compiled(name, dtype, mesh):
    """Inside `jax.jit`, two seeds by `jax.vmap`: the first one's numbers, and what the program communicates."""
    both = jax.vmap(run(name, dtype, mesh), (None, 0))
    inputs = start(dtype)[0], jax.random.split(jax.random.key(1), 2).at[0].set(jax.random.key(0))
    program = jax.jit(both).lower(*inputs).compile()
    return jax.tree.map(lambda x: x[0], program(*inputs)), communication(program)


def communication(program):
    """What a compiled program communicates: moves of parts of arrays, sums over devices, those in loops, numbers in the largest."""
    text = program.as_text()
    sums = re.findall(r"= (.*) all-reduce\(", text)
    shapes = [shape.split(",") for found in sums for shape in re.findall(r"\w\[([\d,]*)\]", found)]
    return {
        "gathers": text.count("all-gather("),
        "moves": len(re.findall(r"\b(?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text)),
        "sums": len(sums),
        "in loops": text.partition("\nENTRY ")[0].count("all-reduce("),
        "largest": max((math.prod(int(n) for n in shape if n) for shape in shapes), default=0),
    }


def spread(tree, mesh):
    """The leading axis over all devices."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def sharded(mesh):
    """Of trajectories that their owner has spread, under plain `jit`: the gap to one device, and what is communicated."""
    network, keys = ld.MLP(2, hidden=(3,)), jax.random.split(jax.random.key(2), 2)
    net = jax.tree.map(lambda x: x + 0.1, network.init(jax.random.key(1), jnp.zeros(4)))
    floats, logits = worlds.batch(keys[0], (16, 24)), jax.random.normal(keys[1], (3, 2))
    states = floats._replace(observations=jax.random.randint(keys[1], (16, 24), 0, 3))

    def estimate(policy):
        return lambda params, taus: LEAVE_ONE_OUT.estimate(params, (), policy, taus)[0].grads

    def scan(params, taus):
        return jax.lax.scan(lambda total, tau: (total + ld.log_prob(params, network, tau), 0), 0.0, taus)[0]

    cases = {
        "one pass": (jax.value_and_grad(lambda p, t: jnp.mean(ld.log_prob(p, network, t, block_size=8))), net, floats),
        "in blocks": (jax.grad(lambda p, t: jnp.mean(ld.log_factors(p, network, t, block_size=8))), net, floats),
        "leave one out": (estimate(network), net, floats),
        "by counting": (estimate(ld.tabular_softmax), logits, states),
        "scan over trajectories": (scan, net, floats),
    }
    found = {}
    for name, (function, params, taus) in cases.items():
        placed = spread(taus, mesh)
        program = jax.jit(function).lower(params, placed).compile()
        gaps = jax.tree.map(
            lambda a, b: jnp.max(jnp.abs(a - b)), program(params, placed), jax.jit(function)(params, taus)
        )
        found[name] = communication(program) | {"gap": max(jax.tree.leaves(gaps))}
    return found


def reported(mesh):
    """The rows of a run's file, and the mean returns of the run."""
    with tempfile.TemporaryDirectory() as folder:
        writer = ld.reporting.CSVWriter(folder + "/run.csv")
        options: Any = {"num_updates": 3, "mesh": mesh, "reporters": [writer]} | cases()[EPISODES]
        params, world = start(jnp.float64)
        result = ld.train(params, jax.random.key(0), POLICY, world, **options)
        table = np.genfromtxt(folder + "/run.csv", delimiter=",", names=True)
    return {name: table[name] for name in ("update", "mean_return")} | {"run": result.metrics.mean_return}


def estimates(mesh):
    """Of one batch: whole on one device; spread by its owner; and inside `jax.shard_map`, averaged over the devices."""
    params, world = start(jnp.float64)

    def estimate(params, keys):
        taus = ld.rollout(params, keys, POLICY, world, horizon=8)
        return LEAVE_ONE_OUT.estimate(params, (), POLICY, taus)[0].grads["logits"]

    keys, everywhere = jax.random.split(jax.random.key(0), 16), PartitionSpec()
    specs: Any = {"in_specs": (everywhere, PartitionSpec(mesh.axis_names)), "out_specs": everywhere}
    mean = lambda params, keys: jax.lax.pmean(estimate(params, keys), mesh.axis_names)  # noqa: E731
    in_shard_map = jax.shard_map(mean, mesh=mesh, check_vma=False, **specs)
    return {
        "whole": jax.jit(estimate)(params, keys),
        "spread": jax.jit(estimate)(params, spread(keys, mesh)),
        "shard_map": jax.jit(in_shard_map)(params, keys),
    }


def padded(num):
    """Trajectories of 0 to 24 steps."""
    taus = worlds.batch(jax.random.key(0), (num, 24))
    return taus._replace(valid=jnp.arange(24) < (5 * jnp.arange(num) % 25)[:, None])


def policy_of(params):
    """A policy's function that closes over the parameters, and takes none."""
    return lambda _, observation: ld.MLP(2, hidden=(3,)).apply(params, observation)


def curvature(params, taus):
    """A slope whose gradient is a product with the Hessian, of parameters that are captured."""

    def squares(params):
        return jnp.sum(ld.log_prob((), policy_of(params), taus, block_size=8) ** 2)

    return jax.jvp(squares, (params,), (jax.tree.map(jnp.ones_like, params),))[1]


def squares(params, taus, block_size):
    """Of the log-factors of every step, in blocks."""
    return jnp.sum(ld.log_factors((), policy_of(params), taus, block_size=block_size) ** 2)


def squares_at_once(params, taus):
    """The same without blocks."""
    log_probs = jax.vmap(jax.vmap(lambda x, a: policy_of(params)((), x).log_prob(a)))(taus.observations, taus.actions)
    return jnp.sum(log_probs**2, where=taus.valid)


def blocks(mesh):
    """Gradients through loops over blocks and over time, with the mesh in use and without: numbers, communication."""
    taus = padded(16)
    cases: dict[str, Any] = {}
    for name, policy in {"rows": ld.MLP(2, hidden=(3,)), "steps": ld.GRU(2, hidden=2)}.items():
        params = policy.init(jax.random.key(1), jnp.zeros(4))
        cases[name] = lambda p, t, policy=policy: jnp.sum(ld.log_factors(p, policy, t, block_size=8)), params, taus
    network = ld.MLP(2, hidden=(3,))
    params = network.init(jax.random.key(1), jnp.zeros(4))
    cases["trajectories"] = lambda p, t: jnp.sum(ld.log_prob(p, network, t, block_size=8)), params, taus
    cases["captured, Hessian"] = curvature, params, taus
    unembedding = jax.random.normal(jax.random.key(2), (5, 4))
    cases["tokens"] = (
        lambda p, t: ld.token_sum(score, p, t.observations, t.actions, chunk_size=8).value,
        unembedding,
        taus,
    )
    found = {}
    for name, (function, params, batch) in cases.items():
        grads, batch = jax.jit(jax.grad(function)), spread(batch, mesh)
        plain = grads.lower(params, batch).compile()
        with jax.set_mesh(mesh):
            meshed = grads.lower(params, batch).compile()
            numbers = meshed(params, batch)
        found[name] = {"plain": (plain(params, batch), communication(plain)), "mesh": (numbers, communication(meshed))}
    return found


def undivided(mesh):
    """Gradients of twelve trajectories that are spread over four devices of the eight in use, and at once on one."""
    params, taus = ld.MLP(2, hidden=(3,)).init(jax.random.key(1), jnp.zeros(4)), padded(12)
    alone = jax.jit(jax.grad(squares_at_once))(params, taus)
    mesh = jax.sharding.Mesh(mesh.devices.reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(taus, NamedSharding(mesh, PartitionSpec("b")))
    with jax.set_mesh(mesh):
        return {"one": alone, "eight": jax.jit(jax.grad(partial(squares, block_size=8)))(params, placed)}


def parts(mesh):
    """A block of 384 rows whose gradient is the sum of those of parts, on eight devices, and at once on one."""
    params, taus = ld.MLP(2, hidden=(3,)).init(jax.random.key(1), jnp.zeros(4)), padded(16)
    alone = jax.jit(jax.grad(squares_at_once))(params, taus)
    placed = spread(taus, mesh)
    with jax.set_mesh(mesh), mock.patch.object(core_blocks, "_SUMMED", 16):
        program = jax.jit(jax.grad(partial(squares, block_size=384))).lower(params, placed).compile()
        return {"one": alone, "eight": program(params, placed), "communication": communication(program)}


def score(token):
    """The term whose sum is the log-probability of all tokens."""
    return token.log_prob


def errors(mesh):
    """What bad input is told."""
    params, world = start(jnp.float64)
    stream, episodes = cases()[STREAM], cases()[EPISODES]
    explicit = NamedSharding(jax.make_mesh((8,), ("n",)), PartitionSpec("n"))
    keys = jax.random.split(jax.random.key(0), 16)

    def train(**options: Any):
        return ld.train(params, jax.random.key(0), POLICY, world, num_updates=3, mesh=mesh, **options)

    calls = {
        "devices": lambda: ld.make_mesh(9),
        "trajectories": lambda: train(**episodes | {"batch": ld.Episodes(12)}),
        "environments": lambda: train(**stream | {"batch": ld.Steps(20, 6)}),
        "evaluation": lambda: train(**episodes | {"evaluation": ld.Evaluation(every=3, num_episodes=10)}),
        "explicit": lambda: ld.rollout(params, jax.device_put(keys, explicit), POLICY, world, horizon=3),
        "apart": lambda: ld.rollout(
            jax.device_put(params, jax.devices()[1]), jax.device_put(keys, jax.devices()[0]), POLICY, world, horizon=3
        ),
    }
    found = {}
    for name, call in calls.items():
        try:
            call()
        except ValueError as error:
            found[name] = str(error)
    return found


def main():
    """Print, as JSON, what is found here."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    gc.set_threshold(100_000, 20, 50)  # as in `conftest.py`: a sixth less processor time
    mesh = ld.make_mesh()
    found: dict[str, Any] = {"devices": jax.device_count(), "processes": jax.process_count(), "numbers": {}}
    wanted = [(STREAM, jnp.float64), (EPISODES, jnp.float32), (EPISODES, jnp.float64), (NORMALIZED, jnp.float64)]
    if jax.process_count() > 1:
        wanted = wanted[:2]
    for name, dtype in wanted:
        case = f"{name}, {np.dtype(dtype)}"
        if mesh.size == 1 or jax.process_count() > 1 or dtype == jnp.float32:
            found["numbers"][case] = alone(name, dtype, mesh)
        else:
            found["numbers"][case], found[name] = compiled(name, dtype, jax.make_mesh((2, 4), ("a", "b")))
    if mesh.size > 1 and jax.process_count() == 1:
        whole = run("minibatches of episodes", jnp.float64, mesh)
        found["whole"] = communication(jax.jit(whole).lower(start(jnp.float64)[0], jax.random.key(0)).compile())
        for function in (estimates, blocks, undivided, parts, sharded, reported, errors):
            found[function.__name__] = function(mesh)
    print(json.dumps(jax.tree.map(lambda x: x if isinstance(x, str) else np.asarray(x).tolist(), found)))
