"""Policies whose actions fit an environment: a head for every action space, and a perceptron before it."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical, masked
from logderiv.distributions.joint import Joint
from logderiv.distributions.normal import Normal
from logderiv.distributions.tanh_normal import TanhNormal, normal_head
from logderiv.environments import ActionSpace, as_environment
from logderiv.environments._masks import LEAF, find_mask, mask_rows
from logderiv.environments._spaces import action_space, flat_spaces, parts_of
from logderiv.policies.stepwise import MLP, MLPActorCritic
from logderiv.types import Environment


@pytree(static=("spaces", "structure", "squash"))
class ActionHead:
    """From the outputs of a network to a distribution over the actions of a space; `policy_for` makes it.

    | part of the space | distribution | outputs |
    |---|---|---|
    | one choice among `A` | `Categorical` | `A` |
    | several choices, in one array | `Joint` of one `Categorical` | `Σ A_i` |
    | `D` real numbers, squashed | `TanhNormal` between its bounds | `2 D` |
    | `D` real numbers | `Normal` | `2 D` |

    Parts are `Joint`, in the form of the space: a dictionary or a tuple.

    Attributes:
        spaces: The parts, an `ActionSpace` each.
        structure: Their structure.
        squash: Of each part, whether its real numbers are squashed.
    """

    spaces: tuple[ActionSpace, ...]
    structure: Any
    squash: tuple[bool, ...]

    @property
    def num_outputs(self) -> int:
        """How many outputs it takes."""
        return sum(map(_num_outputs, self.spaces))

    def __call__(self, outputs: jax.Array) -> Any:
        """The distribution.

        Args:
            outputs: Shape `(num_outputs,)`.

        Returns:
            A distribution over one action of the space.
        """
        ends = np.cumsum([_num_outputs(space) for space in self.spaces])[:-1].tolist()
        laws = map(_distribution, self.spaces, self.squash, jnp.split(outputs, ends))
        parts = self.structure.unflatten(laws)
        return parts if hasattr(parts, "log_prob") else Joint(parts)

    def masked(self, outputs: jax.Array, mask: Any) -> jax.Array:
        """The outputs with `-inf` in the place of logits of choices that are not allowed.

        Args:
            outputs: Shape `(num_outputs,)`.
            mask: True where a choice is allowed, in the form of the space: shape `(A,)` for one choice; for several `(..., A)` with the
                largest `A`, or a tuple of vectors; `None` for real numbers.

        Returns:
            Shape `(num_outputs,)`.

        Raises:
            ValueError: A mask of another structure or shape.
            TypeError: It is not boolean.
        """
        rows = mask_rows(self.structure.unflatten(self.spaces), mask)
        sizes = [size for space in self.spaces for size in _sizes(space)]
        each = jnp.split(outputs, np.cumsum(sizes)[:-1].tolist())
        return jnp.concatenate([x if row is None else masked(x, row) for x, row in zip(each, rows, strict=True)])

    def __repr__(self) -> str:
        places = [place for place, _ in flat_spaces(self.structure.unflatten(self.spaces))[0]]
        words = map(_described, places, self.spaces, self.squash)
        return f"<{'; '.join(words)}>"


def policy_for(
    environment: Any,
    *,
    hidden: Any = (64, 64),
    value: bool = False,
    squash: bool | None = None,
    mask: str | None = "action_mask",
    initializer: str = "lecun_normal",
    environment_params: Any = None,
) -> Any:
    """A perceptron whose distribution fits the actions of an environment; its `head` prints what was chosen.

    A space of choices gets categorical distributions, one of real numbers a `TanhNormal` between its bounds or, where it has none, a
    `Normal`; a dictionary or tuple of spaces, and an array of several choices, get a `Joint`. Actions count from 0; the adapters add
    the `start` of a space. Where the observation has a leaf of the name `mask`, what it forbids has log-probability `-inf`.

    Args:
        environment: An environment with the attribute `action_space`, an `ActionSpace` or a space of Gymnasium, or nested
            dictionaries and tuples of them; or an unmodified environment of a suite.
        hidden: Widths of the hidden layers.
        value: Whether to add a value of the state: an `MLPActorCritic`, whose `value` is for `logderiv.ActorCritic`.
        squash: Whether real numbers are squashed into their bounds; `None` for where all bounds are finite.
        mask: The entry or field of the observation with the mask of the actions, booleans or 0 and 1 in eight bits, which only the
            default may lack; `None` to leave it aside.
        initializer: Where weights start, as of `MLP`: "lecun_normal" or "orthogonal".
        environment_params: Passed to `reset`, which is traced for the form of the observation.

    Returns:
        An `MLP`, or an `MLPActorCritic`.

    Raises:
        TypeError: The environment has no action space, or one of a kind that no distribution here fits.
        ValueError: `squash=True` where a bound is infinite; bounds of which some are infinite; a mask that does not fit, or is not there;
            an unknown `initializer`.

    Example:
        >>> import jax.numpy as jnp, logderiv as ld
        >>> class Two:
        ...     action_space = ld.environments.ActionSpace((2,), True, (3, 5), "two choices")
        ...     reset = lambda self, key, params=None: (jnp.zeros(4), jnp.zeros(()))
        ...     step = None
        >>> ld.policy_for(Two()).head
        <two choices: 2 categorical choices, 8 logits>
    """
    stepper = as_environment(environment)
    head = _head(stepper, squash)
    found = jax.eval_shape(lambda key: stepper.reset(key, environment_params)[0], jax.random.key(0))
    masks = None if mask is None else jax.eval_shape(partial(find_mask, name=mask), found)
    if mask is not None and masks is None:
        if mask != LEAF:
            raise ValueError(
                f"mask: expected an entry or a field of the observation, received {mask!r}, which it has not; an adapter that takes a "
                f"mask from info, such as logderiv.environments.Gymnasium(..., mask=...), calls it {LEAF!r}."
            )
        mask = None
    if mask is not None:
        outputs = jax.ShapeDtypeStruct((head.num_outputs,), jnp.float32)
        jax.eval_shape(head.masked, outputs, masks)
    make = MLPActorCritic if value else MLP
    return make(head.num_outputs, hidden, head, mask=mask, initializer=initializer)


def _head(environment: Environment, squash: bool | None) -> ActionHead:
    own = getattr(environment, "action_space", None)
    space = action_space(own)
    fitting = "Discrete, MultiDiscrete, MultiBinary, Box of real numbers, and Dict and Tuple of these"
    if space is None:
        received = type(environment).__name__ if own is None else f"{own}"
        raise TypeError(
            f"environment.action_space: expected {fitting}, received {received}; write a policy of your own."
        )
    if starts := [x for x in _starts(own) if np.any(x)]:
        raise ValueError(
            f"environment.action_space: expected choices that count from 0, received start={starts[0]}; add it in step, or wrap the "
            "environment in logderiv.environments.Gymnasium."
        )
    parts, structure = flat_spaces(space)
    for place, part in parts:
        if part.integer and part.num_values is None:
            raise TypeError(
                f"environment.action_space{place}: expected {fitting}, received {part.name} of whole numbers; use MultiDiscrete."
            )
    spaces = tuple(part for _, part in parts)
    return ActionHead(spaces, structure, tuple(_squashed(place, part, squash) for place, part in parts))


def _starts(space: Any) -> list[Any]:
    """Where the parts of an environment's own space begin to count; adapters add that themselves."""
    inner = None if isinstance(space, ActionSpace) else parts_of(space)
    if inner is None:
        return [getattr(space, "start", 0)]
    return [start for part in (inner.values() if isinstance(inner, dict) else inner) for start in _starts(part)]


def _squashed(place: str, space: ActionSpace, squash: bool | None) -> bool:
    """Whether the real numbers of a part are squashed."""
    if space.integer:
        return False
    low, high = space.low, space.high
    finite = np.zeros(1, bool) if low is None or high is None else np.isfinite(np.append(low, high))
    if not finite.all() and (squash or (squash is None and finite.any())):
        raise ValueError(
            f"environment.action_space{place}: expected finite bounds to squash between, received {space.name} from {low} to {high}; "
            "pass squash=False for a Normal, or bound the space."
        )
    squashed = bool(finite.all()) if squash is None else squash
    in_a_row = {1, *space.shape[-1:]}
    if squashed and not {len(np.ravel(np.asarray(x))) for x in (low, high)} <= in_a_row:
        raise ValueError(
            f"environment.action_space{place}: expected equal bounds in all rows of {space.name}; pass squash=False."
        )
    return squashed


def _sizes(space: ActionSpace) -> tuple[int, ...]:
    """The outputs of each choice, or of all real numbers together."""
    if space.num_values is None:
        return (2 * math.prod(space.shape),)
    return (space.num_values,) if isinstance(space.num_values, int) else space.num_values


def _num_outputs(space: ActionSpace) -> int:
    return sum(_sizes(space))


def _distribution(space: ActionSpace, squash: bool, outputs: jax.Array) -> Any:
    if isinstance(space.num_values, int):
        return Categorical(outputs)
    if space.num_values is not None:
        return Joint(Categorical(_in_rows(outputs, space.num_values).reshape(*space.shape, -1)))
    law = normal_head(outputs)
    loc, scale = law.loc.reshape(space.shape), law.scale.reshape(space.shape)
    law = TanhNormal(loc, scale, space.low, space.high) if squash else Normal(loc, scale)  # pyright: ignore[reportArgumentType]
    return law if len(space.shape) < 2 else Joint(law)


def _in_rows(logits: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """The logits of several choices as rows that end in `-inf`."""
    places = np.arange(max(sizes))
    first = np.cumsum([0, *sizes[:-1]])
    inside = places < np.asarray(sizes)[:, None]
    index = np.where(inside, first[:, None] + places, 0)
    return jnp.where(inside, logits[index], -jnp.inf)


def _described(place: str, space: ActionSpace, squash: bool) -> str:
    if space.num_values is not None:
        sizes = _sizes(space)
        words = "1 categorical choice" if len(sizes) == 1 else f"{len(sizes)} categorical choices"
        words = f"{words}, {sum(sizes)} logits"
    else:
        bounds = f"TanhNormal from {space.low} to {space.high}" if squash else "Normal"
        words = f"{bounds}, {math.prod(space.shape)} means and as many log standard deviations"
    return f"{place + ' ' if place else ''}{space.name}: {words}"
