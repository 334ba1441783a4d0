"""Policies: a distribution for each observation.

Each is a frozen dataclass, so that one rebuilt with the same fields does not retrace; `apply` works on one observation.
"""

from logderiv._core.moments import RunningMoments
from logderiv.distributions.tanh_normal import TanhNormalHead, normal_head, tanh_normal_head
from logderiv.policies.normalized import Normalized
from logderiv.policies.recurrent import GRU
from logderiv.policies.softmax import SharedSoftmax, TabularSoftmax, shared_softmax, tabular_softmax
from logderiv.policies.spaces import ActionHead, policy_for
from logderiv.policies.stepwise import MLP, MLPActorCritic, MLPValue, StepPolicy, as_policy
from logderiv.policies.truncated import Truncated
from logderiv.policies.wrapper import PolicyWrapper
from logderiv.types import FunctionPolicy

__all__ = ["GRU", "MLP", "ActionHead", "FunctionPolicy", "MLPActorCritic", "MLPValue", "Normalized", "PolicyWrapper"]
__all__ += [
    "RunningMoments",
    "SharedSoftmax",
    "StepPolicy",
    "TabularSoftmax",
    "TanhNormalHead",
    "Truncated",
    "as_policy",
]
__all__ += ["normal_head", "policy_for", "shared_softmax", "tabular_softmax", "tanh_normal_head"]
