"""Settings are leaves: estimators under `jax.jit` and `jax.vmap`, and what reading a declaration asks for."""

import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.advantages import GAE, Standardized, ToGo
from logderiv.estimators.returns import backward_sums

from . import oracle
from .test_estimators_actor_critic import NETWORK, _episodes, _params
from .worlds import cast, compilations, trajectory
from .zoo import GIVEN, off_policy, zoo

NUM = 32
PPO_ACTOR_CRITIC: Any = ld.PPOActorCritic  # of arrays of settings, too


def _settings() -> dict[str, jax.Array]:
    """32 settings, no two of them equal."""
    spaced = lambda low, high, turn: jnp.roll(jnp.linspace(low, high, NUM), turn)  # noqa: E731
    return {
        "discount": spaced(0.5, 1.0, 0),
        "lambda_": spaced(0.0, 1.0, 5),
        "clip": spaced(0.05, 0.4, 11),
        "entropy_weight": spaced(0.0, 0.5, 17),
    }


def test_a_sweep_over_four_settings_is_one_program():
    """Equal to the 32 runs one by one, at parameters that moved, so that some ratios are clipped."""
    taus, params, traces = _episodes(), _params(), []
    moved = jax.tree.map(lambda x: x + 0.2, params)

    def gradient(estimator: Any) -> Any:
        traces.append(estimator.structure)
        weights, _ = estimator.advantages(params, (), NETWORK, taus)
        return jax.grad(estimator.objective)(moved, NETWORK, taus, weights)

    settings = _settings()
    single = [
        PPO_ACTOR_CRITIC(NETWORK.value, **{name: float(values[k]) for name, values in settings.items()})
        for k in range(NUM)
    ]
    together = jax.jit(jax.vmap(gradient))(jax.tree.map(lambda *x: jnp.stack(x), *single))
    assert len(traces) == 1
    run = jax.jit(gradient)
    one_by_one = jax.tree.map(lambda *x: jnp.stack(x), *map(run, single))
    assert len(traces) == 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-11), together, one_by_one)
    flat = np.concatenate([np.reshape(x, (NUM, -1)) for x in jax.tree.leaves(together["actor"])], axis=1)
    apart = np.max(np.abs(flat[:, None] - flat[None]), axis=-1) + np.eye(NUM)
    assert np.min(apart) > 1e-6, "two settings gave the same"


@pytest.mark.parametrize(
    "name", ["reward-to-go", "gae(0.5), given value", "moving average", "biased: truncated", "GRPO"]
)
def test_estimators_are_plain_arguments_of_jit(name):
    """The settings of each are leaves; the result is that of the estimator that is closed over."""
    estimator, world = zoo()[name], oracle.cut()
    batch, state = oracle.batch(world, 4, off_policy=off_policy(estimator)), estimator.init(world.params)

    @jax.jit
    def run(estimator: Any) -> Any:
        return estimator.estimate(world.params, state, oracle.POLICY, batch)[0].grads

    assert all(isinstance(x, float) for x in jax.tree.leaves(estimator))
    np.testing.assert_allclose(run(estimator), jax.jit(lambda: run(estimator))(), rtol=0, atol=1e-12)


def test_settings_of_double_precision_leave_single_precision_alone():
    """Traced in float64, beside data in float32."""
    taus, params = cast((_episodes(), _params()), jnp.float32)

    @jax.jit
    def run(estimator: Any) -> Any:
        return estimator.estimate(params, (), NETWORK, taus)[0].grads

    settings: dict[str, Any] = {name: values[3] for name, values in _settings().items()}
    assert all(x.dtype == jnp.float64 for x in settings.values())
    found = run(PPO_ACTOR_CRITIC(NETWORK.value, **settings))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(found))


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda x: ld.ScoreFunction(GAE(x, GIVEN)), "lambda_"),
        (lambda x: ld.PPO(Standardized(GAE(x, GIVEN))), "lambda_"),
        (lambda x: ld.ScoreFunction(discount=x, gamma_t=False), "discount"),
        (lambda x: ld.ScoreFunction(surrogate=ld.estimators.LoadedDiCE(x)), "lambda_"),
        (lambda x: ld.ActorCritic(ld.ScoreFunction(), entropy_weight=x), "entropy_weight"),
        (lambda x: ld.A2C(NETWORK.value, lambda_=x), "lambda_"),
    ],
)
def test_a_declaration_that_a_traced_setting_decides_cannot_be_read(build, name):
    """The structure can; and the declaration of concrete settings, one or several."""

    def structure(x: jax.Array) -> Any:
        return jnp.asarray(build(x).structure.min_trajectories)

    assert jax.jit(structure)(0.5) == build(0.5).structure.min_trajectories
    with pytest.raises(ValueError, match=rf"{name}: expected a concrete number to read the declaration"):
        jax.jit(lambda x: jnp.asarray(build(x).declaration.order))(0.5)
    assert build(jnp.array([0.5, 0.25])).declaration.order <= build(0.5).declaration.order


def test_a_traced_setting_that_decides_nothing_leaves_the_declaration_readable():
    orders = []
    jax.jit(lambda x: orders.append(ld.ScoreFunction(discount=x).declaration.order) or x)(0.5)
    jax.jit(lambda x: orders.append(ld.PPO(ToGo(ld.baselines.Constant(x)), clip=x).declaration.order) or x)(0.5)
    assert orders == [1, 1]


def test_a_second_call_with_equal_settings_compiles_nothing():
    """Nor does one with other numbers; another advantage does."""
    taus, params = _episodes(), _params()

    def run(discount: float, advantage: Any = None) -> None:
        advantage = GAE(0.9) if advantage is None else advantage
        actor = ld.ScoreFunction(advantage, discount=typing.cast("Any", discount))
        estimator = ld.ActorCritic(actor, NETWORK.value, entropy_weight=0.01)
        jax.block_until_ready(estimator.estimate(params, estimator.init(params), NETWORK, taus))

    for discount, advantage, compiles in (
        (0.9, None, True),
        (0.9, None, False),
        (0.5, None, False),
        (0.9, ToGo(), True),
    ):
        with compilations() as found:
            run(discount, advantage)
        assert bool(found) == compiles


@jax.jit
def _weights(estimator: Any, taus: ld.Trajectory) -> jax.Array:
    params = jnp.zeros(2, taus.rewards.dtype)
    taus = ld.importance.with_behavior(params, ld.shared_softmax, taus)
    return estimator.advantages(params, (), ld.shared_softmax, taus)[0].astype(jnp.float64)


@jax.jit
def _added_then_subtracted(taus: ld.Trajectory, discount: Any, lambda_: Any) -> jax.Array:
    """The wrong twin: δ = (r + γ v') - v, in the dtype of the data."""
    values = taus.observations
    then = jnp.append(values[0, 1:], taus.final_observation)[None]
    going = jnp.asarray(discount, values.dtype) * taus.discounts
    residuals = (taus.rewards + going * then) - values
    sums = jax.vmap(backward_sums)(residuals, going * jnp.asarray(lambda_, values.dtype))
    powers = jnp.asarray(discount, values.dtype) ** jnp.arange(values.shape[1], dtype=values.dtype)
    return (powers[None] * sums).astype(jnp.float64)


def test_large_values_cost_no_digits():
    """V = 1e4, rewards of 0.01, 200 steps: float32 against float64 of the same numbers, relative to the largest weight."""
    value = ld.baselines.Value(lambda observation: observation)
    estimators = {
        "gae(0.95)": (GAE(float(np.float32(0.95)), value), 0.95, 1e-6),
        "gae(1)": (GAE(1.0, value), 1.0, 5e-6),
        "V-trace": (ld.advantages.VTrace(value), 1.0, 5e-6),
    }
    twins = []
    for spread in (0.01, 1.0):
        values = (1e4 + spread * jax.random.normal(jax.random.key(0), (201,))).astype(jnp.float32)
        for ended in (False, True):
            ones = jnp.ones((1, 200), jnp.float32)
            taus = trajectory(
                rewards=0.01 * ones,
                observations=values[None, :200],
                discounts=ones.at[0, -1].set(1 - ended),
                final_observation=values[200:],
            )
            for discount in (1.0, float(np.float32(0.999)), float(np.float32(0.99))):
                for name, (advantage, lambda_, bound) in estimators.items():
                    estimator = ld.ScoreFunction(advantage, discount=typing.cast("Any", discount))
                    exact = _weights(estimator, cast(taus, jnp.float64))
                    error = lambda w, exact=exact: np.max(np.abs(w - exact)) / np.max(np.abs(exact))  # noqa: E731
                    found = error(_weights(estimator, taus))
                    assert found <= bound, f"{name}, spread {spread}, ended {ended}, discount {discount}: {found}"
                    if discount == 1 and not ended:
                        twin = _added_then_subtracted(taus, discount, np.float32(lambda_))
                        twins.append(error(twin) / bound)
    assert min(twins) > 3, twins
