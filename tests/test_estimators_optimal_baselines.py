"""Baselines of least variance, against scores written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.advantages import Batch
from logderiv.estimators.batch import prepare
from logderiv.estimators.least_variance import fold_moments, ratio

from . import oracle
from .worlds import trajectory


def test_optimal_baselines_are_the_ratios_of_score_moments():
    """Against scores written out; per parameter and scalar, cross-fitted and in sample."""
    world = oracle.cut(3)
    every, _ = oracle.trajectories(world)
    taus = jax.tree.map(lambda x: jnp.asarray(x)[jnp.array([0, 3, 7, 10, 5])], every)
    weigher = ld.ScoreFunction(discount=0.9)

    fitted = ld.estimators.OptimalPerParameter(discount=0.9, folds=2)

    @jax.jit
    def run(params):
        arguments = (params, (), oracle.POLICY, taus)
        batch, credit = prepare(weigher, params, oracle.POLICY, taus), weigher.weigh(*arguments)[0]
        jacobian = jax.jacobian(lambda p: ld.log_factors(p, oracle.POLICY, taus))(params)
        both = [ld.baselines.Optimal(in_sample=x).values((), credit, batch) for x in (False, True)]
        return credit, jacobian, *both, fitted.advantages(*arguments)[0][2], fitted.estimate(*arguments)[0].grads

    credit, jacobian, scalar, own, per_parameter, gradient = jax.tree.map(np.asarray, run(world.params))
    h, d = np.einsum("nt,ntd->nd", credit, jacobian), np.sum(jacobian, axis=1)
    parts = [np.array([0, 2, 4]), np.array([1, 3])]
    np.testing.assert_allclose(own, np.full((5, 3), np.sum(h * d) / np.sum(d * d)), rtol=1e-13)
    expected = np.zeros(2)
    for k, part in enumerate(parts):
        other = parts[1 - k]
        np.testing.assert_allclose(scalar[part], np.sum((h * d)[other]) / np.sum((d * d)[other]), rtol=1e-13)
        optimum = np.sum((h * d)[other], axis=0) / np.sum((d * d)[other], axis=0)
        np.testing.assert_allclose(per_parameter[k], optimum, rtol=1e-13)
        expected += np.sum(h[part] - optimum * d[part], axis=0) / 5
    np.testing.assert_allclose(gradient, expected, rtol=1e-12)


def test_the_ratio_where_no_score_was_seen():
    """No baseline there, NaN stays NaN, and its derivative is 0."""
    assert ratio(jnp.array([0.0, 6.0, 3.0, 3.0]), jnp.array([0.0, 2.0, 1.0, -1.0])).tolist() == [0.0, 3.0, 3.0, -3.0]
    assert jnp.isnan(ratio(jnp.array(1.0), jnp.array(jnp.nan)))
    assert jax.grad(ratio, argnums=(0, 1))(jnp.array(1.0), jnp.array(0.0)) == (0.0, 0.0)


TWO_LEAVES = ld.FunctionPolicy(
    lambda params, state: ld.Bernoulli(jnp.where(state == 0, params["left"], params["right"]))
)
LOGITS = {"left": jnp.zeros(()), "right": jnp.zeros(())}  # scores are +-1/2, one leaf per state


def two_steps(ratios, credit):
    """Trajectories through the states 0, 1 and what a baseline sees of them."""
    num, ones = len(credit), jnp.ones((len(credit), 2))
    actions = jnp.arange(2 * num).reshape(num, 2) % 3 % 2
    taus = trajectory(rewards=ones, observations=jnp.tile(jnp.arange(2), (num, 1)), actions=actions)
    one, ratios = jnp.ones(()), jnp.array(ratios)
    logs = jnp.log(ratios)
    seen = Batch(taus, taus.valid, ones, ones, one, one, ones, logs, logs, logs, LOGITS, TWO_LEAVES)
    return jnp.array(credit), seen


@pytest.mark.parametrize("folds", [2, 3, 4])
def test_cross_fitted_optimum_off_policy(folds):
    """Squared scores are all 1/4 and each leaf has its own, so that b* = sum C rho / sum rho^2 over the other folds."""
    ratios = np.array([[1.0, 2.0], [0.5, 1.0], [3.0, 1.0], [1.0, 0.25]])
    credit = np.array([[4.0, 1.0], [2.0, -3.0], [1.0, 5.0], [0.5, 2.0]])
    weighted, batch = two_steps(ratios, credit)
    found = jax.jit(lambda: ld.baselines.Optimal(folds=folds).values((), weighted, batch))()
    for n in range(4):
        others = np.arange(4) % folds != n % folds
        best = np.sum((credit * ratios)[others]) / np.sum((ratios**2)[others])
        np.testing.assert_allclose(found[n], [best] * 2, rtol=1e-14)
    for k, (cross, square, log) in enumerate(jax.jit(lambda: fold_moments(weighted, batch, folds))()):
        own = np.arange(4) % folds == k
        for state, leaf in enumerate(("left", "right")):
            np.testing.assert_allclose(cross[leaf] * np.exp(log), np.sum((credit * ratios)[own, state]) / 4, rtol=1e-14)
            np.testing.assert_allclose(square[leaf] * np.exp(2 * log), np.sum((ratios**2)[own, state]) / 4, rtol=1e-14)


@pytest.mark.parametrize(("num", "turns"), [(2, 1), (30, 1), (32, 1), (34, 17), (64, 2), (68, 17)])
def test_optimal_baseline_holds_at_most_sixteen_scores(num, turns):
    """Folds of `num / 2`: taken in as few equal turns of at most 16 trajectories as there are."""
    credit, batch = two_steps(np.ones((num, 2)), np.ones((num, 2)))
    jaxpr = jax.make_jaxpr(lambda: ld.baselines.Optimal().values((), credit, batch))()
    lengths = [e.params["length"] for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert lengths == [turns] * 2


@pytest.mark.parametrize(
    "advantage",
    [
        ld.advantages.ToGo(ld.baselines.LeaveOneOut()),
        ld.advantages.Return(ld.baselines.BatchMean()),
        ld.advantages.Grouped(ld.advantages.Return(ld.baselines.LeaveOneOut(per="trajectory")), 2),
        ld.advantages.Return(ld.baselines.Optimal()),
        ld.advantages.ScaledRewards(ld.advantages.ToGo(ld.baselines.LeaveOneOut()), 2.0),
    ],
    ids=["others", "batch", "groups", "optimal", "scaled"],
)
def test_an_advantage_of_other_trajectories_is_refused(advantage):
    """It brings each trajectory into the folds that its own baseline is fitted to: E[g] was 4/3, 1, 3/2 and 1.6 of what was declared."""
    with pytest.raises(ValueError, match="advantage: expected one whose weights depend on their own trajectory alone"):
        ld.estimators.OptimalPerParameter(advantage, folds=2)
    assert ld.estimators.OptimalPerParameter(ld.advantages.ToGo(ld.baselines.Constant(0.5))).declaration.unbiased
