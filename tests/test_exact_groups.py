"""Exact moments of groups by sums, held against every group of answers, one by one."""

import dataclasses
import functools
import itertools
import math

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
    """Every batch of groups, with its probability, gradient, rewards `(P, G)` and prompts `(P,)`."""

    chances: np.ndarray
    gradients: np.ndarray
    raw: np.ndarray
    starts: np.ndarray

    def moments(self, chances=None):
        chances = self.chances if chances is None else chances
        mean = chances @ self.gradients
        return mean, (chances[:, None] * self.gradients).T @ self.gradients - np.outer(mean, mean)


def alive(rewards):
    """Which groups have rewards that are not all equal. Shape `(P,)` of `(P, G)`."""
    return rewards.max(axis=-1) > rewards.min(axis=-1)


def listed(
    recipe, size, prompts=(), num_groups=1, off_policy=False, fixed=False, equal_rewards="keep", sampler_policy=None
):
    model, named = world(prompts)
    old, sampler = (named["old"], named["sampler"]) if off_policy else (named["params"],) * 2
    drawn_by = model.policy if sampler_policy is None else sampler_policy
    every = ld.exact.enumerate_trajectories(model, horizon=model.horizon)
    chances = np.asarray(ld.prob(sampler, drawn_by, every, environment=model))
    every, chances = jax.tree.map(lambda x: np.asarray(x)[chances > 0], every), chances[chances > 0]
    _, start = np.unique(every.observations.forced[:, 0], return_inverse=True)
    of_start = np.bincount(start, chances)
    mask, raw = jnp.asarray(every.valid & (every.observations.forced < 0)), np.sum(every.rewards, axis=1)
    logs = {"old": (old, model.policy), "sampler": (sampler, drawn_by), "reference": (named["reference"], model.policy)}
    logs = {name: ld.log_factors(*who, every) for name, who in logs.items()}
    here = World(model, named["params"], named["reference"], every, np.asarray(mask), raw)
    tables, back = jax.vjp(here.tables, named["params"])

    groups = [
        (x, rows) for x in range(len(of_start)) for rows in itertools.product(np.flatnonzero(start == x), repeat=size)
    ]
    batches = itertools.product(groups, repeat=num_groups)
    batches = [b for b in batches if not fixed or [x for x, _ in b] == list(range(num_groups))]
    starts = np.array([[x for x, _ in batch] for batch in batches])
    rows = np.array([[row for _, group in batch for row in group] for batch in batches])
    weights = np.prod((chances / of_start[start])[rows], axis=1) * (1 if fixed else np.prod(of_start[starts], axis=1))

    def objective(tables, rows):
        of_rows = {name: x[rows] for name, x in {**tables, **logs}.items()}
        own, rewards = of_rows.pop("log_probs"), jnp.asarray(raw)[rows]
        groups = jnp.repeat(jnp.arange(num_groups, dtype=jnp.int32), size)
        counted = jnp.repeat(alive(rewards.reshape(num_groups, size)), size)
        if equal_rewards == "drop":
            groups = jnp.where(counted, groups, -1)
        of_penalty = {"log_probs": of_rows["sampler"], "reference": of_rows["reference"], "mask": mask[rows]}
        greedy = jnp.full(len(rows), GREEDY)
        found = recipe.advantages(rewards, groups, num_groups=num_groups, greedy=greedy, **of_penalty)
        token_weights = recipe.token_weights(mask[rows], groups)
        if equal_rewards == "mask":
            token_weights = jnp.where(counted[:, None], token_weights, 0)
        return recipe.objective(own, found, token_weights, **of_rows)

    def gradient(rows):
        return ravel_pytree(back(jax.grad(objective)(tables, rows))[0])[0]

    found = jax.jit(lambda rows: jax.lax.map(gradient, rows, batch_size=512))(rows)
    return Listed(weights, np.asarray(found), raw[rows].reshape(-1, num_groups, size), starts)


def by_sums(recipe, size, given=(), off_policy=False, **options):
    model, named = world(given)
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
    "max@2 less a penalty": Recipe(
        MaxAtK(2, "k - 1 others"), penalty=ld.objectives.KL(0.3, "k1", "reward"), kl=ld.objectives.KL(0.1, "k3")
    ),
}
KEPT = {
    ("trl_dapo", 2, 2, True),
    ("trl_rloo", 3, 1, False),
    ("openrlhf_reinforce_plus_plus_baseline", 2, 2, False),
    ("verl_passk of 2", 3, 1, False),
    ("Lite PPO", 2, 2, True),
    ("max@2 less a penalty", 2, 2, True),
}
CASES = [
    (name, size, num_groups, off_policy)
    for name in {**SHIPPED, **MADE}
    for size, num_groups in ((2, 1), (3, 1), (4, 1), (2, 2))
    for off_policy in (False, True)
]


@pytest.mark.parametrize(("name", "size", "num_groups", "off_policy"), mostly_slow(CASES, KEPT))
def test_moments_are_those_of_every_group(name, size, num_groups, off_policy):
    recipe, prompts = {**SHIPPED, **MADE}[name], PROMPTS if num_groups > 1 else ()
    expected = listed(recipe, size, prompts, num_groups, off_policy).moments()
    found = by_sums(recipe, size, prompts, off_policy, num_groups=num_groups)
    assert max(differences(found, expected)) < EXACT
    assert abs(found.trace - np.trace(expected[1])) < EXACT * np.trace(expected[1])


RECIPE = Recipe(Centered("group", "group", 1, 1e-4), Ratio(bound=Clip()), "batch", kl=ld.objectives.KL(0.1))


@pytest.mark.parametrize(
    ("equal_rewards", "fixed"),
    mostly_slow(
        [("refill", False), ("redraw", False), ("redraw", True), ("mask", False), ("drop", False), ("keep", True)],
        {("refill", False), ("redraw", True), ("drop", False)},
    ),
)
def test_groups_of_equal_rewards(equal_rewards, fixed):
    """The laws by their definition: batches that are kept, over their probability; and what is left of the others."""
    every = listed(RECIPE, 2, PROMPTS, 2, True, fixed, equal_rewards)
    kept = alive(every.raw)
    chances = every.chances * (kept.all(axis=1) if equal_rewards in ("refill", "redraw") else 1)
    if equal_rewards == "refill":
        chances = chances / chances.sum()
    for p in range(2 if equal_rewards == "redraw" else 0):
        here, unequal = (np.bincount(every.starts[:, p], every.chances * x, 2) for x in (1, kept[:, p]))
        chances = chances * (here / np.where(here > 0, unequal, 1))[every.starts[:, p]]
    prompts = "fixed" if fixed else "drawn"
    found = by_sums(RECIPE, 2, PROMPTS, True, num_groups=2, prompts=prompts, equal_rewards=equal_rewards)
    assert max(differences(found, every.moments(chances))) < EXACT
    if equal_rewards != "keep":
        plain = by_sums(RECIPE, 2, PROMPTS, True, num_groups=2, prompts=prompts)
        assert min(differences(plain, every.moments(chances))) > 1e-3
        np.testing.assert_allclose(found.unequal, every.chances @ kept.mean(axis=1), rtol=EXACT)


def test_answers_of_a_truncated_sampler():
    """Of the return under what is left, or of the whole policy: neither where the one draws and the other is trained."""
    model, named = world()
    params, truncated = named["params"], ld.policies.Truncated(model.policy, top_p=0.6)
    recipe = Recipe(correction=Ratio("old", "sampler", "sequence", ld.objectives.Mask(high=3.0), detached=True))
    expected = listed(recipe, 2, sampler_policy=truncated)
    assert len(expected.chances) < 16  # some answers are never drawn
    found = by_sums(recipe, 2, sampler_policy=truncated)
    assert max(differences(found, expected.moments())) < EXACT

    def gradient(policy):
        return ravel_pytree(ld.exact.gradient(params, policy, model, horizon=model.horizon))[0]

    of_both = ravel_pytree(ld.exact.group_moments(params, truncated, model, Recipe(), horizon=3, size=3).mean)[0]
    assert off(of_both, gradient(truncated)) < EXACT
    mixed = ravel_pytree(by_sums(Recipe(), 2, sampler_policy=truncated).mean)[0]
    assert min(off(mixed, gradient(policy)) for policy in (truncated, model.policy)) > 1e-2


def test_the_greedy_answer_is_the_baseline():
    """Its reward is a number of the prompt: the expectation stays, the noise does not."""
    model, named = world(PROMPTS)
    exact = ravel_pytree(ld.exact.gradient(named["params"], model.policy, model, horizon=model.horizon))[0]
    found = by_sums(Recipe(Centered("greedy")), 2, PROMPTS, num_groups=3)
    plain = by_sums(Recipe(Centered(None)), 2, PROMPTS, num_groups=3)
    for moments in (found, plain):
        assert off(ravel_pytree(moments.mean)[0], exact) < EXACT
    assert off(found.covariance, plain.covariance) > 1e-2


def test_trace_and_directions_are_those_of_the_covariance():
    found = by_sums(RECIPE, 3, PROMPTS, num_groups=2)
    directions = np.random.default_rng(0).normal(size=(3, len(found.covariance)))
    shown = by_sums(RECIPE, 3, PROMPTS, num_groups=2, directions=directions)
    assert off(shown.covariance, directions @ found.covariance @ directions.T) < EXACT
    assert abs(shown.trace - np.trace(found.covariance)) < EXACT * found.trace


def test_wrong_twins_are_rejected():
    """A deviation over G in place of G - 1, an advantage with the own answer, and pairs of answers left out of the covariance."""
    right = dataclasses.replace(PRESETS["trl_dapo"], correction=None)
    mean, covariance = listed(right, 2, PROMPTS, 2).moments()
    for twin in (Centered("group", "group", 0, 1e-4), Centered("group")):
        found = by_sums(dataclasses.replace(right, advantage=twin), 2, PROMPTS, num_groups=2)
        assert min(differences(found, (mean, covariance))) > 1e-2
    of_one = by_sums(right, 2, PROMPTS, num_groups=1)
    assert off(of_one.covariance / 2, covariance) > 1e-2  # groups are no independent terms: they share their tokens
    alone = by_sums(dataclasses.replace(right, per="answer"), 2, PROMPTS, num_groups=1)
    both = by_sums(dataclasses.replace(right, per="answer"), 2, PROMPTS, num_groups=2)
    assert off(alone.covariance / 2, both.covariance) < EXACT  # here they are


@pytest.mark.parametrize(
    ("advantage", "degree"),
    [(Centered(), 2), (MaxAtK(2), 2), (MaxAtK(3, "k - 1 others"), 3), (MaxAtK(2, "k others"), 3)],
)
def test_large_groups_are_those_of_few_answers(advantage, degree):
    """U-statistics of degree d: by Hoeffding the covariance at any G follows from those at d to 2d - 1, penalty or not."""
    recipe, few = Recipe(advantage, penalty=ld.objectives.KL(0.3, "k1", "reward")), range(degree, 2 * degree)

    def shares(size):
        alike = [math.comb(degree, c) * math.comb(size - degree, degree - c) for c in range(1, degree + 1)]
        return np.array(alike) / math.comb(size, degree)

    found = [by_sums(recipe, size) for size in (*few, 16)]
    covariances = np.stack([x.covariance for x in found])
    parts = np.linalg.solve(np.stack([shares(size) for size in few]), covariances[:-1].reshape(degree, -1))
    assert off(covariances[-1].ravel(), shares(16) @ parts) < EXACT
    assert off(ravel_pytree(found[-1].mean)[0], ravel_pytree(found[0].mean)[0]) < EXACT
    assert off(covariances[0] * degree / 16, covariances[-1]) > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_groups": 3, "prompts": "fixed"}, "num_groups: expected 2, a group for each prompt"),
        ({"equal_rewards": "refill", "prompts": "fixed"}, "'refill' draws other prompts"),
        ({"size": 1}, "size: expected .* which Centered"),
        ({"directions": np.zeros(3)}, r"directions: expected shape \(M, D\) with D = 8"),
        ({"limit": 3}, "depends on sums over groups .* more than limit=3"),
        ({"reference": None}, "reference: expected"),
    ],
)
def test_what_cannot_be_computed_is_named(changes, message):
    model, named = world(PROMPTS)
    options = {"size": 2, "reference": named["reference"], **changes}
    recipe = Recipe(Centered("group", "group"), kl=ld.objectives.KL(0.1, "k3"))
    with pytest.raises(ValueError, match=message):
        ld.exact.group_moments(named["params"], model.policy, model, recipe, horizon=model.horizon, **options)


class Unnumbered:
    """A black box that does not say how many actions there are."""

    def reset(self, key, params=None):
        return jnp.int32(0), jnp.int32(0)

    def step(self, key, state, action, params=None):
        return state, state, jnp.ones(()), jnp.zeros((), bool), jnp.zeros((), bool)


def test_an_environment_without_a_number_of_actions_is_named_as_by_moments():
    given = jnp.zeros(2), ld.shared_softmax, Unnumbered()
    expected = r"environment: expected a TabularMDP, or an attribute num_actions, .* received Unnumbered\."
    with pytest.raises(TypeError, match=expected):
        ld.exact.group_moments(*given, Recipe(Centered("group")), horizon=1, size=2)
    with pytest.raises(TypeError, match=expected):
        ld.exact.moments(*given, ld.ScoreFunction(), horizon=1, num_trajectories=2)


def test_groups_that_are_always_equal_cannot_be_drawn_anew():
    model = dataclasses.replace(world()[0], reward=lambda tokens, length: jnp.ones(()))

    def found(equal_rewards, recipe=Recipe(), size=2):  # noqa: B008
        options = {"horizon": 3, "size": size, "equal_rewards": equal_rewards}
        return ld.exact.group_moments(world()[1]["params"], model.policy, model, recipe, **options)

    for equal_rewards in ("refill", "redraw"):
        with pytest.raises(ValueError, match="which they always are"):
            found(equal_rewards)
    with pytest.raises(ValueError, match="of one answer all rewards are equal"):
        found("mask", Recipe(Centered(None)), 1)
    assert found("drop").unequal == found("drop").trace == 0
