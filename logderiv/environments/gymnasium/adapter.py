"""Gymnasium: environments that live on the host, behind one callback per step for the whole batch."""

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv.environments._spaces import ActionSpace, action_space, no_params
from logderiv.environments.gymnasium import steppers
from logderiv.environments.gymnasium.host import Host, Leaves
from logderiv.types import Step


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Gymnasium:
    """Environments of Gymnasium on the host, with the protocol, and the training code, of those written in JAX.

    Under `jax.vmap`, nested ones too, a step of all environments is one callback; environments are made as many as
    there are rows, and used again for later batches. CartPole steps all rows in numpy, others go one after the other.
    There is no auto-reset: `step` returns the true last observation, and after its end an episode stands still with
    reward 0. The state is a handle to the host, so a state is used once, in the order in which it came, and two batches
    may be alive side by side. Starts are seeded from the key: with the same keys the same episodes come. An error on
    the host ends the program with its message. Compiled programs keep the handles apart from what they compile:
    nothing in them goes stale. Equal objects share their environments.

    Attributes:
        make: An id such as `"CartPole-v1"`, or a function without arguments that makes one environment.
        horizon: Default number of steps of a rollout: the registered `max_episode_steps`.
        clip: Whether real actions are clipped to their bounds, as stable-baselines3 does; else one outside raises.
        max_batches: How many batches of episodes may be in use at once; see `close`.

    Raises:
        TypeError: `make` is neither an id nor a function, or a space holds no arrays (text, graphs, sequences).
        ImportError: No gymnasium (the extra `envs`).

    Example:
        >>> import jax, pytest, logderiv as ld
        >>> gymnasium = pytest.importorskip("gymnasium")
        >>> environment, policy = ld.Gymnasium("CartPole-v1"), ld.MLP(2)
        >>> params = policy.init(jax.random.key(0), jax.numpy.zeros(4))
        >>> keys = jax.random.split(jax.random.key(1), 5)
        >>> ld.rollout(params, keys, policy, environment, horizon=20).rewards.shape
        (5, 20)
    """

    make: str | Callable[[], Any]
    horizon: int | None = None
    clip: bool = False
    max_batches: int = 8
    _observations: Any = dataclasses.field(init=False, repr=False, compare=False)
    _actions: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (isinstance(self.make, str) or callable(self.make)):
            raise TypeError(
                "Gymnasium: expected an id or a function that makes one environment, received "
                f"{type(self.make).__name__}; a vector environment is made here, as wide as the batch."
            )
        single = steppers.make(self.make)
        spec = getattr(single, "spec", None)
        if self.horizon is None and spec is not None:
            object.__setattr__(self, "horizon", spec.max_episode_steps)
        object.__setattr__(self, "_observations", steppers.template(single.observation_space))
        object.__setattr__(self, "_actions", single.action_space)
        single.close()

    @classmethod
    def of(cls, environment: Any) -> "Gymnasium":
        """The adapter for one Gymnasium environment, whose registered id and options say how to make more of it.

        Raises:
            TypeError: It is a vector environment, or was made without a spec.
        """
        if environment not in _OF:
            if getattr(environment, "num_envs", None) is not None or getattr(environment, "spec", None) is None:
                raise TypeError(
                    f"environment: expected one Gymnasium environment made by gymnasium.make, received {environment}; "
                    "pass logderiv.Gymnasium(id), or logderiv.Gymnasium(a function that makes one)."
                )
            _OF[environment] = cls(steppers.Remake.of(environment.spec))
        return _OF[environment]

    @property
    def action_space(self) -> ActionSpace | None:
        """What one action is."""
        return action_space(self._actions)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """Start an episode; `key` is consumed and seeds it."""
        no_params(params, "Gymnasium")
        return self._call(_reset, _seed(key))

    def step(self, key: jax.Array, state: jax.Array, action: Any, params: Any = None) -> Step:
        """One transition; the environment draws from its own seed, not from `key`.

        Raises:
            ValueError: On the host: an action outside the space, or a state that was used before.
        """
        del key
        no_params(params, "Gymnasium")
        action = jax.lax.stop_gradient(action)
        observation, outcome, state = self._call(_step, state, action, outcome=True)
        return Step(observation, state, outcome[0], outcome[1] != 0, outcome[2] != 0)

    def renew(
        self, key: jax.Array, ended: jax.Array, observation: Any, state: jax.Array, params: Any = None
    ) -> tuple[Any, Any]:
        """Start another episode in the place of one that ended; `key` is consumed and seeds it."""
        no_params(params, "Gymnasium")
        start, new = self._call(_renew, state, ended, _seed(key))
        return jax.tree.map(lambda a, b: jnp.where(ended, a, b), (start, new), (observation, state))

    def close(self) -> None:
        """Close the environments. Later resets make new ones; states from before are refused."""
        _host(self).close()

    def _call(self, function: Callable[..., Any], *arguments: Any, outcome: bool = False) -> Any:
        """One callback for all rows: `function(self, treedef of observations, *arguments)`, leading axes flattened."""
        observation = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), self._observations
        )
        handle = jax.ShapeDtypeStruct((3,), jnp.int32)
        results = (observation, jax.ShapeDtypeStruct((3,), jnp.zeros(()).dtype), handle)
        results = results if outcome else (observation, handle)
        rank = jnp.ndim(arguments[0])

        def callback(*arguments: Any) -> Any:
            leaves, treedef = jax.tree.flatten(arguments)
            lead = leaves[0].shape[: leaves[0].ndim - rank]
            rows = [np.asarray(leaf).reshape(-1, *leaf.shape[len(lead) :]) for leaf in leaves]
            new = function(self, *jax.tree.unflatten(treedef, rows))
            flat, shapes = [*new[0], *new[1:]], jax.tree.leaves(results)
            out = [np.asarray(x, s.dtype).reshape(*lead, *s.shape) for x, s in zip(flat, shapes, strict=True)]
            return jax.tree.unflatten(jax.tree.structure(results), out)

        return jax.pure_callback(callback, results, *arguments, vmap_method="broadcast_all")


def is_gymnasium(environment: Any) -> bool:
    """Whether an object is of Gymnasium, without importing it."""
    return any(base.__module__.split(".")[0] == "gymnasium" for base in type(environment).__mro__)


def _reset(environment: Gymnasium, seeds: np.ndarray) -> tuple[Leaves, np.ndarray]:
    return _host(environment).reset(seeds)


def _step(environment: Gymnasium, handles: np.ndarray, action: Any) -> tuple[Leaves, np.ndarray, np.ndarray]:
    action = steppers.checked(environment._actions, action, environment.clip)
    return _host(environment).step(handles, jax.tree.leaves(action))


def _renew(environment: Gymnasium, handles: np.ndarray, ended: np.ndarray, seeds: np.ndarray) -> Any:
    return _host(environment).renew(handles, ended, seeds)


def _seed(key: jax.Array) -> jax.Array:
    return jax.random.bits(key, dtype=jnp.uint32) >> 1


def _host(environment: Gymnasium) -> Host:
    if environment not in _HOSTS:
        _HOSTS[environment] = Host(steppers.maker(environment.make), environment.max_batches)
    return _HOSTS[environment]


_HOSTS: dict[Gymnasium, Host] = {}
_OF: weakref.WeakKeyDictionary[Any, Gymnasium] = weakref.WeakKeyDictionary()
