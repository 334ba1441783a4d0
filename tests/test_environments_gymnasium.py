"""Gymnasium on the host: the same protocol, one callback for all rows, episodes that end where they end."""

import collections
import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv._core.fingerprint import static_text
from logderiv.environments import as_environment
from logderiv.environments.gymnasium import host
from tests.worlds import rollout as draw

gymnasium = pytest.importorskip("gymnasium")

POLICY = ld.MLP(2, hidden=())
WEIGHTS = POLICY.init(jax.random.key(0), jnp.zeros(4))
STEEP = jax.tree.map(lambda x: x * 300, WEIGHTS)  # a policy that looks at the state
LOO = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))


def keys(seed, *shape):
    return jax.random.split(jax.random.key(seed), shape)


class Clock(gymnasium.Env):
    """Observes where it began and how late it is; action 1 ends it from step 2 on, and then it must not be stepped."""

    observation_space = gymnasium.spaces.Dict(
        {"time": gymnasium.spaces.Discrete(100), "start": gymnasium.spaces.Box(0, 1, (2,), np.float64)}
    )
    action_space = gymnasium.spaces.Discrete(2)
    closed = 0

    def reset(self, *, seed: Any = None, options: Any = None):
        super().reset(seed=seed)
        self.time, self.start, self.over = 0, self.np_random.uniform(size=2), False
        return self._observe(), {}

    def step(self, action):
        assert not self.over, "stepped after its end"
        self.time += 1
        self.over = bool(action == 1 and self.time >= 2)
        return self._observe(), float(self.time), self.over, False, {}

    def close(self):
        Clock.closed += 1

    def _observe(self):
        return {"time": np.int64(self.time), "start": self.start}


def limited_clock():
    return gymnasium.wrappers.TimeLimit(Clock(), 3)


class SameStepReset(gymnasium.Wrapper):
    """The last observation is replaced by the first of the next episode."""

    def step(self, action):
        observation, *rest = super().step(action)
        return self.env.reset()[0] if rest[1] or rest[2] else observation, *rest


def resetting_clock():
    return SameStepReset(limited_clock())


def play(make, action):
    """Six steps of two episodes in which the action is always the same."""
    logits = jnp.where(jnp.arange(2) == action, 0.0, -jnp.inf)
    return draw(logits, keys(3, 2), ld.shared_softmax, ld.environments.Gymnasium(make), horizon=6)


def fails(message, step, *args):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(step(*args))


def test_numpy_rows_and_single_environments_are_the_same_episodes_as_gymnasiums_own():
    rows, one_by_one = "CartPole-v1", lambda: gymnasium.make("CartPole-v1").unwrapped
    batch, single = (
        draw(STEEP, keys(1, 4), POLICY, ld.environments.Gymnasium(make), horizon=80) for make in (rows, one_by_one)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), batch, single)
    lengths = np.asarray(batch.valid.sum(1))
    assert len(set(lengths.tolist())) > 1
    assert (lengths < 80).all()
    own = gymnasium.make("CartPole-v1")
    for row, length in enumerate(lengths):
        tau: Any = jax.tree.map(lambda x, row=row: np.asarray(x[row]), batch)
        own.reset()
        own.unwrapped.state = tau.observations[0].astype(float)
        for t in range(length):
            new, reward, terminated, truncated, _ = own.step(int(tau.actions[t]))
            following = tau.observations[t + 1] if t + 1 < length else tau.final_observation
            np.testing.assert_allclose(new, following, rtol=1e-3, atol=1e-4)
            assert (reward, terminated, truncated) == (tau.rewards[t], t == length - 1, False)
            assert terminated == (tau.discounts[t] == 0)


def test_nested_maps_are_one_callback_per_step_and_equal_the_flat_batch(monkeypatch):
    environment, calls, step = ld.environments.Gymnasium("CartPole-v1"), [], host.Host.step

    def counted(self, handles, action):
        calls.append(len(handles))
        return step(self, handles, action)

    monkeypatch.setattr(host.Host, "step", counted)
    nested = jax.jit(jax.vmap(lambda k: ld.rollout(WEIGHTS, k, POLICY, environment, horizon=9)))(keys(2, 2, 3))
    jax.block_until_ready(nested)
    assert calls == [6] * 9
    flat = draw(WEIGHTS, keys(2, 2, 3).reshape(6), POLICY, environment, horizon=9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-6, atol=1e-12), nested, flat)


def check_cut(make):
    """A time limit of 3 is met: the true last observation, no termination."""
    taus = play(make, 0)
    assert taus.valid.sum(1).tolist() == [3, 3]
    assert taus.discounts.tolist() == [[1] * 6] * 2
    assert taus.rewards.tolist() == [[1, 2, 3, 0, 0, 0]] * 2
    np.testing.assert_array_equal(taus.final_observation["start"], taus.observations["start"][:, 0])
    assert taus.final_observation["time"].tolist() == [3, 3]


def test_a_cut_episode_ends_with_its_own_last_observation_and_is_not_stepped_again():
    check_cut(limited_clock)
    with pytest.raises(AssertionError):
        check_cut(resetting_clock)  # the wrong twin
    taus = play(limited_clock, 1)
    assert taus.discounts.tolist() == [[1, 0, 1, 1, 1, 1]] * 2
    assert taus.final_observation["time"].tolist() == [2, 2]


def test_streams_restart_the_rows_that_ended_and_no_others():
    """Row 0 ends at its second step, row 1 at its time limit."""
    environment = ld.environments.Gymnasium(limited_clock)

    @jax.jit
    def stream(key):
        def body(carry, key):
            new = jax.vmap(environment.step)(key[0], carry[1], jnp.array([1, 0]))
            ends = new.terminated | new.truncated
            fresh = jax.vmap(environment.renew)(key[1], ends, new.observation, new.state)
            return fresh, (new.observation, ends, fresh[0])

        first, key = jax.random.split(key)
        start = jax.vmap(environment.reset)(jax.random.split(first, 2))
        return jax.lax.scan(body, start, jax.random.split(key, (6, 2, 2)))[1]

    after, ends, fresh = jax.tree.map(np.asarray, stream(jax.random.key(4)))
    assert ends.T.tolist() == [[False, True] * 3, [False, False, True] * 2]
    assert after["time"].T.tolist() == [[1, 2] * 3, [1, 2, 3] * 2]
    assert fresh["time"].T.tolist() == [[1, 0] * 3, [1, 2, 0] * 2]
    starts = after["start"]
    assert (starts[0, 0] == starts[1, 0]).all()
    assert (starts[1, 0] != starts[2, 0]).all()
    np.testing.assert_array_equal(starts[0, 1], starts[2, 1])
    np.testing.assert_array_equal(fresh["start"][1, 0], starts[2, 0])
    jax.tree.map(np.testing.assert_array_equal, (after, ends, fresh), stream(jax.random.key(4)))


def test_batches_live_side_by_side_and_a_state_is_used_once():
    environment, other = map(ld.environments.Gymnasium, (lambda: limited_clock(), Clock))  # of their own
    reset, step = jax.vmap(environment.reset), jax.vmap(environment.step)
    (_, three), (_, five), (_, two) = reset(keys(5, 3)), reset(keys(6, 5)), jax.vmap(other.reset)(keys(7, 2))
    for time in (1, 2):
        a = step(keys(8, 3), three, jnp.zeros(3, int))
        b = step(keys(8, 5), five, jnp.zeros(5, int))
        c = jax.vmap(other.step)(keys(8, 2), two, jnp.zeros(2, int))
        again = step(keys(8, 3), three, jnp.zeros(3, int))  # JAX may repeat a call
        jax.tree.map(np.testing.assert_array_equal, a, again)
        for new in (a, b, c):
            assert set(new.observation["time"].tolist()) == {time}
        fails("cannot go back", step, keys(8, 3), three, jnp.ones(3, int))
        three, five, two = a.state, b.state, c.state
    some = step(keys(8, 4), jnp.concatenate([three[1:], five[:2]]), jnp.zeros(4, int))  # rows of two batches
    assert some.truncated.all()
    fails("cannot branch", step, keys(8, 2), jnp.stack([five[3], five[3]]), jnp.zeros(2, int))
    fails("no longer on the host", jax.vmap(other.step), keys(8, 3), three, jnp.zeros(3, int))
    before = Clock.closed
    environment.close()
    assert Clock.closed == before + 8
    fails("no longer on the host", step, keys(8, 5), five, jnp.zeros(5, int))
    assert reset(keys(5, 3))[0]["time"].tolist() == [0] * 3


def test_ended_batches_give_way_first_and_their_environments_are_used_again():
    made = []

    def make():
        made.append(1)
        return Clock()

    environment = ld.environments.Gymnasium(make, max_batches=2)
    reset, step = jax.vmap(environment.reset), jax.vmap(environment.step)
    _, kept = reset(keys(1, 3))
    for _ in range(4):  # episodes that end
        _, state = reset(keys(2, 3))
        for _ in range(2):
            state = step(keys(3, 3), state, jnp.ones(3, int)).state
    assert len(made) == 1 + 6  # one to look at, two batches
    assert step(keys(3, 3), kept, jnp.zeros(3, int)).observation["time"].tolist() == [1] * 3
    for _ in range(2):  # episodes that do not
        reset(keys(4, 3))
    fails("max_batches = 2", step, keys(3, 3), kept, jnp.zeros(3, int))


def test_callbacks_work_inside_batched_loops_and_beside_derivatives():
    """As `train` uses them for many seeds: a while loop whose rows stop at different times."""
    environment = ld.environments.Gymnasium(Clock)

    def until_over(key):
        def body(carry):
            new = environment.step(carry[0], carry[1], jnp.int32(1))
            return carry[0], new.state, new.terminated, carry[3] + new.reward

        _, state = environment.reset(key)
        return jax.lax.while_loop(lambda carry: ~carry[2], body, (jax.random.key(0), state, False, 0.0))[3]

    assert jax.jit(jax.vmap(until_over))(keys(9, 3)).tolist() == [3.0] * 3

    def objective(params):
        tau = ld.rollout(params, keys(10, 2), POLICY, ld.environments.Gymnasium("CartPole-v1"), horizon=4)
        return jnp.mean(ld.log_prob(params, POLICY, tau)), tau

    score, tau = jax.jit(jax.grad(objective, has_aux=True))(WEIGHTS)
    assert tau.observations.dtype == jnp.float32
    assert tau.rewards.dtype == jnp.float64
    assert jnp.abs(score[0]["bias"]).max() > 0


class Box(gymnasium.Env):
    """The reward is the action."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action) -> Any:
        return np.zeros(1, np.float32), float(action[0]), False, False, {}


def test_actions_outside_the_space_are_refused_or_clipped():
    wide = ld.FunctionPolicy(lambda params, _: ld.Normal(params + 7, jnp.ones(1)))
    squashed = ld.FunctionPolicy(lambda params, _: ld.distributions.TanhNormal(params + 7, jnp.ones(1), -2.0, 2.0))

    def taus(policy, **options):
        return draw(jnp.zeros(1), keys(1, 2), policy, ld.environments.Gymnasium(Box, **options), horizon=3)

    fails(r"received .* in row 0; use logderiv.distributions.TanhNormal", taus, wide)
    clipped = taus(wide, clip=True)
    assert (clipped.rewards == 2).all()
    assert (clipped.actions > 2).all()
    assert (abs(taus(squashed).rewards) <= 2).all()
    environment = ld.environments.Gymnasium(Clock)
    _, state = jax.vmap(environment.reset)(keys(2, 3))
    refused = r"Discrete\(2\), received -1 in row 1"
    fails(refused, jax.vmap(environment.step), keys(2, 3), state, jnp.array([0, -1, 1]))


class Pair(Box):
    """Observations of two parts of one shape, in another order than that of their names; the bounds of actions have digits of float64."""

    observation_space = gymnasium.spaces.Dict({name: Box.observation_space for name in ("speed", "place")})
    action_space = gymnasium.spaces.Box(-0.1, 0.1, (1,), np.float64)
    place = np.full(1, -0.5, np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return collections.OrderedDict(speed=np.ones(1, np.float32), place=self.place), {}

    def step(self, action) -> Any:
        assert self.action_space.contains(action)
        return self.reset()[0], float(action[0]), False, False, {}


def test_parts_of_an_observation_are_taken_by_name():
    observation, _ = ld.environments.Gymnasium(Pair, horizon=2).reset(jax.random.key(0))
    assert {name: float(x[0]) for name, x in observation.items()} == {"speed": 1.0, "place": -0.5}


@pytest.mark.parametrize(
    ("place", "message"),
    [(np.zeros((1, 1)), r"observation\['place'\]: expected shape \(1,\)"), (np.zeros(2), "expected shape")],
)
def test_an_observation_of_another_shape_is_refused(place, message, monkeypatch):
    monkeypatch.setattr(Pair, "place", place)
    fails(message, ld.environments.Gymnasium(Pair, horizon=2).reset, jax.random.key(0))


def test_numbers_that_would_be_cut_off_are_refused(monkeypatch):
    monkeypatch.setattr(Box, "observation_space", gymnasium.spaces.Box(-1, 1, (1,), np.int32))
    fails("expected whole numbers", ld.environments.Gymnasium(Box, horizon=2).reset, jax.random.key(0))


@pytest.mark.parametrize(
    ("dtype", "x64", "number", "message"),
    [
        (np.int64, False, 1, None),
        (np.int64, True, 2**33 + 5, None),
        (np.float32, False, 0.5, None),
        (np.int64, False, 2**33 + 5, "that int32 holds, received 8589934597; scale .*jax_enable_x64"),
        (np.uint8, True, -1, "that uint8 holds, received -1"),
        (np.int64, True, jnp.dtype(jnp.bfloat16).type(0.5), "received bfloat16"),
    ],
)
def test_arrays_wider_than_those_of_the_start_are_kept_or_refused(dtype, x64, number, message, monkeypatch):
    parts = {"speed": Box.observation_space, "place": gymnasium.spaces.Box(0, 1, (1,), dtype)}
    monkeypatch.setattr(Pair, "observation_space", gymnasium.spaces.Dict(parts))
    monkeypatch.setattr(Pair, "place", np.zeros(1, np.int8))
    with jax.enable_x64(x64):
        environment = ld.environments.Gymnasium(lambda: Pair(), horizon=2)
        arguments = jax.random.key(0), environment.reset(jax.random.key(0))[1], jnp.zeros(1)
        monkeypatch.setattr(Pair, "place", np.array([number]))
        if message is None:
            assert environment.step(*arguments).observation["place"].tolist() == [number]
        else:
            message = rf"observation\['place'\]: expected whole numbers .*{message}"
            fails(message, environment.step, *arguments)


def test_a_bound_with_more_digits_than_an_action_is_within_the_space():
    bound = ld.FunctionPolicy(
        lambda params, _: ld.distributions.TanhNormal(params + 9, jnp.ones(1, jnp.float32), -0.1, 0.1)
    )
    tau = draw(jnp.zeros(1, jnp.float32), keys(1, 2), bound, ld.environments.Gymnasium(Pair), horizon=3)
    assert (np.asarray(tau.actions, np.float32) == np.float32(0.1)).any()


def test_unmodified_environments_are_recognized_and_keep_their_adapter():
    environment = gymnasium.make("CartPole-v1")
    adapter = as_environment(environment)
    assert adapter == as_environment(environment)
    assert adapter.horizon == 500
    assert draw(WEIGHTS, keys(1, 2), POLICY, adapter, horizon=2).valid.all()
    del environment
    gc.collect()
    several: Any = gymnasium.make_vec("CartPole-v1", 2)
    for message, make, wrong in (
        ("function that makes one", as_environment, Clock()),
        ("expected one Gymnasium environment", as_environment, several),
        ("an id or a function", ld.environments.Gymnasium, 3),
        ("that makes one .*num_envs=2.*pass", ld.environments.Gymnasium, lambda: gymnasium.make_vec("CartPole-v1", 2)),
    ):
        with pytest.raises(TypeError, match=message):
            make(wrong)
    assert ld.environments.Gymnasium("CartPole-v1") == ld.environments.Gymnasium("CartPole-v1")


def test_environments_made_alike_are_one_to_the_compiler_and_share_what_the_host_holds():
    """Unless their options differ, or hold functions, which can only be compared by identity."""
    several = ({}, {}, {"sutton_barto_reward": True})
    first, again, other = (as_environment(gymnasium.make("CartPole-v1", **options)) for options in several)
    assert (first, hash(first)) == (again, hash(again))
    assert first != other
    assert static_text(first) != static_text(other)
    own = gymnasium.envs.registration.EnvSpec("Own-v0", entry_point=lambda: Clock())
    assert as_environment(gymnasium.make(own)) != as_environment(gymnasium.make(own))


def train(params, policy, world, batch, **options):
    options = {"estimator": LOO, "optimizer": optax.adam(0.1)} | options
    return ld.train(params, jax.random.key(0), policy, world, batch, **options)


@pytest.mark.slow
def test_training_through_the_callback_learns_and_repeats_itself(standard_promotion):
    first, again = (
        train(WEIGHTS, POLICY, ld.environments.Gymnasium("CartPole-v1"), ld.Episodes(16, horizon=60), num_updates=15)
        for _ in range(2)
    )
    assert first.metrics.mean_return[-3:].mean() > 1.4 * first.metrics.mean_return[:3].mean()
    jax.tree.map(np.testing.assert_array_equal, first.metrics, again.metrics)


def test_checkpoints_of_a_stream_are_refused_before_the_first_update(standard_promotion, tmp_path):
    """Its episodes live in this process: a run that was killed could not go on. Whole episodes start anew in each update."""
    pytest.importorskip("orbax.checkpoint")
    network = ld.MLPActorCritic(2, hidden=(4,))
    params = network.init(jax.random.key(0), jnp.zeros(4))

    def run(batch):
        options = {"estimator": ld.A2C(network.value), "num_updates": 1}
        options["checkpoints"] = ld.Checkpoints(tmp_path / "run", every=1)
        return train(params, network, gymnasium.make("CartPole-v1"), batch, **options)

    with pytest.raises(ValueError, match=r"cannot go on in another; draw whole episodes \(logderiv.Episodes\)"):
        run(ld.Steps(2, 2))
    assert not (tmp_path / "run").exists()
    assert run(ld.Episodes(2, horizon=5)).state.num_updates == 1
