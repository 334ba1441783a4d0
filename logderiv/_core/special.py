"""The special functions behind log-probabilities and entropies, right in both tails and at every order of derivative.

All are made of plain operations, without a derivative rule of their own, for two reasons. Inside a scan JAX forgets the rule of
a `custom_jvp` function that calls itself, once reverse mode is part of a second derivative, and differentiates its body
instead. And a rule that is right once may lose its digits when it is differentiated again. Here each formula is analytic where
it is used, whichever side of a `where` that is, and what is added has one sign: so are its derivatives, and they keep their digits.
"""

import jax
import jax.numpy as jnp
from jax import lax

# log Φ(x) = -x²/2 - log(3.5 - x) + Σ_k c_k uᵏ with u = 6.5 / (3.5 - x) - 1, for x <= 0: the Chebyshev expansion in u, of which
# four derivatives are right to 1e-12, in powers of u. `tests/test_core_special.py` computes it anew.
_LOG_NDTR = """
    -0.23592404460875812 0.84014125704783729 0.15042156379095163 -0.033878796934720926 -0.031760818599775812
    0.0014233144438103886 0.0080003788298184872 0.00039562077244592803 -0.0022732550811650028 -0.00019598155222521375
    0.00069208145062428877 5.0950529868197497e-5 -0.0002155812372434717 -5.0996128556176549e-6 6.5753963396305605e-5
    -3.2132913289992287e-6 -1.8859373261923799e-5 2.4263774111345226e-6 4.9243412891510922e-6 -9.6336805181864318e-7
    -1.1605821224741737e-6 2.4237506705814879e-7 2.6113345095334809e-7 -2.459170084278424e-8 -6.3612822919058349e-8
    -9.1664687205373222e-9 1.6499382405304137e-8 5.0420310956316267e-9 -3.4101087173248557e-9 -1.1050610265770527e-9
    3.6011668755551304e-10 1.0238628077766378e-10
"""


def log_sigmoid(x: jax.Array) -> jax.Array:
    """The logarithm of σ(x)."""
    below = x < 0
    return jnp.where(below, x, 0) - jnp.log1p(jnp.exp(jnp.where(below, x, -x)))


def sigmoid(x: jax.Array) -> jax.Array:
    """σ(x) = 1 / (1 + exp(-x))."""
    below = x < 0
    odds = jnp.exp(jnp.where(below, x, -x))
    return jnp.where(below, odds, 1) / (1 + odds)


def log_softmax(x: jax.Array) -> jax.Array:
    """The logarithm of `softmax`; NaN where all logits are `-inf`."""
    shifted, rest = _relative_to_the_largest(x)
    return shifted - jnp.log1p(rest)


def softmax(x: jax.Array) -> jax.Array:
    """exp(x_a) / Σ_b exp(x_b), along the last axis."""
    shifted, rest = _relative_to_the_largest(x)
    return jnp.exp(shifted) / (1 + rest)


def _relative_to_the_largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits x less the largest, c, and Σ exp(x - c) - 1.

    The derivatives of c cancel. Where the largest has more than half of the probability, they are taken nevertheless, and its own
    term 1 is left out: the sum of the others is then as small as they are.
    """
    peak = jnp.max(x, axis=-1, keepdims=True)
    fixed = lax.stop_gradient(peak)
    dominates = jnp.sum(jnp.exp(lax.stop_gradient(x) - fixed), axis=-1, keepdims=True) < 2
    alone = dominates & (x == peak)
    shifted = jnp.where(alone, 0, x - jnp.where(dominates, peak, fixed))
    others = jnp.sum(jnp.where(alone, 0, jnp.exp(shifted)), axis=-1, keepdims=True)
    return shifted, others - jnp.where(dominates, jnp.zeros_like(others), jnp.ones_like(others))


def log_ndtr(x: jax.Array) -> jax.Array:
    """The logarithm of Φ(x), the standard normal distribution function."""
    below = x < 0
    tail = _log_ndtr_below(jnp.where(below, x, -x))
    return jnp.where(below, tail, jnp.log1p(-jnp.exp(jnp.where(below, -1, tail))))


def _log_ndtr_below(x: jax.Array) -> jax.Array:
    distance = 3.5 - x
    u = 6.5 / distance - 1
    total = jnp.zeros_like(x)
    for coefficient in reversed(_LOG_NDTR.split()):
        total = total * u + float(coefficient)
    return total - 0.5 * jnp.square(x) - jnp.log(distance)
