"""Tasks of `solved`, each with the configuration that solves it: the arguments of `ld.train` after parameters and key.

A configuration is a function that a user can copy. `Task` says where its threshold and its peers come from. This file runs nothing.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax

import logderiv as ld

Recipe = dict[str, Any]
ZOO = "rl-baselines3-zoo benchmark.md"
CLEANRL = "CleanRL docs"
TIANSHOU = "tianshou examples/mujoco, MuJoCo's simulator"


def annealed(rate: float, steps: int, clip: float | None = 0.5, first: Any = None) -> optax.GradientTransformation:
    """Adam, or `first` and plain steps, whose rate falls linearly to 0 over so many; gradients clipped to norm `clip`."""
    clipped = optax.identity() if clip is None else optax.clip_by_global_norm(clip)
    falling = optax.scale_by_learning_rate(optax.linear_schedule(rate, 0.0, steps))
    return optax.chain(clipped, optax.chain(first or optax.scale_by_adam(eps=1e-5), falling))


def scaled_ppo(
    value: Any, unit: float, discount: float = 0.99, lambda_: float = 0.95, entropy: float | None = None
) -> Any:
    """`ld.PPOActorCritic` whose rewards are divided by `unit`, which a value network learns sooner."""
    advantage = ld.advantages.Standardized(ld.advantages.ScaledRewards(ld.advantages.GAE(lambda_), unit))
    return ld.ActorCritic(ld.PPO(advantage, discount=discount, gamma_t=False), value, 0.5, entropy)


def brax_world(name: str) -> ld.environments.Brax:
    """An environment of brax, 1000 steps; raises `ImportError` where brax is missing."""
    from brax import envs

    return ld.environments.Brax(envs.get_environment(name))


# The configurations: what `ld.train` takes.


def cartpole(rate: float = 2e-3) -> Recipe:
    """A pole on a cart, two actions; reward 1 a step, at most 500 steps."""
    environment = ld.environments.Gymnax(*gymnax.make("CartPole-v1"))
    policy = ld.policy_for(environment, value=True)
    estimator, optimizer = ld.PPOActorCritic(policy.value), annealed(rate, 48 * 8 * 8)
    how = {"estimator": estimator, "optimizer": optimizer, "num_updates": 48, "epochs": 8, "minibatches": 8}
    return {"policy": policy, "environment": environment, "batch": ld.Steps(32, 64)} | how


def acrobot(rate: float = 2e-3) -> Recipe:
    """Two links, three torques; -1 a step until the tip is high enough, at most 500 steps."""
    environment = ld.environments.Gymnax(*gymnax.make("Acrobot-v1"))
    policy = ld.policy_for(environment, value=True)
    estimator, optimizer = ld.PPOActorCritic(policy.value), annealed(rate, 144 * 8 * 8)
    how = {"estimator": estimator, "optimizer": optimizer, "num_updates": 144, "epochs": 8, "minibatches": 8}
    return {"policy": policy, "environment": environment, "batch": ld.Steps(32, 64)} | how


def pendulum(rate: float = 2e-3) -> Recipe:
    """A pendulum to swing up by a torque in [-2, 2]; always 200 steps."""
    environment = ld.environments.Gymnax(*gymnax.make("Pendulum-v1"))
    policy = ld.MLPActorCritic(2, head=ld.normal_head)
    estimator, optimizer = scaled_ppo(policy.value, unit=10.0, discount=0.95), annealed(rate, 144 * 8 * 8)
    how = {"estimator": estimator, "optimizer": optimizer, "num_updates": 144, "epochs": 8, "minibatches": 8}
    return {"policy": policy, "environment": environment, "batch": ld.Steps(16, 128)} | how


def mountain_car(rate: float = 1e-3) -> Recipe:
    """A car too weak for its hill, a force in [-1, 1] that is paid for by its square; 100 for the top, at most 999 steps."""
    environment = ld.environments.Gymnax(*gymnax.make("MountainCarContinuous-v0"), clip=True)
    policy = ld.policies.Normalized(actor := ld.MLPActorCritic(2, head=ld.normal_head, state_independent=1))
    estimator, optimizer = scaled_ppo(actor.value, unit=10.0, discount=0.999), annealed(rate, 96 * 8 * 4)
    how = {"estimator": estimator, "optimizer": optimizer, "num_updates": 96, "epochs": 8, "minibatches": 4}
    return {"policy": policy, "environment": environment, "batch": ld.Steps(16, 256)} | how


def minatar(name: str, rate: float = 1e-2) -> Recipe:
    """A small Atari game on a grid of 10 x 10 cells, a plane of bits for each kind of object; at most 1000 steps."""
    environment = ld.environments.Gymnax(*gymnax.make(name))
    policy = ld.policy_for(environment, value=True, initializer="orthogonal")
    estimator = ld.PPOActorCritic(policy.value, lambda_=0.8, entropy_weight=0.03)
    how = {
        "estimator": estimator,
        "optimizer": annealed(rate, 120 * 4 * 8),
        "num_updates": 120,
        "epochs": 4,
        "minibatches": 8,
    }
    return {"policy": policy, "environment": environment, "batch": ld.Steps(64, 128)} | how


def inverted_pendulum(rate: float = 2e-3) -> Recipe:
    """A pole on a cart that a force moves; reward 1 a step, at most 1000 steps."""
    environment = brax_world("inverted_pendulum")
    policy = ld.MLPActorCritic(2, head=ld.policies.tanh_normal_head, state_independent=1)
    estimator = ld.PPOActorCritic(policy.value, entropy_weight=None)
    how = {"optimizer": annealed(rate, 48 * 8 * 8), "num_updates": 48, "epochs": 8, "minibatches": 8}
    return {"policy": policy, "environment": environment, "batch": ld.Steps(32, 64), "estimator": estimator} | how


def reacher(rate: float = 1e-3) -> Recipe:
    """An arm of two links whose tip is to reach a target; minus its distance and effort a step, always 1000 steps."""
    environment = brax_world("reacher")
    actor = ld.MLPActorCritic(4, head=ld.policies.tanh_normal_head, state_independent=2)
    policy = ld.policies.Normalized(actor)
    estimator, optimizer = scaled_ppo(actor.value, unit=1.0, discount=0.95), annealed(rate, 96 * 8 * 8)
    how = {"estimator": estimator, "optimizer": optimizer, "num_updates": 96, "epochs": 8, "minibatches": 8}
    return {"policy": policy, "environment": environment, "batch": ld.Steps(32, 64)} | how


class TwoEngines(gymnasium.ActionWrapper):
    """LunarLander's two engines as choices of their own: the main one off, half or full; the side ones left, off, right."""

    def __init__(self, environment: Any) -> None:
        super().__init__(environment)
        self.action_space = gymnasium.spaces.MultiDiscrete([3, 3])

    def action(self, action: Any) -> np.ndarray:
        """Forces in [-1, 1]: the main engine runs from 0 on, at half of its force; a side engine beyond one half."""
        return np.array([(-1.0, 0.0, 1.0)[action[0]], (-1.0, 0.0, 1.0)[action[1]]], np.float32)


def two_engines() -> TwoEngines:
    """LunarLander-v3 of Gymnasium, its two engines as `MultiDiscrete([3, 3])`; needs Box2D (the extra `box2d`)."""
    return TwoEngines(gymnasium.make("LunarLander-v3", continuous=True))


def lunar_lander(rate: float = 1e-3) -> Recipe:
    """A lander to set down between two flags, two choices a step, on Gymnasium's own simulator; at most 1000 steps."""
    environment = ld.environments.Gymnasium(two_engines)
    policy = ld.policies.Normalized(actor := ld.policy_for(environment, value=True))
    estimator = scaled_ppo(actor.value, unit=10.0, discount=0.999, lambda_=0.98, entropy=0.01)
    how = {"optimizer": annealed(rate, 192 * 8 * 8), "num_updates": 192, "epochs": 8, "minibatches": 8}
    return {"policy": policy, "environment": environment, "batch": ld.Steps(16, 256), "estimator": estimator} | how


@dataclasses.dataclass(frozen=True)
class SoftmaxTables(ld.Policy):
    """Softmax of a table of logits, beside a table of values."""

    num_states: int
    num_actions: int

    def init(self, key: jax.Array, observation: Any) -> dict[str, jax.Array]:
        """Zeros."""
        del key, observation
        return {"logits": jnp.zeros((self.num_states, self.num_actions)), "values": jnp.zeros(self.num_states)}

    def apply(self, params: Any, observation: Any) -> Any:
        """As `ld.tabular_softmax`."""
        return ld.tabular_softmax.apply(params["logits"], observation)

    def value(self, params: Any, observation: Any) -> jax.Array:
        """Of the state."""
        return params["values"][observation]


def frozen_lake(rate: float = 0.1) -> Recipe:
    """A walk over slippery ice, 16 states, 4 moves; reward 1 at the goal, at most 100 steps. Logits and values are tables."""
    lake: Any = gymnasium.make("FrozenLake-v1").unwrapped
    environment = ld.environments.from_transitions(lake.P, lake.initial_state_distrib, horizon=100).mdp
    estimator = ld.PPOActorCritic((policy := SoftmaxTables(16, 4)).value)
    how = {"optimizer": annealed(rate, 96 * 4 * 4), "num_updates": 96, "epochs": 4, "minibatches": 4}
    return {"policy": policy, "environment": environment, "batch": ld.Steps(32, 128), "estimator": estimator} | how


# The same tasks by other estimators.

EPISODES = ld.Episodes(16)
LEAVE_ONE_OUT = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))


def reinforce(
    policy: Any, environment: Any, estimator: Any, rate: float = 5e-3, updates: int = 96, **how: Any
) -> Recipe:
    """Whole episodes, one Adam step each batch or epoch, the rate falling to 0."""
    how = {"batch": EPISODES, "epochs": 1, "num_updates": updates} | how
    optimizer = annealed(rate, updates * how["epochs"], None, optax.scale_by_adam())
    return {"policy": policy, "environment": environment, "estimator": estimator, "optimizer": optimizer} | how


def natural(policy: Any, environment: Any, rate: float = 0.015, updates: int = 96) -> Recipe:
    """Reward-to-go and leave-one-out, the gradient times the inverse of the Fisher matrix."""
    optimizer = annealed(rate, updates, None, ld.natural_gradient(policy, damping=1e-3))
    return reinforce(policy, environment, LEAVE_ONE_OUT, updates=updates) | {"optimizer": optimizer}


def a2c(policy: Any, environment: Any, rate: float, updates: int, discount: float = 0.99, unit: float = 1.0) -> Recipe:
    """Streams of 16 environments and 8 steps, one clipped Adam step each batch, the rate falling to 0."""
    estimator: Any = ld.A2C(policy.value, entropy_weight=0.0, discount=discount)
    if unit != 1.0:
        actor = estimator.actor
        scaled = dataclasses.replace(actor, advantage=ld.advantages.ScaledRewards(actor.advantage, unit))
        estimator = dataclasses.replace(estimator, actor=scaled)
    how = {
        "batch": ld.Steps(16, 8),
        "num_updates": updates,
        "optimizer": annealed(rate, updates, first=optax.scale_by_adam()),
    }
    return {"policy": policy, "environment": environment, "estimator": estimator} | how


def learned_value(size: int) -> ld.estimators.Estimator:
    """Reward-to-go, and a value of the state with parameters of its own, fitted by ten steps of Adam after each batch."""
    critic = ld.MLP(1, head=lambda outputs: outputs[0])
    start = critic.init(jax.random.key(0), jnp.zeros(size))
    baseline = ld.baselines.LearnedValue(critic.apply, lambda _: start, optax.adam(1e-2), num_steps=10)
    return ld.ScoreFunction(ld.advantages.ToGo(baseline))


def cartpole_by_others() -> dict[str, Recipe]:
    """REINFORCE with each baseline, groups, the natural gradient, A2C."""
    environment, actor = cartpole()["environment"], ld.MLP(2)
    per_trajectory = ld.ScoreFunction(ld.advantages.Return(ld.baselines.LeaveOneOut(per="trajectory")))
    return {
        "total return": reinforce(actor, environment, ld.ScoreFunction(ld.advantages.Return())),
        "reward-to-go": reinforce(actor, environment, ld.ScoreFunction()),
        "total return, leave-one-out": reinforce(actor, environment, per_trajectory),
        "reward-to-go, leave-one-out": reinforce(actor, environment, LEAVE_ONE_OUT),
        "reward-to-go, learned value": reinforce(actor, environment, learned_value(4)),
        "leave-one-out in groups of 4": reinforce(actor, environment, ld.RLOO(group_size=4), batch=ld.Groups(4, 4)),
        "GRPO, groups of 8": reinforce(actor, environment, ld.GRPO(group_size=8), batch=ld.Groups(2, 8), epochs=4),
        "natural gradient": natural(actor, environment),
        "A2C": a2c(ld.MLPActorCritic(2), environment, rate=5e-3, updates=3840),
    }


def acrobot_by_others() -> dict[str, Recipe]:
    """REINFORCE with and without a baseline, the natural gradient, A2C."""
    environment, actor = acrobot()["environment"], ld.MLP(3)
    return {
        "reward-to-go": reinforce(actor, environment, ld.ScoreFunction()),
        "reward-to-go, leave-one-out": reinforce(actor, environment, LEAVE_ONE_OUT),
        "natural gradient": natural(actor, environment),
        "A2C": a2c(ld.MLPActorCritic(3), environment, rate=4e-3, updates=2400),
    }


def pendulum_by_others() -> dict[str, Recipe]:
    """REINFORCE with a baseline, A2C."""
    environment, head = pendulum()["environment"], ld.normal_head
    leave_one_out = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.95, gamma_t=False)
    critic = ld.MLPActorCritic(2, head=head)
    return {
        "reward-to-go, leave-one-out": reinforce(ld.MLP(2, head=head), environment, leave_one_out),
        "A2C": a2c(critic, environment, rate=2e-3, updates=2400, discount=0.95, unit=10.0),
    }


@dataclasses.dataclass(frozen=True)
class Task:
    """A configuration, and what it is measured by.

    Attributes:
        name: As published.
        recipe: The configuration, or raises `ImportError`; its rate is the default of `rate`.
        threshold: Mean return that counts as solved. Of tasks that have no usual one, the best peer's: its final interquartile mean less
            half the width of its interval, after as many steps, as measured by `--peers`.
        published: Algorithm, mean return, environment steps and source.
        by_others: Makes the rows by other estimators.
        held: Of a recipe by another estimator, how many of its seeds have to end above the threshold.
        seeds: How many.
        episodes: Of each evaluation in training; four times as many of the final policy.
        gymnasium: What stable-baselines3 is given: an id or a maker, `None` where it has no such simulator.
        usual: Whether the threshold is the usual one.
    """

    name: str
    recipe: Callable[[], Recipe]
    threshold: float
    published: tuple[tuple[str, str, str, str], ...] = ()
    by_others: Callable[[], Mapping[str, Recipe]] = dict
    held: Mapping[str, int] = dataclasses.field(default_factory=dict)
    seeds: int = 8
    episodes: int = 32
    gymnasium: Any = None
    usual: bool = True

    @property
    def rate(self) -> float:
        """The learning rate of the configuration."""
        return inspect.signature(self.recipe).parameters["rate"].default


CARTPOLE = Task(
    "CartPole-v1",
    cartpole,
    475.0,
    (
        ("PPO", "500.0 +- 0.0", "100 k", ZOO),
        ("A2C", "500.0 +- 0.0", "500 k", ZOO),
        ("PPO", "490.0 +- 6.1", "500 k", CLEANRL),
        ("REINFORCE", "466 to 500", "", "Hugging Face course, model cards of finished runs"),
    ),
    cartpole_by_others,
    {"reward-to-go, leave-one-out": 8, "natural gradient": 8, "A2C": 8},
    gymnasium="CartPole-v1",
)
ACROBOT = Task(
    "Acrobot-v1",
    acrobot,
    -100.0,
    (
        ("PPO", "-73.5 +- 18.2", "1 M", ZOO),
        ("A2C", "-83.4 +- 17.2", "500 k", ZOO),
        ("PPO", "-86.4 +- 1.3", "500 k", CLEANRL),
    ),
    acrobot_by_others,
    gymnasium="Acrobot-v1",
)
PENDULUM = Task(
    "Pendulum-v1",
    pendulum,
    -200.0,
    (("PPO", "-172.2 +- 104.2", "100 k", ZOO), ("A2C", "-163.0 +- 103.2", "1 M", ZOO)),
    pendulum_by_others,
    gymnasium="Pendulum-v1",
)
OTHERS = (
    Task("MountainCarContinuous-v0", mountain_car, 90.0, (("PPO", "88.3 +- 2.6", "20 k", f"{ZOO}, from memory"),), gymnasium="MountainCarContinuous-v0"),
    Task("Breakout-MinAtar", partial(minatar, "Breakout-MinAtar"), 23.37, seeds=5, usual=False),
    Task("Asterix-MinAtar", partial(minatar, "Asterix-MinAtar"), 1.754, seeds=5, usual=False),
    Task("SpaceInvaders-MinAtar", partial(minatar, "SpaceInvaders-MinAtar"), 101.5, seeds=5, usual=False),
    Task("inverted pendulum (brax)", inverted_pendulum, 950.0, (("REINFORCE", "1000", "3 M", TIANSHOU),), episodes=16),
    Task("reacher (brax)", reacher, -119.9, seeds=5, episodes=8, usual=False),
    Task("LunarLander-v3, two engines", lunar_lander, 200.0, (("PPO", "242.1 +- 31.8, one choice of four", "1 M", f"{ZOO}, from memory"),), seeds=5, episodes=16, gymnasium=two_engines),
    Task("FrozenLake-v1", frozen_lake, 0.70, (("optimum", "0.7442", "", "dynamic programming, here"),), gymnasium="FrozenLake-v1"),
)  # fmt: skip
TASKS = (CARTPOLE, ACROBOT, PENDULUM, *OTHERS)
