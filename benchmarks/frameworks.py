"""Do the presets equal the frameworks' own functions, value and gradient by log-probabilities?

Padded batches with holes in their masks, off policy so far that every bound binds somewhere, in float64. The function of a
framework is called as released, beside the preset of that name; what is not installed is reported as not run. Its dependencies
are many: `pip install -e ".[frameworks]"`, and for OpenRLHF, which asks for a GPU's, `pip install --no-deps openrlhf`.

Finding (TRL 1.16.0, verl 0.9.1, tunix 0.1.7, OpenRLHF 0.11.2; torch 2.13, jax 0.10.2): 29 of the 33 presets are run and equal. The functions of the other four are in no
release: NeMo RL's and prime-rl's were run once from their repositories, and agree to 4e-16; Tinker's two were read.
TRL and verl agree to 2e-15, but for the 1e-8 that verl adds to numbers of tokens; tunix and OpenRLHF's normalization compute in float32, and agree to 2e-7. The value
of CISPO is not compared: theirs is the ratio times A log π, which is no objective's.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from benchmarks import framework_losses as theirs
from benchmarks.framework_losses import Batch, Result
from benchmarks.harness import Bound, Report, Table, at_least, at_most, cells

PROMPTS, SIZE, TOKENS = 4, 3, 9
LONGEST = 11.0
EXACT, GUARDED, SINGLE = 1e-12, 1e-9, 1e-6


class Row(NamedTuple):
    """A preset beside a function.

    Attributes:
        distribution: What has to be installed.
        loss: From a batch and the preset's advantages to value and gradient.
        limit: The difference allowed, relative to the largest derivative.
        why: Why it is not the smallest.
        changes: What is different from the preset.
        tokens: Whether the rewards are given at the last tokens, so that a divergence in them is credited to what comes before it.
        has_value: False where its value is that of no objective.
    """

    distribution: str
    loss: Callable[[Batch, np.ndarray], Result]
    limit: float = EXACT
    why: str = ""
    changes: dict[str, Any] = {}  # noqa: RUF012
    tokens: bool = False
    has_value: bool = True


def _trl(changes: dict[str, Any] | None = None, *, has_value: bool = True, **settings: Any) -> Row:
    return Row("trl", partial(theirs.trl_loss, **settings), changes=changes or {}, has_value=has_value)


def _verl(estimator: str, *, guarded: bool = False, **options: Any) -> Row:
    kept = {name: options.pop(name) for name in ("changes", "has_value") if name in options}
    limit, why = (GUARDED, "1e-8 is added to the number of tokens") if guarded else (EXACT, "")
    return Row("verl", lambda batch, _: theirs.verl_loss(batch, estimator, **dict(options)), limit, why, **kept)


def _tunix(estimator: str, changes: dict[str, Any] | None = None, **settings: Any) -> Row:
    loss = lambda batch, _: theirs.tunix_loss(batch, estimator, **settings)  # noqa: E731
    return Row("google-tunix", loss, SINGLE, "in float32", changes or {})


def _openrlhf(estimator: str, beta: float) -> Row:
    loss = lambda batch, _: theirs.openrlhf_loss(batch, estimator, beta)  # noqa: E731
    return Row("openrlhf", loss, SINGLE, "normalized in float32", tokens=True)


_LARGE = 2.0**40  # in the place of 1 in a mask; it cancels, but in sums to which 1e-8 is added
_CONSTANT: Any = {"length": LONGEST}
_SEQUENCE: Any = {"importance_sampling_level": "sequence"}
_GRPO: Any = {"options": {"norm_adv_by_std_in_grpo": True}}
_SOFT = {"ratio": ld.objectives.Ratio(bound=ld.objectives.Soft(1.0, float(np.float32(1.05))))}  # TRL rounds 1.05
ROWS: dict[str, Row] = {
    "trl_grpo": _trl(loss_type="grpo"),
    "trl_grpo_k3": _trl(loss_type="grpo", beta=0.04, use_bias_correction_kl=False),
    "trl_grpo_r_k3": _trl(loss_type="grpo", beta=0.04),
    "trl_dapo": _trl(),
    "trl_bnpo": _trl(loss_type="bnpo"),
    "trl_dr_grpo": _trl(_CONSTANT, loss_type="dr_grpo", max_completion_length=LONGEST),
    "trl_gspo": _trl(loss_type="grpo", **_SEQUENCE, epsilon_low=3e-4, epsilon_high=4e-4),
    "trl_cispo": _trl(loss_type="cispo", epsilon_high=5.0, has_value=False),
    "trl_sapo": _trl(_SOFT, loss_type="sapo"),
    "trl_luspo": _trl(loss_type="luspo", **_SEQUENCE, epsilon_low=2e-3, epsilon_high=2.5e-3),
    "trl_rloo": Row("trl", theirs.trl_rloo_loss),
    "verl_grpo": _verl("grpo", **_GRPO),
    "verl_dr_grpo": _verl(
        "grpo",
        options={"norm_adv_by_std_in_grpo": False},
        loss_agg_mode="seq-mean-token-sum-norm",
        global_batch_info={"loss_scale_factor": LONGEST},
        changes=_CONSTANT,
    ),
    "verl_gspo": _verl(
        "grpo",
        kind="gspo",
        ones=_LARGE,
        loss_agg_mode="seq-mean-token-mean",
        clip_ratio_low=3e-4,
        clip_ratio_high=4e-4,
        **_GRPO,
    ),
    "verl_rloo": _verl("rloo"),
    "verl_reinforce_plus_plus": _verl("reinforce_plus_plus", guarded=True),
    "verl_reinforce_plus_plus_baseline": _verl("reinforce_plus_plus_baseline", guarded=True),
    "verl_remax": _verl("remax"),
    "verl_opo": _verl("opo"),
    "verl_passk": _verl(
        "grpo_passk", times=float(SIZE), changes={"advantage": ld.objectives.MaxAtK(SIZE, "k - 1 others")}
    ),
    "verl_cispo": _verl("grpo", kind="cispo", has_value=False, **_GRPO),
    "verl_geo_mean": _verl("grpo", kind="geo_mean", ones=_LARGE, **_GRPO),
    "tunix_grpo": _tunix("grpo"),
    "tunix_gspo_token": _tunix("grpo", loss_algo="gspo-token"),
    "tunix_drgrpo": _tunix("drgrpo", {"length": float(TOKENS)}, loss_agg_mode="sequence-mean-token-scale"),
    "tunix_rloo": _tunix("rloo"),
    "maxtext_grpo": _tunix("grpo", beta=0.08),
    "openrlhf_reinforce_plus_plus": _openrlhf("reinforce", 0.01),
    "openrlhf_reinforce_plus_plus_baseline": _openrlhf("reinforce_baseline", 0.0),
}


def batch_of(seed: int) -> Batch:
    """Answers of 1 to `TOKENS` tokens; some have holes. Ratios reach from e^-3 to e^3."""
    random = np.random.default_rng(seed)
    number = PROMPTS * SIZE
    mask = np.arange(TOKENS) < random.integers(1, TOKENS + 1, (number, 1))
    mask[:, 1:-1] &= random.random((number, TOKENS - 2)) < 0.9
    mask[0] = True
    old = -random.uniform(0.2, 2.0, mask.shape)
    moves = (scale * random.normal(size=mask.shape) for scale in (0.5, 0.3, 0.5))
    log_probs, sampler, reference = (old + move for move in moves)
    for token, beyond in ((1, 2.5), (2, -2.5)):
        log_probs[:, token] = old[:, token] + beyond
    rewards = np.round(random.normal(size=number) * 4) / 4 + np.arange(number) % SIZE / 8
    greedy = np.repeat(np.round(random.normal(size=PROMPTS) * 4) / 4, SIZE)
    return Batch(log_probs, old, sampler, reference, mask, rewards, greedy, SIZE)


def ours(recipe: ld.objectives.Recipe, batch: Batch, *, tokens: bool) -> tuple[Result, np.ndarray]:
    """Value and gradient of the loss, and the advantages."""
    rewards, groups = batch.at_last(batch.rewards) if tokens else batch.rewards, batch.groups
    options = {"mask": batch.mask, "greedy": batch.greedy, "log_probs": batch.old, "reference": batch.reference}
    advantages = recipe.advantages(rewards, groups, num_groups=PROMPTS, **options)
    weights = recipe.token_weights(batch.mask, groups)
    logs = {name: jnp.asarray(getattr(batch, name)) for name in ("old", "sampler", "reference")}

    def loss(log_probs: jax.Array) -> jax.Array:
        return -recipe.objective(log_probs, advantages, weights, **logs)

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray(batch.log_probs))
    return (float(value), np.asarray(slope)), np.asarray(advantages)


def compare(name: str, row: Row, batches: list[Batch]) -> dict[str, Any]:
    """The largest differences over the batches, and where the framework's function does not depend on a token's log-probability."""
    recipe = dataclasses.replace(ld.objectives.preset(name), **row.changes)
    gaps, flat, least = [], [], []
    for batch in batches:
        with jax.enable_x64(True):
            (value, slope), advantages = ours(recipe, batch, tokens=row.tokens)
            expected, wanted = row.loss(batch, advantages)
        largest = np.max(np.abs(wanted * batch.mask))
        gap = abs(value - expected) / max(1.0, abs(expected)) if row.has_value else None
        gaps.append((gap, np.max(np.abs((slope - wanted) * batch.mask)) / largest))
        flat.append(np.mean(wanted[batch.mask] == 0))
        least.append(largest)
    values, slopes = zip(*gaps, strict=True)
    found = {"value": max(values) if row.has_value else None, "gradient": max(slopes), "flat": float(np.mean(flat))}
    return found | {"preset": name, "version": theirs.version(row.distribution), "largest": min(least), "why": row.why}


def distance(one: str, other: str, batch: Batch) -> float:
    """Between the gradients of two presets, relative to the largest derivative of the second."""
    with jax.enable_x64(True):
        slopes = [ours(ld.objectives.preset(name), batch, tokens=False)[0][1] for name in (one, other)]
    return float(np.max(np.abs(slopes[0] - slopes[1])) / np.max(np.abs(slopes[1])))


def main(quick: bool) -> Report:
    batches = [batch_of(seed) for seed in range(1 if quick else 5)]
    found: list[dict[str, Any]] = []
    for name in ld.objectives.PRESETS:
        if name in ROWS and theirs.version(ROWS[name].distribution) is not None:
            found.append(compare(name, ROWS[name], batches))
        else:
            found.append({"preset": name, "why": "not installed" if name in ROWS else "not released"})
    bounds: list[Bound] = []
    for row in found:
        name, limit = row["preset"], ROWS[row["preset"]].limit if row["preset"] in ROWS else EXACT
        for kind in ("value", "gradient"):
            if row.get(kind) is not None:
                bounds.append(at_most(f"{name}: {kind} off by", row[kind], limit))
        if "largest" in row:
            bounds.append(at_least(f"{name}: largest derivative", row["largest"], 1e-3))
    control = min(distance("trl_grpo", "trl_dapo", batch) for batch in batches)
    bounds.append(
        at_least("what a mean over each answer's own tokens, for one over all, would be off by", control, 1e-2)
    )
    heads = "preset | released | value off by | gradient off by | tokens without gradient | "
    shown = f"{{r[preset]}} | {{r[version]}} | {cells(('value', 'gradient'), '.1e')} | {{r[flat]:.2f}} | {{r[why]}}"
    table = Table("Presets beside the frameworks' own functions, the largest over the batches", heads, shown, found)
    return Report([table], bounds, {"rows": found, "control": control})
