"""The kernel that takes log P and its gradient in one pass, interpreted; its verdict by hand; what is without it."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fused_kernel
from benchmarks import likelihood_accuracy as accuracy
from benchmarks.fused_kernel import Rows, Shape
from tests.mostly import slow

pytest.importorskip("jax.experimental.pallas.triton")
pytest.importorskip("gymnax")
from benchmarks import accelerator

pytestmark = pytest.mark.usefixtures("as_shipped")


def _rows(num):
    """Parameters, rows of which one in five is not valid and holds NaN, and the exact answer for the others."""
    params, tau = accuracy.one_action(accuracy.MLP, num)
    taken = (jnp.arange(num) % 3 == 0).astype(jnp.int32)
    valid = jnp.arange(num) % 5 != 1
    exact = accuracy.exact_mlp(params, tau._replace(observations=tau.observations[valid], actions=taken[valid]))
    observations = jnp.where(valid[:, None], tau.observations, jnp.nan)
    return params, Rows(observations, jnp.where(valid, taken, 9), valid), exact


def _errors(params, rows, exact):
    return accuracy.gaps(jax.jit(partial(fused_kernel.value_and_grad, Shape(32, 4)))(params, rows), exact)


@pytest.mark.parametrize("num", [1, slow(31), 128, 300])
def test_one_pass_is_exact_whatever_the_rows_fill(num):
    """Fewer than a block, as many as all programs take at once, and a last block that reaches back; masked ones do not count."""
    assert max(_errors(*_rows(num))) < 2e-6


@pytest.mark.parametrize("wrong", ["rows of another block", "masked rows"])
def test_rows_that_do_not_count_are_noticed(wrong, monkeypatch):
    counts = fused_kernel._counts
    twins = {
        "rows of another block": lambda start, own, valid: valid,
        "masked rows": lambda start, own, valid: counts(start, own, jnp.ones_like(valid)),
    }
    params, rows, exact = _rows(300)
    rows = rows._replace(observation=jnp.nan_to_num(rows.observation), action=jnp.minimum(rows.action, 1))
    assert max(_errors(params, rows, exact)) < 2e-6
    monkeypatch.setattr(fused_kernel, "_counts", twins[wrong])
    assert min(_errors(params, rows, exact)) > 1e-2


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # from JAX 0.12 on
def test_on_a_gpu_it_is_one_kernel(monkeypatch):
    """Lowered for one that is not there; all shapes that are tried."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    params, rows, _ = _rows(1000)
    for shape in fused_kernel.SHAPES:
        traced = jax.jit(partial(fused_kernel.value_and_grad, shape)).trace(params, rows)
        assert traced.lower(lowering_platforms=("cuda",)).as_text().count("custom_call @__gpu$xla.gpu.triton") == 1


def test_the_part_of_the_benchmark(monkeypatch, capsys):
    """Every form is right; a shape that does not compile, and a JAX without Pallas, are named."""
    sizes = accelerator.QUICK._replace(fused=(100,), repeats=1)
    rows = accelerator.fused(sizes)
    assert [row["form"] for row in rows] == ["logderiv", "vectorized", "kernel 32 x 4"]
    assert max(row[error] for row in rows for error in accelerator.ERRORS) < 2e-6
    assert max(row["times as fast"] for row in rows[:2]) == 1

    def refuse(*_):
        raise NotImplementedError("no such instruction")

    monkeypatch.setattr(fused_kernel, "value_and_grad", refuse)
    assert [row["form"] for row in accelerator.fused(sizes)] == ["logderiv", "vectorized"]
    assert "without kernel 32 x 4: NotImplementedError: no such instruction" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "jax.experimental.pallas.triton", None)
    assert accelerator.fused(sizes) == []
    assert "without the kernel" in capsys.readouterr().out


def test_the_verdict_is_that_of_the_fastest_shape():
    names = ["logderiv", "kernel 64 x 8", "kernel 128 x 8"]
    rows = [{"rows": 10, "form": name, "times as fast": x} for name, x in zip(names, [9.0, 3.0, 4.5], strict=True)]
    rows += [{"rows": 20, "form": name, "times as fast": x} for name, x in zip(names, [9.0, 3.9, 2.0], strict=True)]
    assert [(bound.value, bound.holds) for bound in accelerator.verdicts(rows)] == [(4.5, True), (3.9, False)]


def test_errors_of_leaves_are_those_of_the_worst():
    exact = 2.0, [{"bias": np.array([3.0, 4.0]), "weight": np.array([10.0])}]
    found = jnp.float32(2.5), [{"bias": jnp.array([3.0, 4.5]), "weight": jnp.array([10.5])}]
    assert accuracy.gaps(found, exact) == pytest.approx((0.25, 0.1))
