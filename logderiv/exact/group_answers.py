"""Every answer that may be drawn: its chance, rewards, length, and the gradients that its advantage multiplies."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from logderiv._core.pytrees import jit
from logderiv.distributions.interop import Forced, log_prob
from logderiv.estimators.objectives.advantages import Centered
from logderiv.estimators.objectives.presets import Recipe
from logderiv.exact.enumeration import Listing, returns
from logderiv.exact.estimators import drawn
from logderiv.exact.group_sums import Classes
from logderiv.likelihood.probability import log_factors
from logderiv.likelihood.steps import over_steps, own_steps
from logderiv.types import Params, TimeStep, Trajectory

_SAME = 1e-14  # relative; of gradients that are the same but for rounding


class Policies(NamedTuple):
    """What draws the answers, and the policies that an objective is made of.

    Attributes:
        params: Of the policy that is trained.
        policy: That policy.
        sampler: Parameters of what draws.
        sampler_policy: What draws.
        old: Parameters at the start of the update.
        reference: Those of a divergence's reference, or `None`.
        num_actions: How many tokens there are.
    """

    params: Params
    policy: Any
    sampler: Params
    sampler_policy: Any
    old: Params
    reference: Params | None
    num_actions: int


class Answers(NamedTuple):
    """Every answer that may be drawn; float64, K rows.

    Attributes:
        each: A class of its own for each answer.
        gradients: What its advantage's parts multiply. Shape `(K, S, D)`.
        parts: Which parts these are: "both" signs alike, or "positive" and "negative"; and "none", of what has no advantage.
        of_prompts: The probability of each prompt.
    """

    each: Classes
    gradients: np.ndarray
    parts: tuple[str, ...]
    of_prompts: np.ndarray


def list_answers(recipe: Recipe, policies: Policies, listing: Listing) -> Answers:
    """Every answer, from every trajectory; those that are never drawn are left out."""
    every, joint = drawn(policies.sampler, policies.sampler_policy, listing)
    possible = joint > 0
    every: Trajectory = jax.tree.map(lambda x: x[possible], every)
    joint, sampled = joint[possible], every.behavior_log_probs
    _, prompts = np.unique(np.asarray(listing.starts)[possible], return_inverse=True)
    of_prompts = np.bincount(prompts, joint)
    mask, logs = _logs(policies, every)
    logs["sampler"] = sampled
    earned = returns(every)
    penalized = recipe.penalized(earned, logs["sampler"], logs.get("reference"), mask)
    raw, rewards, lengths = (np.asarray(x, np.float64) for x in (earned, penalized, np.sum(mask, axis=1)))
    gradients, parts = _gradients(recipe, policies, every, mask, logs)
    greedy = np.zeros(len(raw))
    if isinstance(recipe.advantage, Centered) and recipe.advantage.baseline == "greedy":
        greedy = _greedy(np.asarray(every.actions), np.asarray(sampled), prompts, joint, raw)
    each = Classes(prompts, joint / of_prompts[prompts], raw, rewards, lengths, greedy)
    return Answers(each, gradients, parts, of_prompts)


@jit
def _logs(policies: Policies, every: Trajectory) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Which tokens the policy chose, and their log-probabilities, held."""
    params = {"old": policies.old} | ({} if policies.reference is None else {"reference": policies.reference})
    logs = {name: log_factors(p, policies.policy, every) for name, p in params.items()}
    return own_steps(policies.params, policies.policy, every), logs


def _gradients(
    recipe: Recipe, policies: Policies, every: Trajectory, mask: jax.Array, logs: dict[str, jax.Array]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """∇ of the objective of one answer of weight 1, by what it is multiplied by. Signs that do the same are one part."""
    found = np.asarray(_of_advantages(recipe, policies, every, mask, logs), np.float64)
    none = found[:, 0]
    up, down = found[:, 1] - none, found[:, 2] - none
    largest = np.max(np.abs(up), initial=0.0)
    parts = {"positive": up, "negative": down}
    if np.max(np.abs(up + down), initial=0.0) <= _SAME * largest:
        parts = {"both": up}
    if np.any(none != 0):
        parts["none"] = none
    return np.stack(list(parts.values()), axis=1), tuple(parts)


@jit
def _of_advantages(
    recipe: Recipe, policies: Policies, every: Trajectory, mask: jax.Array, logs: dict[str, jax.Array]
) -> jax.Array:
    """∇ of the objective of each answer alone, of advantages 0, 1 and -1. Shape `(K, 3, D)`."""

    def objective(params: Params, advantage: jax.Array, tau: Trajectory, mask: jax.Array, logs: Any) -> jax.Array:
        own = log_factors(params, policies.policy, tau)
        steps = {}
        if recipe.kl is not None or recipe.entropy is not None:
            steps = {name: x[None] for name, x in _of_steps(params, policies, tau).items()}
        rows = {name: x[None] for name, x in logs.items()}
        return recipe.objective(own[None], advantage[None], mask[None].astype(own.dtype), **rows, **steps)

    def gradient(advantage: jax.Array, *answer: Any) -> jax.Array:
        return ravel_pytree(jax.grad(objective)(policies.params, advantage, *answer))[0]

    advantages = jnp.array([0.0, 1.0, -1.0], logs["old"].dtype)
    of_one = jax.vmap(gradient, (0, *(None,) * 3))
    return jax.vmap(of_one, (None, 0, 0, 0))(advantages, every, mask, logs)


def _of_steps(params: Params, policies: Policies, tau: Trajectory) -> dict[str, jax.Array]:
    """Entropy of each step, and its divergence from the reference, over the full vocabulary."""

    def logs(params: Params, action: jax.Array) -> jax.Array:
        def term(params: Params, step: TimeStep, distribution: Any) -> jax.Array:
            del params
            chosen = distribution.distribution if isinstance(distribution, Forced) else distribution
            return log_prob(chosen, jnp.full_like(step.action, action))

        return over_steps(term, params, policies.policy, tau)

    of_every = jax.vmap(logs, (None, 0))  # the policy itself is taken once
    every = jnp.arange(policies.num_actions)
    own = of_every(params, every)
    chances, own = jnp.exp(own), jnp.where(own == -jnp.inf, 0, own)
    found = {"step_entropy": -jnp.sum(chances * own, axis=0)}
    if policies.reference is not None:
        reference = of_every(policies.reference, every)
        apart = jnp.where(chances > 0, own - jax.lax.stop_gradient(reference), 0)
        found["step_kl"] = jnp.sum(chances * apart, axis=0)
    return found


def _greedy(
    actions: np.ndarray, logs: np.ndarray, prompts: np.ndarray, chances: np.ndarray, rewards: np.ndarray
) -> np.ndarray:
    """The reward of the answer whose every token is the most probable one of what draws; its mean where the environment draws, too."""
    found = np.zeros(len(rewards))
    for prompt in np.unique(prompts):
        left = np.flatnonzero(prompts == prompt)
        for t in range(logs.shape[1]):
            best = left[np.argmax(logs[left, t])]
            left = left[actions[left, t] == actions[best, t]]
        found[prompts == prompt] = np.average(rewards[left], weights=chances[left])
    return found
