"""Trajectories sharded over devices under plain `jit`: the same numbers, and nothing gathered."""

import json
import subprocess
import sys

SCRIPT = """
import json, sys
import jax, jax.numpy as jnp
import logderiv as ld

jax.config.update("jax_enable_x64", True)
N, T = 16, 24
keys = jax.random.split(jax.random.key(0), 5)
one = jnp.ones((N, T))
floats, states = jax.random.normal(keys[0], (N, T, 4)), jax.random.randint(keys[1], (N, T), 0, 3)
actions, rewards = jax.random.randint(keys[2], (N, T), 0, 2), jax.random.normal(keys[3], (N, T))
NET = ld.MLP(2, hidden=(3,))
logits = jax.random.normal(keys[4], (3, 2))
estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))

def batch(observations):
    return ld.Trajectory(observations, actions, rewards, one, one > 0, one, observations[:, -1])

def estimate(policy):
    return lambda params, taus: estimator.estimate(params, (), policy, taus)[0].grads

net = jax.tree.map(lambda x: x + 0.1, NET.init(keys[0], jnp.zeros(4)))
cases = {
    "one pass": (jax.value_and_grad(lambda p, t: jnp.mean(ld.log_prob(p, NET, t, block_size=8))), net, floats),
    "in blocks": (jax.grad(lambda p, t: jnp.mean(ld.log_factors(p, NET, t, block_size=8))), net, floats),
    "leave one out": (estimate(NET), net, floats),
    "by counting": (estimate(ld.tabular_softmax), logits, states),
    "scan over trajectories": (lambda p, t: jax.lax.scan(lambda c, x: (c + ld.log_prob(p, NET, x), 0), 0.0, t)[0], net, floats),
}
sharding = jax.sharding.NamedSharding(jax.make_mesh((8,), ("n",), axis_types=(jax.sharding.AxisType.Auto,)), jax.sharding.PartitionSpec("n"))
found = {}
for name, (function, params, observations) in cases.items():
    taus = batch(observations)
    expected = jax.jit(function)(params, taus)
    sharded = jax.tree.map(lambda x: jax.device_put(x, sharding), taus)
    compiled = jax.jit(function).lower(params, sharded).compile()
    text = compiled.as_text()
    gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), compiled(params, sharded), expected)
    found[name] = {"gap": max(jax.tree.leaves(gaps)), "gathers": text.count("all-gather("), "sums": text.count("all-reduce(")}
print(json.dumps(found))
"""


def test_sharded_trajectories_give_the_same_numbers_and_are_never_gathered():
    """The wrong twin scans over the sharded axis: right numbers, but every device receives every trajectory."""
    code = (
        "import os; os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'\n"
        + SCRIPT
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    twin = found.pop("scan over trajectories")
    assert twin["gathers"] > 0
    for name, case in found.items():
        assert case["gap"] < 1e-12, name
        assert case["gathers"] == 0, name
        assert case["sums"] > 0, name
