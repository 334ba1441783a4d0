"""What is public, under a mode of JAX that takes for a mistake what may be meant.

`python -m tests.modes strict` traces it with strict promotion of dtypes and ranks, and with the check that no key is used
twice, in 32 bits, as users have it: nothing is compiled where nothing must be. `python -m tests.modes nans` trains, where any NaN that
a program ends with is an error. Each prints the names of what failed, and why.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import logderiv as ld
from tests import examples, zoo
from tests.worlds import TERMINATING_LOGITS, terminating

KEY, LOGITS, SGD = jax.random.key(0), jnp.array([0.3, -0.2]), optax.sgd(0.1)


def keys(num: int) -> Any:
    return jax.random.split(jax.random.clone(KEY), num)


def key() -> Any:
    return jax.random.clone(KEY)


def of_examples() -> dict[str, Callable[[], Any]]:
    """Each process and environment: drawn, scored, collected."""

    def draw(example: examples.Example) -> Any:
        environment, policy, params = example
        taus = ld.rollout(params, keys(3), policy, environment)
        logs = ld.log_prob(params, policy, taus), ld.prob(params, policy, taus), ld.log_factors(params, policy, taus)
        score = jax.grad(lambda p: jnp.sum(ld.log_prob(p, policy, taus)))(params)
        fisher = ld.likelihood.fisher_matrix(params, policy, taus)
        weights = jnp.ones_like(taus.behavior_log_probs)
        weighted = ld.weighted_log_prob(params, policy, taus, weights)
        ratios = ld.importance.log_ratios(params, policy, taus)
        return logs, score, fisher, weighted, ratios, ld.types.batch_info(taus), ld.types.next_observations(taus)

    found = {name: examples.process(name) for name in examples.PROCESSES}
    found |= {name: examples.environment(name) for name in examples.ENVIRONMENTS if name != "Gymnasium"}
    return {name: lambda example=example: draw(example) for name, example in found.items()}


def of_estimators() -> dict[str, Callable[[], Any]]:
    """Each estimator: an estimate, and the moments of a batch."""
    world, params = terminating(), TERMINATING_LOGITS

    def estimate(estimator: Any) -> Any:
        taus = ld.rollout(params, keys(4), ld.tabular_softmax, world, horizon=3)
        state = estimator.init(params)
        estimate = estimator.estimate(params, state, ld.tabular_softmax, taus)
        return estimate, ld.diagnostics.per_trajectory_gradients(params, ld.tabular_softmax, taus, estimator)

    return {name: lambda e=estimator: estimate(e) for name, estimator in zoo.zoo().items()}
