"""The log-derivative identity on trajectories: score-function gradients that can be proved right.

`import logderiv as ld`. What a first hour needs is one dot away; the families `ld.advantages`, `ld.baselines`, `ld.importance`,
`ld.objectives`, `ld.environments`, `ld.processes`, `ld.exact`, `ld.testing`, `ld.diagnostics`, `ld.reporting` and `ld.plots` hold the rest.
"""

from logderiv import (
    advantages,
    baselines,
    diagnostics,
    distributions,
    environments,
    estimators,
    exact,
    expectations,
    importance,
    likelihood,
    objectives,
    plots,
    policies,
    processes,
    reporting,
    sampling,
    testing,
    training,
    types,
)
from logderiv.distributions import Bernoulli, Categorical, Normal, masked
from logderiv.distributions.tanh_normal import normal_head
from logderiv.estimators import (
    A2C,
    GRPO,
    PPO,
    RLOO,
    ActorCritic,
    PPOActorCritic,
    ScoreFunction,
    gradient_from_samples,
)
from logderiv.expectations import Tape, bounded_while_loop, cost, expectation, expected, key, plate, sample, score
from logderiv.likelihood import (
    compare,
    grad_prob,
    log_factors,
    log_prob,
    natural_gradient,
    prob,
    token_log_probs,
    token_sum,
    weighted_log_prob,
)
from logderiv.policies import GRU, MLP, MLPActorCritic, policy_for, shared_softmax, tabular_softmax
from logderiv.sampling import rollout
from logderiv.training import Checkpoints, Episodes, Evaluation, Groups, Steps, evaluate, make_mesh, maximize, train
from logderiv.types import FunctionPolicy, Policy, Trajectory

__version__ = "0.1.0"

__all__ = [
    "A2C",
    "GRPO",
    "GRU",
    "MLP",
    "PPO",
    "RLOO",
    "ActorCritic",
    "Bernoulli",
    "Categorical",
    "Checkpoints",
    "Episodes",
    "Evaluation",
    "FunctionPolicy",
    "Groups",
    "MLPActorCritic",
    "Normal",
    "PPOActorCritic",
    "Policy",
    "ScoreFunction",
    "Steps",
    "Tape",
    "Trajectory",
    "advantages",
    "baselines",
    "bounded_while_loop",
    "compare",
    "cost",
    "diagnostics",
    "distributions",
    "environments",
    "estimators",
    "evaluate",
    "exact",
    "expectation",
    "expectations",
    "expected",
    "grad_prob",
    "gradient_from_samples",
    "importance",
    "key",
    "likelihood",
    "log_factors",
    "log_prob",
    "make_mesh",
    "masked",
    "maximize",
    "natural_gradient",
    "normal_head",
    "objectives",
    "plate",
    "plots",
    "policies",
    "policy_for",
    "prob",
    "processes",
    "reporting",
    "rollout",
    "sample",
    "sampling",
    "score",
    "shared_softmax",
    "tabular_softmax",
    "testing",
    "token_log_probs",
    "token_sum",
    "train",
    "training",
    "types",
    "weighted_log_prob",
]


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
