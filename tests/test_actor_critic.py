"""Actor and critic in one objective: against formulas written out, on padded episodes and streams; expectations exactly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests import oracle
from tests.worlds import batch, cast

NETWORK = ld.MLPActorCritic(2, hidden=(5,))
GAMMA, LAMBDA = 0.9, 0.7


def _params(dtype=jnp.float64) -> Any:
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros(4))
    return jax.tree.map(lambda x: jnp.asarray(0.5 * np.cos(1.0 + np.arange(x.size)).reshape(x.shape), dtype), shapes)


def _episodes(num: int = 3, length: int = 6, dtype=jnp.float64) -> ld.Trajectory:
    """Episodes of 6, 5, 4, ... valid steps, the second one terminated; NaN in the padding."""
    taus = batch(jax.random.key(0), (num, length), dtype=dtype)
    lengths = length - np.arange(num)[:, None] % (length - 1)
    valid = np.arange(length) < lengths
    ends = (np.arange(length) == lengths - 1) & (np.arange(num)[:, None] % 2 == 1)
    logs = -0.7 + 0.1 * jnp.sin(jnp.arange(num * length, dtype=dtype)).reshape(num, length)
    bad = jnp.asarray(np.where(valid, 0, np.nan), dtype)
    return taus._replace(
        observations=taus.observations + bad[..., None],
        rewards=taus.rewards + bad,
        discounts=jnp.asarray(np.where(ends, 0, 1), dtype),
        valid=jnp.asarray(valid),
        behavior_log_probs=logs + bad,
    )


def _stream(num: int = 8, length: int = 80, dtype=jnp.float64) -> ld.Stream:
    """More steps than fill one block of rows."""
    taus = batch(jax.random.key(1), (num, length, 1), dtype=dtype)
    ends = (np.arange(num * length).reshape(num, length) % 7) == 3
    terminated = ends & (np.arange(num * length).reshape(num, length) % 2 == 0)
    steps = taus._replace(
        discounts=jnp.asarray(~terminated[..., None], dtype),
        behavior_log_probs=jnp.full((num, length, 1), -0.6, dtype),
        final_observation=jnp.sin(taus.observations[:, :, 0] + 1),
    )
    times = np.zeros((num, length), np.int32)
    for t in range(1, length):
        times[:, t] = np.where(ends[:, t - 1], 0, times[:, t - 1] + 1)
    return ld.Stream(steps, jnp.asarray(ends), jnp.asarray(times), jnp.zeros((num, length), dtype))


def _by_hand(params, taus, advantages, targets, *, clip, value_weight, entropy_weight):
    """The sum over valid steps, one after the other in NumPy's order, over the number of trajectories."""
    total, num = 0.0, int(np.prod(taus.valid.shape[:-1]))
    valid = np.asarray(taus.valid)
    observations = jnp.where(valid[..., None], taus.observations, 0)[valid]
    logits = jax.vmap(lambda x: NETWORK.apply(params, x).logits)(observations)
    values = jax.vmap(lambda x: NETWORK.value(params, x))(observations)
    log_probs = jax.nn.log_softmax(logits)
    logs = jnp.take_along_axis(log_probs, taus.actions[valid][:, None], axis=1)[:, 0]
    ratio = jnp.exp(logs - taus.behavior_log_probs[valid])
    w = advantages[valid]
    surrogate = w * logs if clip is None else jnp.minimum(ratio * w, jnp.clip(ratio, 1 - clip, 1 + clip) * w)
    total = surrogate - 0.5 * value_weight * (values - targets[valid]) ** 2
    return jnp.sum(total - entropy_weight * jnp.sum(jnp.exp(log_probs) * log_probs, axis=1)) / num


def _advantages_by_hand(params, taus, standardize):
    """GAE by a backward loop in NumPy."""
    valid = np.asarray(taus.valid)
    values = np.asarray(jax.vmap(jax.vmap(lambda x: NETWORK.value(params, x)))(jnp.nan_to_num(taus.observations)))
    final = np.asarray(jax.vmap(lambda x: NETWORK.value(params, x))(taus.final_observation))
    advantages = np.zeros(valid.shape)
    for n in range(valid.shape[0]):
        running = 0.0
        for t in reversed(range(int(valid[n].sum()))):
            last = t == valid[n].sum() - 1
            following = final[n] if last else values[n, t + 1]
            going = GAMMA * float(taus.discounts[n, t])
            running = (
                float(taus.rewards[n, t]) + going * following - values[n, t] + (0 if last else going * LAMBDA * running)
            )
            advantages[n, t] = running
    targets = advantages + np.where(valid, values, 0)
    if standardize:
        chosen = advantages[valid]
        advantages = np.where(valid, (advantages - chosen.mean()) / (chosen.std() + 1e-8), 0)
    return advantages, targets


ESTIMATORS = {
    "a2c": (ld.A2C(NETWORK.value, discount=GAMMA, lambda_=LAMBDA), None, False),
    "ppo": (ld.PPOActorCritic(NETWORK.value, discount=GAMMA, lambda_=LAMBDA), 0.2, True),
}


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("num", [3, 120])
def test_objective_and_gradient_equal_the_formula_written_out(name, num):
    """Value to 1e-12, gradient to 1e-11, also at other parameters than those that drew; 120 trajectories fill a block of rows."""
    estimator, clip, standardize = ESTIMATORS[name]
    taus, params = _episodes(num), _params()
    (advantages, targets), state = jax.jit(lambda p, t: estimator.advantages(p, (), NETWORK, t))(params, taus)
    expected = _advantages_by_hand(params, taus, standardize)
    np.testing.assert_allclose(advantages, expected[0], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(targets, expected[1], rtol=1e-11, atol=1e-12)
    assert state == ()
    moved = jax.tree.map(lambda x: x + 0.05, params)
    options = {"clip": clip, "value_weight": 0.5, "entropy_weight": 0.01}
    ours = jax.jit(jax.value_and_grad(lambda p: estimator.objective(p, NETWORK, taus, (advantages, targets))))(moved)
    theirs = jax.jit(jax.value_and_grad(lambda p: _by_hand(p, taus, advantages, targets, **options)))(moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ours, theirs)
    assert all((np.abs(x) > 0).any() for x in jax.tree.leaves(ours[1]))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_stream_gives_the_formula_over_its_steps(name):
    """640 steps, in blocks and in one pass; the flattened batch gives the same, and a Hessian exists."""
    estimator, clip, _ = ESTIMATORS[name]
    stream, params = _stream(), _params()

    @jax.jit
    def check(params):
        weights, _ = estimator.advantages(params, (), NETWORK, stream)
        flat = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), (stream.steps, weights))
        ours = jax.value_and_grad(lambda p: estimator.objective(p, NETWORK, stream.steps, weights))
        of_flat = jax.value_and_grad(lambda p: estimator.objective(p, NETWORK, *flat))
        return weights, [ours(params), of_flat(params)]

    weights, (ours, of_flat) = check(params)
    options = {"clip": clip, "value_weight": 0.5, "entropy_weight": 0.01}
    theirs = jax.jit(jax.value_and_grad(lambda p: _by_hand(p, stream.steps, *weights, **options)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ours, theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), of_flat, theirs)


def test_a_policy_with_memory_gives_what_a_memoryless_one_does():
    """The same network, with a memory that it does not use."""
    estimator, _, _ = ESTIMATORS["ppo"]
    taus, params = _episodes(), _params()
    remembering = ld.FunctionPolicy(lambda p, carry, x: (NETWORK.apply(p, x), carry + 1), lambda p: jnp.zeros(()))
    gradients = []
    for policy in (NETWORK, remembering):
        weights, _ = jax.jit(lambda p, q=policy: estimator.advantages(p, (), q, taus))(params)
        gradients.append(jax.jit(jax.grad(lambda p, q=policy, w=weights: estimator.objective(p, q, taus, w)))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13), *gradients)


def test_float32_agrees_with_float64():
    estimator, _, _ = ESTIMATORS["ppo"]

    @jax.jit
    def gradient(params, stream):
        return estimator.estimate(params, (), NETWORK, stream)[0].grads

    double = gradient(_params(), _stream())
    single = gradient(_params(jnp.float32), cast(_stream(), jnp.float32))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(single))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), single, double)


def _shared(world: oracle.World) -> tuple[Any, ld.FunctionPolicy, Any]:
    params = {"actor": world.params, "critic": jnp.array([0.7, -0.3])}
    policy = ld.FunctionPolicy(lambda p, s: oracle.POLICY.apply(p["actor"], s))
    return params, policy, lambda p, s: p["critic"][jnp.minimum(s, 1)]


@pytest.mark.parametrize("number", [1, 2])
def test_the_actor_stays_unbiased_beside_its_critic(number):
    """E over every batch, 1e-12, at lambda = 1 where every episode ends. The twin with an entropy bonus is off by its gradient."""
    world = oracle.ending()
    params, policy, value = _shared(world)
    actor = ld.ScoreFunction(ld.advantages.GAE(1.0), discount=world.discount)

    def expected(estimator):
        return oracle.expectation(lambda b: estimator.estimate(params, (), policy, b)[0].grads, world, number)

    plain = expected(ld.ActorCritic(actor, value))
    np.testing.assert_allclose(plain["actor"], oracle.gradient(world), atol=1e-12)
    assert np.abs(plain["critic"]).min() > 1e-3
    bonus = expected(ld.ActorCritic(actor, value, entropy_weight=0.5))
    assert np.abs(bonus["actor"] - oracle.gradient(world)).max() > 1e-3
    assert ld.ActorCritic(actor, value).declaration.order == 1
    with_bonus = ld.ActorCritic(actor, value, entropy_weight=0.5).declaration
    assert with_bonus.order == 0
    assert "entropy" in with_bonus.reasons[-1]
    assert ld.ActorCritic(actor, value, entropy_weight=0.0).declaration.order == 1


def test_the_critic_descends_its_own_error():
    """Its gradient is that of half the squared error to the returns, whatever the actor's weights."""
    world = oracle.ending()
    params, policy, value = _shared(world)
    actor = ld.ScoreFunction(ld.advantages.GAE(1.0), discount=1.0)
    estimator = ld.ActorCritic(actor, value, value_weight=2.0)
    every, _ = oracle.trajectories(world)
    grads = jax.jit(lambda b: estimator.estimate(params, (), policy, b)[0].grads)(every)

    def error(critic):
        rewards = np.where(every.valid, every.rewards, 0)
        returns = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
        values = critic[jnp.minimum(every.observations, 1)]
        return -0.5 * 2.0 * jnp.sum(jnp.where(every.valid, (values - returns) ** 2, 0)) / len(rewards)

    np.testing.assert_allclose(grads["critic"], jax.jit(jax.grad(error))(params["critic"]), rtol=1e-12)


def test_an_entropy_bonus_alone_keeps_the_actors_own_baseline_and_state():
    """With a learned value the value's optimizer goes on as it does without the bonus."""
    import optax

    world = oracle.cut()
    learned = ld.baselines.LearnedValue(
        lambda v, s: jnp.asarray(v)[jnp.minimum(s, 1)], lambda p: jnp.zeros(2), optax.sgd(0.1)
    )
    plain = ld.ScoreFunction(ld.advantages.GAE(0.5, learned), discount=0.9)
    both = ld.ActorCritic(plain, entropy_weight=0.3)
    every, _ = oracle.trajectories(world)

    @jax.jit
    def run(batch):
        return [e.estimate(world.params, e.init(world.params), oracle.POLICY, batch) for e in (plain, both)]

    (a, state_a), (b, state_b) = run(every)
    jax.tree.map(np.testing.assert_array_equal, state_a, state_b)

    def entropy(params):
        logits = params[jnp.minimum(every.observations, 1)]
        return jnp.sum(jnp.where(every.valid, ld.Bernoulli(logits).entropy(), 0)) / len(every.valid)

    np.testing.assert_allclose(b.grads - a.grads, 0.3 * jax.jit(jax.grad(entropy))(world.params), rtol=1e-11)


def test_bad_parts_are_refused():
    actor = ld.ScoreFunction()
    with pytest.raises(ValueError, match="entropy_weight: expected a number >= 0"):
        ld.ActorCritic(actor, entropy_weight=-1.0)
    with pytest.raises(ValueError, match=r"surrogate: expected Score\(\)"):
        ld.ActorCritic(ld.ScoreFunction(surrogate=ld.estimators.DiCE()))
    with pytest.raises(TypeError, match="OptimalPerParameter"):
        ld.ActorCritic(ld.estimators.OptimalPerParameter())
    taus, params = _episodes(), _params()

    class NoEntropy:
        def log_prob(self, action):
            return jnp.zeros(())

    estimator = ld.ActorCritic(actor, entropy_weight=0.1)
    with pytest.raises(TypeError, match="NoEntropy has no entropy"):
        estimator.estimate(params, (), ld.FunctionPolicy(lambda p, x: NoEntropy()), taus)
    whole = ld.FunctionPolicy(NETWORK.apply, log_factors=lambda p, tau: jnp.zeros(tau.valid.shape))
    with pytest.raises(TypeError, match="log_factors of its own does not give its entropy"):
        estimator.estimate(params, (), whole, taus)


def test_the_critics_own_values_reach_the_advantage_however_it_is_wrapped():
    """GAE takes the actor-critic's values by default; without a critic it says what is missing."""
    taus, params = _episodes(4), _params()
    gae = ld.advantages.GAE(LAMBDA)
    expected, _ = _advantages_by_hand(params, taus, standardize=False)
    for advantage in (gae, ld.advantages.Grouped(gae, 2), ld.advantages.Standardized(gae)):
        actor = ld.PPO(advantage, discount=GAMMA, gamma_t=False)
        (found, _), _ = ld.ActorCritic(actor, NETWORK.value).advantages(params, (), NETWORK, taus)
        found, valid = np.asarray(found), np.asarray(taus.valid)
        if isinstance(advantage, ld.advantages.Standardized):
            found = found * expected[valid].std() + expected[valid].mean()
        np.testing.assert_allclose(found[valid], expected[valid], rtol=1e-6, atol=1e-7)
        with pytest.raises(ValueError, match="an estimator with a value function of its own"):
            ld.ActorCritic(actor).advantages(params, (), NETWORK, taus)


def test_free_outputs_are_one_deviation_for_all_observations():
    network = ld.MLPActorCritic(2, hidden=(5,), head=ld.normal_head, state_independent=1)
    params = network.init(jax.random.key(0), jnp.zeros(4))
    assert params["actor"][-1]["state_independent"].tolist() == [0.0]
    params["actor"][-1]["state_independent"] = jnp.log(jnp.array([0.3]))
    here, there = (network.apply(params, x) for x in (jnp.zeros(4), jnp.ones(4)))
    np.testing.assert_allclose(here.scale, [0.3], rtol=1e-12)
    assert here.scale == there.scale
    assert here.loc != there.loc
    with pytest.raises(ValueError, match="outputs - state_independent: expected a whole number >= 1, received 0"):
        ld.MLPActorCritic(2, state_independent=2)
