"""Choices with finitely many outcomes: one-hot vectors, and the outcomes of any such distribution by number."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import alike, as_mask, expand
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical, fit, log_softmax, softmax
from logderiv.distributions.interop import log_probs, range_of, sample
from logderiv.distributions.joint import Joint


@pytree
class OneHotCategorical:
    """p(e_a) = exp(ℓ_a) / Σ_b exp(ℓ_b) for the unit vectors e_0, ..., e_{A-1}: a `Categorical` whose outcomes are floating point.

    Costs can be differentiated in such an outcome, which the biased methods of `logderiv.sample` do.

    Attributes:
        logits: Shape `(..., A)`, float32 at least; `-inf` masks an outcome.

    Raises:
        ValueError: `logits` have no last axis, or no outcome in it.
        TypeError: `logits` are no real numbers.
    """

    logits: jax.Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "logits", Categorical(self.logits).logits)

    def log_prob(self, action: jax.Array) -> jax.Array:
        """Log-probability of a unit vector.

        Args:
            action: Shape `(..., A)`, broadcast against `logits`.

        Returns:
            Σ_a action_a log p(e_a), `-inf` for what is no unit vector. The broadcast shape without its last axis.

        Raises:
            TypeError: `action` is no real number.
            ValueError: `action` has a shape that does not fit.
        """
        return self._of_index(log_softmax(self.logits), action, -jnp.inf)

    def prob(self, action: jax.Array) -> jax.Array:
        """Probability of a unit vector.

        Args:
            action: Shape `(..., A)`, broadcast against `logits`.

        Returns:
            Σ_a action_a p(e_a), 0 for what is no unit vector. The broadcast shape without its last axis.

        Raises:
            TypeError: `action` is no real number.
            ValueError: `action` has a shape that does not fit.
        """
        return self._of_index(softmax(self.logits), action, 0.0)

    def sample(self, key: jax.Array) -> jax.Array:
        """Draw a unit vector.

        Args:
            key: One key. Consumed.

        Returns:
            Shape and dtype of `logits`.
        """
        return self._unit(Categorical(self.logits).sample(key))

    def quantile(self, probability: jax.Array, *, upper: Any = False) -> jax.Array:
        """The unit vector whose number is that of `Categorical.quantile`: of a uniform u a draw.

        Args:
            probability: u, or 1 - u where `upper`; between 0 and 1, broadcast against the leading axes of `logits`.
            upper: Whether `probability` counts from the top; broadcast against it.

        Returns:
            Shape and dtype of `logits`.

        Gradients: none; a step function.
        """
        return self._unit(Categorical(self.logits).quantile(probability, upper=upper))

    def entropy(self) -> jax.Array:
        """-Σ_a p(e_a) log p(e_a), masked outcomes contributing 0.

        Returns:
            In nats, shape of the leading axes of `logits`.
        """
        return Categorical(self.logits).entropy()

    def mode(self) -> jax.Array:
        """The likeliest unit vector.

        Returns:
            Shape and dtype of `logits`.
        """
        return self._unit(Categorical(self.logits).mode())

    def _unit(self, index: jax.Array) -> jax.Array:
        return jax.nn.one_hot(index, self.logits.shape[-1], dtype=self.logits.dtype)

    def _of_index(self, table: jax.Array, action: Any, outside: float) -> jax.Array:
        action, table = alike(action=action, table=table)
        shape = fit(table.shape, action=action)
        action, table = jnp.broadcast_to(action, shape), jnp.broadcast_to(table, shape)
        unit = jnp.all((action == 0) | (action == 1), axis=-1) & (jnp.sum(action, axis=-1) == 1)
        possible = table != -jnp.inf  # true of NaN, which stays one
        # Linear in the action, which may carry a derivative.
        chosen = jnp.sum(action * jnp.where(possible, table, 0), axis=-1)
        return jnp.where(unit & ~jnp.any((action == 1) & ~possible, axis=-1), chosen, outside)


def outcome(distribution: Any, index: jax.Array) -> jax.Array | None:
    """The outcome of this number of a single choice; `None` where outcomes have no numbers.

    Args:
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.
        index: An integer; one that is out of range gives an outcome of probability 0.

    Returns:
        Of the shape and dtype of a draw: the integer itself, or a unit vector; of a `Joint` one of all combinations, the last
        choice of the last part counted first.
    """
    if isinstance(distribution, Joint):
        sizes = _sizes(distribution)
        return None if sizes is None else _combination(distribution, _digits(index, sizes))
    like = jax.eval_shape(partial(sample, distribution), jax.random.key(0))
    if isinstance(distribution, OneHotCategorical) and like.ndim == 1:
        return distribution._unit(index)
    single = isinstance(like, jax.ShapeDtypeStruct) and like.shape == ()
    if single and (jnp.issubdtype(like.dtype, jnp.integer) or like.dtype == jnp.bool_):
        return index.astype(like.dtype)
    return None


def num_outcomes(distribution: Any) -> int | None:
    """How many outcomes a single choice has; `None` where they cannot be counted, or for several choices at once.

    Args:
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.

    Returns:
        The number of outcomes `0, 1, ...`, or of unit vectors; of a `Joint` that of all combinations.
    """
    if isinstance(distribution, Joint):
        sizes = _sizes(distribution)
        return None if sizes is None else math.prod(sizes)
    value = outcome(distribution, jnp.zeros((), jnp.int32))
    if value is None or hasattr(distribution, "outcomes"):  # TFP's FiniteDiscrete: any numbers
        return None
    if isinstance(distribution, OneHotCategorical):
        return distribution.logits.shape[-1]
    return _finite(range_of(distribution, value))


def outcomes_of(name: str, distribution: Any) -> int:
    """`num_outcomes` where there are any.

    Args:
        name: What needs them, for the message.
        distribution: Of this library, distrax, TensorFlow Probability or numpyro.

    Returns:
        The number of outcomes.

    Raises:
        TypeError: They cannot be counted, or these are several choices.
    """
    num = num_outcomes(distribution)
    if num is None:
        raise TypeError(
            f"{name}: expected one choice with finitely many outcomes (a Bernoulli, a Categorical or a OneHotCategorical without batch "
            f"axes), received {type(distribution).__name__}; a real number is drawn by 'score' or 'pathwise', several choices are made by "
            "logderiv.plate."
        )
    return num


def _sizes(distribution: Any) -> list[int] | None:
    """How many outcomes each choice of a `Joint`, or of a part of one, has; `None` where they cannot be counted in 32 bits."""
    if isinstance(distribution, Joint):
        found = [_sizes(part) for part in distribution._flat()[0]]
        sizes = None if any(x is None for x in found) else [n for x in found for n in x or ()]
    elif isinstance(distribution, OneHotCategorical):
        sizes = [distribution.logits.shape[-1]] * math.prod(distribution.logits.shape[:-1])
    else:
        like = jax.eval_shape(partial(sample, distribution), jax.random.key(0))
        num = num_outcomes(distribution) or _finite(range_of(distribution, like))
        sizes = None if num is None else [num] * math.prod(like.shape)
    return None if sizes is None or math.prod(sizes) >= 2**31 else sizes


def _finite(size: float | None) -> int | None:
    return None if size is None or size == math.inf else int(size)


def _digits(index: jax.Array, sizes: list[int]) -> list[jax.Array]:
    """The outcome of each choice; the first one is out of range where the index is."""
    digits = []
    for size in sizes[:0:-1]:
        digits.append(index % size)
        index = index // size
    return [index, *digits[::-1]]


def _combination(distribution: Any, digits: list[jax.Array]) -> Any:
    """The draw of a `Joint` in which its choices, in their order, have these outcomes; the list is used up."""
    if isinstance(distribution, Joint):
        parts, structure = distribution._flat()
        return structure.unflatten([_combination(part, digits) for part in parts])
    like = jax.eval_shape(partial(sample, distribution), jax.random.key(0))
    one_hot = isinstance(distribution, OneHotCategorical)
    shape = like.shape[:-1] if one_hot else like.shape
    own = jnp.stack([digits.pop(0) for _ in range(math.prod(shape))]).reshape(shape)
    return distribution._unit(own) if one_hot else own.astype(like.dtype)


def with_padding(distribution: Any, where: Any) -> tuple[Any, jax.Array | None]:
    """The distribution with 1 for every parameter where `where` is false, so that nothing of the padding has a derivative.

    Args:
        distribution: A pytree of parameters, whose leading axes are those of `where`.
        where: Shape `(...)`, boolean; false for padding. `None` for no padding.

    Returns:
        The same kind of distribution, and the mask, or `None`.

    Raises:
        TypeError: `where` is not boolean.
        ValueError: A parameter, or the choices, have not these leading axes.
    """
    if where is None:
        return distribution, None
    where = as_mask(where, "where")

    def one(x: Any) -> Any:
        x = jnp.asarray(x)
        if x.shape[: where.ndim] != where.shape:
            raise ValueError(
                f"where: expected the leading axes of every parameter, {x.shape}, received shape {where.shape}."
            )
        return jnp.where(expand(where, x), x, jnp.ones_like(x))

    distribution = jax.tree.map(one, distribution)
    like = jax.eval_shape(lambda key: log_probs(distribution, sample(distribution, key)), jax.random.key(0))
    if like.shape[: where.ndim] != where.shape:
        raise ValueError(
            f"where: expected the leading axes of the choices, {like.shape}, received shape {where.shape}."
        )
    return distribution, where


def zero_padding(value: Any, where: jax.Array | None) -> Any:
    """The value of choices with 0 where `where` is false."""
    if where is None:
        return value
    return jax.tree.map(lambda x: jnp.where(expand(where, x), x, jnp.zeros_like(x)), value)
