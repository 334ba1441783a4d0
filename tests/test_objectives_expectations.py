"""What objectives of sequence models estimate: the expectation over every group of answers, on policy, in float64."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logderiv import objectives
from logderiv.objectives import KL, PRESETS, Centered, Entropy, MaxAtK, Ratio, Recipe

from .answers import graded, over_groups, right_or_wrong, world
from .mostly import mostly_slow

EXACT = 1e-12
WORLDS = {"bigram": ("bigram", graded), "prompted": ("prompted", graded), "gru": ("gru", right_or_wrong)}
EVERY = tuple(itertools.product(WORLDS, (2, 3)))
KINDS = {
    "raw": Centered(None),
    "leave one out": Centered("others"),
    "greedy": Centered("greedy"),
    "others by length": Centered("others by length"),
    "group mean": Centered("group"),
    "OPO": Centered("group by length"),
    "GRPO": Centered("group", "group", 1, 1e-4),
    "Lite PPO": Centered("group", "batch", 1, 1e-4),
    "REINFORCE++": Centered(None, "tokens", 1, 1e-8),
    "REINFORCE++-baseline": Centered("group", "tokens", 1, 1e-8),
    "max@1": MaxAtK(1),
    "max@2": MaxAtK(2),
    "max@2, k - 1 others": MaxAtK(2, "k - 1 others"),
    "max@1, k others": MaxAtK(1, "k others"),
}
GEOMETRIC = Ratio(level="geometric", bound=objectives.Clip())
MADE = {
    **{f"advantage: {name}": Recipe(kind) for name, kind in KINDS.items()},
    **{f"per {per}": Recipe(per=per, length=4.0) for per in ("constant", "sum", "own length", "group", "batch")},
    "sequence ratio per own length": Recipe(ratio=Ratio(level="sequence"), per="own length"),
    "sequence ratio per answer": Recipe(ratio=Ratio(level="sequence")),
    "cumulative ratio": Recipe(ratio=Ratio(level="cumulative")),
    "cumulative ratio, held": Recipe(ratio=Ratio(level="cumulative", detached=True)),
    "geometric ratio per answer": Recipe(ratio=GEOMETRIC),
    "geometric ratio, held": Recipe(ratio=dataclasses.replace(GEOMETRIC, detached=True)),
    "geometric ratio per own length": Recipe(ratio=GEOMETRIC, per="own length"),
    "group mean and Rao-Blackwell": Recipe(Centered("group"), kl=KL(0.3)),
    "group mean and a penalty": Recipe(Centered("group"), penalty=KL(0.3, "k1", "reward")),
    "entropy": Recipe(entropy=Entropy(0.3)),
    "entropy of steps": Recipe(entropy=Entropy(0.3, "step")),
    "KL and entropy": Recipe(kl=KL(0.2), entropy=Entropy(0.3), per="constant", length=4.0),
}
REGULARIZERS = {
    f"{kind} in {place} by {level}, ratio {ratio}": KL(0.5, kind, place, level, ratio=ratio)
    for kind in ("k1", "k2", "k3")
    for place in ("loss", "reward")
    for level in ("token", "sequence")
    for ratio in (None, "old")
}
MADE |= {f"regularizer {name}": Recipe(kl=kl) for name, kl in REGULARIZERS.items()}
OVER_LENGTH = [name for name, kl in REGULARIZERS.items() if kl.ratio is None and kl.place == "loss"]
MADE |= {f"regularizer {name}, own length": Recipe(kl=REGULARIZERS[name], per="own length") for name in OVER_LENGTH}
MADE["regularizer steps alone"] = Recipe(kl=KL(0.5, "step"))
SHIPPED = {name: r for name, r in PRESETS.items() if name != "verl_passk"}
SHIPPED["verl_passk of 2"] = dataclasses.replace(PRESETS["verl_passk"], advantage=MaxAtK(2, "k - 1 others"))


def both_stages(recipe, tables, rewards, mask, greedy=0.375):
    """The objective of one group of answers, drawn by the policy itself."""
    logs, groups = tables["log_probs"], jnp.zeros(len(rewards), jnp.int32)
    own = jax.lax.stop_gradient(logs)
    found = recipe.advantages(
        rewards,
        groups,
        num_groups=1,
        mask=mask,
        greedy=jnp.full(len(rewards), greedy),
        log_probs=own,
        reference=tables["reference"],
    )
    return recipe.objective(
        logs,
        found,
        recipe.token_weights(mask, groups),
        sampler=own,
        **{k: v for k, v in tables.items() if k != "log_probs"},
    )


@functools.cache
def named(name):
    """The gradients of the objectives that a declaration may name."""
    where = world(*WORLDS[name])
    rewards, lengths = jnp.asarray(where.rewards), where.mask.sum(axis=1)
    reference = where.chances(where.reference)
    pairs = jnp.maximum(rewards[:, None], rewards[None])
    return {
        "return": where.gradient(lambda p: p @ rewards),
        "reverse KL": where.gradient(lambda p: p @ (jnp.log(p) - jnp.log(reference))),
        "forward KL": where.gradient(lambda p: reference @ (jnp.log(reference) - jnp.log(p))),
        "sequence entropy": where.gradient(lambda p: -p @ jnp.log(p)),
        "mean inverse length": where.gradient(lambda p: p @ (1.0 / jnp.asarray(lengths, float))),
        "max@k": where.gradient(lambda p: p @ pairs @ p),
    }


@functools.cache
def compiled(size):
    """Of three answers the advantages alone: nothing else depends on their number."""
    recipes = {**MADE, **SHIPPED} if size == 2 else {n: r for n, r in MADE.items() if n.startswith("advantage")}
    return over_groups(size, **{name: functools.partial(both_stages, recipe) for name, recipe in recipes.items()})


@functools.cache
def expectations(name, size):
    return world(*WORLDS[name]).expected(compiled(size))


def sum_of(declared, size, gradients):
    return sum(factor(size) * gradients[objective] for objective, factor in declared.objectives.items())


def residual(found, gradients):
    """What no multiple of the gradient of the return explains, relative to the largest."""
    exact = gradients["return"]
    return np.max(np.abs(found - exact * (found @ exact) / (exact @ exact))) / np.max(np.abs(found))


@pytest.mark.parametrize(("name", "size"), mostly_slow(EVERY, {("prompted", 2), ("gru", 3)}))
def test_every_declared_factor_is_the_computed_one_and_what_is_declared_biased_is(name, size):
    gradients, where = named(name), world(*WORLDS[name])
    of_one = {**gradients, "max@k": gradients["return"]}
    for recipe, found in expectations(name, size).items():
        made = {**MADE, **SHIPPED}[recipe]
        declared = made.declaration
        if declared.objectives or declared.order >= 1:
            alone = isinstance(made.advantage, MaxAtK) and made.advantage.k == 1
            expected = sum_of(declared, size, of_one if alone else gradients)
            largest = max(1, np.max(np.abs(found)))
            np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * largest, err_msg=recipe)
        else:
            assert declared.reasons, recipe
            assert residual(found, gradients) > 1e-5 or where.rewards.max() == 1, recipe


def test_wrong_twins_are_rejected():
    """Each is one step beside a right one."""
    gradients, found = named("bigram"), expectations("bigram", 2)
    exact, kl = gradients["return"], gradients["reverse KL"]

    def off(name, expected):
        return np.max(np.abs(found[name] - expected)) / np.max(np.abs(expected))

    assert off("advantage: group mean", exact) > 0.4  # 1 - 1/G
    assert off("advantage: OPO", exact) > 1e-2
    assert off("sequence ratio per answer", exact) > 1e-2
    assert off("entropy of steps", exact + 0.3 * gradients["sequence entropy"]) > 1e-2
    assert off("regularizer k2 in loss by token, ratio None", exact - 0.5 * kl) > 1e-3
    assert off("regularizer steps alone", exact - 0.5 * kl) > 1e-3
    assert off("regularizer k3 in loss by sequence, ratio None", exact - 0.5 * kl) > 1e-2
    assert off("regularizer k1 in loss by token, ratio None", exact - 0.5 * kl) > 1e-2
    assert off("regularizer k3 in loss by token, ratio old", exact - 0.5 * kl) > 1e-3  # r k3, called unbiased


def test_k1_in_the_loss_over_own_length_does_not_see_the_reference():
    """tunix's and MaxText's default: a bonus for long answers."""
    found, gradients = expectations("bigram", 2), named("bigram")
    plain = found["per own length"]
    with_kl = found["regularizer k1 in loss by token, ratio None, own length"]
    np.testing.assert_allclose(with_kl - plain, -0.5 * gradients["mean inverse length"], rtol=0, atol=EXACT)
    declared = REGULARIZERS["k1 in loss by token, ratio None"].declared("own length")
    assert {name: factor(2) for name, factor in declared.objectives.items()} == {"mean inverse length": -0.5}


def test_the_kl_of_a_group_mean_is_as_large_as_declared():
    declared = MADE["group mean and Rao-Blackwell"].declaration
    assert {n: f(4) for n, f in declared.objectives.items()} == {"return": 0.75, "reverse KL": -0.3}
    declared = MADE["group mean and a penalty"].declaration
    assert {n: round(f(4), 12) for n, f in declared.objectives.items()} == {"return": 0.75, "reverse KL": -0.225}
    assert not declared.unbiased


def test_masked_answers_give_the_return_given_scored():
    """Answers of full length are not scored: leave one out inside the mask is p² at G = 2 times ∇E[R | scored]."""
    where = world("bigram", graded)
    scored = np.asarray(where.mask.sum(axis=1) < 3)
    rewards = np.where(scored, where.rewards, np.nan)

    def objective(tables, rewards, mask, inside=True):
        scored = ~jnp.isnan(rewards)
        groups = jnp.zeros(2, jnp.int32)
        clean = rewards if inside else jnp.where(scored, rewards, 0)
        found = objectives.advantages(clean, groups, num_groups=1, scored=scored if inside else None)
        return objectives.objective(
            tables["log_probs"], jnp.where(scored, found, 0), objectives.token_weights(mask, groups)
        )

    masked = dataclasses.replace(where, rewards=rewards)
    found = masked.expected(over_groups(2, right=objective, wrong=functools.partial(objective, inside=False)))
    chance = where.probabilities @ np.asarray(scored, float)
    values = jnp.asarray(np.where(scored, where.rewards, 0))
    exact = where.gradient(lambda p: (p @ values) / (p @ jnp.asarray(scored, float)))
    np.testing.assert_allclose(found["right"], chance**2 * exact, rtol=0, atol=EXACT)
    assert np.max(np.abs(found["wrong"] - chance**2 * exact)) > 1e-3


def test_off_policy_the_ratio_of_whole_answers_is_exact_and_that_of_tokens_is_not():
    """Drawn by the reference; the divergence is from a distribution that gives every token 1/e."""
    where = world("bigram", graded)
    drawn = dataclasses.replace(where)
    drawn.__dict__["probabilities"] = np.asarray(where.chances(where.reference))

    def objective(tables, rewards, mask, per, ratio, kl=None):
        old, groups = tables["reference"], jnp.zeros(len(rewards), jnp.int32)
        found = objectives.advantages(rewards if kl is None else 0 * rewards, groups, num_groups=1)
        weights, far = objectives.token_weights(mask, groups, per=per), jnp.full(old.shape, -1.0)
        return objectives.objective(tables["log_probs"], found, weights, old=old, reference=far, ratio=ratio, kl=kl)

    def kl(level):
        return KL(0.5, "k1", "reward", level, ratio="old")

    sequence, token = Ratio(level="sequence"), Ratio()
    functions = {
        "return": functools.partial(objective, per="own length", ratio=sequence),
        "return by token": functools.partial(objective, per="answer", ratio=token),
        "KL": functools.partial(objective, per="answer", ratio=token, kl=kl("sequence")),
        "KL by token": functools.partial(objective, per="answer", ratio=token, kl=kl("token")),
    }
    found, exact = drawn.expected(over_groups(2, **functions)), named("bigram")["return"]
    lengths = jnp.asarray(where.mask.sum(axis=1), float)
    divergence = -0.5 * where.gradient(lambda p: p @ (jnp.log(p) + lengths))
    np.testing.assert_allclose([found["return"], found["KL"]], [exact, divergence], rtol=0, atol=EXACT)
    assert np.max(np.abs(found["return by token"] - exact)) > 1e-2
    assert np.max(np.abs(found["KL by token"] - divergence)) > 1e-2
