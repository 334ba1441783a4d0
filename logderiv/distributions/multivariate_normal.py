"""The multivariate normal distribution, and covariances as unconstrained parameters."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from logderiv._core.arrays import register_dataclass


@dataclasses.dataclass(frozen=True)
class MultivariateNormal:
    r"""$N(\mu, L L^\top)$: $\log p(x) = -\tfrac12 |L^{-1}(x - \mu)|^2 - \sum_i \log L_{ii} - \tfrac n2 \log 2\pi$.

    `sample` is reparameterized, so a score needs a held sample, as for `logderiv.Normal`.

    Attributes:
        loc: Mean, shape `(n,)`.
        scale_tril: Lower-triangular `L` with a positive diagonal, shape `(n, n)`.
    """

    loc: jax.Array
    scale_tril: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of `x`, shape `(n,)`."""
        standard = solve_triangular(self.scale_tril, x - self.loc, lower=True)
        terms = -0.5 * jnp.square(standard) - jnp.log(jnp.diagonal(self.scale_tril))
        return jnp.sum(terms - jnp.asarray(0.5 * math.log(2 * math.pi), terms.dtype))

    def sample(self, key: jax.Array) -> jax.Array:
        """`loc + scale_tril @ noise`; `key` is consumed."""
        return self.loc + self.scale_tril @ jax.random.normal(key, self.loc.shape, self.loc.dtype)

    def mode(self) -> jax.Array:
        """The mean."""
        return self.loc


@dataclasses.dataclass(frozen=True)
class PartlyObserved:
    r"""The components of a `MultivariateNormal` that are observed: their joint density, the others integrated out.

    Attributes:
        loc: Mean of all components, shape `(n,)`.
        covariance: Of all components, shape `(n, n)`.
        observed: Which of them are observed, shape `(n,)`, bool; what stands elsewhere in `x` does not matter.
    """

    loc: jax.Array
    covariance: jax.Array
    observed: jax.Array

    def log_prob(self, x: jax.Array) -> jax.Array:
        """Log-density of the observed components; 0 where there are none."""
        x = x.astype(self.loc.dtype)
        zero = jnp.zeros_like(x)
        residual = jnp.where(self.observed, x - self.loc, zero)
        scale = jnp.linalg.cholesky(mask_covariance(self.covariance, self.observed))
        missing = jnp.sum(~self.observed, dtype=x.dtype)
        full = MultivariateNormal(zero, scale).log_prob(residual)
        return full + missing * jnp.asarray(0.5 * math.log(2 * math.pi), x.dtype)

    def sample(self, key: jax.Array) -> jax.Array:
        """All components, reparameterized; `key` is consumed."""
        return MultivariateNormal(self.loc, jnp.linalg.cholesky(self.covariance)).sample(key)


register_dataclass(MultivariateNormal, ("loc", "scale_tril"))
register_dataclass(PartlyObserved, ("loc", "covariance", "observed"))


def mask_covariance(covariance: jax.Array, observed: jax.Array) -> jax.Array:
    """`covariance` with the rows and columns of unobserved components those of the identity."""
    both = observed[:, None] & observed[None]
    return jnp.where(both, covariance, jnp.eye(covariance.shape[-1], dtype=covariance.dtype))


def covariance_from(log_cholesky: jax.Array) -> jax.Array:
    r"""$L L^\top$ from an unconstrained square matrix.

    Its lower triangle is that of `L`, with the logarithm on the diagonal; its upper triangle is not used.

    References:
        Pinheiro & Bates (1996), Statistics and Computing 6, section 2.2, log-Cholesky.
    """
    scale = jnp.tril(log_cholesky, -1) + jnp.diag(jnp.exp(jnp.diagonal(log_cholesky)))
    return scale @ scale.T


def log_cholesky_of(covariance: jax.Array) -> jax.Array:
    """The parameters of a positive definite covariance: the inverse of `covariance_from`."""
    scale = jnp.linalg.cholesky(covariance)
    return jnp.tril(scale, -1) + jnp.diag(jnp.log(jnp.diagonal(scale)))
