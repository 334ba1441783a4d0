r"""Scores in parameter space: evolution strategies and PGPE as episodes of one step.

Instead of the choices of a policy, its parameters $x$ are random, drawn once per episode from a search distribution
$p(x|\mu, \sigma)$. That is a policy whose action is $x$, in a world that pays its fitness $f(x)$ and ends:
$\nabla \mathbb{E} f(x) = \mathbb{E}[f(x)\, \nabla\log p(x|\mu,\sigma)]$. So every estimator, baseline, diagnostic and optimizer of the library applies:

    search = ld.NormalSearch()
    params = search.init(mean, std=0.1)
    taus = ld.rollout_pairs(params, jax.random.split(key, 64), search, ld.Fitness(fitness))
    estimator = ld.score_function(baseline=ld.baseline_leave_one_out(group_size=2))
    est, state = estimator.estimate(params, state, search, taus)

| search | sampling | name |
|---|---|---|
| `NormalSearch(scale=0.1)` | `rollout` | evolution strategies, NES with a fixed $\sigma$ |
| `NormalSearch(scale=0.1)` | `rollout_pairs` | antithetic ES: $\tfrac{1}{2 n \sigma} \sum_i (f(\mu + \sigma\epsilon_i) - f(\mu - \sigma\epsilon_i))\, \epsilon_i$ |
| `NormalSearch()` | `rollout` | PGPE |
| `NormalSearch()` | `rollout_pairs` | PGPE with symmetric sampling |

The two trajectories of a pair depend on each other. A baseline of one must not contain the other: plain leave-one-out multiplies
the expected gradient in $\mu$ by $N/(N-1)$ and that in $\log\sigma$ by $(N-2)/(N-1)$; with `group_size=2` both are exact. For a standard
error count pairs: `logderiv.diagnostics.sem(logderiv.diagnostics.group_gradients(..., num_groups=n))`.

References:
    Wierstra et al. (2014), JMLR 15, "Natural evolution strategies", section 2; Sehnke et al. (2010), Neural Networks 23,
    "Parameter-exploring policy gradients", sections 2.2-2.3; Salimans et al. (2017), arXiv:1703.03864, section 2.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from logderiv._core.arrays import as_keys, register_dataclass, scalar_cost
from logderiv.distributions.basic import Normal
from logderiv.sampling.episodes import rollout
from logderiv.types import Step, Trajectory


class SearchParams(NamedTuple):
    r"""Parameters of a search distribution.

    Attributes:
        mean: $\mu$, pytree.
        log_scale: $\log\sigma$, pytree of the same structure and shapes.
    """

    mean: Any
    log_scale: Any


@dataclasses.dataclass(frozen=True)
class TreeNormal:
    r"""Independent Normals on the leaves of a pytree.

    Attributes:
        loc: Pytree of means.
        scale: Pytree of standard deviations, positive; or one number for all.
        sign: Multiplies the noise of `sample`; 1 or -1, which changes no probability.
    """

    loc: Any
    scale: Any
    sign: Any = 1.0

    def log_prob(self, action: Any) -> jax.Array:
        """Log-density of a pytree like `loc`, shape `()`."""
        logs = [
            normal.log_prob(jnp.ravel(x)) for normal, x in zip(self._leaves(), jax.tree.leaves(action), strict=True)
        ]
        return sum(logs[1:], logs[0])

    def sample(self, key: jax.Array) -> Any:
        """`loc + sign * scale * noise`; `key` is consumed."""
        leaves, structure = jax.tree.flatten(self.loc)
        keys = jax.random.split(key, len(leaves))

        def draw(normal: Normal, like: jax.Array, key: jax.Array) -> jax.Array:
            noise = jnp.asarray(self.sign, like.dtype) * jax.random.normal(key, normal.loc.shape, like.dtype)
            return (normal.loc + normal.scale * noise).reshape(like.shape)

        return structure.unflatten([draw(*x) for x in zip(self._leaves(), leaves, keys, strict=True)])

    def _leaves(self) -> list[Normal]:
        """A Normal vector for each leaf."""
        locs = jax.tree.leaves(self.loc)
        scales = jax.tree.leaves(self.scale)
        scales = scales * len(locs) if len(scales) == 1 else scales

        def leaf(loc: jax.Array, scale: Any) -> Normal:
            return Normal(jnp.ravel(loc), jnp.broadcast_to(jnp.asarray(scale, loc.dtype), loc.shape).ravel())

        return [leaf(*x) for x in zip(locs, scales, strict=True)]


register_dataclass(TreeNormal, ("loc", "scale", "sign"))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class NormalSearch:
    r"""A Normal search distribution over a pytree of parameters, as a policy whose action is that pytree.

    With `scale` its `params` are the mean alone; without, a `SearchParams` of mean and $\log\sigma$, both learned. The observation
    is the sign of the noise.

    Attributes:
        scale: The fixed $\sigma$, or `None`.
    """

    scale: float | None = None

    initial_carry = None
    log_factors = None

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale: expected a positive number or None, received {self.scale}.")

    def init(self, mean: Any, *, std: float = 1.0) -> SearchParams:
        r"""Parameters that start from `mean`, with $\sigma$ = `std` everywhere; where `scale` is fixed the mean is all there is.

        Raises:
            ValueError: `scale` is fixed, or `std` is not positive.
        """
        if self.scale is not None or not std > 0:
            raise ValueError(
                f"std: expected a positive number and a search without a fixed scale, received std = {std} and scale = {self.scale}; "
                "with a fixed scale the mean is the parameter."
            )
        return SearchParams(mean, jax.tree.map(lambda x: jnp.full_like(x, jnp.log(std)), mean))

    def apply(self, params: Any, observation: jax.Array) -> TreeNormal:
        """The distribution."""
        if self.scale is not None:
            return TreeNormal(params, self.scale, observation)
        return TreeNormal(params.mean, jax.tree.map(jnp.exp, params.log_scale), observation)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Fitness:
    """A world of one step that pays the fitness of the action, a pytree of parameters.

    The fitness may be anything, a whole rollout included:
    `Fitness(lambda x, key: ld.rollout(x, key, policy, environment).rewards.sum())`. It is never differentiated.

    Attributes:
        function: `(parameters, key) -> scalar`, the key for its own randomness.
    """

    function: Callable[[Any, jax.Array], Any]

    horizon = 1

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, jax.Array]:
        """The sign of the noise: `params`, or 1."""
        del key  # nothing is random before the action
        sign = jnp.ones(()) if params is None else jnp.asarray(params)
        return sign, sign

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> Step:
        """The fitness, and the end."""
        del params
        return Step(
            state, state, scalar_cost(self.function(action, key), "fitness"), jnp.ones((), bool), jnp.zeros((), bool)
        )


def rollout_pairs(params: Any, keys: jax.Array, search: NormalSearch, environment: Fitness) -> Trajectory:
    r"""Antithetic pairs: $x = \mu \pm \sigma\epsilon$ for each key, evaluated with the same key (common random numbers).

    For the gradient in $\mu$ only the odd part of the fitness about $\mu$ is left, for that in $\sigma$ only the even part.

    Args:
        params: Parameters of the search distribution.
        keys: Shape `(n,)`. Consumed.
        search: The search distribution.
        environment: The fitness.

    Returns:
        `2 n` trajectories of one step, shape `(2 n, 1)`, the two of a pair in succession, plus first. Use
        `baseline_leave_one_out(group_size=2)`.

    Raises:
        ValueError: `keys` is not one axis of keys.

    References:
        Sehnke et al. (2010), section 2.3 (symmetric sampling); Salimans et al. (2017), section 2.1 (mirrored sampling).
    """
    keys = as_keys(keys)
    if keys.ndim != 1:
        raise ValueError(
            f"keys: expected one axis of keys, shape (n,), received {keys.shape}; use jax.random.split(key, n)."
        )

    def one(key: jax.Array, sign: jax.Array) -> Trajectory:
        return rollout(params, key, search, environment, environment_params=sign)

    pairs = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, jnp.array([1.0, -1.0]))
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), pairs)
