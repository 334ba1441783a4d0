"""Settings are leaves: a sweep over five of them is one program, and each of its runs is the run alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from tests.worlds import compilations, terminating

pytestmark = pytest.mark.usefixtures("standard_promotion")
MDP = terminating()
NETWORK = ld.MLPActorCritic(2, hidden=(4,))
PARAMS = NETWORK.init(jax.random.key(0), jnp.zeros(3))


class InVectors:
    """The world with its states as unit vectors."""

    def reset(self, key, params=None):
        state, _ = MDP.reset(key)
        return jax.nn.one_hot(state, 3, dtype=float), state

    def step(self, key, state, action, params=None):
        new = MDP.step(key, state, action)
        return new._replace(observation=jax.nn.one_hot(new.state, 3, dtype=float))


WORLD = InVectors()


def run(discount: Any, lambda_: Any, clip: Any, entropy_weight: Any, rate: Any):
    settings = {"lambda_": lambda_, "clip": clip, "entropy_weight": entropy_weight}
    estimator = ld.PPOActorCritic(NETWORK.value, discount, **settings)
    options: Any = {"optimizer": optax.adam(rate), "num_updates": 2, "epochs": 3, "minibatches": 2}
    batch = ld.Steps(4, 6, horizon=5)
    return ld.train(PARAMS, jax.random.key(1), NETWORK, WORLD, batch, estimator=estimator, **options)


@pytest.mark.slow
def test_a_sweep_over_five_settings_is_one_program_and_equals_its_runs_one_by_one():
    """Two of each of 2 x 2 x 2 x 2 x 2; the same numbers as 32 runs in float64."""
    ranges = (0.9, 0.99), (0.8, 1.0), (0.02, 0.3), (0.0, 0.05), (0.01, 0.1)
    settings = [x.ravel() for x in jnp.meshgrid(*map(jnp.array, ranges), indexing="ij")]
    others, sweep = [0.9 * x for x in settings], jax.jit(jax.vmap(run))
    with compilations() as compiled:
        found = jax.block_until_ready(sweep(*settings))
        assert len(compiled) == 1
        jax.block_until_ready(sweep(*others))
        assert len(compiled) == 1
    alone = jax.jit(run)
    ends = flat(found, 32)
    for row, end in zip(zip(*settings, strict=True), ends, strict=True):
        np.testing.assert_allclose(end, flat(alone(*row))[0], rtol=1e-11, atol=1e-11)
    numbers = run(*(float(x[-1]) for x in settings))
    np.testing.assert_allclose(ends[-1], flat(numbers)[0], rtol=1e-11, atol=1e-11)
    eager = jax.vmap(run)(*(x[-2:] for x in settings))
    np.testing.assert_allclose(ends[-2:], flat(eager, 2), rtol=1e-11, atol=1e-11)
    assert len(np.unique(ends, axis=0)) == 32


def flat(training: ld.training.Training, runs: int = 1) -> np.ndarray:
    """Parameters and metrics, a row for each run; NaN, where no episode ended, as 0."""
    numbers = [np.reshape(x, (runs, -1)) for x in jax.tree.leaves((training.params, training.metrics))]
    return np.nan_to_num(np.concatenate(numbers, axis=1))
