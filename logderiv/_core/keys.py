"""Random keys as plain numbers, where loops and branches must not see keys."""

from typing import Any

import jax

from logderiv._core.pytrees import pytree


@pytree(static=("impl",))
class KeyBits:
    """Keys as their bits: JAX's checker of key reuse takes those among what a scan, a branch or `jax.vmap` is given for used twice.

    Attributes:
        bits: Data of the keys, uint32, with the leading axes of the keys.
        impl: Which generator they are of; static.
    """

    bits: jax.Array
    impl: Any

    @classmethod
    def of(cls, keys: jax.Array) -> "KeyBits":
        """The bits of typed keys."""
        return cls(jax.random.key_data(keys), jax.random.key_impl(keys))

    def keys(self) -> jax.Array:
        """The keys again; each is to be consumed once."""
        return jax.random.wrap_key_data(self.bits, impl=self.impl)
