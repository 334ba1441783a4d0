"""Training as it is run overnight: streams, epochs, evaluation, early stop, skipped updates, seeds; errors."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from tests.mostly import slow
from tests.worlds import TERMINATING_LOGITS, cast, terminating

pytestmark = pytest.mark.usefixtures("standard_promotion")
MDP = terminating()
SGD = optax.sgd(0.3)
LOO = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
Loose: Any = ld.Episodes  # of any number
GIVEN = ld.baselines.Value(lambda s: jnp.array([1.5, 1.0, 0.0])[s])
TOGO = ld.advantages.ToGo(ld.baselines.SharedValue())
A2C = ld.ScoreFunction(ld.advantages.GAE(0.9, GIVEN), discount=0.9, gamma_t=False)
PPO = ld.PPO(ld.advantages.GAE(0.9, GIVEN), discount=0.9, gamma_t=False)
STREAM = {"batch": ld.Steps(8, 4, horizon=6)}


def _train(estimator: Any = LOO, key: Any = 0, params=TERMINATING_LOGITS, **options) -> ld.training.Training:
    usual: Any = {"policy": ld.tabular_softmax, "environment": MDP, "optimizer": SGD, "num_updates": 6}
    usual |= {"batch": ld.Episodes(6, horizon=5)}
    key = jax.random.key(key) if isinstance(key, int) else key
    return ld.train(params, key, estimator=estimator, **(usual | options))


def _rollout(keys, **options):
    draw = jax.jit(lambda keys: ld.rollout(TERMINATING_LOGITS, keys, ld.tabular_softmax, MDP, **options))
    return jax.tree.map(np.asarray, draw(jax.random.clone(keys)))


@pytest.mark.slow
def test_a_rollout_in_chunks_draws_the_same_trajectories():
    """Every valid step bit for bit, padding neutral, the final observation held; it stops when the last one has ended."""
    keys = jax.random.split(jax.random.key(0), (3, 4))
    ordinary = _rollout(keys, horizon=10)
    valid = ordinary.valid
    for chunk in (1, 3, 50):
        for name, found in _rollout(keys, horizon=10, block_size=chunk)._asdict().items():
            where = valid if name in ("observations", "actions") else ...
            np.testing.assert_array_equal(found[where], getattr(ordinary, name)[where], err_msg=name)


@pytest.mark.parametrize("devices", [None, slow(1)])
def test_training_stops_a_rollout_with_its_last_episode(devices):
    """A world that ends after two steps, with a horizon of 10 000: steps are counted on the host. It is no pytree, also on a mesh."""
    calls = []

    class Short:
        horizon = 10_000

        def reset(self, key, params=None):
            return jnp.zeros(1), jnp.zeros((), int)

        def step(self, key, state, action, params=None):
            jax.debug.callback(lambda: calls.append(1))
            return jnp.zeros(1), state + 1, jnp.ones(()), state >= 1, jnp.zeros((), bool)

    mesh = None if devices is None else ld.make_mesh(devices)
    options: Any = {"policy": ld.shared_softmax, "environment": Short(), "params": jnp.zeros(2)}
    result = _train(num_updates=1, batch=ld.Episodes(2), mesh=mesh, **options)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert result.metrics.num_steps[0] == 4
    assert 2 <= len(calls) <= 128  # a chunk or two, per trajectory


def test_a_group_starts_alike_and_goes_on_differently():
    keys = jax.random.split(jax.random.key(0), 40)
    starts = jnp.repeat(jax.random.split(jax.random.key(1), 10), 4)
    taus = _rollout(keys, horizon=6, start_key=jax.random.clone(starts))
    first = taus.observations[:, 0].reshape(10, 4)
    assert (first == first[:, :1]).all()
    assert len(set(first[:, 0].tolist())) == 2
    assert len({tuple(row) for row in taus.actions[:4].tolist()}) > 1
    with pytest.raises(ValueError, match=r"start_key: expected shape \(40,\), received \(3,\)"):
        _rollout(keys, horizon=2, start_key=jax.random.clone(starts)[:3])
    result = _train(ld.RLOO(group_size=2), batch=ld.Groups(3, 2, horizon=5))
    assert np.isfinite(result.params).all()


def test_one_update_of_a_stream_is_collect_weigh_and_improve():
    """The loop written out, two updates long, gives the same parameters, environments and metrics."""
    options: Any = STREAM
    result = _train(A2C, num_updates=2, **options)

    @jax.jit
    def by_hand(params, key):
        climb = ld.maximize(SGD)
        opt_state = climb.init(params)
        key, key_start = jax.random.split(key)
        streams = ld.sampling.start_streams(key_start, MDP, 8)
        returns = []
        for _ in range(2):
            key, key_batch, _ = jax.random.split(key, 3)
            stream, streams = ld.sampling.collect(
                params, key_batch, ld.tabular_softmax, MDP, streams, num_steps=4, horizon=6
            )
            estimate, _ = A2C.estimate(params, (), ld.tabular_softmax, stream)
            updates, opt_state = climb.update(estimate.grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            returns.append(estimate.info.mean_return)
        return params, streams, jnp.stack(returns)

    params, streams, returns = by_hand(TERMINATING_LOGITS, jax.random.key(0))
    np.testing.assert_allclose(result.params, params, rtol=1e-13)
    jax.tree.map(np.testing.assert_array_equal, result.state.streams, streams)
    np.testing.assert_allclose(result.metrics.mean_return, returns, rtol=1e-13)
    assert result.metrics.num_steps.tolist() == [32, 32]


@pytest.mark.usefixtures("nans_are_errors")
def test_a_stream_in_which_no_episode_ends_has_no_return():
    start = ld.sampling.start_streams(jax.random.key(0), MDP, 1)
    stream, _ = ld.sampling.collect(TERMINATING_LOGITS, jax.random.key(1), ld.tabular_softmax, MDP, start, num_steps=1)
    assert not stream.ends.any()
    assert np.isnan(np.asarray(ld.types.batch_info(stream).mean_return))


@pytest.mark.usefixtures("nans_are_errors")
def test_seeds_by_keys_and_under_vmap_equal_seeds_one_by_one():
    keys = jax.random.split(jax.random.key(5), 3)
    options: Any = {"num_updates": 3, "epochs": 2, "minibatches": 2, **STREAM}

    def seed(params, key):
        return _train(PPO, key, params, **options)

    starts = jnp.stack([TERMINATING_LOGITS, -TERMINATING_LOGITS, 2 * TERMINATING_LOGITS])
    mapped = jax.jit(jax.vmap(seed))(starts, keys)
    together = seed(starts, jax.random.clone(keys))
    assert jax.tree.map(jnp.shape, mapped) == jax.tree.map(jnp.shape, together)
    for i in range(3):
        alone = seed(starts[i], jax.random.clone(keys)[i])
        for several in (mapped, together):
            one = jax.tree.map(lambda x, i=i: x[i], several.state)
            for name in set(one._fields) - {"key", "num_updates", "stopped"}:
                values = getattr(one, name), getattr(alone.state, name)
                jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11), *values)
            np.testing.assert_allclose(several.metrics.mean_return[i], alone.metrics.mean_return, rtol=1e-11)


@pytest.mark.usefixtures("nans_are_errors")
def test_evaluation_is_reported_where_it_happened_and_stops_the_run():
    """After the stop nothing moves: parameters, key, count of updates; the rest of the rows are empty."""
    evaluation = ld.Evaluation(every=2, num_episodes=16)
    plain = _train(evaluation=evaluation)
    assert np.isnan(np.asarray(plain.metrics.evaluation)).tolist() == [True, False] * 3
    bar = float(plain.metrics.evaluation[1])
    stopped = _train(evaluation=ld.Evaluation(every=2, num_episodes=16, stop_at=bar))
    assert stopped.state.stopped
    assert stopped.state.num_updates == 2
    np.testing.assert_array_equal(stopped.metrics.mean_return[:2], plain.metrics.mean_return[:2])
    assert np.isnan(np.asarray(stopped.metrics.mean_return)[2:]).all()
    assert (stopped.metrics.num_steps[2:] == 0).all()
    short = _train(num_updates=2, evaluation=evaluation)
    np.testing.assert_allclose(stopped.params, short.params, rtol=1e-12)
    never = _train(evaluation=ld.Evaluation(every=2, num_episodes=16, stop_at=1e9))
    assert not never.state.stopped
    np.testing.assert_array_equal(never.params, plain.params)


@pytest.mark.parametrize("how", [slow("keys"), "vmap"])
def test_seeds_stop_each_at_its_own_evaluation(how):
    """On streams with rewards in float32, while the library's default is float64: both report one dtype."""
    world = cast(MDP, jnp.float32)
    assert world.reset(jax.random.key(0))[0].dtype == MDP.reset(jax.random.key(0))[0].dtype
    evaluation = ld.Evaluation(every=2, num_episodes=16, stop_at=2.5)

    def seed(params, key):
        options: Any = STREAM
        return _train(A2C, key, params, environment=world, evaluation=evaluation, **options)

    train = seed if how == "keys" else jax.jit(jax.vmap(seed))
    together = train(jnp.tile(TERMINATING_LOGITS, (4, 1, 1)), jax.random.split(jax.random.key(5), 4))
    evaluations, counts = np.asarray(together.metrics.evaluation), np.asarray(together.state.num_updates)
    assert len(set(counts.tolist())) > 1
    for values, count in zip(evaluations[:, 1::2], counts, strict=True):
        reached = np.flatnonzero(values >= 2.5)
        assert count == (2 * reached[0] + 2 if reached.size else 6)


@pytest.mark.parametrize("memory", [slow(False), True])
def test_greedy_evaluation_takes_the_likeliest_action(memory):
    """Action 1 in state 0 and 0 in state 1 by a margin of 0.1: the greedy return is that of the deterministic policy."""
    params = jnp.array([[0.0, 0.1], [0.1, 0.0], [0.0, 0.0]])
    policy: Any = ld.tabular_softmax
    if memory:
        policy = ld.FunctionPolicy(lambda p, c, s: (ld.Categorical(p[s]), c), lambda p: jnp.zeros(()))
    greedy, sampled = (
        ld.evaluate(params, jax.random.key(1 - greedy), policy, MDP, num_episodes=4000, horizon=4, greedy=greedy)
        for greedy in (True, False)
    )
    exact = [float(ld.exact.value(p, ld.tabular_softmax, MDP, horizon=4)) for p in (1e3 * params, params)]
    for returns, value in zip((greedy, sampled), exact, strict=True):
        assert abs(returns.mean() - value) < 5 * ld.diagnostics.sem(returns)
    assert abs(greedy.mean() - exact[1]) > 5 * ld.diagnostics.sem(greedy)

    class NoMode:
        def log_prob(self, action):
            return jnp.zeros(())

        def sample(self, key):
            return jnp.zeros((), int)

    with pytest.raises(TypeError, match=r"NoMode has no mode\(\); evaluate with greedy=False"):
        ld.evaluate(params, jax.random.key(0), lambda p, s: NoMode(), MDP, num_episodes=2, horizon=2, greedy=True)


def test_updates_that_are_not_finite_are_skipped_by_optax_and_never_hidden():
    """A policy of NaN in some batches: with `apply_if_finite` the run goes on, without it the parameters are NaN; both warn."""

    class Poisoned:
        horizon = 3

        def reset(self, key, params=None):
            bad = (jax.random.uniform(key) < 0.1).astype(int)
            return bad, bad

        def step(self, key, state, action, params=None):
            return state, state, action.astype(float), jnp.zeros((), bool), jnp.zeros((), bool)

    def policy(params, observation):
        return ld.Categorical(params[observation] + jnp.where(observation == 1, jnp.nan, 0))

    def run(optimizer):
        options: Any = {"environment": Poisoned(), "optimizer": optimizer, "batch": ld.Episodes(2), "policy": policy}
        return _train(ld.ScoreFunction(), 3, jnp.zeros((3, 2)), num_updates=8, **options)

    with pytest.warns(UserWarning, match="gradients were not finite"):
        skipped = run(optax.apply_if_finite(optax.sgd(0.1), max_consecutive_errors=5))
    bad = np.asarray(skipped.metrics.num_nonfinite)
    assert 0 < bad.sum() < 8
    assert np.isfinite(skipped.params).all()
    assert optax.tree.get(skipped.state.opt_state, "total_notfinite") == bad.sum()
    with pytest.warns(UserWarning, match=r"optax\.apply_if_finite skips them"):
        assert not np.isfinite(run(optax.sgd(0.1)).params).all()


@pytest.mark.slow
def test_schedules_and_clipping_are_optaxs():
    """A rate of zero from the third update on; gradients of norm one move the parameters by the rate."""
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.0})
    rate = optax.chain(optax.scale_by_learning_rate(schedule))
    two, six = (_train(optimizer=rate, num_updates=n).params for n in (2, 6))
    np.testing.assert_array_equal(two, six)
    clipped = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    moved = _train(optimizer=clipped, num_updates=1).params - TERMINATING_LOGITS
    np.testing.assert_allclose(jnp.linalg.norm(moved), 1e-3, rtol=1e-6)


def test_bad_plans_are_refused():
    def stream(*sizes, **options):
        return {"estimator": A2C, "batch": ld.Steps(*sizes, **options)}

    def keys(*shape):
        return {"key": jax.random.split(jax.random.key(0), shape)}

    whole = "expected a whole number >= 1, received"
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("batch: expected logderiv.Episodes, Groups or Steps, received int", lambda: {"batch": 16}),
        ("ScoreFunction needs whole episodes", lambda: STREAM),
        ("num_steps = 4, received 3", lambda: {"estimator": PPO, "minibatches": 3, **STREAM}),
        ("num_trajectories = 6, received 4", lambda: {"estimator": ld.PPO(), "minibatches": 4}),
        (">= 2, received 1; this estimator needs", lambda: {"batch": ld.Episodes(1, horizon=2)}),
        ("parameters that drew the batch only", lambda: {"epochs": 2}),
        ("parameters that drew the batch only", lambda: {"minibatches": 2}),
        (f"epochs: {whole} 0", lambda: {"epochs": 0}),
        ("value function of its own", lambda: {"estimator": ld.ScoreFunction(TOGO)}),
        ("value function of its own", lambda: {"estimator": ld.PPO(ld.advantages.Standardized(TOGO))}),
        (f"num_updates: {whole} 0", lambda: {"num_updates": 0}),
        (f"num_updates: {whole} 2.5", lambda: {"num_updates": 2.5}),
        (f"minibatches: {whole} 0", lambda: {"minibatches": 0}),
        (f"group_size: {whole} 0", lambda: {"batch": ld.Groups(3, 0)}),
        (f"num_groups: {whole} 0", lambda: {"batch": ld.Groups(0, 3)}),
        (rf"num_trajectories: {whole} 6\.0", lambda: {"batch": Loose(6.0)}),
        (f"horizon: {whole} 0", lambda: stream(8, 4, horizon=0)),
        (f"num_steps: {whole} 0", lambda: stream(8, 0)),
        (f"num_environments: {whole} 0", lambda: stream(0, 4)),
        (r"params: expected the leading axis \(4,\)", lambda: keys(4)),
        ("keys of shape", lambda: keys(2, 3)),
        (f"num_episodes: {whole} 0", lambda: {"evaluation": ld.Evaluation(num_episodes=0)}),
        (f"block_size: {whole} 0", lambda: _rollout(jax.random.key(0), horizon=2, block_size=0)),
    ]
    for match, options in cases:
        kind = TypeError if "expected logderiv" in match or "whole episodes" in match else ValueError
        with pytest.raises(kind, match=match):
            _train(**options())
