"""Tables of what a model may not do, and what their rows are made of; each fails at the line that ends in `# here`."""

from typing import Any

import jax

import logderiv as ld


class Table(dict[str, tuple[Any, str, bool]]):
    """Models, words of the remedy, and whether the exact value of the model is refused, too."""

    def refused(self, words: str, *, listed: bool = True) -> Any:
        """A row."""

        def add(model: Any) -> Any:
            self[model.__name__] = model, words, listed
            return model

        return add


def coin(logit: Any) -> jax.Array:
    """0.0 or 1.0."""
    return ld.sample(ld.Bernoulli(logit)).astype(float)


@jax.jit
def jitted(logit):
    """0.0 or 1.0."""
    return ld.sample(ld.Bernoulli(logit)).astype(float)  # here
