"""Tables of what a model may not do, and what their rows are made of; each fails at the line that ends in `# here`."""

from typing import Any

import jax

import logderiv as ld


class Table(dict[str, tuple[Any, str]]):
    """Models, and words of the remedy."""

    def refused(self, words: str) -> Any:
        """A row."""

        def add(model: Any) -> Any:
            self[model.__name__] = model, words
            return model

        return add


def coin(logit: Any) -> jax.Array:
    """0.0 or 1.0."""
    return ld.sample(ld.Bernoulli(logit)).astype(float)


@jax.jit
def jitted(logit):
    """0.0 or 1.0."""
    return ld.sample(ld.Bernoulli(logit)).astype(float)  # here
