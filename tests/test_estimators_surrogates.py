"""Surrogates: values of derivatives by hand, exact expectations at orders 1 to 3, and the known error of the plain one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.estimators import DiCE, LoadedDiCE, Score, clipped
from logderiv.estimators.declaration import Declaration, Structure, biased
from logderiv.estimators.surrogates import NORMALIZERS, reduce_steps

from . import oracle
from .mostly import slow
from .zoo import ending, off_policy, seen, zoo

ZOO = zoo()
ANY_ORDER = [name for name, estimator in ZOO.items() if estimator.declaration.order == np.inf]
FIRST_ORDER = ["reward-to-go", "given value", "leave one out per step", "loaded DiCE(0.5)", "PPO, leave one out"]
SURROGATES = [Score(), DiCE(), LoadedDiCE(0.5)]
NAMES = [*ANY_ORDER, *FIRST_ORDER, "biased: DiCE, batch mean"]


def _kind(name):
    estimator = ZOO[name]
    surrogate = getattr(estimator, "surrogate", None)
    return surrogate, estimator.structure.min_trajectories, ending(estimator), off_policy(estimator)


@functools.cache
def _expected(kind):
    """Name to E of the first three derivatives, for objectives that differ in their weights only; in one program."""
    _, number, ends, off = kind
    world, chosen = oracle.ending() if ends else oracle.cut(3), [ZOO[n] for n in NAMES if _kind(n) == kind]

    def of_batch(batch):
        weights = [e.advantages(world.params, seen(e, world.params), oracle.POLICY, batch)[0] for e in chosen]

        def derivatives(weights):
            return oracle.derivatives(lambda p: chosen[0].objective(p, oracle.POLICY, batch, weights), world.params)

        return jax.vmap(derivatives)(jnp.stack(weights))

    found = zip(*oracle.expectation(of_batch, world, number, off_policy=off), strict=True)
    return dict(zip((n for n in NAMES if _kind(n) == kind), found, strict=True))


@functools.cache
def _exact(world):
    return jax.jit(lambda p: oracle.derivatives(oracle.value(world), p))(world.params)


def _pairs(name):
    """Expected and exact derivatives, order by order."""
    exact = _exact(oracle.ending() if ending(ZOO[name]) else oracle.cut(3))
    assert all(np.max(np.abs(x)) > 1e-2 for x in exact)
    return zip(_expected(_kind(name))[name], exact, strict=True)


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        *((slow((name, 1.0)) if "gae" in name or "loaded" in name else (name, 1.0)) for name in ANY_ORDER),
        (NAMES[-1], 0.5),
    ],
)
def test_every_order_is_exact_up_to_the_declared_factor(name, factor):
    assert ZOO[name].declaration.factor(2) == factor
    for computed, exact in _pairs(name):
        np.testing.assert_allclose(computed, factor * exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_ones_are_right_at_order_one_only(name):
    assert ZOO[name].declaration.order == 1
    errors = [np.max(np.abs(computed - exact)) for computed, exact in _pairs(name)]
    assert errors[0] < 1e-12
    assert min(errors[1:]) > 1e-2


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
            return DiCE()(logs, weights) + jnp.mean(jnp.sum((1 - box) * baseline, axis=1))

        return oracle.derivatives(objective, world.params)

    for computed, exact in zip(oracle.expectation(of_batch, world, 1), _exact(world), strict=True):
        assert np.max(np.abs(computed - exact)) > 1e-2


def test_magic_box_derivatives_of_half_the_square():
    """Derivatives 1 to 6 of box(tau^2 / 2) at tau = 1 are the involution numbers, OEIS A000085; one step of weight 1."""
    f = lambda tau: DiCE()(tau[None] ** 2 / 2, jnp.ones(1))  # noqa: E731
    found = []
    for _ in range(6):
        f = jax.grad(f)
        found.append(float(jax.jit(f)(jnp.array(1.0))))
    np.testing.assert_allclose(found, [1, 2, 4, 10, 26, 76], rtol=1e-13)


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 1.0])
def test_loaded_dice_has_the_gradient_of_dice_and_decays(lambda_):
    """The Hessian couples the steps s <= t by w_t lambda^(t - s); seven of them, so that products of decays are multiplied."""
    steps, weights, logs = np.arange(7), np.arange(1.0, 8.0), -jnp.arange(7.0)
    later, apart = np.maximum.outer(steps, steps), np.abs(np.subtract.outer(steps, steps))

    @jax.jit
    def derivatives(logs):
        surrogates = [lambda x, s=s: s(x, jnp.asarray(weights)) for s in (LoadedDiCE(lambda_), DiCE())]
        return [(jax.grad(s)(logs), jax.hessian(s)(logs)) for s in surrogates]

    (gradient, hessian), of_dice = derivatives(logs)
    np.testing.assert_allclose(gradient, weights, rtol=1e-13)
    np.testing.assert_allclose(hessian, weights[later] * lambda_**apart, rtol=1e-13)
    assert np.allclose(hessian, of_dice[1]) == (lambda_ == 1)


@pytest.mark.parametrize("surrogate", [*SURROGATES, lambda x, w: jnp.sum(clipped(x, w, 0.2))])
def test_weights_are_held_and_cast(surrogate):
    value, gradient = jax.value_and_grad(surrogate, argnums=1)(-jnp.ones((2, 3), jnp.float32), jnp.ones((2, 3)))
    assert value.dtype == jnp.float32
    assert (gradient == 0).all()


@pytest.mark.parametrize("surrogate", [Score(), DiCE()])
def test_an_impossible_choice_of_weight_zero_counts_as_nothing_and_of_any_other_is_seen(surrogate):
    of_zero = surrogate(jnp.array([[-jnp.inf, -1.0]]), jnp.array([[0.0, 2.0]]))
    assert np.isfinite(of_zero)
    if isinstance(surrogate, Score):
        assert of_zero == -2
        assert surrogate(jnp.array([[-jnp.inf, -1.0]]), jnp.array([[1.0, 2.0]])) == -jnp.inf


def test_clipped_terms_are_flat_only_beyond_the_edge():
    edges, weights = jnp.log(jnp.array([1.5, 0.5])), jnp.array([1.0, -1.0])
    slopes = jax.jit(jax.vmap(jax.grad(lambda log, weight: clipped(log, weight, 0.5))))
    np.testing.assert_allclose(slopes(edges, weights), [1.5, -0.5], rtol=1e-14)
    np.testing.assert_array_equal(slopes(edges * (1 + 1e-12), weights), [0, 0])


def test_clipped_terms_by_hand():
    """Ratios .5, 1, 1.1, 2 with a positive and a negative weight; the derivative in the log-ratio is ratio * w or 0."""
    logs = jnp.log(jnp.array([0.5, 1.0, 1.1, 2.0]))
    up, down = jnp.full(4, 3.0), jnp.full(4, -3.0)
    np.testing.assert_allclose(clipped(logs, up, 0.2), [1.5, 3.0, 3.3, 3.6])
    np.testing.assert_allclose(clipped(logs, down, 0.2), [-2.4, -3.0, -3.3, -6.0])
    slope = lambda w, clip: jax.grad(lambda x: jnp.sum(clipped(x, w, clip)))(logs)  # noqa: E731
    np.testing.assert_allclose(slope(up, 0.2), [1.5, 3.0, 3.3, 0.0])
    np.testing.assert_allclose(slope(down, 0.2), [0.0, -3.0, -3.3, -6.0])
    np.testing.assert_allclose(slope(up, None), [1.5, 3.0, 3.3, 6.0])


def test_a_clip_above_one_has_no_lower_edge_and_forms_no_nan():
    """1 − ε is below 0, and has no logarithm."""
    with jax.debug_nans(True):
        np.testing.assert_allclose(clipped(jnp.array([-5.0, 1.0]), jnp.full(2, -2.0), 1.5), -2 * np.exp([-5.0, 1.0]))


@pytest.mark.parametrize(
    ("normalizer", "degree", "sums"),
    [
        ("per_trajectory", 1, (7.0, 1.5, 0.0)),
        ("per_step_of_trajectory", 1, (5.0, 1.5, 0.0)),
        ("per_step_of_batch", None, (3.5, 3.0, 0.0)),
    ],
)
def test_normalizers_by_hand(normalizer, degree, sums):
    """T_n is at least 1: a trajectory without steps adds nothing and divides by nothing."""
    terms = np.array([[[1.0, 2.0, 3.0], [8.0, 0.0, 0.0]], [[3.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.zeros((2, 3))])
    found = [reduce_steps(jnp.asarray(x), jnp.asarray(x > 0), normalizer) for x in terms]
    np.testing.assert_array_equal(found, sums)
    grid = jnp.asarray([terms[0], terms[1]])
    rows = grid.reshape(4, 3)
    assert reduce_steps(grid, grid > 0, normalizer) == reduce_steps(rows, rows > 0, normalizer)
    structure, declared = NORMALIZERS[normalizer]
    assert structure == Structure(degree=degree)
    assert declared == (Declaration() if normalizer == "per_trajectory" else biased(declared.reasons[0]))


@pytest.mark.parametrize("surrogate", SURROGATES)
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
    declared = [s.declaration for s in (Score(), DiCE(), LoadedDiCE(1.0), LoadedDiCE(0.99), LoadedDiCE(0.0))]
    assert declared[:3] == [Declaration(order=1), Declaration(), Declaration()]
    assert [declaration.order for declaration in declared[3:]] == [1, 1]


@pytest.mark.parametrize("surrogate", SURROGATES)
@pytest.mark.parametrize(("shapes", "message"), [(((3, 1), (3,)), "would broadcast"), (((), ()), "axis")])
def test_shapes_that_would_broadcast_are_refused(surrogate, shapes, message):
    with pytest.raises(ValueError, match=message):  # of arrays without an axis of time JAX says it
        surrogate(*map(jnp.ones, shapes))
