"""What others offer in PyTorch for log-probabilities of tokens; this file is no benchmark."""

import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch takes its own memory on the same device

TORCH, LIGER, GRPO = "torch cross-entropy", "Liger fused cross-entropy (mean)", "Liger GRPO (clipped ratio)"
CUT = "cut-cross-entropy"
PACKAGES = {"torch": (TORCH,), "liger_kernel": (LIGER, GRPO), "cut_cross_entropy": (CUT,)}
HAS_TORCH = importlib.util.find_spec("torch") is not None
OLD_LOG_PROB = -11.0  # in place of the old policy's: about the mean of tokens drawn from everything


def has_cuda() -> bool:
    """Whether JAX and PyTorch both have the GPU."""
    if not HAS_TORCH or jax.default_backend() != "gpu":
        return False
    import torch

    return torch.cuda.is_available()


def available() -> tuple[list[str], list[str]]:
    """Names of the candidates in PyTorch that can run here, and packages that are left out; all but PyTorch itself need CUDA."""
    on_cpu, cuda = jax.default_backend() == "cpu", has_cuda()
    found, missing = [], []
    for package, names in PACKAGES.items():
        runs = (cuda or (on_cpu and package == "torch")) and _imports(package)
        (found if runs else missing).extend(names if runs else (package,))
    return found, missing


def _imports(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


def calls(*arguments: jax.Array) -> dict[str, Callable[[], Any]]:
    """Value and both gradients of each candidate in PyTorch; none where it is not installed."""
    names = available()[0]
    if not names:
        return {}
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    cuda = has_cuda()
    arrays = (torch.from_numpy(np.array(x.astype(jnp.float32))) for x in arguments)
    device = "cuda" if cuda else "cpu"
    unembedding, hidden, tokens, weights = (x.to(device) for x in arrays)
    leaves = tuple(x.to(getattr(torch, arguments[0].dtype.name)).requires_grad_() for x in (unembedding, hidden))
    losses = _torch_losses(names, leaves, tokens.long(), weights)

    def run(loss: Callable[[], Any]) -> Any:
        value = loss()
        gradients = torch.autograd.grad(value, leaves)
        if cuda:
            torch.cuda.synchronize()
        return value.detach(), gradients

    return {name: partial(run, loss) for name, loss in losses.items()}


def _torch_losses(names: Sequence[str], leaves: Any, tokens: Any, weights: Any) -> dict[str, Callable[[], Any]]:
    """As their users write them. Liger's own are a mean, and a mean of clipped ratios with one advantage for each of 8 answers."""
    import torch

    unembedding, hidden = leaves
    losses = torch.nn.functional.cross_entropy
    found: dict[str, Any] = {
        TORCH: lambda: -torch.dot(weights, losses((hidden @ unembedding.T).float(), tokens, reduction="none"))
    }
    if LIGER in names:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        fused, grpo = LigerFusedLinearCrossEntropyLoss(), LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False)
        ids, old = tokens.reshape(8, -1), torch.full_like(weights, OLD_LOG_PROB).reshape(8, -1)
        given = hidden.reshape(*ids.shape, -1), unembedding, ids, torch.ones_like(old), weights[:8]
        found |= {
            LIGER: lambda: fused(unembedding, hidden, tokens),
            GRPO: lambda: grpo(*given, old_per_token_logps=old)[0],
        }
    if CUT in names:
        from cut_cross_entropy import linear_cross_entropy

        each = partial(linear_cross_entropy, hidden, unembedding, tokens, reduction="none")
        found[CUT] = lambda: -torch.dot(weights, each().float())
    return found


def measure(arguments: Sequence[jax.Array], *, repeats: int) -> dict[str, dict[str, Any]]:
    """Seconds of each, among themselves, and on a GPU MiB beyond inputs and gradients; or what went wrong.

    To be called before JAX has taken the memory of the device.
    """
    outputs = sum(x.nbytes for x in arguments[:2])
    rows: dict[str, dict[str, Any]] = {}
    runs = calls(*arguments)
    for name, run in runs.items():
        try:
            rows[name] = {"temp_mib": (_peak_of_cuda(run) - outputs) / 2**20} if has_cuda() else {}
        except Exception as error:  # whatever it is, the others go on
            rows[name] = {"failed": "out of memory" if is_out_of_memory(error) else type(error).__name__}
    seconds = harness.interleaved_medians({n: run for n, run in runs.items() if "failed" not in rows[n]}, repeats)
    return {name: row | ({"seconds": seconds[name]} if name in seconds else {}) for name, row in rows.items()}


def release() -> None:
    """Give back what PyTorch keeps of the device's memory."""
    if has_cuda():
        import torch

        torch.cuda.empty_cache()


def _peak_of_cuda(run: Callable[[], Any]) -> int:
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had too little memory, by XLA's words or PyTorch's."""
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()
