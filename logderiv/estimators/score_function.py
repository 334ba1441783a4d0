"""The score-function estimator, composed from importance, credit, baseline and surrogate."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import summable
from logderiv.estimators.base import Estimator
from logderiv.estimators.baselines import Baseline, CreditBatch, NoBaseline
from logderiv.estimators.credit import (
    GAE,
    credit_bias,
    discount_factors,
    generalized_advantages,
    reward_to_go,
    total_return,
)
from logderiv.estimators.declaration import Bias, biased, unit
from logderiv.estimators.importance import Importance, log_ratios
from logderiv.estimators.surrogates import score_surrogate, surrogate_bias
from logderiv.likelihood.factors import log_factors
from logderiv.likelihood.probability import weighted_log_prob
from logderiv.types import Stream, Trajectory, as_steps, flat_steps

Credit = Callable[[jax.Array, jax.Array], jax.Array]
Surrogate = Callable[[jax.Array, jax.Array], jax.Array]
ON_POLICY = "the batch was drawn with these parameters"
_NO_BASELINE = NoBaseline()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ScoreFunction(Estimator):
    """See `score_function`."""

    credit: Credit | GAE = reward_to_go
    baseline: Baseline = _NO_BASELINE
    discount: float = 1.0
    surrogate: Surrogate = score_surrogate
    importance: Importance | None = None
    gamma_t: bool = True

    def __post_init__(self) -> None:
        check_discount(self.discount)
        if isinstance(self.credit, GAE):
            check_state_values(self.baseline)

    @property
    def bias(self) -> Bias:
        """That of the four parts; a factor below 1 is only known on policy."""
        parts = credit_bias(self.credit) & self.baseline.bias & surrogate_bias(self.surrogate)
        if not self.gamma_t and self.discount < 1.0 and self.credit is not total_return:
            parts &= biased("gamma^t left out: the gradient of no objective")
        if self.importance is None:
            return parts & Bias(assumes=(ON_POLICY,))
        if parts.factor is not unit:
            parts = dataclasses.replace(parts, factor=None)
        return parts & self.importance.bias

    def init(self, params: Any) -> Any:
        """The baseline's first state."""
        return self.baseline.init(params)

    @property
    def accepts_streams(self) -> bool:
        """Whether it bootstraps from values of the state, on policy."""
        return isinstance(self.credit, GAE) and self.importance is None

    def weigh(self, params: Any, state: Any, policy: Any, trajectories: Trajectory | Stream) -> tuple[jax.Array, Any]:
        r"""$w_t = C_t - b_t$ with the credit $C$ of $\rho_{\le t} \gamma^t r_t$; 0 on invalid steps, shape `(N, T)`, of a stream `(E, T, 1)`."""
        weights, _, state = self.weights_and_targets(params, state, policy, trajectories)
        return weights, state

    def weights_and_targets(
        self, params: Any, state: Any, policy: Any, trajectories: Trajectory | Stream
    ) -> tuple[jax.Array, jax.Array, Any]:
        """As `weigh`, and between the two what a value of the state should predict, of the shape of the weights."""
        steps, shape = flat_steps(trajectories), as_steps(trajectories).valid.shape
        batch = self.credit_batch(params, state, policy, trajectories)
        weights = jnp.where(steps.valid, batch.credit - self.baseline.values(state, steps, batch), 0)
        state = self.baseline.update(state, steps, batch)
        return weights.reshape(shape), batch.targets.reshape(shape), state

    def credit_batch(self, params: Any, state: Any, policy: Any, trajectories: Trajectory | Stream) -> CreditBatch:
        r"""Credit of a batch: ratios and $\gamma^t$ enter the rewards before it. Shapes `(N, T)`, of a stream `(E T, 1)`."""
        steps = flat_steps(trajectories)
        valid = steps.valid
        rewards = jnp.where(valid, summable(steps.rewards), 0)
        discounts = jnp.where(valid, steps.discounts, 1).astype(rewards.dtype)
        step_ratios, ratios = (x.astype(rewards.dtype) for x in self._ratios(params, policy, steps))
        outside, inside = (self.discount, 1.0) if self.gamma_t else (1.0, self.discount)
        powers = _powers(outside, trajectories, rewards.dtype)
        scale = powers * ratios
        values = None
        if isinstance(self.credit, GAE):
            values, next_values = (v.astype(rewards.dtype) for v in state_values(self.baseline, state, steps))
            grid, lambdas = _grid(self.credit.lambda_, trajectories, rewards.dtype)

            def credit(scale: jax.Array, discounts: jax.Array, next_scale: jax.Array) -> jax.Array:
                arrays = (rewards * scale, discounts, values * scale, next_values * next_scale)
                advantages = jax.vmap(lambda *x: generalized_advantages(*x[:-1], lambda_=x[-1]))
                return advantages(*(x.reshape(grid) for x in arrays), lambdas).reshape(valid.shape)

            credits = values * scale + credit(scale, inside * discounts, outside * scale)
            targets = values + credit(step_ratios, self.discount * step_ratios * discounts, jnp.ones_like(scale))
        else:
            credits = jax.vmap(self.credit)(rewards * scale, inside * discounts)
            targets = jax.vmap(self.credit)(rewards * step_ratios, self.discount * step_ratios * discounts)
        credits, targets = jnp.where(valid, credits, 0), jnp.where(valid, targets, 0)
        return CreditBatch(credits, ratios, powers, targets, jax.lax.stop_gradient(params), policy, values)

    def objective(self, params: Any, policy: Any, trajectories: Trajectory, weights: jax.Array) -> jax.Array:
        """The surrogate of the log-factors and weights."""
        if self.surrogate is score_surrogate:
            return weighted_log_prob(params, policy, trajectories, weights) / math.prod(weights.shape[:-1])
        return self.surrogate(log_factors(params, policy, trajectories), weights)

    def check_steps(self) -> None:
        """Raise `ValueError` unless the surrogate is a sum over steps, which `step_terms` are."""
        if self.surrogate is not score_surrogate:
            raise ValueError("surrogate: expected score_surrogate, which is a sum of one term a step.")

    def step_terms(self, logs: jax.Array, behavior: jax.Array, weights: jax.Array) -> jax.Array:
        """What each step adds to the surrogate."""
        del behavior  # drawn with the same parameters
        return weights * logs

    def _ratios(self, params: Any, policy: Any, trajectories: Trajectory) -> tuple[jax.Array, jax.Array]:
        """Ratio of each step, and the weight of the choices up to it; ones on policy."""
        if self.importance is None:
            ones = jnp.ones(trajectories.valid.shape)
            return ones, ones
        logs = jax.lax.stop_gradient(log_ratios(params, policy, trajectories))
        return jnp.exp(logs), self.importance.ratios(logs)


def _powers(discount: float, trajectories: Trajectory | Stream, dtype: Any) -> jax.Array:
    r"""$\gamma^t$ with the step's time in its episode: `(1, T)`, of a stream `(E T, 1)`."""
    if isinstance(trajectories, Stream):
        return jnp.asarray(discount, dtype) ** trajectories.times.reshape(-1, 1).astype(dtype)
    return discount_factors(discount, trajectories.valid.shape[-1], dtype)[None]


def _grid(lambda_: float, trajectories: Trajectory | Stream, dtype: Any) -> tuple[tuple[int, ...], jax.Array]:
    r"""The shape whose last axis is time, and $\lambda$ on it: 0 where an episode of a stream ends."""
    if isinstance(trajectories, Stream):
        return trajectories.ends.shape, jnp.where(trajectories.ends, 0, jnp.asarray(lambda_, dtype))
    shape = trajectories.valid.shape
    return shape, jnp.full(shape, lambda_, dtype)


def score_function(
    *,
    credit: Credit | GAE = reward_to_go,
    baseline: Baseline | None = None,
    discount: float = 1.0,
    surrogate: Surrogate = score_surrogate,
    importance: Importance | None = None,
) -> ScoreFunction:
    r"""The score-function (REINFORCE, likelihood-ratio) estimator of the gradient of a discounted return.

    $\nabla \mathbb{E} \sum_t \gamma^t r_t \approx \tfrac1N \sum_n \sum_t (C_{n,t} - b_{n,t})\, \nabla\log\pi_\theta(a_{n,t}|s_{n,t})$

    with $C_t = \gamma^t G_t$ for `reward_to_go` and $C_t = G_0$ for `total_return`. $\gamma^t$ stays in the weights: this is the
    gradient of the discounted objective itself. Rewards are constants: a reward that depends on the parameters has a
    further term $\mathbb{E}[\nabla r]$ that is not covered.

    | credit | baseline | importance | name |
    |---|---|---|---|
    | `total_return` | | | REINFORCE |
    | `reward_to_go` | | | GPOMDP, policy gradient |
    | `total_return` | `baseline_leave_one_out(per="trajectory")` | | RLOO |
    | `gae(0)` | `baseline_learned_value(...)` | | one-step actor-critic |
    | `gae(lambda)` | `baseline_learned_value(...)` | | GAE |
    | `reward_to_go` | | `importance_per_decision()` | off-policy gradient, per decision |

    Off policy the ratio multiplies the rewards before credit, and the baseline.

    Args:
        credit: `(rewards (T,), discounts (T,)) -> (T,)`, or `gae(lambda_)`. One of your own declares itself by an attribute
            `bias`; without it the estimator is not called unbiased.
        baseline: From the `baseline_*` family; `None` for none.
        discount: $\gamma$ in [0, 1].
        surrogate: `score_surrogate` (order one), `dice_surrogate` (every order) or `loaded_dice(lambda_)`.
        importance: From the `importance_*` family; `None` where the trajectories are drawn with the same parameters.

    Returns:
        An `Estimator`, hashable and equal to one built from the same parts.

    Raises:
        ValueError: `discount` outside [0, 1]; `gae` without a baseline that has values of the state.

    References:
        Williams (1992), Machine Learning 8; Sutton et al. (1999), "Policy gradient methods", theorem 1.
    """
    return ScoreFunction(credit, _NO_BASELINE if baseline is None else baseline, discount, surrogate, importance)


def score_function_without_gamma_t(
    *,
    credit: Credit | GAE = reward_to_go,
    baseline: Baseline | None = None,
    discount: float = 1.0,
    surrogate: Surrogate = score_surrogate,
    importance: Importance | None = None,
) -> ScoreFunction:
    r"""As `score_function`, with $G_t$ in the place of $\gamma^t G_t$, as nearly all published code does. Biased for $\gamma < 1$.

    $\tfrac1N \sum_n \sum_t (G_{n,t} - b_{n,t})\, \nabla\log\pi_\theta(a_{n,t}|s_{n,t})$ discounts inside the return and not outside. Late steps keep their
    weight, which can help; but it is not the gradient of the discounted objective, nor of any other. With `total_return` there is
    no $\gamma^t$ to leave out and nothing changes.

    Args:
        credit: As `score_function`, like all others.
        baseline: Likewise.
        discount: Likewise.
        surrogate: Likewise.
        importance: Likewise.

    References:
        Thomas (2014), "Bias in natural actor-critic algorithms"; Nota & Thomas (2020), arXiv:1906.07073.
    """
    return ScoreFunction(
        credit, _NO_BASELINE if baseline is None else baseline, discount, surrogate, importance, gamma_t=False
    )


def check_discount(discount: float) -> None:
    """Raise `ValueError` outside [0, 1]."""
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount: expected a number in [0, 1], received {discount}.")


def check_state_values(baseline: Any) -> None:
    """Raise `ValueError` unless the baseline, or the one inside it, has values of the state."""
    inner = getattr(baseline, "baseline", baseline)
    if not hasattr(inner, "state_values"):
        raise ValueError(
            "baseline: this credit bootstraps from values of the state; expected baseline_value, baseline_learned_value or "
            f"baseline_shared_value, received {type(inner).__name__}."
        )


def state_values(baseline: Any, state: Any, trajectories: Trajectory) -> tuple[jax.Array, jax.Array]:
    """The baseline's values of the states and of the next ones, held; 0 on invalid steps."""
    return jax.lax.stop_gradient(baseline.state_values(state, trajectories))
