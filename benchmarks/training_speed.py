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
from benchmarks import harness, rl_peers
from benchmarks.rl_peers import Settings

SOLVED = 475.0
SIZES = (64, 1024)
OURS, PUREJAXRL, REJAX, SB3 = "logderiv", "PureJaxRL style", "rejax", "stable-baselines3"
PEERS = {PUREJAXRL: rl_peers.purejaxrl_style, REJAX: rl_peers.rejax_ppo}
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
    c, policy = settings, ld.MLPActorCritic(2)
    estimator = ld.ppo_actor_critic(
        policy.value,
        discount=c.discount,
        lambda_=c.lambda_,
        clip=c.clip,
        value_weight=c.value_weight,
        entropy_weight=c.entropy_weight,
    )
    stream = {"num_environments": c.num_environments, "num_steps": c.num_steps}
    options = {
        **stream,
        "estimator": estimator,
        "optimizer": _adam(c),
        "epochs": c.epochs,
        "minibatches": c.minibatches,
    }
    return Method(policy, options, every, num_updates)


def a2c(settings: Settings, *, every: int, num_updates: int) -> Method:
    c, policy = settings, ld.MLPActorCritic(2)
    estimator = ld.a2c(policy.value, discount=c.discount, lambda_=c.lambda_, entropy_weight=c.entropy_weight)
    stream = {"num_environments": c.num_environments, "num_steps": c.num_steps}
    return Method(policy, {**stream, "estimator": estimator, "optimizer": _adam(c)}, every, num_updates)


def reinforce(learning_rate: float, *, every: int, num_updates: int) -> Method:
    estimator = ld.score_function_without_gamma_t(baseline=ld.baseline_leave_one_out(), discount=0.99)
    optimizer = _adam(Settings(learning_rate=learning_rate))
    options = {"num_trajectories": 16, "horizon": 500, "estimator": estimator, "optimizer": optimizer}
    return Method(ld.MLP(2, (64, 64)), options, every, num_updates)


def _adam(settings: Settings) -> optax.GradientTransformation:
    adam = optax.adam(settings.learning_rate, eps=1e-5)
    return ld.maximize(optax.chain(optax.clip_by_global_norm(settings.max_grad_norm), adam))


METHODS = {
    "REINFORCE": reinforce(1e-2, every=5, num_updates=60),
    "A2C": a2c(Settings(16, 8, learning_rate=2e-3, lambda_=1.0, entropy_weight=0.0), every=64, num_updates=1536),
    "PPO": ppo(LEARNING, every=4, num_updates=48),
}


def train(
    method: Method, key: jax.Array, num_updates: int, environment: Any = None, evaluation: Any = None
) -> ld.Training:
    """A run of one of the library's algorithms."""
    environment = ld.Gymnax(gymnax.make("CartPole-v1")[0]) if environment is None else environment
    key, key_init = jax.random.split(key)
    params = method.policy.init(key_init, jnp.zeros(4))
    return ld.train(
        params, key, method.policy, environment, num_updates=num_updates, evaluation=evaluation, **method.options
    )


def throughput(settings: Settings, *, num_updates: int, repeats: int) -> Rates:
    """Steps a second and compile seconds of PPO, each JAX candidate."""
    method, key = ppo(settings), jax.random.key(0)
    calls = {OURS: harness.compile_call(lambda key: train(method, key, num_updates), key)}
    for name, make in PEERS.items():
        if (peer := make(settings)) is not None:
            calls[name] = harness.compile_call(_run(peer, num_updates), key)
    seconds = harness.interleaved_medians({name: call.run for name, call in calls.items()}, repeats)
    steps = settings.batch * num_updates
    return {
        name: {"steps_per_s": steps / seconds[name], "compile_s": call.compile_seconds} for name, call in calls.items()
    }


def _run(peer: rl_peers.Peer, num_updates: int) -> Callable[[jax.Array], Any]:
    return lambda key: peer.train(key, num_updates, num_updates)


class Curve(NamedTuple):
    """Evaluations of several seeds.

    Attributes:
        steps: Environment steps before each evaluation. Shape `(seeds, evaluations)`.
        returns: Their mean returns. Shape `(seeds, evaluations)`.
    """

    steps: np.ndarray
    returns: np.ndarray

    @property
    def steps_to_solve(self) -> np.ndarray:
        """Of each seed, up to the first evaluation of at least `SOLVED`; infinite where there is none."""
        solved = self.returns >= SOLVED
        first = np.take_along_axis(self.steps, np.argmax(solved, axis=1)[:, None], axis=1)[:, 0]
        return np.where(solved.any(axis=1), first, math.inf)


def learn(method: Method, keys: jax.Array, environment: Any = None, *, num_episodes: int = 32) -> Curve:
    """Curves of one of the library's algorithms."""
    evaluation = ld.Evaluation(every=method.every, num_episodes=num_episodes)

    def one(key: jax.Array) -> Any:
        metrics = train(method, key, method.num_updates, environment, evaluation).metrics
        last = slice(method.every - 1, None, method.every)
        return jnp.cumsum(metrics.num_steps)[last], metrics.evaluation[last]

    return Curve(*(np.asarray(x) for x in jax.jit(partial(lax.map, one))(keys)))


def learn_peer(
    peer: rl_peers.Peer, settings: Settings, keys: jax.Array, like: Method, *, num_episodes: int = 32
) -> Curve:
    """Curves of a peer's PPO, its snapshots evaluated here as ours are."""
    environment = ld.Gymnax(gymnax.make("CartPole-v1")[0])
    policy = ld.FunctionPolicy(lambda snapshot, observation: ld.Categorical(peer.logits(snapshot, observation)))

    def one(key: jax.Array) -> jax.Array:
        key, key_evaluation = jax.random.split(key)

        def mean_return(snapshot: Any) -> jax.Array:
            return jnp.mean(ld.evaluate(snapshot, key_evaluation, policy, environment, num_episodes=num_episodes))

        return lax.map(mean_return, peer.train(key, like.num_updates, like.every))

    returns = np.asarray(jax.jit(partial(lax.map, one))(keys))
    steps = settings.batch * like.every * np.arange(1, returns.shape[1] + 1)
    return Curve(np.broadcast_to(steps, returns.shape), returns)


def learn_stable_baselines3(
    settings: Settings, num_seeds: int, like: Method, *, num_episodes: int = 32
) -> Curve | None:
    """Curves of stable-baselines3's PPO on Gymnasium's CartPole."""
    returns, stride = [], settings.batch * like.every
    for seed in range(num_seeds):
        model = rl_peers.stable_baselines3_ppo(settings, seed)
        if model is None:
            return None
        row = []
        for _ in range(like.num_updates // like.every):
            model.learn(stride, reset_num_timesteps=False)
            row.append(rl_peers.stable_baselines3_return(model, num_episodes, seed))
        returns.append(row)
    steps = np.broadcast_to(stride * np.arange(1, len(returns[0]) + 1), (num_seeds, len(returns[0])))
    return Curve(steps, np.array(returns))


def rates(methods: Mapping[str, Method], peers: Mapping[str, Any], *, num_updates: int, repeats: int) -> Rates:
    """With the settings that learn, every candidate in the same rounds; those on the host too."""
    key, settings = jax.random.key(0), LEARNING
    calls, steps = {}, {}
    for name, method in methods.items():
        # as many steps, about; whole runs of REINFORCE, whose episodes get longer as it learns
        updates = {"PPO": num_updates, "A2C": 16 * num_updates}.get(name, method.num_updates)
        calls[f"{OURS} {name}"] = call = harness.compile_call(partial(train, method, num_updates=updates), key)
        steps[f"{OURS} {name}"] = float(np.sum(call.run().metrics.num_steps))
    host = ld.Gymnasium("CartPole-v1")
    calls[HOST] = harness.compile_call(partial(train, METHODS["PPO"], num_updates=num_updates, environment=host), key)
    for name, make in peers.items():
        if (peer := make(settings)) is not None:
            calls[f"{name} PPO"] = harness.compile_call(_run(peer, num_updates), key)
    runs: dict[str, Callable[[], Any]] = {name: call.run for name, call in calls.items()}
    if (model := rl_peers.stable_baselines3_ppo(settings)) is not None:
        few = max(1, num_updates // 8)
        runs[f"{SB3} PPO"], steps[f"{SB3} PPO"] = lambda: model.learn(settings.batch * few), settings.batch * few
    seconds = harness.interleaved_medians(runs, repeats)
    return {
        name: {
            "steps_per_s": steps.get(name, settings.batch * num_updates) / seconds[name],
            "compile_s": calls[name].compile_seconds if name in calls else math.nan,
        }
        for name in runs
    }


def curves(methods: Mapping[str, Method], peers: Mapping[str, Any], num_seeds: int) -> dict[str, Curve]:
    """Of these, from as many seeds."""

    def keys() -> jax.Array:
        return jax.random.split(jax.random.key(1), num_seeds)

    like = METHODS["PPO"]
    found = {f"{OURS} {name}": learn(method, keys()) for name, method in methods.items()}
    found[HOST] = learn(like, keys(), ld.Gymnasium("CartPole-v1"))
    for name, make in peers.items():
        if (peer := make(LEARNING)) is not None:
            found[f"{name} PPO"] = learn_peer(peer, LEARNING, keys(), like)
    if peers and (curve := learn_stable_baselines3(LEARNING, min(2, num_seeds), like)) is not None:
        found[f"{SB3} PPO"] = curve
    return found


def main(quick: bool = False) -> list[harness.Bound]:
    missing = [name for name, modules in NEEDS.items() if not rl_peers.installed(*modules)]
    if missing:
        print(f"left out, not installed: {', '.join(missing)}; the extra rl-peers has them")
    throughputs = {}
    for num in SIZES:
        updates, repeats = (2 if quick else 8, 5 if quick else 9) if num < 512 else (1, 2 if quick else 7)
        throughputs[num] = throughput(Settings(num), num_updates=updates, repeats=repeats)
    for num, rows in throughputs.items():
        _print_rates(f"PPO, {num} environments, 128 steps, 4 epochs of 4 minibatches", rows)
    # learning: in a quick run the library's PPO alone
    methods, peers = ({"PPO": METHODS["PPO"]}, {}) if quick else (METHODS, PEERS)
    speed = rates(methods, peers, num_updates=8 if quick else 48, repeats=2 if quick else 5)
    learnt = curves(methods, peers, 2 if quick else 8)
    figures = {"throughput": throughputs, "learning": _print_learning(speed, learnt)}
    _plot(throughputs, speed, learnt)
    bounds = _throughput_bounds(throughputs) + _learning_bounds(speed, learnt)
    return harness.finish("training_speed", figures, bounds, quick=quick)


def _print_rates(title: str, rows: Rates) -> None:
    header = ("candidate", "1000 steps/s", "compile s")
    cells = [(name, f"{1e-3 * row['steps_per_s']:.0f}", f"{row['compile_s']:.1f}") for name, row in rows.items()]
    harness.print_table(title, header, cells)


def _seconds(speed: Rates, name: str, curve: Curve) -> float:
    """To `SOLVED`, of the median seed."""
    return float(np.median(curve.steps_to_solve)) / speed[name]["steps_per_s"]


def _print_learning(speed: Rates, learnt: Mapping[str, Curve]) -> dict[str, dict[str, Any]]:
    rows = {}
    for name, row in speed.items():
        rows[name] = dict(row)
        if (curve := learnt.get(name)) is not None:
            rows[name] |= {
                "steps_to_475": np.sort(curve.steps_to_solve),
                "seconds_to_475": _seconds(speed, name, curve),
                "last_returns": np.sort(curve.returns[:, -1]),
            }
    cells = []
    for name, row in rows.items():
        steps = row.get("steps_to_475", np.array([math.nan]))
        solved = f"{np.isfinite(steps).sum()} of {steps.size}" if name in learnt else "-"
        numbers = (1e-3 * row["steps_per_s"], row["compile_s"], 1e-3 * float(np.median(steps)))
        seconds = f"{row.get('seconds_to_475', math.nan):.2f}"
        cells.append((name, *(f"{x:.0f}" if i != 1 else f"{x:.1f}" for i, x in enumerate(numbers)), seconds, solved))
    header = ("candidate", "1000 steps/s", "compile s", "1000 steps to 475", "s to 475", "seeds")
    harness.print_table("a mean return of 475; the median seed", header, cells)
    return rows


def _throughput_bounds(throughputs: Mapping[int, Rates]) -> list[harness.Bound]:
    return [
        harness.Bound(
            f"PPO steps/s over {name}, {num} environments", rows[OURS]["steps_per_s"] / row["steps_per_s"], 1.3, True
        )
        for num, rows in throughputs.items()
        for name, row in rows.items()
        if name != OURS
    ]


def _learning_bounds(speed: Rates, learnt: Mapping[str, Curve]) -> list[harness.Bound]:
    bounds = []
    for name, curve in learnt.items():
        if name.startswith(OURS):
            solved = float(np.mean(np.isfinite(curve.steps_to_solve)))
            bounds.append(harness.Bound(f"{name}: fraction of seeds that reach 475", solved, 1.0, True))
    within = float(np.mean(learnt[f"{OURS} PPO"].steps_to_solve <= 1e5))
    bounds.append(harness.Bound("PPO: fraction of seeds that reach 475 within 100 000 steps", within, 0.75, True))
    if f"{SB3} PPO" in speed:
        ratio = speed[HOST]["steps_per_s"] / speed[f"{SB3} PPO"]["steps_per_s"]
        bounds.append(harness.Bound("steps/s over stable-baselines3, both on Gymnasium's CartPole", ratio, 2.0, True))
    return bounds


def _plot(
    throughputs: Mapping[int, Rates],
    speed: Rates,
    learnt: Mapping[str, Curve],
) -> None:
    figure, (left, right) = harness.new_figure(ncols=2, figsize=(10, 4))
    names = list(throughputs[SIZES[0]])
    for i, name in enumerate(names):
        heights = [1e-3 * rows[name]["steps_per_s"] for rows in throughputs.values()]
        left.bar(np.arange(len(heights)) + 0.8 * (i + 0.5) / len(names) - 0.4, heights, 0.8 / len(names), label=name)
    left.set_xticks(range(len(throughputs)), [f"{num} environments" for num in throughputs])
    left.set(ylabel="1000 environment steps / s", title="PPO")
    left.legend()
    for name, curve in learnt.items():
        seconds = np.mean(curve.steps, axis=0) / speed[name]["steps_per_s"]
        right.plot(seconds, np.median(curve.returns, axis=0), label=name)
    right.axhline(SOLVED, color="grey", linestyle=":")
    right.set(xscale="log", xlabel="seconds of training", ylabel="mean return", title="CartPole-v1, median over seeds")
    right.legend(fontsize="small")
    harness.save_figure(figure, "training_speed")
