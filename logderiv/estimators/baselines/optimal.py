r"""Baselines of least variance, from scores, fitted on other trajectories than they are used on.

With $h_n = \sum_t C_{n,t} s_{n,t}$ the weighted score of a trajectory and $d_n = \sum_t \rho_{n,t} s_{n,t}$ what the baseline multiplies, the
variance of $h - b\, d$ is least at $b^* = \mathbb{E}\langle h, d\rangle / \mathbb{E}|d|^2$, per parameter $b_i^* = \mathbb{E}[h_i d_i] / \mathbb{E}[d_i^2]$. With the total
return on policy, $h = G\, d$ and this is the textbook form.

Estimated from the trajectories that it is used on, it depends on their choices, which is a bias of order 1/N. *Cross-fitting*
takes it from the other folds and leaves the estimate exactly unbiased.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from logderiv.estimators.baselines.base import CreditBatch, Stateless
from logderiv.estimators.declaration import Bias
from logderiv.likelihood.factors import log_factors
from logderiv.types import Trajectory

_TOGETHER = 16  # trajectories whose scores are held at a time


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Optimal(Stateless):
    """See `baseline_optimal`."""

    folds: int = 2

    def __post_init__(self) -> None:
        check_folds(self.folds)

    @property
    def bias(self) -> Bias:
        """Unbiased at every order: each fold's number comes from the others."""
        return Bias(min_trajectories=self.folds, degree=None, symmetric=False)

    def values(self, state: Any, trajectories: Trajectory, batch: CreditBatch) -> jax.Array:
        """The other folds' optimum, times the own ratio."""
        del state
        moments = fold_moments(trajectories, batch, self.folds)
        optima = [ratio(*(_total(tree) for tree in pair)) for pair in leave_fold_out(moments)]
        fold = jnp.arange(trajectories.valid.shape[0]) % self.folds
        return batch.ratios * jnp.stack(optima)[fold][:, None].astype(batch.ratios.dtype)


def fold_moments(trajectories: Trajectory, batch: CreditBatch, folds: int) -> list[tuple[Any, Any]]:
    r"""$(\sum_n h_n \odot d_n, \sum_n d_n \odot d_n)$ over each fold, pytrees of `params`. Trajectory `n` is in fold `n % folds`."""

    def moments(k: int) -> tuple[Any, Any]:
        fold = jax.tree.map(lambda x: x[k::folds], (trajectories, batch.credit, batch.ratios))
        return _score_moments(fold[0], fold[1], fold[2], batch)

    return [moments(k) for k in range(folds)]


def leave_fold_out(moments: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """For each fold the sum over the others; of a single fold, itself."""
    if len(moments) == 1:
        return moments
    others = [[m for j, m in enumerate(moments) if j != k] for k in range(len(moments))]
    return [jax.tree.map(lambda *x: sum(x[1:], x[0]), *rest) for rest in others]


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient, and 0 where nothing was seen: a denominator of exactly 0. NaN stays."""
    unseen = denominator == 0
    return jnp.where(unseen, 0, numerator / jnp.where(unseen, 1, denominator))


def check_folds(folds: int) -> None:
    """Raise `ValueError` for fewer than two folds."""
    if not isinstance(folds, int) or folds < 2:
        raise ValueError(
            f"folds: expected a whole number >= 2, received {folds!r}; fitted on its own fold a baseline is biased."
        )


def _score_moments(
    trajectories: Trajectory, credit: jax.Array, ratios: jax.Array, batch: CreditBatch
) -> tuple[Any, Any]:
    """Sums of `h * d` and `d * d`, a few trajectories at a time; never one score per trajectory of the batch."""
    num = credit.shape[0]
    together = max(k for k in range(1, min(num, _TOGETHER) + 1) if num % k == 0)

    def one(trajectory: Trajectory, credit: jax.Array, ratios: jax.Array) -> tuple[Any, Any]:
        logs, pullback = jax.vjp(lambda p: log_factors(p, batch.policy, trajectory), batch.params)
        weighted, plain = (pullback(w.astype(logs.dtype))[0] for w in (credit, ratios))
        return jax.tree.map(jnp.multiply, weighted, plain), jax.tree.map(jnp.square, plain)

    def add(sums: Any, xs: Any) -> tuple[Any, None]:
        terms = jax.vmap(one)(*xs)
        return jax.tree.map(lambda s, x: s + jnp.sum(x, axis=0), sums, terms), None

    def turns(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape((together, num // together, *x.shape[1:])), 1, 0)

    zeros = jax.tree.map(jnp.zeros_like, (batch.params, batch.params))
    return jax.lax.scan(add, zeros, jax.tree.map(turns, (trajectories, credit, ratios)))[0]


def _total(tree: Any) -> jax.Array:
    leaves = [jnp.sum(x) for x in jax.tree.leaves(tree)]
    return sum(leaves[1:], leaves[0])


def baseline_optimal(*, folds: int = 2) -> Optimal:
    r"""The constant of least variance, cross-fitted: each fold uses $b^* = \sum \langle h, d\rangle / \sum |d|^2$ of the others.

    Exactly unbiased at every order, at the cost of two more gradients per trajectory (a few held at a time). Trajectory `n`
    is in fold `n mod folds`, so the estimate depends on their order. Where the others have seen no score, $b = 0$.

    Unbiased does not mean small: with a few trajectories in a fold the denominator can be close to 0 and the variance above that
    of no baseline at all. `logderiv.diagnostics` tells.

    Args:
        folds: At least 2, and at most the number of trajectories.

    Raises:
        ValueError: Fewer than two folds.

    References:
        Greensmith, Bartlett & Baxter (2004), JMLR 5, section 4; Peters & Schaal (2008), Neural Networks 21, section 3.2, for
        the form per parameter (`logderiv.optimal_per_parameter`). Neither is cross-fitted.
    """
    return Optimal(folds)
