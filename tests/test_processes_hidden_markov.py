"""Hidden Markov models against the sum over all hidden paths."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.processes import (
    HiddenMarkovModel,
    HiddenMarkovParams,
    NormalEmissionParams,
    fisher_score,
    fisher_score_samples,
    normal_emission,
    poisson_emission,
)
from tests.mostly import mostly_slow

T, S = 4, 3
MODEL = HiddenMarkovModel()
PARAMS = HiddenMarkovParams(
    initial=jnp.array([0.3, -0.4, 0.1]),
    transition=jnp.array([[0.9, -0.2, 0.0], [0.3, 0.8, -0.5], [-0.1, 0.2, 1.0]]),
    emission=jnp.array([[1.0, 0.2], [-0.3, 0.5], [0.0, -1.0]]),
)
Y = jnp.array([0, 1, 1, 0])
MASK = jnp.array([True, True, False, True])
PATHS = jnp.asarray(list(itertools.product(range(S), repeat=T)), jnp.int32)
# States only move up, and start in 0: most paths are impossible.
LEFT_TO_RIGHT = PARAMS._replace(
    initial=jnp.array([0.0, -jnp.inf, -jnp.inf]),
    transition=jnp.where(jnp.tril(jnp.ones((S, S)), -1) > 0, -jnp.inf, PARAMS.transition),
)


NORMAL = HiddenMarkovModel(lambda params, state: ld.Normal(params["loc"][state], jnp.exp(params["log_scale"])))
NORMAL_PARAMS = PARAMS._replace(emission={"loc": jnp.array([-1.0, 0.0, 2.0]), "log_scale": jnp.array(-0.2)})
COUNTS, VECTORS = HiddenMarkovModel(poisson_emission), HiddenMarkovModel(normal_emission)
COUNT_PARAMS = PARAMS._replace(initial=None, emission=jnp.array([0.2, 1.0, -0.5]))
VECTOR_PARAMS = PARAMS._replace(
    emission=NormalEmissionParams(jnp.array([[0.0, 1.0], [2.0, -1.0], [-1.0, 0.5]]), jnp.array([[0.1, -0.2]] * S))
)
PAIRS = jnp.array([[0.3, -1.0], [1.0, 0.5], [jnp.nan, 2.0], [2.5, -0.7]])
CASES = {
    "symbols": (MODEL, PARAMS, Y, jnp.ones(T, bool)),
    "missing": (MODEL, PARAMS, Y, MASK),
    "left to right": (MODEL, LEFT_TO_RIGHT, Y, jnp.ones(T, bool)),
    "stationary start": (MODEL, PARAMS._replace(initial=None), Y, jnp.ones(T, bool)),
    "counts, stationary, missing": (COUNTS, COUNT_PARAMS, jnp.array([0, 3, -7, 1]), MASK),
    "vectors, missing NaN": (VECTORS, VECTOR_PARAMS, PAIRS, MASK),
    "normal, missing NaN": (NORMAL, NORMAL_PARAMS, jnp.array([0.3, -1.0, jnp.nan, 2.5]), MASK),
}
KEPT = ("missing", "left to right", "counts, stationary, missing", "vectors, missing NaN")
EVERY = pytest.mark.parametrize("name", mostly_slow(CASES, KEPT))


@functools.partial(jax.jit, static_argnames="model")
def everything(params, y, mask, model):
    """Log-joint of every path, the likelihood by their sum and by the filter, three scores and the smoothed marginals."""

    def joint(params):
        taus = jax.vmap(lambda states: model.pair_trajectory(states, y, observed=mask))(PATHS)
        return ld.log_prob(params, model.policy, taus, environment=model)

    def filtered(params):
        return model.log_likelihood(params, y, observed=mask)

    return {
        "joint": joint(params),
        "sum": jax.value_and_grad(lambda params: jnp.log(jnp.sum(jnp.exp(joint(params)))))(params),
        "filter": jax.value_and_grad(filtered)(params),
        "identity": fisher_score(params, model, y, observed=mask),
        "smoothed": model.smooth(params, y, observed=mask),
        "likeliest": model.most_likely_states(params, y, observed=mask),
    }


@functools.cache
def run(name):
    model, params, y, mask = CASES[name]
    return everything(params, y, mask, model)


@EVERY
def test_likelihood_and_scores_are_those_of_the_sum_over_all_paths(name):
    found = run(name)
    (exact, exact_score), (value, by_filter) = found["sum"], found["filter"]
    np.testing.assert_allclose(value, exact, rtol=1e-12)
    chex.assert_trees_all_close(by_filter, found["identity"], exact_score, rtol=1e-8, atol=1e-14)
    assert float(jnp.max(jnp.abs(by_filter.transition))) > 0.01


@EVERY
def test_the_likeliest_path_is_that_of_all_paths(name):
    found = run(name)
    best = int(np.argmax(found["joint"]))
    np.testing.assert_allclose(found["likeliest"].log_prob, found["joint"][best], rtol=1e-12)
    assert found["likeliest"].states.tolist() == PATHS[best].tolist()
    assert np.sort(found["joint"])[-2] < found["joint"][best] - 1e-3  # another path would be seen


@EVERY
def test_smoothed_marginals_are_those_of_the_enumerated_posterior(name):
    found = run(name)
    weights = np.exp(found["joint"] - found["sum"][0])
    visits = np.eye(S)[PATHS]  # (path, time, state)
    np.testing.assert_allclose(found["smoothed"].states, np.einsum("k,kti->ti", weights, visits), atol=1e-13)
    pairs = np.einsum("k,kti,ktj->tij", weights, visits[:, :-1], visits[:, 1:])
    np.testing.assert_allclose(found["smoothed"].pairs, pairs, atol=1e-13)


def test_nothing_observed_says_nothing():
    found = everything(PARAMS._replace(initial=None), Y, jnp.zeros(T, bool), MODEL)
    assert abs(found["filter"][0]) < 1e-14
    chex.assert_trees_all_close(found["filter"][1], jax.tree.map(jnp.zeros_like, found["filter"][1]), atol=1e-14)
    chex.assert_trees_all_close(found["identity"], found["filter"][1], atol=1e-14)
    np.testing.assert_allclose(found["smoothed"].states, [stationary(PARAMS.transition)] * T, rtol=1e-12)


def stationary(logits):
    """π P = π as a linear system, the sum of π in place of one of its rows."""
    kernel = jax.nn.softmax(logits, axis=1)
    system = (jnp.eye(len(logits)) - kernel.T).at[-1].set(1)
    return jnp.linalg.solve(system, jnp.eye(len(logits))[-1])


def test_a_stationary_start_is_the_law_that_the_kernel_keeps():
    """Value, gradient and Hessian of the likelihood against a start from the linear system; a uniform start is seen."""

    def by_kernel(initial, transition):
        params = PARAMS._replace(initial=initial, transition=transition)
        return MODEL.log_likelihood(params, Y, observed=MASK)

    def by_system(transition):
        return by_kernel(jnp.log(stationary(transition)), transition)

    @jax.jit
    def both(x):
        functions = [lambda x: by_kernel(None, x), by_system, lambda x: by_kernel(jnp.zeros(S), x)]
        return [(f(x), jax.grad(f)(x), jax.hessian(f)(x)) for f in functions]

    found, wanted, uniform = both(PARAMS.transition)
    chex.assert_trees_all_close(found, wanted, rtol=0, atol=1e-12)
    assert abs(uniform[0] - wanted[0]) > 1e-4


def test_a_stationary_law_keeps_its_digits_where_it_is_small():
    """Birth and death with up-rate ε: by detailed balance π_i ∝ (ε / 0.25)ⁱ, down to 1e-25 here, in float32 too."""
    up, down = 1e-9, 0.25
    kernel = np.array(
        [[1 - up, up, 0, 0], [down, 1 - down - up, up, 0], [0, down, 1 - down - up, up], [0, 0, down, 1 - down]]
    )
    exact = np.log(up / down) * np.arange(4) - np.log(np.sum((up / down) ** np.arange(4)))
    for dtype, rtol in ((jnp.float64, 1e-12), (jnp.float32, 1e-6)):
        params = PARAMS._replace(
            initial=None, transition=jnp.log(kernel).astype(dtype), emission=jnp.zeros((4, 2), dtype)
        )
        missing = MODEL.smooth(params, Y[:1], observed=[False]).states[0]
        assert missing.dtype == dtype
        np.testing.assert_allclose(jnp.log(missing), exact, rtol=rtol, atol=1e-7 if dtype == jnp.float32 else 1e-13)


def test_a_reducible_chain_has_no_stationary_start():
    assert jnp.isnan(MODEL.log_likelihood(LEFT_TO_RIGHT._replace(initial=None), Y))
    assert jnp.isfinite(MODEL.log_likelihood(LEFT_TO_RIGHT, Y))
    score = ld.processes.fisher_score(LEFT_TO_RIGHT._replace(initial=None), MODEL, Y)
    assert jnp.isnan(score.emission).all()
    cycle = jnp.log(jnp.eye(S)[jnp.array([1, 2, 0])])  # irreducible, though with a period
    params = PARAMS._replace(initial=None, transition=cycle)
    np.testing.assert_allclose(MODEL.smooth(params, Y[:1], observed=[False]).states[0], [1 / 3] * 3, rtol=1e-12)


@pytest.mark.parametrize("initial", [None, jnp.zeros(1)])
def test_one_state_is_independent_draws_and_one_step_a_mixture(initial):
    one = HiddenMarkovParams(initial, jnp.zeros((1, 1)), jnp.log(jnp.array([2.5])))
    y = jnp.array([0, 3, 2])
    exact = -7.5 + 5 * np.log(2.5) - np.log(12)
    np.testing.assert_allclose(COUNTS.log_likelihood(one, y), exact, rtol=1e-13)
    np.testing.assert_allclose(COUNTS.most_likely_states(one, y).log_prob, exact, rtol=1e-13)
    params = COUNT_PARAMS if initial is None else COUNT_PARAMS._replace(initial=jnp.zeros(S))
    start = stationary(params.transition) if initial is None else np.full(S, 1 / 3)
    rates = np.exp(params.emission)
    found = COUNTS.log_likelihood(params, jnp.array([2]))
    np.testing.assert_allclose(found, np.log(np.sum(start * rates**2 * np.exp(-rates) / 2)), rtol=1e-13)
    assert COUNTS.most_likely_states(params, jnp.array([2])).states.shape == (1,)


def test_of_paths_that_are_alike_the_one_with_the_lowest_numbers_is_given():
    alike = HiddenMarkovParams(jnp.zeros(S), jnp.zeros((S, S)), jnp.zeros((S, 2)))
    found = MODEL.most_likely_states(alike, Y)
    assert found.states.tolist() == [0] * T
    np.testing.assert_allclose(found.log_prob, -T * np.log(2 * S), rtol=1e-13)
    never = PARAMS._replace(emission=PARAMS.emission.at[:, 1].set(-jnp.inf))
    assert MODEL.most_likely_states(never, Y).log_prob == -jnp.inf


def test_what_is_no_observation_is_impossible_stays_nan_or_is_refused():
    assert COUNTS.log_likelihood(COUNT_PARAMS, jnp.array([1, -1])) == -jnp.inf
    assert jnp.isnan(NORMAL.log_likelihood(NORMAL_PARAMS, jnp.array([0.3, jnp.nan])))
    assert jnp.isnan(VECTORS.most_likely_states(VECTOR_PARAMS, PAIRS).log_prob)
    with pytest.raises(TypeError, match="action: expected integers, received dtype float"):
        COUNTS.log_likelihood(COUNT_PARAMS, jnp.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"params.emission: expected log-rates of shape \(S,\), received \(3, 2\)"):
        COUNTS.log_likelihood(PARAMS, Y)
    with pytest.raises(ValueError, match=r"params.emission: expected a row for each of 3 states, received 2"):
        COUNTS.log_likelihood(COUNT_PARAMS._replace(emission=jnp.zeros(2)), Y)
    with pytest.raises(ValueError, match=r"params.transition: expected shape \(2, 2\), received \(2, 3\); one row"):
        MODEL.log_likelihood(PARAMS._replace(initial=None, transition=jnp.zeros((2, 3))), Y)
    with pytest.raises(ValueError, match=r"params.emission.loc: expected shape \(S,\) or \(S, D\), received \(\)"):
        VECTORS.log_likelihood(PARAMS._replace(emission=(0.0, 0.0)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"params.emission.log_scale: expected shape \(3,\), received \(2,\); that of"):
        VECTORS.log_likelihood(PARAMS._replace(emission=(jnp.zeros(3), jnp.zeros(2))), jnp.zeros(2))


def test_a_vector_is_missing_as_a_whole():
    """A component alone may be in a state-space model, whose emissions are known to be normal."""
    partly = jnp.ones(PAIRS.shape, bool).at[2, 0].set(False)
    message = r"observed: expected shape \(4,\), received \(4, 2\); .*missing as a whole"
    for function in (VECTORS.log_likelihood, VECTORS.smooth):
        with pytest.raises(ValueError, match=message):
            function(VECTOR_PARAMS, PAIRS, observed=partly)


@pytest.mark.parametrize("name", ["counts, stationary, missing", "vectors, missing NaN"])
def test_derivatives_of_emissions_are_those_of_differences(name):
    model, params, y, mask = CASES[name]
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    value = jax.jit(lambda x: model.log_likelihood(unravel(x), y, observed=mask))
    h, eye = 1e-5, np.eye(len(flat))
    differences = [(value(flat + h * e) - value(flat - h * e)) / (2 * h) for e in eye]
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(run(name)["filter"][1])[0], differences, atol=1e-8)
    chex.assert_trees_all_close(run(name)["identity"], run(name)["filter"][1], rtol=0, atol=1e-12)


def test_a_missing_symbol_is_summed_over():
    value = jax.jit(MODEL.log_likelihood)
    np.testing.assert_allclose(value(PARAMS, Y), run("symbols")["filter"][0], rtol=1e-14)
    both = jnp.exp(jnp.stack([value(PARAMS, Y.at[2].set(symbol)) for symbol in (0, 1)]))
    np.testing.assert_allclose(run("missing")["filter"][0], jnp.log(jnp.sum(both)), rtol=1e-12)


def test_impossible_observations_have_likelihood_zero():
    never = PARAMS._replace(emission=PARAMS.emission.at[:, 1].set(-jnp.inf))
    assert everything(never, Y, jnp.ones(T, bool), MODEL)["filter"][0] == -jnp.inf


@pytest.mark.slow
def test_paths_are_drawn_from_the_posterior_and_their_scores_average_to_the_score():
    @jax.jit
    def draw(params, keys):
        paths = jax.vmap(lambda key: MODEL.sample_states(params, key, Y, observed=MASK))(keys[0])
        prior = ld.rollout(params, keys[1], MODEL.policy, MODEL, horizon=T).actions[0]
        return paths, prior, fisher_score_samples(params, keys[2, 0], MODEL, Y, num_samples=4000, observed=MASK)

    paths, prior, scores = draw(PARAMS, jax.random.split(jax.random.key(0), (3, 4000)))
    exact = run("missing")["smoothed"].pairs  # of neighbors: no event is rare, and the paths are Markov chains

    def hits(states):
        return jax.nn.one_hot(states[:, :-1], S)[..., :, None] * jax.nn.one_hot(states[:, 1:], S)[..., None, :]

    ld.testing.assert_unbiased(hits(paths), exact, resolution=0.05)
    with pytest.raises(AssertionError, match="BIASED"):  # paths that have not seen the observations
        ld.testing.assert_unbiased(hits(prior), exact, resolution=0.05)
    ld.testing.assert_unbiased(scores, run("missing")["filter"][1], resolution=0.1)
    with pytest.raises(AssertionError, match="BIASED"):  # the score of another series
        ld.testing.assert_unbiased(scores, run("symbols")["filter"][1], resolution=0.1)


def test_arrays_of_numpy_and_lists_are_data_and_parameters_like_any_other():
    """By numpy, over the eight paths of the hidden states: log p(y) = -1.43297 where the second symbol is missing, compiled or not."""
    given: Any = (np.zeros(2), np.eye(2), np.eye(2))
    params = HiddenMarkovParams(*given)
    rows = np.exp(np.eye(2)) / np.exp(np.eye(2)).sum(axis=1, keepdims=True)
    total = sum(
        0.5 * rows[a, b] * rows[b, c] * rows[a, 0] * rows[c, 1] for a, b, c in itertools.product(range(2), repeat=3)
    )
    y, seen, key = np.array([0, 1, 1]), np.array([True, False, True]), jax.random.key(0)
    posterior = MODEL.smooth(params, y, observed=seen)
    numpy_posterior = jax.tree.map(np.asarray, posterior)
    calls = [
        lambda q, y, seen: MODEL.log_likelihood(q, y, observed=seen),
        lambda q, y, seen: MODEL.expected_log_joint(q, numpy_posterior, y, observed=seen),
        lambda q, y, seen: MODEL.smooth(q, y, observed=seen).states,
        lambda q, y, seen: MODEL.sample_states(q, jax.random.clone(key), y, observed=seen),
        lambda q, y, seen: fisher_score(q, MODEL, y, observed=seen).transition,
        lambda q, y, seen: ld.log_prob(q, MODEL.policy, MODEL.pair_trajectory(np.array([0, 1, 0]), y, observed=seen)),
    ]
    wanted = [call(jax.tree.map(jnp.asarray, params), jnp.asarray(y), jnp.asarray(seen)) for call in calls]
    assert float(wanted[0]) == pytest.approx(np.log(total), abs=1e-12)
    assert round(float(wanted[0]), 5) == -1.43297
    every = lambda q, y=y, seen=seen: [call(q, y, seen) for call in calls]  # noqa: E731
    for found in (
        every(params),
        jax.jit(every)(params),
        jax.jit(lambda: every(params))(),
        every(params, y.tolist(), seen.tolist()),
    ):
        chex.assert_trees_all_close(found, wanted, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_policies_of_processes_take_parameters_of_numpy_at_a_traced_observation():
    for policy, params, observations in (
        (MODEL.policy, jax.tree.map(np.asarray, PARAMS), jax.tree.map(lambda x: jnp.stack([x, x]), MODEL.first())),
        (ld.tabular_softmax, np.zeros((3, 2)), jnp.arange(3)),
    ):
        apply: Any = policy.apply
        draw = jax.vmap(lambda key, x, apply=apply, params=params: apply(params, x).sample(key))
        keys = jax.random.split(jax.random.key(1), jax.tree.leaves(observations)[0].shape[0])
        assert jax.tree.leaves(draw(keys, observations))[0].shape == keys.shape


@pytest.mark.parametrize("outside", [-1, S, 99])
def test_a_state_outside_the_model_has_no_law_and_none_is_needed_at_the_start(outside):
    def of(params, state, start):
        before = MODEL.first()._replace(state=state, start=start)
        return MODEL.transition(params, before).log_prob((jnp.int32(1), jnp.int32(0)))

    run = jax.jit(jax.value_and_grad(of))
    value, slope = run(PARAMS, jnp.int32(outside), jnp.array(False))
    assert np.isnan(value)
    assert np.isnan(slope.transition).any()
    found, right = (run(PARAMS, jnp.int32(state), jnp.array(True)) for state in (outside, 0))
    chex.assert_tree_all_finite(found)
    chex.assert_trees_all_equal(found, right)
