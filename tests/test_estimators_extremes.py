"""Ratios from e^-10000 to e^10000 and more: every estimate is finite where its exact value is, and right.

The oracle adds logarithms in float64 and knows nothing of the library. A policy of one parameter flips a coin with the logit θ o_t,
whose derivatives are written out; the log-ratios are whatever the case says, by way of `behavior_log_probs`.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.advantages import GAE, Credit, Return, ToGo, VTrace
from logderiv.baselines import Constant, LeaveOneOut, MovingAverage, MovingAverageState, Value
from logderiv.estimators import DiCE, LoadedDiCE
from logderiv.importance import Importance
from tests.zoo import own_credit

SHAPES = ((1, 1), (2, 1), (3, 2), (2, 7), (4, 50), (2, 1000))
LARGEST, SMALLEST = math.log(np.finfo(np.float32).max), 1e-36
STEP, WHOLE = Importance(), Importance(per="trajectory")
AVERAGE = MovingAverageState(jnp.array(0.4, jnp.float32), jnp.array(0.5, jnp.float32))


def value(observation):
    return 0.5 * observation


class Case(NamedTuple):
    """Arrays `(N, T)`, float64, and whether a step is real."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    valid: np.ndarray
    ratios: np.ndarray
    final: np.ndarray
    ends: np.ndarray


def draw(rng: np.random.Generator, shape: tuple[int, int]) -> Case:
    """Lengths from 0; log-ratios of any size from 0.01 to 10 000 a step, in some cases undone by those that follow."""
    num, length = shape
    valid = np.arange(length) < rng.integers(0, length + 1, (num, 1))
    valid[0, 0] = True
    size = 10 ** rng.uniform(-2, 4, (num, 1)) / rng.choice([1, math.sqrt(length), length])
    ratios = size * rng.choice(
        [rng.normal(size=shape), rng.uniform(-1, 1, shape), (-1.0) ** np.arange(length) + np.zeros(shape)]
    )
    ratios = np.clip(np.where(rng.random(shape) < rng.choice([0, 0.5]), 0, ratios), -1e4, 1e4)
    rewards = rng.normal(size=shape) * 10 ** rng.uniform(-3, 3)
    rewards = np.where(rng.random(shape) < rng.choice([0, 0.5, 0.95]), 0, rewards)
    if rng.random() < 0.2:
        rewards = np.ones(shape)  # what a constant baseline of one takes away
    arrays = (
        rng.normal(size=shape),
        rng.integers(0, 2, shape),
        rewards,
        valid,
        np.where(valid, ratios, 0),
        rng.normal(size=num),
    )
    return Case(*arrays, ends=rng.random(num) < 0.5)


def stack(cases: list[Case]) -> Case:
    """In float32, which is what both sides see."""
    found = Case(*map(np.stack, zip(*cases, strict=True)))
    return Case(*(x.astype(np.float32) if x.dtype == np.float64 else x for x in found))


# The oracle: numbers as sign and logarithm.


def add(signs: np.ndarray, logs: np.ndarray, axis: Any = -1) -> tuple[np.ndarray, np.ndarray]:
    """Sum over an axis."""
    logs = np.where(signs == 0, -1e30, logs)
    peak = np.max(logs, axis=axis, keepdims=True)
    total = np.sum(signs * np.exp(logs - peak), axis=axis)
    sign, log = signed(total)
    return sign, np.maximum(log + np.squeeze(peak, axis), -1e30)


def signed(x: Any) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore"):
        return np.sign(x), np.maximum(np.log(np.abs(x)), -1e30)


class Terms(NamedTuple):
    """What is added up to the weight of each step: leading axes `(N, T)`, then the terms; sign and logarithm."""

    signs: np.ndarray
    logs: np.ndarray

    def and_also(self, x: Any, logs: np.ndarray) -> "Terms":
        """With one term more, minus x exp(logs)."""
        signs, own = signed(np.broadcast_to(x, logs.shape))
        return Terms(
            np.concatenate([self.signs, -signs[..., None]], -1),
            np.concatenate([self.logs, (own + logs)[..., None]], -1),
        )


def credited(case: Case, discount: float, logs: np.ndarray, *, whole: bool = False) -> Terms:
    """γ^s r_s ρ_s of all later steps, or of all steps."""
    times = np.arange(case.valid.shape[1])
    signs, own = signed(np.where(case.valid, case.rewards, 0))
    own = own + logs + times * math.log(discount)
    from_here = np.ones((times.size,) * 2, bool) if whole else times >= times[:, None]
    shape = (*case.valid.shape, times.size)
    return Terms(np.broadcast_to(signs[:, None], shape) * from_here, np.broadcast_to(own[:, None], shape))


def log_weights(case: Case, per: str) -> np.ndarray:
    sums = np.cumsum(case.ratios, axis=1)
    return sums if per == "step" else np.broadcast_to(sums[:, -1:], sums.shape)


def derivatives(case: Case, parameter: float) -> np.ndarray:
    """l', l'', l''' of every step, `(3, N, T)`."""
    o = case.observations
    p = 1 / (1 + np.exp(-parameter * o))
    first, second = o * (case.actions - p), -(o**2) * p * (1 - p)
    return np.where(case.valid, np.stack([first, second, -(o**3) * p * (1 - p) * (1 - 2 * p)]), 0)


def boxed(sums: np.ndarray) -> list[np.ndarray]:
    """Derivatives 0 to 3 of a box, from those of what is in it."""
    s1, s2, s3 = sums
    return [np.ones_like(s1), s1, s1**2 + s2, s1**3 + 3 * s1 * s2 + s3]


def shares(logs: np.ndarray, order: int, decay: float) -> np.ndarray:
    """The derivative of what each step adds to the box of the steps up to it."""
    before = np.zeros_like(logs)
    for t in range(1, logs.shape[-1]):
        before[..., t] = decay * (before[..., t - 1] + logs[..., t - 1])
    earlier, own = boxed(before), boxed(logs)
    return sum((math.comb(order, j) * earlier[j] * own[order - j] for j in range(order)), np.zeros_like(logs[0]))


def exact(case: Case, terms: Terms, parameter: float, order: int, decay: float) -> tuple[float, ...]:
    """The derivative: sign and logarithm; logarithms of the sum of the absolute values of all that is added, and of the largest weight.

    Last, the sum of the absolute values of what the weights multiply.
    """
    logs = derivatives(case, parameter)
    weights, sizes = add(terms.signs, terms.logs), add(np.abs(terms.signs), terms.logs)
    share, most = (signed(x / len(logs[0])) for x in (shares(logs, order, decay), shares(np.abs(logs), order, decay)))
    sign, log = add((weights[0] * share[0] * case.valid).ravel(), (weights[1] + share[1]).ravel())
    size = add((case.valid * most[0]).ravel(), (sizes[1] + most[1]).ravel())[1]
    multiplied = np.sum(case.valid * np.exp(most[1]))
    return (
        float(sign),
        float(log),
        float(size),
        float(np.max(np.where(case.valid, weights[1], -1e30))),
        float(multiplied),
    )


def others(case: Case, discount: float, logs: np.ndarray, per: str) -> Terms:
    """Reward-to-go minus the mean of the others' at that step, or of their returns."""
    found, (num, length) = credited(case, discount, logs), case.valid.shape
    for m in range(num):
        alive = case.valid if per == "step" else np.ones_like(case.valid)
        counts = np.maximum(np.sum(alive, axis=0) - alive, 1) * np.ones((num, length))
        of_m = np.arange(num)[:, None] != m
        signs, own = (
            x[m] if per == "step" else np.broadcast_to(x[m, :1], x[m].shape) for x in credited(case, discount, logs)
        )
        signs = signs[None] * (of_m * (alive[m] > 0))[..., None]
        both = (
            np.broadcast_to(x, (num, length, length))
            for x in (-signs, own[None] - np.log(counts)[..., None] + logs[..., None])
        )
        found = Terms(*(np.concatenate(x, -1) for x in zip(found, both, strict=True)))
    return found


def discounted(case: Case, discount: float, logs: np.ndarray) -> np.ndarray:
    return logs + np.arange(case.valid.shape[1]) * math.log(discount)


def residuals(case: Case, discount: float) -> np.ndarray:
    """r + γ v' − v, where the next value is that of the final observation unless the episode ends."""
    v, follows = 0.5 * case.observations, np.roll(case.valid, -1, axis=1)
    follows[:, -1] = False
    after = np.where(
        follows, 0.5 * np.roll(case.observations, -1, axis=1), np.where(case.ends, 0, 0.5 * case.final)[:, None]
    )
    return np.where(case.valid, case.rewards + discount * after - v, 0)


def gae(case: Case, discount: float, logs: np.ndarray, lambda_: float) -> Terms:
    """(γλ)^(s-t) γ^t ρ_s δ_s; the parts of δ count for themselves in no sum."""
    length = case.valid.shape[1]
    signs, own = signed(residuals(case, discount))
    ahead = np.arange(length) - np.arange(length)[:, None]
    fade = np.where(ahead >= 0, np.maximum(ahead, 0) * math.log(lambda_), 0)
    own = (own + discounted(case, discount, logs))[:, None] + fade
    return Terms(np.broadcast_to(signs[:, None], own.shape) * (ahead >= 0), own)


def v_trace(case: Case, discount: float, clip_c: float) -> Terms:
    """γ^t min(1, ρ_t) (δ_t + Σ_{s>t} γ^(s-t) Π_{t<u<s} c_u min(1, ρ_s) δ_s)."""
    length = case.valid.shape[1]
    signs, own = signed(residuals(case, discount))
    one, c = np.minimum(case.ratios, 0), np.minimum(case.ratios, math.log(clip_c))
    sums = np.cumsum(c, axis=1)
    between = (sums - c)[:, None] - sums[..., None]  # of t < u < s
    ahead = np.arange(length) - np.arange(length)[:, None]
    own = (
        own[:, None]
        + np.where(ahead > 0, between + one[:, None], 0)
        + one[..., None]
        + np.arange(length) * math.log(discount)
    )
    return Terms(np.broadcast_to(signs[:, None], own.shape) * (ahead >= 0), own)


def cut(case: Case, discount: float, logs: np.ndarray, at: float) -> Terms:
    return credited(case, discount, np.minimum(logs, math.log(at)))


def normalized(case: Case, discount: float, logs: np.ndarray) -> Terms:
    total = add(np.ones_like(logs), logs, axis=0)[1]
    return credited(case, discount, logs - total + math.log(len(logs)))


class Way(NamedTuple):
    """An estimator, the terms of its weights, the decay of its surrogate and the orders at which it is right."""

    estimator: Any
    terms: Any
    decay: float = 1.0
    orders: tuple[int, ...] = (1,)


def _ways() -> dict[str, Way]:
    ratios: dict[str, Any] = {"step": STEP, "trajectory": WHOLE}
    found: dict[str, Way] = {}

    def way(
        name: str, advantage: Any, terms: Any, importance: Any = STEP, discount: float = 0.9, **options: Any
    ) -> None:
        surrogate, kept = (
            options.get("surrogate", ld.estimators.Score()),
            {k: options[k] for k in ("decay", "orders") if k in options},
        )
        per = "step" if importance is None else importance.per
        estimator = ld.ScoreFunction(advantage, discount, surrogate, importance)
        found[name] = Way(estimator, lambda case: terms(case, discount, log_weights(case, per)), **kept)

    high = {"surrogate": DiCE(), "orders": (1, 2, 3)}
    way("to go", ToGo(), credited, **high)
    way("to go, no discount", ToGo(), credited, discount=1.0)
    way("return", Return(), functools.partial(credited, whole=True), WHOLE, **high)
    way("one's own credit", Credit(own_credit, past_rewards=False), credited, WHOLE)
    way("loaded", ToGo(), credited, surrogate=LoadedDiCE(0.5), decay=0.5)
    for per, importance in ratios.items():
        way(
            f"constant, {per}",
            ToGo(Constant(1.0)),
            lambda c, d, log: credited(c, d, log).and_also(1.0, log),
            importance,
            1.0,
            **high,
        )
        way(f"leave one out, {per}", ToGo(LeaveOneOut()), functools.partial(others, per="step"), importance, **high)
    way("leave one out, whole", ToGo(LeaveOneOut(per="trajectory")), functools.partial(others, per="trajectory"))
    way("moving average", ToGo(MovingAverage()), lambda c, d, log: credited(c, d, log).and_also(0.8, log))
    by_state = lambda c, d, log: credited(c, d, log).and_also(0.5 * c.observations, discounted(c, d, log))  # noqa: E731
    way("value", ToGo(Value(value)), by_state, **high)
    way(
        "constant per step",
        ToGo(Constant(0.7, per="step")),
        lambda c, d, log: credited(c, d, log).and_also(0.7, discounted(c, d, log)),
    )
    for per, importance in ratios.items():
        way(f"gae, {per}", GAE(0.8, Value(value)), functools.partial(gae, lambda_=0.8), importance, **high)
    for clip in (1.0, 2.0):
        way(f"V-trace, {clip}", VTrace(Value(value), clip_c=clip), lambda c, d, _, clip=clip: v_trace(c, d, clip), None)
    way("truncated", ToGo(), functools.partial(cut, at=2.0), Importance(truncate=2.0))
    way("normalized", ToGo(), normalized, Importance(normalize=True))
    return found


WAYS = _ways()


@functools.cache
def program(name: str, order: int):
    """The library's derivative of a batch of cases, in one program."""
    estimator = WAYS[name].estimator
    policy = ld.FunctionPolicy(lambda parameter, observation: ld.Bernoulli(parameter * observation))

    @jax.jit
    @jax.vmap
    def run(case: Case, parameter: jax.Array) -> jax.Array:
        last = jnp.sum(case.valid, axis=1) - 1
        ends = (jnp.arange(case.valid.shape[1])[None] == last[:, None]) & case.ends[:, None]
        fields: tuple[Any, Any, Any, Any, Any] = (
            case.observations,
            case.actions,
            case.rewards,
            1 - ends.astype(jnp.float32),
            case.valid,
        )
        final = jnp.where(case.ends, jnp.nan, case.final)  # what stands after the end is never looked at
        taus = ld.Trajectory(*fields, jnp.zeros_like(case.rewards), final)
        logs = ld.log_factors(parameter, policy, taus)
        taus = taus._replace(behavior_log_probs=logs - case.ratios)
        state = AVERAGE if jax.tree.leaves(estimator.init(parameter)) else ()
        weights, _ = estimator.advantages(parameter, state, policy, taus)
        derivative = functools.reduce(lambda f, _: jax.grad(f), range(order), estimator.objective)
        return derivative(parameter, policy, taus, weights)

    return run


def misses(name: str, order: int, shape: tuple[int, int], num: int, seed: int) -> tuple[int, list[str]]:
    """How many cases have a float32 for their exact value, and what was wrong with those."""
    way, rng = WAYS[name], np.random.default_rng([seed, *shape])
    cases, parameters = stack([draw(rng, shape) for _ in range(num)]), rng.normal(size=num).astype(np.float32)
    found, wrong, counted = np.asarray(program(name, order)(cases, parameters), np.float64), [], 0
    for i in range(num):
        case = Case(*(np.asarray(x[i], np.float64 if x.dtype == np.float32 else x.dtype) for x in cases))
        sign, log, size, weight, multiplied = exact(case, way.terms(case), float(parameters[i]), order, way.decay)
        if max(log, size, weight) > LARGEST - 0.1:
            continue
        counted += 1
        relative = 1e-4 + float(np.finfo(np.float32).eps) * np.sum(np.abs(case.ratios))
        # A weight below the smallest normal number is 0 on a CPU, whatever it multiplies.
        allowed = relative * math.exp(max(size, -700)) + SMALLEST + float(np.finfo(np.float32).tiny) * multiplied
        if not abs(found[i] - sign * math.exp(max(log, -700))) <= allowed:
            wrong.append(
                f"{name}, order {order}, {shape}, case {i}: {found[i]}, right {sign} exp({log}), terms exp({size})"
            )
    return counted, wrong


ALL = [(name, order) for name, way in WAYS.items() for order in way.orders]
FEW = [
    ("to go", 3),
    ("return", 1),
    ("constant, trajectory", 1),
    ("leave one out, step", 2),
    ("value", 1),
    ("gae, step", 1),
]
FEW += [("V-trace, 2.0", 1), ("normalized", 1)]


@pytest.mark.parametrize(("name", "order"), FEW)
def test_estimates_are_finite_and_right_wherever_they_have_a_number(name, order):
    counted, wrong = misses(name, order, (3, 7), 100, 0)
    assert not wrong, "\n".join([f"{len(wrong)} of {counted}", *wrong[:5]])
    assert counted > 50


@pytest.mark.slow
@pytest.mark.parametrize(("name", "order"), ALL)
def test_ten_thousand_estimates_of_every_kind(name, order):
    """Of all shapes and ways together some 10 000, as many of them as have a number."""
    for shape in SHAPES:
        if shape[0] >= WAYS[name].estimator.structure.min_trajectories:
            counted, wrong = misses(name, order, shape, 20 if shape[1] > 100 else 100, order)
            assert not wrong, "\n".join([f"{len(wrong)} of {counted}", *wrong[:5]])
