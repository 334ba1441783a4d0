"""Actor and critic in one objective: against formulas written out, on padded episodes and streams; expectations exactly."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests import oracle
from tests.mostly import mostly_slow, slow
from tests.test_estimators_credit import recursions
from tests.worlds import batch, cast
from tests.zoo import LEARNED, table_value

NETWORK = ld.MLPActorCritic(2, hidden=(5,))
GAMMA, LAMBDA = 0.9, 0.7


def _params() -> Any:
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0), jnp.zeros(4))
    return jax.tree.map(lambda x: jnp.asarray(0.5 * np.cos(1.0 + np.arange(x.size)).reshape(x.shape)), shapes)


def _episodes(num: int = 3) -> ld.Trajectory:
    """Episodes of 6, 5, 4, ... valid steps, the second one terminated; NaN in the padding."""
    taus = batch(jax.random.key(0), (num, 6))
    lengths = 6 - np.arange(num)[:, None] % 5
    valid = np.arange(6) < lengths
    ends = (np.arange(6) == lengths - 1) & (np.arange(num)[:, None] % 2 == 1)
    logs = -0.7 + 0.1 * jnp.sin(jnp.arange(num * 6.0)).reshape(num, 6)
    bad = jnp.asarray(np.where(valid, 0, np.nan))
    return taus._replace(
        observations=taus.observations + bad[..., None],
        rewards=taus.rewards + bad,
        discounts=jnp.asarray(np.where(ends, 0.0, 1.0)),
        valid=jnp.asarray(valid),
        behavior_log_probs=logs + bad,
    )


def _stream() -> ld.types.Stream:
    """More steps than fill one block of rows."""
    shape = 8, 80
    taus, numbers = batch(jax.random.key(1), (*shape, 1)), np.arange(640).reshape(shape)
    ends = numbers % 7 == 3
    terminated = ends & (numbers % 2 == 0)
    steps = taus._replace(
        discounts=jnp.asarray(~terminated[..., None], float),
        behavior_log_probs=jnp.full((*shape, 1), -0.6),
        final_observation=jnp.sin(taus.observations[:, :, 0] + 1),
    )
    times = np.zeros(shape, np.int32)
    for t in range(1, 80):
        times[:, t] = np.where(ends[:, t - 1], 0, times[:, t - 1] + 1)
    return ld.types.Stream(steps, jnp.asarray(ends), jnp.asarray(times), jnp.zeros(shape))


def _by_hand(params, taus, advantages, targets, *, clip, value_weight=0.5, entropy_weight=0.01):
    """The sum over valid steps, one after the other in NumPy's order, over the number of trajectories."""
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
    total -= entropy_weight * jnp.sum(jnp.exp(log_probs) * log_probs, axis=1)
    return jnp.sum(total) / int(np.prod(valid.shape[:-1]))


def _advantages_by_hand(params, taus, standardize):
    """GAE by a backward loop in NumPy."""
    valid = np.asarray(taus.valid)
    observed = jnp.concatenate([jnp.nan_to_num(taus.observations), taus.final_observation[:, None]], axis=1)
    values = np.array(jax.jit(jax.vmap(jax.vmap(lambda x: NETWORK.value(params, x))))(observed))
    advantages, rewards, going = np.zeros(valid.shape), np.asarray(taus.rewards), GAMMA * np.asarray(taus.discounts)
    for n, length in enumerate(valid.sum(axis=1)):
        values[n, length], steps = values[n, -1], slice(0, length)
        then, lambdas = values[n, 1 : length + 1], np.full(length, LAMBDA)
        advantages[n, steps] = recursions(rewards[n, steps], going[n, steps], values[n, steps], then, lambdas)[1]
    values = values[:, :-1]
    targets = advantages + np.where(valid, values, 0)
    if standardize:
        chosen = advantages[valid]
        advantages = np.where(valid, (advantages - chosen.mean()) / (chosen.std() + 1e-8), 0)
    return advantages, targets


ESTIMATORS = {
    "a2c": ld.A2C(NETWORK.value, discount=GAMMA, lambda_=LAMBDA),
    "ppo": ld.PPOActorCritic(NETWORK.value, discount=GAMMA, lambda_=LAMBDA),
}
OPTIONS: Any = {"a2c": {"clip": None}, "ppo": {"clip": 0.2}}


def _compare(ours, theirs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ours, theirs)


@pytest.mark.parametrize(("name", "num"), [slow(("a2c", 3)), ("ppo", 3), slow(("ppo", 120))])
def test_objective_and_gradient_equal_the_formula_written_out(name, num):
    """Also at other parameters than those that drew; 120 trajectories fill a block of rows."""
    estimator, taus, params = ESTIMATORS[name], _episodes(num), _params()

    @jax.jit
    def run(params, moved, taus):
        weights, state = estimator.advantages(params, (), NETWORK, taus)
        ours = jax.value_and_grad(lambda p: estimator.objective(p, NETWORK, taus, weights))(moved)
        return weights, state, ours

    (advantages, targets), state, ours = run(params, moved := jax.tree.map(lambda x: x + 0.05, params), taus)
    expected = _advantages_by_hand(params, taus, standardize=name == "ppo")
    np.testing.assert_allclose(advantages, expected[0], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(targets, expected[1], rtol=1e-11, atol=1e-12)
    assert state == ()
    by_hand = jax.jit(jax.value_and_grad(lambda p: _by_hand(p, taus, advantages, targets, **OPTIONS[name])))
    _compare(ours, by_hand(moved))
    assert all((np.abs(x) > 0).any() for x in jax.tree.leaves(ours[1]))


@pytest.mark.parametrize("name", mostly_slow(ESTIMATORS, ("ppo",)))
def test_a_stream_gives_the_formula_over_its_steps(name):
    """640 steps, in blocks and in one pass; the flattened batch gives the same, and so does single precision."""
    estimator, stream, params = ESTIMATORS[name], _stream(), _params()

    @jax.jit
    def check(params, stream):
        weights, _ = estimator.advantages(params, (), NETWORK, stream)
        flat = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), (stream.steps, weights))
        pairs = ((stream.steps, weights), flat)
        return weights, [jax.value_and_grad(lambda p, x=x: estimator.objective(p, NETWORK, *x))(params) for x in pairs]

    weights, ours = check(params, stream)
    by_hand = jax.jit(jax.value_and_grad(lambda p: _by_hand(p, stream.steps, *weights, **OPTIONS[name])))(params)
    _compare(ours, [by_hand] * 2)
    _, single = check(*cast((params, stream), jnp.float32))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(single))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), single, ours)


@pytest.mark.slow
def test_a_policy_with_memory_gives_what_a_memoryless_one_does():
    """The same network, with a memory that it does not use."""
    taus, params = _episodes(), _params()
    remembering = ld.FunctionPolicy(lambda p, carry, x: (NETWORK.apply(p, x), carry + 1), lambda p: jnp.zeros(()))
    _compare(*(ESTIMATORS["ppo"].estimate(params, (), policy, taus)[0].grads for policy in (NETWORK, remembering)))


def _shared(world: oracle.World) -> tuple[Any, ld.FunctionPolicy, Any]:
    params = {"actor": world.params, "critic": jnp.array([0.7, -0.3])}
    policy = ld.FunctionPolicy(lambda p, s: oracle.POLICY.apply(p["actor"], s))
    return params, policy, lambda p, s: table_value(p["critic"], s)


@pytest.mark.parametrize("number", [slow(1), 2])
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
    declared = [ld.ActorCritic(actor, value, entropy_weight=w).declaration for w in (0.0, 0.5)]
    assert [declaration.order for declaration in declared] == [1, 0]
    assert "entropy" in declared[1].reasons[-1]


def test_an_entropy_bonus_alone_keeps_the_actors_own_baseline_and_state():
    """With a learned value the value's optimizer goes on as it does without the bonus."""
    world = oracle.cut()
    plain = ld.ScoreFunction(ld.advantages.GAE(0.5, LEARNED), discount=0.9)
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


class NoEntropy:
    def log_prob(self, action):
        return jnp.zeros(())


WHOLE = ld.FunctionPolicy(NETWORK.apply, log_factors=lambda p, tau: jnp.zeros(tau.valid.shape))


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (ld.FunctionPolicy(lambda p, x: NoEntropy()), "NoEntropy has no entropy"),
        (WHOLE, "log_factors of its own does not give its entropy"),
    ],
)
def test_a_policy_without_entropy_is_refused(policy, words):
    with pytest.raises(TypeError, match=words):
        ld.ActorCritic(ld.ScoreFunction(), entropy_weight=0.1).estimate(_params(), (), policy, _episodes())


def test_a_critic_may_return_a_plain_number():
    """As a value of a baseline may; another number has another gradient."""

    def estimate(value):
        of = ld.ActorCritic(ld.ScoreFunction(ld.advantages.GAE(LAMBDA)), value, value_weight=0.5)
        return jax.jit(lambda p: of.estimate(p, (), policy, taus)[0].grads)(_params())

    policy, taus = ld.FunctionPolicy(lambda p, x: NETWORK.apply(p, x)), _episodes()
    found, twin = estimate(lambda p, x: 0.5), estimate(lambda p, x: 0.75)
    jax.tree.map(np.testing.assert_array_equal, found, estimate(lambda p, x: jnp.asarray(0.5)))
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (found, twin)), strict=True))


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
