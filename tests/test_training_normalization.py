"""Training with statistics of observations and a running scale of rewards: what they are, that they go on, and that nothing else sees them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.advantages import GAE, ScaledRewards, Standardized, ToGo
from logderiv.baselines import LeaveOneOut
from logderiv.policies import MLPActorCritic, Normalized, RunningMoments
from logderiv.training import Checkpoints
from tests.test_training_checkpoints import same
from tests.worlds import InUnits

pytestmark = pytest.mark.usefixtures("standard_promotion")
NET = MLPActorCritic(2, hidden=(4,))
WORLD = InUnits()
ONE = WORLD.see(jnp.int32(0))
START = NET.init(jax.random.key(0), ONE)
PPO = ld.ActorCritic(ld.PPO(Standardized(ScaledRewards(GAE(0.9))), discount=0.9, gamma_t=False), NET.value)
EPISODES = ld.ScoreFunction(ScaledRewards(ToGo(LeaveOneOut())))
STEPS: Any = {"batch": ld.Steps(4, 3), "estimator": PPO, "epochs": 2, "minibatches": 3}


def train(num_updates, *, params: Any = START, key: Any = 0, policy: Any = NET, world: Any = WORLD, **options):
    key = jax.random.key(key) if isinstance(key, int) else jax.random.clone(key)
    policy = policy if isinstance(policy, Normalized) else Normalized(policy)
    options = {"batch": ld.Episodes(4), "estimator": EPISODES, "optimizer": optax.adam(0.05), **options}
    return ld.train(params, key, policy, world, num_updates=num_updates, **options)


class Clock:
    """Sees 1000 t + 1e4, pays -3 a step, and ends after three."""

    horizon = 3

    def reset(self, key, params=None):
        return jnp.full(1, 1e4), jnp.zeros(())

    def step(self, key, state, action, params=None):
        state = state + 1
        return jnp.full(1, 1e4) + 1e3 * state, state, jnp.array(-3.0), state == 3, False


def tanh(params, observation):
    return ld.Categorical(jnp.tanh(observation) @ params)


@pytest.mark.parametrize("batch", [ld.Episodes(4), ld.Steps(4, 3)])
def test_the_statistics_are_those_of_all_steps_by_hand(batch):
    """Times 0, 1, 2 in each update, and sums of -3, -6, -9: nothing that restarts or ends is counted in addition."""
    estimator = ld.ScoreFunction(ScaledRewards(GAE(1.0, ld.baselines.Value(lambda o: jnp.zeros(())))))
    options: Any = {"params": jnp.zeros((1, 2)), "world": Clock(), "batch": batch, "estimator": estimator}
    result = train(2, policy=tanh, **options)
    seen, (_, paid) = result.state.statistics, result.state.estimator_state
    np.testing.assert_allclose(np.hstack(jax.tree.leaves(seen)), [24, 11e3, 2e6 / 3], rtol=1e-13)
    np.testing.assert_allclose(jax.tree.leaves(paid), [24, -6, 6], rtol=1e-13)
    np.testing.assert_allclose(result.metrics.mean_return, -9, rtol=1e-13)  # in the units of the world
    further = train(2, policy=Normalized(tanh, seen), **options).state.statistics
    np.testing.assert_allclose(np.hstack(jax.tree.leaves(further)), [48, 11e3, 2e6 / 3], rtol=1e-13)


def test_a_run_that_is_stopped_goes_on_bitwise(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    key, params = jax.random.split(jax.random.key(1)), jax.tree.map(lambda x: jnp.stack([x, 1 + x]), START)

    def run(num_updates, folder):
        return train(num_updates, params=params, key=key, checkpoints=Checkpoints(tmp_path / folder, 2), **STEPS)

    whole = run(5, "whole")
    run(3, "parts")
    assert same(run(5, "parts"), whole)
    assert whole.state.statistics.mean["x"].shape == (2, 4)
    assert whole.state.statistics.num_steps.tolist() == [60, 60]


def test_seeds_are_trained_together_as_each_alone():
    keys = jax.random.split(jax.random.key(2))
    both = train(3, params=jax.tree.map(lambda x: jnp.stack([x, x]), START), key=keys, **STEPS)
    for k in range(2):
        alone = train(3, key=keys[k], **STEPS)
        pairs = jax.tree.map(lambda x, k=k: x[k], both.state._replace(key=())), alone.state._replace(key=())
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *pairs)
    assert not np.array_equal(*both.state.statistics.mean["x"])


def by_hand(statistics):
    """The trained policy without `Normalized`."""
    mean, variance = (np.asarray(tree["x"]) for tree in statistics[1:])
    spread = np.where(variance > 1e-20, np.sqrt(variance), 1)

    def apply(params, observation):
        return NET.apply(params, {**observation, "x": jnp.clip((observation["x"] - mean) / spread, -10, 10)})

    return ld.FunctionPolicy(apply)


def test_evaluation_uses_the_statistics_and_never_changes_them():
    """The run with evaluations after its last update, of greedy actions too, is the one without; returns are in the world's units."""
    start = jax.tree.map(lambda x: 40 * x, START)
    plain = train(4, params=start, **STEPS)
    for greedy in (False, True):
        evaluation = ld.Evaluation(every=4, num_episodes=8, greedy=greedy)
        judged = train(4, params=start, evaluation=evaluation, **STEPS)
        assert same(judged.state._replace(key=()), plain.state._replace(key=()))
        trained = Normalized(NET, plain.state.statistics)
        key = jax.random.split(jax.random.clone(plain.state.key))[1]
        mean = jnp.mean(ld.evaluate(plain.params, key, trained, WORLD, num_episodes=8, greedy=greedy))
        np.testing.assert_allclose(judged.metrics.evaluation[-1], mean, rtol=1e-12)
        options: Any = {"num_episodes": 64, "greedy": greedy}
        found = ld.evaluate(plain.params, jax.random.key(5), trained, WORLD, **options)
        again = ld.evaluate(plain.params, jax.random.key(5), by_hand(plain.state.statistics), WORLD, **options)
        np.testing.assert_allclose(found, again, rtol=1e-12)
        raw = ld.evaluate(plain.params, jax.random.key(5), NET, WORLD, **options)
        assert greedy or np.abs(found - raw).max() > 0.1  # the twin: without them it is another policy


def largest_ratios() -> optax.GradientTransformationExtraArgs:
    """Keeps the largest |ratio - 1| of the first gradient of each batch, by what the optimizer is given."""

    def update(updates, state, params=None, *, trajectories: Any = None, **others):
        count, largest = state
        ratios = jnp.exp(ld.log_factors(params, NET, trajectories) - trajectories.behavior_log_probs)
        gap = jnp.max(jnp.where(trajectories.valid, jnp.abs(ratios - 1), 0)).astype(jnp.float32)
        return updates, (count + 1, jnp.where(count % 2 == 0, jnp.maximum(largest, gap), largest))

    zero = jnp.zeros((), jnp.float32)
    return optax.GradientTransformationExtraArgs(lambda params: (jnp.zeros((), jnp.int32), zero), update)


def test_ratios_of_the_first_epoch_are_1_in_float32_and_with_newer_statistics_are_not():
    params, options = jax.tree.map(lambda x: 3 * x.astype(jnp.float32), START), {**STEPS, "minibatches": 1}
    world = InUnits(jnp.float32)
    result = train(5, params=params, world=world, optimizer=optax.chain(largest_ratios(), optax.sgd(0.5)), **options)
    count, largest = result.state.opt_state[1][0]
    assert count == 10
    assert largest < 2e-6
    early, late = (train(n, params=params, world=world, **options) for n in (1, 2))
    taus = ld.rollout(params, jax.random.split(jax.random.key(1), 8), Normalized(NET, early.state.statistics), world)
    newer = ld.log_factors(params, Normalized(NET, late.state.statistics), taus) - taus.behavior_log_probs
    assert np.abs(np.where(taus.valid, newer, 0)).max() > 1e-3


class Failing(InUnits):
    """Now and then sees something that is no number, and pays as always."""

    def step(self, key, state, action, params=None):
        key, key_failure = jax.random.split(key)
        seen, *rest = super().step(key, state, action)
        bad = jax.random.bernoulli(key_failure, 0.03)
        return ({**seen, "x": jnp.where(bad, jnp.nan, seen["x"])}, *rest)


def test_a_batch_that_is_not_finite_leaves_no_statistics_behind():
    with pytest.warns(UserWarning, match="batches were left out"):
        result = train(16, world=Failing(), key=3)
    skipped = np.asarray(result.metrics.num_skipped) > 0
    assert 0 < skipped.sum() < 16
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((result.params, result.state.statistics)))
    assert result.state.statistics.num_steps == np.sum(np.asarray(result.metrics.num_steps)[~skipped])


class Signs:
    """One step: is the number above 5000? Seen in steps of 20 around it."""

    horizon = 1

    def reset(self, key, params=None):
        sign = jax.random.rademacher(key, (), float)
        return jnp.stack([5000 + 20 * sign, 0.01 * sign]), sign

    def step(self, key, state, action, params=None):
        return jnp.zeros(2), state, (action == (state > 0)).astype(float), True, False


def test_what_cannot_be_told_apart_in_its_own_units_is_learned():
    """Beside the twin, the same network on what is there: half of its answers are right after as many updates."""
    net = ld.MLP(2, hidden=(8,))
    params, options = net.init(jax.random.key(0), jnp.zeros(2)), {"optimizer": optax.adam(0.02), "num_updates": 40}
    rest: Any = {"estimator": ld.ScoreFunction(ToGo(LeaveOneOut())), **options}
    learned, twin = (
        ld.train(params, jax.random.key(1), policy, Signs(), ld.Episodes(32), **rest).metrics.mean_return[-10:].mean()
        for policy in (Normalized(net), net)
    )
    assert learned > 0.9
    assert twin < 0.65


OTHER = RunningMoments.start({"x": jnp.zeros(3), "state": jnp.int32(0)})


def trained(policy, world):
    """One update of a policy as it is."""
    options: Any = {"estimator": EPISODES, "optimizer": optax.sgd(0.1), "num_updates": 1}
    return ld.train(START, jax.random.key(0), policy, world, ld.Episodes(2, 3), **options)


BAD: list[tuple[str, Any]] = [
    ("policy: expected observations with floating-point", lambda: (Normalized(ld.tabular_softmax), WORLD.mdp)),
    (r"policy.statistics.mean\['x'\]: expected shape \(4,\), received \(3,\)", lambda: (Normalized(NET, OTHER), WORLD)),
    ("normalized, received one; normalize once", lambda: (Normalized(Normalized(NET)), WORLD)),
]


@pytest.mark.parametrize(("message", "parts"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_named(message, parts):
    with pytest.raises(ValueError, match=message):
        trained(*parts())


def test_inside_another_policy_it_is_not_found_and_says_so():
    outside = ld.policies.Truncated(Normalized(NET), top_k=1)
    with pytest.raises(ValueError, match="where Normalized is the outermost policy"):
        trained(outside, WORLD)
