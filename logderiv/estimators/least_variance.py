"""Baselines of least variance, one for all parameters or one for each, from scores, fitted on other trajectories than they are used on.

With h_n = Σ_t C_{n,t} s_{n,t} the weighted score of a trajectory and d_n = Σ_t ρ_{n,t} s_{n,t} what the baseline multiplies, the
variance of h − b d is least at b* = E⟨h, d⟩ / E|d|², per parameter b*_i = E[h_i d_i] / E[d_i²]. With the total return on policy,
h = G d and this is the textbook form.

Estimated from the trajectories that it is used on, it depends on their choices, which is a bias of order 1/N. *Cross-fitting*
takes it from the other folds and leaves the estimate exactly unbiased.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from logderiv._core import check
from logderiv._core.pytrees import pytree
from logderiv.estimators.advantages import Advantage, ToGo
from logderiv.estimators.base import keep_finite
from logderiv.estimators.baselines import Baseline
from logderiv.estimators.batch import Batch, prepare
from logderiv.estimators.declaration import Declaration, Structure, biased
from logderiv.estimators.importance import Importance
from logderiv.estimators.policy_gradient import Weighting
from logderiv.estimators.returns import times_exp
from logderiv.likelihood.probability import log_factors, weighted_log_prob
from logderiv.types import Params, Policy, State, Trajectories, Trajectory

_LARGEST = 1e30  # a logarithm of a ratio beyond this one is cut to it
_TOGETHER = 16  # trajectories whose scores are in memory at a time


@pytree(static=("folds", "in_sample"))
class Optimal(Baseline):
    """The constant of least variance, cross-fitted: each fold uses b* = Σ⟨h, d⟩ / Σ|d|² of the others.

    Exactly unbiased at every order, at the cost of two more gradients per trajectory (a few in memory at a time). Trajectory n is
    in fold n mod `folds`, so the estimate depends on their order. Where the others have seen no score, b = 0.

    Unbiased does not mean small: with a few trajectories in a fold the denominator can be close to 0 and the variance above that
    of no baseline at all. `logderiv.diagnostics` tells.

    Attributes:
        folds: At least 2, and at most the number of trajectories.
        in_sample: Fit it to the very trajectories it is used on, in one fold: biased by order 1/N, as published.

    Raises:
        ValueError: Fewer than two folds.

    References:
        Greensmith, Bartlett & Baxter (2004), JMLR 5, section 4; Peters & Schaal (2008), Neural Networks 21, section 3.2, for the
        form per parameter (`logderiv.estimators.OptimalPerParameter`). Neither is cross-fitted.
    """

    folds: int = 2
    in_sample: bool = False

    def __post_init__(self) -> None:
        hint = "fitted on its own fold a baseline is biased, and is named in_sample=True"
        check.whole(at_least=2, hint=hint, folds=self.folds)

    @property
    def num_folds(self) -> int:
        """How many there are: a single one in sample."""
        return 1 if self.in_sample else self.folds

    @property
    def structure(self) -> Structure:
        """A trajectory in each fold."""
        return Structure(2 if self.in_sample else self.folds, degree=None, symmetric=self.in_sample)

    @property
    def declaration(self) -> Declaration:
        """Unbiased at every order if what is fitted for a fold comes from the others."""
        return biased("optimal baseline fitted to the own sample") if self.in_sample else Declaration()

    def values(self, state: State, credit: jax.Array, batch: Batch) -> jax.Array:
        del state
        moments = leave_fold_out(fold_moments(credit, batch, self.num_folds))
        optima = [m.optimum()(*(jnp.asarray(optax.tree.sum(x)) for x in m[:2])) for m in moments]
        fold = jnp.arange(credit.shape[0]) % self.num_folds
        return jnp.broadcast_to(jnp.stack(optima)[fold][:, None].astype(credit.dtype), credit.shape)


@pytree(static=("folds", "in_sample", "gamma_t"))
class OptimalPerParameter(Weighting):
    """The score-function estimator minus the baseline of least variance for each parameter i, cross-fitted.

        g_i = 1/N Σ_n (h_{n,i} − b_{i,k(n)} d_{n,i}),  h_n = Σ_t w_{n,t} s_{n,t},  d_n = Σ_t ρ_{n,t} s_{n,t}
        b_{i,k} = Σ h_i d_i / Σ d_i²  over all folds but k

    Exactly unbiased; order one only. Trajectory n is in fold k(n) = n mod `folds`. Costs two more gradients per trajectory, a few
    in memory at a time. Where the others have seen no score of a parameter, its baseline is 0. Weights are
    `(weights (N, T), ratios (N, T), baselines)`, the last a pytree of `params` for each fold; off policy the ratios are those
    to the largest ratio of the fold, by which its baselines are multiplied.

    Attributes:
        advantage: What decides the weights w; `advantages.ToGo()` or `Return()`, without a baseline of its own.
        discount: γ in [0, 1].
        folds: At least 2, and at most the number of trajectories.
        in_sample: Fit it to the very trajectories it is used on, in one fold, as published: biased by order 1/N. With one
            trajectory and the whole return it would be identically zero; it raises below two.
        importance: Weights of off-policy steps; `None` where the trajectories are drawn with the same parameters.
        gamma_t: Whether γ^t stays in the weights.

    Raises:
        ValueError: Fewer than two folds; `discount` is outside [0, 1]; an advantage whose weights depend on other trajectories.
        TypeError: `advantage` is none.

    References:
        Peters & Schaal (2008), Neural Networks 21, section 3.2, which fits it to the own sample.
    """

    advantage: Advantage = ToGo()
    discount: float = 1.0
    folds: int = 2
    in_sample: bool = False
    importance: Importance | None = None
    gamma_t: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.fit  # which checks the folds
        if self.advantage.structure.degree != 1:
            raise ValueError(
                f"advantage: expected one whose weights depend on their own trajectory alone, such as ToGo() or Return(), received {self.advantage}; "
                "a baseline of the batch would bring each trajectory into the folds that its own is fitted to."
            )

    @property
    def fit(self) -> Optimal:
        """The same fit of one number for all parameters."""
        return Optimal(self.folds, self.in_sample)

    @property
    def structure(self) -> Structure:
        """A trajectory in each fold."""
        return super().structure._replace(streams=False) & self.fit.structure

    @property
    def declaration(self) -> Declaration:
        """Unbiased at order one if each fold's baseline comes from the others."""
        return super().declaration & Declaration(order=1) & self.fit.declaration

    def advantages(self, params: Params, state: State, policy: Policy, trajectories: Trajectories) -> tuple[Any, State]:
        batch, folds = prepare(self, params, policy, trajectories), self.fit.num_folds
        weights, _, new = self.advantage(params, state, batch)
        weights, state, _ = keep_finite(state, weights, new)
        ratios, baselines = jnp.zeros_like(weights), []
        for k, m in enumerate(leave_fold_out(fold_moments(weights, batch, folds))):
            own, log = _relative_ratios(batch, k, folds)
            ratios = ratios.at[k::folds].set(own)
            baselines.append(jax.tree.map(m.optimum(log), m.cross, m.square))
        return (weights, ratios, baselines), state

    def objective(self, params: Params, policy: Policy, trajectories: Trajectory, weights: Any) -> jax.Array:
        # Minus the control variate: log P of each fold at θ₀ + b (θ − θ₀), whose gradient is b ⊙ ∇log P.
        weights, ratios, baselines = jax.lax.stop_gradient(weights)
        total = weighted_log_prob(params, policy, trajectories, weights)
        for k, baseline in enumerate(baselines):
            check.like(f"weights[2][{k}]", baseline, params, hint="a baseline for each parameter")
            fold, fold_ratios = jax.tree.map(lambda x, k=k: x[k :: len(baselines)], (trajectories, ratios))
            total = total - weighted_log_prob(_scaled_around(params, baseline), policy, fold, fold_ratios)
        return total / trajectories.valid.shape[0]


class ScoreMoments(NamedTuple):
    """Sums over trajectories of products of scores; the baseline of least variance is `cross / square * exp(-log)`.

    Attributes:
        cross: Σ_n h_n ⊙ d_n, divided by exp(`log`). Pytree of `params`.
        square: Σ_n d_n ⊙ d_n, divided by its square, likewise.
        log: Logarithm of the largest ratio, 0 on policy: squares of ratios overflow early. Shape `()`.
    """

    cross: Params
    square: Params
    log: jax.Array

    def optimum(self, log: Any = 0.0) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """The baseline times exp(`log`), from two entries.

        Args:
            log: A number.

        Returns:
            A function of entries of `cross` and of `square`.
        """
        return lambda cross, square: times_exp(ratio(cross, square), (log - self.log).astype(cross.dtype))

    def relative_to(self, log: jax.Array) -> "ScoreMoments":
        """The same sums, divided by exp(`log`) in the place of exp(`self.log`).

        Args:
            log: Of a ratio, at least `self.log`.

        Returns:
            The sums.
        """

        def times(tree: Params, factor: jax.Array) -> Params:
            return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)

        shrink = jnp.exp(self.log - log)
        return ScoreMoments(times(self.cross, shrink), times(self.square, jnp.square(shrink)), log)


def fold_moments(credit: jax.Array, batch: Batch, folds: int) -> list[ScoreMoments]:
    """The moments of each fold.

    Args:
        credit: Shape `(N, T)`.
        batch: The batch.
        folds: Their number; trajectory n is in fold n mod `folds`.

    Returns:
        As many.
    """
    found = []
    for k in range(folds):
        steps, own = jax.tree.map(lambda x, k=k: x[k::folds], (batch.steps, credit))
        ratios, log = _relative_ratios(batch, k, folds)
        found.append(ScoreMoments(*_score_moments(batch, steps, own, ratios), log))
    return found


def leave_fold_out(moments: list[ScoreMoments]) -> list[ScoreMoments]:
    """For each fold the sum over the others; of a single fold, itself.

    Args:
        moments: Of each fold.

    Returns:
        As many sums.
    """
    if len(moments) == 1:
        return moments
    return [_sum([m for j, m in enumerate(moments) if j != k]) for k in range(len(moments))]


def ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """The quotient, and 0 where nothing was seen: a denominator of exactly 0. NaN stays.

    Args:
        numerator: Any shape.
        denominator: Same shape.

    Returns:
        Same shape.
    """
    unseen = denominator == 0
    return jnp.where(unseen, 0, numerator / jnp.where(unseen, 1, denominator))


def _sum(moments: list[ScoreMoments]) -> ScoreMoments:
    log = jnp.max(jnp.stack([m.log for m in moments]))
    total = jax.tree.map(lambda *x: sum(x[1:], x[0]), *(m.relative_to(log) for m in moments))
    return total._replace(log=log)


def _relative_ratios(batch: Batch, k: int, folds: int) -> tuple[jax.Array, jax.Array]:
    """The ratios of a fold, divided by the largest of them, and its logarithm."""
    if batch.log_ratios is None:
        return jnp.ones_like(batch.rewards[k::folds]), jnp.zeros((), batch.rewards.dtype)
    logs = batch.log_ratios[k::folds]
    largest = jnp.max(jnp.clip(logs, -_LARGEST, _LARGEST))  # finite, even where all ratios are 0 or infinite
    return jnp.exp(logs - largest), largest


def _score_moments(batch: Batch, steps: Trajectory, credit: jax.Array, ratios: jax.Array) -> tuple[Params, Params]:
    """Sums of `h * d` and `d * d`, a few trajectories at a time; never one score per trajectory of the batch."""
    num = credit.shape[0]
    together = max(k for k in range(1, min(num, _TOGETHER) + 1) if num % k == 0)

    def of_one(trajectory: Trajectory, credit: jax.Array, ratios: jax.Array) -> tuple[Params, Params]:
        logs, pullback = jax.vjp(lambda p: log_factors(p, batch.policy, trajectory), batch.params)
        weighted, plain = (pullback(w.astype(logs.dtype))[0] for w in (credit, ratios))
        return jax.tree.map(jnp.multiply, weighted, plain), jax.tree.map(jnp.square, plain)

    def add(sums: Any, xs: Any) -> tuple[Any, None]:
        terms = jax.vmap(of_one)(*xs)
        return jax.tree.map(lambda s, x: s + jnp.sum(x, axis=0), sums, terms), None

    zeros = jax.tree.map(jnp.zeros_like, (batch.params, batch.params))
    rows = jax.tree.map(lambda x: x.reshape((together, num // together, *x.shape[1:])), (steps, credit, ratios))
    return jax.lax.scan(add, zeros, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), rows))[0]


def _scaled_around(params: Params, scale: Params) -> Params:
    """The same parameters, with a derivative of `scale` instead of 1."""
    fixed = jax.lax.stop_gradient(params)
    return jax.tree.map(lambda p, there, s: there + s.astype(p.dtype) * (p - there), params, fixed, scale)
