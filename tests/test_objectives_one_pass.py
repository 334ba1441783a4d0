"""The second stage from hidden states: each answer is a term of `token_sum`, which takes value and gradient in one pass over the logits."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.objectives import KL, Entropy, Mask, Ratio, preset

VOCABULARY, GROUPS, REWARDS = 7, np.array([0, 0, 1, 1, 1]), np.array([1.0, 0.25, -0.5, 2.0, 0.25])
MASK = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]], bool)
LOGS = dict(
    zip(("old", "sampler", "reference"), -np.random.default_rng(0).uniform(0.1, 2, (3, *MASK.shape)), strict=True)
)
RECIPES = {
    "ratio of the sequence": preset("trl_gspo"),
    "all parts": dataclasses.replace(
        preset("trl_gspo"),
        correction=Ratio("old", "sampler", "sequence", Mask(high=3.0), detached=True),
        kl=KL(0.3),
        entropy=Entropy(0.2),
    ),
}


def states(key):
    """An unembedding, and hidden states of every token."""
    keys = jax.random.split(key)
    return jax.random.normal(keys[0], (VOCABULARY, 3)), jax.random.normal(keys[1], (*MASK.shape, 3))


def term(recipe, token, advantages, weights, logs):
    """The objective of a batch of one answer, in its own numbers; or of one token of it."""
    steps = {"step_kl": token.kl, "step_entropy": token.entropy}
    given = (token.log_prob, advantages, weights), logs | steps
    (log_probs, advantages, weights), given = jax.tree.map(jnp.atleast_2d, given)
    return recipe.objective(log_probs, advantages, weights, **given)


@pytest.mark.parametrize("name", RECIPES)
def test_an_answer_is_a_term_and_a_token_is_none(name):
    recipe, keys = RECIPES[name], jax.random.split(jax.random.key(0), 3)
    how = {"reference": states(keys[0]), "entropy": True}
    tokens = jax.random.randint(keys[1], MASK.shape, 0, VOCABULARY)
    advantages = recipe.advantages(REWARDS, GROUPS, num_groups=2)
    weights = recipe.token_weights(MASK, GROUPS, dtype=jnp.float64)
    extras = jnp.broadcast_to(advantages[:, None], MASK.shape), weights, LOGS

    def on_arrays(states):
        unembedding, hidden = states
        numbers = ld.token_log_probs(unembedding, hidden, tokens, **how)
        steps = {"step_kl": numbers.kl, "step_entropy": numbers.entropy}
        return recipe.objective(numbers.log_probs, advantages, weights, **LOGS, **steps)

    def in_one_pass(by, states):
        return ld.token_sum(
            partial(term, recipe), *states, tokens, *extras, by=by, valid=jnp.asarray(MASK), **how
        ).value

    functions = on_arrays, partial(in_one_pass, "sequence"), partial(in_one_pass, "token")
    each = jax.jit(lambda states: [jax.value_and_grad(f)(states) for f in functions])
    expected, ours, wrong = each(states(keys[2]))
    chex.assert_trees_all_close(ours, expected, rtol=0, atol=1e-12)
    assert np.max(np.abs(wrong[1][0] - expected[1][0])) > 1e-3  # it knows no ratio of the sequence
