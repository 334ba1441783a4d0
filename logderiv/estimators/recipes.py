"""Estimators under their published names: each function returns the estimator that it is, composed of the library's parts."""

from logderiv.estimators.advantages import Grouped, Return, Standardized
from logderiv.estimators.baselines import BatchMean, LeaveOneOut
from logderiv.estimators.batch import ValueFunction
from logderiv.estimators.bootstrapped import GAE
from logderiv.estimators.policy_gradient import PPO, ActorCritic, ScoreFunction
from logderiv.estimators.surrogates import Normalizer


def RLOO(group_size: int | None = None, discount: float = 1.0) -> ScoreFunction:
    """REINFORCE with the mean return of the others in the group as baseline.

        1/N Σ_n (R_n − mean of the others' R) ∇log P(τ_n)

    Unbiased at order one. The group-relative objective to start from.

    Args:
        group_size: Consecutive trajectories that belong together (answers to one prompt); `None` for the whole batch.
        discount: γ in [0, 1].

    Returns:
        A `ScoreFunction`.

    Raises:
        ValueError: Groups of fewer than two; `discount` is outside [0, 1].

    References:
        Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. (2024),
        arXiv:2402.14740.
    """
    others = Return(LeaveOneOut(per="trajectory"))
    return ScoreFunction(others if group_size is None else Grouped(others, group_size), discount)


def GRPO(
    group_size: int,
    discount: float = 1.0,
    clip: float | None = 0.2,
    normalizer: Normalizer = "per_step_of_trajectory",
    ddof: int = 1,
    epsilon: float = 1e-4,
) -> PPO:
    """Group-relative policy optimization: returns standardized within the group, clipped, each trajectory divided by its length.

    Biased twice: by the group's mean and deviation, which contain the own sample, and by the random length, of the steps that the
    policy chose: a prompt's (`logderiv.distributions.Forced`) are not counted. The KL penalty of the paper is not included; subtracted from the
    rewards it is the divergence of sequences, which the paper's, in the loss, is not: `logderiv.objectives.KL` has both.
    `Grouped(Return(LeaveOneOut(per="trajectory")), group_size)` is an unbiased advantage.

    Args:
        group_size: Consecutive trajectories that belong together, at least 2.
        discount: γ in [0, 1].
        clip: ε > 0; `None` does not clip.
        normalizer: "per_step_of_trajectory" as published; "per_step_of_batch" is DAPO's.
        ddof: 1 for the sample deviation, 0 for the population's.
        epsilon: Added to the deviation.

    Returns:
        A `PPO`.

    Raises:
        ValueError: Groups of fewer than two; `discount` is outside [0, 1]; `clip` is not positive; an unknown normalizer.

    References:
        Shao et al. (2024), arXiv:2402.03300, section 4.1; Yu et al. (2025), arXiv:2503.14476, for the normalizer per step of the
        batch.
    """
    standardized = Standardized(Return(), "trajectory", ddof, epsilon)
    return PPO(Grouped(standardized, group_size), discount, clip, normalizer)


def DrGRPO(group_size: int, discount: float = 1.0, clip: float | None = 0.2) -> PPO:
    """GRPO "done right": the group's mean is subtracted, nothing is divided.

    The own sample is still in the mean, so the first gradient is exactly 1 − 1/G times that of `RLOO` in groups of G: the right
    direction.

    Args:
        group_size: Consecutive trajectories that belong together, at least 2.
        discount: γ in [0, 1].
        clip: ε > 0; `None` does not clip.

    Returns:
        A `PPO`.

    Raises:
        ValueError: Groups of fewer than two; `discount` is outside [0, 1]; `clip` is not positive.

    References:
        Liu et al. (2025), arXiv:2503.20783, section 3.2.
    """
    return PPO(Grouped(Return(BatchMean()), group_size), discount, clip)


def A2C(
    value: ValueFunction,
    discount: float = 0.99,
    lambda_: float = 1.0,
    value_weight: float = 0.5,
    entropy_weight: float | None = 0.01,
) -> ActorCritic:
    """Advantage actor-critic as nearly everyone runs it: λ-returns minus the value, γ^t left out, value loss and entropy bonus.

    Args:
        value: `(params, observation) -> scalar`, with all of the policy's `params`.
        discount: γ in [0, 1].
        lambda_: λ of `advantages.GAE`, in [0, 1].
        value_weight: c_v ≥ 0 of `ActorCritic`.
        entropy_weight: c_H ≥ 0 of `ActorCritic`; `None` for no bonus.

    Returns:
        An `ActorCritic`.

    Raises:
        ValueError: A number is out of its range.

    References:
        Mnih et al. (2016), arXiv:1602.01783, section 4.
    """
    actor = ScoreFunction(GAE(lambda_), discount=discount, gamma_t=False)
    return ActorCritic(actor, value, value_weight, entropy_weight)


def PPOActorCritic(
    value: ValueFunction,
    discount: float = 0.99,
    lambda_: float = 0.95,
    clip: float | None = 0.2,
    value_weight: float = 0.5,
    entropy_weight: float | None = 0.01,
    standardize: bool = True,
) -> ActorCritic:
    """PPO as nearly everyone runs it: GAE, standardized, γ^t left out, clipped, value loss, entropy bonus.

    Give `logderiv.train` the epochs and minibatches. Biased in ways that `declaration` lists; `PPO` is the clipped surrogate
    alone.

    Args:
        value: `(params, observation) -> scalar`, with all of the policy's `params`.
        discount: γ in [0, 1].
        lambda_: λ of `advantages.GAE`, in [0, 1].
        clip: ε > 0; `None` does not clip.
        value_weight: c_v ≥ 0 of `ActorCritic`.
        entropy_weight: c_H ≥ 0 of `ActorCritic`; `None` for no bonus.
        standardize: Advantages with mean 0 and deviation 1 over the batch.

    Returns:
        An `ActorCritic`.

    Raises:
        ValueError: A number is out of its range.

    References:
        Schulman et al. (2017), arXiv:1707.06347, eqs. 7, 9 and 11.
    """
    advantage = Standardized(GAE(lambda_)) if standardize else GAE(lambda_)
    actor = PPO(advantage, discount=discount, clip=clip, gamma_t=False)
    return ActorCritic(actor, value, value_weight, entropy_weight)
