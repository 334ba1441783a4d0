"""The calls of objectives of sequence models that `test_project_dtypes` varies."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Lists and numbers are given where the signatures say arrays.

import numpy as np

import logderiv as ld
from logderiv import environments, exact, objectives
from tests.dtype_calls import LOGITS, ROW, case

MEASURED = ld.policies.RunningMoments(*(np.array(x, np.float32) for x in (9.0, [0.5, -1.0], [2.0, 3.0])))

TOKENS = [[-0.3, -1.2], [-0.7, -2.1], [-1.4, -0.2]]
ON_TOKENS = {name: np.float32(TOKENS) for name in ("log_probs", "weights", "step_kl", "step_entropy")}
ON_TOKENS |= {"old": np.float32(TOKENS[::-1]), "advantages": np.float32(ROW)}
OBJECTIVES = {
    "advantages": case(
        lambda rewards, greedy, groups: objectives.advantages(
            rewards, groups, num_groups=2, kind=objectives.Centered("greedy"), greedy=greedy
        ),
        whole=("groups",),
        rewards=ROW,
        greedy=[1.3, 0.2, 0.7],
        groups=[0, 1, 1],
    ),
    "token_weights": case(
        lambda mask, groups: objectives.token_weights(mask, groups, per="group"),
        whole=("groups",),
        mask=[[1, 1], [1, 0], [0, 1]],
        groups=[0, 1, 1],
    ),
    "objective": case(
        lambda **arrays: objectives.objective(**arrays, kl=objectives.KL(0.37, "k3")),
        log_probs=TOKENS,
        advantages=ROW,
        weights=[[0.25, 0.5], [1.0, 0.0], [0.5, 1.5]],
        old=TOKENS[::-1],
        reference=TOKENS[::-1],
    ),
    "KL": case(lambda beta: objectives.objective(**ON_TOKENS, kl=objectives.KL(beta)), beta=0.37),
    "Entropy": case(lambda weight: objectives.objective(**ON_TOKENS, entropy=objectives.Entropy(weight)), weight=0.37),
    "Clip": case(
        lambda low, high, dual: objectives.objective(
            **ON_TOKENS, ratio=objectives.Ratio(bound=objectives.Clip(low, high, dual))
        ),
        low=0.37,
        high=0.37,
        dual=3.7,
    ),
    "divergences": case(
        lambda params, reference: exact.divergences(
            params, reference, ld.shared_softmax, environments.short_corridor(horizon=3), horizon=2
        ),
        names={"params": "params|reference"},
        params=LOGITS,
        reference=LOGITS[::-1],
    ),
    "group_moments": case(
        lambda params, old, sampler, reference, directions: list(
            exact.group_moments(
                params,
                ld.shared_softmax,
                environments.short_corridor(horizon=3),
                objectives.Recipe(ratio=objectives.Ratio(bound=objectives.Clip()), kl=objectives.KL(0.37, "k3")),
                horizon=2,
                size=2,
                old=old,
                sampler=sampler,
                reference=reference,
                directions=directions,
            )
        )[:3],
        params=LOGITS,
        old=LOGITS[::-1],
        sampler=LOGITS[::-1],
        reference=LOGITS[::-1],
        directions=[[1.0, -0.5]],
    ),
    "Truncated": case(
        lambda top_p: (
            ld.policies.Truncated(ld.shared_softmax, top_p=top_p).apply(np.float32(LOGITS), np.zeros(())).logits
        ),
        top_p=0.37,
    ),
    "Normalized": case(
        lambda clip: (
            ld.policies.Normalized(lambda params, x: ld.Normal(x, params), MEASURED, clip=clip)
            .apply(np.ones(2, np.float32), np.float32([4.0, -0.3]))
            .loc
        ),
        clip=0.37,
    ),
}
