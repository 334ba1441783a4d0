"""Policies: tabular softmax, one softmax for all states, linear, MLP and GRU.

Each is a frozen dataclass with its hyperparameters as fields, so that one rebuilt with the same fields does not
retrace. `apply` works on one observation. `head` turns the network's output vector into a distribution.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import widen, widest
from logderiv.distributions.basic import Categorical, Normal
from logderiv.distributions.tanh_normal import Bound, TanhNormal

Head = Callable[[jax.Array], Any]


def normal_head(outputs: jax.Array) -> Normal:
    """A diagonal Normal from `2 D` outputs: means, then log standard deviations."""
    loc, log_scale = jnp.split(outputs, 2, axis=-1)
    return Normal(loc, jnp.exp(log_scale))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TanhNormalHead:
    """A `TanhNormal` between bounds from `2 D` outputs: means before the squashing, then log standard deviations.

    Attributes:
        low: Lower bound, or a tuple of `D`.
        high: Upper bound, or a tuple of `D`.
    """

    low: Bound = -1.0
    high: Bound = 1.0

    def __call__(self, outputs: jax.Array) -> TanhNormal:
        """The distribution."""
        loc, log_scale = jnp.split(outputs, 2, axis=-1)
        return TanhNormal(loc, jnp.exp(log_scale), self.low, self.high)


tanh_normal_head = TanhNormalHead()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TabularSoftmax:
    r"""$\pi(a|s) = \mathrm{softmax}(\theta_s)_a$ with `params` the logits, shape `(S, A)`; observations are states."""

    initial_carry = None
    log_factors = None

    def apply(self, params: jax.Array, observation: jax.Array) -> Categorical:
        """The distribution in one state; NaN in a state outside `0 .. S - 1`."""
        state = widen(jnp.asarray(observation))
        state = jnp.where(state < 0, params.shape[0], state)
        return Categorical(params.at[state].get(mode="fill", fill_value=jnp.nan))

    def table(self, params: jax.Array, observations: Any, actions: jax.Array) -> tuple[jax.Array, jax.Array] | None:
        """Logits `(S, A)` and the states: a likelihood may count visits instead of taking steps one by one."""
        whole = isinstance(observations, jax.Array) and jnp.issubdtype(observations.dtype, jnp.integer)
        return (params, observations) if whole and observations.shape == actions.shape else None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SharedSoftmax:
    r"""$\pi(a|s) = \mathrm{softmax}(\theta)_a$ in every state, with `params` the logits, shape `(A,)`.

    The policy of the short corridor, of a bandit, and of independent draws.
    """

    initial_carry = None
    log_factors = None

    def apply(self, params: jax.Array, observation: Any) -> Categorical:
        """The one distribution."""
        del observation  # the point of this policy
        return Categorical(params)

    def table(self, params: jax.Array, observations: Any, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits `(1, A)`, and one state for all steps; see `TabularSoftmax.table`."""
        del observations
        return params[None], jnp.zeros_like(actions)


tabular_softmax = TabularSoftmax()
shared_softmax = SharedSoftmax()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MLP:
    """A multi-layer perceptron on flattened observations, tanh between layers; `hidden=()` is a linear policy.

    Attributes:
        outputs: Number of outputs: the number of actions for `Categorical`, `2 D` for `normal_head` and `tanh_normal_head`.
        hidden: Widths of the hidden layers.
        head: From outputs to a distribution.
        free: How many of the outputs, the last ones, are parameters by themselves instead of functions of the
            observation; zero at the start. `MLP(2 * D, head=normal_head, free=D)` has one log standard deviation for
            all observations, which is what PPO is mostly used with.
    """

    outputs: int
    hidden: tuple[int, ...] = (64,)
    head: Head = Categorical
    free: int = 0

    initial_carry = None
    log_factors = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _check_widths(outputs=(self.outputs,), hidden=self.hidden)
        if not (isinstance(self.free, int) and 0 <= self.free < self.outputs):
            raise ValueError(
                f"free: expected a whole number in 0 .. outputs - 1 = {self.outputs - 1}, received {self.free}."
            )

    def init(self, key: jax.Array, observation: Any) -> list[dict[str, jax.Array]]:
        """Parameters for observations like the given one: LeCun-normal weights, zero biases, a last layer 100 times smaller.

        The small last layer starts the policy near uniform. `key` is consumed.
        """
        widths = (flatten_observation(observation).size, *self.hidden, self.outputs - self.free)
        keys = jax.random.split(key, len(widths) - 1)
        params = [dense_init(k, m, n) for k, m, n in zip(keys, widths[:-1], widths[1:], strict=True)]
        params[-1]["weight"] = params[-1]["weight"] * 0.01
        if self.free:
            params[-1]["free"] = jnp.zeros(self.free, params[-1]["weight"].dtype)
        return params

    def apply(self, params: list[dict[str, jax.Array]], observation: Any) -> Any:
        """The distribution at one observation."""
        x = flatten_observation(observation).astype(params[0]["weight"].dtype)
        for layer in params[:-1]:
            x = jnp.tanh(dense(layer, x))
        outputs = dense(params[-1], x)
        return self.head(jnp.concatenate([outputs, params[-1]["free"]]) if self.free else outputs)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MLPActorCritic:
    """Two perceptrons in one pytree of parameters: a policy, and a value of the state for `logderiv.actor_critic`.

    Attributes:
        outputs: As of `MLP`.
        hidden: Widths of the hidden layers, of both.
        head: As of `MLP`.
        free: As of `MLP`.
    """

    outputs: int
    hidden: tuple[int, ...] = (64, 64)
    head: Head = Categorical
    free: int = 0

    initial_carry = None
    log_factors = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        _ = self.actor  # which checks the fields

    @property
    def actor(self) -> MLP:
        """The policy alone."""
        return MLP(self.outputs, self.hidden, self.head, self.free)

    @property
    def value(self) -> "MLPValue":
        """The value, `(params, observation) -> scalar`."""
        return MLPValue(self.hidden)

    def init(self, key: jax.Array, observation: Any) -> dict[str, Any]:
        """Parameters of both, for observations like the given one; `key` is consumed."""
        key_actor, key_critic = jax.random.split(key)
        return {
            "actor": self.actor.init(key_actor, observation),
            "critic": MLP(1, self.hidden).init(key_critic, observation),
        }

    def apply(self, params: dict[str, Any], observation: Any) -> Any:
        """The distribution at one observation."""
        return self.actor.apply(params["actor"], observation)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MLPValue:
    """See `MLPActorCritic.value`."""

    hidden: tuple[int, ...]

    def __call__(self, params: dict[str, Any], observation: Any) -> jax.Array:
        """The value of one state."""
        return MLP(1, self.hidden, _first).apply(params["critic"], observation)


def _first(outputs: jax.Array) -> jax.Array:
    return outputs[0]


def linear(outputs: int, *, head: Head = Categorical, free: int = 0) -> MLP:
    """A policy whose outputs are linear in the flattened observation: an `MLP` without hidden layers."""
    return MLP(outputs, hidden=(), head=head, free=free)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GRU:
    r"""A gated recurrent unit on flattened observations, and a linear layer from its state.

    $r, z = \sigma(W_{rz} x + U_{rz} h + b_{rz})$, $n = \tanh(W_n x + b_n + r \odot (U_n h))$,
    $h' = (1 - z) \odot n + z \odot h$.

    Attributes:
        outputs: Width of the last layer.
        hidden: Width of the carry.
        head: From outputs to a distribution.

    References:
        Cho et al. (2014), arXiv:1406.1078, eqs. 5-8, with the reset gate after the product as in cuDNN.
    """

    outputs: int
    hidden: int = 32
    head: Head = Categorical

    log_factors = None

    def __post_init__(self) -> None:
        _check_widths(outputs=(self.outputs,), hidden=(self.hidden,))

    def init(self, key: jax.Array, observation: Any) -> dict[str, dict[str, jax.Array]]:
        """Parameters for observations like the given one; `key` is consumed."""
        keys = jax.random.split(key, 3)
        size = flatten_observation(observation).size
        out = dense_init(keys[2], self.hidden, self.outputs)
        return {
            "input": dense_init(keys[0], size, 3 * self.hidden),
            "state": {"weight": dense_init(keys[1], self.hidden, 3 * self.hidden)["weight"]},
            "output": {"weight": out["weight"] * 0.01, "bias": out["bias"]},
        }

    def initial_carry(self, params: dict[str, dict[str, jax.Array]]) -> jax.Array:
        """A zero state."""
        return jnp.zeros(self.hidden, params["input"]["weight"].dtype)

    def apply(
        self, params: dict[str, dict[str, jax.Array]], carry: jax.Array, observation: Any
    ) -> tuple[Any, jax.Array]:
        """The distribution at one observation, and the next carry."""
        x = flatten_observation(observation).astype(carry.dtype)
        xr, xz, xn = jnp.split(dense(params["input"], x), 3)
        hr, hz, hn = jnp.split(carry @ params["state"]["weight"], 3)
        reset, update = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
        new = jnp.tanh(xn + reset * hn)
        carry = new + update * (carry - new)
        return self.head(dense(params["output"], carry)), carry


def flatten_observation(observation: Any) -> jax.Array:
    """All leaves of one observation as one vector."""
    leaves = [jnp.ravel(jnp.asarray(leaf)) for leaf in jax.tree.leaves(observation)]
    floating = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    dtype = widest(*floating) if floating else jnp.zeros(()).dtype
    return jnp.concatenate([leaf.astype(dtype) for leaf in leaves])


def dense_init(key: jax.Array, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """LeCun-normal weight `(inputs, outputs)` and zero bias."""
    weight = jax.random.normal(key, (inputs, outputs)) / math.sqrt(max(inputs, 1))
    return {"weight": weight, "bias": jnp.zeros(outputs, weight.dtype)}


def dense(layer: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """`x @ weight + bias`."""
    return x @ layer["weight"] + layer["bias"]


def _check_widths(**fields: tuple[int, ...]) -> None:
    for name, widths in fields.items():
        if not all(isinstance(w, int) and w >= 1 for w in widths):
            raise ValueError(f"{name}: expected whole numbers >= 1, received {widths}.")
