"""The two stages on arrays: padded and packed, unequal groups, holes, missing rewards, dtypes, transformations, messages."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logderiv import objectives
from logderiv.objectives import KL, Centered, Clip, Entropy, Mask, MaxAtK, Ratio, Recipe, Soft, Truncate

GROUPS = np.array([0, 1, 0, 1, 1])  # neither equal nor consecutive
MASK = np.array([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 0, 0]], bool)
REWARDS = np.array([1.0, 0.25, -0.5, 2.0, 0.25])
_random = np.random.default_rng(0)
LOGS, OLD, SAMPLER, REFERENCE, KL_OF_STEPS, ENTROPIES = -_random.uniform(0.1, 2, (6, *MASK.shape))
TOKENS = {"old": OLD, "sampler": SAMPLER, "reference": REFERENCE, "step_kl": -KL_OF_STEPS, "step_entropy": -ENTROPIES}
FULL = Recipe(
    Centered("group", "tokens", 1, 1e-6),
    Ratio(level="geometric", bound=Clip(0.1, 0.2)),
    "group",
    correction=Ratio("old", "sampler", "cumulative", Truncate(high=1.5), detached=True),
    kl=KL(0.3),
    entropy=Entropy(0.2),
)
RECIPES = {
    "full": FULL,
    "sequence": Recipe(
        Centered("others by length"), Ratio(level="sequence"), "own length", kl=KL(0.2, "k3", level="sequence")
    ),
    "reward": Recipe(MaxAtK(2, "k - 1 others"), Ratio(bound=Soft()), "batch", kl=KL(0.2, "k1", "reward", ratio="old")),
    "masked": Recipe(
        Centered("group"), Ratio("policy", "sampler", "token", Mask(0.5, 2.0)), "answer", kl=KL(0.1, "k2")
    ),
}


def loss(recipe, logs, rewards=REWARDS, mask=MASK, groups=GROUPS, segments=None, tokens=TOKENS, **options):
    found = recipe.advantages(rewards, groups, num_groups=2, mask=mask, segments=segments, **options)
    weights = recipe.token_weights(mask, groups, segments=segments, dtype=jnp.result_type(logs))
    return recipe.objective(logs, found, weights, segments=segments, **tokens)


value_and_grad = jax.jit(jax.value_and_grad(loss, argnums=1))


def pack(x, fill):
    """Answers 3, 0 and 1 in the first row, 2 and 4 in the second, without the padding after them."""
    lengths = MASK.shape[1] - np.argmax(MASK[:, ::-1], axis=1)
    rows = [np.concatenate([np.asarray(x)[n, : lengths[n]] for n in order]) for order in ((3, 0, 1), (2, 4))]
    return np.stack([np.pad(row, (0, 10 - len(row)), constant_values=fill) for row in rows])


@pytest.mark.parametrize("name", RECIPES)
def test_packed_rows_give_what_padded_ones_give(name):
    recipe = RECIPES[name]
    value, gradient = value_and_grad(recipe, LOGS)
    segments = pack(np.repeat(np.arange(5)[:, None], 4, axis=1), -1)
    tokens = {n: pack(x, np.nan) for n, x in TOKENS.items()}
    run = jax.jit(
        jax.value_and_grad(lambda logs: loss(recipe, logs, mask=pack(MASK, True), segments=segments, tokens=tokens))
    )
    packed, packed_gradient = run(pack(LOGS, np.nan))
    np.testing.assert_allclose(packed, value, rtol=1e-13)
    np.testing.assert_allclose(packed_gradient, pack(gradient, 0.0), rtol=0, atol=1e-14)
    assert np.abs(gradient).max() > 0.01


@pytest.mark.parametrize("name", RECIPES)
def test_garbage_outside_the_mask_and_the_order_of_answers_do_not_matter(name):
    recipe, order = RECIPES[name], np.array([4, 2, 0, 3, 1])
    value, gradient = value_and_grad(recipe, LOGS)
    bad = {n: np.where(MASK, x, np.inf) for n, x in TOKENS.items()}
    found, slope = value_and_grad(recipe, np.where(MASK, LOGS, np.nan), tokens=bad)
    np.testing.assert_allclose([found, *slope[MASK]], [value, *gradient[MASK]], rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(slope[~MASK], 0)
    moved = {n: x[order] for n, x in TOKENS.items()}
    found, slope = value_and_grad(recipe, LOGS[order], REWARDS[order], MASK[order], GROUPS[order], tokens=moved)
    np.testing.assert_allclose(found, value, rtol=1e-13)
    np.testing.assert_allclose(slope, gradient[order], rtol=0, atol=1e-14)


@pytest.mark.parametrize("level", ["token", "cumulative", "sequence", "geometric"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_advantage_without_tokens_may_be_nan(level, packed):
    """And one of a single token may not."""
    segments = np.repeat(np.arange(5), 4).reshape(2, 10) if packed else None
    logs, old = (x.reshape(2, 10) if packed else x for x in (LOGS, OLD))
    weights = np.where(np.arange(5)[:, None] == 1, 0.0, MASK)

    @jax.jit
    def run(advantages, weights):
        options = {"old": old, "segments": segments, "ratio": Ratio(level=level)}
        weights = weights.reshape(logs.shape)
        return jax.value_and_grad(lambda x: objectives.objective(x, advantages, weights, **options))(logs)

    bad = np.where(np.arange(5) == 1, np.nan, REWARDS)
    jax.tree.map(np.testing.assert_array_equal, run(bad, weights), run(REWARDS, weights))
    assert np.isnan(run(bad, 1.0 * MASK)[0])


@pytest.mark.parametrize("name", RECIPES)
def test_rows_that_are_no_answers_change_nothing(name):
    recipe = RECIPES[name]
    value, _ = value_and_grad(recipe, LOGS)

    def more(x, fill):
        return np.concatenate([x, np.full((2, *x.shape[1:]), fill, x.dtype)])

    tokens = {n: more(x, np.nan) for n, x in TOKENS.items()}
    arrays = more(LOGS, np.nan), more(REWARDS, np.nan), more(MASK, True), more(GROUPS, -1)
    found, _ = value_and_grad(recipe, *arrays, tokens=tokens)
    np.testing.assert_allclose(found, value, rtol=1e-13)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_narrow_arrays_are_computed_in_float32(name, dtype):
    arrays = {n: jnp.asarray(x, dtype) for n, x in {"logs": LOGS, "rewards": REWARDS, **TOKENS}.items()}
    logs, rewards = arrays.pop("logs"), arrays.pop("rewards")
    recipe = jax.tree.map(lambda x: np.float32(x), RECIPES[name])
    found, gradient = value_and_grad(recipe, logs, rewards, tokens=arrays)
    assert (found.dtype, gradient.dtype) == (jnp.float32, dtype)
    wide = {n: np.asarray(x, np.float64) for n, x in arrays.items()}
    value, exact = value_and_grad(
        RECIPES[name], np.asarray(logs, np.float64), np.asarray(rewards, np.float64), tokens=wide
    )
    np.testing.assert_allclose(found, value, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(gradient, float), exact, rtol=0, atol=2 * float(jnp.finfo(dtype).eps))


def test_k3_near_the_reference_keeps_its_digits_in_float32():
    """Where differentiating e^(−x) − 1 + x leaves three of them."""
    reference = jnp.full((1, 3), -1.0, jnp.float32)
    logs = reference + jnp.array([[1e-4, -3e-4, 2e-3]], jnp.float32)
    exact = -np.expm1(np.asarray(reference, np.float64) - np.asarray(logs, np.float64))
    options = {"kl": KL(1.0, "k3"), "reference": reference}
    zeros, ones = jnp.zeros(1, jnp.float32), jnp.ones((1, 3), jnp.float32)
    found = jax.grad(lambda x: -objectives.objective(x, zeros, ones, **options))(logs)
    np.testing.assert_allclose(found, exact, rtol=1e-6)
    plain = jax.grad(lambda x: jnp.sum(jnp.exp(reference - x) - 1 - (reference - x)))(logs)
    assert np.max(np.abs(np.asarray(plain, np.float64) / exact - 1)) > 1e-5
    nearer = reference + jnp.array([[1e-6, -3e-6, 2e-6]], jnp.float32)
    x = np.asarray(nearer, np.float64) + 1
    value = -objectives.objective(nearer, zeros, ones, **options)
    np.testing.assert_allclose(value, np.sum(x**2 / 2 - x**3 / 6), rtol=1e-6)  # expm1(−x) + x is 2 % off


def test_settings_are_leaves_that_may_be_mapped_over():
    betas = jnp.array([0.0, 0.3, 1.0])
    mapped = jax.jit(jax.vmap(lambda beta: loss(dataclasses.replace(FULL, kl=KL(beta)), jnp.asarray(LOGS))))(betas)
    one = [value_and_grad(dataclasses.replace(FULL, kl=KL(float(beta))), LOGS)[0] for beta in betas]
    np.testing.assert_allclose(mapped, one, rtol=1e-13)
    batches = jax.jit(jax.vmap(functools.partial(loss, FULL)))(jnp.stack([LOGS, OLD]))
    np.testing.assert_allclose(batches, [value_and_grad(FULL, x)[0] for x in (LOGS, OLD)], rtol=1e-13)


@jax.jit
def many_advantages(rewards, scored):
    kinds = (
        Centered("others"),
        Centered("group"),
        Centered("group", "group", 1, 0.0),
        Centered("group", "batch"),
        MaxAtK(1),
    )
    return [objectives.advantages(rewards, GROUPS, num_groups=2, kind=kind, scored=scored) for kind in kinds]


def test_missing_rewards_are_in_no_mean_and_a_nan_that_is_called_scored_stays_in_its_group():
    scored = np.array([True, True, True, False, True])
    found = many_advantages(np.where(scored, REWARDS, np.nan), scored)
    np.testing.assert_allclose(found[0], [1.5, 0, -1.5, 0, 0])
    np.testing.assert_allclose(found[1], [0.75, 0, -0.75, 0, 0])
    np.testing.assert_allclose(found[2], np.array([1, 0, -1, 0, 0]) / np.sqrt(2))
    np.testing.assert_allclose(found[3], np.array([0.75, 0, -0.75, 0, 0]) / np.std([1, 0.25, -0.5, 0.25]))
    np.testing.assert_allclose(found[4], [1, 0.25, -0.5, 0, 0.25])
    wrong = many_advantages(np.where(scored, REWARDS, np.nan), np.ones(5, bool))
    for one in wrong[:3]:
        np.testing.assert_array_equal(np.isnan(one), [False, True, False, True, True])
    alone = many_advantages(REWARDS, np.array([True, False, False, True, True]))
    np.testing.assert_array_equal(alone[0][:3], 0)  # no other is scored in its group
    assert np.all(np.abs(alone[0][3:]) == 1.75)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("baseline", [None, "k others", "k - 1 others"])
def test_max_at_k_is_the_mean_over_all_sets(k, baseline):
    """By hand, with a tie; the second group is another one, and one answer is not scored."""
    rewards, size = np.array([1.0, 0.25, 3.0, 0.25, -1.0, 7.0]), 4
    if (baseline, k) in (("k others", 4), ("k - 1 others", 1)):
        return
    groups, scored = np.array([0, 0, 1, 0, 0, 0]), np.array([True] * 5 + [False])

    def mean_best(sets):
        return np.mean([max((float(rewards[m]) for m in members), default=0.0) for members in sets])

    members, expected = [0, 1, 3, 4], np.zeros(6)
    for n in members:
        others = [m for m in members if m != n]
        sets = [(n, *rest) for rest in itertools.combinations(others, k - 1)]
        aside = {
            None: [()],
            "k others": itertools.combinations(others, k),
            "k - 1 others": itertools.combinations(others, k - 1),
        }
        share = k / size  # of all sets, those with n
        expected[n] = size * share * (mean_best(sets) - mean_best(aside[baseline]))
    found = jax.jit(lambda g: objectives.advantages(rewards, g, num_groups=2, kind=MaxAtK(k, baseline), scored=scored))(
        groups
    )
    np.testing.assert_allclose(found[jnp.array(members)], expected[members], rtol=0, atol=1e-14)
    assert found[5] == 0


def test_of_all_answers_only_the_best_counts():
    kind = MaxAtK(3, "k - 1 others")
    found = objectives.advantages(jnp.array([0.5, 2.0, 1.25]), np.zeros(3, int), num_groups=1, kind=kind)
    np.testing.assert_allclose(found, [0, 3 * 0.75, 0], atol=1e-15)


def test_rewards_of_tokens_are_credited_to_what_comes_before_them():
    rewards = jnp.array([[1.0, 0, 2.0], [0, 4.0, 9.0]])
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
    found = objectives.advantages(rewards, np.zeros(2, int), num_groups=1, mask=mask)
    np.testing.assert_allclose(found, [[-1, -2, -2], [1, 1, -3]])


@pytest.mark.parametrize(
    "kind", [Centered("others"), Centered(None, "tokens", 1, 1e-6), Centered("group", "group", 1, 1e-4)]
)
def test_rewards_of_tokens_may_be_packed_and_a_nan_stays_in_its_group(kind):
    rewards = np.random.default_rng(1).normal(size=MASK.shape)
    rewards[1, 0] = np.inf if kind.scale == "tokens" else np.nan  # of group 1, or of one that is not scored
    scored = np.array([True, kind.scale != "tokens", True, True, True])
    segments = pack(np.repeat(np.arange(5)[:, None], 4, axis=1), -1)
    run = jax.jit(functools.partial(objectives.advantages, num_groups=2, kind=kind, scored=scored))
    padded = run(rewards, GROUPS, mask=MASK)
    packed = run(pack(rewards, np.nan), GROUPS, mask=pack(MASK, True), segments=segments)
    own = pack(MASK, False)
    np.testing.assert_allclose(packed[own], pack(padded, 0.0)[own], rtol=1e-12)
    assert np.isfinite(padded[MASK & (GROUPS == 0)[:, None]]).all()
    assert np.isnan(padded[1, 0]) == (kind.scale != "tokens")


@pytest.mark.parametrize(
    ("per", "expected"),
    [
        ("answer", [1 / 5] * 5),
        (4.0, [1 / 20] * 5),
        ("sum", [1] * 5),
        ("own length", [1 / 15, 1 / 5, 1 / 15, 1 / 15, 1 / 10]),
        ("group", [1 / 12] * 5),
        ("batch", [1 / 12] * 5),
    ],
)
def test_weights_by_hand(per, expected):
    weights = objectives.token_weights(MASK, GROUPS, per=per)
    np.testing.assert_allclose(weights, MASK * np.array(expected)[:, None], rtol=1e-15)


WRONG = {
    "a pair that nobody knows": (
        lambda: Centered("others", "group"),
        r"baseline, scale: expected one of the known pairs None, None;",
    ),
    "a negative beta": (lambda: KL(-0.1), r"beta: expected a number >= 0, received -0.1"),
    "a soft bound of sequences": (
        lambda: Ratio(level="sequence", bound=Soft()),
        r"level of a ratio with Soft: expected 'token', received 'sequence'",
    ),
    "two policies": (lambda: Ratio("policy", "reference"), r"expected one of policy/old, policy/sampler, old/sampler"),
    "a class as bound": (
        lambda: Ratio(bound=Clip),  # pyright: ignore[reportArgumentType]
        r"bound: .* the class Clip; call it",
    ),
    "whole steps in the reward": (lambda: KL(0.1, "step", "reward"), r"expected the defaults with kind='step'"),
    "nothing between": (lambda: Truncate(2.0, 1.0), r"low, high: expected low < high, received 2.0 and 1.0"),
    "one of one": (
        lambda: MaxAtK(1, "k - 1 others"),
        r"k: expected a whole number >= 2, received 1; of one answer no others",
    ),
    "a penalty in the loss": (lambda: Recipe(penalty=KL(0.1, "k1")), r"penalty: expected one with place='reward'"),
    "a group too many": (
        lambda: objectives.advantages(REWARDS, GROUPS, num_groups=1),
        r"groups: expected a number in \[-1, 0\], received .*num_groups is above every group",
    ),
    "a segment too many": (
        lambda: objectives.token_weights(MASK, GROUPS, segments=np.full(MASK.shape, 5)),
        r"segments: expected a number in \[-1, 4\]",
    ),
    "one answer": (
        lambda: objectives.advantages(REWARDS, np.arange(5), num_groups=5),
        r"groups: .* received 1 in group 0",
    ),
    "k of G": (
        lambda: objectives.advantages(REWARDS, GROUPS, num_groups=2, kind=MaxAtK(2, "k others")),
        r"groups: expected at least 3 answers in each group for MaxAtK.*, received 2 in group 0",
    ),
    "no mask": (
        lambda: objectives.advantages(REWARDS, GROUPS, num_groups=2, kind=Centered("group by length")),
        r"mask: expected that of the tokens",
    ),
    "no greedy": (
        lambda: objectives.advantages(REWARDS, GROUPS, num_groups=2, kind=Centered("greedy")),
        r"greedy: expected the rewards of the greedy answers",
    ),
    "a mask of numbers": (
        lambda: objectives.token_weights(MASK * 1, GROUPS),
        r"mask: expected a boolean mask, received int",
    ),
    "a row too few": (
        lambda: objectives.token_weights(MASK[:4], GROUPS),
        r"one row for each of the N = 5 answers, received \(4, 4\)",
    ),
    "unknown weights": (
        lambda: objectives.token_weights(MASK, GROUPS, per="token"),
        r"per: expected 'answer', .*received 'token'",
    ),
    "no reference": (
        lambda: objectives.objective(LOGS, REWARDS, 1.0 * MASK, kl=KL(0.1, "k3")),
        r"reference: expected its log-probabilities of the drawn tokens",
    ),
    "no divergence of steps": (
        lambda: objectives.objective(LOGS, REWARDS, 1.0 * MASK, kl=KL(0.1)),
        r"step_kl: expected one number for each step",
    ),
    "no sampler": (
        lambda: objectives.objective(LOGS, REWARDS, 1.0 * MASK, ratio=Ratio("policy", "sampler")),
        r"sampler: expected log-probabilities of what drew the answers",
    ),
    "a ratio of the old": (
        lambda: objectives.objective(LOGS, REWARDS, 1.0 * MASK, ratio=Ratio("old", "sampler")),
        r"numerator of ratio: expected 'policy', received 'old'",
    ),
    "another shape": (
        lambda: objectives.objective(LOGS, REWARDS, 1.0 * MASK, old=OLD[:, :2]),
        r"old: expected shape \(5, 4\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name):
    call, message = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_inside_jit_a_group_of_one_weighs_nothing():
    found = jax.jit(lambda g: objectives.advantages(REWARDS, g, num_groups=5))(np.arange(5))
    np.testing.assert_array_equal(found, 0)


def test_a_ratio_without_a_number_is_harmless_where_it_counts_for_nothing():
    """Beyond a bound, or under an advantage of 0; without either it shows."""
    logs = jnp.array([[0.0, 0.0]])
    old, weights = logs - 2000.0, jnp.ones((1, 2))

    @jax.jit
    def run(ratio, advantages):
        return jax.value_and_grad(lambda x: objectives.objective(x, advantages, weights, old=old, ratio=ratio))(logs)

    for ratio, advantages, expected in (
        (Ratio(bound=Clip()), jnp.ones(1), 2.4),
        (Ratio(bound=Clip(dual=3.0)), -jnp.ones(1), -6.0),
        (Ratio(), jnp.zeros(1), 0.0),
        (Ratio(level="geometric", bound=Mask()), jnp.ones(1), 0.0),
    ):
        value, gradient = run(ratio, advantages)
        np.testing.assert_allclose(value, expected, rtol=1e-15)
        np.testing.assert_array_equal(gradient, 0)
    assert not np.isfinite(run(Ratio(), jnp.ones(1))[0])
