r"""The identity under an expectation: three routes to the gradient of $\mathbb{E}[R]$."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv.environments.tabular import TabularMDP
from logderiv.exact.enumeration import enumerate_trajectories, returns
from logderiv.likelihood.probability import log_prob, prob
from logderiv.sampling.episodes import rollout
from logderiv.types import Trajectory, check_params


class ExpectationComparison(NamedTuple):
    r"""Three routes to $\nabla \sum_\tau P(\tau|\theta) R(\tau)$; pytrees of `params`. Print it.

    Attributes:
        num_trajectories: How many trajectories exist.
        value: $\mathbb{E}[R]$.
        direct: The sum over all trajectories, its products differentiated directly.
        score: $\sum_\tau P(\tau) R(\tau) \nabla\log P(\tau)$, summed exactly.
        sampled: Mean of $R\, \nabla\log P$ over sampled trajectories: P is never multiplied out.
        sem: Standard error of `sampled`.
    """

    num_trajectories: int
    value: jax.Array
    direct: Any
    score: Any
    sampled: Any
    sem: Any

    def __str__(self) -> str:
        rows = zip(*(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in self[2:]), strict=True)
        head = f"grad E[R] over {self.num_trajectories} trajectories, E[R] = {float(self.value):.6g}\n"
        head += f"  {'direct':>14}{'score, exact':>14}{'difference':>12}{'sampled':>12}{'std. error':>12}{'z':>7}\n"
        return head + "\n".join(
            f"  {d:>14.8f}{s:>14.8f}{s - d:>12.1e}{m:>12.5f}{e:>12.5f}{(m - d) / e if e > 0 else 0.0:>7.2f}"
            for d, s, m, e in rows
        )


def compare_expectation(
    params: Any,
    key: jax.Array,
    policy: Any,
    mdp: TabularMDP,
    *,
    horizon: int,
    num_samples: int = 10_000,
    discount: float = 1.0,
) -> ExpectationComparison:
    r"""The gradient of $\mathbb{E}[R]$ by direct differentiation, by the score summed exactly, and by sampling.

    The first multiplies out every P. The second still weighs by P. The third does not contain P at all: drawing the
    trajectories supplies that weight.

    Args:
        params: Parameters of the policy, floating point.
        key: For the samples; consumed.
        policy: The policy.
        mdp: A decision process small enough to enumerate.
        horizon: `T`.
        num_samples: Number of sampled trajectories.
        discount: $\gamma$ of the return.

    Returns:
        An `ExpectationComparison`.

    Raises:
        ValueError: Too many trajectories to enumerate.
    """
    check_params(params)
    every = enumerate_trajectories(mdp, horizon=horizon)

    def expectation(params: Any) -> jax.Array:
        return jnp.sum(prob(params, policy, every, environment=mdp) * returns(every, discount))

    def scores(params: Any, trajectories: Trajectory) -> Any:
        return jax.vmap(jax.grad(log_prob), (None, None, 0))(params, policy, trajectories)

    def weighted(weights: jax.Array, tree: Any) -> Any:
        return jax.tree.map(lambda s: jnp.tensordot(weights, s, axes=1), tree)

    def mean_and_sem(params: Any, key: jax.Array) -> tuple[Any, Any]:
        taus = rollout(params, jax.random.split(key, num_samples), policy, mdp, horizon=horizon)
        rewards = returns(taus, discount)
        terms = jax.tree.map(lambda s: rewards.reshape((-1,) + (1,) * (s.ndim - 1)) * s, scores(params, taus))
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), terms)
        return mean, jax.tree.map(lambda x: jnp.std(x, axis=0, ddof=1) / jnp.sqrt(x.shape[0]).astype(x.dtype), terms)

    value, direct = jax.jit(jax.value_and_grad(expectation))(params)
    exact = jax.jit(
        lambda p: weighted(prob(p, policy, every, environment=mdp) * returns(every, discount), scores(p, every))
    )(params)
    sampled, sem = jax.jit(mean_and_sem)(params, key)
    return ExpectationComparison(every.valid.shape[0], value, direct, exact, sampled, sem)
