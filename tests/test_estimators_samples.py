"""Gradients from samples that somebody else made, on Ising models: all states weighted, every batch listed, then drawn."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld
from tests.ising import ONE, PAIR, Ising, close, lattice
from tests.worlds import compilations

SQUARES = {
    "free": Ising(lattice(3, False), ONE),
    "periodic": Ising(lattice(3, True), ONE),
    "a coupling for each bond": Ising(lattice(3, False), ONE | {"coupling": 0.4 * np.sin(np.arange(12.0))}),
}
CHAIN = Ising([(0, 1), (1, 2)], {"coupling": np.array([0.5, -0.3]), "field": 0.2})
FREE = SQUARES["free"]


def ratio(found: Any, exact: Any) -> np.ndarray:
    return np.asarray(ravel_pytree(found)[0] / ravel_pytree(exact)[0])


# Every state, weighted by its probability.


@pytest.mark.parametrize("density", ["log_prob", "normalized"])
@pytest.mark.parametrize("name", SQUARES)
def test_all_states_weighted_by_their_probability_give_the_exact_gradient(name, density):
    model = SQUARES[name]
    assert len(model.states) == 512
    assert len(model.bonds) == (18 if name == "periodic" else 12)
    found = model.found(jnp.arange(512), density, weights=model.law(), block_size=100)
    close(found.grads, model.exact)
    assert found.sem is None


def test_a_number_as_baseline_is_right_for_a_normalized_density_alone():
    """Without a baseline an unnormalized density gives E[f s], which is another number."""
    every = {"index": jnp.arange(512), "weights": FREE.law(), "normalized": True}
    for number in (0.0, 5.0):
        close(FREE.found(density="normalized", baseline=number, **every).grads, FREE.exact)
    wrong = FREE.found(baseline=0.0, **every).grads  # it says that it is normalized, and is not
    assert np.abs(ratio(wrong, FREE.exact) - 1).min() > 0.5


def test_importance_weights_of_all_states_reach_another_law():
    """Every state listed once for each of three draws of a uniform law: p / q, divided by its sum."""
    index = jnp.tile(jnp.arange(512), 3)
    weights = jnp.tile(FREE.law(), 3)
    close(FREE.found(index, weights=weights / jnp.sum(weights)).grads, FREE.exact)


def test_samples_of_weight_zero_do_not_count():
    """They may be impossible, and have no value."""
    samples = jnp.asarray(np.append(PAIR.states, np.full((3, 2), np.nan), axis=0))
    values, weights = jnp.append(PAIR.values, jnp.full(3, jnp.inf)), jnp.append(PAIR.law(), jnp.zeros(3))
    found = ld.gradient_from_samples(PAIR.params, PAIR.log_prob, samples, values, weights=weights)
    close(found.grads, PAIR.exact)


# Every batch of a small model, weighted by its probability: the expectation of the estimate.


def listed(model: Ising, num: int, law: Any = None, **options: Any) -> Any:
    """Estimates from every batch of `num` items, one of the columns of `states`, and the batches' probabilities."""
    law = model.law() if law is None else law
    batches = np.array(list(itertools.product(range(len(law)), repeat=num)))
    return jax.jit(jax.vmap(lambda index: model.found(index, **options)))(batches), jnp.prod(law[batches], axis=1)


def mean(estimates: Any, probabilities: Any) -> Any:
    return jax.tree.map(lambda x: jnp.tensordot(probabilities, x, axes=1), estimates)


@pytest.mark.parametrize("density", ["log_prob", "normalized"])
@pytest.mark.parametrize(("model", "num"), [(PAIR, 2), (PAIR, 3), (CHAIN, 2), (CHAIN, 3)])
def test_the_expectation_over_every_batch_is_the_exact_gradient(model, num, density):
    found, law = listed(model, num, density=density)
    close(mean(found.grads, law), model.exact)
    assert (found.sem is None) == (num == 2)


def test_the_expectation_with_a_number_as_baseline():
    for num in (1, 2):
        found, law = listed(CHAIN, num, density="normalized", baseline=2.5, normalized=True)
        close(mean(found.grads, law), CHAIN.exact)


@pytest.mark.parametrize("num", [2, 3])
def test_the_own_sample_in_the_baseline_leaves_a_part_of_the_gradient(num):
    """1 − 1/N, as equal weights do, which are no draws then."""
    weights = jnp.full(num, 1 / num)
    found, law = listed(CHAIN, num, weights=weights)
    np.testing.assert_allclose(ratio(mean(found.grads, law), CHAIN.exact), 1 - 1 / num, rtol=1e-12)


@pytest.mark.parametrize("num", [3, 4])
def test_the_jackknife_is_not_too_small_on_average(num):
    """Exactly, over every batch. What pairs of draws add to the variance it takes too large; that of a plain mean is right."""
    found, law = listed(PAIR, num)
    variance = mean(jax.tree.map(lambda g, e: jnp.square(g - e), found.grads, PAIR.exact), law)
    too_large = ratio(mean(jax.tree.map(jnp.square, found.sem), law), variance)
    assert (too_large > 1).all(), too_large
    assert (too_large < 2 * (num - 1) / (num - 2)).all(), too_large
    found, law = listed(PAIR, num, density="normalized", baseline=1.0, normalized=True)
    variance = mean(jax.tree.map(lambda g, e: jnp.square(g - e), found.grads, PAIR.exact), law)
    np.testing.assert_allclose(ratio(mean(jax.tree.map(jnp.square, found.sem), law), variance), 1, rtol=1e-12)


def steps_of(model: Ising) -> np.ndarray:
    """Probabilities of a move of a Gibbs sampler, `(states, states)`, site after site."""
    law, num = np.asarray(model.law()), len(model.states)
    sweep = np.eye(num)
    for site in range(model.states.shape[1]):
        others = np.delete(model.states, site, axis=1)
        same = (others[:, None] == others[None]).all(axis=-1)
        sweep = sweep @ (same * law / (same * law).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(law @ sweep, law, rtol=1e-12)
    return sweep


def chains_of(model: Ising, num: int, **options: Any) -> Any:
    """Estimates from every `num` chains of two draws each."""
    paths = np.array(list(itertools.product(range(len(model.states)), repeat=2)))
    law = (np.asarray(model.law())[:, None] * steps_of(model)).ravel()
    batches = np.array(list(itertools.product(range(len(paths)), repeat=num)))
    return jax.jit(jax.vmap(lambda index: model.found(index, **options)))(paths[batches]), law[batches].prod(axis=1)


@pytest.mark.parametrize("num", [2, 3])
def test_the_expectation_over_every_set_of_chains_is_the_exact_gradient(num):
    found, law = chains_of(PAIR, num, chains=True)
    close(mean(found.grads, law), PAIR.exact)
    assert (found.sem is None) == (num == 2)


def test_draws_of_one_chain_are_no_baseline_for_each_other():
    """The twin that leaves out the own draw only."""
    paths, law = chains_of(PAIR, 1, chains=True, baseline=0.0, normalized=True)
    assert paths.sem is None
    every = np.array(list(itertools.product(range(4), repeat=2)))
    alone = jax.vmap(PAIR.found)(every)
    assert np.abs(ratio(mean(alone.grads, law), PAIR.exact) - 1).max() > 0.1


# Drawn.


@partial(jax.jit, static_argnames=("num", "repetitions", "density"))
def drawn(key: Any, num: int, repetitions: int, density: str = "log_prob") -> Any:
    """Estimates by leave-one-out, with the own sample in the baseline, and without any."""
    index = jax.random.choice(key, 512, (repetitions, num), p=FREE.law())
    known = {"baseline": 0.0, "normalized": True}
    right = jax.vmap(lambda i: FREE.found(i, density))(index)
    own = jax.vmap(lambda i: FREE.found(i, density, weights=jnp.full(num, 1 / num)).grads)(index)
    return right, own, jax.vmap(lambda i: FREE.found(i, density, **known).grads)(index)


def score(samples: Any) -> float:
    """Standard errors between the mean of estimates and the exact gradient, the largest."""
    errors = jax.tree.map(lambda x, e: np.abs(np.mean(x) - e) / (np.std(x) / np.sqrt(len(x))), samples, FREE.exact)
    return max(jax.tree.leaves(errors))


@pytest.mark.parametrize(
    ("num", "repetitions", "density"), [(2, 40_000, "log_prob"), (8, 40_000, "log_prob"), (2, 4000, "normalized")]
)
def test_a_few_draws_are_right_on_average_and_their_twins_are_not(num, repetitions, density):
    """On 200 other seeds none failed."""
    right, own, without = drawn(jax.random.key(num), num, repetitions, density)
    assert score(right.grads) < 4
    assert score(own) > 4
    assert (score(without) > 4) == (density == "log_prob")


@jax.jit
def gibbs(key: Any) -> Any:
    """Numbers of states of 8 chains of 120 draws, one after each update of a site, started from the law."""
    spins, start, noise = jnp.asarray(FREE.states), *jax.random.split(key)
    number = 2 ** jnp.arange(8, -1, -1)

    def update(index, at):
        site, uniform = at
        up, down = (index & ~number[site]) + number[site], index & ~number[site]
        logs = jax.vmap(FREE.log_prob, (None, 0))
        rise = logs(FREE.params, spins[up]) - logs(FREE.params, spins[down])
        return (jnp.where(uniform < jax.nn.sigmoid(rise), up, down), index)

    first = jax.random.choice(start, 512, (8,), p=FREE.law())
    return jax.lax.scan(update, first, (jnp.arange(120) % 9, jax.random.uniform(noise, (120, 8))))[1].T


def test_errors_from_between_chains_cover():
    """95 %, by Student's t with 7 degrees of freedom; errors of draws that are taken to be independent are too small."""
    index = jax.vmap(gibbs)(jax.random.split(jax.random.key(5), 500))
    between = jax.jit(jax.vmap(lambda i: FREE.found(i, chains=True)))(index)
    alone = jax.jit(jax.vmap(lambda i: FREE.found(i.ravel())))(index)
    assert score(between.grads) < 4
    errors = [jax.tree.map(lambda g, s, e: np.abs(g - e) / s, *x, FREE.exact) for x in (between, alone)]
    assert all(0.87 < np.mean(x < 2.365) < 0.985 for x in jax.tree.leaves(errors[0]))
    assert all(np.mean(x < 1.96) < 0.7 for x in jax.tree.leaves(errors[1]))


# Ways to call it.


def test_blocks_jit_vmap_and_pytrees_of_samples_change_nothing():
    index = jax.random.choice(jax.random.key(1), 512, (50,))
    expected = FREE.found(index)
    pairs = {"left": jnp.asarray(FREE.states)[index, :4], "right": jnp.asarray(FREE.states)[index, 4:].astype(int)}

    def log_prob(params, x):
        return FREE.log_prob(params, jnp.concatenate([x["left"], x["right"].astype(float)]))

    values = jnp.asarray(FREE.values)[index]
    others = [FREE.found(index, block_size=7), jax.jit(FREE.found)(index)]
    others += [ld.gradient_from_samples(FREE.params, log_prob, pairs, values)]
    others += [jax.tree.map(lambda x: x[0], jax.vmap(FREE.found)(index[None]))]
    others += [FREE.found(index[:, None], chains=True)]  # draws are chains of one
    for found in others:
        close(found, expected)
    close(FREE.found(index, sem=False).grads, expected.grads)
    assert FREE.found(index, sem=False).sem is None


def test_a_constant_in_log_prob_and_in_the_values_changes_nothing():
    index = jnp.arange(100, 130)
    shifted = ld.gradient_from_samples(
        FREE.params,
        lambda params, x: FREE.log_prob(params, x) + 7.0 * params["field"] + params["coupling"],
        jnp.asarray(FREE.states)[index],
        jnp.asarray(FREE.values[100:130] + 11.0),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11), shifted, FREE.found(index))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shorter_numbers_are_taken_in_float32(dtype):
    params, samples, values = (
        jax.tree.map(lambda x: jnp.asarray(x, dtype), tree) for tree in (PAIR.params, PAIR.states, PAIR.values)
    )
    for weights in (None, jnp.full(4, 0.25, dtype)):
        found = ld.gradient_from_samples(params, PAIR.log_prob, samples, values, weights=weights)
        wide = jax.tree.map(lambda x: x.astype(float), (params, samples, values))
        exact = ld.gradient_from_samples(
            wide[0], PAIR.log_prob, *wide[1:], weights=None if weights is None else weights.astype(float)
        )
        assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, exact)


def test_many_draws_and_large_values_keep_their_digits(as_shipped):
    """N (N − 1) is no 32-bit integer; values and scores are far above their spread."""
    num = 70_000
    x = jnp.asarray(np.random.default_rng(0).normal(size=num), jnp.float32)

    def log_prob(mean, x):
        return (
            -0.5 * (x - mean) ** 2 + 50.0 * mean
        )  # a score of mean 50 multiplies what rounding leaves of the baseline

    found = ld.gradient_from_samples(jnp.float32(0), log_prob, x, 4096 + x)
    weights = jnp.full(num, 1 / num, jnp.float32)
    weighted = ld.gradient_from_samples(jnp.float32(0), log_prob, x, 4096 + x, weights=weights)
    np.testing.assert_allclose(weighted.grads, np.var(x), rtol=1e-3)
    np.testing.assert_allclose(found.grads, np.var(x, ddof=1), rtol=1e-3)
    np.testing.assert_allclose(found.sem, np.std(np.square(np.asarray(x, float))) / np.sqrt(num), rtol=1e-2)


def test_a_second_call_compiles_nothing():
    for shift in (0, 1):
        with compilations() as found:
            jax.block_until_ready(PAIR.found(jnp.array([0, 1, 3]) - 0 * shift))
        assert bool(found) == (shift == 0)
