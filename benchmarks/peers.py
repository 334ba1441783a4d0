"""What people would write instead: value and gradient of the mean log P of a batch, for an MLP with tanh; this file runs nothing.

Each candidate is built from `(params, trajectories)`, leading axes `(N, T)`, and returns a compiled call. Those of other libraries
are `None` where the library is not installed.
"""

import ctypes
import importlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld
from benchmarks.harness import Compiled, compile_call


def trajectory(observations: Any, actions: jax.Array) -> ld.Trajectory:
    """Trajectories `(*batch, T)` of which all that matters is what was observed and done."""
    ones = jnp.ones(actions.shape, jnp.float32)
    final = jax.tree.map(lambda x: x[..., 0] if x.ndim == actions.ndim else x[..., 0, :], observations)
    return ld.Trajectory(observations, actions, ones, ones, ones > 0, ones, final)


def parameters(policy: Any, key: jax.Array) -> Any:
    """Parameters for observations in four dimensions, moved off the nearly uniform start, float32."""
    key_init, key_noise = jax.random.split(key)
    leaves, structure = jax.tree.flatten(policy.init(key_init, jnp.zeros(4, jnp.float32)))
    keys = jax.random.split(key_noise, len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape, jnp.float32) for k, x in zip(keys, leaves, strict=True)]
    return structure.unflatten([x.astype(jnp.float32) + e for x, e in zip(leaves, noise, strict=True)])


def logits(params: Any, observations: jax.Array) -> jax.Array:
    """The network on all observations at once, as one writes it with arrays."""
    x = observations
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return x @ params[-1]["weight"] + params[-1]["bias"]


def ours(policy: Any, block_size: int | None = None) -> Callable[..., jax.Array]:
    """The library, with its own block or a given one."""

    def mean_log_prob(params: Any, taus: ld.Trajectory) -> jax.Array:
        return jnp.mean(ld.log_prob(params, policy, taus, block_size=block_size))

    return mean_log_prob


def plain_scan(policy: Any) -> Callable[..., jax.Array]:
    """A scan over time that carries the sums, all trajectories side by side."""

    def mean_log_prob(params: Any, taus: ld.Trajectory) -> jax.Array:
        num = taus.valid.shape[0]
        memory = None if policy.initial_carry is None else policy.initial_carry(params)
        start = jax.tree.map(lambda x: jnp.broadcast_to(x, (num, *x.shape)), memory)

        def one(memory: Any, observation: Any, action: Any) -> tuple[jax.Array, Any]:
            if policy.initial_carry is None:
                return policy.apply(params, observation).log_prob(action), None
            distribution, memory = policy.apply(params, memory, observation)
            return distribution.log_prob(action), memory

        def step(carry: Any, x: Any) -> tuple[Any, None]:
            total, memory = carry
            logs, memory = jax.vmap(one)(memory, *x)
            return (total + logs, memory), None

        xs = jax.tree.map(lambda x: x.swapaxes(0, 1), (taus.observations, taus.actions))
        dtype = jax.tree.leaves(params)[0].dtype
        return jnp.mean(lax.scan(step, (jnp.zeros(num, dtype), start), xs)[0][0])

    return mean_log_prob


def vectorized(params: Any, taus: ld.Trajectory) -> jax.Array:
    """Everything at once, with plain arrays."""
    logs = jax.nn.log_softmax(logits(params, taus.observations))
    return jnp.mean(jnp.sum(jnp.take_along_axis(logs, taus.actions[..., None], axis=-1)[..., 0], axis=-1))


def _with_library(log_prob: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    def mean_log_prob(params: Any, taus: ld.Trajectory) -> jax.Array:
        return jnp.mean(jnp.sum(log_prob(logits(params, taus.observations), taus.actions), axis=-1))

    return mean_log_prob


def _categorical(library: Any, x: jax.Array, actions: jax.Array) -> jax.Array:
    return library.Categorical(logits=x).log_prob(actions)


def _rlax(library: Any, x: jax.Array, actions: jax.Array) -> jax.Array:
    return library.softmax().logprob(actions, x)


def grpo(log_probs: Any, mask: jax.Array, tokens: Any, rewards: jax.Array, *, beta: float | None) -> jax.Array:
    """TRL's GRPO on arrays (groups of 8 side by side): with `beta` also the correction of the sampler and "r k3"."""
    rows = rewards.reshape(-1, 8)
    centered = rows - rows.mean(axis=1, keepdims=True)
    advantages = (centered / (rows.std(axis=1, ddof=1, keepdims=True) + 1e-4)).reshape(-1, 1)
    counted = mask.astype(log_probs.dtype)
    ratios = jnp.exp(log_probs - tokens["old"])
    losses = -jnp.minimum(ratios * advantages, jnp.clip(ratios, 0.8, 1.2) * advantages)
    if beta is not None:
        whole = jnp.exp(jnp.sum((tokens["old"] - tokens["sampler"]) * counted, axis=1, keepdims=True))
        losses = losses * jnp.where(whole > 3, 0, whole)
        difference = tokens["reference"] - log_probs
        losses = losses + beta * ((jnp.exp(difference) - difference - 1) * ratios)
    return jnp.mean(jnp.sum(losses * counted, axis=1) / jnp.maximum(jnp.sum(counted, axis=1), 1))


LIBRARIES: Mapping[str, tuple[str, Callable[..., jax.Array]]] = {
    "distrax": ("distrax", _categorical),
    "numpyro": ("numpyro.distributions", _categorical),
    "TFP": ("tensorflow_probability.substrates.jax.distributions", _categorical),
    "rlax": ("rlax", _rlax),
}


def libraries() -> tuple[dict[str, Callable[..., jax.Array]], list[str]]:
    """Mean log P written with each installed JAX library, and the names of those that are missing."""
    found, missing = {}, []
    for name, (module, log_prob) in LIBRARIES.items():
        try:
            found[name] = _with_library(partial(log_prob, importlib.import_module(module)))
        except ImportError:
            missing.append(name)
    return found, missing


def torch_call(params: Any, taus: ld.Trajectory) -> Callable[[], Any] | None:
    """Value and gradient with torch.distributions, on as many threads as there are cores; `None` without torch."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # contiguous copies: torch warns of arrays that it may not write to
    arrays = [np.array(x) for layer in params for x in (layer["weight"], layer["bias"])]
    weights = [torch.tensor(x, requires_grad=True) for x in arrays]
    observations, actions = (torch.tensor(np.array(x)) for x in (taus.observations, taus.actions))
    actions = actions.long()

    def run() -> Any:
        for w in weights:
            w.grad = None
        x = observations
        for i in range(0, len(weights) - 2, 2):
            x = torch.tanh(x @ weights[i] + weights[i + 1])
        outputs = x @ weights[-2] + weights[-1]
        value = torch.distributions.Categorical(logits=outputs).log_prob(actions).sum(-1).mean()
        value.backward()
        return value

    return run


def kernel_call(params: Any, taus: ld.Trajectory) -> Callable[[], tuple[float, np.ndarray]] | None:
    """A hand-fused single pass in C over the rows of an MLP 4-64-2, one thread: the floor. `None` without a C compiler.

    Returns:
        A call that gives the sum of log P and its gradient in `(W1, b1, W2[:, 1] - W2[:, 0], b2[1] - b2[0])`.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, unit, library = Path(__file__).with_name("kernel.c"), f"{folder}/kernel.o", f"{folder}/kernel.so"
        # not for the linker: this process's subnormals would be flushed
        fast = ["-O3", "-march=native", "-ffast-math", "-fPIC"]
        subprocess.run([compiler, *fast, "-c", str(source), "-o", unit], check=True, capture_output=True)
        subprocess.run([compiler, "-shared", unit, "-o", library, "-lm"], check=True, capture_output=True)
        function = ctypes.CDLL(str(library)).log_prob
    function.restype = ctypes.c_double
    (first, last) = params
    out = np.zeros(4 * 64 + 2 * 64 + 1)
    weights = (first["weight"], first["bias"], last["weight"][:, 1] - last["weight"][:, 0])
    observations, *weights = (np.ascontiguousarray(x, np.float32) for x in (taus.observations, *weights))
    arrays: Any = [observations, np.ascontiguousarray(taus.actions, np.int32), *weights]
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in arrays]
    shift = ctypes.c_float(float(last["bias"][1] - last["bias"][0]))

    def run(_: Any = arrays) -> tuple[float, np.ndarray]:
        rows = ctypes.c_long(arrays[1].size)
        return function(rows, *pointers, shift, out.ctypes.data_as(ctypes.c_void_p)), out

    return run


def compiled(function: Callable[..., jax.Array], params: Any, taus: ld.Trajectory) -> Compiled:
    """Value and gradient in `params`, compiled ahead of time."""
    return compile_call(jax.value_and_grad(function), params, taus)
