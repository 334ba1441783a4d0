"""Epochs and minibatches: what each gradient sees, and that one gradient is the estimate itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv._core.arrays import as_steps
from logderiv.estimators.declaration import Structure
from logderiv.training.loop import improve
from tests.worlds import TERMINATING_LOGITS, batch, terminating

pytestmark = pytest.mark.usefixtures("standard_promotion")


@jax.tree_util.register_static
class Sums:
    """The objective of a batch is <params, sum of its one-hot labels>: the gradient says which steps were seen."""

    structure = Structure(reusable=True)

    def objective(self, params, policy, trajectories, weights):
        return jnp.sum(params[trajectories.actions] * weights.sum())


def _improve(data, key, optimizer, **options):
    weights, size = jnp.ones(as_steps(data).valid.shape), as_steps(data).valid.size
    options = {"estimator": Sums(), "optimizer": optimizer, "minibatches": 3, **options}
    return improve(jnp.ones(size), (), key, None, data, weights, **options)


def _labeled(num, length, stream):
    shape = (num, length, 1) if stream else (num, length)
    taus = batch(jax.random.key(0), shape)._replace(actions=jnp.arange(num * length).reshape(shape))
    zeros = jnp.zeros((num, length))
    return ld.types.Stream(taus, zeros > 0, zeros.astype(jnp.int32), zeros) if stream else taus


@pytest.mark.parametrize("stream", [False, True], ids=["episodes", "stream"])
def test_every_epoch_sees_every_step_once_in_parts_of_equal_size(stream):
    """Episodes stay whole; of a stream all environments give the same times. Two epochs are cut differently."""
    num, length = (4, 6) if stream else (6, 4)
    seen = []

    def update(updates, state, params=None):
        jax.debug.callback(lambda u: seen.append(tuple(np.flatnonzero(u).tolist())), updates, ordered=True)
        return jax.tree.map(jnp.zeros_like, updates), state

    logging = optax.GradientTransformation(lambda params: (), update)
    jax.jit(lambda key: _improve(_labeled(num, length, stream), key, logging, epochs=2))(jax.random.key(1))
    jax.effects_barrier()
    assert len(seen) == 6
    for epoch in (seen[:3], seen[3:]):
        assert sorted(step for part in epoch for step in part) == list(range(24))
        assert {len(part) for part in epoch} == {8}
    assert set(seen[:3]) != set(seen[3:])
    for part in seen:
        counted = np.divmod(part, length)[1 if stream else 0]
        assert set(np.unique(counted, return_counts=True)[1]) == {num if stream else length}


def test_one_gradient_step_is_the_estimate():
    """Bit for bit the update that `estimate` gives, and its norm."""
    mdp, optimizer = terminating(), ld.maximize(optax.sgd(0.1))
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))

    @jax.jit
    def check(params, key):
        taus = ld.rollout(params, jax.random.split(key, 6), ld.tabular_softmax, mdp, horizon=4)
        weights, _ = estimator.advantages(params, (), ld.tabular_softmax, taus)
        options = {"estimator": estimator, "optimizer": optimizer}
        ours = improve(params, optimizer.init(params), key, ld.tabular_softmax, taus, weights, **options)
        grads = estimator.estimate(params, (), ld.tabular_softmax, taus)[0].grads
        return ours[0], params + 0.1 * grads, ours[2], jnp.linalg.norm(grads)

    with jax.debug_key_reuse(False):
        ours, expected, norms, norm = check(TERMINATING_LOGITS, jax.random.key(0))
    np.testing.assert_allclose(ours, expected, rtol=1e-14)
    np.testing.assert_allclose(norms, norm[None], rtol=1e-13)


def test_the_optimizer_receives_the_part_of_the_batch():
    """Natural gradients of a stream's minibatches: each preconditions by the Fisher matrix of its own steps."""
    mdp = terminating()
    values = jnp.array([0.3, 0.1, 0.0])
    estimator = ld.PPO(ld.advantages.GAE(0.9, ld.baselines.Value(lambda s: values[s])), discount=0.9)
    optimizer = ld.maximize(optax.chain(ld.natural_gradient(ld.tabular_softmax, damping=0.1), optax.sgd(0.2)))

    @jax.jit
    def run(params, key):
        keys = jax.random.split(key, 3)
        start = ld.sampling.start_streams(keys[0], mdp, 5)
        stream, _ = ld.sampling.collect(params, keys[1], ld.tabular_softmax, mdp, start, num_steps=6)
        weights, _ = estimator.advantages(params, (), ld.tabular_softmax, stream)
        options = {"estimator": estimator, "optimizer": optimizer}
        ours = improve(params, optimizer.init(params), keys[2], ld.tabular_softmax, stream, weights, **options)
        flat = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), stream.steps)
        fisher = ld.likelihood.fisher_matrix(params, ld.tabular_softmax, flat)
        grads = jax.grad(estimator.objective)(params, ld.tabular_softmax, stream.steps, weights)
        step = jnp.linalg.solve(fisher + 0.1 * jnp.eye(6), grads.reshape(-1)).reshape(3, 2)
        return ours[0], params + 0.2 * step

    ours, expected = run(TERMINATING_LOGITS, jax.random.key(1))
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    assert np.abs(ours - TERMINATING_LOGITS).max() > 1e-3


def test_a_batch_that_does_not_divide_is_refused():
    for stream, name in ((False, "num_trajectories = 5"), (True, "num_steps = 4")):
        with pytest.raises(ValueError, match=f"minibatches: expected a divisor of {name}, received 3"):
            _improve(_labeled(5, 4, stream), jax.random.key(0), optax.sgd(0.1))
