"""The benchmark of token log-probabilities, at tiny sizes."""

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks import harness, token_speed


def test_every_form_computes_the_same():
    arguments = token_speed.inputs(6, 40)
    results = {
        name: jax.jit(token_speed.value_and_gradients(form))(*arguments) for name, form in token_speed.FORMS.items()
    }
    for result in results.values():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), result, results[token_speed.PLAIN]
        )


def test_torch_computes_the_same():
    pytest.importorskip("torch")
    value = token_speed.value_and_gradients(token_speed.plain)(*token_speed.inputs(6, 40))[1]
    ours = token_speed.prepare(token_speed.TORCH, 6, 40)()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), tuple(ours), tuple(value))


def test_the_benchmark_runs_and_holds_its_bounds_to_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "machine_floor", lambda: {"copy_gb_per_s": 1.0})
    monkeypatch.setattr(harness, "matmul_gflops", lambda *_: 1.0)
    monkeypatch.setattr(token_speed, "QUICK_SIZES", ((8, 48),))
    peaks = {token_speed.OURS: 2 * 10**6, token_speed.PLAIN: 10**6}
    monkeypatch.setattr(harness, "peak_rss", lambda _, name, *size: peaks[name])
    token_speed.main(quick=True)
    plt.close("all")
    printed = capsys.readouterr().out
    assert "MISSED  peak resident memory over plain log-softmax's, N = 8, V = 48" in printed
    assert "kept    error of log_probs, bfloat16" in printed
    assert (tmp_path / "token_speed.png").exists()


def test_the_peak_of_one_call_is_that_of_what_it_allocates():
    num, vocabulary = 1024, 16384
    logits = 4 * num * vocabulary
    peak = harness.peak_rss("benchmarks.token_speed:prepare", token_speed.PLAIN, num, vocabulary)
    assert logits < peak < 5 * logits
