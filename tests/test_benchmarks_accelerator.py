"""The benchmark of a device: its limits, operations and times by hand, and that errors as large as its own products make are noticed."""

import os
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import __main__ as command

pytest.importorskip("gymnax")
from benchmarks import accelerator, rl_peers
from benchmarks import likelihood_accuracy as accuracy

pytestmark = pytest.mark.usefixtures("as_shipped")


def test_limits_are_what_takes_longer():
    rows, products = 10**7, {"float32, highest": 50.0}
    assert accelerator.limit_seconds({"copy": 2000.0} | products, rows) == pytest.approx(1792e7 / 50e12)
    assert accelerator.limit_seconds({"copy": 100.0} | products, rows) == pytest.approx(20e7 / 100e9)
    assert accelerator.operations_a_step(rl_peers.Settings(epochs=4)) == 2 * (4480 + 4416) * 13


def test_what_would_not_be_done_in_time_is_left_out_and_named(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(accelerator, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    done = []
    for seconds in accelerator.within(6, [1, 2, 4, 8, 16]):
        now[0] += seconds
        done.append(seconds)
    assert done == [1, 2, 4]  # begun at 0, 1 and 3; at 7 the time is over
    assert capsys.readouterr().out.strip() == "6 s are not enough for 8, 16"


def test_times_and_memory_are_held_to_the_peers():
    def row(form, ratio, memory):
        return {"at": "9, 1", "form": form, "over vectorized": ratio, "temporary MiB": memory}

    rows = [row("logderiv", 1.05, 20.0), row("vectorized", 1.0, 90.0), row("numpyro", 1.3, 95.0)]
    assert [bound.holds for bound in accelerator.likelihood_bounds(rows)] == [True, True]
    rows[:1] = [row("logderiv", 1.15, 30.0)]
    assert [bound.holds for bound in accelerator.likelihood_bounds(rows)] == [False, False]
    assert accelerator.likelihood_bounds([]) == []
    trained = [{"form": "logderiv"}, *({"form": "peer", "environments": 2, "ours over": x} for x in (0.96, 1.2))]
    assert [bound.holds for bound in accelerator.training_bounds(trained)] == [False, True]


def test_products_of_eleven_bits_are_noticed():
    """As some devices take them by default; the two references, by hand and step by step, agree."""
    params, tau = accuracy.one_action(accuracy.MLP, 300)
    by_hand, by_scan = accuracy.exact_mlp(params, tau), accelerator._by_scan(accuracy.MLP, params, tau)
    np.testing.assert_allclose(by_scan[0], by_hand[0], rtol=1e-13)

    def rounded(params, policy, tau):
        mantissa, exponent = jnp.frexp(tau.observations)
        observations = jnp.ldexp(jnp.round(mantissa * 2**11) / 2**11, exponent)
        return ld.log_prob(params, policy, tau._replace(observations=observations))

    for exact in (by_hand, by_scan):
        assert max(accuracy.errors(ld.log_prob, accuracy.MLP, params, tau, exact)) < 5e-7
        assert min(accuracy.errors(rounded, accuracy.MLP, params, tau, exact)) > 2e-6


@pytest.mark.parametrize(("platform", "asked"), [("cpu", "cpu"), ("gpu", "cuda,cpu"), ("tpu", "tpu,cpu")])
def test_a_platform_is_asked_for_by_a_name_that_jax_knows(platform, asked, monkeypatch, tmp_path):
    """JAX takes "gpu" for one of every kind, and stops at the first that is not installed; references need the CPU."""
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "_run_here", lambda *_: 0)
    assert command.main(["nile", "--platform", platform]) == 0
    assert os.environ["JAX_PLATFORMS"] == asked
