"""What a model may not do: the table, and what its rows are made of; each row fails at the line that ends in `# here`."""

from typing import Any

import jax

import logderiv as ld

Row = tuple[Any, str]
REFUSED: dict[str, Row] = {}


def refused(words: str) -> Any:
    """A row: the model, and words of the remedy."""

    def add(model: Any) -> Any:
        REFUSED[model.__name__] = model, words
        return model

    return add


def coin(logit: Any) -> jax.Array:
    """0.0 or 1.0."""
    return ld.sample(ld.Bernoulli(logit)).astype(float)


@jax.jit
def jitted(logit):
    """0.0 or 1.0."""
    return ld.sample(ld.Bernoulli(logit)).astype(float)  # here
