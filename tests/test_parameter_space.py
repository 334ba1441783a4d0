"""Parameter space: quadratics by Gaussian moments, the textbook ES formula, pairs and what leaves them out, a fitness that rolls out.

With $f(x) = a x^2 + b x$ and $x = \\mu + \\sigma\\epsilon$, $f = c_0 + c_1 \\epsilon + c_2 \\epsilon^2$: expectations over
$\\epsilon$ are Gauss-Hermite sums, exact for polynomials, and closed forms beside them.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.advantages import Batch
from logderiv.processes import Fitness, NormalSearch, SearchParams, TreeNormal, rollout_pairs

from . import oracle

MEAN, SCALE, A, B = 0.7, 0.6, -1.5, 0.4
C0, C1, C2 = A * MEAN**2 + B * MEAN, SCALE * (2 * A * MEAN + B), A * SCALE**2
PARAMS = SearchParams(jnp.array([MEAN]), jnp.log(jnp.array([SCALE])))
EXACT = np.array([C1 / SCALE, 2 * C2])  # d/d mean, d/d log scale of a (mean^2 + scale^2) + b mean
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(6)  # exact to degree 11
SEARCH = NormalSearch()
LOO, LOO_PAIRS = ld.baselines.LeaveOneOut(), ld.baselines.LeaveOneOut(group_size=2)


def quadratic(x, key):
    del key
    return jnp.sum(A * jnp.square(x) + B * x)


def batch(noise):
    """The trajectories of given noise, shape (N,)."""
    x = MEAN + SCALE * noise[:, None, None]
    ones = jnp.ones((x.shape[0], 1))
    rewards = A * jnp.square(x[..., 0]) + B * x[..., 0]
    return ld.Trajectory(ones, x, rewards, 0 * ones, ones == 1, 0 * ones, ones[:, 0])


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
    mean, variance = moments(LOO_PAIRS, 2, pairs=True)
    np.testing.assert_allclose(mean, EXACT, rtol=1e-12)
    np.testing.assert_allclose(variance, [2 * C1**2 / (2 * SCALE**2), 32 * C2**2], rtol=1e-12)


def test_leaving_one_of_a_pair_out_is_biased_by_the_factors_in_the_docstring():
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
        flat = jnp.concatenate(PARAMS)

        def objective(flat):
            return estimator.objective(SearchParams(flat[:1], flat[1:]), SEARCH, taus, weights)

        return jax.hessian(objective)(flat)

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
        noise = (x[::2, 0] - mean) / sigma
        np.testing.assert_allclose(x[1::2, 0] - mean, -sigma * noise, atol=1e-15)
        difference = (taus.rewards[::2, 0] - taus.rewards[1::2, 0]).reshape((num,) + (1,) * (mean.ndim - 1))
        return jnp.sum(difference * noise, axis=0) / (2 * num * sigma)

    expected = jax.tree.map(textbook, jax.tree.map(lambda m: m[None], mean), taus.actions)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-12)


def test_a_pair_shares_the_noise_of_its_fitness():
    taus = rollout_pairs(
        jnp.zeros(1),
        jax.random.split(jax.random.key(0), 3),
        NormalSearch(1.0),
        Fitness(lambda x, k: jax.random.normal(k)),
    )
    pairs = taus.rewards.reshape(3, 2)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])
    assert len(set(np.asarray(pairs[:, 0]).tolist())) == 3


def test_log_prob_is_the_normal_one():
    stats = pytest.importorskip("scipy.stats")
    loc, scale = (
        {"a": jnp.array([[1.0, -2.0]]), "b": jnp.array(0.5)},
        {"a": jnp.array([[0.3, 2.0]]), "b": jnp.array(1.5)},
    )
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
    def estimates(keys):
        def one(key):
            taus = rollout_pairs(mean, jax.random.split(key, 8), search, Fitness(episode))
            return estimator.estimate(mean, (), search, taus)[0].grads

        return jax.vmap(one)(keys)

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
        run = jax.jit(
            lambda key: jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key, 300))[0][0]
        )
        found = run(jax.random.key(0))
    np.testing.assert_allclose(found.mean, target, atol=0.02)
    assert np.max(np.exp(found.log_scale)) < 0.1


# Leaving groups out, for any trajectories.


def test_leaving_groups_out_by_hand_and_unbiased():
    baseline = ld.baselines.LeaveOneOut(per="trajectory", group_size=2)
    taus = batch(jnp.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))._replace(rewards=jnp.arange(6.0)[:, None])
    one, ones = jnp.ones(()), jnp.ones((6, 1))
    seen = Batch(taus, taus.valid, taus.rewards, ones, one, one, ones, ones, ones, (), ld.shared_softmax)
    np.testing.assert_allclose(baseline.values((), taus.rewards, seen)[:, 0], [3.5, 3.5, 2.5, 2.5, 1.5, 1.5])
    for per in ("step", "trajectory"):
        same = (
            ld.baselines.LeaveOneOut(per=per).values((), taus.rewards, seen),
            ld.baselines.LeaveOneOut(per=per, group_size=1).values((), taus.rewards, seen),
        )
        np.testing.assert_array_equal(*same)
    world = oracle.cut(2)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut(group_size=2)), discount=world.discount)
    np.testing.assert_allclose(oracle.expected_gradient(estimator, world, 4), oracle.gradient(world), atol=1e-12)
    assert estimator.structure.min_trajectories == 4
    assert not estimator.structure.symmetric
    assert estimator.structure.degree is None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: ld.baselines.LeaveOneOut(group_size=0), "group_size: expected a whole number >= 1, received 0"),
        (lambda: NormalSearch(scale=0.0), "scale: expected a positive number, received 0.0; or None"),
        (lambda: SEARCH.init(jnp.zeros(2), std=-1.0), "std: expected a positive number"),
        (lambda: NormalSearch(0.1).init(jnp.zeros(2)), "with a fixed scale the mean is the parameter"),
        (
            lambda: rollout_pairs(PARAMS, jax.random.key(0), SEARCH, Fitness(quadratic)),
            "keys: expected one axis of keys",
        ),
        (
            lambda: rollout_pairs(
                PARAMS, jax.random.split(jax.random.key(0), 2), SEARCH, Fitness(lambda x, key: jnp.ones(2))
            ),
            r"fitness: expected a scalar for one sample, received shape \(2,\)",
        ),
        (
            lambda: ld.ScoreFunction(ld.advantages.ToGo(LOO_PAIRS)).estimate(PARAMS, (), SEARCH, batch(jnp.ones(5))),
            "expected a multiple of group_size = 2, received 5",
        ),
        (
            lambda: ld.ScoreFunction(ld.advantages.ToGo(LOO_PAIRS)).estimate(PARAMS, (), SEARCH, batch(jnp.ones(2))),
            "expected at least 4",
        ),
    ],
)
def test_bad_input_is_told_so(call, match):
    with pytest.raises(ValueError, match=match):
        call()
