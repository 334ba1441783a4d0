"""Recipes: advantage, ratio, aggregation and regularizer together, and those of the frameworks as data."""

import dataclasses
from typing import Any

import jax

from logderiv._core import check
from logderiv._core.arrays import summable
from logderiv._core.pytrees import pytree
from logderiv.estimators.declaration import RETURN, Declaration, Part, biased, concrete, declaration_of, one
from logderiv.estimators.objectives.advantages import Centered, MaxAtK, advantages, check_kind
from logderiv.estimators.objectives.aggregation import AGGREGATIONS, answers_of, boolean, token_weights
from logderiv.estimators.objectives.objective import check_kinds, objective
from logderiv.estimators.objectives.ratios import Clip, ClipTokens, Mask, Ratio, Soft, TotalVariation, Truncate
from logderiv.estimators.objectives.regularizers import KL, Entropy


@pytree(static=("per", "source"))
class Recipe(Part):
    """An objective of sequence models: both stages, with what they need.

        recipe = ld.objectives.preset("trl_dapo")
        advantages = recipe.advantages(rewards, groups, num_groups=P)  # on the whole batch
        weights = recipe.token_weights(mask, groups)  # on the whole batch
        loss = lambda params: -recipe.objective(log_probs(params), advantages, weights, old=old)  # adds up over any split

    Another setting is `dataclasses.replace(recipe, kl=ld.objectives.KL(0.05))`.

    Attributes:
        advantage: `Centered` or `MaxAtK`.
        ratio: What multiplies the advantages.
        per: What weights are divided by, as of `token_weights`; "constant" for `length`.
        length: That constant, such as the longest length allowed.
        correction: Of the sampler, where its log-probabilities are given.
        penalty: Divergence, of tokens in the reward, that is subtracted from the rewards before anything else.
        kl: Regularizer to subtract.
        entropy: Regularizer to add.
        source: Where it is from.

    Raises:
        ValueError: An unknown `per`; `length` is not positive; a `penalty` that is none of the rewards.
        TypeError: A part is none, or was not called.
    """

    advantage: Centered | MaxAtK = Centered()
    ratio: Ratio = Ratio()
    per: str = "answer"
    length: float = 1.0
    correction: Ratio | None = None
    penalty: KL | None = None
    kl: KL | None = None
    entropy: Entropy | None = None
    source: str = ""

    def __post_init__(self) -> None:
        check.one_of(AGGREGATIONS, per=self.per)
        check.positive(finite=True, length=self.length)
        check_kind(self.advantage, "advantage")
        check_kinds(
            ratio=self.ratio, correction=self.correction, penalty=self.penalty, kl=self.kl, entropy=self.entropy
        )
        if self.penalty is not None and (self.penalty.place, self.penalty.level) != ("reward", "token"):
            raise ValueError(f"penalty: expected one with place='reward' and level='token', received {self.penalty}.")

    @property
    def declaration(self) -> Declaration:
        """The named objectives whose gradients E[first gradient] is, with their factors for G answers to one prompt.

        Raises:
            ValueError: A setting that decides it is traced.
        """
        found, weights = declaration_of(self.advantage), self.ratio.declared(self.per)
        if self.penalty is not None:
            penalty = biased("a penalty in the rewards, under an advantage that is no difference of them")
            if set(found.objectives) == {RETURN}:
                penalty = self.penalty.declared("answer").scaled(found.objectives[RETURN])
            found = found + penalty
        for part in (self.kl, self.entropy):
            found = found if part is None else found + part.declared(self.per)
        if self.per == "constant":
            length = float(concrete("length", self.length))
            found = found.scaled(lambda _: 1 / length)
        if self.per == "sum":
            found = found.scaled(float)
        kept = found.objectives if weights.order >= 1 else ()
        return found & dataclasses.replace(weights, objectives=dict.fromkeys(kept, one))

    def advantages(
        self,
        rewards: Any,
        groups: Any,
        *,
        num_groups: int,
        log_probs: Any = None,
        reference: Any = None,
        mask: Any = None,
        segments: Any = None,
        **options: Any,
    ) -> jax.Array:
        """The first stage, `logderiv.objectives.advantages`, with the penalty subtracted where there is one.

        Args:
            rewards: As there.
            groups: As there.
            num_groups: As there.
            log_probs: For the penalty, of the drawn tokens under what drew them.
            reference: For the penalty, the same under the reference.
            mask: As there.
            segments: As there.
            **options: `scored` and `greedy`.

        Returns:
            As there.

        Raises:
            ValueError: As there; the penalty misses something.
            TypeError: As there.
        """
        rewards = self.penalized(rewards, log_probs, reference, mask, segments)
        shared = {"num_groups": num_groups, "mask": mask, "segments": segments}
        return advantages(rewards, groups, kind=self.advantage, **shared, **options)

    def penalized(
        self, rewards: Any, log_probs: Any = None, reference: Any = None, mask: Any = None, segments: Any = None
    ) -> jax.Array:
        """The rewards with the penalty subtracted where there is one: what advantages see.

        Args:
            rewards: One of each answer, or of each token.
            log_probs: Of the drawn tokens under what drew them.
            reference: The same under the reference.
            mask: Which tokens the policy chose.
            segments: For packed rows, the answer that each token belongs to.

        Returns:
            Shape of `rewards`.

        Raises:
            ValueError: The penalty misses something; shapes disagree.
            TypeError: A mask is not boolean.
        """
        rewards = summable(rewards, "rewards")
        if self.penalty is None:
            return rewards
        if log_probs is None or reference is None or mask is None:
            raise ValueError(f"log_probs, reference, mask: expected all three for {self.penalty}, received None.")
        log_probs, reference = summable(log_probs, "log_probs"), summable(reference, "reference")
        penalties = self.penalty.penalties(log_probs, reference, boolean(mask, "mask")).astype(rewards.dtype)
        if rewards.ndim == 1:
            penalties = answers_of(segments, rewards.size, penalties.shape).sums(penalties)
        return rewards - penalties

    def token_weights(self, mask: Any, groups: Any, **options: Any) -> jax.Array:
        """What each token counts, `logderiv.objectives.token_weights`.

        Args:
            mask: As there.
            groups: As there.
            **options: `segments`, `num_groups` and `dtype`.

        Returns:
            As there.

        Raises:
            ValueError: As there.
            TypeError: As there.
        """
        return token_weights(mask, groups, per=self.length if self.per == "constant" else self.per, **options)

    def objective(self, log_probs: Any, advantages: Any, weights: Any, **logs: Any) -> jax.Array:
        """The second stage, `logderiv.objectives.objective`; it ascends.

        Args:
            log_probs: As there.
            advantages: As there.
            weights: As there.
            **logs: `old`, `sampler`, `reference`, `step_kl`, `step_entropy` and `segments`.

        Returns:
            As there.

        Raises:
            ValueError: As there.
            TypeError: As there.
        """
        parts = {"ratio": self.ratio, "correction": self.correction, "kl": self.kl, "entropy": self.entropy}
        return objective(log_probs, advantages, weights, **parts, **logs)


def preset(name: str) -> Recipe:
    """The recipe of a framework, by its name; `logderiv.objectives.PRESETS` lists them.

    Args:
        name: Framework and objective, such as "trl_dapo".

    Returns:
        A `Recipe`; its `source` says from where, in which version.

    Raises:
        ValueError: There is none of that name; the known ones are listed.

    Example:
        >>> preset("verl_grpo").per
        'batch'
    """
    check.one_of(PRESETS, name=name)
    return PRESETS[name]


_TRL = "TRL 1.16.0, GRPOTrainer._compute_loss, run; its advantages read in the same file"
_VERL = "verl 0.9.1, verl/trainer/ppo/core_algos.py, run"
_TUNIX = "tunix 0.1.7, tunix/rl/algo_core.py, run"
_OPENRLHF = "OpenRLHF 0.11.2, PolicyLoss and RemoteExperienceMaker, run; give rewards at the last tokens"
_TINKER = "Tinker, tinker-cookbook tutorials/202_loss_functions.py of 2026-08-19, read, not run"
_MEAN, _OTHERS = Centered("group"), Centered("others")
_TRL_GROUP, _GROUP = Centered("group", "group", 1, 1e-4), Centered("group", "group", 1, 1e-6)
_CLIP, _DUAL = Ratio(bound=Clip()), Ratio(bound=Clip(dual=3.0))
_GEOMETRIC = Ratio(level="geometric", bound=Clip(3e-4, 4e-4))
_HELD = dataclasses.replace(_GEOMETRIC, detached=True)
_SAMPLER = Ratio("old", "sampler", "sequence", Mask(high=3.0), detached=True)
_TOKEN_SAMPLER = Ratio("old", "sampler", "token", Truncate(high=2.0), detached=True)
_K1 = KL(0.01, "k1", "reward")
_LONGEST = 512.0  # TRL's max_completion_length; set it to yours


def _trl(ratio: Ratio = _CLIP, per: str = "own length", advantage: Any = _TRL_GROUP, **parts: Any) -> Recipe:
    return Recipe(advantage, ratio, per, correction=_SAMPLER, **{"source": _TRL, **parts})


def _verl(advantage: Any = _GROUP, ratio: Ratio = _DUAL, per: str = "batch", **parts: Any) -> Recipe:
    return Recipe(advantage, ratio, per, source=_VERL, **parts)


def _tunix(
    advantage: Any = _GROUP, ratio: Ratio = _CLIP, per: str = "own length", beta: float = 0.04, **parts: Any
) -> Recipe:
    own = {"correction": _TOKEN_SAMPLER, "kl": KL(beta, "k1"), "source": _TUNIX}
    return Recipe(advantage, ratio, per, **{**own, **parts})


PRESETS: dict[str, Recipe] = {
    "trl_grpo": _trl(),
    "trl_grpo_k3": _trl(kl=KL(0.04, "k3"), source=f"{_TRL}; use_bias_correction_kl=False, the default before #6503"),
    "trl_grpo_r_k3": _trl(kl=KL(0.04, "k3", ratio="old"), source=f"{_TRL}; use_bias_correction_kl=True"),
    "trl_dapo": _trl(per="batch"),
    "trl_bnpo": _trl(
        per="batch", source=f"{_TRL}; weights are taken on each micro-batch, which is what it is: no whole batch"
    ),
    "trl_dr_grpo": _trl(per="constant", advantage=_MEAN, length=_LONGEST, source=f"{_TRL}; scale_rewards='none'"),
    "trl_gspo": _trl(_GEOMETRIC, source=f"{_TRL}; importance_sampling_level='sequence', loss_type='grpo'"),
    "trl_cispo": _trl(Ratio(bound=Truncate(high=5.0), detached=True), "batch", source=f"{_TRL}; epsilon_high=5"),
    "trl_sapo": _trl(Ratio(bound=Soft(1.0, 1.05))),
    "trl_luspo": _trl(Ratio(level="geometric", bound=Clip(2e-3, 2.5e-3)), "answer"),
    "trl_rloo": Recipe(
        _OTHERS,
        Ratio(level="sequence", bound=Clip()),
        "own length",
        penalty=KL(0.05, "k1", "reward"),
        source="TRL 1.16.0, RLOOTrainer._compute_loss, run; its advantages read in the same file",
    ),
    "verl_grpo": _verl(),
    "verl_dr_grpo": _verl(_MEAN, per="constant", length=_LONGEST),
    "verl_gspo": _verl(ratio=_HELD, per="own length"),
    "verl_rloo": _verl(_OTHERS),
    "verl_reinforce_plus_plus": _verl(Centered(None, "tokens", 1, 1e-8)),
    "verl_reinforce_plus_plus_baseline": _verl(Centered("group", "tokens", 1, 1e-8)),
    "verl_remax": _verl(Centered("greedy")),
    "verl_opo": _verl(Centered("group by length")),
    "verl_passk": _verl(MaxAtK(8, "k - 1 others")),  # k times verl's, without its deviation; k is the size of the group
    "verl_cispo": _verl(ratio=Ratio(bound=Truncate(0.8, 1.2), detached=True)),
    "verl_geo_mean": _verl(ratio=Ratio(level="geometric", bound=ClipTokens(0.2, 0.2)), per="own length"),
    "tunix_grpo": _tunix(),
    "tunix_gspo_token": _tunix(ratio=Ratio(level="geometric", bound=Clip(), detached=True)),
    "tunix_drgrpo": _tunix(
        _MEAN, per="constant", length=_LONGEST, source=f"{_TUNIX}; the length is that to which answers are padded"
    ),
    "tunix_rloo": _tunix(_OTHERS),
    "maxtext_grpo": _tunix(beta=0.08, source=f"MaxText, configs/post_train/rl.yml of 2026-08-22, read, by {_TUNIX}"),
    "openrlhf_reinforce_plus_plus": Recipe(Centered(None, "tokens"), _CLIP, "batch", penalty=_K1, source=_OPENRLHF),
    "openrlhf_reinforce_plus_plus_baseline": Recipe(
        Centered("group", "tokens"),
        _CLIP,
        "batch",
        source=f"{_OPENRLHF}; without its divergence, which is in no mean of a group: with one, center the rewards and take "
        "openrlhf_reinforce_plus_plus",
    ),
    "nemo_grpo": Recipe(
        _OTHERS,
        _CLIP,
        "batch",
        kl=KL(0.01, "k3", ratio="self"),
        source="NeMo RL, nemo_rl/algorithms/loss/loss_functions.py of 2026-08-22, run once from its repository; rewards "
        "not normalized, without its clamps at 20 and 10",
    ),
    "tinker_importance_sampling": Recipe(_MEAN, Ratio("policy", "sampler"), "sum", source=_TINKER),
    "tinker_cispo": Recipe(
        _MEAN, Ratio("policy", "sampler", bound=Truncate(high=4.0), detached=True), "sum", source=_TINKER
    ),
    "prime_rl_default": Recipe(
        _MEAN,
        Ratio("policy", "sampler", bound=TotalVariation()),
        "batch",
        kl=KL(2e-3, "k2", against="sampler"),
        source="prime-rl, src/prime_rl/trainer/rl/loss.py of 2026-08-21, run once from its repository",
    ),
}
