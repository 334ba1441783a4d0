"""What people would train with instead: PPO on CartPole-v1 as other libraries have it; this file runs nothing.

Every JAX candidate steps the same simulator, gymnax 1.x. What is not installed is `None`. rejax 0.1.3 was written against gymnax
0.x, whose step returned five values; `FiveTuple` gives it those. stable-baselines3 steps Gymnasium's environments.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax


class Settings(NamedTuple):
    """Hyperparameters of PPO, the same for every candidate; the defaults are PureJaxRL's own, but for the environments."""

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

    @property
    def batch(self) -> int:
        """Environment steps of an update."""
        return self.num_environments * self.num_steps


class Peer(NamedTuple):
    """Another library's training.

    Attributes:
        train: `(key, num_updates, every) -> snapshots`: a pytree whose leading axis is `num_updates // every`.
        logits: `(snapshot, observation) -> logits` of the policy.
    """

    train: Callable[[jax.Array, int, int], Any]
    logits: Callable[[Any, jax.Array], jax.Array]


def installed(*modules: str) -> bool:
    """Whether all of these can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in modules)


class _Row(NamedTuple):
    observation: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    reward: jax.Array
    done: jax.Array


def purejaxrl_style(settings: Settings) -> Peer | None:
    """PPO the way PureJaxRL wrote it and its many forks write it: one program from the key to the learning curve.

    Restated here: PureJaxRL is not on the package index and unpacks the five values of gymnax 0.x. The structure is its own: a flax module
    evaluated for actor and critic at every step, gymnax's auto-reset and `LogWrapper`, GAE by a reverse scan, epochs over minibatches
    cut from one permutation of all rows, advantages standardized in each, clipped value loss, clipped global norm, Adam.
    """
    if not installed("flax", "distrax", "gymnax", "six"):
        return None
    gymnax, wrappers = importlib.import_module("gymnax"), importlib.import_module("gymnax.wrappers")
    environment, environment_params = gymnax.make("CartPole-v1")
    environment = wrappers.LogWrapper(wrappers.FlattenObservationWrapper(environment))
    network, c = _actor_critic(), settings
    optimizer = optax.chain(optax.clip_by_global_norm(c.max_grad_norm), optax.adam(c.learning_rate, eps=1e-5))
    reset = jax.vmap(environment.reset, in_axes=(0, None))
    step = jax.vmap(environment.step, in_axes=(0, 0, 0, None))

    def act(carry: Any, _: None) -> tuple[Any, Any]:
        params, state, observation, key = carry
        key, key_action, key_step = jax.random.split(key, 3)
        distribution, value = network.apply(params, observation)
        action = distribution.sample(seed=key_action)
        log_prob = distribution.log_prob(action)
        keys = jax.random.split(key_step, c.num_environments)
        following, state, reward, terminated, truncated, info = step(keys, state, action, environment_params)
        row = _Row(observation, action, log_prob, value, reward, terminated | truncated)  # the ends merged, as there
        ended = jnp.where(info["returned_episode"], info["returned_episode_returns"], jnp.nan)
        return (params, state, following, key), (row, ended)

    def update(carry: Any, _: None) -> tuple[Any, jax.Array]:
        params, opt_state, state, observation, key = carry
        roll: Any = lax.scan(act, (params, state, observation, key), None, c.num_steps)
        (params, state, observation, key), (rows, ended) = roll
        advantage = _advantages(c, rows, network.apply(params, observation)[1])
        key, key_epochs = jax.random.split(key)
        batch = (rows, advantage, advantage + rows.value)
        params, opt_state = _descend(c, network, optimizer, (params, opt_state), batch, key_epochs)
        return (params, opt_state, state, observation, key), jnp.nanmean(ended)

    def train(key: jax.Array, num_updates: int, every: int) -> Any:
        key, key_init, key_reset = jax.random.split(key, 3)
        params = network.init(key_init, jnp.zeros(environment.observation_space(environment_params).shape))
        observation, state = reset(jax.random.split(key_reset, c.num_environments), environment_params)

        def period(carry: Any, _: None) -> tuple[Any, Any]:
            carry, returns = lax.scan(update, carry, None, every)
            return carry, (carry[0], returns)

        start = (params, optimizer.init(params), state, observation, key)
        return lax.scan(period, start, None, num_updates // every)[1]

    return Peer(train, lambda snapshot, observation: network.apply(snapshot[0], observation)[0].logits)


def _advantages(c: Settings, rows: _Row, last_value: jax.Array) -> jax.Array:
    def back(carry: Any, row: _Row) -> tuple[Any, jax.Array]:
        advantage, following = carry
        delta = row.reward + c.discount * following * (1 - row.done) - row.value
        advantage = delta + c.discount * c.lambda_ * (1 - row.done) * advantage
        return (advantage, row.value), advantage

    return lax.scan(back, (jnp.zeros_like(last_value), last_value), rows, reverse=True, unroll=16)[1]


def _descend(c: Settings, network: Any, optimizer: Any, start: Any, batch: Any, key: jax.Array) -> Any:
    """The epochs of one batch: parameters and optimizer state after them."""
    flat = jax.tree.map(lambda x: x.reshape(c.batch, *x.shape[2:]), batch)

    def loss(params: Any, rows: _Row, advantage: jax.Array, target: jax.Array) -> jax.Array:
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


def rejax_ppo(settings: Settings) -> Peer | None:
    """PPO of rejax itself; in the place of its evaluations it hands out the parameters."""
    if not installed("rejax", "gymnax", "six"):
        return None
    rejax, gymnax = importlib.import_module("rejax"), importlib.import_module("gymnax")
    environment, environment_params = gymnax.make("CartPole-v1")
    c = settings
    agent = {"activation": "tanh", "hidden_layer_sizes": (64, 64)}
    names = {"num_envs": c.num_environments, "num_steps": c.num_steps, "num_epochs": c.epochs, "clip_eps": c.clip}
    names |= {"num_minibatches": c.minibatches, "env": FiveTuple(environment), "env_params": environment_params}
    algorithm = rejax.PPO.create(agent_kwargs=agent, skip_initial_evaluation=True, **names, **_shared(c))
    algorithm = algorithm.replace(eval_callback=lambda _, state, __: (state.actor_ts.params, state.critic_ts.params))

    def train(key: jax.Array, num_updates: int, every: int) -> Any:
        run = algorithm.replace(total_timesteps=num_updates * c.batch, eval_freq=every * c.batch)
        return run.train(key)[1]

    def logits(snapshot: Any, observation: jax.Array) -> jax.Array:
        return algorithm.actor.apply(snapshot[0], observation[None], method="_action_dist").logits[0]

    return Peer(train, logits)


def _shared(c: Settings) -> dict[str, float]:
    """What rejax and stable-baselines3 call by the same names."""
    weights = {"ent_coef": c.entropy_weight, "vf_coef": c.value_weight, "max_grad_norm": c.max_grad_norm}
    return weights | {"learning_rate": c.learning_rate, "gamma": c.discount, "gae_lambda": c.lambda_}


class FiveTuple:
    """A gymnax 1.x environment that steps as those of 0.x did: five values, with both ends merged into `done`."""

    def __init__(self, environment: Any):
        self._environment = environment

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy is asked for these before it has an environment
            raise AttributeError(name)
        return getattr(self._environment, name)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple[Any, ...]:
        """The five values."""
        observation, state, reward, terminated, truncated, info = self._environment.step(key, state, action, params)
        return observation, state, reward, terminated | truncated, info


def stable_baselines3_ppo(settings: Settings, seed: int = 0) -> Any:
    """A model of stable-baselines3's PPO on as many of Gymnasium's CartPoles, or `None`."""
    if not installed("stable_baselines3", "gymnasium"):
        return None
    sb3 = importlib.import_module("stable_baselines3")
    env_util = importlib.import_module("stable_baselines3.common.env_util")
    # Two threads that wait for each other's small layers are slower, on a busy machine much slower.
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    c, network = settings, {"net_arch": [64, 64], "activation_fn": torch.nn.Tanh}
    environments = env_util.make_vec_env("CartPole-v1", n_envs=c.num_environments, seed=seed)
    options = {
        "n_steps": c.num_steps,
        "batch_size": c.batch // c.minibatches,
        "n_epochs": c.epochs,
        "clip_range": c.clip,
    }
    options |= {"policy_kwargs": network, "seed": seed, "device": "cpu", "verbose": 0}
    return sb3.PPO("MlpPolicy", environments, **options, **_shared(c))


def stable_baselines3_return(model: Any, num_episodes: int, seed: int = 0) -> float:
    """Mean return of fresh episodes of a model, side by side, actions sampled."""
    util = importlib.import_module("stable_baselines3.common.env_util")
    evaluation = importlib.import_module("stable_baselines3.common.evaluation")
    environments = util.make_vec_env("CartPole-v1", n_envs=num_episodes, seed=1000 + seed)
    return float(evaluation.evaluate_policy(model, environments, num_episodes, deterministic=False)[0])


def _actor_critic() -> Any:
    nn, distrax = importlib.import_module("flax.linen"), importlib.import_module("distrax")

    class ActorCritic(nn.Module):
        """Two networks 4-64-64-x with tanh, in one module."""

        @nn.compact
        def __call__(self, observation: jax.Array) -> tuple[Any, jax.Array]:
            def mlp(x: jax.Array, width: int, scale: float) -> jax.Array:
                for _ in range(2):
                    x = nn.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(2**0.5))(x))
                return nn.Dense(width, kernel_init=nn.initializers.orthogonal(scale))(x)

            return distrax.Categorical(logits=mlp(observation, 2, 0.01)), mlp(observation, 1, 1.0)[..., 0]

    return ActorCritic()
