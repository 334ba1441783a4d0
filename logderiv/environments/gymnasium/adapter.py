"""Gymnasium: environments that live on the host, behind one callback per step for the whole batch."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.pytrees import pytree
from logderiv.environments._masks import LEAF, mask_shapes
from logderiv.environments._spaces import action_space, no_params
from logderiv.environments.gymnasium.host import Host
from logderiv.environments.gymnasium.steppers import checked, described, in_dtype, is_vector, maker, remake
from logderiv.types import Environment, Key, Observation, Step


@pytree(static=("make", "horizon", "clip", "max_batches", "mask"))
class Gymnasium(Environment):
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
        mask: The entry of `info` that says which actions are allowed, as `"action_mask"` of Taxi. With it the observation is
            `{"observation": ..., "action_mask": ...}`, which `logderiv.policy_for` reads; a mask is booleans, or 0 and 1 in eight
            bits, in the form that `sample(mask=...)` of the space takes, but for `MultiBinary`: shape `(..., 2)`, whether 0 and
            whether 1 is allowed, not the 0, 1 and 2 of its `sample`. One that allows nothing at a step that is taken raises.

    Raises:
        TypeError: `make` is neither an id nor a function, or makes a vector environment; a space holds no arrays (text, graphs,
            sequences); `mask` with an action space that has none.
        ValueError: `max_batches` is below 1.
        ImportError: No gymnasium (the extra `envs`).

    Example:
        >>> import jax, pytest, logderiv as ld
        >>> gymnasium = pytest.importorskip("gymnasium")
        >>> environment, policy = ld.environments.Gymnasium("CartPole-v1"), ld.MLP(2)
        >>> params = policy.init(jax.random.key(0), jax.numpy.zeros(4))
        >>> keys = jax.random.split(jax.random.key(1), 5)
        >>> ld.rollout(params, keys, policy, environment, horizon=20).rewards.shape
        (5, 20)
    """

    make: str | Callable[[], Any]
    horizon: int | None = None
    clip: bool = False
    max_batches: int = 8
    mask: str | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.make, str) or callable(self.make)):
            raise TypeError(
                "Gymnasium: expected an id or a function that makes one environment, received "
                f"{type(self.make).__name__}; a vector environment is made here, as wide as the batch."
            )
        limit, *_ = described(self.make)
        if self.mask is not None and self.action_space is None:
            raise TypeError(f"mask: expected an action space of choices, received {described(self.make)[2]}.")
        object.__setattr__(self, "horizon", limit if self.horizon is None else self.horizon)

    @classmethod
    def of(cls, environment: Any) -> "Gymnasium":
        """The adapter for one Gymnasium environment, whose registered id and options say how to make more of it.

        Args:
            environment: Made by `gymnasium.make`.

        Returns:
            The adapter; equal ones for environments that were made alike, unless functions in their options tell them apart.

        Raises:
            TypeError: It is a vector environment, or was made without a spec.
        """
        spec = getattr(environment, "spec", None)
        if spec is None or is_vector(environment):
            raise TypeError(
                f"environment: expected one Gymnasium environment made by gymnasium.make, received {environment}; "
                "pass logderiv.environments.Gymnasium(id), or logderiv.environments.Gymnasium(a function that makes one)."
            )
        return cls(remake(spec))

    @property
    def action_space(self) -> Any:
        """What one action is; a dictionary or tuple where it has parts."""
        return action_space(described(self.make)[2])

    def reset(self, key: Key, params: Any = None) -> tuple[Observation, jax.Array]:
        no_params(params, "Gymnasium")
        return self._call("reset", _seed(key))

    def step(self, key: Key, state: jax.Array, action: Any, params: Any = None) -> Step:
        """One transition; the environment draws from its own seed.

        Args:
            key: Not used.
            state: The handle from `reset`, `renew` or the last step; used once.
            action: One action.
            params: Not used.

        Returns:
            Observation, the next handle, reward, and the two signals of the end.

        Raises:
            ValueError: On the host: an action outside the space, a state that was used before, or an observation of whole numbers that
                its dtype does not hold.
        """
        del key, params
        action = jax.lax.stop_gradient(action)
        observation, outcome, state = self._call("step", state, action, outcome=True)
        return Step(observation, state, outcome[0], outcome[1] != 0, outcome[2] != 0)

    def renew(
        self, key: Key, ended: jax.Array, observation: Observation, state: jax.Array, params: Any = None
    ) -> tuple[Observation, jax.Array]:
        """Start another episode in the place of one that ended.

        Args:
            key: Consumed; seeds the episode.
            ended: Whether it ended. Shape `()`, bool.
            observation: The last one.
            state: The handle that came with it.
            params: Not used.

        Returns:
            Observation and handle: of the new start where `ended`, else the given ones.
        """
        del params
        start, new = self._call("renew", state, ended, _seed(key))
        return jax.tree.map(lambda a, b: jnp.where(ended, a, b), (start, new), (observation, state))

    def close(self) -> None:
        """Close the environments. Later resets make new ones; states from before are refused."""
        _host(self).close()

    def _call(self, name: str, *arguments: Any, outcome: bool = False) -> Any:
        """One callback for all rows: the method of the `Host` with this name, with all leading axes of the arguments as one."""
        observation = jax.tree.map(_shape, described(self.make)[1])
        if self.mask is not None:
            observation = {"observation": observation, LEAF: mask_shapes(self.action_space)}
        handle = jax.ShapeDtypeStruct((3,), jnp.int32)
        between = [jax.ShapeDtypeStruct((3,), jnp.zeros(()).dtype)] if outcome else []
        results = (observation, *between, handle)
        places = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(observation)]
        names = [*(f"observation{place}" for place in places), *["outcome"] * outcome, "state"]
        rank = jnp.ndim(arguments[0])

        def callback(*arguments: Any) -> Any:
            leaves, treedef = jax.tree.flatten(arguments)
            lead = leaves[0].shape[: leaves[0].ndim - rank]
            rows = [np.asarray(leaf).reshape(-1, *leaf.shape[len(lead) :]) for leaf in leaves]
            new = getattr(_host(self), name)(*jax.tree.unflatten(treedef, rows))
            flat, shapes = [*new[0], *new[1:]], jax.tree.leaves(results)
            each = zip(names, flat, shapes, strict=True)
            out = [in_dtype(where, x, s.dtype).reshape((*lead, *s.shape)) for where, x, s in each]
            return jax.tree.unflatten(jax.tree.structure(results), out)

        return jax.pure_callback(callback, results, *arguments, vmap_method="broadcast_all")


def _shape(space: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(space.shape, jax.dtypes.canonicalize_dtype(space.dtype))


def _seed(key: Key) -> jax.Array:
    return jax.random.bits(key, dtype=jnp.uint32) >> 1


@functools.cache
def _host(environment: Gymnasium) -> Host:
    def legal(action: Any) -> Any:
        *_, spaces = described(environment.make)
        return jax.tree.map(functools.partial(checked, clip=environment.clip), spaces, action)

    return Host(maker(environment.make, environment.mask), environment.max_batches, legal)
