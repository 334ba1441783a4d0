"""Estimators under their published names, composed of the library's parts."""

import jax

from logderiv._core.pytrees import pytree
from logderiv.estimators.advantages import Grouped, Return, Standardized
from logderiv.estimators.base import Estimator
from logderiv.estimators.baselines import BatchMean, LeaveOneOut
from logderiv.estimators.bootstrapped import GAE
from logderiv.estimators.declaration import Declaration, Structure
from logderiv.estimators.joint import ActorCritic, ValueFunction
from logderiv.estimators.policy_gradient import PPO, ScoreFunction
from logderiv.estimators.surrogates import Normalizer
from logderiv.types import Params, Policy, State, Stream, Trajectory


class Recipe(Estimator):
    """Base of estimators that are another one under its published name; `composition`, which they override, says which."""

    def __post_init__(self) -> None:
        _ = self.composition  # which checks the fields

    @property
    def structure(self) -> Structure:
        """That of the composition."""
        return self.composition.structure

    @property
    def declaration(self) -> Declaration:
        """That of the composition."""
        return self.composition.declaration

    def init(self, params: Params) -> State:
        return self.composition.init(params)

    def advantages(
        self, params: Params, state: State, policy: Policy, trajectories: Trajectory | Stream
    ) -> tuple[State, State]:
        return self.composition.advantages(params, state, policy, trajectories)

    def objective(self, params: Params, policy: Policy, trajectories: Trajectory, weights: State) -> jax.Array:
        return self.composition.objective(params, policy, trajectories, weights)


@pytree(static=("group_size",))
class RLOO(Recipe):
    """REINFORCE with the mean return of the others in the group as baseline.

        1/N Σ_n (R_n − mean of the others' R) ∇log P(τ_n)

    Unbiased at order one. The group-relative objective to start from.

    Attributes:
        group_size: Consecutive trajectories that belong together (answers to one prompt); `None` for the whole batch.
        discount: γ in [0, 1].

    Raises:
        ValueError: Groups of fewer than two; `discount` is outside [0, 1].

    References:
        Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. (2024),
        arXiv:2402.14740.
    """

    group_size: int | None = None
    discount: float = 1.0

    @property
    def composition(self) -> ScoreFunction:
        """The estimator that it is."""
        others = Return(LeaveOneOut(per="trajectory"))
        return ScoreFunction(others if self.group_size is None else Grouped(others, self.group_size), self.discount)


@pytree(static=("group_size", "normalizer", "ddof"))
class GRPO(Recipe):
    """Group-relative policy optimization: returns standardized within the group, clipped, each trajectory divided by its length.

    Biased twice: by the group's mean and deviation, which contain the own sample, and by the random length. The KL penalty of
    the paper is not included: subtract it from the rewards. `Grouped(Return(LeaveOneOut(per="trajectory")), group_size)` is an
    unbiased advantage.

    Attributes:
        group_size: Consecutive trajectories that belong together, at least 2.
        discount: γ in [0, 1].
        clip: ε > 0; `None` does not clip.
        normalizer: "per_step_of_trajectory" as published; "per_step_of_batch" is DAPO's.
        ddof: 1 for the sample deviation, 0 for the population's.
        epsilon: Added to the deviation.

    Raises:
        ValueError: Groups of fewer than two; `discount` is outside [0, 1]; `clip` is not positive; an unknown normalizer.

    References:
        Shao et al. (2024), arXiv:2402.03300, section 4.1; Yu et al. (2025), arXiv:2503.14476, for the normalizer per step of the
        batch.
    """

    group_size: int
    discount: float = 1.0
    clip: float | None = 0.2
    normalizer: Normalizer = "per_step_of_trajectory"
    ddof: int = 1
    epsilon: float = 1e-4

    @property
    def composition(self) -> PPO:
        """The estimator that it is."""
        standardized = Standardized(Return(), "trajectory", self.ddof, self.epsilon)
        return PPO(Grouped(standardized, self.group_size), self.discount, self.clip, self.normalizer)


@pytree(static=("group_size",))
class DrGRPO(Recipe):
    """GRPO "done right": the group's mean is subtracted, nothing is divided.

    The own sample is still in the mean, so the first gradient is exactly 1 − 1/G times that of `RLOO` in groups of G: the right
    direction.

    Attributes:
        group_size: Consecutive trajectories that belong together, at least 2.
        discount: γ in [0, 1].
        clip: ε > 0; `None` does not clip.

    Raises:
        ValueError: Groups of fewer than two; `discount` is outside [0, 1]; `clip` is not positive.

    References:
        Liu et al. (2025), arXiv:2503.20783, section 3.2.
    """

    group_size: int
    discount: float = 1.0
    clip: float | None = 0.2

    @property
    def composition(self) -> PPO:
        """The estimator that it is."""
        return PPO(Grouped(Return(BatchMean()), self.group_size), self.discount, self.clip)


@pytree(static=("value",))
class A2C(Recipe):
    """Advantage actor-critic as nearly everyone runs it: λ-returns minus the value, γ^t left out, value loss and entropy bonus.

    Attributes:
        value: `(params, observation) -> scalar`, with all of the policy's `params`.
        discount: γ in [0, 1].
        lambda_: λ of `advantages.GAE`, in [0, 1].
        value_weight: c_v ≥ 0 of `ActorCritic`.
        entropy_weight: c_H ≥ 0 of `ActorCritic`; `None` for no bonus.

    Raises:
        ValueError: A number is out of its range.

    References:
        Mnih et al. (2016), arXiv:1602.01783, section 4.
    """

    value: ValueFunction
    discount: float = 0.99
    lambda_: float = 1.0
    value_weight: float = 0.5
    entropy_weight: float | None = 0.01

    @property
    def composition(self) -> ActorCritic:
        """The estimator that it is."""
        actor = ScoreFunction(GAE(self.lambda_), discount=self.discount, gamma_t=False)
        return ActorCritic(actor, self.value, self.value_weight, self.entropy_weight)


@pytree(static=("value", "standardize"))
class PPOActorCritic(Recipe):
    """PPO as nearly everyone runs it: GAE, standardized, γ^t left out, clipped, value loss, entropy bonus.

    Give `logderiv.train` the epochs and minibatches. Biased in ways that `declaration` lists; `PPO` is the clipped surrogate
    alone.

    Attributes:
        value: `(params, observation) -> scalar`, with all of the policy's `params`.
        discount: γ in [0, 1].
        lambda_: λ of `advantages.GAE`, in [0, 1].
        clip: ε > 0.
        value_weight: c_v ≥ 0 of `ActorCritic`.
        entropy_weight: c_H ≥ 0 of `ActorCritic`; `None` for no bonus.
        standardize: Advantages with mean 0 and deviation 1 over the batch.

    Raises:
        ValueError: A number is out of its range.

    References:
        Schulman et al. (2017), arXiv:1707.06347, eqs. 7, 9 and 11.
    """

    value: ValueFunction
    discount: float = 0.99
    lambda_: float = 0.95
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float | None = 0.01
    standardize: bool = True

    @property
    def composition(self) -> ActorCritic:
        """The estimator that it is."""
        advantage = Standardized(GAE(self.lambda_)) if self.standardize else GAE(self.lambda_)
        actor = PPO(advantage, discount=self.discount, clip=self.clip, gamma_t=False)
        return ActorCritic(actor, self.value, self.value_weight, self.entropy_weight)
