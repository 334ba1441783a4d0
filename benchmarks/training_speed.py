"""How fast is training on CartPole-v1, in environment steps a second and in seconds to a mean return of 475, against other libraries?

Throughput: PPO with 64 and 1024 environments, 128 steps, 4 epochs of 4 minibatches, actor and critic 4-64-64-x with tanh, the same
hyperparameters; ours, rejax and a PPO in PureJaxRL's style step the same simulator (gymnax 1.x). Learning: every candidate from 8 seeds, evaluated on
32 fresh episodes, actions sampled; seconds to 475 are the median of the environment steps to the first evaluation of at least that, over the
measured steps a second, evaluations not counted. Candidates run interleaved in one process, compiling apart. Two differences remain: PPO
here standardizes advantages over the batch rather than each minibatch and does not clip the value's loss, and a truncated episode bootstraps from
where it was cut, which the JAX peers take for a terminal state.

Finding (2 CPU cores, jax 0.10.2, gymnax 1.0.1, rejax 0.1.3, stable-baselines3 2.9.2): PPO makes 507 000 steps a second with 64 environments, 1.6 times PureJaxRL's
style and rejax, and 622 000 with 1024, 2.1 times. About 40 % of their time is the permutation of all rows: a sort of `E T` keys in each epoch. Here a minibatch is a
random set of time steps, the same of all environments, and the critic is evaluated once over the batch rather than at every step. Gradients take blocks of 2048 rows:
in blocks of 512, which run on one core, PPO is but 1.2 to 1.4 times as fast as they. It reaches 475 after 45 000 steps (the median of 8 seeds), in 0.11 s; they after
80 000, in 0.28 s, and not with every seed. On Gymnasium's own CartPole, through a callback, it makes 124 000 steps a second, three times stable-baselines3, which
steps its environments one after the other where ours are Gymnasium's own numpy vector.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import logderiv as ld
from benchmarks import harness, peers_sb3, rl_peers
from benchmarks.harness import Bound, Report, Table, at_least
from benchmarks.peers_sb3 import SB3
from benchmarks.rl_peers import PEERS, PUREJAXRL, REJAX, Settings
from benchmarks.seeds import Run
from benchmarks.solved_peers import peer_curves

SOLVED = 475.0
SIZES = (64, 1024)
OURS = "logderiv"
HOST = f"{OURS} PPO, Gymnasium"
NEEDS = {PUREJAXRL: ("flax", "distrax"), REJAX: ("rejax",), SB3: ("stable_baselines3",)}
LEARNING = Settings(num_environments=64, num_steps=32, learning_rate=5e-3)  # solves it with every library
Rates = Mapping[str, Mapping[str, float]]  # of candidates: steps_per_s, compile_s


class Method(NamedTuple):
    """One of the library's algorithms: all but the environment of a call of `train`.

    Attributes:
        policy: What is trained.
        options: Arguments of `train`.
        every: Updates from one evaluation to the next.
        num_updates: Updates in all.
    """

    policy: Any
    options: Mapping[str, Any]
    every: int
    num_updates: int


def ppo(settings: Settings, *, every: int = 1, num_updates: int = 1) -> Method:
    policy = ld.MLPActorCritic(2)
    shared = ("discount", "lambda_", "clip", "value_weight", "entropy_weight")
    estimator = ld.PPOActorCritic(policy.value, **{name: getattr(settings, name) for name in shared})
    options = _options(settings, estimator) | {"epochs": settings.epochs, "minibatches": settings.minibatches}
    return Method(policy, options, every, num_updates)


def a2c(settings: Settings, *, every: int, num_updates: int) -> Method:
    c, policy = settings, ld.MLPActorCritic(2)
    estimator = ld.A2C(policy.value, discount=c.discount, lambda_=c.lambda_, entropy_weight=c.entropy_weight)
    return Method(policy, _options(c, estimator, num_updates), every, num_updates)


def reinforce(learning_rate: float, *, every: int, num_updates: int) -> Method:
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.99, gamma_t=False)
    options = _options(Settings(learning_rate=learning_rate, anneal=True), estimator, num_updates)
    options |= {"batch": ld.Episodes(16, horizon=500)}
    return Method(ld.MLP(2, (64, 64)), options, every, num_updates)


def _options(c: Settings, estimator: Any, num_updates: int = 1) -> dict[str, Any]:
    rate = optax.linear_schedule(c.learning_rate, 0.0, num_updates) if c.anneal else c.learning_rate
    adam = optax.adam(rate, eps=1e-5)
    optimizer = optax.chain(optax.clip_by_global_norm(c.max_grad_norm), adam)
    return {"batch": ld.Steps(c.num_environments, c.num_steps), "estimator": estimator, "optimizer": optimizer}


# At rates that do not fall, REINFORCE and A2C each lose one seed of 24 before it has reached 475, or after.
METHODS = {
    "REINFORCE": reinforce(1e-2, every=5, num_updates=60),
    "A2C": a2c(Settings(16, 8, learning_rate=5e-3, entropy_weight=0.0, anneal=True), every=64, num_updates=1536),
    "PPO": ppo(LEARNING, every=4, num_updates=48),
}


def train(
    method: Method, key: jax.Array, num_updates: int, environment: Any = None, evaluation: Any = None
) -> ld.training.Training:
    """A run of one of the library's algorithms."""
    environment = ld.environments.Gymnax(gymnax.make("CartPole-v1")[0]) if environment is None else environment
    key, key_init = jax.random.split(key)
    params, options = method.policy.init(key_init, jnp.zeros(4)), {"num_updates": num_updates, "evaluation": evaluation}
    return ld.train(params, key, method.policy, environment, **options, **method.options)


def throughput(settings: Settings, *, num_updates: int, repeats: int) -> Rates:
    """Steps a second and compile seconds of PPO, each JAX candidate."""
    method, key = ppo(settings), jax.random.key(0)
    calls = {OURS: harness.compile_call(lambda key: train(method, key, num_updates), key)}
    for name, make in PEERS.items():
        if (peer := make(settings)) is not None:
            calls[name] = harness.compile_call(_run(peer, num_updates), key)
    seconds = harness.interleaved_medians(calls, repeats)
    return _rates(dict.fromkeys(calls, settings.batch * num_updates), seconds, calls)


def _rates(steps: Mapping[str, float], seconds: Mapping[str, float], calls: Mapping[str, harness.Compiled]) -> Rates:
    compiling = {name: calls[name].compile_seconds if name in calls else math.nan for name in steps}
    return {name: {"steps_per_s": steps[name] / seconds[name], "compile_s": compiling[name]} for name in steps}


def _run(peer: rl_peers.Peer, num_updates: int) -> Callable[[jax.Array], Any]:
    return lambda key: peer.train(key, num_updates, num_updates)


def learn(method: Method, keys: jax.Array, environment: Any = None, *, num_episodes: int = 32) -> Run:
    """Curves of one of the library's algorithms."""
    evaluation = ld.Evaluation(every=method.every, num_episodes=num_episodes)

    def one(key: jax.Array) -> Any:
        metrics = train(method, key, method.num_updates, environment, evaluation).metrics
        last = slice(method.every - 1, None, method.every)
        return jnp.cumsum(metrics.num_steps)[last], metrics.evaluation[last]

    steps, returns = map(np.asarray, jax.jit(partial(lax.map, one))(keys))
    return Run(steps, returns, returns[:, -1], math.nan, math.nan)  # what training takes is measured by `rates`


def rates(methods: Mapping[str, Method], peers: Mapping[str, Any], *, num_updates: int, repeats: int) -> Rates:
    """With the settings that learn, every candidate in the same rounds; those on the host too."""
    key, settings = jax.random.key(0), LEARNING
    calls, steps = {}, {}
    for name, method in methods.items():
        # as many steps, about; whole runs of REINFORCE, whose episodes get longer as it learns
        updates = {"PPO": num_updates, "A2C": 16 * num_updates}.get(name, method.num_updates)
        calls[f"{OURS} {name}"] = call = harness.compile_call(partial(train, method, num_updates=updates), key)
        steps[f"{OURS} {name}"] = float(np.sum(call.run().metrics.num_steps))
    host = ld.environments.Gymnasium("CartPole-v1")
    calls[HOST] = harness.compile_call(partial(train, METHODS["PPO"], num_updates=num_updates, environment=host), key)
    for name, make in peers.items():
        if (peer := make(settings)) is not None:
            calls[f"{name} PPO"] = harness.compile_call(_run(peer, num_updates), key)
    runs: dict[str, Callable[[], Any]] = dict(calls)
    if (model := peers_sb3.stable_baselines3_ppo(settings)) is not None:
        few = max(1, num_updates // 8)
        runs[f"{SB3} PPO"], steps[f"{SB3} PPO"] = lambda: model.learn(settings.batch * few), settings.batch * few
    seconds = harness.interleaved_medians(runs, repeats)
    return _rates({name: steps.get(name, settings.batch * num_updates) for name in runs}, seconds, calls)


def curves(methods: Mapping[str, Method], peers: Mapping[str, Any], num_seeds: int) -> dict[str, Run]:
    """Of these, from as many seeds."""

    def keys() -> jax.Array:
        return jax.random.split(jax.random.key(1), num_seeds)

    like = METHODS["PPO"]
    counts = {"num_updates": like.num_updates, "every": like.every, "num_episodes": 32}
    found = {f"{OURS} {name}": learn(method, keys()) for name, method in methods.items()}
    found[HOST] = learn(like, keys(), ld.environments.Gymnasium("CartPole-v1"))
    world = ld.environments.Gymnax(gymnax.make("CartPole-v1")[0])
    for name in [*peers, SB3] if peers else []:
        some = keys()[: 2 if name == SB3 else num_seeds]
        run = peer_curves(name, world, LEARNING, some, gymnasium="CartPole-v1", **counts)
        found |= {} if run is None else {f"{name} PPO": run}
    return found


def main(quick: bool = False) -> Report:
    throughputs = {}
    for num in SIZES:
        updates, repeats = (2 if quick else 8, 5 if quick else 9) if num < 512 else (1, 2 if quick else 7)
        throughputs[num] = throughput(Settings(num), num_updates=updates, repeats=repeats)
    # learning: in a quick run the library's PPO alone
    methods, peers = ({"PPO": METHODS["PPO"]}, {}) if quick else (METHODS, PEERS)
    speed = rates(methods, peers, num_updates=8 if quick else 48, repeats=2 if quick else 5)
    learned = curves(methods, peers, 2 if quick else 8)
    rows = {name: dict(row) | (_summary(row, learned[name]) if name in learned else {}) for name, row in speed.items()}
    tables = [
        Table(
            f"PPO, {num} environments, 128 steps, 4 epochs of 4 minibatches",
            "candidate | steps/s | compile s",
            "{r[name]} | {r[steps_per_s]:.0f} | {r[compile_s]:.1f}",
            [{"name": name} | row for name, row in found.items()],
        )
        for num, found in throughputs.items()
    ]
    missing = [name for name, modules in NEEDS.items() if not rl_peers.installed(*modules)]
    tables.append(
        Table(
            "a mean return of 475; the median seed",
            "candidate | steps/s | compile s | steps to 475 | s to 475 | seeds",
            "{r[name]} | {r[steps_per_s]:.0f} | {r[compile_s]:.1f} | {r[median]:.0f} | {r[seconds_to_475]:.2f} | {r[seeds]}",
            [{"name": name} | row for name, row in rows.items()],
            f"left out, not installed: {', '.join(missing) or 'nothing'}; the extra rl-peers has them",
        )
    )
    numbers = {"throughput": throughputs, "learning": rows}
    timings = _throughput_bounds(throughputs, speed)
    return Report(tables, _learning_bounds(learned), numbers, partial(_draw, throughputs, speed, learned), timings)


def _summary(row: Mapping[str, float], curve: Run) -> dict[str, Any]:
    steps, last = np.sort(curve.steps_to(SOLVED)), np.sort(curve.returns[:, -1])
    median, seeds = float(np.median(steps)), f"{np.isfinite(steps).sum()} of {steps.size}"
    seconds = median / row["steps_per_s"]
    return {"steps_to_475": steps, "median": median, "seconds_to_475": seconds, "seeds": seeds, "last_returns": last}


def _throughput_bounds(throughputs: Mapping[int, Rates], speed: Rates) -> list[Bound]:
    bounds = [
        at_least(f"PPO steps/s over {name}, {num} environments", rows[OURS]["steps_per_s"] / row["steps_per_s"], 1.3)
        for num, rows in throughputs.items()
        for name, row in rows.items()
        if name != OURS
    ]
    if f"{SB3} PPO" in speed:
        ratio = speed[HOST]["steps_per_s"] / speed[f"{SB3} PPO"]["steps_per_s"]
        bounds.append(at_least("steps/s over stable-baselines3, both on Gymnasium's CartPole", ratio, 2.0))
    return bounds


def _learning_bounds(learned: Mapping[str, Run]) -> list[Bound]:
    within = np.mean(learned[f"{OURS} PPO"].steps_to(SOLVED) <= 1e5)
    ours = {name: np.mean(np.isfinite(c.steps_to(SOLVED))) for name, c in learned.items() if name.startswith(OURS)}
    return [
        *(at_least(f"{name}: fraction of seeds that reach 475", solved, 1.0) for name, solved in ours.items()),
        at_least("PPO: fraction of seeds that reach 475 within 100 000 steps", within, 0.75),
    ]


def _draw(throughputs: Mapping[int, Rates], speed: Rates, learned: Mapping[str, Run]) -> Any:
    figure, (left, right) = harness.new_figure(ncols=2, figsize=(10, 4))
    names = list(throughputs[SIZES[0]])
    for i, name in enumerate(names):
        heights = [1e-3 * rows[name]["steps_per_s"] for rows in throughputs.values()]
        left.bar(np.arange(len(heights)) + 0.8 * (i + 0.5) / len(names) - 0.4, heights, 0.8 / len(names), label=name)
    left.set_xticks(range(len(throughputs)), [f"{num} environments" for num in throughputs])
    left.set(ylabel="1000 environment steps / s", title="PPO")
    for name, curve in learned.items():
        seconds = np.mean(curve.steps, axis=0) / speed[name]["steps_per_s"]
        right.plot(seconds, np.median(curve.returns, axis=0), label=name)
    right.axhline(SOLVED, color="grey", linestyle=":")
    right.set(xscale="log", xlabel="seconds of training", ylabel="mean return", title="CartPole-v1, median over seeds")
    return figure
