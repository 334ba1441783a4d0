"""`GRPO`, `DrGRPO` and `RLOO` on trajectories are the objectives on arrays, and count the policy's own steps alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld
from logderiv.likelihood.steps import own_steps
from logderiv.objectives import Centered, Clip, Ratio, Recipe

from .answers import graded
from .worlds import cast, rollout

SIZE = 3
GROUP = Centered("group", "group", 1, 1e-4)
PAIRS = {
    "GRPO": (ld.GRPO(SIZE), Recipe(GROUP, Ratio(bound=Clip()), "own length")),
    "GRPO, tight": (ld.GRPO(SIZE, clip=0.05), Recipe(GROUP, Ratio(bound=Clip(0.05, 0.05)), "own length")),
    "DAPO": (ld.GRPO(SIZE, normalizer="per_step_of_batch"), Recipe(GROUP, Ratio(bound=Clip()), "batch")),
    "Dr. GRPO": (ld.estimators.DrGRPO(SIZE), Recipe(Centered("group"), Ratio(bound=Clip()))),
    "RLOO": (ld.RLOO(SIZE), Recipe(Centered("others"))),
}
MODEL = ld.processes.TokenModel(
    ld.MLP(3, hidden=()), graded, vocabulary=3, end=0, horizon=6, prompts=((1, 2, 2), (2, -1, -1))
)


@functools.cache
def drawn():
    """Six answers to each of two prompts of unequal length, in groups of three; and parameters that moved since."""
    flat, unravel = ravel_pytree(MODEL.policy.init(jax.random.key(0)))
    old, new = (unravel(flat + jax.random.normal(jax.random.key(seed), flat.shape)) for seed in (1, 1))
    new = jax.tree.map(lambda x: x + 0.15 * jax.random.normal(jax.random.key(7), x.shape), new)
    keys = jax.random.split(jax.random.key(2), (2, 6))
    groups = [rollout(old, keys[i], MODEL.policy, MODEL, environment_params=i) for i in range(2)]
    taus = jax.tree.map(lambda *x: np.concatenate(x), *groups)
    return taus, old, new


@functools.cache
def gradients():
    """Name to the estimator's gradient, the arrays', and the arrays' with prompts that pass for answers."""
    taus, old, new = drawn()
    ids, rewards = np.repeat(np.arange(4), SIZE), jnp.asarray(taus.rewards.sum(axis=1))
    own = taus.valid & (taus.observations.forced < 0)

    @jax.jit
    def run(params):
        def on_arrays(recipe, mask):
            found = recipe.advantages(rewards, ids, num_groups=4)
            weights = recipe.token_weights(mask, ids)
            past = None if recipe.ratio.bound is None else ld.log_factors(old, MODEL.policy, taus)

            def objective(params):
                return recipe.objective(ld.log_factors(params, MODEL.policy, taus), found, weights, old=past)

            return jax.grad(objective)(params)

        def on_trajectories(estimator):
            weights, _ = estimator.advantages(params, (), MODEL.policy, taus)
            return jax.grad(estimator.objective)(params, MODEL.policy, taus, weights)

        found = {n: (on_trajectories(e), on_arrays(r, own), on_arrays(r, taus.valid)) for n, (e, r) in PAIRS.items()}
        return {name: [ravel_pytree(x)[0] for x in rows] for name, rows in found.items()}

    return jax.tree.map(np.asarray, run(new))


@pytest.mark.parametrize("name", PAIRS)
def test_estimators_are_the_objectives_on_arrays(name):
    found, expected, prompts_counted = gradients()[name]
    largest = np.max(np.abs(expected))
    assert largest > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * largest)
    by_length = PAIRS[name][1].per in ("own length", "batch")
    assert (np.max(np.abs(prompts_counted - expected)) > 1e-2 * largest) == by_length


def test_own_steps_are_those_that_nothing_prescribes():
    taus, old, _ = drawn()
    found = own_steps(old, MODEL.policy, taus)
    np.testing.assert_array_equal(found, taus.valid & (taus.observations.forced < 0))
    assert found.sum() < taus.valid.sum()

    def free(params, observation):
        del observation
        return ld.Categorical(params)

    np.testing.assert_array_equal(own_steps(jnp.zeros(3), free, taus), taus.valid)


def test_means_over_steps_leave_prescribed_steps_out():
    """Standardized per step, against the same numbers by hand."""
    taus, old, _ = drawn()
    estimator = ld.ScoreFunction(ld.advantages.Standardized(ld.advantages.ToGo(), epsilon=0.0))
    weights, _ = jax.jit(lambda p: estimator.advantages(p, (), MODEL.policy, taus))(old)
    own = taus.valid & (taus.observations.forced < 0)
    credit = np.cumsum(taus.rewards[:, ::-1], axis=1)[:, ::-1]
    expected = (credit - credit[own].mean()) / credit[own].std()
    np.testing.assert_allclose(weights[own], expected[own], rtol=1e-12)
    wrong = (credit - credit[taus.valid].mean()) / credit[taus.valid].std()
    assert np.max(np.abs(wrong - expected)[own]) > 1e-2


@pytest.mark.usefixtures("standard_promotion")
def test_train_takes_the_size_of_the_groups_from_the_estimator():
    _, old, _ = drawn()
    options = {"optimizer": optax.sgd(0.1), "num_updates": 2}

    def train(batch, estimator):
        return ld.train(cast(old, float), jax.random.key(0), MODEL.policy, MODEL, batch, estimator=estimator, **options)

    found = [train(batch, ld.RLOO(3)).metrics.num_episodes for batch in (ld.Groups(2), ld.Groups(2, 3))]
    np.testing.assert_array_equal(found, [[6, 6]] * 2)
    with pytest.raises(
        ValueError, match=r"group_size: expected that of the estimator, 3, received 4; leave it out of Groups"
    ):
        train(ld.Groups(2, 4), ld.RLOO(3))
    with pytest.raises(ValueError, match=r"group_size: expected a whole number, as the estimator has none"):
        train(ld.Groups(2), ld.RLOO())
