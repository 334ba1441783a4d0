"""The score-function estimator with a baseline of least variance for every parameter of its own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv.estimators.base import Estimator
from logderiv.estimators.baselines.base import CreditBatch
from logderiv.estimators.baselines.optimal import check_folds, fold_moments, leave_fold_out, ratio
from logderiv.estimators.credit import reward_to_go
from logderiv.estimators.declaration import Bias, biased
from logderiv.estimators.importance import Importance
from logderiv.estimators.score_function import Credit, ScoreFunction
from logderiv.likelihood.factors import log_factors
from logderiv.types import Trajectory


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class OptimalPerParameter(Estimator):
    """See `optimal_per_parameter`."""

    weigher: ScoreFunction
    folds: int = 2

    @property
    def discount(self) -> float:
        r"""$\gamma$ of the objective."""
        return self.weigher.discount

    @property
    def bias(self) -> Bias:
        """Unbiased at order one if cross-fitted."""
        if self.folds == 1:
            own = biased("optimal baseline fitted to the own sample", min_trajectories=2, degree=None)
        else:
            own = Bias(min_trajectories=self.folds, degree=None, symmetric=False)
        return self.weigher.bias & own

    def weigh(self, params: Any, state: Any, policy: Any, trajectories: Trajectory) -> tuple[Any, Any]:
        """`(credit (N, T), ratios (N, T), baselines)`, the last a pytree of `params` for each fold."""
        batch: CreditBatch = self.weigher.credit_batch(params, (), policy, trajectories)
        moments = leave_fold_out(fold_moments(trajectories, batch, self.folds))
        baselines = [jax.tree.map(ratio, *pair) for pair in moments]
        return (batch.credit, batch.ratios, baselines), state

    def objective(self, params: Any, policy: Any, trajectories: Trajectory, weights: Any) -> jax.Array:
        r"""$\sum w\, \ell(\theta)$ minus the control variate: $\log P$ of each fold at $\bot\theta + b \odot (\theta - \bot\theta)$.

        The latter's gradient is $b \odot \nabla\log P$.
        """
        credit, ratios, baselines = jax.lax.stop_gradient(weights)
        logs = log_factors(params, policy, trajectories)
        total = jnp.sum(credit.astype(logs.dtype) * logs)
        for k, baseline in enumerate(baselines):
            fold, fold_ratios = jax.tree.map(lambda x, k=k: x[k :: self.folds], (trajectories, ratios))
            logs = log_factors(_scaled_around(params, baseline), policy, fold)
            total = total - jnp.sum(fold_ratios.astype(logs.dtype) * logs)
        return total / trajectories.valid.shape[0]


def _scaled_around(params: Any, scale: Any) -> Any:
    """The same parameters, with a derivative of `scale` instead of 1."""

    def leaf(p: jax.Array, s: jax.Array) -> jax.Array:
        held = jax.lax.stop_gradient(p)
        return held + s.astype(p.dtype) * (p - held)

    return jax.tree.map(leaf, params, scale)


def optimal_per_parameter(
    *, credit: Credit = reward_to_go, discount: float = 1.0, folds: int = 2, importance: Importance | None = None
) -> OptimalPerParameter:
    r"""The score-function estimator minus the baseline of least variance for each parameter, cross-fitted.

    $g_i = \tfrac1N \sum_n (h_{n,i} - b_{i,k(n)}\, d_{n,i})$ with $h_n = \sum_t C_{n,t} s_{n,t}$, $d_n = \sum_t \rho_{n,t} s_{n,t}$ and
    $b_{i,k} = \sum h_i d_i / \sum d_i^2$ over all folds but `k`. Exactly unbiased; order one only.

    Trajectory `n` is in fold `n mod folds`. Costs two more gradients per trajectory, a few held at a time. Where the others have
    seen no score of a parameter, its baseline is 0.

    Args:
        credit: `(rewards, discounts) -> (T,)`.
        discount: $\gamma$ in [0, 1].
        folds: At least 2, and at most the number of trajectories.
        importance: As in `score_function`.

    Raises:
        ValueError: Fewer than two folds; `discount` outside [0, 1].

    References:
        Peters & Schaal (2008), Neural Networks 21, section 3.2, which fits it to the own sample.
    """
    check_folds(folds)
    return OptimalPerParameter(ScoreFunction(credit, discount=discount, importance=importance), folds)


def optimal_per_parameter_biased_in_sample(
    *, credit: Credit = reward_to_go, discount: float = 1.0, importance: Importance | None = None
) -> OptimalPerParameter:
    r"""As `optimal_per_parameter`, fitted to the very trajectories it is used on, as published. Biased by order 1/N.

    With one trajectory and `total_return` it would be identically zero; it raises below two.

    Args:
        credit: As `optimal_per_parameter`, like all others.
        discount: Likewise.
        importance: Likewise.

    References:
        Peters & Schaal (2008), Neural Networks 21, section 3.2.
    """
    return OptimalPerParameter(ScoreFunction(credit, discount=discount, importance=importance), folds=1)
