"""Several independent choices as one action."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import alike, array_of
from logderiv._core.pytrees import pytree
from logderiv.distributions.interop import log_probs, probs, sample


@pytree
class Joint:
    """Independent choices as one action: p(a) = Π_i p_i(a_i), over every choice of every part.

    The action is a pytree of the structure of `parts`, each distribution replaced by its draw; all axes of a part are summed over.
    So `Joint({"steer": Normal(loc, scale), "gear": Categorical(logits)})` draws a dictionary, and `Joint(Categorical(logits))` with
    logits of shape `(P, A)` draws one vector of `P` integers. Choices of unequal size in one vector are rows of the logits that
    end in `-inf`. Each part may be masked by itself, `Categorical(masked(logits, mask))`.

    It is of one action; use `jax.vmap` for a batch.

    Attributes:
        parts: A distribution, or a pytree of them: of this library, distrax, TensorFlow Probability or numpyro.

    Raises:
        ValueError: There is no part.
        TypeError: A part is no distribution.

    Example:
        >>> import jax.numpy as jnp
        >>> from logderiv import Categorical
        >>> law = Joint((Categorical(jnp.zeros(2)), Categorical(jnp.zeros(4))))
        >>> float(law.prob((0, 3))), round(float(law.entropy() / jnp.log(2)), 6)
        (0.125, 3.0)
    """

    parts: Any

    def __post_init__(self) -> None:
        parts = jax.tree.leaves(self.parts, is_leaf=_is_distribution)
        if not parts:
            raise ValueError("parts: expected at least one distribution, received none.")
        for part in parts:
            if not _is_distribution(part):
                raise TypeError(
                    f"parts: expected distributions with a log_prob method, received {type(part).__name__}."
                )

    def log_prob(self, action: Any) -> jax.Array:
        """Σ_i log p_i(a_i).

        Args:
            action: A pytree of the structure and shapes of one draw.

        Returns:
            Shape `()`; `-inf` where a part is impossible.

        Raises:
            TypeError: A part's action is of another kind than its draws.
            ValueError: `action` has another structure, or a part another shape.
        """
        return _total([log_probs(part, a) for part, a in self._pairs(action)])

    def prob(self, action: Any) -> jax.Array:
        """Π_i p_i(a_i).

        Args:
            action: A pytree of the structure and shapes of one draw.

        Returns:
            Shape `()`; 0 where a part is impossible.

        Raises:
            TypeError: A part's action is of another kind than its draws.
            ValueError: `action` has another structure, or a part another shape.
        """
        terms = [probs(part, a) for part, a in self._pairs(action)]
        return jnp.prod(jnp.stack([jnp.prod(x) for x in _together(terms)]))

    def sample(self, key: jax.Array) -> Any:
        """Draw an action.

        Args:
            key: One key. Consumed.

        Returns:
            A pytree of the structure of `parts`.
        """
        parts, structure = self._flat()
        return structure.unflatten(map(sample, parts, jax.random.split(key, len(parts))))

    def entropy(self) -> jax.Array:
        """Σ_i H(p_i).

        Returns:
            In nats, shape `()`.

        Raises:
            TypeError: A part has no entropy.
        """
        return _total(self._of_each("entropy"))

    def mode(self) -> Any:
        """The likeliest action of each part, as its distribution says.

        Returns:
            A pytree of the structure of `parts`.

        Raises:
            TypeError: A part has no mode.
        """
        return self._flat()[1].unflatten(self._of_each("mode"))

    def _of_each(self, name: str) -> list[Any]:
        """What the method of this name gives of each part."""
        parts = jax.tree_util.tree_leaves_with_path(self.parts, is_leaf=_is_distribution)
        for path, part in parts:
            if not hasattr(part, name):
                raise TypeError(f"parts{jax.tree_util.keystr(path)}: {type(part).__name__} has no {name}().")
        return [getattr(part, name)() for _, part in parts]

    def _flat(self) -> tuple[list[Any], Any]:
        return jax.tree.flatten(self.parts, is_leaf=_is_distribution)

    def _pairs(self, action: Any) -> list[tuple[Any, Any]]:
        """Each part and its action, checked."""
        parts, structure = self._flat()
        try:
            actions = structure.flatten_up_to(action)
        except (ValueError, TypeError):
            found = jax.tree.structure(action)
            raise ValueError(f"action: expected the structure of the parts, {structure}, received {found}.") from None
        return [(part, _of_one_draw(part, a)) for part, a in zip(parts, actions, strict=True)]


def _is_distribution(x: Any) -> bool:
    return hasattr(x, "log_prob")


def _of_one_draw(part: Any, action: Any) -> Any:
    """The action of a part, checked to have the shape of a draw: one that is broadcast would be counted several times."""
    if not hasattr(part, "sample"):
        return action
    like = jax.eval_shape(partial(sample, part), jax.random.key(0))
    if not isinstance(like, jax.ShapeDtypeStruct):
        check.like("action", action, like, hint="as a draw of this part")
        return action
    action = array_of(action, "action")
    check.shape(like.shape, hint="as a draw of this part; use jax.vmap for a batch", action=action)
    return action


def _together(terms: list[Any]) -> list[jax.Array]:
    return alike(**{f"parts[{i}]": x for i, x in enumerate(terms)})


def _total(terms: list[Any]) -> jax.Array:
    return jnp.sum(jnp.stack([jnp.sum(x) for x in _together(terms)]))
