"""Scores in parameter space: evolution strategies and PGPE as episodes of one step.

Instead of the choices of a policy, its parameters x are random, drawn once per episode from a search distribution
p(x | μ, σ). That is a policy whose action is x, in an environment that pays its fitness f(x) and ends:

    ∇ E f(x) = E[f(x) ∇ log p(x | μ, σ)].

So every estimator, baseline, diagnostic and optimizer of the library applies:

    search = ld.processes.NormalSearch()
    params = search.init(mean, std=0.1)
    taus = ld.processes.rollout_pairs(params, jax.random.split(key, 64), search, ld.processes.Fitness(fitness))
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut(group_size=2)))
    est, state = estimator.estimate(params, state, search, taus)

| search | sampling | name |
|---|---|---|
| `NormalSearch(scale=0.1)` | `rollout` | evolution strategies, NES with a fixed σ |
| `NormalSearch(scale=0.1)` | `rollout_pairs` | antithetic ES: Σ_i (f(μ + σ ε_i) - f(μ - σ ε_i)) ε_i / (2 n σ) |
| `NormalSearch()` | `rollout` | PGPE |
| `NormalSearch()` | `rollout_pairs` | PGPE with symmetric sampling |

The two trajectories of a pair depend on each other. A baseline of one must not contain the other: plain leave-one-out multiplies
the expected gradient in μ by N / (N - 1) and that in log σ by (N - 2) / (N - 1); with `group_size=2` both are exact. For a
standard error count pairs: `logderiv.diagnostics.sem(logderiv.diagnostics.group_gradients(..., num_groups=n))`.

References:
    Wierstra et al. (2014), JMLR 15, "Natural evolution strategies", section 2; Sehnke et al. (2010), Neural Networks 23,
    "Parameter-exploring policy gradients", sections 2.2-2.3; Salimans et al. (2017), arXiv:1703.03864, section 2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from logderiv._core import check
from logderiv._core.arrays import alike, as_keys, numbers, scalar_cost, summable
from logderiv._core.noise import normal
from logderiv._core.pytrees import pytree
from logderiv.distributions.normal import normal_terms
from logderiv.sampling.episodes import rollout
from logderiv.types import Key, Params, Policy, Step, Trajectory


class SearchParams(NamedTuple):
    """Parameters of a search distribution.

    Attributes:
        mean: μ, pytree.
        log_scale: log σ, pytree of the same structure and shapes.
    """

    mean: Any
    log_scale: Any


@pytree
class TreeNormal:
    """Independent Normals on the leaves of a pytree.

    Attributes:
        loc: Pytree of means.
        scale: Pytree of standard deviations, positive; or one number for all.
        sign: Multiplies the noise of `sample`; 1 or -1, which changes no probability.

    Raises:
        TypeError: A leaf is no real number.
    """

    loc: Any
    scale: Any
    sign: Any = 1.0

    def __post_init__(self) -> None:
        for name in ("loc", "scale"):
            object.__setattr__(self, name, numbers(getattr(self, name), name))

    def log_prob(self, action: Any) -> jax.Array:
        """Log-density of all leaves together.

        Args:
            action: A pytree like `loc`.

        Returns:
            Shape `()`.

        Raises:
            ValueError: `action` has another structure, or a leaf another shape.
            TypeError: A leaf is no real number.
        """
        check.like("action", action, self.loc, hint="that of the mean")

        def log_density(x: jax.Array, loc: jax.Array, scale: jax.Array) -> jax.Array:
            return jnp.sum(normal_terms(*alike(action=x, loc=loc, scale=scale)))

        terms = jax.tree.map(log_density, action, self.loc, self._scale())
        return jax.tree.reduce(jnp.add, terms)

    def sample(self, key: Key) -> Any:
        """Draw `loc + sign * scale * noise`.

        Args:
            key: Consumed.

        Returns:
            A pytree like `loc`, reparameterized.
        """

        def draw(loc: jax.Array, scale: jax.Array, noise: jax.Array) -> jax.Array:
            return loc + scale * (jnp.asarray(self.sign, loc.dtype) * noise)

        return jax.tree.map(draw, self.loc, self._scale(), optax.tree.random_like(key, self.loc, normal))

    def _scale(self) -> Any:
        """A standard deviation for each number of `loc`."""
        scales = jax.tree.broadcast(self.scale, self.loc)
        return jax.tree.map(lambda s, x: jnp.broadcast_to(s.astype(x.dtype), x.shape), scales, self.loc)


@pytree
class NormalSearch(Policy):
    """A Normal search distribution over a pytree of parameters, as a policy whose action is that pytree.

    With `scale` its `params` are the mean alone; without, a `SearchParams` of mean and log σ, both learned. The observation
    is the sign of the noise.

    Attributes:
        scale: The fixed σ, positive, or `None`.

    Raises:
        ValueError: `scale` is not positive.
    """

    scale: Any = None

    def __post_init__(self) -> None:
        check.positive(finite=True, or_none=True, scale=self.scale, hint="or None, for one that is learned")

    def init(self, mean: Any, *, std: float = 1.0) -> SearchParams:
        """Parameters to start from; where `scale` is fixed the mean is all there is.

        Args:
            mean: μ, a pytree of arrays.
            std: σ, everywhere; positive.

        Returns:
            Mean and log σ.

        Raises:
            ValueError: `scale` is fixed, or `std` is not positive.
        """
        check.positive(finite=True, std=std)
        if self.scale is not None:
            raise ValueError(
                f"scale: expected None, received {self.scale}; with a fixed scale the mean is the parameter."
            )
        mean = numbers(mean, "mean")
        return SearchParams(mean, jax.tree.map(lambda x: jnp.full_like(x, jnp.log(summable(std))), mean))

    def apply(self, params: Any, observation: jax.Array) -> TreeNormal:
        """The search distribution.

        Args:
            params: The mean, where `scale` is fixed; else `SearchParams`.
            observation: The sign of the noise, 1 or -1, shape `()`.

        Returns:
            A `TreeNormal` over pytrees like the mean.
        """
        if self.scale is not None:
            return TreeNormal(params, self.scale, observation)
        return TreeNormal(params.mean, jax.tree.map(jnp.exp, numbers(params.log_scale)), observation)


@pytree(static=("function",))
class Fitness:
    """An environment of one step that pays the fitness of the action, a pytree of parameters.

    The fitness may be anything, a whole rollout included:
    `Fitness(lambda x, key: ld.rollout(x, key, policy, environment).rewards.sum())`. It is never differentiated.

    Attributes:
        function: `(parameters, key) -> scalar`, the key for its own randomness.
    """

    function: Callable[[Any, jax.Array], Any]

    horizon = 1

    def reset(self, key: Key, params: Any = None) -> tuple[jax.Array, jax.Array]:
        """The sign of the noise.

        Args:
            key: Not used: nothing is random before the action.
            params: 1 or -1, shape `()`; `None` for 1.

        Returns:
            The sign, as observation and as state.
        """
        del key
        sign = jnp.ones(()) if params is None else summable(params, "environment_params")
        return sign, sign

    def step(self, key: Key, state: Any, action: Any, params: Any = None) -> Step:
        """The fitness of the action, and the end.

        Args:
            key: For the randomness of the fitness; consumed.
            state: The sign of the noise.
            action: Parameters, a pytree.
            params: Not used.

        Returns:
            A `Step` that terminates.

        Raises:
            ValueError: The fitness is not one number.
        """
        del params
        fitness = scalar_cost(self.function(action, key), "fitness")
        return Step(state, state, fitness, jnp.ones((), bool), jnp.zeros((), bool))


def rollout_pairs(params: Params, keys: Key, search: NormalSearch, environment: Fitness) -> Trajectory:
    """Antithetic pairs: x = μ ± σ ε for each key, evaluated with the same key (common random numbers).

    For the gradient in μ only the odd part of the fitness about μ is left, for that in σ only the even part.

    Args:
        params: Parameters of the search distribution.
        keys: Shape `(n,)`. Consumed.
        search: The search distribution.
        environment: The fitness.

    Returns:
        `2 n` trajectories of one step, shape `(2 n, 1)`, the two of a pair in succession, plus first. Leave both of a pair out
        of its baseline (`group_size=2`).

    Raises:
        ValueError: `keys` is not one axis of keys.

    Gradients: the draws are detached, as those of `logderiv.rollout`.

    References:
        Sehnke et al. (2010), section 2.3 (symmetric sampling); Salimans et al. (2017), section 2.1 (mirrored sampling).
    """
    keys = as_keys(keys)
    if keys.ndim != 1:
        raise ValueError(f"keys: expected one axis of keys, (n,), received {keys.shape}; use jax.random.split(key, n).")

    def one(key: jax.Array, sign: jax.Array) -> Trajectory:
        return rollout(params, key, search, environment, environment_params=sign)

    pairs = jax.vmap(jax.vmap(one, (None, 0)), (0, None))(keys, jnp.array([1.0, -1.0]))
    return jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), pairs)
