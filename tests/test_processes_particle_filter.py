"""Particle filters: every path of a small one, a Kalman filter beside a sampled one, and what must not matter."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv import processes
from logderiv.processes import HiddenChain, HiddenMarkovModel, HiddenMarkovParams, particle_filter

from .mostly import slow

MODEL, Y = HiddenMarkovModel(), jnp.array([0, 1, 1])
THETA = jnp.array([1.3, -2.0, 1.4, -1.9, 0.9])
LISTED: Any = {"num_choices": 10, "num_outcomes": 2}  # two particles: three states and two ancestors each
ALL, UNBIASED = ("score", "stop_gradient", "ignored_biased"), ("score", "stop_gradient")
LEVEL = processes.LocalLevel(0.3, 0.8)
LEVEL_PARAMS = processes.LocalLevelParams(jnp.array(-0.4), jnp.array(0.2))
LEVELS = jnp.array([0.5, -0.4, 1.1])


def law(theta):
    """Start, transition and emission, from five logits against 0."""
    zero = jnp.zeros_like(theta[0])
    rows = [jnp.stack([jnp.stack([theta[i], zero]), jnp.stack([theta[i + 1], zero])]) for i in (0, 2)]
    return HiddenMarkovParams(jnp.stack([zero, theta[4]]), *rows)


def exact(theta, observed=None):
    return MODEL.log_likelihood(law(theta), Y, observed=observed)


def three(resampling, theta, parts, observed=None):
    """Z, log Z and Z over its own value, in these parts: one program is compiled for all of them."""
    found = particle_filter(
        law(theta), MODEL, Y, num_particles=2, resampling=resampling, observed=observed, states="score"
    )
    costs = found.likelihood(), found.log_likelihood, found.likelihood(found.log_likelihood)
    return jnp.dot(parts, jnp.stack(costs))


@functools.cache
def listed(resampling, part, observed=None):
    """E[estimate], E[its gradient] and the gradient of E[estimate] over all 1024 paths."""
    mask = None if observed is None else jnp.array(observed)
    objective = _objective(resampling, observed is None)
    parts = jnp.zeros(3).at[part].set(1.0)
    moments = ld.exact.program_derivatives(THETA, objective, parts, mask, order=1, **LISTED)
    return moments[0].mean, moments[1].mean, moments[1].exact


@functools.cache
def _objective(resampling, full):
    del full
    return ld.expectation(functools.partial(three, resampling))


def relative(found, expected):
    """The largest error in units of the largest entry."""
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("resampling", ["score", slow("stop_gradient")])
def test_the_gradient_of_z_is_that_of_the_likelihood_over_all_paths(resampling):
    value, slope, _ = listed(resampling, 0)
    likelihood, score = np.exp(exact(THETA)), jax.grad(exact)(THETA)
    np.testing.assert_allclose(value, likelihood, rtol=1e-12)
    assert relative(slope / likelihood, score) < 1e-12


def test_without_the_ancestors_it_is_a_quarter_off():
    """The size was computed by a list of paths of its own, without this library."""
    value, slope, _ = listed("ignored_biased", 0)
    likelihood, score = np.exp(exact(THETA)), jax.grad(exact)(THETA)
    np.testing.assert_allclose(value, likelihood, rtol=1e-12)
    np.testing.assert_allclose(relative(slope / likelihood, score), 0.27056082259810116, rtol=1e-9)


@pytest.mark.parametrize(
    ("resampling", "off"),
    [("score", 0.9527582), slow(("stop_gradient", 0.9559935)), slow(("ignored_biased", 0.9950519))],
)
def test_the_gradient_of_log_z_is_biased_by_as_much_as_is_declared(resampling, off):
    """Two particles know little; `"stop_gradient"` was listed without this library, too."""
    value, slope, of_mean = listed(resampling, 1)
    np.testing.assert_allclose(value - exact(THETA), -0.3128052901524, rtol=1e-9)
    np.testing.assert_allclose(relative(slope, jax.grad(exact)(THETA)), off, rtol=1e-6)
    assert resampling != "score" or relative(slope, of_mean) < 1e-12  # but that of the mean of log Z is right


@pytest.mark.slow
def test_z_over_its_own_value_has_the_gradient_of_log_z_by_weights_and_none_by_scores():
    chex.assert_trees_all_close(listed("stop_gradient", 2)[1], listed("stop_gradient", 1)[1], rtol=1e-12)
    scored = listed("score", 2)[1]
    np.testing.assert_allclose(
        scored[jnp.array([0, 1, 4])], 0, atol=1e-14
    )  # of the start and the moves: nothing at all


@pytest.mark.slow
@pytest.mark.parametrize("resampling", UNBIASED)
def test_a_missing_observation_is_summed_over(resampling):
    mask = (True, False, True)
    value, slope, _ = listed(resampling, 0, mask)
    both = jax.value_and_grad(lambda theta: jnp.exp(exact(theta, jnp.array(mask))))(THETA)
    np.testing.assert_allclose(value, both[0], rtol=1e-12)
    assert relative(slope, both[1]) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("resampling", "off"), [("score", 0.0), ("stop_gradient", 0.0), ("ignored_biased", 0.16)])
def test_so_are_second_derivatives(resampling, off):
    def model(theta):
        return particle_filter(law(theta), MODEL, Y, num_particles=2, resampling=resampling).likelihood()

    found = ld.exact.program_derivatives(THETA, ld.expectation(model), order=2, **LISTED)[2].mean
    hessian = jax.hessian(lambda theta: jnp.exp(exact(theta)))(THETA)
    np.testing.assert_allclose(relative(found, hessian), off, rtol=0.01, atol=1e-12)


def certain(theta):
    """States that only alternate, 0, 1, 0, ...: nothing is random."""
    moves = jnp.array([[-jnp.inf, 0.0], [0.0, -jnp.inf]])
    return HiddenMarkovParams(jnp.array([0.0, -jnp.inf]), moves, jnp.stack([jnp.stack([0.0, theta]), jnp.zeros(2)]))


def test_by_hand_where_the_states_are_certain():
    """y = 0, 1, 1 from the states 0, 1, 0, of which 0 emits 1 with p = sigmoid(θ): p(y) = (1 - p) / 2 · p, and the score is 1 - 2 p."""

    def model(theta):
        found = particle_filter(certain(theta), MODEL, Y, num_particles=3, resampling="stop_gradient")
        return found.log_likelihood, (found, found.means())

    run = ld.expectation(model, has_aux=True)
    (value, (found, means)), slope = jax.jit(jax.value_and_grad(run, has_aux=True))(jnp.array(0.4), jax.random.key(0))
    p = jax.nn.sigmoid(0.4)
    np.testing.assert_allclose(value, jnp.log((1 - p) / 2 * p), rtol=1e-14)
    np.testing.assert_allclose(slope, 1 - 2 * p, rtol=1e-13)
    np.testing.assert_array_equal(found.states[0], jnp.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]]))
    np.testing.assert_allclose(jnp.exp(found.log_weights[0]), 1 / 3, rtol=1e-14)
    np.testing.assert_allclose(found.increments[0], jnp.log(jnp.stack([1 - p, 0.5, p])), rtol=1e-14)
    np.testing.assert_array_equal(means[0], jnp.array([0.0, 1.0, 0.0]))


@pytest.mark.parametrize("resampling", UNBIASED)
def test_what_no_state_emits_has_likelihood_0_and_no_gradient(resampling):
    def model(theta):
        never = law(theta)._replace(emission=jnp.stack([theta[:2], theta[1:3]]).at[:, 1].set(-jnp.inf))
        found = particle_filter(never, MODEL, Y, num_particles=3, resampling=resampling)
        return found.likelihood(), found.log_likelihood

    run = jax.value_and_grad(ld.expectation(model, has_aux=True), has_aux=True)
    (value, logs), slope = jax.jit(run)(THETA, jax.random.key(0))
    assert (value, logs[0]) == (0, -jnp.inf)
    np.testing.assert_array_equal(slope, 0)


@functools.cache
def relative_gradients(resampling, states, number=6000):
    """Of Z / p(y) of a local level, four particles, one row for each run."""

    def model(params):
        found = particle_filter(params, LEVEL, LEVELS, num_particles=4, resampling=resampling, states=states)
        return found.likelihood(LEVEL.log_likelihood(LEVEL_PARAMS, LEVELS))

    keys = jax.random.split(jax.random.key(5), number)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(ld.expectation(model)), (None, 0)))(LEVEL_PARAMS, keys)
    return values, jnp.stack(slopes, axis=1)


WAYS = list(itertools.product(UNBIASED, ("score", "pathwise")))
KEPT = [way if way == ("stop_gradient", "pathwise") else slow(way) for way in WAYS]


@pytest.mark.parametrize(("resampling", "states"), KEPT)
def test_a_local_level_has_the_likelihood_and_the_score_of_the_kalman_filter(resampling, states):
    values, slopes = relative_gradients(resampling, states)
    score = jnp.stack(jax.grad(LEVEL.log_likelihood)(LEVEL_PARAMS, LEVELS))
    for found, expected in ((values, 1.0), (slopes, score)):
        error = jnp.std(found, axis=0) / np.sqrt(len(found))
        assert jnp.all(jnp.abs(jnp.mean(found, axis=0) - expected) < 4 * error)
        assert jnp.all(error < 0.05)


@pytest.mark.slow
def test_the_same_check_sees_that_resampling_was_ignored():
    _, slopes = relative_gradients("ignored_biased", "pathwise", 20_000)
    score = jnp.stack(jax.grad(LEVEL.log_likelihood)(LEVEL_PARAMS, LEVELS))
    error = jnp.std(slopes, axis=0) / np.sqrt(len(slopes))
    assert jnp.any(jnp.abs(jnp.mean(slopes, axis=0) - score) > 4 * error)


def chain_of(theta):
    """`law(theta)` as three functions."""
    params = law(theta)
    return HiddenChain(
        initial=lambda _: ld.Categorical(params.initial),
        transition=lambda _, x: ld.Categorical(params.transition[x]),
        emission=lambda _, x: ld.Categorical(params.emission[x]),
    )


def run(model, *args, seed=0, num=2):
    """Value and gradient, compiled."""
    objective = ld.expectation(model, num_samples=num)
    return jax.jit(jax.value_and_grad(objective))(*args[:1], jax.random.key(seed), *args[1:])


@pytest.mark.slow
@pytest.mark.parametrize("resampling", UNBIASED)
def test_three_functions_are_a_model_whose_parameters_may_be_closed_over(resampling):
    options: Any = {"num_particles": 4, "resampling": resampling}
    by_functions = run(lambda theta: particle_filter((), chain_of(theta), Y, **options).likelihood(), THETA)
    by_process = run(lambda theta: particle_filter(law(theta), MODEL, Y, **options).likelihood(), THETA)
    chex.assert_trees_all_close(by_functions, by_process, rtol=1e-13)


@pytest.mark.parametrize("resampling", [slow("score"), "stop_gradient"])
def test_padding_does_not_matter_nor_what_stands_where_nothing_is_observed(resampling):
    def filtered(y, **masks):
        def model(params):
            found = particle_filter(params, LEVEL, y, num_particles=4, resampling=resampling, **masks)
            return found.likelihood() + jnp.sum(found.means()[: len(LEVELS)])

        return run(model, LEVEL_PARAMS)

    seen = jnp.array([True, False, True])
    short = filtered(LEVELS, observed=seen)
    hole = jnp.concatenate([LEVELS.at[1].set(jnp.nan), jnp.full(2, jnp.nan)])
    longer = jnp.array([True, False, True, True, True])
    padded = filtered(hole, observed=longer, valid=jnp.arange(5) < 3)
    chex.assert_trees_all_close(padded, short, rtol=1e-13)
    assert np.isfinite(padded[0])


def test_without_a_valid_step_the_likelihood_is_1():
    def model(params, valid):
        return particle_filter(params, LEVEL, LEVELS, num_particles=4, valid=valid).likelihood()

    value, slope = run(model, LEVEL_PARAMS, jnp.zeros(3, bool))
    assert value == 1
    chex.assert_trees_all_equal(slope, processes.LocalLevelParams(jnp.zeros(()), jnp.zeros(())))
    assert np.isnan(run(model, LEVEL_PARAMS, jnp.array([True, False, True]))[0])


def trees(loc):
    """A state of two parts, of which the second is a vector."""
    return processes.TreeNormal(loc, jax.tree.map(lambda x: jnp.full_like(x, 0.5), loc))


def test_a_state_may_be_any_pytree():
    chain = HiddenChain(
        initial=lambda params: trees({"level": params, "slope": jnp.zeros(2)}),
        transition=lambda params, x: trees({"level": params * x["level"] + x["slope"][0], "slope": x["slope"]}),
        emission=lambda params, x: ld.Normal(x["level"] + x["slope"][1], jnp.ones(())),
    )

    def model(params):
        found = particle_filter(params, chain, LEVELS, num_particles=5, resampling="stop_gradient", states="pathwise")
        return found.log_likelihood, found.means(lambda x: {"both": x["level"] + x["slope"][0]})

    (value, means), slope = jax.value_and_grad(ld.expectation(model, has_aux=True), has_aux=True)(
        jnp.array(0.7), jax.random.key(0)
    )
    assert means["both"].shape == (1, 3)
    assert np.isfinite([value, slope]).all()


@pytest.mark.slow
@pytest.mark.parametrize("resampling", ALL)
def test_both_modes_agree_and_so_do_compiled_mapped_and_narrow_runs(resampling, as_shipped):
    y = np.array(Y, np.int32)

    def model(theta):
        return particle_filter(law(theta), MODEL, y, num_particles=8, resampling=resampling).log_likelihood

    theta, key = jnp.asarray(np.asarray(THETA), jnp.float32), jax.random.key(1)
    objective = ld.expectation(model, num_samples=4, baseline="leave_one_out")
    value, slope = jax.jit(jax.value_and_grad(objective))(theta, key)
    assert value.dtype == slope.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(jax.jacfwd(objective))(theta, key), slope, rtol=2e-4, atol=1e-5)
    rows = jax.jit(jax.vmap(objective, (0, None)))(jnp.stack([theta, 2 * theta]), key)
    np.testing.assert_allclose(rows[0], value, rtol=1e-5)


@pytest.mark.slow
def test_several_series_side_by_side_and_a_likelihood_too_small_for_a_float():
    """Of two series each, log Z adds up; of one of 3000 steps Z is 0, Z over a scale is not."""

    def both(params):
        one = lambda y: particle_filter(params, LEVEL, y, num_particles=4, resampling="stop_gradient").log_likelihood  # noqa: E731
        return jnp.sum(ld.plate(one)(jnp.stack([LEVELS, -LEVELS])))

    assert np.isfinite(run(both, LEVEL_PARAMS)[0])
    series = jnp.sin(jnp.arange(3000.0))

    def long(params):
        found = particle_filter(params, LEVEL, series, num_particles=4, resampling="stop_gradient", states="pathwise")
        scaled = found.likelihood(found.log_likelihood)
        return scaled, (found.likelihood(), found.log_likelihood)

    objective = ld.expectation(long, has_aux=True)
    (one, (z, log)), slope = jax.jit(jax.value_and_grad(objective, has_aux=True))(LEVEL_PARAMS, jax.random.key(0))
    assert (one, z[0]) == (1, 0)
    assert log[0] < -3000
    assert np.isfinite(slope).all()


FILTERED: Any = {"params": law(THETA), "model": MODEL, "observations": Y, "num_particles": 2}
OTHER = HiddenChain(
    initial=lambda _: ld.Normal(jnp.zeros(()), jnp.ones(())),
    transition=lambda _, x: ld.Normal(jnp.zeros(2), jnp.ones(2)),
    emission=lambda _, x: ld.Normal(x, jnp.ones(())),
)


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (
            ValueError,
            "resampling: expected 'score', 'stop_gradient' or .*received 'systematic'",
            {"resampling": "systematic"},
        ),
        (ValueError, "states: expected 'score' or 'pathwise', received 'enumerate'", {"states": "enumerate"}),
        (ValueError, "num_particles: expected a whole number >= 1, received 0", {"num_particles": 0}),
        (
            TypeError,
            "model: expected a HiddenProcess or a HiddenChain, received the class HiddenMarkovModel; call it",
            {"model": HiddenMarkovModel},
        ),
        (
            TypeError,
            "model: expected a HiddenProcess or a HiddenChain, received RandomWalk",
            {"model": processes.RandomWalk(3)},
        ),
        (ValueError, "valid: expected padding at the end only, received a hole", {"valid": [True, False, True]}),
        (ValueError, r"valid: expected shape \(3,\)", {"valid": jnp.ones(2, bool)}),
        (ValueError, r"observed: expected shape \(3,\)", {"observed": jnp.ones(2, bool)}),
        (ValueError, "observations: .*leading axis of at least 1", {"observations": Y[:0]}),
        (TypeError, r"params\.initial.*complex", {"params": law(THETA)._replace(initial=jnp.ones(2, complex))}),
        (TypeError, "received Categorical, whose samples are discrete", {"states": "pathwise"}),
        (
            ValueError,
            "state: expected shape .*initial and transition draw states of the same shapes",
            {"model": OTHER, "observations": LEVELS},
        ),
        (
            ValueError,
            r"emission: expected log_prob of one observation to be a scalar, received shape \(2,\)",
            {"observations": jnp.zeros((3, 2), int)},
        ),
    ],
)
def test_bad_input_is_named(error, message, given):
    objective = ld.expectation(lambda _: particle_filter(**FILTERED | given).likelihood())
    with pytest.raises(error, match=message):
        jax.eval_shape(objective, 0.0, jax.random.key(0))


def test_it_is_refused_outside_of_a_model_and_so_is_a_scale_that_is_no_number():
    with pytest.raises(TypeError, match=r"particle_filter: called outside of a model; .*logderiv.expectation"):
        particle_filter(**FILTERED)
    found = processes.Particles(Y, jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match="log_scale: expected a scalar"):
        found.likelihood(jnp.zeros(3))
