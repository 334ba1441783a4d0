"""Policies that are taken step by step: the form in which the library takes every policy, and small networks.

Here and in `logderiv.likelihood.steps` alone it is known what kinds of policy there are.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.arrays import accumulator_dtype, array_of, as_key
from logderiv._core.products import EXACT, precision_of
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical, masked
from logderiv.distributions.interop import Forced, check_distribution, ranges
from logderiv.distributions.tanh_normal import Head
from logderiv.environments._masks import find_mask
from logderiv.policies.initializers import INITIALIZERS, perceptron_init
from logderiv.types import FunctionPolicy, Observation, Params, Policy


@pytree
class StepPolicy:
    """A policy in the form in which the library takes its steps; `as_policy` makes it.

    Attributes:
        policy: The policy itself.
    """

    policy: Any

    @property
    def has_memory(self) -> bool:
        """Whether a step depends on more than its observation."""
        return self.policy.initial_carry is not None

    @property
    def takes_sequences(self) -> bool:
        """Whether it has log-factors of its own, of a whole trajectory at once."""
        return getattr(self.policy, "log_factors", None) is not None

    @property
    def sees_time(self) -> bool:
        """Whether a step depends on those before it: in a trajectory with holes it would miss some."""
        return self.has_memory or self.takes_sequences

    def start(self, params: Params) -> Any:
        """What is carried into the first step.

        Args:
            params: Parameters of the policy.

        Returns:
            The carry, `()` without memory.
        """
        return self.policy.initial_carry(params) if self.has_memory else ()

    def step(self, params: Params, carry: Any, observation: Observation) -> tuple[Any, Any]:
        """One step, whether or not the policy has memory.

        Args:
            params: Parameters of the policy.
            carry: From `start` or the step before.
            observation: One observation.

        Returns:
            `(distribution, carry)`.

        Raises:
            TypeError: The policy takes other arguments, or returns something else.
        """
        arguments = (params, carry, observation) if self.has_memory else (params, observation)
        _check_takes(self.policy.apply, arguments)
        found = self.policy.apply(*arguments)
        several = isinstance(found, tuple | list) and not hasattr(found, "log_prob")
        if several != self.has_memory or (several and len(found) != 2):
            expected = "a pair (distribution, carry)" if self.has_memory else "a distribution"
            hint = "" if self.has_memory else "; one with memory says so by initial_carry"
            raise TypeError(f"policy: expected apply to return {expected}, received {_described(found)}{hint}.")
        distribution, carry = found if self.has_memory else (found, carry)
        if hasattr(carry, "log_prob") and not hasattr(distribution, "log_prob"):
            raise TypeError("policy: expected apply to return (distribution, carry), received them in the other order.")
        check_distribution(distribution)
        return distribution, carry

    def ranges(self, params: Params, observation: Observation, action: Any) -> list[float | None]:
        """How many values each leaf of an action may have; nothing is computed.

        Args:
            params: Parameters of the policy.
            observation: That of one step, or its shapes (`jax.ShapeDtypeStruct`).
            action: That of one step, or its shapes.

        Returns:
            A for a categorical leaf, 2 for a Bernoulli, infinity for counts, `None` for any other.
        """
        return self._of_a_step(ranges, params, observation, action)

    def forces(self, params: Params, observation: Observation) -> bool:
        """Whether a step's distribution may be a `logderiv.distributions.Forced`; nothing is computed.

        Args:
            params: Parameters of the policy.
            observation: That of one step, or its shapes (`jax.ShapeDtypeStruct`).

        Returns:
            Whether it is one.
        """
        return self._of_a_step(lambda distribution: isinstance(distribution, Forced), params, observation)

    def _of_a_step(self, function: Callable[..., Any], params: Params, observation: Observation, *rest: Any) -> Any:
        """What a function says of the first step's distribution, by its shapes alone."""
        found: list[Any] = []

        def first_step(params: Params, observation: Observation, rest: Any) -> None:
            distribution, _ = self.step(params, self.start(params), observation)
            found.append(function(distribution, *rest))

        jax.eval_shape(first_step, params, observation, rest)
        return found[0]


def shapes_of_one(steps: Any, axes: int) -> Any:
    """The shapes of one step, of arrays whose first `axes` are batch and time."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[axes:], jnp.result_type(x)), steps)


def as_policy(policy: Any) -> StepPolicy:
    """A policy, or a plain function `(params, observation) -> Distribution`, in the form in which steps are taken.

    Args:
        policy: A `logderiv.types.Policy`, a function, or what this function returned.

    Returns:
        A `StepPolicy`.

    Raises:
        TypeError: Neither of them.
    """
    if isinstance(policy, StepPolicy):
        return policy
    if hasattr(policy, "apply") and hasattr(policy, "initial_carry"):
        return StepPolicy(policy)
    if callable(policy) and not hasattr(policy, "apply"):
        return StepPolicy(FunctionPolicy(policy))
    raise TypeError(
        "expected a policy: a function (params, observation) -> distribution, or logderiv.FunctionPolicy; "
        f"received {type(policy).__name__}. Wrap a network as "
        "logderiv.FunctionPolicy(lambda params, observation: logderiv.Categorical(network.apply(params, observation)))."
    )


def _check_takes(apply: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Raise `TypeError` if a policy's function does not take these arguments."""
    try:
        signature = inspect.signature(apply)
    except (TypeError, ValueError):  # of a builtin
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        expected = "(params, observation), or (params, carry, observation) with initial_carry, which means memory"
        raise TypeError(f"policy: expected apply to take {expected}, received {signature}.") from error


def _described(found: Any) -> str:
    if isinstance(found, tuple | list):
        return f"({', '.join(type(x).__name__ for x in found)})"
    return type(found).__name__


@pytree(static=("outputs", "hidden", "head", "state_independent", "precision", "mask", "initializer"))
class MLP(Policy):
    """A multi-layer perceptron on flattened observations, tanh between layers; `hidden=()` is a linear policy.

    Attributes:
        outputs: Number of outputs: the number of actions for `Categorical`, `2 D` for `normal_head` and `tanh_normal_head`.
        hidden: Widths of the hidden layers.
        head: From outputs to a distribution.
        state_independent: How many of the outputs, the last ones, are parameters by themselves instead of functions of the
            observation; zero at the start. `MLP(2 * D, head=normal_head, state_independent=D)` has one log standard deviation
            for all observations, which is what PPO is mostly used with.
        precision: Of the products, as of `jnp.matmul`, or a name that `jax.default_matmul_precision` takes. `None` follows
            `jax_default_matmul_precision` where that is set; otherwise float32 is taken as float32 on every device.
        mask: The entry or field of the observation with the mask of the actions, booleans or 0 and 1 in eight bits: what is not
            allowed has the logit `-inf`. The head's own method `masked(outputs, mask)` puts it there, or else `logderiv.masked`. The
            network sees the mask too.
        initializer: Where weights start: "lecun_normal", deviation 1/√inputs, or "orthogonal", √2 times an orthogonal matrix; a
            policy's last layer is scaled by 0.01 with either.

    Raises:
        ValueError: A width is no whole number from 1, or `state_independent` none from 0 to `outputs - 1`; `precision` or `initializer` is
            unknown.
    """

    outputs: int
    hidden: tuple[int, ...] = (64,)
    head: Head = Categorical
    state_independent: int = 0
    _: dataclasses.KW_ONLY
    precision: Any = None
    mask: str | None = None
    initializer: str = "lecun_normal"

    def __post_init__(self) -> None:
        precision_of(self.precision)
        check.one_of(INITIALIZERS, initializer=self.initializer)
        object.__setattr__(self, "hidden", _widths(self.hidden))
        check.whole(**{"outputs - state_independent": self.outputs - self.state_independent})

    def init(self, key: jax.Array, observation: Any) -> Params:
        """Parameters: weights by the `initializer`, zero biases, a last layer scaled by 0.01, which starts the policy near uniform.

        Args:
            key: Consumed.
            observation: One observation, for its shape.

        Returns:
            One dictionary a layer.
        """
        widths = (flatten_observation(observation).size, *self.hidden, self.outputs - self.state_independent)
        params: Any = perceptron_init(as_key(key), widths, self.initializer)
        if self.state_independent:
            params[-1]["state_independent"] = jnp.zeros(self.state_independent, params[-1]["weight"].dtype)
        return params

    def apply(self, params: Params, observation: Any) -> Any:
        """The distribution at one observation.

        Args:
            params: From `init`.
            observation: One observation.

        Returns:
            What `head` makes of the outputs.

        Raises:
            ValueError: The observation has no leaf of the name `mask`, or one that does not fit; in eight bits it is not of 0 and 1,
                where it is no tracer.
        """
        outputs = _forward(params, observation, self.precision)
        if self.state_independent:
            outputs = jnp.concatenate([outputs, params[-1]["state_independent"]])
        if self.mask is None:
            return self.head(outputs)
        mask = find_mask(observation, self.mask)
        if mask is None:
            raise ValueError(
                f"observation: expected the mask of the actions, {self.mask!r}, received {type(observation).__name__} without."
            )
        return self.head(getattr(self.head, "masked", masked)(outputs, mask))


@pytree(static=("outputs", "hidden", "head", "state_independent", "precision", "mask", "initializer"))
class MLPActorCritic(MLP):
    """Two perceptrons in one pytree of parameters: a policy, and a value of the state for `logderiv.ActorCritic`.

    Attributes:
        outputs: Number of the policy's outputs.
        hidden: Widths of the hidden layers, of both.
        head: From outputs to a distribution.
        state_independent: How many of the policy's outputs, the last ones, do not depend on the observation.
        precision: Of the products of both, as of `MLP`.
        mask: Where the observation has the mask of the actions, as of `MLP`.
        initializer: Where weights start, as of `MLP`; the last layer of the value has scale 0.01 with "lecun_normal", 1 with "orthogonal".

    Raises:
        ValueError: A width is no whole number from 1, or `state_independent` none from 0 to `outputs - 1`; `precision` or `initializer` is
            unknown.

    References:
        Huang et al. (2022), "The 37 implementation details of proximal policy optimization", detail 2, for "orthogonal" (from memory).
    """

    hidden: tuple[int, ...] = (64, 64)

    @property
    def actor(self) -> MLP:
        """The policy alone."""
        options = {"precision": self.precision, "mask": self.mask, "initializer": self.initializer}
        return MLP(self.outputs, self.hidden, self.head, self.state_independent, **options)

    @property
    def value(self) -> "MLPValue":
        """The value, `(params, observation) -> scalar`."""
        return MLPValue(self.hidden, precision=self.precision)

    def init(self, key: jax.Array, observation: Any) -> Params:
        """Parameters of both networks, `"actor"` and `"critic"`.

        Args:
            key: Consumed.
            observation: One observation, for its shape.

        Returns:
            A dictionary of the two.
        """
        actor, critic = jax.random.split(as_key(key))
        widths = (flatten_observation(observation).size, *self.hidden, 1)
        value = perceptron_init(critic, widths, self.initializer, of_value=True)
        return {"actor": self.actor.init(actor, observation), "critic": value}

    def apply(self, params: Params, observation: Any) -> Any:
        return super().apply(params["actor"], observation)


@pytree(static=("hidden", "precision"))
class MLPValue:
    """The value of a state by the second of the two networks of an `MLPActorCritic`.

    Attributes:
        hidden: Widths of the hidden layers.
        precision: Of the products, as of `MLP`.

    Raises:
        ValueError: A width is no whole number from 1; `precision` is unknown.
    """

    hidden: tuple[int, ...]
    _: dataclasses.KW_ONLY
    precision: Any = None

    def __post_init__(self) -> None:
        precision_of(self.precision)
        object.__setattr__(self, "hidden", _widths(self.hidden))

    def __call__(self, params: Params, observation: Any) -> jax.Array:
        """The value of one state."""
        return _forward(params["critic"], observation, self.precision)[0]


def _forward(layers: Params, observation: Any, precision: Any) -> jax.Array:
    """The outputs of a perceptron."""
    x = flatten_observation(observation).astype(layers[0]["weight"].dtype)
    for layer in layers[:-1]:
        x = jnp.tanh(dense(layer, x, precision))
    return dense(layers[-1], x, precision)


def _widths(hidden: Any) -> tuple[int, ...]:
    """The widths of the hidden layers; a single number is one layer."""
    layers = hidden if isinstance(hidden, tuple | list) else (hidden,)
    return tuple(check.whole(**{f"hidden[{i}]": width}) for i, width in enumerate(layers))


def flatten_observation(observation: Any) -> jax.Array:
    """All leaves of one observation as one vector, in float32 at least: whole numbers beside half precision keep their digits."""
    leaves = [jnp.ravel(array_of(leaf, "observation")) for leaf in jax.tree.leaves(observation)]
    dtypes = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = accumulator_dtype(max(dtypes, key=lambda dtype: dtype.itemsize, default=jnp.zeros(()).dtype))
    return jnp.concatenate([leaf.astype(dtype) for leaf in leaves])


def dense(layer: dict[str, jax.Array], x: jax.Array, precision: Any) -> jax.Array:
    """`x @ weight + bias`."""
    precision = precision or jax.default_matmul_precision.value or EXACT  # as `precision_of`
    return jnp.matmul(x, layer["weight"], precision=precision) + layer["bias"]
