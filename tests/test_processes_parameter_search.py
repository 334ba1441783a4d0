"""Parameter space: quadratics by Gaussian moments, the textbook ES formula, pairs and what leaves them out, a fitness that rolls out.

With $f(x) = a x^2 + b x$ and $x = \\mu + \\sigma\\epsilon$, $f = c_0 + c_1 \\epsilon + c_2 \\epsilon^2$: expectations over
$\\epsilon$ are Gauss-Hermite sums, exact for polynomials, and closed forms beside them.
"""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.advantages import Batch
from logderiv.processes import Fitness, NormalSearch, SearchParams, TreeNormal, rollout_pairs

from . import oracle
from .worlds import trajectory

MEAN, SCALE, A, B = 0.7, 0.6, -1.5, 0.4
C0, C1, C2 = A * MEAN**2 + B * MEAN, SCALE * (2 * A * MEAN + B), A * SCALE**2
PARAMS = SearchParams(jnp.array([MEAN]), jnp.log(jnp.array([SCALE])))
EXACT = np.array([C1 / SCALE, 2 * C2])  # d/d mean, d/d log scale of a (mean^2 + scale^2) + b mean
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(6)  # exact to degree 11
SEARCH = NormalSearch()
LOO, LOO_PAIRS = ld.baselines.LeaveOneOut(), ld.baselines.LeaveOneOut(group_size=2)


def batch(noise):
    """The trajectories of given noise, shape (N,)."""
    x = MEAN + SCALE * noise[:, None, None]
    rewards = A * jnp.square(x[..., 0]) + B * x[..., 0]
    return trajectory(actions=x, rewards=rewards, discounts=0 * rewards)


def over_noise(function, number, *, pairs):
    """`function(trajectories)` at every node, and the weights; with `pairs` each node is followed by its mirror image."""
    indices = np.array(list(itertools.product(range(len(NODES)), repeat=number)))
    noise, weights = NODES[indices], np.prod(WEIGHTS[indices] / np.sqrt(2 * np.pi), axis=1)
    noise = np.stack([noise, -noise], axis=-1).reshape(len(noise), -1) if pairs else noise
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda e: function(batch(e))))(noise)), weights


def moments(baseline, number, *, pairs):
    """Exact mean and variance of the estimated gradient in (mean, log scale)."""
    estimator = ld.ScoreFunction(ld.advantages.ToGo(baseline))

    def gradient(taus):
        grads = estimator.estimate(PARAMS, (), SEARCH, taus)[0].grads
        return jnp.concatenate([grads.mean, grads.log_scale])

    values, weights = over_noise(gradient, number, pairs=pairs)
    mean = weights @ values
    return mean, weights @ np.square(values - mean)


def test_independent_samples_are_unbiased_with_the_closed_variance():
    mean, variance = moments(None, 2, pairs=False)
    np.testing.assert_allclose(mean, EXACT, rtol=1e-12)
    np.testing.assert_allclose(variance[0], (C0**2 + 2 * C1**2 + 15 * C2**2 + 6 * C0 * C2) / (2 * SCALE**2), rtol=1e-12)
    mean, variance = moments(LOO, 2, pairs=False)
    np.testing.assert_allclose(mean, EXACT, rtol=1e-12)
    np.testing.assert_allclose(variance[0], (2 * C1**2 + 6 * C2**2) / SCALE**2, rtol=1e-12)


def test_pairs_are_unbiased_with_the_closed_variance():
    """Leaving one of a pair out is biased by the factors in the docstring."""
    mean, variance = moments(LOO_PAIRS, 2, pairs=True)
    np.testing.assert_allclose(mean, EXACT, rtol=1e-12)
    np.testing.assert_allclose(variance, [2 * C1**2 / (2 * SCALE**2), 32 * C2**2], rtol=1e-12)
    mean, _ = moments(LOO, 2, pairs=True)  # N = 4
    np.testing.assert_allclose(mean, EXACT * np.array([4 / 3, 2 / 3]), rtol=1e-12)


def test_standard_errors_are_honest_by_pairs_and_not_by_trajectories():
    """E[sem^2] for a linear fitness, where the two of a pair agree: the exact variance by pairs, (n - 1) / (2 n - 1) of it otherwise."""
    estimator = ld.ScoreFunction(ld.advantages.ToGo(LOO_PAIRS))

    def squared_errors(taus):
        taus = taus._replace(rewards=B * taus.actions[..., 0])
        by_pair = ld.diagnostics.per_trajectory_gradients(PARAMS, SEARCH, taus, estimator, num_groups=3)
        alone = ld.diagnostics.per_trajectory_gradients(PARAMS, SEARCH, taus, estimator)
        return [jnp.square(ld.diagnostics.sem(samples).mean[0]) for samples in (by_pair, alone)]

    (by_pair, alone), weights = over_noise(squared_errors, 3, pairs=True)
    np.testing.assert_allclose(weights @ by_pair, 2 * B**2 / 3, rtol=1e-12)
    np.testing.assert_allclose(weights @ alone, 2 / 5 * 2 * B**2 / 3, rtol=1e-12)


def test_second_derivatives_too():
    """DiCE on one independent sample: the Hessian of a (mean^2 + exp(2 l)) + b mean."""
    estimator = ld.ScoreFunction(surrogate=ld.estimators.DiCE())

    def hessian(taus):
        weights, _ = estimator.advantages(PARAMS, (), SEARCH, taus)
        objective = lambda flat: estimator.objective(SearchParams(*jnp.split(flat, 2)), SEARCH, taus, weights)  # noqa: E731
        return jax.hessian(objective)(jnp.concatenate(PARAMS))

    values, weights = over_noise(hessian, 1, pairs=False)
    np.testing.assert_allclose(np.tensordot(weights, values, 1), np.diag([2 * A, 4 * C2]), atol=1e-12)


def tree_fitness(x, key):
    """Not symmetric, noisy, on a pytree of two leaves."""
    noise = jax.random.normal(key, ())
    return jnp.sum(jnp.sin(x["weight"])) + x["bias"] * jnp.sum(jnp.square(x["weight"])) + noise


def test_pairs_give_the_textbook_formula():
    mean, sigma, num = {"weight": jnp.array([[0.3, -0.2], [1.0, 0.5]]), "bias": jnp.array(0.4)}, 0.3, 5
    search, keys = NormalSearch(scale=sigma), jax.random.split(jax.random.key(0), num)
    taus = jax.jit(rollout_pairs)(mean, keys, search, Fitness(tree_fitness))
    estimator = ld.ScoreFunction(ld.advantages.ToGo(LOO_PAIRS))
    grads = jax.jit(estimator.estimate)(mean, (), search, taus)[0].grads

    def textbook(mean, x):
        x, rewards = np.asarray(x)[:, 0], np.asarray(taus.rewards)
        noise = (x[::2] - mean) / sigma
        np.testing.assert_allclose(x[1::2] - mean, -sigma * noise, atol=1e-15)
        return np.tensordot(rewards[::2, 0] - rewards[1::2, 0], noise, 1) / (2 * num * sigma)

    expected = jax.tree.map(textbook, jax.tree.map(np.asarray, mean), taus.actions)
    chex.assert_trees_all_close(grads, expected, rtol=0, atol=1e-12)


def test_a_pair_shares_the_noise_of_its_fitness():
    keys, fitness = jax.random.split(jax.random.key(0), 3), Fitness(lambda x, key: jax.random.normal(key))
    first, second = rollout_pairs(jnp.zeros(1), keys, NormalSearch(1.0), fitness).rewards.reshape(3, 2).T
    np.testing.assert_array_equal(first, second)
    assert len(set(first.tolist())) == 3


def test_log_prob_is_the_normal_one():
    stats = pytest.importorskip("scipy.stats")
    loc = {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array(0.5)}
    scale = {"a": jnp.array([[0.3, 2.0]]), "b": jnp.array(1.5)}
    x = TreeNormal(loc, scale).sample(jax.random.key(0))
    expected = sum(stats.norm(loc[k], scale[k]).logpdf(x[k]).sum() for k in loc)
    for sign in (1.0, -1.0):
        np.testing.assert_allclose(TreeNormal(loc, scale, sign).log_prob(x), expected, rtol=1e-12)


def test_the_fitness_may_be_a_rollout():
    """Policies drawn, an episode of each, against the gradient of the exact value averaged over the search distribution."""
    world, policy = ld.environments.short_corridor(horizon=20), ld.shared_softmax
    search, sigma, mean = NormalSearch(scale=0.5), 0.5, jnp.array([0.5, -0.5])

    def episode(x, key):
        return ld.rollout(x, key, policy, world).rewards.sum()

    estimator = ld.ScoreFunction(ld.advantages.ToGo(LOO_PAIRS))

    @jax.jit
    @jax.vmap
    def estimates(key):
        taus = rollout_pairs(mean, jax.random.split(key, 8), search, Fitness(episode))
        return estimator.estimate(mean, (), search, taus)[0].grads

    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    difference = sigma * np.sqrt(2) * nodes  # the value depends on the difference of the two logits alone

    def value(logits):
        return ld.exact.value(logits, policy, world, horizon=20)

    def smoothed(mean):
        logits = jax.vmap(lambda d: jnp.array([d, 0.0]))(mean[0] - mean[1] + difference)
        return jax.vmap(value)(logits) @ weights / np.sqrt(2 * np.pi)

    samples = estimates(jax.random.split(jax.random.key(1), 600))
    ld.testing.assert_unbiased(samples, jax.jit(jax.grad(smoothed))(mean), resolution=0.8)
    with pytest.raises(AssertionError, match="BIASED"):  # the policy in the middle of the search has another gradient
        ld.testing.assert_unbiased(samples, jax.jit(jax.grad(value))(mean), resolution=0.8)


def test_it_climbs_to_the_optimum_of_a_sphere():
    target = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0])
    environment = Fitness(lambda x, key: -jnp.sum(jnp.square(x - target)))
    estimator, optimizer = ld.ScoreFunction(ld.advantages.ToGo(LOO_PAIRS)), ld.maximize(optax.adam(0.1))
    params = SEARCH.init(jnp.zeros(5), std=1.0)

    def update(carry, key):
        params, opt_state = carry
        taus = rollout_pairs(params, jax.random.split(key, 16), SEARCH, environment)
        est, _ = estimator.estimate(params, (), SEARCH, taus)
        updates, opt_state = optimizer.update(est.grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    with jax.numpy_dtype_promotion("standard"):
        start, keys = (params, optimizer.init(params)), jax.random.split(jax.random.key(0), 300)
        (found, _), _ = jax.jit(lambda keys: jax.lax.scan(update, start, keys))(keys)
    np.testing.assert_allclose(found.mean, target, atol=0.02)
    assert np.max(np.exp(found.log_scale)) < 0.1


# Leaving groups out, for any trajectories.


def test_leaving_groups_out_by_hand_and_unbiased():
    baseline = ld.baselines.LeaveOneOut(per="trajectory", group_size=2)
    taus = batch(jnp.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))._replace(rewards=jnp.arange(6.0)[:, None])
    one, ones = jnp.ones(()), jnp.ones((6, 1))
    seen = Batch(
        taus, taus.valid, taus.rewards, ones, one, one, ones, None, None, None, jnp.zeros(2), ld.shared_softmax
    )
    np.testing.assert_allclose(baseline.values((), taus.rewards, seen)[:, 0], [3.5, 3.5, 2.5, 2.5, 1.5, 1.5])
    for per in ("step", "trajectory"):
        both = ld.baselines.LeaveOneOut(per=per), ld.baselines.LeaveOneOut(per=per, group_size=1)
        usual, alone = (baseline.values((), taus.rewards, seen) for baseline in both)
        np.testing.assert_array_equal(usual, alone)
    world = oracle.cut(2)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut(group_size=2)), discount=world.discount)
    np.testing.assert_allclose(oracle.expected_gradient(estimator, world, 4), oracle.gradient(world), atol=1e-12)
    known = estimator.structure
    assert (known.min_trajectories, known.symmetric, known.degree) == (4, False, None)
