"""The multivariate normal distribution, and covariances as unconstrained parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular

from logderiv._core import check
from logderiv._core.arrays import HALF_LOG_2PI, alike, set_alike, summable
from logderiv._core.noise import normal
from logderiv._core.products import precision_of
from logderiv._core.pytrees import pytree
from logderiv.types import Key


@pytree
class MultivariateNormal:
    """The multivariate normal distribution N(μ, L Lᵀ).

        log p(x) = -|L⁻¹(x - μ)|² / 2 - Σ_i log L_ii - n log(2π) / 2

    `sample` is reparameterized, so a score needs a detached sample, as for `logderiv.Normal`.

    Attributes:
        loc: Mean μ, shape `(n,)`; float32 at least.
        scale_tril: Lower-triangular `L` with a positive diagonal, shape `(n, n)`, in the dtype of `loc`. Under a trace what stands above
            the diagonal is not used.

    Raises:
        ValueError: Shapes disagree, a number on the diagonal is negative or NaN, or one above it is not 0.
        TypeError: One of them is no real number.
    """

    loc: jax.Array
    scale_tril: jax.Array

    def __post_init__(self) -> None:
        _loc_and_matrix(self, "scale_tril")
        if not check.is_traced(self.scale_tril):
            diagonal: Any = np.diagonal(self.scale_tril)
            hint = "the covariance was not positive definite" if np.isnan(diagonal).any() else ""
            check.not_negative(hint=hint, **{"diagonal of scale_tril": diagonal})
            if np.triu(self.scale_tril, 1).any():
                raise ValueError(
                    "scale_tril: expected a lower-triangular matrix, received one with entries above the diagonal; take "
                    "jnp.linalg.cholesky of a covariance, and the transpose of an upper-triangular factor."
                )

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of one vector.

        Args:
            x: Shape `(n,)`.

        Returns:
            Shape `()`.

        Raises:
            ValueError: `x` has another shape.
            TypeError: `x` is no real number.
        """
        x, loc, scale_tril = alike(x=x, loc=self.loc, scale_tril=self.scale_tril)
        check.shape(loc.shape, x=x)
        standard = solve_triangular(scale_tril, x - loc, lower=True)
        return jnp.sum(-0.5 * jnp.square(standard) - jnp.log(jnp.diagonal(scale_tril)) - HALF_LOG_2PI)

    def sample(self, key: Key) -> jax.Array:
        """Draw `loc + scale_tril @ noise`.

        Args:
            key: One key. Consumed.

        Returns:
            Shape `(n,)`.
        """
        noise = normal(key, self.loc.shape, self.loc.dtype)
        return self.loc + jnp.matmul(jnp.tril(self.scale_tril), noise, precision=precision_of())

    def mode(self) -> jax.Array:
        """The likeliest vector, the mean.

        Returns:
            `loc`.
        """
        return self.loc


@pytree
class PartlyObserved:
    """The components of a `MultivariateNormal` that are observed: their joint density, the others integrated out.

    Attributes:
        loc: Mean of all components, shape `(n,)`; float32 at least.
        covariance: Of all components, shape `(n, n)`, in the dtype of `loc`.
        observed: Which of them are observed, shape `(n,)`, bool; what stands elsewhere in `x` does not matter.

    Raises:
        ValueError: Shapes disagree.
        TypeError: One of the first two is no real number.
    """

    loc: jax.Array
    covariance: jax.Array
    observed: jax.Array

    def __post_init__(self) -> None:
        _loc_and_matrix(self, "covariance")
        check.shape(self.loc.shape, observed=self.observed)

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of the observed components; 0 where there are none.

        Args:
            x: All components, shape `(n,)`; those that are not observed may be anything.

        Returns:
            Shape `()`.

        Raises:
            ValueError: `x` has another shape.
            TypeError: `x` is no real number.
        """
        x, loc, covariance = alike(x=x, loc=self.loc, covariance=self.covariance)
        check.shape(loc.shape, x=x)
        observed, zero = jnp.asarray(self.observed, bool), jnp.zeros_like(loc)
        scale = jnp.linalg.cholesky(mask_covariance(covariance, observed))
        full = MultivariateNormal(zero, scale).log_prob(jnp.where(observed, x - loc, zero))
        return full + jnp.sum(~observed, dtype=x.dtype) * HALF_LOG_2PI

    def sample(self, key: Key) -> jax.Array:
        """Draw all components, reparameterized.

        Args:
            key: One key. Consumed.

        Returns:
            Shape `(n,)`.
        """
        return MultivariateNormal(self.loc, jnp.linalg.cholesky(self.covariance)).sample(key)


def _loc_and_matrix(distribution: Any, matrix: str) -> None:
    """Bring `loc` and a square matrix to one floating dtype, and check their shapes."""
    set_alike(distribution, "loc", matrix)
    size = jnp.shape(distribution.loc)
    if len(size) != 1:
        raise ValueError(f"loc: expected shape (n,), received {size}; use jax.vmap over several.")
    check.fields("", distribution, hint=f"loc has {size[0]} components", **{matrix: size * 2})


def mask_covariance(covariance: jax.Array, observed: jax.Array) -> jax.Array:
    """`covariance` with the rows and columns of unobserved components those of the identity.

    Args:
        covariance: Shape `(n, n)`.
        observed: Which components are observed, shape `(n,)`, bool.

    Returns:
        Shape `(n, n)`.
    """
    both = observed[:, None] & observed[None]
    return jnp.where(both, covariance, jnp.eye(covariance.shape[-1], dtype=covariance.dtype))


def covariance_from(log_cholesky: jax.Array) -> jax.Array:
    """L Lᵀ from an unconstrained square matrix.

    Args:
        log_cholesky: Its lower triangle is that of L, with the logarithm on the diagonal; its upper triangle is not used. Shape
            `(n, n)`.

    Returns:
        A positive definite matrix, shape `(n, n)`.

    Raises:
        ValueError: The matrix is not square, or there are several.
        TypeError: It is not of real numbers.

    References:
        Pinheiro & Bates (1996), Statistics and Computing 6, section 2.2, log-Cholesky.
    """
    log_cholesky = _one_square("log_cholesky", log_cholesky)
    scale = jnp.tril(log_cholesky, -1) + jnp.diag(jnp.exp(jnp.diagonal(log_cholesky)))
    return jnp.matmul(scale, scale.T, precision=precision_of())


def log_cholesky_of(covariance: jax.Array) -> jax.Array:
    """The parameters of a covariance: the inverse of `covariance_from`.

    Args:
        covariance: Positive definite, shape `(n, n)`.

    Returns:
        Shape `(n, n)`, 0 above the diagonal.

    Raises:
        ValueError: The matrix is not square, there are several, or, outside `jax.jit`, it is not positive definite.
        TypeError: It is not of real numbers.
    """
    covariance = _one_square("covariance", covariance)
    scale = jnp.linalg.cholesky(covariance)
    if not check.is_traced(scale) and np.isnan(scale).any() and not np.isnan(covariance).any():
        raise ValueError(f"covariance: expected a positive definite matrix, received {covariance.tolist()}.")
    return jnp.tril(scale, -1) + jnp.diag(jnp.log(jnp.diagonal(scale)))


def _one_square(name: str, matrix: Any) -> jax.Array:
    matrix = summable(matrix, name)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name}: expected shape (n, n), received {matrix.shape}; use jax.vmap over several.")
    return matrix
