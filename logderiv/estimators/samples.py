"""The identity for people with samples: ∇E_p[f] from draws that somebody else made.

No trajectory, no policy, no environment: a function `log_prob(params, sample)`, draws, and the value of f at each. It need not be
normalized. With p = p̃ / Z and the score s = ∇ log p̃, the constant Z moves, too:

    ∇E_p[f] = E_p[f (s − E_p[s])] = Cov_p(f, s),

which is E_p[f s] only where E_p[s] = 0, as it is for a normalized density. Subtracting a mean of f from each value is therefore no
matter of variance alone, it is half of the covariance.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from logderiv._core import check
from logderiv._core.arrays import (
    check_leading_axes,
    check_params,
    named_leaf_by_leaf,
    nan_unless,
    refuse_complex,
    scalar_cost,
    summable,
    wide,
)
from logderiv._core.blocks import rows_in_block, sum_results, sum_rows
from logderiv._core.pytrees import jit
from logderiv._core.tangents import differentiated_no_further
from logderiv.estimators.baselines import LeaveOneOut
from logderiv.types import Params

LogProb = Callable[[Any, Any], Any]

_LAST = (
    "gradient_from_samples: expected to be differentiated no further, since it is right at order one only: a second derivative of the "
    "expectation has products of scores. Take jax.lax.stop_gradient of what is given or returned; for higher orders score the draws on "
    "a tape (logderiv.Tape.score)."
)
_KNOWN = (
    "baseline: expected normalized=True beside a number, received {}. Of an unnormalized log_prob the mean score is not 0, and no number "
    "known beforehand makes up for that: leave baseline out, for the mean of the other draws. normalized=True says that exp(log_prob) "
    "sums to 1 at all params."
)
_NUMBERS = 1 << 20  # of gradients that are held at once for a standard error


class SampleGradient(NamedTuple):
    """What `gradient_from_samples` found.

    Attributes:
        grads: The estimate of ∇E_p[f]; pytree of `params`.
        sem: Its standard error, entry by entry; pytree of `params`. `None` where there is none: with weights, from too few draws
            or chains, and where none was asked for.
    """

    grads: Any
    sem: Any


def gradient_from_samples(
    params: Params,
    log_prob: LogProb,
    samples: Any,
    values: jax.Array,
    *,
    weights: jax.Array | None = None,
    baseline: float | None = None,
    normalized: bool = False,
    chains: bool = False,
    sem: bool = True,
    block_size: int | None = None,
) -> SampleGradient:
    """The gradient of E_p[f] from samples xₙ of p that are there already, and the values fₙ = f(xₙ).

        g = Σₙ wₙ (fₙ − bₙ) ∇log p̃(xₙ)

    | samples | wₙ | bₙ | |
    |---|---|---|---|
    | N independent draws | 1/N | mean of the *other* draws' values | unbiased; the sample covariance of values and scores, with divisor N − 1 |
    | C independent chains of N draws, `chains=True` | 1/(C N) | mean over the *other* chains | unbiased where every draw of a chain has the law p |
    | `weights`: all states, weighted by p | wₙ | Σₙ wₙ fₙ | exact |
    | `weights`: importance weights that were divided by their sum | wₙ | Σₙ wₙ fₙ | a bias of order 1/N |
    | any of these, with `baseline` and `normalized=True` | as above | the number | unbiased; exact |

    `log_prob` may lack its constant, as minus an energy does: without `normalized=True` nothing is assumed, and g estimates
    Cov(f, ∇log p̃). A mean of the values that contains the own draw would leave 1 − 1/N of the gradient; a mean over the own chain,
    whose draws depend on each other, something that is not known. Draws of a chain before it has settled are biased as well.

    Where f depends on `params` itself, ∇E_p[f] has a second term, E_p[∇f]: add Σₙ wₙ ∇f(xₙ) yourself.

    Args:
        params: Parameters at which the samples were drawn, floating point.
        log_prob: log p̃, `(params, sample) -> scalar` of one sample, normalized or not.
        samples: Pytree of arrays with a leading axis `(N,)`; with `chains` `(C, N)`.
        values: f of each sample. Shape `(N,)`; with `chains` `(C, N)`.
        weights: Of each sample, not negative, with sum 1; `None` for draws of p. One of weight 0 does not count, even if it is
            impossible. Shape `(N,)`.
        baseline: A number that does not depend on these samples, 0 for none; for a normalized `log_prob` only. `None` takes the mean in
            the table.
        normalized: Whether exp(log_prob) sums, or integrates, to 1 at all `params`. Asked for where `baseline` is given, else of no
            consequence.
        chains: Whether the first axis is one of independent Markov chains, each of which runs along the second one.
        sem: Whether the standard error is computed, which takes the gradient of every draw, or chain, once more. Many independent
            draws reshaped into a few "chains" have a cheaper one.
        block_size: Samples in a block; `None` for the backend's default. Speed and memory only.

    Returns:
        A `SampleGradient`, in float32 at least. Its standard error is that of the jackknife over draws, or over whole chains, of which it
        needs three; with a number as `baseline` that of a mean, for which two are enough. The jackknife's square is on
        average 1 to 2 (N − 1)/(N − 2) times the variance (C for N), and near 1 times it from 20 draws on. Few chains ask for Student's t
        with C − 1 degrees of freedom.

    Raises:
        ValueError: Samples and values of different length; fewer than two draws, or chains, to take a mean over; a baseline of an
            unnormalized density, or one that is not finite; weights that are negative or, outside `jax.jit`, do not sum to 1 (inside, the
            gradient is then NaN); weights of chains; `log_prob` does not return a scalar; `block_size` below 1; or somebody
            differentiates the result.
        TypeError: Complex numbers, or a parameter that is not floating point.

    Gradients: those of order one are what is returned. Differentiating it again, in whatever was given, raises: that would lack the
    products of scores, and be 0 for an exponential family.

    References:
        Glynn (1990), Communications of the ACM 33(10), likelihood ratio gradients; Efron & Stein (1981), Annals of Statistics 9(3), the
        jackknife's error is not too small on average; both from memory.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> energy = lambda field, spins: -field * jnp.sum(spins)  # two spins; exp(-energy) does not sum to 1
        >>> spins = jnp.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
        >>> weights = jax.nn.softmax(jax.vmap(lambda x: -energy(0.5, x))(spins))
        >>> found = ld.gradient_from_samples(0.5, lambda h, x: -energy(h, x), spins, spins[:, 0], weights=weights)
        >>> f"{found.grads:.5f}", f"{1 - jnp.tanh(0.5)**2:.5f}"  # the mean of a spin is tanh(h)
        ('0.78645', '0.78645')
    """
    block_size = check.whole(or_none=True, block_size=block_size)
    check_params(params)
    refuse_complex(samples=samples)
    values = _checked_values(samples, values, chains)
    known = _checked_baseline(baseline, normalized)
    weights = _checked_weights(weights, values, chains)
    least, num = 2 if weights is None and known is None else 1, values.shape[0]
    if num < least:
        what = "chains" if chains else "independent draws"
        raise ValueError(
            f"samples: expected at least {least} {what}, received {num}; the baseline is the mean over the others. For a normalized log_prob "
            "a number will do: baseline=0.0, normalized=True."
        )
    sem = sem and weights is None and num >= (3 if known is None else 2)
    samples = named_leaf_by_leaf(lambda x, _: jnp.asarray(x), samples, "samples")
    # At both ends: the gradient of an exponential family does not depend on params at all, and log_prob may close over what moves.
    given = differentiated_no_further((wide(params), samples, values, weights, known), _LAST)
    found = _from_samples(log_prob, *given, sem=sem, chains=chains, block_size=block_size)
    return differentiated_no_further(found, _LAST)


def _checked_values(samples: Any, values: Any, chains: bool) -> jax.Array:
    """The values as `(N,)`, or `(C, N)`, with samples for each of them."""
    values = summable(values, "values")
    shape, axes = ("(C, N)", 2) if chains else ("(N,)", 1)
    if values.ndim != axes or not values.size:
        hint = "" if chains else "; Markov chains side by side, (C, N): chains=True"
        raise ValueError(f"values: expected one number for each sample, shape {shape}, received {values.shape}{hint}.")
    if not jax.tree.leaves(samples):
        raise ValueError(f"samples: expected arrays with leading axes {shape}, received {samples!r}.")
    check_leading_axes(values.shape, hint="as many as there are values; of a list make an array", samples=samples)
    return values


def _checked_baseline(baseline: Any, normalized: bool) -> jax.Array | None:
    if baseline is None:
        return None
    check.finite(baseline=baseline)
    check.shape((), hint="one number, which does not depend on the samples", baseline=baseline)
    if not normalized:
        raise ValueError(_KNOWN.format(baseline))
    return summable(baseline, "baseline")


def _checked_weights(weights: Any, values: jax.Array, chains: bool) -> jax.Array | None:
    """Weights that are not negative and sum to 1; those that are traced and do not become NaN."""
    if weights is None:
        return None
    if chains:
        raise ValueError("weights: expected None with chains=True, received weights; draws of a chain count alike.")
    weights = summable(weights, "weights")
    check.shape(values.shape, hint="one for each sample, as values", weights=weights)
    allowed = 10 * float(jnp.finfo(weights.dtype).eps) ** 0.5
    if check.is_traced(weights):
        right = jnp.all(weights >= 0) & (jnp.abs(jnp.sum(weights) - 1) <= allowed)
        return nan_unless(right, weights)
    check.not_negative(finite=True, weights=weights)
    if not abs((total := float(np.sum(np.asarray(weights, float)))) - 1) <= allowed:
        raise ValueError(
            f"weights: expected a sum of 1, received one of {total:.6g}; divide by it, or leave weights out for independent draws of p."
        )
    return weights


@jit
def _from_samples(
    log_prob: LogProb,
    params: Params,
    samples: Any,
    values: jax.Array,
    weights: jax.Array | None,
    baseline: jax.Array | None,
    *,
    sem: bool,
    chains: bool,
    block_size: int | None,
) -> SampleGradient:
    if not chains:  # draws are chains of one
        samples, values = jax.tree.map(lambda x: x[:, None], (samples, values))
    gradient = partial(_gradient, log_prob, params, block_size=block_size)
    if weights is not None:
        weights = weights[:, None].astype(values.dtype)
        values = jnp.where(weights == 0, 0, values)
        # Twice, since the mean is rounded, and what is left multiplies a mean score that may be large.
        credit = values - jnp.sum(weights * values) if baseline is None else values - baseline.astype(values.dtype)
        credit = credit - jnp.sum(weights * credit) if baseline is None else credit
        return SampleGradient(gradient(samples, weights * credit, weights != 0), None)
    if baseline is None:
        values = values - jnp.mean(values)
        credit, error = values - _mean_of_others(values), _pseudo_values(values)
    else:
        credit = error = values - baseline.astype(values.dtype)
    if not sem:
        return SampleGradient(gradient(samples, credit / values.size), None)
    stack = jnp.stack([credit, error, jnp.ones_like(values)]) / values.size
    sums = jax.vmap(gradient, (None, 0))(samples, stack)
    grads, mean, score = (jax.tree.map(lambda x, i=i: x[i], sums) for i in range(3))
    if baseline is not None:
        score = jax.tree.map(jnp.zeros_like, score)  # a normalized density's is not estimated
    size = rows_in_block(_weighted(log_prob), params, (samples, values), block_size) // values.shape[1]
    size = max(1, min(size, _NUMBERS // optax.tree.size(params)))
    return SampleGradient(grads, _between(gradient, samples, error, score, mean, size))


def _mean_of_others(values: jax.Array) -> jax.Array:
    """For each draw of `(C, N)` the mean over the chains that are not its own."""
    column = values.reshape((-1, 1))
    others = LeaveOneOut("trajectory", group_size=values.shape[1])
    return others.means(column, jnp.ones_like(column)).reshape(values.shape)


def _pseudo_values(values: jax.Array) -> jax.Array:
    """The u of centered values `(C, N)`, with which P_c = mean over n of u (s − mean score) are the jackknife's pseudo-values of chains.

    With bars for means over a chain and all values and scores centered, the estimate is a mean over pairs of chains, a ≠ b, of
    ½ (q_a + q_b − f̄_a s̄_b − f̄_b s̄_a), where q is the mean of f s over a chain. Without chain c it is one over the other pairs, and so
    P_c = q_c + 2 f̄_c s̄_c / (C − 2), up to a constant.
    """
    return values + 2 / max(values.shape[0] - 2, 1) * jnp.mean(values, axis=1, keepdims=True)


def _between(
    gradient: Callable[..., Params], samples: Any, error: jax.Array, score: Params, mean: Params, size: int
) -> Params:
    """The standard error √(Σ (P_c − mean)² / (C (C − 1))) from contributions P_c of chains, never more than `size` of them at once."""
    num, length = error.shape

    def squares(chain: tuple[Any, jax.Array]) -> Params:
        samples, error = chain
        own, share = gradient(samples, error / length), jnp.mean(error)
        return jax.tree.map(lambda g, s, m: jnp.square(g - share.astype(s.dtype) * s - m), own, score, mean)

    total = sum_results(squares, (samples, error), size)
    return jax.tree.map(lambda x: jnp.sqrt(x / num / (num - 1)), total)


def _gradient(
    log_prob: LogProb,
    params: Params,
    samples: Any,
    weights: jax.Array,
    valid: jax.Array | None = None,
    *,
    block_size: int | None,
) -> Params:
    """∇ Σ w log p̃ over samples with the leading axes of `weights`."""
    parts = math.gcd(weights.size, jax.device_count())  # a row for each device, of which blocks are cut
    counts = jnp.ones(weights.shape, bool) if valid is None else valid
    rows, counts = jax.tree.map(
        lambda x: x.reshape((parts, weights.size // parts, *x.shape[weights.ndim :])), ((samples, weights), counts)
    )
    return jax.grad(lambda p: sum_rows(_weighted(log_prob), p, rows, counts, block_size=block_size))(params)


def _weighted(log_prob: LogProb) -> Callable[[Any, Any], jax.Array]:
    """The term w log p̃(x) of a sample and its weight."""

    def term(params: Params, row: Any) -> jax.Array:
        sample, weight = row
        log = scalar_cost(log_prob(params, wide(sample)), "log_prob")
        return weight.astype(log.dtype) * log

    return term
