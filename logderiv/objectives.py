"""Objectives of sequence models (GRPO, DAPO, GSPO, RLOO and their kin) as functions of arrays, each with what it estimates.

Two stages, as every trainer has them: `advantages` and `token_weights` on the whole batch, `objective` on any part of it. Masks
are boolean and True where the policy chose the token: prompts, tools and padding are counted nowhere. `preset("trl_dapo")` is
a framework's objective; its `declaration` names the objectives whose gradient the first step is in expectation.
"""

from logderiv.estimators.objectives.advantages import Centered, MaxAtK, advantages
from logderiv.estimators.objectives.aggregation import token_weights
from logderiv.estimators.objectives.objective import objective
from logderiv.estimators.objectives.presets import PRESETS, Recipe, preset
from logderiv.estimators.objectives.ratios import Bound, Clip, ClipTokens, Mask, Ratio, Soft, TotalVariation, Truncate
from logderiv.estimators.objectives.regularizers import KL, Entropy

__all__ = [
    "KL",
    "PRESETS",
    "Bound",
    "Centered",
    "Clip",
    "ClipTokens",
    "Entropy",
    "Mask",
    "MaxAtK",
    "Ratio",
    "Recipe",
    "Soft",
]
__all__ += ["TotalVariation", "Truncate", "advantages", "objective", "preset", "token_weights"]
