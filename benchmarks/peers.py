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
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld
from benchmarks.harness import Compiled, compile_call

LogProb = Callable[[jax.Array, jax.Array], jax.Array]


def logits(params: Any, observations: jax.Array) -> jax.Array:
    """The network on all observations at once, as one writes it with arrays."""
    x = observations
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return x @ params[-1]["weight"] + params[-1]["bias"]


def ours(policy: Any, rows: int | None = None) -> Callable[..., jax.Array]:
    """The library, with its own block or a given one."""

    def mean_log_prob(params: Any, taus: ld.Trajectory) -> jax.Array:
        return jnp.mean(ld.log_prob(params, policy, taus, rows=rows))

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


def _with_library(log_prob: LogProb) -> Callable[..., jax.Array]:
    def mean_log_prob(params: Any, taus: ld.Trajectory) -> jax.Array:
        return jnp.mean(jnp.sum(log_prob(logits(params, taus.observations), taus.actions), axis=-1))

    return mean_log_prob


def _distrax() -> LogProb:
    distrax = importlib.import_module("distrax")
    return lambda x, actions: distrax.Categorical(logits=x).log_prob(actions)


def _numpyro() -> LogProb:
    distributions = importlib.import_module("numpyro.distributions")
    return lambda x, actions: distributions.Categorical(logits=x).log_prob(actions)


def _tfp() -> LogProb:
    distributions = importlib.import_module("tensorflow_probability.substrates.jax.distributions")
    return lambda x, actions: distributions.Categorical(logits=x).log_prob(actions)


def _rlax() -> LogProb:
    rlax = importlib.import_module("rlax")
    return lambda x, actions: rlax.softmax().logprob(actions, x)


LIBRARIES: Mapping[str, Callable[[], LogProb]] = {
    "distrax": _distrax,
    "numpyro": _numpyro,
    "TFP": _tfp,
    "rlax": _rlax,
}


def libraries() -> tuple[dict[str, Callable[..., jax.Array]], list[str]]:
    """Mean log P written with each installed JAX library, and the names of those that are missing."""
    found, missing = {}, []
    for name, load in LIBRARIES.items():
        try:
            found[name] = _with_library(load())
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
    weights = [
        torch.tensor(np.array(x), requires_grad=True) for layer in params for x in (layer["weight"], layer["bias"])
    ]
    observations = torch.tensor(np.array(taus.observations))
    actions = torch.tensor(np.array(taus.actions)).long()

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


KERNEL = r"""
#include <math.h>
#include <string.h>
enum { IN = 4, WIDTH = 64, BLOCK = 512 };
/* tanh as a rational function, good to a few units in the last place of a float */
static inline float tanh_(float x) {
  x = fminf(fmaxf(x, -7.9f), 7.9f);
  float y = x * x;
  float p = x * (4.89352455891786e-03f + y * (6.37261928875436e-04f + y * (1.48572235717979e-05f + y * (5.12229709037114e-08f
          + y * (-8.60467152213735e-11f + y * (2.00018790482477e-13f + y * -2.76076847742355e-16f))))));
  float q = 4.89352518554385e-03f + y * (2.26843463243900e-03f + y * (1.18534705686654e-04f + y * 1.19825839466702e-06f));
  return p / q;
}
/* Two actions: only the difference of their logits matters. `out`: d log P / d (W1, b1, W2[:, 1] - W2[:, 0], b2[1] - b2[0]). */
double log_prob(long rows, const float *x, const int *action, const float *W1, const float *b1, const float *w2, float b2, double *out) {
  double total = 0;
  memset(out, 0, (IN * WIDTH + 2 * WIDTH + 1) * sizeof *out);
  for (long start = 0; start < rows; start += BLOCK) {
    long end = start + BLOCK < rows ? start + BLOCK : rows;
    float gW[IN][WIDTH] = {{0}}, gb[WIDTH] = {0}, gw[WIDTH] = {0}, g0 = 0, sum = 0;
    for (long i = start; i < end; i++) {
      const float *xi = x + IN * i;
      float h[WIDTH], z = 0;
      for (int j = 0; j < WIDTH; j++) {
        h[j] = tanh_(b1[j] + xi[0] * W1[j] + xi[1] * W1[WIDTH + j] + xi[2] * W1[2 * WIDTH + j] + xi[3] * W1[3 * WIDTH + j]);
        z += h[j] * w2[j];
      }
      float sign = action[i] ? 1.f : -1.f, m = sign * (z + b2), e = expf(-fabsf(m));
      sum += fminf(m, 0.f) - log1pf(e);
      float c = sign * (m < 0 ? 1.f : e) / (1.f + e);
      g0 += c;
      for (int j = 0; j < WIDTH; j++) {
        float v = c * w2[j] * (1 - h[j] * h[j]);
        gw[j] += c * h[j];
        gb[j] += v;
        for (int k = 0; k < IN; k++) gW[k][j] += v * xi[k];
      }
    }
    for (int k = 0; k < IN; k++) for (int j = 0; j < WIDTH; j++) out[k * WIDTH + j] += gW[k][j];
    for (int j = 0; j < WIDTH; j++) { out[IN * WIDTH + j] += gb[j]; out[IN * WIDTH + WIDTH + j] += gw[j]; }
    out[IN * WIDTH + 2 * WIDTH] += g0;
    total += sum;
  }
  return total;
}
"""


def kernel_call(params: Any, taus: ld.Trajectory) -> Callable[[], tuple[float, np.ndarray]] | None:
    """A hand-fused single pass in C over the rows of an MLP 4-64-2, one thread: the floor. `None` without a C compiler.

    Returns:
        A call that gives the sum of log P and its gradient in `(W1, b1, W2[:, 1] - W2[:, 0], b2[1] - b2[0])`.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "kernel.c"), Path(folder, "kernel.so")
        source.write_text(KERNEL, encoding="ascii")
        options = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]
        subprocess.run([compiler, *options, str(source), "-o", str(library), "-lm"], check=True, capture_output=True)
        function = ctypes.CDLL(str(library)).log_prob
    function.restype = ctypes.c_double
    (first, last) = params
    out = np.zeros(4 * 64 + 2 * 64 + 1)
    arrays = [
        np.ascontiguousarray(x, dtype)
        for x, dtype in (
            (taus.observations, np.float32),
            (taus.actions, np.int32),
            (first["weight"], np.float32),
            (first["bias"], np.float32),
            (last["weight"][:, 1] - last["weight"][:, 0], np.float32),
        )
    ]
    pointers = [x.ctypes.data_as(ctypes.c_void_p) for x in arrays]
    shift = ctypes.c_float(float(last["bias"][1] - last["bias"][0]))

    def run(_: Any = arrays) -> tuple[float, np.ndarray]:
        rows = ctypes.c_long(arrays[1].size)
        return function(rows, *pointers, shift, out.ctypes.data_as(ctypes.c_void_p)), out

    return run


def compiled(function: Callable[..., jax.Array], params: Any, taus: ld.Trajectory) -> Compiled:
    """Value and gradient in `params`, compiled ahead of time."""
    return compile_call(jax.value_and_grad(function), params, taus)
