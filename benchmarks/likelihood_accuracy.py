r"""How exact is log P of a trajectory of a million steps in float32?

Values are held against exact sums of the same factors (`math.fsum`) or exact arithmetic (mpmath, 50 digits), gradients against a closed form or
float64 by numpy; beside each stands the error of what one would write first, a plain `lax.scan` over time. Speed is the question of
`likelihood_speed`.

Finding (2 CPU cores, jax 0.10.2): a plain scan loses two to five digits at 10^6 steps and is right to one digit at 10^7; sums in blocks lose none
that matter: at most 1e-7 in the value and, for 10^7 identical scores, 1.9e-6 in the gradient.
"""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

import logderiv as ld
from benchmarks import peers
from benchmarks.harness import Report, Table, at_most, new_figure

MLP = ld.MLP(2, hidden=(64,))
GRU = ld.GRU(2, hidden=16)


class Row(NamedTuple):
    """Relative errors of one quantity, the library's and a plain scan's, and the bound on the former."""

    quantity: str
    steps: int
    error: float
    plain: float
    bound: float


def trajectory(length: int, key: jax.Array, *, actions: jax.Array | None = None) -> ld.Trajectory:
    """Observations from a Normal in four dimensions, fair binary actions unless given."""
    key_observation, key_action = jax.random.split(key)
    observations = jax.random.normal(key_observation, (length, 4), jnp.float32)
    actions = jax.random.bernoulli(key_action, shape=(length,)).astype(jnp.int32) if actions is None else actions
    return peers.trajectory(observations, actions)


def plain_log_prob(params: Any, policy: Any, tau: ld.Trajectory) -> jax.Array:
    """What one would write first: a scan over time that carries the sum."""
    return peers.plain_scan(policy)(params, jax.tree.map(lambda x: x[None], tau))


def value_rows(name: str, policy: Any, length: int) -> list[Row]:
    """The value of log P, on its own and beside its gradient, against the exact sum of the same factors."""
    key_params, key = jax.random.split(jax.random.key(1))
    params, tau = peers.parameters(policy, key_params), trajectory(length, key)
    exact = math.fsum(np.asarray(jax.jit(ld.log_factors)(params, policy, tau), np.float64))

    def error(value: Any) -> float:
        return abs(float(value) / exact - 1)

    plain = error(jax.jit(plain_log_prob)(params, policy, tau))
    rows = [Row(f"log P, {name}", length, error(jax.jit(ld.log_prob)(params, policy, tau)), plain, 1e-6)]
    if policy.initial_carry is None:
        value, _ = jax.jit(jax.value_and_grad(ld.log_prob))(params, policy, tau)
        rows.append(Row(f"log P, {name}, from value_and_grad", length, error(value), plain, 1e-6))
    return rows


def signed_rows(length: int) -> list[Row]:
    """P and grad P of a tabular softmax as signed logarithms, against exact arithmetic on the counts N(s, a).

    P = prod_{s,a} pi(a|s)^N(s,a) and d log P / d theta_{s,a} = N(s,a) - pi(a|s) N(s). Actions are drawn uniformly, not
    from the policy, so that the score is large and its entries have both signs.
    """
    logits = 0.5 * jax.random.normal(jax.random.key(2), (5, 3), jnp.float32)
    keys = jax.random.split(jax.random.key(3))
    states, actions = (jax.random.randint(k, (length,), 0, n, jnp.int32) for k, n in zip(keys, (5, 3), strict=True))
    tau = peers.trajectory(states, actions)
    counts = np.zeros((5, 3), int)
    np.add.at(counts, (np.asarray(states), np.asarray(actions)), 1)

    logp = float(jax.jit(ld.log_prob)(logits, ld.tabular_softmax, tau))
    grad = jax.jit(ld.grad_prob)(logits, ld.tabular_softmax, tau)
    plain_logp, plain_score = jax.jit(jax.value_and_grad(plain_log_prob))(logits, ld.tabular_softmax, tau)
    with mpmath.workdps(50):
        exact_logp, score = _exact_tabular(np.asarray(logits), counts)
        exact_grad = [[exact_logp + mpmath.log(abs(x)) for x in row] for row in score]
        signs = [[int(mpmath.sign(x)) for x in row] for row in score]
        error = _worst(grad.logabs, exact_grad) if np.array_equal(grad.sign, signs) else math.inf
        plain_grad = float(plain_logp) + np.log(np.abs(np.asarray(plain_score, np.float64)))
        value, plain_value = (_worst([[x]], [[exact_logp]]) for x in (logp, plain_logp))
        return [
            Row("P, signed-log, tabular softmax", length, value, plain_value, 1e-5),
            Row("grad P, signed-log, worst entry", length, error, _worst(plain_grad, exact_grad), 1e-5),
        ]


def _exact_tabular(logits: np.ndarray, counts: np.ndarray) -> tuple[Any, list[list[Any]]]:
    """Exact log P and its gradient, entry by entry, in mpmath numbers."""
    logp, score = mpmath.mpf(0), []
    for row, number in zip(logits, counts, strict=True):
        weights = [mpmath.exp(mpmath.mpf(float(x))) for x in row]
        probs = [w / mpmath.fsum(weights) for w in weights]
        logp += mpmath.fsum(int(n) * mpmath.log(p) for n, p in zip(number, probs, strict=True))
        score.append([int(n) - p * int(number.sum()) for n, p in zip(number, probs, strict=True)])
    return logp, score


def _worst(values: Any, exact: list[list[Any]]) -> float:
    """Largest relative error over the entries of a matrix."""
    rows = zip(np.asarray(values, np.float64), exact, strict=True)
    return float(max(abs(mpmath.mpf(float(x)) / e - 1) for r, s in rows for x, e in zip(r, s, strict=True)))


def same_action_rows(length: int, bound: float) -> list[Row]:
    """A two-way softmax that always takes action 1: T identical scores (-p0, p0), p0 = sigmoid(0.2), and T identical factors.

    Rounding errors of one sign cannot cancel here, which is what makes it the hardest case for a sum. The policy hides that it
    is a table, whose steps would be counted rather than added.
    """
    policy = ld.FunctionPolicy(ld.shared_softmax.apply)
    logits = jnp.array([0.2, 0.0], jnp.float32)
    ones = jnp.ones(length, jnp.int32)
    tau = peers.trajectory(ones, ones)
    exact_score = length / (1 + math.exp(-float(logits[0])))
    exact = math.fsum(np.asarray(jax.jit(ld.log_factors)(logits, policy, tau), np.float64))

    def errors(function: Callable[..., Any]) -> tuple[float, float]:
        value, score = jax.jit(jax.value_and_grad(function))(logits, policy, tau)
        return abs(float(value) / exact - 1), abs(float(score[1]) / exact_score - 1)

    alone = abs(float(jax.jit(ld.log_prob)(logits, policy, tau)) / exact - 1)
    (value, score), (plain_value, plain_score) = errors(ld.log_prob), errors(plain_log_prob)
    return [
        Row("log P, identical factors", length, alone, plain_value, 1e-6),
        Row("log P, identical factors, from value_and_grad", length, value, plain_value, 1e-6),
        Row("grad log P, identical scores", length, score, plain_score, bound),
    ]


def exact_mlp(params: Any, tau: ld.Trajectory) -> tuple[float, list[dict[str, np.ndarray]]]:
    """Log P and its gradient in float64 by numpy, written out by hand, in chunks, as many at once as there are cores."""
    (w1, b1), (w2, b2) = ([np.asarray(layer[k], np.float64) for k in ("weight", "bias")] for layer in params)
    observations, taken = np.asarray(tau.observations), np.asarray(tau.actions)

    def chunk(start: int) -> tuple[Any, ...]:
        x = observations[start : start + (1 << 16)].astype(np.float64)
        actions = taken[start : start + (1 << 16)]
        hidden = np.tanh(x @ w1 + b1)
        outputs = hidden @ w2 + b2
        logs = outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True)
        d_outputs = np.eye(2)[actions] - np.exp(logs)
        d_hidden = d_outputs @ w2.T * (1 - hidden**2)
        terms = (x.T @ d_hidden, d_hidden.sum(0), hidden.T @ d_outputs, d_outputs.sum(0))
        return math.fsum(logs[np.arange(len(x)), actions]), *terms

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums: list[Any] = [sum(terms) for terms in zip(*pool.map(chunk, range(0, taken.size, 1 << 16)), strict=True)]
    return sums[0], [{"weight": weight, "bias": bias} for weight, bias in (sums[1:3], sums[3:])]


def one_action(policy: Any, length: int) -> tuple[Any, ld.Trajectory]:
    """Parameters, and a trajectory that always took action 0, so that the scores add up."""
    tau = trajectory(length, jax.random.key(0), actions=jnp.zeros(length, jnp.int32))
    return peers.parameters(policy, jax.random.key(1)), tau


def errors(
    function: Callable[..., Any], policy: Any, params: Any, tau: ld.Trajectory, exact: Any
) -> tuple[float, float]:
    """Relative errors of a log P and of the worst leaf of its gradient."""
    return gaps(jax.jit(jax.value_and_grad(function))(params, policy, tau), exact)


def gaps(found: Any, exact: Any) -> tuple[float, float]:
    """Relative errors of a value and of the worst leaf of its gradient, in the norm of the leaf."""
    pairs = zip(jax.tree.leaves(found[1]), jax.tree.leaves(exact[1]), strict=True)
    of_leaves = [np.linalg.norm(np.asarray(g, np.float64) - e) / np.linalg.norm(e) for g, e in pairs]
    return abs(float(found[0]) / exact[0] - 1), float(max(of_leaves))


def coherent_rows(length: int) -> list[Row]:
    """Log P of an MLP that always took action 0, and the worst leaf of its gradient."""
    params, tau = one_action(MLP, length)
    exact = exact_mlp(params, tau)
    (value, score), (plain_value, plain_score) = (
        errors(f, MLP, params, tau, exact) for f in (ld.log_prob, plain_log_prob)
    )
    return [
        Row("log P, MLP, one action", length, value, plain_value, 1e-6),
        Row("grad log P, MLP, one action, worst leaf", length, score, plain_score, 1e-6),
    ]


def main(quick: bool) -> Report:
    usual, slow, long = (10**5, 10**4, 10**6) if quick else (10**6, 10**6, 10**7)
    coherent = slow if quick else long
    rows = value_rows("MLP 4-64-2", MLP, usual) + value_rows("GRU 16", GRU, slow) + signed_rows(usual)
    rows += [*same_action_rows(usual, 1e-5), *coherent_rows(coherent), *same_action_rows(long, 5e-6)]
    table = Table(
        "Relative errors in float32",
        "quantity | T | logderiv | plain scan | bound",
        "{r.quantity} | {r.steps} | {r.error:.1e} | {r.plain:.1e} | {r.bound:.0e}",
        rows,
        "A relative error of 1e-6 in log P = -10^6 is a factor of e in P itself: at such lengths float32 knows how small\n"
        "P is, not P. The direction of the gradient, which is what is used, does not suffer.",
    )
    bounds = [at_most(f"{r.quantity}, T = {r.steps:.0e}", r.error, r.bound) for r in rows]
    return Report([table], bounds, {"relative_errors": rows}, partial(_draw, rows))


def _draw(rows: list[Row]) -> Any:
    figure, ax = new_figure(figsize=(9, 4.5))
    places = np.arange(len(rows))[::-1]
    ax.plot([r.plain for r in rows], places, "s", color="C1", label="plain float32 scan")
    ax.plot([max(r.error, 1e-9) for r in rows], places, "o", color="C0", label="logderiv")
    ax.plot([r.bound for r in rows], places, "|", color="0.2", markersize=16, label="bound")
    ax.set_yticks(places, [f"{r.quantity}, T = 10^{round(math.log10(r.steps))}" for r in rows])
    ax.set(xscale="log", xlabel="relative error")
    ax.legend(loc="upper center", bbox_to_anchor=(0.3, 1.14), ncols=3)
    return figure
