"""Training: the README's promise, one compilation, many seeds, a progress bar."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld

README = Path(__file__).resolve().parent.parent / "README.md"
START = jnp.array([2.0, -2.0])
ESTIMATOR = ld.score_function(baseline=ld.baseline_leave_one_out())
ADAM = ld.maximize(optax.adam(5e-2))
pytestmark = pytest.mark.usefixtures("standard_promotion")


def _run_snippet(index: int) -> str:
    """The output of a block of Python in the README, run in a fresh interpreter, which compiles as it would for a user."""
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    assert len(snippets) == 2
    user = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", snippets[index]], capture_output=True, text=True, check=False, env=user
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_the_readmes_quick_start_runs_and_the_return_rises():
    """From about -200 (the horizon) to within 3 of the best possible -11.7."""
    shown = _run_snippet(0)
    assert "grad P = P * grad log P" in shown
    found = re.search(r"return (-[\d.]+), at best -11.7", shown)
    assert found is not None, shown
    assert float(found[1]) > -18


def test_the_readmes_training_reaches_475_on_cartpole():
    pytest.importorskip("gymnax")
    found = re.search(r"mean return (\d+) of 500, after 98,304 steps", _run_snippet(1))
    assert found is not None
    assert int(found[1]) >= 475


def test_maximize_ascends_where_optax_descends():
    """On reward = probability of action 1, the logit of action 1 rises; without maximize it falls."""
    bandit = ld.TabularMDP(
        jnp.array([1.0, 0]),
        jnp.tile(jnp.array([0.0, 1]), (2, 2, 1)),
        jnp.array([[0.0, 1], [0, 0]]),
        jnp.array([False, True]),
    )

    def trained(optimizer):
        options = {"estimator": ESTIMATOR, "num_updates": 20, "num_trajectories": 8, "horizon": 1}
        return ld.train(jnp.zeros(2), jax.random.key(0), ld.shared_softmax, bandit, optimizer=optimizer, **options)

    up, down = trained(ld.maximize(optax.sgd(0.5))), trained(optax.sgd(0.5))
    assert up.params[1] > 0.5 > -0.5 > down.params[1]
    assert up.metrics.mean_return[-5:].mean() > 0.7 > 0.3 > down.metrics.mean_return[-5:].mean()


def test_training_reaches_the_best_policy_of_the_corridor_on_every_seed():
    """p(right) = 2 - sqrt 2 = 0.586 at the optimum, J = -11.66; eight seeds by vmap."""

    def seed(key):
        return ld.train(
            START,
            key,
            ld.shared_softmax,
            ld.short_corridor(horizon=100),
            estimator=ESTIMATOR,
            optimizer=ADAM,
            num_updates=150,
            num_trajectories=16,
        )

    result = jax.jit(jax.vmap(seed))(jax.random.split(jax.random.key(0), 8))
    value = jax.vmap(lambda p: ld.exact.value(p, ld.shared_softmax, ld.short_corridor(), horizon=2000))
    values = jax.jit(value)(result.params)
    assert result.metrics.mean_return.shape == (8, 150)
    assert (values > -12.5).all()
    assert (result.metrics.mean_return[:, 0] < -60).all()


def test_training_compiles_once():
    """A second call with new parameters and another key traces nothing, however often the parts are rebuilt."""
    traces = 0

    def apply(params, observation):
        nonlocal traces
        traces += 1
        del observation
        return ld.Categorical(params)

    def run(key, start):
        estimator = ld.score_function(baseline=ld.baseline_leave_one_out(), discount=0.9)
        return ld.train(
            start,
            key,
            ld.FunctionPolicy(apply),
            ld.short_corridor(horizon=5),
            estimator=estimator,
            optimizer=ADAM,
            num_updates=4,
            num_trajectories=3,
        )

    first = run(jax.random.key(0), START)
    count = traces
    assert count > 0
    second = run(jax.random.key(1), 2 * START)
    assert traces == count
    assert not np.array_equal(first.params, second.params)


def test_an_estimate_is_not_retraced_by_a_rebuilt_estimator():
    traces = 0

    @jax.jit
    def estimate(params, estimator, taus):
        nonlocal traces
        traces += 1
        return estimator.estimate(params, estimator.init(params), ld.shared_softmax, taus)[0].grads

    for seed in range(3):
        taus = ld.rollout(
            START,
            jax.random.split(jax.random.key(seed), 4),
            ld.shared_softmax,
            ld.short_corridor(),
            horizon=6,
        )
        estimate(START, ld.score_function(baseline=ld.baseline_leave_one_out(), discount=0.9), taus)
    assert traces == 1


def test_metrics_count_real_steps_and_unfinished_episodes():
    result = ld.train(
        jnp.zeros(2),
        jax.random.key(0),
        ld.shared_softmax,
        ld.short_corridor(),
        estimator=ESTIMATOR,
        optimizer=optax.sgd(0.0),
        num_updates=3,
        num_trajectories=16,
        horizon=7,
    )
    np.testing.assert_array_equal(result.params, jnp.zeros(2))
    np.testing.assert_allclose(-result.metrics.mean_return * 16, result.metrics.num_steps)  # -1 per real step
    assert (result.metrics.truncated_fraction > 0).any()
    assert (result.metrics.grad_norm > 0).all()


@pytest.mark.parametrize("seeds", [None, 3])
def test_the_progress_bar_shows_the_last_update_and_return(seeds):
    pytest.importorskip("tqdm")

    def run(key):
        return ld.train(
            START,
            key,
            ld.shared_softmax,
            ld.short_corridor(),
            estimator=ESTIMATOR,
            optimizer=ADAM,
            num_updates=7,
            num_trajectories=2,
            horizon=3,
            progress=True,
        )

    with contextlib.redirect_stderr(io.StringIO()) as shown:
        keys = jax.random.key(0) if seeds is None else jax.random.split(jax.random.key(0), seeds)
        jax.block_until_ready(run(keys) if seeds is None else jax.vmap(run)(keys))
        jax.effects_barrier()
    text = shown.getvalue()
    assert "7/7" in text
    assert "return -3" in text
    assert "0/7" in text


def test_a_progress_bar_without_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r"logderiv\[progress\]"):
        ld.train(
            START,
            jax.random.key(0),
            ld.shared_softmax,
            ld.short_corridor(),
            estimator=ESTIMATOR,
            optimizer=ADAM,
            num_updates=1,
            num_trajectories=2,
            horizon=2,
            progress=True,
        )


def test_policies_start_near_uniform_and_are_differentiable():
    policies: list[Any] = [ld.MLP(3, hidden=(8, 8)), ld.linear(3), ld.GRU(3, hidden=4)]
    for policy in policies:
        params = policy.init(jax.random.key(0), {"a": jnp.ones(2), "b": jnp.ones((), int)})
        observation = {"a": jnp.array([0.5, -1.0]), "b": jnp.asarray(2)}
        distribution = (
            policy.apply(params, observation)
            if policy.initial_carry is None
            else policy.apply(params, policy.initial_carry(params), observation)[0]
        )
        np.testing.assert_allclose(jax.nn.softmax(distribution.logits), 1 / 3, atol=0.05)


def test_a_gaussian_policy_climbs_a_quadratic():
    """Reward -(a - 2)^2 on one step: the mean moves to 2."""

    class Target:
        horizon = 1

        def reset(self, key, params=None):
            return jnp.ones(1), ()

        def step(self, key, state, action, params=None):
            return jnp.ones(1), (), -jnp.sum((action - 2) ** 2), jnp.array(True), jnp.array(False)

    policy = ld.linear(2, head=ld.normal_head)
    params = policy.init(jax.random.key(0), jnp.ones(1))
    run = jax.jit(
        lambda key: ld.train(
            params,
            key,
            policy,
            Target(),
            estimator=ESTIMATOR,
            optimizer=ld.maximize(optax.adam(3e-2)),
            num_updates=300,
            num_trajectories=32,
        )
    )
    mean = policy.apply(run(jax.random.key(1)).params, jnp.ones(1)).loc
    np.testing.assert_allclose(mean, 2, atol=0.15)
