"""Surrogates: values of derivatives by hand, exact expectations at orders 1 to 3, and the known error of the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.estimators.declaration import Declaration, Structure, biased
from logderiv.estimators.surrogates import NORMALIZERS, reduce_steps

from . import oracle
from .worlds import TWO_STATES_LOGITS, two_states
from .zoo import zoo

ZOO = zoo()
ANY_ORDER = [name for name, entry in ZOO.items() if entry.estimator.declaration.order == np.inf]


def _expected(name, world):
    entry = ZOO[name]
    state = None if entry.state is None else entry.state(world.params)
    number = entry.estimator.structure.min_trajectories
    return oracle.expected_derivatives(entry.estimator, world, number, state=state, off_policy=entry.off_policy)


def _exact(world):
    return jax.jit(lambda p: oracle.derivatives(oracle.value(world), p))(world.params)


@pytest.mark.parametrize("name", ANY_ORDER)
def test_every_order_is_exact(name):
    world = oracle.ending() if ZOO[name].ending else oracle.cut(3)
    for computed, exact in zip(_expected(name, world), _exact(world), strict=True):
        assert np.max(np.abs(exact)) > 1e-2
        np.testing.assert_allclose(computed, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["reward-to-go", "given value", "leave one out per step", "loaded DiCE(0.5)", "PPO, leave one out"]
)
def test_first_order_ones_are_right_at_order_one_only(name):
    world = oracle.cut(3)
    assert ZOO[name].estimator.declaration.order == 1
    errors = [np.max(np.abs(a - b)) for a, b in zip(_expected(name, world), _exact(world), strict=True)]
    assert errors[0] < 1e-12
    assert min(errors[1:]) > 1e-2


def test_own_sample_mean_keeps_its_factor_at_every_order():
    world = oracle.cut(3)
    for computed, exact in zip(_expected("biased: DiCE, batch mean", world), _exact(world), strict=True):
        np.testing.assert_allclose(computed, 0.5 * exact, rtol=0, atol=1e-10)


def test_baseline_in_the_wrong_place_is_wrong_at_every_order():
    """(1 - box(l_<=t)) b_t instead of (box(l_<t) - box(l_<=t)) b_t: right for leave-one-out, wrong for a value of the state."""
    world = oracle.cut(3)
    estimator = ld.ScoreFunction(discount=0.9)
    values = jnp.array([0.7, -0.3])

    def of_batch(batch):
        weights, _ = estimator.advantages(world.params, (), oracle.POLICY, batch)
        baseline = jnp.where(batch.valid, values[jnp.minimum(batch.observations, 1)] * 0.9 ** jnp.arange(3.0)[None], 0)

        def objective(params):
            logs = ld.log_factors(params, oracle.POLICY, batch)
            up_to = jnp.cumsum(logs, axis=1)
            box = jnp.exp(up_to - jax.lax.stop_gradient(up_to))
            return ld.estimators.DiCE()(logs, weights) + jnp.mean(jnp.sum((1 - box) * baseline, axis=1))

        return oracle.derivatives(objective, world.params)

    for computed, exact in zip(oracle.expectation(of_batch, world, 1), _exact(world), strict=True):
        assert np.max(np.abs(computed - exact)) > 1e-2


@pytest.mark.parametrize(
    ("horizon", "hessian", "naive"),
    [
        (1, [-0.03275656556001866, 0.008720895205027501], [-0.0530470295336212, -0.10785877048428763]),
        (2, [-0.00520447139818736, -0.015442959857532634], [-0.3374866431093107, -0.28144949895418714]),
    ],
)
def test_plain_surrogate_is_wrong_by_its_known_amount(horizon, hessian, naive):
    """The two-state process of `worlds`, discount 0.9; corners (0, 0) and (2, 2) of the Hessian.

    Numbers: every trajectory enumerated and checked against dynamic programming (decision_problems, enumerated_mdp).
    """
    mdp, params = two_states(), TWO_STATES_LOGITS
    every = ld.exact.enumerate_trajectories(mdp, horizon=horizon)

    @jax.jit
    def run(params):
        probabilities = ld.prob(params, ld.tabular_softmax, every, environment=mdp)

        def expected(surrogate):
            estimator = ld.ScoreFunction(ld.advantages.Return(), discount=0.9, surrogate=surrogate)

            def objective(p, tau):
                batch = jax.tree.map(lambda x: x[None], tau)
                weights, _ = estimator.advantages(params, (), ld.tabular_softmax, batch)
                return estimator.objective(p, ld.tabular_softmax, batch, weights)

            hessians = jax.vmap(jax.hessian(objective), (None, 0))(params, every)
            return jnp.tensordot(probabilities, hessians, axes=1).reshape(4, 4)

        return expected(ld.estimators.DiCE()), expected(ld.estimators.Score())

    dice, plain = run(params)
    np.testing.assert_allclose([dice[0, 0], dice[2, 2]], hessian, rtol=0, atol=1e-12)
    np.testing.assert_allclose([plain[0, 0], plain[2, 2]], naive, rtol=0, atol=1e-12)


def test_magic_box_derivatives_of_half_the_square():
    """Derivatives 1 to 6 of box(tau^2 / 2) at tau = 1 are the involution numbers, OEIS A000085; one step of weight 1."""
    f = lambda tau: ld.estimators.DiCE()(tau[None] ** 2 / 2, jnp.ones(1))  # noqa: E731
    found = []
    for _ in range(6):
        f = jax.grad(f)
        found.append(float(jax.jit(f)(jnp.array(1.0))))
    np.testing.assert_allclose(found, [1, 2, 4, 10, 26, 76], rtol=1e-13)


def test_loaded_dice_at_one_is_dice_and_at_zero_keeps_the_own_step_only():
    logs, weights = -jnp.array([[0.5, 1.0, 0.2]]), jnp.array([[1.0, -2.0, 0.5]])
    hessian = lambda surrogate: jax.jit(jax.hessian(lambda x: surrogate(x[None], weights)))(logs[0])  # noqa: E731
    np.testing.assert_allclose(hessian(ld.estimators.LoadedDiCE(1.0)), hessian(ld.estimators.DiCE()), atol=1e-14)
    np.testing.assert_allclose(hessian(ld.estimators.LoadedDiCE(0.0)), np.diag([1.0, -2.0, 0.5]), atol=1e-14)
    half = np.array([[1.0, -1.0, 0.125], [-1.0, -2.0, 0.25], [0.125, 0.25, 0.5]])  # w_t lambda^(t - s)
    np.testing.assert_allclose(hessian(ld.estimators.LoadedDiCE(0.5)), half, atol=1e-14)


def test_loaded_dice_decays_over_many_steps():
    """The Hessian couples the steps s <= t by w_t lambda^(t - s); seven of them, so that products of decays are multiplied."""
    steps, weights = np.arange(7), np.arange(1.0, 8.0)
    later, apart = np.maximum.outer(steps, steps), np.abs(np.subtract.outer(steps, steps))
    hessian = jax.jit(jax.hessian(lambda x: ld.estimators.LoadedDiCE(0.5)(x, jnp.asarray(weights))))(-jnp.ones(7))
    np.testing.assert_allclose(hessian, weights[later] * 0.5**apart, rtol=1e-13)


def test_loaded_dice_has_the_gradient_of_dice():
    logs, weights = -jnp.arange(1.0, 7.0).reshape(2, 3), jnp.arange(6.0).reshape(2, 3)
    for lambda_ in (0.0, 0.3, 1.0):
        surrogate = ld.estimators.LoadedDiCE(lambda_)
        gradient = jax.jit(jax.grad(lambda x, f=surrogate: f(x, weights)))(logs)
        np.testing.assert_allclose(gradient, weights / 2, atol=1e-14)


def test_weights_are_held_and_cast():
    logs = -jnp.ones((2, 3), jnp.float32)
    weights = jnp.ones((2, 3), jnp.float64)
    for surrogate in (
        ld.estimators.Score(),
        ld.estimators.DiCE(),
        ld.estimators.LoadedDiCE(0.5),
        lambda x, w: jnp.sum(ld.estimators.clipped(x, w, 0.2)),
    ):
        value, gradient = jax.value_and_grad(surrogate, argnums=1)(logs, weights)
        assert value.dtype == jnp.float32
        assert (gradient == 0).all()


def test_clipped_terms_by_hand():
    """Ratios .5, 1, 1.1, 2 with a positive and a negative weight; the derivative in the log-ratio is ratio * w or 0."""
    logs = jnp.log(jnp.array([0.5, 1.0, 1.1, 2.0]))
    up, down = jnp.full(4, 3.0), jnp.full(4, -3.0)
    np.testing.assert_allclose(ld.estimators.clipped(logs, up, 0.2), [1.5, 3.0, 3.3, 3.6])
    np.testing.assert_allclose(ld.estimators.clipped(logs, down, 0.2), [-2.4, -3.0, -3.3, -6.0])
    slope = lambda w, clip: jax.grad(lambda x: jnp.sum(ld.estimators.clipped(x, w, clip)))(logs)  # noqa: E731
    np.testing.assert_allclose(slope(up, 0.2), [1.5, 3.0, 3.3, 0.0])
    np.testing.assert_allclose(slope(down, 0.2), [0.0, -3.0, -3.3, -6.0])
    np.testing.assert_allclose(slope(up, None), [1.5, 3.0, 3.3, 6.0])


def test_normalizers_by_hand():
    valid = jnp.array([[True, True, True], [True, False, False]])
    terms = jnp.where(valid, jnp.array([[1.0, 2.0, 3.0], [8.0, 0.0, 0.0]]), 0)
    assert reduce_steps(terms, valid, "per_trajectory") == 7.0
    assert reduce_steps(terms, valid, "per_step_of_trajectory") == 5.0
    assert reduce_steps(terms, valid, "per_step_of_batch") == 3.5
    with pytest.raises(ValueError, match="received 'mean'"):
        reduce_steps(terms, valid, "mean")  # pyright: ignore


def test_trajectories_without_steps_count_as_one_step():
    """T_n is at least 1: an empty trajectory adds nothing and divides by nothing."""
    valid = jnp.array([[True, False], [False, False]])
    terms = jnp.where(valid, 3.0, 0.0)
    assert reduce_steps(terms, valid, "per_step_of_trajectory") == 1.5
    assert reduce_steps(terms, valid, "per_step_of_batch") == 3.0
    assert reduce_steps(0 * terms, valid & False, "per_step_of_trajectory") == 0.0
    assert reduce_steps(0 * terms, valid & False, "per_step_of_batch") == 0.0


@pytest.mark.parametrize("surrogate", [ld.estimators.Score(), ld.estimators.DiCE(), ld.estimators.LoadedDiCE(0.5)])
def test_leading_axes_are_a_batch(surrogate):
    """Time is the last axis, the mean goes over all others; second derivatives too couple steps of one trajectory only."""
    logs, weights = -jnp.arange(1.0, 13.0).reshape(2, 2, 3), jnp.arange(12.0).reshape(2, 2, 3)

    @jax.jit
    def derivatives(logs, weights):
        first = jax.grad(lambda x: surrogate(x, weights))
        return first(logs), jax.jvp(first, (logs,), (logs,))[1]

    for batch, *rows in zip(derivatives(logs, weights), *map(derivatives, logs[0], weights[0]), strict=True):
        np.testing.assert_allclose(batch[0], np.stack(rows) / 4, rtol=1e-14)


def test_declarations():
    assert ld.estimators.Score().declaration == Declaration(order=1)
    assert ld.estimators.DiCE().declaration == ld.estimators.LoadedDiCE(1.0).declaration == Declaration()
    assert ld.estimators.LoadedDiCE(0.0).declaration.order == ld.estimators.LoadedDiCE(0.99).declaration.order == 1
    assert ld.estimators.LoadedDiCE(0.5) == ld.estimators.LoadedDiCE(0.5)
    assert hash(ld.estimators.LoadedDiCE(0.5)) == hash(ld.estimators.LoadedDiCE(0.5))
    assert NORMALIZERS["per_trajectory"] == (Structure(), Declaration())
    own, all_steps = NORMALIZERS["per_step_of_trajectory"], NORMALIZERS["per_step_of_batch"]
    assert (own[0].degree, own[1]) == (1, biased(own[1].reasons[0]))
    assert (all_steps[0].degree, all_steps[1]) == (None, biased(all_steps[1].reasons[0]))
    with pytest.raises(ValueError, match="received 'mean'"):
        ld.PPO(normalizer="mean")  # pyright: ignore


@pytest.mark.parametrize(
    "surrogate",
    [
        ld.estimators.Score(),
        ld.estimators.DiCE(),
        ld.estimators.LoadedDiCE(0.5),
    ],
)
def test_shapes_that_would_broadcast_are_refused(surrogate):
    with pytest.raises(ValueError, match="would broadcast"):
        surrogate(jnp.ones((3, 1)), jnp.ones(3))
    with pytest.raises(ValueError, match="axis"):  # JAX's own: there is no axis of time
        surrogate(jnp.ones(()), jnp.ones(()))
    with pytest.raises(ValueError, match=r"weight: expected shape \(3, 1\), received \(3,\)"):
        ld.estimators.clipped(jnp.ones((3, 1)), jnp.ones(3), 0.1)


@pytest.mark.parametrize("lambda_", [-0.01, 1.01])
def test_bad_lambda(lambda_):
    with pytest.raises(ValueError, match="lambda_: expected"):
        ld.estimators.LoadedDiCE(lambda_)
