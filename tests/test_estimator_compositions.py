"""Every pair of public parts: what is declared of the whole is what enumeration finds.

Parts that are harmless alone can be biased together. So every pair is walked, on policy and off, and nothing is chosen by hand:
advantages, baselines, importance weights, γ^t, surrogates, groups, normalizers.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.advantages import GAE, Grouped, Return, Standardized, ToGo, VTrace
from logderiv.estimators import OptimalPerParameter, step_weights
from logderiv.estimators.batch import prepare
from logderiv.estimators.least_variance import fold_moments, leave_fold_out, ratio
from logderiv.importance import Importance

from . import oracle
from .zoo import GIVEN

DISCOUNT, NUMBER, EXACT = 0.9, 2, 1e-12
WORLDS = {"cut": oracle.cut(2), "ending": oracle.ending()}
BASELINES = {
    "none": None,
    "constant": ld.baselines.Constant(0.6),
    "constant per step": ld.baselines.Constant(0.6, per="step"),
    "leave one out": ld.baselines.LeaveOneOut(),
    "leave one out per trajectory": ld.baselines.LeaveOneOut(per="trajectory"),
    "batch mean": ld.baselines.BatchMean(),
    "batch mean per step": ld.baselines.BatchMean(per="step"),
    "moving average": ld.baselines.MovingAverage(0.9),
    "value": GIVEN,
    "optimal": ld.baselines.Optimal(),
    "optimal in sample": ld.baselines.Optimal(in_sample=True),
}
IMPORTANCES = {
    "on policy": None,
    "per step": Importance(),
    "per trajectory": Importance(per="trajectory"),
    "normalized": Importance(normalize=True),
    "truncated": Importance(truncate=1.1),
    "normalized, per trajectory": Importance(per="trajectory", normalize=True),
    "truncated, per trajectory": Importance(per="trajectory", truncate=1.1),
}
NORMALIZERS = ("per_trajectory", "per_step_of_trajectory", "per_step_of_batch")
SURROGATES = {"DiCE": ld.estimators.DiCE(), "loaded": ld.estimators.LoadedDiCE(0.5)}


def _credited() -> dict[str, Any]:
    kinds = {"to go": ToGo, "return": Return}
    return {f"{a}, {b}": kinds[a](baseline) for a in kinds for b, baseline in BASELINES.items()}


def _advantages() -> dict[str, Any]:
    return {
        "gae(1)": GAE(1.0, GIVEN),
        "gae(0.5)": GAE(0.5, GIVEN),
        "V-trace": VTrace(GIVEN),
        "standardized": Standardized(ToGo()),
        "standardized per trajectory": Standardized(Return(), per="trajectory"),
        "grouped, batch mean": Grouped(Return(ld.baselines.BatchMean()), 2),
        "grouped, leave one out": Grouped(ToGo(ld.baselines.LeaveOneOut()), 2),
        **_credited(),
    }


def _compositions() -> dict[str, Any]:
    """Name to estimator: advantage (with each baseline) x importance, and each of them x γ^t, surrogate, normalizer, and optimum."""
    found: dict[str, Any] = {}
    few: dict[str, Any] = {
        "to go": ToGo(),
        "return": Return(),
        "gae(1)": GAE(1.0, GIVEN),
        "standardized": Standardized(ToGo()),
    }
    for (a, advantage), (i, importance) in itertools.product(_advantages().items(), IMPORTANCES.items()):
        fitted = "optimal" in a and (a.startswith("return") or i not in ("on policy", "per step", "per trajectory"))
        if fitted or (advantage.own_ratios and importance is not None):
            continue  # fitted to scores: what is not walked here is walked with OptimalPerParameter
        found[f"{a} | {i}"] = ld.ScoreFunction(advantage, DISCOUNT, importance=importance)
        if a in few or importance is None:
            found[f"{a} | {i} | no gamma^t"] = ld.ScoreFunction(
                advantage, DISCOUNT, importance=importance, gamma_t=False
            )
        if a in ("to go, none", "gae(1)"):
            for s, surrogate in SURROGATES.items():
                found[f"{a} | {i} | {s}"] = ld.ScoreFunction(advantage, DISCOUNT, surrogate, importance)
    for (a, advantage), normalizer in itertools.product(few.items(), NORMALIZERS):
        found[f"{a} | PPO {normalizer}"] = ld.PPO(advantage, DISCOUNT, normalizer=normalizer)
    for advantage, importance in itertools.product((ToGo(), Return()), (None, *list(IMPORTANCES.values())[1:4])):
        name = f"{advantage} | {importance} | optimal per parameter"
        found[name] = OptimalPerParameter(advantage, DISCOUNT, importance=importance)
    found["to go | optimal per parameter in sample"] = OptimalPerParameter(discount=DISCOUNT, in_sample=True)
    return found


COMPOSITIONS = _compositions()


def _off_policy(name: str) -> bool:
    estimator = COMPOSITIONS[name]
    return estimator.importance is not None or estimator.advantage.own_ratios


def _state(estimator: Any, params: Any) -> Any:
    """The first one; a moving average has seen something."""
    state = estimator.init(params)
    return type(state)(jnp.array(0.8), jnp.array(0.5)) if isinstance(state, ld.baselines.MovingAverageState) else state


def _gradient(estimator: Any, weights: jax.Array, batch: Any, logs: jax.Array, scores: jax.Array) -> jax.Array:
    """Of the objective, from scores: `test_estimators` shows that `estimate` takes this way."""
    if isinstance(estimator, ld.PPO):
        counts = step_weights(batch.valid, estimator.normalizer, weights.dtype)
        return jnp.einsum("nt,ntd->d", counts * weights, scores)
    if not isinstance(estimator, OptimalPerParameter):
        return jnp.einsum("nt,ntd->d", jax.grad(estimator.surrogate)(logs, weights), scores)
    folds = 1 if estimator.in_sample else estimator.folds
    moments: Any = leave_fold_out(fold_moments(weights, batch, folds))
    optima = jnp.stack([ratio(*pair) for pair in moments])
    fold = jnp.arange(len(weights)) % folds
    return jnp.einsum("ntd,ntd->d", weights[..., None] - batch.ratios[..., None] * optima[fold][:, None], scores) / len(
        weights
    )


@functools.cache
def _means(kind: str, off_policy: bool) -> dict[str, np.ndarray]:
    """E of every composition's estimate over all pairs of trajectories, in one program in which what is common is built once."""
    world = WORLDS[kind]
    params = world.params
    estimators = {name: e for name, e in COMPOSITIONS.items() if _off_policy(name) == off_policy}

    def of_batch(taus: ld.Trajectory) -> dict[str, jax.Array]:
        log_factors = lambda p: ld.log_factors(p, oracle.POLICY, taus)  # noqa: E731
        logs, scores = log_factors(params), jax.jacrev(log_factors)(params)
        batches: dict[Any, Any] = {}
        weights: dict[Any, jax.Array] = {}
        found = {}
        for name, e in estimators.items():
            key = e.importance, e.gamma_t
            if key not in batches:
                batches[key] = prepare(e, params, oracle.POLICY, taus)
            if (key, e.advantage) not in weights:
                weights[key, e.advantage] = e.advantage(params, _state(e, params), batches[key])[0]
            found[name] = _gradient(e, weights[key, e.advantage], batches[key], logs, scores)
        return found

    return oracle.expectation(of_batch, world, NUMBER, off_policy=off_policy)


@pytest.mark.parametrize("off_policy", [False, True])
def test_what_is_declared_of_a_pair_is_what_enumeration_finds(off_policy):
    wrong = []
    for name in (name for name in COMPOSITIONS if _off_policy(name) == off_policy):
        declared = COMPOSITIONS[name].declaration
        needs_ends = any("terminates within the horizon" in a for a in declared.assumes)
        misfits, factor = [], declared.factor(NUMBER)
        for kind, world in WORLDS.items():
            mean, exact = _means(kind, off_policy)[name], oracle.gradient(world)
            open_ = factor is None or (kind == "cut" and needs_ends)
            if not open_ and np.max(np.abs(mean - factor * exact)) > EXACT:
                wrong.append(f"{name}: declared {factor} x the gradient, in {kind}")
            best = (mean @ exact) / (exact @ exact)
            misfits.append(np.max(np.abs(mean - best * exact)))
        if factor is None and max(misfits) < 1e-6:
            wrong.append(f"{name}: declared without a factor, is a multiple of the gradient in both worlds")
        assert declared.order >= 1 or declared.reasons
    assert not wrong, "\n".join(wrong)


def test_a_whole_return_with_ratios_per_step_is_biased_and_says_which_parts():
    """Exact in NumPy over the four paths: E[g] = 0.1204 where the gradient is 0.3405 (by central differences of the return)."""
    mdp = ld.environments.TabularMDP(
        jnp.array([1.0, 0.0]),
        jnp.array([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]]),
        jnp.array([[1.0, 0.0], [2.0, -1.0]]),
        jnp.array([False, False]),
    )
    params, behavior = jnp.array([[0.3, -0.2], [0.5, 0.1]]), jnp.array([[-0.4, 0.6], [0.0, 0.9]])
    every = ld.exact.enumerate_trajectories(mdp, horizon=2)
    wrong, whole, to_go = (
        ld.ScoreFunction(advantage, importance=IMPORTANCES[per])
        for advantage, per in ((Return(), "per step"), (Return(), "per trajectory"), (ToGo(), "per step"))
    )

    @jax.jit
    def run() -> Any:
        drawn = ld.importance.with_behavior(behavior, ld.tabular_softmax, every)
        probabilities = ld.prob(behavior, ld.tabular_softmax, every, environment=mdp)

        def mean(estimator: Any) -> jax.Array:
            def one(tau: Any) -> jax.Array:
                batch = jax.tree.map(lambda x: x[None], tau)
                return estimator.estimate(params, (), ld.tabular_softmax, batch)[0].grads

            return jnp.tensordot(probabilities, jax.vmap(one)(drawn), axes=1)

        return [mean(e) for e in (wrong, whole, to_go)]

    def value(params: np.ndarray) -> float:
        """Over the four paths, in NumPy."""
        pi = np.exp(params) / np.exp(params).sum(axis=1, keepdims=True)
        reward = np.asarray(mdp.reward)
        return float(sum(pi[0, a] * (reward[0, a] + pi[a, :] @ reward[a, :]) for a in range(2)))

    exact, step = np.zeros((2, 2)), 1e-5
    for index in np.ndindex(2, 2):
        moved = np.zeros((2, 2))
        moved[index] = step
        exact[index] = (value(np.asarray(params) + moved) - value(np.asarray(params) - moved)) / (2 * step)
    biased, *unbiased = run()
    np.testing.assert_allclose(unbiased, [exact, exact], rtol=0, atol=1e-9)
    where = np.unravel_index(np.argmax(np.abs(exact)), (2, 2))
    assert [round(abs(float(x)), 4) for x in (exact[where], biased[where])] == [0.3405, 0.1204]
    assert round(float(np.max(np.abs(biased - exact))), 4) == 0.2201
    assert (wrong.declaration.order, wrong.declaration.factor(1)) == (0, None)
    reason = wrong.declaration.reasons[-1]
    assert "Importance(per='step')" in reason
    assert "Return" in reason
    assert whole.declaration.unbiased
    assert to_go.declaration.unbiased
