r"""What do a recurrent policy, a tabular one, the gradients of every trajectory, and an objective of tokens cost, beside the obvious way?

Value and gradient of log P of a GRU by checkpointed segments against a scan that keeps everything; of a tabular softmax by counting visits against
differentiating through the gather, as arrays and as a table; and mean and variance of 1024 trajectories' own gradients, 67 586 numbers each, streamed,
against `vmap(grad)`, with the means of 16 groups against the gradient of the batch alone; and value and gradient by log-probabilities of GRPO on 1024 answers of up to 2048 tokens,
against TRL's formula restated on arrays, plain, and with the sampler's correction and "r k3". Float32; time, and temporary memory as XLA has it.

Finding (2 CPU cores, jax 0.10.2): recomputing the segments costs nothing for a GRU (1.00 on one core, 1.06 on two), and what the gradient adds to memory grows
as the root of T: 0.1 MiB at 10^6 steps where a scan adds 1.3 GiB. Counting is 15 times as fast as the blocks and 25 to 36 times as fast as gathered rows; a
table normalized before it is gathered, whose derivative *is* a count, takes 1.6 times as long. Streamed moments take a third of the time of `vmap(grad)`.
GRPO takes 0.8 to 0.9 of the time of TRL's formula (one core); with the correction and "r k3" 1.02 to 1.1, which is what k3 with its digits near 0 costs.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import logderiv as ld
from benchmarks import harness, likelihood_speed, peers
from benchmarks.harness import Bound, Compiled, Report, Table, at_least, at_most

GRU = ld.GRU(2, hidden=32)
NET = ld.MLP(2, hidden=(256, 256))
STATES, ACTIONS = 100, 5


def recurrent(length: int) -> dict[str, Compiled]:
    """One trajectory under a GRU 32: the library, and a scan over time that keeps what the way back needs."""
    params, taus = GRU.init(jax.random.key(0), jnp.zeros(4, jnp.float32)), likelihood_speed.trajectories(length, 1)
    forms = {"logderiv": peers.ours(GRU), "plain scan": peers.plain_scan(GRU)}
    return {name: peers.compiled(function, params, taus) for name, function in forms.items()}


def recurrent_memory(lengths: list[int]) -> list[dict[str, Any]]:
    """Temporary bytes of both forms as T grows: of value and gradient, and of the value alone (copies of the inputs)."""
    params, rows = GRU.init(jax.random.key(0), jnp.zeros(4, jnp.float32)), [{"T": length} for length in lengths]
    for row in rows:
        for name, form in (("ours", peers.ours(GRU)), ("plain", peers.plain_scan(GRU))):
            arguments = (form, params, likelihood_speed.shape(row["T"]))
            row[name] = peers.compiled(*arguments).temp_bytes or 0
            row[f"{name}, value"] = harness.compile_call(*arguments).temp_bytes or 0
    return rows


def growth_over_root(rows: list[dict[str, Any]], form: str) -> float:
    """How the memory that the gradient adds to the value grows from the first row to the last, over the growth of sqrt(T)."""
    (first, last) = rows[0], rows[-1]
    added = [row[form] - row[f"{form}, value"] for row in (first, last)]
    return added[1] / added[0] / (last["T"] / first["T"]) ** 0.5


def tabular(length: int) -> dict[str, Compiled]:
    """One trajectory under a table of 100 states and 5 actions."""
    keys = jax.random.split(jax.random.key(0), 3)
    logits = jax.random.normal(keys[0], (STATES, ACTIONS), jnp.float32)
    drawn = (jax.random.randint(k, (1, length), 0, n) for k, n in zip(keys[1:], (STATES, ACTIONS), strict=True))
    taus = peers.trajectory(*drawn)

    def rows(logits: jax.Array, taus: ld.Trajectory) -> jax.Array:
        logs = jax.nn.log_softmax(logits[taus.observations])
        return jnp.sum(jnp.take_along_axis(logs, taus.actions[..., None], axis=-1))

    def table(logits: jax.Array, taus: ld.Trajectory) -> jax.Array:
        return jnp.sum(jax.nn.log_softmax(logits)[taus.observations, taus.actions])

    stepwise = ld.FunctionPolicy(ld.tabular_softmax.apply)  # the same policy, without its table
    forms = {
        "logderiv": peers.ours(ld.tabular_softmax),
        "in blocks of steps": peers.ours(stepwise),
        "log-softmax of the table, gathered": table,
        "log-softmax of gathered rows": rows,
    }
    return {name: peers.compiled(function, logits, taus) for name, function in forms.items()}


def moments(num: int, length: int) -> dict[str, Compiled]:
    """Mean and variance of each trajectory's gradient, the means of 16 groups, and the batch's gradient alone."""
    params, taus = NET.init(jax.random.key(0), jnp.zeros(4, jnp.float32)), likelihood_speed.trajectories(length, num)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))

    def streamed(params: Any, taus: ld.Trajectory) -> Any:
        return ld.diagnostics.gradient_moments(params, NET, taus, estimator)[:2]

    def groups(params: Any, taus: ld.Trajectory) -> Any:
        return ld.diagnostics.per_trajectory_gradients(params, NET, taus, estimator, num_groups=16)

    def batch(params: Any, taus: ld.Trajectory) -> Any:
        return estimator.estimate(params, (), NET, taus)[0].grads

    def all_at_once(params: Any, taus: ld.Trajectory) -> Any:
        weights, _ = estimator.advantages(params, (), NET, taus)

        def term(params: Any, tau: ld.Trajectory, weights: jax.Array) -> jax.Array:
            logs = jax.nn.log_softmax(peers.logits(params, tau.observations))
            return jnp.sum(weights * jnp.take_along_axis(logs, tau.actions[:, None], axis=-1)[:, 0])

        grads = jax.vmap(jax.grad(term), (None, 0, 0))(params, taus, weights)
        return jax.tree.map(lambda g: (jnp.mean(g, axis=0), jnp.var(g, axis=0, ddof=1)), grads)

    names = ("streamed", "vmap(grad)", "16 group means", "batch gradient")
    forms: tuple[Callable[..., Any], ...] = (streamed, all_at_once, groups, batch)
    return {name: harness.compile_call(form, params, taus) for name, form in zip(names, forms, strict=True)}


def answers(num: int, length: int) -> dict[str, Compiled]:
    """GRPO of N answers to N/8 prompts, by the library and as one writes it."""
    keys = jax.random.split(jax.random.key(0), 6)
    old, *moves = (jax.random.normal(key, (num, length), jnp.float32) for key in keys[:4])
    log_probs, sampler, reference = (old - 2 + 0.1 * move for move in moves)
    tokens = {"old": old - 2, "sampler": sampler, "reference": reference}
    rewards = jax.random.bernoulli(keys[4], 0.5, (num,)).astype(jnp.float32)
    mask = jnp.arange(length)[None] < jax.random.randint(keys[5], (num, 1), length // 4, length)
    groups = jnp.arange(num) // 8

    def ours(name: str, *used: str) -> Callable[..., jax.Array]:
        recipe = ld.objectives.preset(name)

        def loss(log_probs: jax.Array, mask: jax.Array, tokens: dict[str, jax.Array], rewards: jax.Array) -> jax.Array:
            advantages = recipe.advantages(rewards, groups, num_groups=num // 8)
            given = {name: tokens[name] for name in ("old", *used)}
            return -recipe.objective(log_probs, advantages, recipe.token_weights(mask, groups), **given)

        return loss

    forms = {
        "logderiv": ours("trl_grpo"),
        "TRL's formula": partial(peers.grpo, beta=None),
        "logderiv, corrected, r k3": ours("trl_grpo_r_k3", "sampler", "reference"),
        "TRL's formula, corrected, r k3": partial(peers.grpo, beta=0.04),
    }
    arguments = (log_probs, mask, tokens, rewards)  # with the mask last XLA fuses the peer worse
    return {name: harness.compile_call(jax.value_and_grad(form), *arguments) for name, form in forms.items()}


def measure(make: str, arguments: list[int], repeats: int) -> dict[str, Any]:
    """One of the families, interleaved; runs in a process of its own."""
    families = {"recurrent": recurrent, "tabular": tabular, "moments": moments, "answers": answers}
    calls: dict[str, Compiled] = families[make](*arguments)
    seconds = harness.interleaved_medians(calls, repeats)
    return {name: {"seconds": seconds[name], "temp_mib": (calls[name].temp_bytes or 0) / 2**20} for name in calls}


def main(quick: bool) -> Report:
    families = {
        "recurrent": ("GRU 32, one trajectory", [8192 if quick else 65536]),
        "tabular": (f"a table of {STATES} x {ACTIONS}, one trajectory", [10**5 if quick else 10**6]),
        "moments": ("gradients of MLP 4-256-256-2, N trajectories of T", [128 if quick else 1024, 32]),
        "answers": ("GRPO of N answers of up to T tokens", [128, 256] if quick else [1024, 2048]),
    }
    tables, timings, found = [], [], {}
    for place, cores in harness.places().items():
        for name, (title, arguments) in families.items():
            rows = harness.on_cores(cores, "benchmarks.structure_speed:measure", name, arguments, 3 if quick else 9)
            first = next(iter(rows.values()))["seconds"]
            found[f"{name}, {place}"] = rows
            shown = [(form, 1e3 * r["seconds"], r["seconds"] / first, r["temp_mib"]) for form, r in rows.items()]
            cells = "{r[0]} | {r[1]:.2f} | {r[2]:.2f} | {r[3]:.2f}"
            title_here = f"{title} ({', '.join(map(str, arguments))}), {place}"
            tables.append(Table(title_here, "form | ms | times the first | temporary MiB", cells, shown))
            timings += _bounds(name, place, rows) if cores else []
    memory = recurrent_memory([4096, 65536] if quick else [4096, 65536, 2**20])
    columns = ("ours", "ours, value", "plain", "plain, value")
    title = "GRU 32, temporary MiB of value and gradient, and of the value alone"
    mib = [{"T": row["T"]} | {c: row[c] / 2**20 for c in columns} for row in memory]
    tables.append(Table(title, " | ".join(["T", *columns]), "{r[T]} | " + harness.cells(columns), mib))
    growth = growth_over_root(memory, "ours")
    timings.append(at_most("GRU: growth of what the gradient adds to memory over that of sqrt(T)", growth, 1.25))
    return Report(tables, [], {"families": found, "recurrent_memory": memory}, partial(_draw, found), timings)


def _bounds(family: str, at: str, rows: dict[str, Any]) -> list[Bound]:
    s = {form: row["seconds"] for form, row in rows.items()}
    if family == "recurrent":
        return [at_most(f"GRU: over an uncheckpointed scan, {at}", s["logderiv"] / s["plain scan"], 1.3)]
    if family == "tabular":
        others = ("in blocks of steps", "log-softmax of gathered rows")
        return [at_least(f"table: {form} over counting, {at}", s[form] / s["logderiv"], 3.0) for form in others]
    if family == "answers":
        forms = (
            ("logderiv", "TRL's formula", 1.0),
            ("logderiv, corrected, r k3", "TRL's formula, corrected, r k3", 1.2),
        )
        return [at_most(f"{ours} over {theirs}, {at}", s[ours] / s[theirs], limit) for ours, theirs, limit in forms]
    return [
        at_most(f"streamed moments over vmap(grad), {at}", s["streamed"] / s["vmap(grad)"], 1.3),
        at_most(f"streamed moments, temporary MiB, {at}", rows["streamed"]["temp_mib"], 10.0),
        at_most(f"group means over the batch gradient, {at}", s["16 group means"] / s["batch gradient"], 1.15),
    ]


def _draw(found: dict[str, dict[str, Any]]) -> Any:
    figure, axes = harness.new_figure(nrows=-(-len(found) // 4), ncols=4, figsize=(16, 5), squeeze=False)
    for ax, (title, rows) in zip(axes.flat, found.items(), strict=True):
        places = range(len(rows))[::-1]
        ax.barh(places, [1e3 * row["seconds"] for row in rows.values()])
        ax.set_yticks(places, [f"{form}\n{row['temp_mib']:.1f} MiB" for form, row in rows.items()], fontsize=7)
        ax.set(xlabel="ms", title=title)
    return figure
