"""Is it a score? Two identities that every score obeys, and one that every detached sample does.

With s = ∇ log p_θ(x) and x ~ p_θ: E[s] = 0 and E[s sᵀ] = -E[∇² log p_θ(x)] (Bartlett). Both follow from differentiating
∫ p_θ = 1, which needs a support that does not move with the parameters. They are checked along directions `v`: the parameter
axes, where there are at most 64, and eight random ones.

| mistake | what breaks |
|---|---|
| sampler not detached (a forgotten `stop_gradient`) | the derivative changes when the sample is detached; the second identity |
| support that moves, missing normalizer | the first identity, the second |
| doubled, or a mean where a sum belongs | the second identity |
| an axis summed twice or not at all | the second identity, or the shape |
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from logderiv._core import check
from logderiv._core.arrays import as_key, check_params, refuse_complex
from logderiv._core.products import float32_products, said_of
from logderiv._core.pytrees import jit
from logderiv._core.tables import named_entries, table
from logderiv.diagnostics.statistics import Summary, summary
from logderiv.testing.unbiased import familywise
from logderiv.types import Key, Params

MAX_AXES = 64
NUM_RANDOM = 8


class ScoreReport(NamedTuple):
    """What `check_score` found; print it. Arrays have shape `(V, R)`: directions, and the whole followed by its steps.

    Attributes:
        score: Mean derivative of log p along a direction, which should be 0, with its spread.
        square: Mean of the squared derivative, `v^T E[s s^T] v`.
        bartlett: Mean of squared derivative plus second derivative, which should be 0, with its spread.
        k: Standard errors allowed, after family-wise control.
        holds: What must be true. `"detached"`: no derivative arrives through the sampler. `"informative"`: the whole
            log-probability depends on the parameters along every direction, and nothing is NaN. `"powered"`: `k` standard errors
            fit into the resolution. `"centered"`: the first identity holds. `"consistent"`: the second does.
        decided: For each of them the number that decided, that which is furthest off, and what it is held against, shape `(2,)`.
        products: Whether all digits of the float32 products in `log_prob` count on an accelerator, as of `logderiv.likelihood.Comparison`.
    """

    score: Summary
    square: jax.Array
    bartlett: Summary
    k: Any
    holds: dict[str, jax.Array]
    decided: dict[str, jax.Array]
    products: jax.Array

    @property
    def passed(self) -> jax.Array:
        """All hold."""
        return jnp.all(jnp.stack(list(self.holds.values())), axis=0)

    def __str__(self) -> str:
        findings = [text.format(*self.decided[name]) for name, text in _FINDINGS.items() if not self.holds[name]]
        verdict = "\n  ".join(["FAILED:", *findings]) if findings else "passed"
        head = f"{verdict}\n{int(self.score.num_samples)} samples, k = {float(self.k):.2f} standard errors\n"
        head += "".join(f"{line}\n" for line in said_of(self.products))
        rows = [self._worst("E[s]", self.score), self._worst("E[s s] + E[s']", self.bartlett)]
        names = ("worst of", "direction", "row", "value", "sem", "E[s s]")
        return head + table(names, "<20 >10 >6 >13.6g >11.2g >13.6g", rows)

    def _worst(self, name: str, found: Summary) -> tuple[Any, ...]:
        values, sems = np.asarray(found.mean), np.asarray(found.sem)
        at = np.unravel_index(np.argmax(np.abs(values) / (sems + np.finfo(sems.dtype).tiny)), values.shape)
        step = "whole" if at[1] == 0 else f"t={at[1] - 1}"
        return name, int(at[0]), step, *(float(x[at]) for x in (values, sems, self.square))


_FINDINGS = {
    "detached": "the sample carries a derivative, {0:.3g}, allowed {1:.3g}: its sampler is reparameterized; hold it with "
    "jax.lax.stop_gradient.",
    "informative": "the log-probability does not depend on a parameter, or is NaN; leave such parameters out. The smallest "
    "E[score^2] is {1:.3g}.",
    "powered": "under-powered: the standard errors exceed the resolution, {0:.3g} of the Fisher information, resolution {1:.3g}; "
    "raise num_samples.",
    "centered": "E[score] is not 0 but {0:.3g}, allowed {1:.3g}: the support moves with the parameters, log p is not normalized, "
    "or the sampler draws from another one.",
    "consistent": "E[score score^T] is not -E[Hessian], off by {0:.3g}, allowed {1:.3g}: log p is scaled, a sum is taken wrongly, "
    "or the sampler draws from another density.",
}


def check_score(
    params: Params,
    key: Key,
    log_prob: Callable[[Params, Any], jax.Array],
    sample: Callable[[Params, Key], Any],
    *,
    num_samples: int = 20_000,
    resolution: float = 0.25,
    k: float = 5.0,
    block_size: int = 256,
    raises: bool = True,
) -> ScoreReport:
    """Assert that `log_prob` and `sample` belong together, and give a score.

    For a trajectory: `log_prob = lambda p, tau: ld.log_factors(p, policy, tau)` and
    `sample = lambda p, key: ld.rollout(p, key, policy, environment, horizon=T)`. Given per-step factors, both identities are
    checked for every step and for their sum, which says *where* a mistake is.

    Args:
        params: Where to check; floating point, and not a symmetric point where mistakes may cancel.
        key: Consumed.
        log_prob: `(params, x) -> ()`, or `(T,)` for the factors of one `x`.
        sample: `(params, key) -> x`; `x` any pytree. What it draws must be detached, by `jax.lax.stop_gradient`.
        num_samples: More for a finer resolution.
        resolution: Relative to the Fisher information of the whole along a direction: the deviation that must be visible. A
            doubled log p deviates by 0.5.
        k: Standard errors allowed for a single comparison, made larger for many, so that the family alarms as rarely as one.
        block_size: Samples side by side.
        raises: `False` returns the report whatever it says: also under `jax.jit` and `jax.vmap`, for sweeps over seeds.

    Returns:
        A `ScoreReport`.

    Raises:
        AssertionError: One of the identities fails, the sample is not detached, or the check is under-powered; the message is
            the report.
        ValueError: `log_prob` returns another shape; no parameters; several keys; `num_samples`, `block_size`, `resolution` or
            `k` is out of range.
        TypeError: A parameter is not floating point, or `log_prob` is complex.

    References:
        Bartlett (1953), Biometrika 40, eqs. 1-2.
    """
    num_samples, block_size = check.whole(at_least=2, num_samples=num_samples), check.whole(block_size=block_size)
    check.positive(finite=True, resolution=resolution)
    check.between(0, 30, open_left=True, k=k)
    check_params(params)
    key = as_key(key)
    samples = _samples(params, key, log_prob, sample, num_samples=num_samples, block_size=block_size)
    products = float32_products(log_prob, params, jax.eval_shape(sample, params, key))
    report = _judged(samples, resolution, familywise(k, 2 * samples[0][0].size), products)
    if raises and not report.passed:
        raise AssertionError(f"check_score: {report}\n  directions: {_names(params)}")
    return report


@jit
def _samples(params: Params, key: Key, log_prob: Any, sample: Any, *, num_samples: int, block_size: int) -> Any:
    """Derivatives through the sampler, and first and second ones at the detached sample. Shapes `(num_samples, V, R)`."""
    theta, unravel = ravel_pytree(params)
    directions = jnp.asarray(random_directions(theta.size), theta.dtype)

    def one(key: jax.Array) -> Any:
        return jax.vmap(lambda v: _derivatives(log_prob, sample, params, unravel(v), key))(directions)

    return lax.map(one, jax.random.split(key, num_samples), batch_size=block_size)


@jit
def _judged(samples: tuple[jax.Array, ...], resolution: float, k: float, products: jax.Array) -> ScoreReport:
    through, first, second = samples
    terms = jnp.square(through) + second
    score, bartlett = summary(through), summary(terms)
    fisher = jnp.mean(jnp.square(first), axis=0)
    whole = fisher[:, :1]
    rounding = 100 * jnp.finfo(terms.dtype).eps
    floor = rounding * (fisher + jnp.mean(jnp.abs(second), axis=0))
    leak = jnp.max(jnp.abs(through - first), axis=0)
    noise = jnp.maximum(score.sem / jnp.sqrt(whole), bartlett.sem / whole)
    decided = {
        "detached": _furthest(leak, jnp.sqrt(rounding) * jnp.sqrt(whole)),
        "informative": _furthest(jnp.zeros_like(whole), whole),
        "powered": _furthest(k * noise, jnp.asarray(resolution, noise.dtype)),
        "centered": _furthest(jnp.abs(score.mean), k * score.sem + rounding * jnp.sqrt(fisher)),
        "consistent": _furthest(jnp.abs(bartlett.mean), k * bartlett.sem + floor),
    }
    holds = {name: found <= allowed for name, (found, allowed) in decided.items()}
    holds["informative"] &= (decided["informative"][1] > 0) & jnp.all(jnp.isfinite(terms))
    holds["powered"] &= jnp.isfinite(resolution)
    return ScoreReport(score, jnp.mean(jnp.square(through), axis=0), bartlett, k, holds, decided, products)


def _furthest(found: jax.Array, allowed: jax.Array) -> jax.Array:
    """The pair of a number and what it is held against that is furthest from `found <= allowed`; a NaN is further than any."""
    found, allowed = jnp.broadcast_arrays(found, allowed)
    at = jnp.argmax(found - allowed)  # the first NaN, if there is one
    return jnp.stack([found.ravel()[at], allowed.ravel()[at]])


def random_directions(size: int) -> np.ndarray:
    """The parameter axes, where there are few, and random unit vectors; always the same. Shape `(V, D)`.

    Normal rather than sign vectors: those may lie in the null space of a softmax, where nothing can be seen.
    """
    vectors = np.random.default_rng(0).normal(size=(NUM_RANDOM, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    axes = np.eye(size) if size <= MAX_AXES else np.zeros((0, size))
    return np.concatenate([axes, vectors]) if size > 1 else axes


def _derivatives(log_prob: Any, sample: Any, params: Any, direction: Any, key: jax.Array) -> tuple[jax.Array, ...]:
    """Along one direction: through the sampler, and at the detached sample the first and the second derivative. Shapes `(R,)`."""
    x, moves = jax.jvp(lambda p: sample(p, key), (params,), (direction,))

    def logs(params: Any, x: Any) -> jax.Array:
        values = jnp.asarray(log_prob(params, x))
        refuse_complex(log_prob=values)
        if values.ndim > 1:
            raise ValueError(f"log_prob: expected shape () or (T,), received {values.shape}; sum over the event axes.")
        return values[None] if values.ndim == 0 else jnp.concatenate([jnp.sum(values, keepdims=True), values])

    def along(params: Any) -> jax.Array:
        return jax.jvp(lambda p: logs(p, x), (params,), (direction,))[1]

    _, through = jax.jvp(logs, (params, x), (direction, moves))
    return through, *jax.jvp(along, (params,), (direction,))


def _names(params: Any) -> str:
    axes = named_entries(params)
    named = [f"{i} = {axis}" for i, axis in enumerate(axes)] if len(axes) <= MAX_AXES else []
    return ", ".join([*named, "then random"])
