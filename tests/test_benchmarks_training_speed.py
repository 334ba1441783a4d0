"""The benchmark of training at a tiny size: its arithmetic by hand, and a run from end to end. Speed itself is not tested."""

import jax
import numpy as np
import pytest

import logderiv as ld
from benchmarks import rl_peers, seeds

pytest.importorskip("gymnax")
pytest.importorskip("gymnasium")
from benchmarks import training_speed as benchmark

TINY = rl_peers.Settings(num_environments=2, num_steps=8, minibatches=2, epochs=2)


# what the peers import warns of JAX's own deprecations
pytestmark = [pytest.mark.usefixtures("broadcasting"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def made_up_run(steps, returns):
    return seeds.Run(steps, returns, returns[:, -1], 1.0, 2.0)


def test_steps_to_solve_by_hand():
    steps = np.tile([10, 20, 30], (3, 1))
    returns = np.array([[475.0, 1, 1], [474.9, 100, 500], [1, 2, 3]])
    np.testing.assert_array_equal(made_up_run(steps, returns).steps_to(475.0), [10, 30, np.inf])


def test_seconds_are_the_median_steps_over_the_rate():
    returns = np.array([[500.0] * 3, [0, 0, 500], [0, 500, 0]])
    curve = made_up_run(np.tile([100, 200, 400], (3, 1)), returns)
    assert benchmark._summary({"steps_per_s": 50.0}, curve)["seconds_to_475"] == 4.0


@pytest.mark.parametrize("make", [rl_peers.purejaxrl_style, rl_peers.rejax_ppo])
def test_a_peer_hands_out_what_it_trained(make):
    peer = make(TINY)
    if peer is None:
        pytest.skip("not installed")
    snapshots = peer.train(jax.random.key(0), 4, 2)
    logits = jax.vmap(lambda snapshot: peer.policy(snapshot, np.ones(4, np.float32)).logits)(snapshots)
    assert logits.shape == (2, 2)
    assert np.ptp(logits, axis=0).min() > 0


def test_the_library_and_its_peers_learn_the_same_problem():
    """As many steps a batch, and the same networks: the numbers that the table compares."""
    params = benchmark.ppo(TINY).policy.init(jax.random.key(0), np.zeros(4))
    assert ld.MLPActorCritic(2).hidden == (64, 64)
    sizes = {name: sum(x.size for x in jax.tree.leaves(layers)) for name, layers in params.items()}
    assert sizes == {"actor": 4 * 64 + 64 + 64 * 64 + 64 + 64 * 2 + 2, "critic": 4 * 64 + 64 + 64 * 64 + 64 + 64 + 1}
    if (peer := rl_peers.purejaxrl_style(TINY)) is not None:
        snapshot = jax.eval_shape(lambda key: peer.train(key, 1, 1), jax.random.key(0))[0]
        assert sum(x.size for x in jax.tree.leaves(snapshot)) == sum(sizes.values())
