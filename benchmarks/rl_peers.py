"""What people would train with instead: PPO as other JAX libraries have it; this file runs nothing.

Every candidate steps the library's own environments, through `GymnaxStyle`; without one, gymnax' CartPole-v1. What is not installed is
`None`. stable-baselines3, whose environments are Gymnasium's, is in `peers_sb3`.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from benchmarks.gymnax_style import GymnaxStyle, Logged


class Settings(NamedTuple):
    """Hyperparameters of PPO, the same for every candidate; the defaults are PureJaxRL's own, but for the environments.

    Attributes:
        num_environments: Side by side.
        num_steps: Of each of them in a batch.
        epochs: Over a batch.
        minibatches: Of an epoch.
        learning_rate: Of Adam.
        discount: γ.
        lambda_: λ of generalized advantages.
        clip: Of the ratios, and of changes of the value.
        entropy_weight: In the loss.
        value_weight: In the loss.
        max_grad_norm: Gradients are clipped to it.
        hidden: Widths of the layers, of actor and critic each.
        activation: Between them, "tanh" or "relu".
        anneal: Whether the learning rate falls linearly to 0 over the run, from batch to batch.
        normalize: Whether observations are shown in units of their running deviation.
        reward_scale: What rewards are multiplied with in training.
        log_std: Where the logarithm of the deviation of real actions starts, which does not depend on the observation.
    """

    num_environments: int = 64
    num_steps: int = 128
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 2.5e-4
    discount: float = 0.99
    lambda_: float = 0.95
    clip: float = 0.2
    entropy_weight: float = 0.01
    value_weight: float = 0.5
    max_grad_norm: float = 0.5
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "tanh"
    anneal: bool = False
    normalize: bool = False
    reward_scale: float = 1.0
    log_std: float = 0.0

    @property
    def batch(self) -> int:
        """Environment steps of an update."""
        return self.num_environments * self.num_steps

    def rate(self, num_updates: int) -> Any:
        """The learning rate, a number or one for each step of the optimizer."""
        if not self.anneal:
            return self.learning_rate
        steps = self.epochs * self.minibatches
        return lambda count: self.learning_rate * (1 - (count // steps) / num_updates)

    @property
    def shared(self) -> dict[str, float]:
        """What rejax and stable-baselines3 call by the same names."""
        weights = {"ent_coef": self.entropy_weight, "vf_coef": self.value_weight, "max_grad_norm": self.max_grad_norm}
        return weights | {"gamma": self.discount, "gae_lambda": self.lambda_}


class Peer(NamedTuple):
    """Another library's training.

    Attributes:
        train: `(key, num_updates, every) -> snapshots`: a pytree whose leading axis is `num_updates // every`.
        policy: `(snapshot, observation) -> distribution` over actions: of the environment's own observation, for `logderiv.evaluate`.
    """

    train: Callable[[jax.Array, int, int], Any]
    policy: Callable[[Any, jax.Array], Any]


def installed(*modules: str) -> bool:
    """Whether all of these can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in modules)


def _styled(settings: Settings, environment: Any) -> GymnaxStyle:
    if environment is None:
        environment = importlib.import_module("gymnax").make("CartPole-v1")[0]
    return GymnaxStyle(environment, settings.reward_scale)


class Moments(NamedTuple):
    """Running statistics of observations, as `NormalizeVecObservation` of PureJaxRL has them."""

    mean: jax.Array
    variance: jax.Array
    num_rows: jax.Array

    @classmethod
    def start(cls, size: int) -> "Moments":
        """Of next to nothing."""
        return cls(jnp.zeros(size), jnp.ones(size), jnp.float32(1e-4))

    def after(self, batch: jax.Array) -> "Moments":
        """With a batch more, `(E, size)`."""
        num, total = len(batch), self.num_rows + len(batch)
        delta = batch.mean(0) - self.mean
        squares = self.variance * self.num_rows + batch.var(0) * num + jnp.square(delta) * self.num_rows * num / total
        return Moments(self.mean + delta * num / total, squares / total, total)

    def normalize(self, observation: jax.Array) -> jax.Array:
        """Less the mean, over the deviation."""
        return (observation - self.mean) / jnp.sqrt(self.variance + 1e-8)


class Row(NamedTuple):
    """A step of every environment."""

    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


class _Place(NamedTuple):
    """Where a run stands between two steps."""

    state: Any
    observation: jax.Array
    moments: Moments | None
    key: jax.Array


def _seen(moments: Moments | None, observation: jax.Array) -> tuple[Moments | None, jax.Array]:
    """The statistics with these observations, which are then normalized; without statistics neither changes."""
    if moments is None:
        return None, observation
    moments = moments.after(observation)
    return moments, moments.normalize(observation)


def purejaxrl_style(settings: Settings, environment: Any = None) -> Peer | None:
    """PPO the way PureJaxRL wrote it and its many forks write it: one program from the key to the learning curve.

    Restated here: PureJaxRL is not on the package index and unpacks the five values of gymnax 0.x. The structure is its own: a flax module
    evaluated for actor and critic at every step, gymnax's auto-reset and `LogWrapper`, GAE by a reverse scan, epochs over minibatches
    cut from one permutation of all rows, advantages standardized in each, clipped value loss, clipped global norm, Adam. Real actions
    are those of its continuous variant: a normal whose deviation is a parameter of its own.
    """
    if not installed("flax", "distrax", "gymnax", "six"):
        return None
    c, world = settings, _styled(settings, environment)
    network, reset = _actor_critic(c, world), jax.vmap(Logged(world).reset, (0, None))

    def update(optimizer: Any, carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, opt_state, place = carry
        place, (rows, ended) = _roll(c, world, network, params, place)
        advantage = advantages(c, rows, network.apply(params, place.observation)[1])
        key, key_epochs = jax.random.split(place.key)
        batch = (rows, advantage, advantage + rows.value)
        params, opt_state = _descend(c, network, optimizer, (params, opt_state), batch, key_epochs)
        return (params, opt_state, place._replace(key=key)), jnp.nanmean(ended)

    def train(key: jax.Array, num_updates: int, every: int) -> Any:
        key, key_init, key_reset = jax.random.split(key, 3)
        observation, state = reset(jax.random.split(key_reset, c.num_environments), world.default_params)
        # One seed after the other: orthogonal matrices are QR factorizations, and two batches of these at once, of two layers, wait for
        # each other for ever where jaxlib 0.10.2 has two threads.
        params = jax.custom_batching.sequential_vmap(network.init)(key_init, observation[0])
        optimizer = optax.chain(optax.clip_by_global_norm(c.max_grad_norm), optax.adam(c.rate(num_updates), eps=1e-5))
        moments, observation = _seen(Moments.start(observation.shape[1]) if c.normalize else None, observation)

        def period(carry: Any, _: None) -> tuple[Any, Any]:
            carry, returns = lax.scan(lambda *args: update(optimizer, *args), carry, None, every)
            return carry, (carry[0], carry[2].moments, returns)

        start = params, optimizer.init(params), _Place(state, observation, moments, key)
        return lax.scan(period, start, None, num_updates // every)[1]

    def policy(snapshot: Any, observation: Any) -> Any:
        params, moments, _ = snapshot
        shown = world.vector(observation)
        return world.distribution(network.apply(params, shown if moments is None else moments.normalize(shown))[0])

    return Peer(train, policy)


def _roll(c: Settings, world: GymnaxStyle, network: Any, params: Any, place: _Place) -> tuple[_Place, Any]:
    """The next batch, `(T, E)`, with the returns of the episodes that ended in it, NaN elsewhere."""
    step = jax.vmap(Logged(world).step, (0, 0, 0, None))

    def act(place: _Place, _: None) -> tuple[_Place, Any]:
        key, key_action, key_step = jax.random.split(place.key, 3)
        distribution, value = network.apply(params, place.observation)
        action = distribution.sample(seed=key_action)
        log_prob = distribution.log_prob(action)
        keys = jax.random.split(key_step, c.num_environments)
        following, state, reward, done, info = step(keys, place.state, action, world.default_params)
        row = Row(place.observation, action, log_prob, value, reward, done)
        ended = jnp.where(info["returned_episode"], info["returned_episode_returns"], jnp.nan)
        moments, following = _seen(place.moments, following)
        return _Place(state, following, moments, key), (row, ended)

    return lax.scan(act, place, None, c.num_steps)


def advantages(c: Settings, rows: Row, last_value: jax.Array) -> jax.Array:
    """Generalized advantages of the steps, `(T, E)`; an episode that was cut counts as ended."""

    def back(carry: Any, row: Row) -> tuple[Any, jax.Array]:
        advantage, following = carry
        delta = row.reward + c.discount * following * (1 - row.done) - row.value
        advantage = delta + c.discount * c.lambda_ * (1 - row.done) * advantage
        return (advantage, row.value), advantage

    return lax.scan(back, (jnp.zeros_like(last_value), last_value), rows, reverse=True, unroll=16)[1]


def _descend(c: Settings, network: Any, optimizer: Any, start: Any, batch: Any, key: jax.Array) -> Any:
    """The epochs of one batch: parameters and optimizer state after them."""
    flat = jax.tree.map(lambda x: x.reshape(c.batch, *x.shape[2:]), batch)

    def loss(params: Any, rows: Row, advantage: jax.Array, target: jax.Array) -> jax.Array:
        distribution, value = network.apply(params, rows.observation)
        clipped = rows.value + jnp.clip(value - rows.value, -c.clip, c.clip)
        errors = jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))
        ratio = jnp.exp(distribution.log_prob(rows.action) - rows.log_prob)
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - c.clip, 1 + c.clip) * advantage)
        return -gain.mean() + c.value_weight * 0.5 * errors.mean() - c.entropy_weight * distribution.entropy().mean()

    def one(carry: Any, part: Any) -> tuple[Any, jax.Array]:
        params, opt_state = carry
        value, gradient = jax.value_and_grad(loss)(params, *part)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    def epoch(carry: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        order = jax.random.permutation(key, c.batch)
        parts = jax.tree.map(lambda x: jnp.take(x, order, axis=0).reshape(c.minibatches, -1, *x.shape[1:]), flat)
        return lax.scan(one, carry, parts)

    return lax.scan(epoch, start, jax.random.split(key, c.epochs))[0]  # the losses are what PureJaxRL logs


def _actor_critic(c: Settings, world: GymnaxStyle) -> Any:
    nn, distrax = importlib.import_module("flax.linen"), importlib.import_module("distrax")
    activation, orthogonal = getattr(nn, c.activation), nn.initializers.orthogonal

    class ActorCritic(nn.Module):
        """Two networks in one module, and the deviation of real actions."""

        @nn.compact
        def __call__(self, observation: jax.Array) -> tuple[Any, jax.Array]:
            def mlp(x: jax.Array, width: int, scale: float) -> jax.Array:
                for size in c.hidden:
                    x = activation(nn.Dense(size, kernel_init=orthogonal(2**0.5))(x))
                return nn.Dense(width, kernel_init=orthogonal(scale))(x)

            outputs, value = mlp(observation, world.num_outputs, 0.01), mlp(observation, 1, 1.0)[..., 0]
            if world.space.integer:
                return distrax.Categorical(logits=outputs), value
            log_std = self.param("log_std", nn.initializers.constant(c.log_std), (world.num_outputs,))
            return distrax.MultivariateNormalDiag(outputs, jnp.exp(log_std)), value

    return ActorCritic()


def rejax_ppo(settings: Settings, environment: Any = None) -> Peer | None:
    """PPO of rejax itself; in the place of its evaluations it hands out the parameters."""
    if not installed("rejax", "gymnax", "six"):
        return None
    rejax = importlib.import_module("rejax")
    c, world = settings, _styled(settings, environment)
    agent = {"activation": c.activation, "hidden_layer_sizes": c.hidden}
    names = {"num_envs": c.num_environments, "num_steps": c.num_steps, "num_epochs": c.epochs, "clip_eps": c.clip}
    names |= {"num_minibatches": c.minibatches, "env": world, "normalize_observations": c.normalize}
    algorithm = rejax.PPO.create(agent_kwargs=agent, skip_initial_evaluation=True, **names, **c.shared)

    def snapshot(_: Any, state: Any, __: Any) -> Any:
        return state.actor_ts.params, state.critic_ts.params, state.obs_rms_state

    def train(key: jax.Array, num_updates: int, every: int) -> Any:
        run = algorithm.replace(
            total_timesteps=num_updates * c.batch,
            eval_freq=every * c.batch,
            learning_rate=c.rate(num_updates),
            eval_callback=snapshot,
        )
        return run.train(train_state=_with_log_std(run.init_state(key), c.log_std))[1]

    def policy(snapshot: Any, observation: Any) -> Any:
        params, _, moments = snapshot
        shown = world.vector(observation)
        shown = algorithm.normalize_obs(moments, shown) if c.normalize else shown
        return world.distribution(algorithm.actor.apply(params, shown[None], method="_action_dist"))

    return Peer(train, policy)


def _with_log_std(state: Any, log_std: float) -> Any:
    """A state of rejax whose deviation of real actions, if there are any, starts elsewhere."""
    inner = state.actor_ts.params["params"]
    if "action_log_std" not in inner:
        return state
    inner = inner | {"action_log_std": jnp.full_like(inner["action_log_std"], log_std)}
    return state.replace(actor_ts=state.actor_ts.replace(params={"params": inner}))


PUREJAXRL, REJAX = "PureJaxRL style", "rejax"
PEERS = {PUREJAXRL: purejaxrl_style, REJAX: rejax_ppo}
