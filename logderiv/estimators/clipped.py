"""Estimators that weigh a batch once and take many gradients from it: PPO and the group-relative family."""

import dataclasses
from typing import Any

import jax

from logderiv.estimators.base import Estimator
from logderiv.estimators.baselines import (
    Baseline,
    baseline_biased_batch_mean,
    baseline_biased_group_normalized,
    baseline_leave_one_out,
    baseline_per_group,
)
from logderiv.estimators.credit import GAE, reward_to_go, total_return
from logderiv.estimators.declaration import Bias
from logderiv.estimators.importance import log_ratios
from logderiv.estimators.score_function import Credit, ScoreFunction, score_function, score_function_without_gamma_t
from logderiv.estimators.surrogates import Normalizer, clipped_step, clipped_terms, normalizer_bias, reduce_steps
from logderiv.types import Stream, Trajectory


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Clipped(Estimator):
    r"""See `ppo`.

    Attributes:
        weigher: Where the weights come from.
        clip: $\\epsilon$; `None` does not clip.
        normalizer: See `logderiv.surrogates.reduce_steps`.
    """

    weigher: ScoreFunction
    clip: float | None = 0.2
    normalizer: Normalizer = "per_trajectory"

    def __post_init__(self) -> None:
        normalizer_bias(self.normalizer)
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip: expected a positive number or None, received {self.clip}.")

    @property
    def discount(self) -> float:
        r"""$\gamma$ of the objective."""
        return self.weigher.discount

    @property
    def bias(self) -> Bias:
        """Of the first gradient, at the parameters that drew the batch."""
        first = Bias(
            order=1, assumes=("it is the first gradient of the batch; later ones, at other parameters, are biased",)
        )
        return self.weigher.bias & first & normalizer_bias(self.normalizer)

    @property
    def accepts_streams(self) -> bool:
        """As the weigher."""
        return self.weigher.accepts_streams

    @property
    def reusable(self) -> bool:
        """It compares with the policy that drew the batch."""
        return True

    def init(self, params: Any) -> Any:
        """The weigher's first state."""
        return self.weigher.init(params)

    def weigh(self, params: Any, state: Any, policy: Any, trajectories: Trajectory | Stream) -> tuple[jax.Array, Any]:
        """The weigher's weights, `(N, T)`."""
        return self.weigher.weigh(params, state, policy, trajectories)

    def objective(self, params: Any, policy: Any, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        """The clipped surrogate at these parameters, against those that drew the batch."""
        terms = clipped_terms(log_ratios(params, policy, trajectories), weights, self.clip)
        return reduce_steps(terms, trajectories.valid, self.normalizer)

    def check_steps(self) -> None:
        """Its surrogate is a sum over steps."""

    def step_terms(self, logs: jax.Array, behavior: jax.Array, weights: jax.Array) -> jax.Array:
        """What each step adds to the surrogate."""
        return clipped_step(logs - behavior, weights, self.clip)


def ppo(
    *,
    credit: Credit | GAE = reward_to_go,
    baseline: Baseline | None = None,
    discount: float = 1.0,
    clip: float = 0.2,
    normalizer: Normalizer = "per_trajectory",
) -> Clipped:
    r"""Proximal policy optimization: weigh once, then several gradients of the clipped surrogate.

    $L = \tfrac1N \sum_n \sum_t \min(\rho w,\ \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon)\, w)$ with $\rho = \pi_\theta / \pi_{\text{drawn}}$ per step, from `behavior_log_probs`.

        weights, state = estimator.weigh(params, state, policy, taus)
        for _ in range(epochs):
            grads = jax.grad(estimator.objective)(params, policy, taus, weights)

    The first gradient is the score-function estimate with the same credit and baseline, and as unbiased; later ones are not.
    The common recipe is `credit=gae(0.95)`, `baseline=baseline_biased_standardized(baseline_learned_value(...))`. $\gamma^t$ stays in the
    weights. Entropy and value losses are not part of it.

    Args:
        credit: As in `score_function`.
        baseline: As in `score_function`.
        discount: $\gamma$ in [0, 1].
        clip: $\epsilon > 0$.
        normalizer: See `logderiv.surrogates.reduce_steps`.

    Raises:
        ValueError: As `score_function`; `clip` not positive; an unknown normalizer.

    References:
        Schulman et al. (2017), arXiv:1707.06347, eq. 7.
    """
    return Clipped(score_function(credit=credit, baseline=baseline, discount=discount), clip, normalizer)


def ppo_without_gamma_t(
    *,
    credit: Credit | GAE = reward_to_go,
    baseline: Baseline | None = None,
    discount: float = 1.0,
    clip: float = 0.2,
    normalizer: Normalizer = "per_trajectory",
) -> Clipped:
    r"""As `ppo`, with $\gamma^t$ left out as nearly all published code does; see `score_function_without_gamma_t`. Biased for $\gamma < 1$.

    Args:
        credit: As `ppo`, like all others.
        baseline: Likewise.
        discount: Likewise.
        clip: Likewise.
        normalizer: Likewise.
    """
    weigher = score_function_without_gamma_t(credit=credit, baseline=baseline, discount=discount)
    return Clipped(weigher, clip, normalizer)


def rloo(*, group_size: int | None = None, discount: float = 1.0) -> ScoreFunction:
    r"""REINFORCE with the mean return of the others in the group as baseline: $\tfrac1N \sum_n (R_n - \bar R_{-n}) \nabla\log P(\tau_n)$.

    Unbiased at order one. The group-relative objective to start from.

    Args:
        group_size: Consecutive trajectories that belong together (answers to one prompt); `None` for the whole batch.
        discount: $\gamma$ in [0, 1].

    Raises:
        ValueError: Groups of fewer than two.

    References:
        Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. (2024),
        arXiv:2402.14740.
    """
    baseline = baseline_leave_one_out(per="trajectory")
    if group_size is not None:
        baseline = baseline_per_group(baseline, group_size)
    return score_function(credit=total_return, baseline=baseline, discount=discount)


def grpo(
    *,
    group_size: int,
    discount: float = 1.0,
    clip: float = 0.2,
    normalizer: Normalizer = "per_own_token",
    ddof: int = 1,
    epsilon: float = 1e-4,
) -> Clipped:
    r"""Group-relative policy optimization: returns standardized within the group, clipped, each trajectory divided by its length.

    Biased twice: by the group's mean and deviation, which contain the own sample, and by the random length. The KL penalty of
    the paper is not included: subtract it from the rewards.

    Args:
        group_size: Consecutive trajectories that belong together, at least 2.
        discount: $\gamma$ in [0, 1].
        clip: As in `ppo`.
        normalizer: 'per_own_token' as published; 'per_token' is DAPO's.
        ddof: 1 for the sample deviation, 0 for the population's.
        epsilon: Added to the deviation.

    Raises:
        ValueError: Groups of fewer than two; as `ppo`.

    References:
        Shao et al. (2024), arXiv:2402.03300, section 4.1; Yu et al. (2025), arXiv:2503.14476, for the normalizer per token.
    """
    baseline = baseline_biased_group_normalized(group_size, ddof=ddof, epsilon=epsilon)
    return Clipped(score_function(credit=total_return, baseline=baseline, discount=discount), clip, normalizer)


def dr_grpo(*, group_size: int, discount: float = 1.0, clip: float = 0.2) -> Clipped:
    r"""GRPO "done right": the group's mean is subtracted, nothing is divided.

    The own sample is still in the mean, so the first gradient is exactly $1 - 1/G$ times that of `rloo` in groups of `G`: the right
    direction.

    Args:
        group_size: As in `grpo`.
        discount: $\gamma$ in [0, 1].
        clip: As in `ppo`.

    Raises:
        ValueError: Groups of fewer than two.

    References:
        Liu et al. (2025), arXiv:2503.20783, section 3.2.
    """
    baseline = baseline_per_group(baseline_biased_batch_mean(), group_size)
    return Clipped(score_function(credit=total_return, baseline=baseline, discount=discount), clip)
