"""The speed benchmarks compare like with like: every candidate computes the same numbers. Speed itself is not tested."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import harness, likelihood_accuracy, likelihood_speed, peers, structure_speed
from tests.mostly import slow

pytestmark = pytest.mark.usefixtures("broadcasting")


def value_and_gradient(function, params, taus):
    return jax.device_get(jax.jit(jax.value_and_grad(function))(params, taus))


def test_every_form_of_log_prob_gives_the_same_value_and_gradient():
    params, taus = likelihood_speed.parameters(), likelihood_speed.trajectories(40, 3)
    installed, missing = peers.libraries()
    assert set(installed) | set(missing) == set(peers.LIBRARIES)
    forms = {"plain": peers.plain_scan(likelihood_speed.MLP), "vectorized": peers.vectorized, **installed}
    forms["rows 8"] = peers.ours(likelihood_speed.MLP, 8)
    expected = value_and_gradient(peers.ours(likelihood_speed.MLP), params, taus)
    for function in forms.values():
        got = value_and_gradient(function, params, taus)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), got, expected)


def test_the_kernel_in_c_and_the_reference_in_numpy_give_that_value_and_gradient():
    params = likelihood_speed.parameters()
    tau = likelihood_accuracy.trajectory(700, jax.random.key(0), actions=jnp.zeros(700, jnp.int32))
    value, grads = likelihood_accuracy.exact_mlp(params, tau)
    taus = jax.tree.map(lambda x: x[None], tau)
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), (params, taus.observations))
    expected = value_and_gradient(peers.vectorized, wide[0], taus._replace(observations=wide[1]))
    np.testing.assert_allclose(value, expected[0], rtol=1e-12)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10), grads, expected[1])
    run = peers.kernel_call(params, taus)
    if run is None:
        pytest.skip("no C compiler")
    kernel_value, out = run()
    np.testing.assert_allclose(kernel_value, value, rtol=1e-6)
    first, last = grads
    pieces = [first["weight"].ravel(), first["bias"], last["weight"][:, 1], last["bias"][1:]]
    np.testing.assert_allclose(out, np.concatenate(pieces), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_memory_is_that_of_the_inputs_at_any_length(monkeypatch):
    """Compiled as for a user, never run. The wrong twin, everything at once, needs 512 bytes for every step."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    short, long = harness.on_cores(2, "benchmarks.likelihood_speed:growth", [10**5, 10**6], 1)
    for row in (short, long):
        assert row["temp"] < 1.1 * row["inputs"] + 2**20
        assert row["vectorized"] > 500 * row["T"]
    assert long["vectorized"] > 20 * long["temp"]
    rows = harness.on_cores(2, "benchmarks.structure_speed:recurrent_memory", [4096, 65536])
    assert structure_speed.growth_over_root(rows, "ours") < 1.25
    assert structure_speed.growth_over_root(rows, "plain") > 3  # as T, not as its root


@pytest.mark.parametrize(
    ("make", "arguments"),
    [slow(("recurrent", [50])), ("tabular", [700]), slow(("moments", [32, 5])), ("answers", [16, 9])],
)
def test_every_form_of_a_structured_gradient_agrees(make, arguments, monkeypatch):
    monkeypatch.setattr(structure_speed, "NET", ld.MLP(2, hidden=(5, 4)))
    calls = getattr(structure_speed, make)(*arguments)
    found = {name: jax.device_get(call.run()) for name, call in calls.items()}
    if make == "moments":  # groups and the batch gradient are other quantities: means of what the others give
        pairs = jax.tree.leaves(found["vmap(grad)"], is_leaf=lambda x: isinstance(x, tuple))
        streamed = jax.tree.leaves(found["streamed"])
        for a, b in zip(streamed, [pair[i] for i in (0, 1) for pair in pairs], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        return
    if make == "answers":  # two objectives, each in two forms
        corrected = [found.pop(name) for name in list(found)[2:]]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *corrected)
    expected = found.pop("logderiv")
    for got in found.values():
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_what_each_point_is_held_to():
    seconds: Any = {"logderiv": 1.0, "plain scan over t": 5.0, "vectorized": 3.0, "torch": 5.0}
    seconds |= {"rows 512": 0.9, "rows 64": 2.0}

    def held(place, point):
        return {(b.name.split(",")[0], b.limit): b.holds for b in likelihood_speed.bounds_of(place, point, seconds)}

    scan, block, vectorized, torch = "plain scan", "against the best block", "vectorized", "torch"
    found = held("1 core", (65536, 1))
    assert found == {(scan, 10): False, (block, 1.2): True, (vectorized, 4.0): False, (torch, 6.0): False}
    found = held("2 cores", (1024, 64))
    assert found == {(scan, 3.5): True, (block, 1.2): True, (vectorized, 2.5): True, (torch, 2.5): True}
    assert [name for name, _ in held("1 core", (1024, 1))] == [scan, block]


def test_a_call_on_fewer_cores_comes_back():
    assert harness.on_cores(1, "math:sqrt", 4.0) == 2.0
