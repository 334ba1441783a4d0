"""Tasks and training recipes of `reinforce_table`: what is trained on what, and the figures published for it."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import optax

import logderiv as ld
from logderiv.types import Step

POINTS = 24  # evaluations of a run, so that numbers of updates are multiples of it
ZOO = "rl-baselines3-zoo benchmark.md"
CLEANRL = "CleanRL docs"
EPISODES = ld.Episodes(16)
LEAVE_ONE_OUT = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))


@dataclasses.dataclass(frozen=True)
class ScaledRewards:
    """An environment with its rewards times a constant, which a value network and clipped gradients learn sooner."""

    environment: Any
    scale: float

    @property
    def horizon(self) -> int | None:
        """That of the environment."""
        return self.environment.horizon

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Any, Any]:
        """As the environment."""
        return self.environment.reset(key, params)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any = None) -> Step:
        """As the environment, with another reward."""
        step = self.environment.step(key, state, action, params)
        return step._replace(reward=self.scale * step.reward)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One way to train on a task.

    Attributes:
        policy: With `init(key, observation)`.
        estimator: Of the gradient.
        optimizer: It ascends.
        updates: Of the run.
        batch: What `ld.train` further takes: the batch, epochs, minibatches.
    """

    policy: Any
    estimator: ld.Estimator
    optimizer: optax.GradientTransformation
    updates: int
    batch: dict[str, Any]

    def __post_init__(self) -> None:
        if self.updates % POINTS:
            raise ValueError(f"updates: expected a multiple of {POINTS}, received {self.updates}.")


@dataclasses.dataclass(frozen=True)
class Task:
    """An environment and how it is learnt.

    Attributes:
        name: As published.
        make: Makes the environment, or raises `ImportError`.
        threshold: Mean return that counts as solved.
        published: Algorithm, mean return, environment steps and source.
        recipes: By name.
        reward_scale: What rewards are multiplied with in training; returns are reported unscaled.
        episodes: Of each evaluation in training; four times as many of the final policy.
        held: Of a recipe, how many of eight seeds have to end above the threshold.
    """

    name: str
    make: Callable[[], Any]
    threshold: float
    published: tuple[tuple[str, str, str, str], ...]
    recipes: dict[str, Recipe]
    reward_scale: float = 1.0
    episodes: int = 32
    held: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _adam(rate: float, *, steps: int | None = None, clip: float | None = None, first: Any = None) -> Any:
    """Adam, or `first` and plain steps; with `steps` the rate falls linearly to 0 over so many; gradients clipped to norm `clip`."""
    clipped = optax.identity() if clip is None else optax.clip_by_global_norm(clip)
    schedule = rate if steps is None else optax.linear_schedule(rate, 0.0, steps)
    return optax.chain(clipped, first or optax.scale_by_adam(), optax.scale_by_learning_rate(schedule))


def reinforce(policy: ld.MLP, estimator: ld.Estimator, rate: float = 5e-3, updates: int = 96, **options: Any) -> Recipe:
    """Whole episodes, one Adam step each batch or epoch, the rate falling to 0."""
    batch = {"batch": EPISODES, "epochs": 1} | options
    return Recipe(policy, estimator, _adam(rate, steps=updates * batch["epochs"]), updates, batch)


def natural(policy: ld.MLP, *, rate: float, updates: int, damping: float = 1e-3) -> Recipe:
    """Reward-to-go and leave-one-out, the gradient times the inverse of the Fisher matrix."""
    optimizer = _adam(rate, first=ld.natural_gradient(policy, damping=damping))
    return Recipe(policy, LEAVE_ONE_OUT, optimizer, updates, {"batch": EPISODES})


def a2c(policy: ld.MLPActorCritic, *, rate: float, updates: int, discount: float = 0.99) -> Recipe:
    """Streams of 16 environments and 8 steps, one clipped Adam step each batch, the rate falling to 0."""
    estimator = ld.A2C(policy.value, entropy_weight=0.0, discount=discount)
    return Recipe(policy, estimator, _adam(rate, steps=updates, clip=0.5), updates, {"batch": ld.Steps(16, 8)})


def ppo(policy: ld.MLPActorCritic, *, updates: int, environments: int = 32, steps: int = 64, **options: Any) -> Recipe:
    """Streams, eight epochs of eight minibatches, clipped Adam, the rate falling to 0."""
    batch = {"batch": ld.Steps(environments, steps), "epochs": 8, "minibatches": 8}
    optimizer = _adam(2e-3, steps=updates * 8 * 8, clip=0.5)
    return Recipe(policy, ld.PPOActorCritic(policy.value, **options), optimizer, updates, batch)


def learned_value(size: int) -> ld.Estimator:
    """Reward-to-go, and a value of the state with parameters of its own, fitted by ten steps of Adam after each batch."""
    critic = ld.MLP(1, head=itemgetter(0))
    start = critic.init(jax.random.key(0), jnp.zeros(size))
    baseline = ld.baselines.LearnedValue(critic.apply, lambda _: start, optax.adam(1e-2), num_steps=10)
    return ld.ScoreFunction(ld.advantages.ToGo(baseline))


def gymnax_world(name: str) -> ld.environments.Gymnax:
    """An environment of gymnax with its own parameters."""
    return ld.environments.Gymnax(*gymnax.make(name))


def cartpole() -> Task:
    """A pole on a cart, two actions; at most 500 steps of reward 1."""
    actor, both = ld.MLP(2), ld.MLPActorCritic(2)
    per_trajectory = ld.ScoreFunction(ld.advantages.Return(ld.baselines.LeaveOneOut(per="trajectory")))
    return Task(
        "CartPole-v1",
        partial(gymnax_world, "CartPole-v1"),
        475.0,
        (
            ("PPO", "500.0 +- 0.0", "100 k", ZOO),
            ("A2C", "500.0 +- 0.0", "500 k", ZOO),
            ("PPO", "490.0 +- 6.1", "500 k", CLEANRL),
            ("REINFORCE", "466 to 500", "", "Hugging Face course, model cards of finished runs"),
        ),
        {
            "total return": reinforce(actor, ld.ScoreFunction(ld.advantages.Return())),
            "reward-to-go": reinforce(actor, ld.ScoreFunction()),
            "total return, leave-one-out": reinforce(actor, per_trajectory),
            "reward-to-go, leave-one-out": reinforce(actor, LEAVE_ONE_OUT),
            "reward-to-go, learned value": reinforce(actor, learned_value(4)),
            "leave-one-out in groups of 4": reinforce(actor, ld.RLOO(group_size=4), batch=ld.Groups(4, 4)),
            "GRPO, groups of 8": reinforce(actor, ld.GRPO(group_size=8), batch=ld.Groups(2, 8), epochs=4),
            "natural gradient": natural(actor, rate=0.03, updates=48),
            "A2C": a2c(both, rate=5e-3, updates=3840),
            "PPO": ppo(both, updates=48),
        },
        held={"reward-to-go, leave-one-out": 8, "natural gradient": 8, "A2C": 8, "PPO": 8},
    )


def acrobot() -> Task:
    """Two links, three torques; -1 a step until the tip is high enough, at most 500 steps."""
    actor, both = ld.MLP(3), ld.MLPActorCritic(3)
    return Task(
        "Acrobot-v1",
        partial(gymnax_world, "Acrobot-v1"),
        -100.0,
        (
            ("PPO", "-73.5 +- 18.2", "1 M", ZOO),
            ("A2C", "-83.4 +- 17.2", "500 k", ZOO),
            ("PPO", "-86.4 +- 1.3", "500 k", CLEANRL),
        ),
        {
            "reward-to-go": reinforce(actor, ld.ScoreFunction()),
            "reward-to-go, leave-one-out": reinforce(actor, LEAVE_ONE_OUT),
            "natural gradient": natural(actor, rate=0.03, updates=48),
            "A2C": a2c(both, rate=4e-3, updates=2400),
            "PPO": ppo(both, updates=144),
        },
        held={"PPO": 6},
    )


def pendulum() -> Task:
    """A pendulum to swing up by a torque in [-2, 2], of a Normal around the network's output; always 200 steps."""
    actor, both = ld.MLP(2, head=ld.normal_head), ld.MLPActorCritic(2, head=ld.normal_head)
    leave_one_out = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.95, gamma_t=False)
    return Task(
        "Pendulum-v1",
        partial(gymnax_world, "Pendulum-v1"),
        -200.0,
        (("PPO", "-172.2 +- 104.2", "100 k", ZOO), ("A2C", "-163.0 +- 103.2", "1 M", ZOO)),
        {
            "reward-to-go, leave-one-out": reinforce(actor, leave_one_out),
            "A2C": a2c(both, rate=2e-3, updates=2400, discount=0.95),
            "PPO": ppo(both, updates=144, environments=16, steps=128, discount=0.95, entropy_weight=0.0),
        },
        reward_scale=0.1,
        held={"PPO": 6},
    )


def mountain_car() -> Task:
    """A car too weak for its hill, three actions; -1 a step until it is up, at most 200 steps: chance never gets there."""
    actor, both = ld.MLP(3), ld.MLPActorCritic(3)
    return Task(
        "MountainCar-v0",
        partial(gymnax_world, "MountainCar-v0"),
        -110.0,
        (("PPO", "-200 +- 0", "500 k", CLEANRL), ("A2C", "-111.3 +- 24.1", "1 M", ZOO)),
        {"reward-to-go, leave-one-out": reinforce(actor, LEAVE_ONE_OUT), "PPO": ppo(both, updates=48)},
    )


def brax_world(name: str) -> ld.environments.Brax:
    """An environment of brax, 1000 steps; raises `ImportError` where brax is missing."""
    from brax import envs

    return ld.environments.Brax(envs.get_environment(name))


def brax_task(name: str, title: str, threshold: float, published: str, reward_scale: float = 1.0) -> Task:
    """A pole, or two of them end to end, on a cart that a force in [-1, 1] moves."""
    head = ld.policies.tanh_normal_head
    actor, both = ld.MLP(2, head=head, state_independent=1), ld.MLPActorCritic(2, head=head, state_independent=1)
    return Task(
        title,
        partial(brax_world, name),
        threshold,
        (("REINFORCE", published, "3 M", "tianshou examples/mujoco, MuJoCo's simulator"),),
        {
            "reward-to-go, leave-one-out": reinforce(actor, LEAVE_ONE_OUT, rate=1e-2, updates=240),
            "PPO": ppo(both, updates=48, entropy_weight=0.0),
        },
        reward_scale=reward_scale,
        episodes=8,
    )


def all_tasks() -> tuple[Task, ...]:
    """In the order of the tables."""
    return (
        cartpole(),
        acrobot(),
        pendulum(),
        mountain_car(),
        brax_task("inverted_pendulum", "inverted pendulum (brax)", 950.0, "1000"),
        brax_task("inverted_double_pendulum", "inverted double pendulum (brax)", 9100.0, "1060", reward_scale=0.1),
    )
