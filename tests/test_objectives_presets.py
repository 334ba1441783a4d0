"""The presets against the frameworks' formulas, restated here from reading them: value and gradient, off policy, in float64.

The formulas share no code with the library; `benchmarks.frameworks` runs the frameworks' own functions. Guards of divisors such as + 1e-8 are left out of both.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.frameworks import ROWS
from logderiv.objectives import KL, PRESETS, MaxAtK, preset

EXACT = 1e-12
SIZE = 3
GROUPS = np.repeat(np.arange(2), SIZE)
MASK = np.array(
    [[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 1, 1, 1, 0]], bool
)
REWARDS = np.array([1.0, 0.25, -0.5, 0.75, 2.0, 0.5])
GREEDY = np.repeat([0.5, 1.25], SIZE)
LONGEST = 7.0
_random = np.random.default_rng(3)
OLD = -_random.uniform(0.2, 2.0, MASK.shape)
LOGS, SAMPLER, REFERENCE = (OLD + scale * _random.normal(size=MASK.shape) for scale in (0.4, 0.3, 0.5))
LOGS[0, 1] = SAMPLER[0, 1] + 1.6  # beyond every bound
M = jnp.asarray(MASK, float)


def group_advantages(scale, eps, ddof=1):
    rows = REWARDS.reshape(-1, SIZE)
    centered = rows - rows.mean(axis=1, keepdims=True)
    return (centered / (rows.std(axis=1, ddof=ddof, keepdims=True) + eps) if scale else centered).ravel()[:, None]


def others(rewards=REWARDS):
    rows = rewards.reshape(-1, SIZE)
    return (rows - (rows.sum(axis=1, keepdims=True) - rows) / (SIZE - 1)).ravel()[:, None]


def whitened(scores, eps, ddof):
    """Of `(N, T)` over the tokens of the mask."""
    inside = scores[MASK]
    return (scores - inside.mean()) / np.sqrt(inside.var(ddof=ddof) + eps)


def token_mean(x):
    return jnp.sum(x * M) / jnp.sum(M)


def sequence_mean(x):
    return jnp.mean(jnp.sum(x * M, 1) / jnp.sum(M, 1))


def constant(x):
    return jnp.sum(x * M) / (len(MASK) * LONGEST)


def total(x):
    return jnp.sum(x * M)


def clipped(ratio, a, low=0.2, high=0.2, dual=None):
    """A loss."""
    losses = jnp.maximum(-a * ratio, -a * jnp.clip(ratio, 1 - low, 1 + high))
    return losses if dual is None else jnp.where(a < 0, jnp.minimum(losses, -dual * a), losses)


def k3(logs):
    return jnp.exp(REFERENCE - logs) - (REFERENCE - logs) - 1


def mean_log_ratio(logs):
    return (jnp.sum((logs - OLD) * M, 1) / jnp.sum(M, 1))[:, None] * jnp.ones(MASK.shape)


def held_mean_ratio(logs):
    return jnp.exp(jax.lax.stop_gradient(mean_log_ratio(logs)) + logs - jax.lax.stop_gradient(logs))


def trl(logs, loss_type="grpo", level="token", low=0.2, high=0.2, scale=True, beta=0.0, corrected=False):
    a = group_advantages(scale, 1e-4)
    log_weights = logs - OLD if level == "token" else mean_log_ratio(logs)
    coef = jnp.exp(log_weights)
    if loss_type == "cispo":
        losses = -jax.lax.stop_gradient(jnp.minimum(coef, 5.0)) * a * logs
    elif loss_type == "sapo":
        temperatures = np.where(a > 0, 1.0, 1.05)
        losses = -jax.nn.sigmoid(temperatures * (coef - 1)) * 4 / temperatures * a
    else:
        losses = clipped(coef, a, low, high)
    whole = np.exp(np.sum((OLD - SAMPLER) * MASK, axis=1, keepdims=True))
    losses = losses * np.where(whole > 3, 0, whole)
    divergence = k3(logs) * (coef if corrected else 1)
    losses = losses + beta * divergence
    if loss_type == "luspo":
        return jnp.mean(losses[:, :1] * jnp.sum(M, 1, keepdims=True))
    return {"grpo": sequence_mean, "sapo": sequence_mean, "dr_grpo": constant}.get(loss_type, token_mean)(losses)


def trl_rloo(logs):
    penalized = REWARDS - 0.05 * np.sum((OLD - REFERENCE) * MASK, axis=1)
    ratio = jnp.exp(jnp.sum((logs - OLD) * M, 1))
    return jnp.mean(clipped(ratio, others(penalized)[:, 0]))


def verl(logs, a=None, aggregate=token_mean, kind="vanilla"):
    a, ratio = group_advantages(True, 1e-6) if a is None else a, jnp.exp(logs - OLD)
    if kind == "gspo":
        return sequence_mean(clipped(held_mean_ratio(logs), a, 3e-4, 4e-4))
    if kind == "cispo":
        return token_mean(-jax.lax.stop_gradient(jnp.clip(ratio, 0.8, 1.2)) * a * logs)
    if kind == "geo_mean":
        sign, logs = np.sign(a), logs - OLD
        least = sign * jnp.minimum(sign * logs, sign * jnp.clip(logs, -0.2, 0.2))
        return jnp.mean(-a[:, 0] * jnp.exp(jnp.sum(least * M, 1) / jnp.sum(M, 1)))
    return aggregate(clipped(ratio, a, dual=3.0))


def by_length():
    lengths, rows = MASK.sum(axis=1).reshape(-1, SIZE), REWARDS.reshape(-1, SIZE)
    return (rows - (lengths * rows).sum(1, keepdims=True) / lengths.sum(1, keepdims=True)).ravel()[:, None]


def best_only():
    """Three times verl's, which is no mean over answers."""
    found = np.zeros(len(REWARDS))
    for group in range(2):
        rows = np.flatnonzero(group == GROUPS)
        order = rows[np.argsort(REWARDS[rows])]
        found[order[-1]] = REWARDS[order[-1]] - REWARDS[order[-2]]
    return SIZE * found[:, None]


def tunix(logs, a=None, aggregate=sequence_mean, kind="grpo", beta=0.04):
    a, ratio = group_advantages(True, 1e-6) if a is None else a, jnp.exp(logs - OLD)
    losses = clipped(held_mean_ratio(logs) if kind == "gspo-token" else ratio, a)
    losses = losses * np.minimum(np.exp(OLD - SAMPLER), 2.0)
    return aggregate(losses) + beta * aggregate(logs - REFERENCE)


def openrlhf(logs, baseline):
    penalties = 0.01 * (OLD - REFERENCE) * MASK
    if baseline:
        a = MEAN * np.ones(MASK.shape)
    else:
        to_go = np.cumsum(penalties[:, ::-1], axis=1)[:, ::-1]
        a = REWARDS[:, None] - to_go
    return token_mean(clipped(jnp.exp(logs - OLD), whitened(a, 0.0, 0)))


def nemo(logs):
    weight = jnp.exp(logs - jax.lax.stop_gradient(logs))
    return token_mean(clipped(jnp.exp(logs - OLD), others())) + 0.01 * token_mean(weight * k3(logs))


def prime_rl(logs):
    a, ratio = group_advantages(False, 0.0), jnp.exp(logs - SAMPLER)
    moved = np.exp(LOGS) - np.exp(SAMPLER)
    dropped = np.where(a > 0, moved > 0.2, moved < -0.2)
    return token_mean(-a * ratio * np.where(dropped, 0.0, 1.0)) + 1e-3 * token_mean((logs - SAMPLER) ** 2)


FLAT = np.broadcast_to(REWARDS[:, None], MASK.shape)
MEAN = group_advantages(False, 0.0)
FORMULAS = {
    "trl_grpo": trl,
    "trl_grpo_k3": functools.partial(trl, beta=0.04),
    "trl_grpo_r_k3": functools.partial(trl, beta=0.04, corrected=True),
    "trl_dapo": functools.partial(trl, loss_type="dapo"),
    "trl_bnpo": functools.partial(trl, loss_type="bnpo"),
    "trl_dr_grpo": functools.partial(trl, loss_type="dr_grpo", scale=False),
    "trl_gspo": functools.partial(trl, level="sequence", low=3e-4, high=4e-4),
    "trl_cispo": functools.partial(trl, loss_type="cispo"),
    "trl_sapo": functools.partial(trl, loss_type="sapo"),
    "trl_luspo": functools.partial(trl, loss_type="luspo", level="sequence", low=2e-3, high=2.5e-3),
    "trl_rloo": trl_rloo,
    "verl_grpo": verl,
    "verl_dr_grpo": functools.partial(verl, a=MEAN, aggregate=constant),
    "verl_gspo": functools.partial(verl, kind="gspo"),
    "verl_rloo": functools.partial(verl, a=others()),
    "verl_reinforce_plus_plus": functools.partial(verl, a=whitened(FLAT, 1e-8, 1)),
    "verl_reinforce_plus_plus_baseline": functools.partial(verl, a=whitened(MEAN * np.ones(MASK.shape), 1e-8, 1)),
    "verl_remax": functools.partial(verl, a=(REWARDS - GREEDY)[:, None]),
    "verl_opo": functools.partial(verl, a=by_length()),
    "verl_passk": functools.partial(verl, a=best_only()),
    "verl_cispo": functools.partial(verl, kind="cispo"),
    "verl_geo_mean": functools.partial(verl, kind="geo_mean"),
    "tunix_grpo": tunix,
    "tunix_gspo_token": functools.partial(tunix, kind="gspo-token"),
    "tunix_drgrpo": functools.partial(tunix, a=MEAN, aggregate=constant),
    "tunix_rloo": functools.partial(tunix, a=others()),
    "maxtext_grpo": functools.partial(tunix, beta=0.08),
    "openrlhf_reinforce_plus_plus": functools.partial(openrlhf, baseline=False),
    "openrlhf_reinforce_plus_plus_baseline": functools.partial(openrlhf, baseline=True),
    "nemo_grpo": nemo,
    "tinker_importance_sampling": lambda logs: total(-jnp.exp(logs - SAMPLER) * MEAN),
    "tinker_cispo": lambda logs: total(-jax.lax.stop_gradient(jnp.clip(jnp.exp(logs - SAMPLER), 0, 4)) * MEAN * logs),
    "prime_rl_default": prime_rl,
}
NO_VALUE = ("trl_cispo", "verl_cispo", "tinker_cispo")  # theirs is ρ A l, whose value is no objective's: ours is ρ A


def recipe_of(name):
    recipe = preset(name)
    if recipe.per == "constant":
        recipe = dataclasses.replace(recipe, length=LONGEST)
    return dataclasses.replace(recipe, advantage=MaxAtK(SIZE, "k - 1 others")) if name == "verl_passk" else recipe


def ours(recipe, logs, rows=slice(None)):
    """The loss of some of the answers."""
    rewards = REWARDS
    if recipe is PRESETS["openrlhf_reinforce_plus_plus"]:  # at the last token
        last = MASK.shape[1] - 1 - np.argmax(MASK[:, ::-1], axis=1)
        rewards = np.zeros(MASK.shape)
        rewards[np.arange(len(last)), last] = REWARDS
    options = {"mask": MASK, "greedy": GREEDY, "log_probs": OLD, "reference": REFERENCE}
    found = recipe.advantages(jnp.asarray(rewards), GROUPS, num_groups=2, **options)
    weights = recipe.token_weights(MASK, GROUPS)
    others = {"old": OLD[rows], "sampler": SAMPLER[rows], "reference": REFERENCE[rows]}
    return -recipe.objective(logs[rows], found[rows], weights[rows], **others)


@functools.cache
def both():
    """Name to value and gradient, ours and theirs, in one program."""

    @jax.jit
    def run(logs):
        pairs = {n: (functools.partial(ours, recipe_of(n)), theirs) for n, theirs in FORMULAS.items()}
        return {n: [jax.value_and_grad(f)(logs) for f in pair] for n, pair in pairs.items()}

    return jax.tree.map(np.asarray, run(jnp.asarray(LOGS)))


def test_every_preset_has_its_formula():
    assert set(FORMULAS) == set(PRESETS)
    unreleased = {"read, not run": {"tinker_importance_sampling", "tinker_cispo"}}
    unreleased["run once from its repository"] = {"nemo_grpo", "prime_rl_default"}
    for words, names in unreleased.items():
        assert {name for name, recipe in PRESETS.items() if words in recipe.source} == names
    assert set(PRESETS) - set(ROWS) == set().union(*unreleased.values())
    assert all(", run" in PRESETS[name].source for name in ROWS)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_preset_is_the_frameworks_formula(name):
    (value, gradient), (expected, slope) = both()[name]
    largest = np.max(np.abs(slope))
    assert largest > 1e-3
    np.testing.assert_allclose(gradient * MASK, slope * MASK, rtol=0, atol=EXACT * largest)
    if name not in NO_VALUE:
        np.testing.assert_allclose(value, expected, rtol=0, atol=EXACT * max(1, abs(expected)))


def test_formulas_tell_presets_apart():
    """No two of one framework agree in their gradients but those that differ on micro-batches alone."""
    gradients = {name: found[0][1] for name, found in both().items()}
    same = {
        (a, b) for a in gradients for b in gradients if a < b and np.allclose(gradients[a], gradients[b], atol=1e-9)
    }
    assert same == {("trl_bnpo", "trl_dapo")}


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_parts_of_a_batch_add_up_wherever_it_is_cut(cut):
    """Through the middle of a group, too."""

    @jax.jit
    def run(logs):
        parts = [slice(0, cut), slice(cut, None)]
        names = ("trl_dapo", "trl_luspo", "verl_geo_mean", "tunix_grpo", "trl_rloo", "prime_rl_default")
        whole = [jax.grad(functools.partial(ours, preset(n)))(logs) for n in names]
        split = [sum(jax.grad(functools.partial(ours, preset(n), rows=rows))(logs) for rows in parts) for n in names]
        return jnp.stack(whole), jnp.stack(split)

    whole, split = run(jnp.asarray(LOGS))
    np.testing.assert_allclose(split, whole, rtol=0, atol=EXACT * np.max(np.abs(whole)))


def test_weights_of_each_micro_batch_are_another_objective():
    """TRL's bnpo at one, two and all of the batches: its divisor is the micro-batch's token count."""
    recipe = preset("trl_bnpo")
    found = recipe.advantages(REWARDS, GROUPS, num_groups=2)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(logs, parts):
        def loss(logs):
            size = len(MASK) // parts
            blocks = [slice(i, i + size) for i in range(0, len(MASK), size)]
            of_each = [recipe.token_weights(MASK[b], GROUPS[b]) / parts for b in blocks]
            return sum(recipe.objective(logs[b], found[b], w, old=OLD[b]) for b, w in zip(blocks, of_each, strict=True))

        return jax.grad(loss)(logs)

    one, two, all_of_them = (gradient(jnp.asarray(LOGS), parts) for parts in (1, 2, 6))
    assert np.max(np.abs(one - two)) > 1e-3
    by_length = dataclasses.replace(recipe, per="own length")
    weights = by_length.token_weights(MASK, GROUPS)
    expected = jax.grad(lambda logs: by_length.objective(logs, found, weights, old=OLD))(jnp.asarray(LOGS))
    np.testing.assert_allclose(all_of_them, expected, rtol=0, atol=1e-14)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"name: expected 'trl_grpo', .* or 'prime_rl_default', received 'trl_gpro'\."):
        preset("trl_gpro")
    assert dataclasses.replace(preset("trl_dapo"), kl=KL(0.1)).kl == KL(0.1)
