"""The multivariate normal distribution, and covariances as unconstrained parameters."""

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from logderiv._core.arrays import HALF_LOG_2PI
from logderiv._core.pytrees import pytree
from logderiv.types import Key


@pytree
class MultivariateNormal:
    """The multivariate normal distribution N(μ, L Lᵀ).

        log p(x) = -|L⁻¹(x - μ)|² / 2 - Σ_i log L_ii - n log(2π) / 2

    `sample` is reparameterized, so a score needs a detached sample, as for `logderiv.Normal`.

    Attributes:
        loc: Mean μ, shape `(n,)`.
        scale_tril: Lower-triangular `L` with a positive diagonal, shape `(n, n)`.
    """

    loc: jax.Array
    scale_tril: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of one vector.

        Args:
            x: Shape `(n,)`.

        Returns:
            Shape `()`.
        """
        standard = solve_triangular(self.scale_tril, x - self.loc, lower=True)
        terms = -0.5 * jnp.square(standard) - jnp.log(jnp.diagonal(self.scale_tril))
        return jnp.sum(terms - jnp.asarray(HALF_LOG_2PI, terms.dtype))

    def sample(self, key: Key) -> jax.Array:
        """Draw `loc + scale_tril @ noise`.

        Args:
            key: One key. Consumed.

        Returns:
            Shape `(n,)`.
        """
        return self.loc + self.scale_tril @ jax.random.normal(key, self.loc.shape, self.loc.dtype)

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
        loc: Mean of all components, shape `(n,)`.
        covariance: Of all components, shape `(n, n)`.
        observed: Which of them are observed, shape `(n,)`, bool; what stands elsewhere in `x` does not matter.
    """

    loc: jax.Array
    covariance: jax.Array
    observed: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of the observed components; 0 where there are none.

        Args:
            x: All components, shape `(n,)`; those that are not observed may be anything.

        Returns:
            Shape `()`.
        """
        x, zero = x.astype(self.loc.dtype), jnp.zeros_like(self.loc)
        scale = jnp.linalg.cholesky(mask_covariance(self.covariance, self.observed))
        full = MultivariateNormal(zero, scale).log_prob(jnp.where(self.observed, x - self.loc, zero))
        return full + jnp.sum(~self.observed, dtype=x.dtype) * jnp.asarray(HALF_LOG_2PI, x.dtype)

    def sample(self, key: Key) -> jax.Array:
        """Draw all components, reparameterized.

        Args:
            key: One key. Consumed.

        Returns:
            Shape `(n,)`.
        """
        return MultivariateNormal(self.loc, jnp.linalg.cholesky(self.covariance)).sample(key)


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

    References:
        Pinheiro & Bates (1996), Statistics and Computing 6, section 2.2, log-Cholesky.
    """
    scale = jnp.tril(log_cholesky, -1) + jnp.diag(jnp.exp(jnp.diagonal(log_cholesky)))
    return scale @ scale.T


def log_cholesky_of(covariance: jax.Array) -> jax.Array:
    """The parameters of a covariance: the inverse of `covariance_from`.

    Args:
        covariance: Positive definite, shape `(n, n)`.

    Returns:
        Shape `(n, n)`, 0 above the diagonal.
    """
    scale = jnp.linalg.cholesky(covariance)
    return jnp.tril(scale, -1) + jnp.diag(jnp.log(jnp.diagonal(scale)))
