"""Losses of sequence models as people write them: right ones, and eight faults in three codings each."""

import jax
import jax.numpy as jnp
import numpy as np

from logderiv import objectives

held = jax.lax.stop_gradient
BETA = 0.04
RETURN, WITH_KL = {"return": 1}, {"return": 1, "reverse KL": -BETA}


def centered(rewards):
    """Leave one out, of groups of two that stand side by side."""
    pairs = rewards.reshape(-1, 2)
    return (pairs - pairs[:, ::-1]).ravel()


def per_answer(x, mask):
    """The sum over tokens, the mean over answers."""
    return jnp.mean(jnp.sum(jnp.where(mask, x, 0), axis=1))


def per_own_length(x, mask):
    return jnp.mean(jnp.sum(jnp.where(mask, x, 0), axis=1) / mask.sum(1))


# Right losses, each with what it descends.


def reinforce(log_probs, mask, rewards):
    return -per_answer(rewards[:, None] * log_probs, mask)


def rloo(log_probs, mask, advantages):
    return -per_answer(advantages[:, None] * log_probs, mask)


def rloo_of_numpy(log_probs, mask, advantages):
    weights = mask * -advantages[:, None] / len(mask)
    return (weights * log_probs).sum(), weights


def rloo_by_sequence_ratio(log_probs, old, mask, rewards):
    ratio = jnp.exp(jnp.sum(jnp.where(mask, log_probs - old, 0), axis=1))
    return -jnp.mean(ratio * centered(rewards))


def ppo(log_probs, old, mask, advantages):
    ratio = jnp.exp(jnp.where(mask, log_probs - old, 0))
    gain = jnp.minimum(ratio * advantages[:, None], jnp.clip(ratio, 0.8, 1.2) * advantages[:, None])
    return -per_answer(gain, mask)


def dr_grpo_summed(log_probs, old, mask, rewards, groups, num_groups, num_answers):
    means = jax.ops.segment_sum(rewards, groups, num_groups) / 2
    gain = jnp.exp(log_probs - old) * (rewards - means[groups])[:, None]
    return -jnp.sum(jnp.where(mask, gain, 0)) / num_answers


def cispo(log_probs, old, mask, advantages):
    ratio = held(jnp.minimum(jnp.exp(log_probs - old), 5.0))
    return -per_answer(ratio * advantages[:, None] * log_probs, mask)


def k1_in_reward(log_probs, old, reference, mask, rewards):
    penalty = BETA * jnp.sum(jnp.where(mask, old - reference, 0), axis=1)
    return -per_answer(jnp.exp(log_probs - old) * centered(rewards - penalty)[:, None], mask)


def k2_of_sequences(log_probs, reference, mask, advantages):
    apart = jnp.sum(jnp.where(mask, log_probs - reference, 0), axis=1)
    return rloo(log_probs, mask, advantages) + BETA * jnp.mean(jnp.square(apart) / 2)


def rao_blackwell(log_probs, step_kl, mask, advantages):
    kl = jnp.where(mask, step_kl, 0)
    later = held(jnp.cumsum(kl[:, ::-1], axis=1)[:, ::-1] - kl)
    return rloo(log_probs, mask, advantages) + BETA * per_answer(kl + later * log_probs, mask)


def sampled_entropy(log_probs, mask, advantages):
    total = jnp.sum(jnp.where(mask, log_probs, 0), axis=1)
    return rloo(log_probs, mask, advantages) + 0.1 * jnp.mean(held(total) * total)


def grpo(log_probs, old, mask, rewards):
    """Nothing is wrong but that it is no gradient of the return."""
    pairs = rewards.reshape(-1, 2)
    advantages = (pairs - pairs.mean(1, keepdims=True)) / (pairs.std(1, keepdims=True) + 1e-4)
    return -per_own_length(jnp.exp(log_probs - old) * advantages.reshape(-1, 1), mask)


def dapo(log_probs, old, mask, advantages, num_tokens):
    return -jnp.sum(jnp.where(mask, jnp.exp(log_probs - old) * advantages[:, None], 0)) / num_tokens


SUMMED = {"accumulate": "sum"}
RIGHT = {
    "REINFORCE": (reinforce, RETURN, {}),
    "RLOO": (rloo, RETURN, {}),
    "RLOO of numpy": (rloo_of_numpy, RETURN, {}),
    "RLOO off policy": (rloo_by_sequence_ratio, RETURN, {"off_policy": True}),
    "PPO": (ppo, RETURN, {}),
    "PPO, group mean": (ppo, {"return": 0.5}, {"advantage": objectives.Centered("group")}),
    "Dr. GRPO": (dr_grpo_summed, {"return": 0.5}, SUMMED),
    "CISPO": (cispo, RETURN, {}),
    "k1 in the reward": (k1_in_reward, WITH_KL, {}),
    "k2 of sequences": (k2_of_sequences, WITH_KL, {}),
    "Rao-Blackwell": (rao_blackwell, WITH_KL, {}),
    "entropy": (sampled_entropy, {"return": 1, "sequence entropy": 0.1}, {}),
    "GRPO": (grpo, None, {}),
    "DAPO": (dapo, None, SUMMED),
}


def by_recipe(recipe, /, log_probs, old, sampler, reference, mask, rewards, groups, num_groups):
    penalty = {"log_probs": old, "reference": reference, "mask": mask}
    advantages = recipe.advantages(rewards, groups, num_groups=num_groups, **penalty)
    weights = recipe.token_weights(mask, groups)
    return -recipe.objective(log_probs, advantages, weights, old=old, sampler=sampler, reference=reference)


# Faults.


def k1_per_answer(log_probs, reference, mask, advantages):
    return rloo(log_probs, mask, advantages) + BETA * per_own_length(log_probs - reference, mask)


def k1_of_tunix(log_probs, old, reference, mask, rewards):
    gain = jnp.exp(log_probs - old) * centered(rewards)[:, None] - BETA * (log_probs - reference)
    lengths = jnp.clip(jnp.sum(mask, axis=1), 1)
    return -jnp.mean(jnp.sum(gain * mask, axis=1) / lengths)


def k1_of_numpy(log_probs, reference, mask, advantages):
    lengths = mask.sum(1, keepdims=True)
    weights = mask * (BETA / lengths - advantages[:, None]) / len(mask)
    return (weights * log_probs).sum(), weights


def k3_after_the_ratio(log_probs, old, reference, mask, advantages):
    apart = reference - log_probs
    gain = jnp.exp(log_probs - old) * advantages[:, None] - BETA * (jnp.exp(apart) - apart - 1)
    return -per_answer(gain, mask)


def k3_by_own_length(log_probs, old, reference, mask, rewards):
    apart = jnp.where(mask, log_probs - reference, 0)
    k3 = jnp.expm1(-apart) + apart
    return -per_own_length(jnp.exp(log_probs - old) * centered(rewards)[:, None] - BETA * k3, mask)


def k3_of_numpy(log_probs, reference, mask, advantages):
    slope = BETA * (1 - np.exp(np.where(mask, reference - log_probs, 0)))
    return 0.0, mask * (slope - advantages[:, None]) / len(mask)


def own_tokens(log_probs, old, mask, advantages):
    return -jnp.sum(jnp.where(mask, jnp.exp(log_probs - old) * advantages[:, None], 0)) / jnp.sum(mask)


def longest_here(log_probs, mask, rewards):
    return -per_answer(centered(rewards)[:, None] * log_probs, mask) / jnp.max(jnp.sum(mask, axis=1))


def own_tokens_of_numpy(log_probs, mask, advantages):
    weights = mask * -advantages[:, None] / mask.sum()
    return (weights * log_probs).sum(), weights


def tiled_means(log_probs, mask, rewards):
    means = rewards.reshape(-1, 2).mean(1)
    return -per_answer((rewards - jnp.tile(means, 2))[:, None] * log_probs, mask)


def by_columns(log_probs, mask, rewards):
    means = rewards.reshape(2, -1).mean(0)
    return -per_answer((rewards - jnp.tile(means, 2))[:, None] * log_probs, mask)


def rolled(log_probs, mask, rewards):
    weights = mask * -(rewards - np.roll(rewards, 1))[:, None] / len(mask)
    return 0.0, weights


def no_mask(log_probs, old, advantages):
    return -jnp.mean(jnp.sum(jnp.exp(log_probs - old) * advantages[:, None], axis=1))


def one_too_many(log_probs, mask, advantages):
    later = mask | jnp.roll(mask, 1, axis=1)
    return -per_answer(advantages[:, None] * log_probs, later)


def mean_of_columns(log_probs, mask, advantages):
    weights = mask * -advantages[:, None] / mask.size
    return (weights * log_probs).sum(), weights


def ratio_to_itself(log_probs, mask, advantages):
    return -per_answer(jnp.exp(log_probs - log_probs) * advantages[:, None], mask)


def moving_weight(log_probs, old, mask, advantages):
    ratio = jnp.minimum(jnp.exp(log_probs - old), 5.0)
    return -per_answer(ratio * advantages[:, None] * log_probs, mask)


def moving_correction(log_probs, old, sampler, mask, rewards):
    correction = jnp.minimum(jnp.exp(log_probs - sampler), 2.0)
    return -per_answer(correction * jnp.exp(log_probs - old) * centered(rewards)[:, None], mask)


def std_over_groups(log_probs, old, mask, rewards):
    pairs = rewards.reshape(-1, 2)
    advantages = (pairs - pairs.mean(1, keepdims=True)) / (pairs.std(0, keepdims=True) + 1e-4)
    return -per_answer(jnp.exp(log_probs - old) * advantages.reshape(-1, 1), mask)


def std_of_all(log_probs, mask, rewards, groups, num_groups):
    means = jax.ops.segment_sum(rewards, groups, num_groups) / 2
    return -per_answer(((rewards - means[groups]) / (rewards.std() + 1e-4))[:, None] * log_probs, mask)


def std_of_numpy(log_probs, mask, rewards):
    pairs = rewards.reshape(-1, 2)
    advantages = (pairs - pairs.mean(1, keepdims=True)) / (pairs.std(axis=0) + 1e-4)
    return 0.0, mask * -advantages.reshape(-1, 1) / len(mask)


def up_to_the_end(mask):
    """The prompt, too."""
    return jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1] > 0


def prompt_scored(log_probs, mask, advantages):
    return -per_answer(advantages[:, None] * log_probs, up_to_the_end(mask))


def prompt_in_the_length(log_probs, mask, advantages):
    gain = jnp.sum(jnp.where(mask, advantages[:, None] * log_probs, 0), axis=1)
    return -jnp.mean(gain / jnp.sum(up_to_the_end(mask), axis=1))


def prompt_of_numpy(log_probs, mask, advantages):
    ends = mask.shape[1] - mask[:, ::-1].argmax(1)
    weights = (np.arange(mask.shape[1]) < ends[:, None]) * -advantages[:, None] / len(mask)
    return (weights * log_probs).sum(), weights


FAULTS = {  # claim, and what the report must say
    "k1 in the loss over own length": (
        WITH_KL,
        "k1 in the loss, over the own length",
        (k1_per_answer, k1_of_tunix, k1_of_numpy),
    ),
    "k3 without its ratio": (
        WITH_KL,
        "k3 in the loss without its ratio",
        (k3_after_the_ratio, k3_by_own_length, k3_of_numpy),
    ),
    "normalizer": (
        None,
        "normalizer counts the tokens of the micro-batch alone",
        (own_tokens, longest_here, own_tokens_of_numpy),
    ),
    "groups": (None, "groups are mixed up: another order", (tiled_means, by_columns, rolled)),
    "padding": (None, "padding is (let in|counted)", (no_mask, one_too_many, mean_of_columns)),
    "stop-gradient": (
        RETURN,
        "needs jax.lax.stop_gradient",
        (ratio_to_itself, moving_weight, moving_correction),
    ),
    "std": (
        None,
        "a mean or a deviation (is taken over the wrong axis|runs over both)",
        (std_over_groups, std_of_all, std_of_numpy),
    ),
    "prompt": (None, "the prompt is counted as answer", (prompt_scored, prompt_in_the_length, prompt_of_numpy)),
}
