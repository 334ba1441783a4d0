r"""Is it a score? Two identities that every score obeys, and one that every held sample does.

With $s = \nabla\log p_\theta(x)$ and $x \sim p_\theta$: $\mathbb{E}[s] = 0$ and $\mathbb{E}[s s^\top] = -\mathbb{E}[\nabla^2 \log p_\theta(x)]$ (Bartlett). Both
follow from differentiating $\int p_\theta = 1$, which needs a support that does not move with the parameters. They are
checked along directions `v`: the parameter axes, where there are at most 64, and eight random ones.

| mistake | what breaks |
|---|---|
| sampler not held (a forgotten `stop_gradient`) | the derivative changes when the sample is held; the second identity |
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

from logderiv._core.arrays import as_keys
from logderiv.testing.unbiased import familywise
from logderiv.types import check_params

MAX_AXES = 64
NUM_RANDOM = 8


class ScoreReport(NamedTuple):
    """What `check_score` found; print it. Arrays have shape `(V, R)`: directions, and the whole followed by its steps.

    Attributes:
        score: Mean derivative of log p along a direction; should be 0.
        score_sem: Its standard error.
        square: Mean of the squared derivative, `v^T E[s s^T] v`.
        bartlett: Mean of squared derivative plus second derivative; should be 0.
        bartlett_sem: Its standard error.
        k: Standard errors allowed, after family-wise control.
        num_samples: Number of samples.
        held: No derivative arrives through the sampler.
        informative: The whole log-probability depends on the parameters along every direction, and nothing is NaN.
        powered: `k` standard errors fit into the resolution.
        centered: The first identity holds.
        consistent: The second does.
    """

    score: jax.Array
    score_sem: jax.Array
    square: jax.Array
    bartlett: jax.Array
    bartlett_sem: jax.Array
    k: Any
    num_samples: Any
    held: jax.Array
    informative: jax.Array
    powered: jax.Array
    centered: jax.Array
    consistent: jax.Array

    @property
    def passed(self) -> jax.Array:
        """All hold."""
        return self.held & self.informative & self.powered & self.centered & self.consistent

    def __str__(self) -> str:
        findings = [text for ok, text in zip(self[7:], _FINDINGS, strict=True) if not ok]
        verdict = "\n  ".join(["FAILED:", *findings]) if findings else "passed"
        head = f"{verdict}\n{int(self.num_samples)} samples, k = {float(self.k):.2f} standard errors\n"
        head += f"  {'worst of':<20}{'direction':>10}{'row':>6}{'value':>13}{'sem':>11}{'E[s s]':>13}\n"
        rows = (("E[s]", self.score, self.score_sem), ("E[s s] + E[s']", self.bartlett, self.bartlett_sem))
        return head + "\n".join(self._worst(*row) for row in rows)

    def _worst(self, name: str, value: jax.Array, sem: jax.Array) -> str:
        values, sems = np.abs(np.asarray(value)), np.asarray(sem)
        v, r = np.unravel_index(np.argmax(values / (sems + np.finfo(sems.dtype).tiny)), values.shape)
        row = "whole" if r == 0 else f"t={r - 1}"
        numbers = f"{float(value[v, r]):>13.6g}{float(sem[v, r]):>11.2g}{float(self.square[v, r]):>13.6g}"
        return f"  {name:<20}{int(v):>10}{row:>6}{numbers}"


_FINDINGS = (
    "the sample carries a derivative: its sampler is reparameterized; hold it with jax.lax.stop_gradient.",
    "the log-probability does not depend on a parameter, or is NaN; leave such parameters out.",
    "under-powered: the standard errors exceed the resolution; raise num_samples.",
    "E[score] is not 0: the support moves with the parameters, log p is not normalized, or the sampler draws from another one.",
    "E[score score^T] is not -E[Hessian]: log p is scaled, a sum is taken wrongly, or the sampler draws from another density.",
)


def check_score(
    log_prob: Callable[[Any, Any], jax.Array],
    sample: Callable[[Any, jax.Array], Any],
    params: Any,
    key: jax.Array,
    *,
    num_samples: int = 20_000,
    resolution: float = 0.25,
    k: float = 5.0,
    batch_size: int = 256,
) -> ScoreReport:
    r"""Assert that `log_prob` and `sample` belong together, and give a score.

    For a trajectory: `log_prob = lambda p, tau: ld.log_factors(p, policy, tau)` and
    `sample = lambda p, key: ld.rollout(p, key, policy, environment, horizon=T)`. Given per-step factors, both identities are
    checked for every step and for their sum, which says *where* a mistake is.

    Args:
        log_prob: `(params, x) -> ()`, or `(T,)` for the factors of one `x`.
        sample: `(params, key) -> x`; `x` any pytree. What it draws must be held: see the module.
        params: Where to check; floating point, and not a symmetric point where mistakes may cancel.
        key: Consumed.
        num_samples: More for a finer resolution.
        resolution: Relative to the Fisher information of the whole along a direction: the deviation that must be visible. A
            doubled log p deviates by 0.5.
        k: As in `assert_unbiased`, with the same family-wise rule.
        batch_size: Samples side by side.

    Returns:
        A `ScoreReport`.

    Raises:
        AssertionError: One of the identities fails, the sample is not held, or the check is under-powered; the message is
            the report.
        ValueError: `log_prob` returns another shape.
        TypeError: A parameter is not floating point.

    References:
        Bartlett (1953), Biometrika 40, eqs. 1-2.
    """
    report = jax.jit(
        lambda params, key: score_report(
            log_prob,
            sample,
            params,
            key,
            num_samples=num_samples,
            resolution=resolution,
            k=k,
            batch_size=batch_size,
        )
    )(params, key)
    if not report.passed:
        raise AssertionError(f"check_score: {report}\n  directions: {_names(params)}")
    return report


def score_report(
    log_prob: Callable[[Any, Any], jax.Array],
    sample: Callable[[Any, jax.Array], Any],
    params: Any,
    key: jax.Array,
    *,
    num_samples: int = 20_000,
    resolution: float = 0.25,
    k: float = 5.0,
    batch_size: int = 256,
) -> ScoreReport:
    """What `check_score` looks at, without raising the verdict: also under `jax.jit` and `jax.vmap`, for sweeps over seeds."""
    check_params(params)
    theta, unravel = ravel_pytree(params)
    directions = jnp.asarray(random_directions(theta.size), theta.dtype)

    def one(key: jax.Array) -> Any:
        return jax.vmap(lambda v: _derivatives(log_prob, sample, params, unravel(v), key))(directions)

    keys = jax.random.split(as_keys(key), num_samples)
    through, first, second = lax.map(one, keys, batch_size=batch_size)  # (num_samples, V, R) each
    square, terms = jnp.square(through), jnp.square(through) + second
    count = jnp.sqrt(jnp.asarray(num_samples, terms.dtype))
    score, score_sem = jnp.mean(through, axis=0), jnp.std(through, axis=0, ddof=1) / count
    bartlett, bartlett_sem = jnp.mean(terms, axis=0), jnp.std(terms, axis=0, ddof=1) / count

    k = familywise(k, 2 * score.size)
    fisher = jnp.mean(jnp.square(first), axis=0)
    whole = fisher[:, :1]
    rounding = 100 * jnp.finfo(terms.dtype).eps
    floor = rounding * (fisher + jnp.mean(jnp.abs(second), axis=0))
    leak = jnp.max(jnp.abs(through - first), axis=0) > jnp.sqrt(rounding) * jnp.sqrt(whole)
    powered = (k * score_sem <= resolution * jnp.sqrt(whole)) & (k * bartlett_sem <= resolution * whole)
    return ScoreReport(
        score,
        score_sem,
        jnp.mean(square, axis=0),
        bartlett,
        bartlett_sem,
        k=k,
        num_samples=num_samples,
        held=~jnp.any(leak),
        informative=jnp.all(whole > 0) & jnp.all(jnp.isfinite(terms)),
        powered=jnp.all(powered),
        centered=jnp.all(jnp.abs(score) <= k * score_sem + rounding * jnp.sqrt(fisher)),
        consistent=jnp.all(jnp.abs(bartlett) <= k * bartlett_sem + floor),
    )


def random_directions(size: int) -> np.ndarray:
    """The parameter axes, where there are few, and random unit vectors; always the same. Shape `(V, D)`.

    Normal rather than sign vectors: those may lie in the null space of a softmax, where nothing can be seen.
    """
    vectors = np.random.default_rng(0).normal(size=(NUM_RANDOM, size))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    axes = np.eye(size) if size <= MAX_AXES else np.zeros((0, size))
    return np.concatenate([axes, vectors]) if size > 1 else axes


def _derivatives(log_prob: Any, sample: Any, params: Any, direction: Any, key: jax.Array) -> tuple[jax.Array, ...]:
    """Along one direction: through the sampler, and at the held sample the first and the second derivative. Shapes `(R,)`."""
    x, moves = jax.jvp(lambda p: sample(p, key), (params,), (direction,))

    def logs(params: Any, x: Any) -> jax.Array:
        values = jnp.asarray(log_prob(params, x))
        if values.ndim > 1:
            raise ValueError(
                f"log_prob: expected shape () or (T,) for one sample, received {values.shape}; sum over the event axes."
            )
        return values[None] if values.ndim == 0 else jnp.concatenate([jnp.sum(values, keepdims=True), values])

    def along(params: Any) -> jax.Array:
        return jax.jvp(lambda p: logs(p, x), (params,), (direction,))[1]

    _, through = jax.jvp(logs, (params, x), (direction, moves))
    return through, *jax.jvp(along, (params,), (direction,))


def _names(params: Any) -> str:
    names = [
        f"{jax.tree_util.keystr(path) or 'params'}{list(index) if index else ''}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        for index in np.ndindex(jnp.shape(leaf))
    ]
    if len(names) > MAX_AXES:
        return "random"
    return ", ".join(f"{i} = {name}" for i, name in enumerate(names)) + ", then random"
