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
from logderiv._core.pytrees import pytree
from logderiv.advantages import GAE, Credit, Grouped, Return, Standardized, ToGo, VTrace
from logderiv.estimators import OptimalPerParameter, step_weights
from logderiv.estimators.batch import prepare
from logderiv.estimators.least_variance import fold_moments, leave_fold_out
from logderiv.importance import Importance

from . import oracle
from .mostly import slow
from .zoo import BASELINES, DISCOUNT, GIVEN, ending, off_policy, own_credit, seen

NUMBER, EXACT = 2, 1e-12
WORLDS = {"cut": oracle.cut(3), "ending": oracle.ending()}  # of one shape and the same parameters
PARAMS = oracle.ending().params
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


FEW = {"to go": ToGo(), "return": Return(), "gae(1)": GAE(1.0, GIVEN), "standardized": Standardized(ToGo())}
ADVANTAGES = {
    **FEW,
    "gae(0.5)": GAE(0.5, GIVEN),
    "V-trace": VTrace(GIVEN),
    "standardized per trajectory": Standardized(Return(), per="trajectory"),
    "grouped, batch mean": Grouped(Return(ld.baselines.BatchMean()), 2),
    "grouped, leave one out": Grouped(ToGo(ld.baselines.LeaveOneOut()), 2),
    **{f"to go, {name}": ToGo(baseline) for name, baseline in BASELINES.items()},
    **{f"return, {name}": Return(baseline) for name, baseline in BASELINES.items()},
}


def _compositions() -> dict[str, Any]:
    """Name to estimator: advantage (with each baseline) x importance, and each of them x γ^t, surrogate, normalizer, and optimum."""
    found: dict[str, Any] = {}
    for (a, advantage), (i, importance) in itertools.product(ADVANTAGES.items(), IMPORTANCES.items()):
        fitted = "optimal" in a and (a.startswith("return") or i not in ("on policy", "per step", "per trajectory"))
        if fitted or (advantage.own_ratios and importance is not None):
            continue  # fitted to scores: what is not walked here is walked with OptimalPerParameter
        found[f"{a} | {i}"] = ld.ScoreFunction(advantage, DISCOUNT, importance=importance)
        if a in FEW or importance is None:
            late = ld.ScoreFunction(advantage, DISCOUNT, importance=importance, gamma_t=False)
            found[f"{a} | {i} | no gamma^t"] = late
        if a in ("to go", "gae(1)"):
            for s, surrogate in SURROGATES.items():
                found[f"{a} | {i} | {s}"] = ld.ScoreFunction(advantage, DISCOUNT, surrogate, importance)
    for (a, advantage), normalizer in itertools.product(FEW.items(), NORMALIZERS):
        found[f"{a} | PPO {normalizer}"] = ld.PPO(advantage, DISCOUNT, normalizer=normalizer)
    for advantage, importance in itertools.product((ToGo(), Return()), (None, *list(IMPORTANCES.values())[1:4])):
        name = f"{advantage} | {importance} | optimal per parameter"
        found[name] = OptimalPerParameter(advantage, DISCOUNT, importance=importance)
    found["to go | optimal per parameter in sample"] = OptimalPerParameter(discount=DISCOUNT, in_sample=True)
    return found


COMPOSITIONS = _compositions()


def _gradient(estimator: Any, weights: jax.Array, batch: Any, logs: jax.Array, scores: jax.Array) -> jax.Array:
    """Of the objective, from scores: `test_estimators` shows that `estimate` takes this way."""
    if isinstance(estimator, ld.PPO):
        counts = step_weights(batch.valid, estimator.normalizer, weights.dtype)
        return jnp.einsum("nt,ntd->d", counts * weights, scores)
    if not isinstance(estimator, OptimalPerParameter):
        return jnp.einsum("nt,ntd->d", jax.grad(estimator.surrogate)(logs, weights), scores)
    folds = 1 if estimator.in_sample else estimator.folds
    moments: Any = leave_fold_out(fold_moments(weights, batch, folds))
    optima = jnp.stack([m.optimum()(m.cross, m.square) for m in moments])
    fold = jnp.arange(len(weights)) % folds
    ratios = jnp.ones_like(weights) if batch.log_ratios is None else jnp.exp(batch.log_ratios)
    fitted = weights[..., None] - ratios[..., None] * optima[fold][:, None]
    return jnp.einsum("ntd,ntd->d", fitted, scores) / len(weights)


def _walked(off: bool, every: bool) -> list[str]:
    """The pairs that are walked: all, or a third in which every part is met."""
    walked: list[str] = []
    met: set[str] = set()
    for i, name in enumerate(name for name, e in COMPOSITIONS.items() if off_policy(e) == off):
        parts = set(name.split(" | "))
        if every or i % 3 == 0 or not parts <= met:
            walked.append(name)
            met |= parts
    return walked


@functools.cache
def _means(off: bool, every: bool) -> dict[str, dict[str, np.ndarray]]:
    """By world, E of every composition's estimate over all pairs of trajectories, in one program that builds what is common once."""
    estimators = {name: COMPOSITIONS[name] for name in _walked(off, every)}

    def of_batch(taus: ld.Trajectory) -> dict[str, jax.Array]:
        log_factors = lambda p: ld.log_factors(p, oracle.POLICY, taus)  # noqa: E731
        logs, scores = log_factors(PARAMS), jax.jacrev(log_factors)(PARAMS)
        batches: dict[Any, Any] = {}
        weights: dict[Any, jax.Array] = {}
        found = {}
        for name, e in estimators.items():
            key = e.importance, e.gamma_t
            if key not in batches:
                batches[key] = prepare(e, PARAMS, oracle.POLICY, taus)
            if (key, e.advantage) not in weights:
                weights[key, e.advantage] = e.advantage(PARAMS, seen(e, PARAMS), batches[key])[0]
            found[name] = _gradient(e, weights[key, e.advantage], batches[key], logs, scores)
        return found

    return dict(zip(WORLDS, oracle.expectations(of_batch, WORLDS.values(), NUMBER, off_policy=off), strict=True))


@pytest.mark.parametrize(
    ("off", "every"),
    [(False, False), (True, False), slow((False, True)), slow((True, True))],
    ids=["False", "True", "False, every pair", "True, every pair"],
)
def test_what_is_declared_of_a_pair_is_what_enumeration_finds(off, every):
    wrong = []
    for name in _walked(off, every):
        estimator = COMPOSITIONS[name]
        declared = estimator.declaration
        misfits, factor = [], declared.factor(NUMBER)
        for kind, world in WORLDS.items():
            mean, exact = _means(off, every)[kind][name], oracle.gradient(world)
            open_ = factor is None or (kind == "cut" and ending(estimator))
            if not open_ and np.max(np.abs(mean - factor * exact)) > EXACT:
                wrong.append(f"{name}: declared {factor} x the gradient, in {kind}")
            best = (mean @ exact) / (exact @ exact)
            misfits.append(np.max(np.abs(mean - best * exact)))
        if factor is None and max(misfits) < 1e-6:
            wrong.append(f"{name}: declared without a factor, is a multiple of the gradient in both worlds")
        assert declared.order >= 1 or declared.reasons
    assert not wrong, "\n".join(wrong)


@pytree
class Silent(ld.advantages.Advantage):
    """Someone's own, the whole return, which declares that it is unbiased and nothing else."""

    structure, declaration = ld.estimators.Structure(), ld.estimators.Declaration()

    def __call__(self, params, state, batch):
        return Return()(params, state, batch)


def test_what_an_advantage_of_ones_own_does_not_say_is_not_taken_for_harmless():
    """Past rewards with ratios per step, and γ^t left out: order 0 with both parts named, and enumeration finds the bias."""
    world = WORLDS["cut"]
    late, off = Credit(own_credit), ld.ScoreFunction(Silent(), DISCOUNT, importance=Importance())
    for estimator, part in (
        (ld.ScoreFunction(late, DISCOUNT, gamma_t=False), "gamma^t"),
        (off, "per='step') with Silent"),
    ):
        declared = estimator.declaration
        assert (declared.order, declared.factor(NUMBER)) == (0, None)
        assert any(part in reason for reason in declared.reasons)
        mean = oracle.expected_gradient(estimator, world, 1)
        assert np.max(np.abs(mean - oracle.gradient(world))) > 1e-3
    for harmless in (ld.ScoreFunction(late, DISCOUNT), ld.ScoreFunction(Return(), DISCOUNT, gamma_t=False)):
        assert harmless.declaration.factor(NUMBER) == 1
