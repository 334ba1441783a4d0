"""The evidence bound of a chain of coins, three ways: a row of `program_speed`.

    E_q[log q(z) - log p(z, x)], z_t ~ Bernoulli, whose logit depends on z_1, ..., z_{t-1} in q and p, x_t ~ N(level_t, 1)

NumPyro's `TraceGraph_ELBO` unrolls it, each choice with a name; plain calls stand in a loop of Python as well, and in `lax.scan`. Score
function without a baseline, each choice charged with what comes after it: the same function of the same choices.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import logderiv as ld

OPTIONAL = "numpyro"
UNROLLED, NUMPYRO = "plain calls, unrolled", "NumPyro TraceGraph_ELBO"


def data(steps: int) -> jax.Array:
    """What is observed."""
    return jnp.sin(jnp.arange(steps, dtype=jnp.float32))


def step(params: jax.Array, level: jax.Array, seen: jax.Array) -> jax.Array:
    """The level after a choice, whose cost is log q - log p(z) - log p(x | z)."""
    posterior, prior = ld.Bernoulli(params[0] + params[1] * level), ld.Bernoulli(0.5 * level)
    z = ld.sample(posterior)
    level = moved(level, z.astype(jnp.float32))
    log_joint = prior.log_prob(z) + ld.Normal(level, jnp.ones_like(level)).log_prob(seen)
    ld.cost(lax.stop_gradient(posterior.log_prob(z)) - log_joint)
    return level


def moved(level: jax.Array, z: jax.Array) -> jax.Array:
    """The level that the next step starts from, bounded."""
    return jnp.tanh(0.9 * level + z - 0.5)


def unrolled(params: jax.Array, observed: jax.Array) -> None:
    """The model, in a loop of Python."""
    level = jnp.zeros((), jnp.float32)
    for t in range(len(observed)):
        level = step(params, level, observed[t])


def scanned(params: jax.Array, observed: jax.Array) -> None:
    """The model, in a scan."""
    lax.scan(lambda level, x: (step(params, level, x), None), jnp.zeros((), jnp.float32), observed)


def by_numpyro(runs: int, observed: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The same bound by NumPyro, as a function of parameters and key."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import TraceGraph_ELBO

    def chain(logit: Callable[[jax.Array], jax.Array], *, observes: bool) -> None:
        level = jnp.zeros((), jnp.float32)
        for t in range(len(observed)):
            z: Any = numpyro.sample(f"z{t}", dist.Bernoulli(logits=logit(level)))
            level = moved(level, z.astype(jnp.float32))
            if observes:
                numpyro.sample(f"x{t}", dist.Normal(level, 1.0), obs=observed[t])

    def guide() -> None:
        params: Any = numpyro.param("params", jnp.zeros(2, jnp.float32))
        chain(lambda level: params[0] + params[1] * level, observes=False)

    model = partial(chain, lambda level: 0.5 * level, observes=True)
    elbo = TraceGraph_ELBO(num_particles=runs)
    return lambda params, key: elbo.loss(key, {"params": params}, model, guide)


def forms(runs: int, steps: int) -> dict[str, Callable[[jax.Array, jax.Array], jax.Array]]:
    """Functions of parameters and key, by name; without NumPyro's where it is not installed."""

    def of(model: Callable[..., None]) -> Callable[[jax.Array, jax.Array], jax.Array]:
        objective = ld.expectation(model, num_samples=runs)
        return lambda params, key: objective(params, key, data(steps))

    found = {"plain calls, scan": of(scanned), UNROLLED: of(unrolled)}
    if importlib.util.find_spec(OPTIONAL):
        found[NUMPYRO] = by_numpyro(runs, data(steps))
    return found
