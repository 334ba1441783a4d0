"""Exact moments of groups by sums, held against every group of answers, one by one."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld
from logderiv.objectives import PRESETS, Centered, Clip, MaxAtK, Ratio, Recipe

from .answers import World, graded
from .mostly import mostly_slow

EXACT = 1e-12
GREEDY = 0.25


def off(found, expected):
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


@functools.cache
def world(prompts=()):
    """Two tokens, answers of at most three: four answers, or four and two to prompts of unequal length."""
    horizon = 4 if prompts else 3
    model = ld.processes.TokenModel(ld.MLP(2, hidden=()), graded, vocabulary=2, end=0, horizon=horizon, prompts=prompts)
    flat, unravel = ravel_pytree(model.policy.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(5), 4)
    every = [unravel(flat + 0.7 * jax.random.normal(key, flat.shape)) for key in keys]
    return model, dict(zip(("params", "old", "sampler", "reference"), every, strict=True))


PROMPTS = ((1, -1), (0, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Listed:
    """Every batch of groups, with its probability and its gradient."""

    chances: np.ndarray
    gradients: np.ndarray
    raw: np.ndarray

    def moments(self, chances=None):
        chances = self.chances if chances is None else chances
        mean = chances @ self.gradients
        return mean, (chances[:, None] * self.gradients).T @ self.gradients - np.outer(mean, mean)


def listed(recipe, size, prompts=(), num_groups=1, off_policy=False, fixed=False, groups_of=None):
    """`groups_of` of the raw rewards `(P, G)`: the group of each answer."""
    model, named = world(prompts)
    old, sampler = (named["old"], named["sampler"]) if off_policy else (named["params"],) * 2
    every = ld.exact.enumerate_trajectories(model, horizon=model.horizon)
    chances = np.asarray(ld.prob(sampler, model.policy, every, environment=model))
    every, chances = jax.tree.map(lambda x: np.asarray(x)[chances > 0], every), chances[chances > 0]
    _, start = np.unique(every.observations.forced[:, 0], return_inverse=True)
    of_start = np.bincount(start, chances)
    mask, raw = jnp.asarray(every.valid & (every.observations.forced < 0)), np.sum(every.rewards, axis=1)
    known = {"old": old, "sampler": sampler, "reference": named["reference"]}
    logs = {name: ld.log_factors(p, model.policy, every) for name, p in known.items()}
    here = World(model, named["params"], named["reference"], every, np.asarray(mask), raw)
    tables, back = jax.vjp(here.tables, named["params"])

    groups = [
        (x, rows) for x in range(len(of_start)) for rows in itertools.product(np.flatnonzero(start == x), repeat=size)
    ]
    batches = [b for b in itertools.product(groups, repeat=num_groups) if not fixed or [x for x, _ in b] == [0, 1]]
    rows = np.array([[row for _, group in batch for row in group] for batch in batches])
    weights = [np.prod([1.0 if fixed else of_start[x] for x, _ in batch]) for batch in batches]
    weights *= np.prod((chances / of_start[start])[rows], axis=1)
    one_each = jnp.repeat(jnp.arange(num_groups, dtype=jnp.int32), size)

    def objective(tables, rows):
        of_rows = {name: x[rows] for name, x in {**tables, **logs}.items()}
        own, rewards = of_rows.pop("log_probs"), jnp.asarray(raw)[rows]
        groups = one_each if groups_of is None else groups_of(rewards.reshape(num_groups, size)).astype(jnp.int32)
        of_penalty = {"log_probs": of_rows["sampler"], "reference": of_rows["reference"], "mask": mask[rows]}
        found = recipe.advantages(
            rewards, groups, num_groups=num_groups, greedy=jnp.full(len(rows), GREEDY), **of_penalty
        )
        return recipe.objective(own, found, recipe.token_weights(mask[rows], groups), **of_rows)

    def gradient(rows):
        return ravel_pytree(back(jax.grad(objective)(tables, rows))[0])[0]

    found = jax.jit(lambda rows: jax.lax.map(gradient, rows, batch_size=512))(rows)
    return Listed(weights, np.asarray(found), raw[rows].reshape(-1, num_groups, size))


def by_sums(recipe, size, prompts=(), off_policy=False, **options):
    model, named = world(prompts)
    known = {name: named[name] for name in ("old", "sampler") if off_policy}
    known["reference"] = named["reference"]
    return ld.exact.group_moments(
        named["params"], model.policy, model, recipe, horizon=model.horizon, size=size, **known, **options
    )


def differences(found, expected):
    mean, covariance = expected
    return off(ravel_pytree(found.mean)[0], mean), off(found.covariance, covariance)


SHIPPED = {name: r for name, r in PRESETS.items() if name not in ("verl_passk", "verl_remax")}
SHIPPED["verl_passk of 2"] = dataclasses.replace(PRESETS["verl_passk"], advantage=MaxAtK(2, "k - 1 others"))
MADE = {
    "Lite PPO": Recipe(Centered("group", "batch", 1, 1e-4), Ratio(bound=Clip()), "batch"),
    "others by length, per group": Recipe(Centered("others by length"), per="group"),
    "REINFORCE": Recipe(Centered(None)),
}
KEPT = {
    ("trl_grpo_k3", 3, 1, True),
    ("trl_dapo", 2, 2, True),
    ("trl_rloo", 3, 1, False),
    ("openrlhf_reinforce_plus_plus_baseline", 2, 2, False),
    ("verl_passk of 2", 3, 1, False),
    ("Lite PPO", 2, 2, True),
}
CASES = [
    (name, size, num_groups, off_policy)
    for name in {**SHIPPED, **MADE}
    for size, num_groups in ((2, 1), (3, 1), (2, 2))
    for off_policy in (False, True)
]


@pytest.mark.parametrize(("name", "size", "num_groups", "off_policy"), mostly_slow(CASES, KEPT))
def test_moments_are_those_of_every_group(name, size, num_groups, off_policy):
    recipe, prompts = {**SHIPPED, **MADE}[name], PROMPTS if num_groups > 1 else ()
    expected = listed(recipe, size, prompts, num_groups, off_policy).moments()
    found = by_sums(recipe, size, prompts, off_policy, num_groups=num_groups)
    assert max(differences(found, expected)) < EXACT
    assert abs(found.trace - np.trace(expected[1])) < EXACT * np.trace(expected[1])
