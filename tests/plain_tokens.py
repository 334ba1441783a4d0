"""The plain form of what is known of tokens, all logits at once, and how many multiplications a program takes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv.likelihood import TokenNumbers


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def numbers_of(
    unembedding, hidden, tokens, *, temperature: Any = 1.0, soft_cap: Any = None, reference=None, allowed=None
):
    """All logits at once."""

    def log_probs(unembedding, hidden):
        logits = hidden @ unembedding.T
        logits = (logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)) / temperature
        return logits if allowed is None else jnp.where(jnp.broadcast_to(allowed, logits.shape), logits, -jnp.inf)

    logits = log_probs(unembedding, hidden)
    logs = jax.nn.log_softmax(logits)
    probs, finite = jnp.exp(logs), jnp.where(jnp.isfinite(logs), logs, 0)
    kl = None
    if reference is not None:
        other = jax.lax.stop_gradient(jax.nn.log_softmax(log_probs(*reference)))
        kl = jnp.sum(probs * jnp.where(jnp.isfinite(other), finite - other, 0), axis=-1)
    chosen = jnp.take_along_axis(logs, tokens[..., None], axis=-1)[..., 0]
    return TokenNumbers(chosen, jax.nn.logsumexp(logits, axis=-1), -jnp.sum(probs * finite, axis=-1), kl)


def multiplications(jaxpr):
    """Of the products in a program, each as often as it is taken: over scans, and the dearest branch."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = [getattr(x, "jaxpr", x) for x in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns"))]
        counts = [multiplications(x) for x in inner if hasattr(x, "eqns")]
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * (max(counts, default=0) if eqn.primitive.name == "cond" else sum(counts))
        if eqn.primitive.name == "dot_general":
            ((axes, _), _), x = eqn.params["dimension_numbers"], eqn.invars[0].aval
            total += eqn.outvars[0].aval.size * int(np.prod([x.shape[axis] for axis in axes]))
    return total


def temporary_bytes(function, *arguments):
    """What a program of float32 arrays of these shapes, or of what is given by its dtype too, takes beyond its inputs and outputs."""
    given = [jax.ShapeDtypeStruct(x, jnp.float32) if isinstance(x, tuple) else x for x in arguments]
    analysis: Any = jax.jit(function).lower(*given).compile().memory_analysis()
    return analysis.temp_size_in_bytes
