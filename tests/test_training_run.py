"""Training: the README's promise, one compilation, many seeds, a progress bar."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from tests.mostly import slow
from tests.pasted import ROOT, blocks, run

README = ROOT / "README.md"
START = jnp.array([2.0, -2.0])
ESTIMATOR = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
ADAM = optax.adam(5e-2)
CORRIDOR = ld.environments.short_corridor()
pytestmark = pytest.mark.usefixtures("standard_promotion")


def train(
    num_updates, batch, *, params=START, key=None, policy: Any = ld.shared_softmax, world: Any = CORRIDOR, **options
):
    options = {"estimator": ESTIMATOR, "optimizer": ADAM, "num_updates": num_updates, **options}
    return ld.train(params, jax.random.key(0) if key is None else key, policy, world, batch, **options)


def _run_snippet(index: int, folder: Path) -> str:
    """What a block of Python in the README prints."""
    snippets = blocks(README)
    assert len(snippets) == 2
    return run(snippets[index], folder)


@pytest.mark.slow
def test_the_readmes_quick_start_runs_and_the_return_rises(tmp_path):
    """From about -200 (the horizon) to within 3 of the best possible -11.7."""
    shown = _run_snippet(0, tmp_path)
    assert "grad P = P * grad log P" in shown
    found = re.search(r"return (-[\d.]+), at best -11.7", shown)
    assert found is not None, shown
    assert float(found[1]) > -18


def test_the_readmes_training_reaches_475_on_cartpole(tmp_path):
    pytest.importorskip("gymnax")
    found = re.search(r"mean return (\d+) of 500, after 98,304 steps", _run_snippet(1, tmp_path))
    assert found is not None
    assert int(found[1]) >= 475


def bandit(optimizer, params=START):
    """One step, reward = probability of action 1."""
    rewards, ends = jnp.array([[0.0, 1], [0, 0]]), jnp.array([False, True])
    world = ld.environments.TabularMDP(jnp.array([1.0, 0]), jnp.tile(jnp.array([0.0, 1]), (2, 2, 1)), rewards, ends)
    return train(20, ld.Episodes(8, horizon=1), params=params, world=world, optimizer=optimizer)


@pytest.mark.parametrize(
    "nested",
    [
        lambda inner: inner,
        lambda inner: optax.chain(optax.clip_by_global_norm(1.0), inner),
        lambda inner: optax.apply_if_finite(optax.chain(inner), 3),
        lambda inner: optax.inject_hyperparams(lambda rate: optax.chain(inner, optax.scale(rate)))(rate=1.0),
        lambda inner: optax.multi_transform({"all": inner}, "all"),
        lambda inner: optax.masked(inner, True),
        lambda inner: optax.MultiSteps(inner, 2),
    ],
)
def test_an_optimizer_that_is_turned_round_is_refused_at_any_nesting_and_no_other(nested):
    jax.eval_shape(lambda params: bandit(nested(optax.sgd(0.5)), params).params, START)
    with pytest.raises(ValueError, match="leave maximize out"):
        bandit(nested(ld.maximize(optax.sgd(0.5))))


def test_training_climbs_with_an_optimizer_of_optax_as_it_is():
    up = bandit(optax.sgd(0.5), jnp.zeros(2))
    assert up.params[1] > 0.5
    assert up.metrics.mean_return[-5:].mean() > 0.7


@pytest.mark.slow
def test_training_reaches_the_best_policy_of_the_corridor_on_every_seed():
    """p(right) = 2 - sqrt 2 = 0.586 at the optimum, J = -11.66; eight seeds by eight keys."""
    keys = jax.random.split(jax.random.key(0), 8)
    result = train(150, ld.Episodes(16, horizon=100), params=jnp.tile(START, (8, 1)), key=keys)
    p = np.asarray(jax.nn.softmax(result.params))[:, 1]
    values = (2 * p - 4) / (p * (1 - p))
    assert result.metrics.mean_return.shape == (8, 150)
    assert (values > -12.5).all()
    assert (result.metrics.mean_return[:, 0] < -60).all()


class Ignoring:
    """A reporter that looks at nothing."""

    def open(self, past, total):
        return contextlib.nullcontext(lambda updates, rows: None)


@pytest.mark.parametrize(
    ("seeds", "options"), [((), {}), slow(((3,), {"reporters": [Ignoring()]}))], ids=["one", "pieces"]
)
def test_training_and_evaluation_compile_once(options, seeds):
    """A second call with new parameters and another key traces nothing, however often the parts are rebuilt."""
    calls = []

    @ld.FunctionPolicy
    def counted(params, observation):
        calls.append(observation)
        return ld.Categorical(params)

    def run(seed, scale):
        key, start = jax.random.split(jax.random.key(seed), seeds), scale * jnp.broadcast_to(START, (*seeds, 2))
        world = ld.environments.short_corridor(horizon=5)
        parts = {
            "estimator": ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.9),
            "evaluation": ld.Evaluation(every=2, num_episodes=2, stop_at=scale),
        }
        result = train(4, ld.Episodes(3), params=start, key=key, policy=counted, world=world, **parts, **options)
        ld.evaluate(result.params.reshape(-1, 2)[0], jax.random.key(seed), counted, world, num_episodes=2)
        return result

    first, count = run(0, 1.0), len(calls)
    assert count > 0
    second = run(1, 2.0)
    assert len(calls) == count
    assert not np.array_equal(first.params, second.params)


@pytest.mark.parametrize("how", [jax.jit, lambda run: lambda x: jax.vmap(run)(x[None])], ids=["jit", "vmap"])
@pytest.mark.parametrize("name", ["reporters", "progress", "checkpoints"])
def test_what_the_host_does_is_refused_by_name_inside_jit_and_vmap(how, name, tmp_path):
    asked = {"reporters": [Ignoring()], "progress": True, "checkpoints": ld.Checkpoints(tmp_path, every=1)}

    def run(start):
        return train(1, ld.Episodes(2, 3), params=start, **{name: asked[name]})

    with pytest.raises(ValueError, match=f"^{name}: inside jax.jit or jax.vmap .* one call with several keys"):
        how(run)(START)


def test_metrics_count_real_steps_and_unfinished_episodes():
    result = train(3, ld.Episodes(16, horizon=7), params=jnp.zeros(2), optimizer=optax.sgd(0.0))
    np.testing.assert_array_equal(result.params, jnp.zeros(2))
    np.testing.assert_allclose(-result.metrics.mean_return * 16, result.metrics.num_steps)  # -1 per real step
    assert (result.metrics.truncated_fraction > 0).any()
    assert (result.metrics.grad_norm > 0).all()


def test_the_progress_bar_shows_the_last_update_and_return():
    pytest.importorskip("tqdm")
    key, start = jax.random.split(jax.random.key(0), 3), jnp.tile(START, (3, 1))
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        train(7, ld.Episodes(2, horizon=3), params=start, key=key, progress=True)
    assert all(text in shown.getvalue() for text in ("0/7", "7/7", "return -3"))


def test_policies_start_near_uniform_and_are_differentiable():
    policies: list[Any] = [ld.MLP(3, hidden=(8, 8)), ld.MLP(3, hidden=()), ld.GRU(3, hidden=4)]
    for policy in policies:
        params = policy.init(jax.random.key(0), {"a": jnp.ones(2), "b": jnp.ones((), int)})
        observation = {"a": jnp.array([0.5, -1.0]), "b": jnp.asarray(2)}
        carry = () if policy.initial_carry is None else (policy.initial_carry(params),)
        found = policy.apply(params, *carry, observation)
        distribution = found[0] if carry else found
        np.testing.assert_allclose(jax.nn.softmax(distribution.logits), 1 / 3, atol=0.05)


@pytest.mark.slow
def test_a_gaussian_policy_climbs_a_quadratic():
    """Reward -(a - 2)^2 on one step: the mean moves to 2."""

    class Target:
        horizon = 1

        def reset(self, key, params=None):
            return jnp.ones(1), ()

        def step(self, key, state, action, params=None):
            return jnp.ones(1), (), -jnp.sum((action - 2) ** 2), jnp.array(True), jnp.array(False)

    policy = ld.MLP(2, hidden=(), head=ld.normal_head)
    params = policy.init(jax.random.key(0), jnp.ones(1))
    options: Any = {"params": params, "policy": policy, "world": Target(), "optimizer": optax.adam(3e-2)}
    result = jax.jit(lambda key: train(300, ld.Episodes(32), key=key, **options))(jax.random.key(1))
    mean = policy.apply(result.params, jnp.ones(1)).loc
    np.testing.assert_allclose(mean, 2, atol=0.15)
