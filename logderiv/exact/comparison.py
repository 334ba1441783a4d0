"""The identity under an expectation: three routes to the gradient of E[R]."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import as_key, check_params, expand, wide
from logderiv._core.products import precision_of
from logderiv._core.pytrees import jit
from logderiv._core.tables import table
from logderiv.exact.dynamic import evaluate
from logderiv.exact.enumeration import Listing, list_trajectories, returns
from logderiv.likelihood.probability import log_prob, prob
from logderiv.sampling.episodes import rollout
from logderiv.types import Key, Params, Trajectory


class ExpectationComparison(NamedTuple):
    """Three routes to ∇ sum_τ P(τ|θ) R(τ); pytrees of `params`. Print it.

    Attributes:
        num_trajectories: How many trajectories exist.
        value: E[R].
        direct: The sum over all trajectories, its products differentiated directly.
        score: sum_τ P(τ) R(τ) ∇log P(τ), summed exactly.
        sampled: Mean of R ∇log P over sampled trajectories: P is never multiplied out.
        sem: Standard error of `sampled`.
    """

    num_trajectories: int
    value: jax.Array
    direct: Any
    score: Any
    sampled: Any
    sem: Any

    def __str__(self) -> str:
        columns = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in self[2:])
        with np.errstate(divide="ignore", invalid="ignore"):
            entries = list(zip(*columns, strict=True))
            rows = [(d, s, s - d, m, e, np.float64(m - d) / e if m != d else 0.0) for d, s, m, e in entries]
        names = ("direct", "score, exact", "difference", "sampled", "std. error", "z")
        head = f"grad E[R] over {self.num_trajectories} trajectories, E[R] = {float(self.value):.6g}\n"
        return head + table(names, ">14.8f >14.8f >12.1e >12.5f >12.5f >7.2f", rows)


def compare_expectation(
    params: Params,
    key: Key,
    policy: Any,
    environment: Any,
    *,
    horizon: int,
    num_samples: int = 10000,
    discount: Any = 1.0,
) -> ExpectationComparison:
    """The gradient of E[R] by direct differentiation, by the score summed exactly, and by sampling.

    The first multiplies out every P. The second still weighs by P. The third does not contain P at all: drawing the
    trajectories supplies that weight.

    Args:
        params: Parameters of the policy, floating point.
        key: For the samples; consumed.
        policy: The policy.
        environment: What `enumerate_trajectories` takes.
        horizon: `T`.
        num_samples: Number of sampled trajectories, at least 2.
        discount: γ of the return, in [0, 1].

    Returns:
        An `ExpectationComparison`.

    Raises:
        ValueError: Too many trajectories to enumerate; `horizon`, `num_samples` or `discount` out of range.
        TypeError: A parameter is not floating point; an environment that cannot be enumerated.
    """
    horizon, num_samples = check.whole(horizon=horizon), check.whole(at_least=2, num_samples=num_samples)
    check.fraction(discount=discount)
    check_params(params)
    every = list_trajectories(environment, horizon)
    routes = _routes(params, as_key(key), policy, environment, every, horizon, num_samples, discount)
    return ExpectationComparison(len(every.weights), *routes)


@jit
def _routes(
    params: Params, key: Key, policy: Any, environment: Any, every: Listing, horizon: int, num: int, discount: Any
) -> Any:
    params = wide(params)

    def scores(trajectories: Trajectory) -> Params:
        return jax.vmap(jax.grad(log_prob), (None, None, 0))(params, policy, trajectories)

    value, direct = jax.value_and_grad(evaluate)(params, policy, every, horizon, discount)
    probabilities = prob(params, policy, every.trajectories)
    weights = probabilities * (every.weights * returns(every.trajectories, discount)).astype(probabilities.dtype)
    exact = jax.tree.map(
        lambda s: jnp.tensordot(weights, s, axes=1, precision=precision_of()), scores(every.trajectories)
    )

    taus = rollout(params, jax.random.split(key, num), policy, environment, horizon=horizon)
    terms = jax.tree.map(lambda s: expand(returns(taus, discount), s) * s, scores(taus))
    mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), terms)
    sem = jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=1) / jnp.sqrt(x.shape[0]).astype(x.dtype), terms)
    return value, direct, exact, mean, sem
