"""A policy for every kind of action space on every adapter: from the outputs of a network to a step of the environment."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.environments import ActionSpace, Brax, Gymnasium, Gymnax, Jumanji
from logderiv.environments.gymnasium import steppers
from tests import examples
from tests.test_environments_suites import suite

gymnasium = pytest.importorskip("gymnasium")
spaces = gymnasium.spaces

SPACES = {
    "Discrete": spaces.Discrete(3),
    "Discrete from a start": spaces.Discrete(3, start=-1),
    "MultiDiscrete": spaces.MultiDiscrete([3, 5]),
    "MultiDiscrete from a start": spaces.MultiDiscrete([2, 3], start=[4, -1]),
    "MultiDiscrete in rows": spaces.MultiDiscrete([[2, 3], [4, 2]]),
    "MultiBinary": spaces.MultiBinary(4),
    "Box": spaces.Box(np.array([-2, 0.5], np.float32), np.array([2, 0.75], np.float32)),
    "Box in rows": spaces.Box(-1, 1, (2, 3), np.float32),
    "Box without bounds": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "Dict": spaces.Dict({"steer": spaces.Box(-1, 1, (1,), np.float32), "gear": spaces.Discrete(4, start=1)}),
    "Tuple": spaces.Tuple(
        (spaces.Discrete(2), spaces.Dict({"z": spaces.MultiDiscrete([2, 3]), "a": spaces.MultiBinary(2)}))
    ),
}
NUM_OUTPUTS = dict(zip(SPACES, (3, 3, 8, 5, 11, 8, 4, 12, 4, 6, 11), strict=True))


class Any3(gymnasium.Env):
    """Three steps; every action must be one of the space. With `masks` its info has a mask, with `stuck` one that allows nothing at step 1."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, space, masks=None, stuck=None):
        self.action_space, self.masks, self.stuck, self.taken = space, masks, stuck, []

    def reset(self, *, seed: Any = None, options: Any = None):
        self.time = 0
        return self._seen(), self._info()

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is none of {self.action_space}"
        self.time += 1
        return self._seen(), 1.0, self.time >= 3, False, self._info()

    def _seen(self) -> Any:
        return np.full(2, self.time / 3, np.float32)

    def _info(self):
        if self.masks is None:
            return {}
        return {"legal": jax.tree.map(np.zeros_like, self.masks) if self.time == self.stuck else self.masks}


def trip(environment, *, steps=3, dtype=jnp.float32, **options):
    """Draw, log-probability, entropy and step, jitted and mapped; the trajectories and the policy."""
    policy = ld.policy_for(environment, hidden=(4,), **options)
    keys = jax.random.split(jax.random.key(1), 5)

    @jax.jit
    def go(keys):
        first = ld.environments.as_environment(environment).reset(jax.random.key(0))[0]
        params = policy.init(jax.random.key(2), first)
        params = jax.tree.map(lambda x: x.astype(dtype), params)
        taus = ld.rollout(params, keys, policy, environment, horizon=steps)
        entropy = policy.apply(params, first).entropy()
        return (
            params,
            taus,
            entropy,
            ld.log_factors(params, policy, taus),
            jax.grad(ld.log_prob)(params, policy, jax.tree.map(lambda x: x[0], taus)),
        )

    params, taus, entropy, logs, score = go(keys)
    np.testing.assert_allclose(logs, taus.behavior_log_probs, rtol=1e-5, atol=1e-5)
    assert entropy.shape == ()
    assert np.isfinite(entropy)
    assert np.isfinite(logs).all()
    assert all(np.isfinite(x.astype(np.float32)).all() for x in jax.tree.leaves(score))
    assert any(np.any(x != 0) for x in jax.tree.leaves(score))
    return params, taus, policy


@pytest.mark.parametrize("name", SPACES)
def test_every_space_of_gymnasium(name, standard_promotion):
    _, taus, policy = trip(Gymnasium(lambda: Any3(SPACES[name])))
    assert taus.valid.all()
    assert policy.outputs == NUM_OUTPUTS[name]
    if name == "MultiDiscrete":
        assert taus.actions.shape == (5, 3, 2)
        assert taus.actions[..., 0].max() <= 2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_parameters_of_any_dtype(dtype, standard_promotion):
    trip(Gymnasium(lambda: Any3(SPACES["Tuple"])), dtype=dtype)


def test_one_row_of_scalar_observations_is_that_of_a_batch():
    environment, keys = Gymnasium("FrozenLake-v1", horizon=4), jax.random.split(jax.random.key(12), 1)
    one, batch = (ld.rollout(jnp.zeros((16, 4)), key, ld.tabular_softmax, environment) for key in (keys[0], keys))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[0]), one, batch)
    assert one.observations.shape == (4,)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_a_bound_in_the_dtype_of_the_action_is_within_the_space_and_the_next_number_is_not(dtype):
    box = spaces.Box(-0.3, 0.3, (1,), np.float32)
    bound = np.asarray(jnp.full((1, 1), 0.3, dtype))
    assert box.contains(steppers.checked(box, bound, False)[0])
    with pytest.raises(ValueError, match="in row 0"):
        steppers.checked(box, np.asarray(jnp.nextafter(bound, jnp.ones_like(bound))), False)


class Own:
    """An environment of a user's own: pays 1 for a low gear and a high steer, as far as the mask allows."""

    horizon = 3

    def __init__(self, space, mask=None):
        self.action_space, self.mask = space, mask

    def reset(self, key, params=None):
        return self._seen(jnp.int32(0)), jnp.int32(0)

    def step(self, key, state, action, params=None):
        leaves = jax.tree.leaves(action)
        reward = sum(jnp.mean(x.astype(jnp.float32)) for x in leaves)
        return self._seen(state + 1), state + 1, reward, state + 1 >= 3, False

    def _seen(self, state):
        seen = jax.nn.one_hot(state, 3, dtype=jnp.float32)
        return seen if self.mask is None else {"observation": seen, "action_mask": self.mask}


@pytest.mark.parametrize("name", [name for name in SPACES if "start" not in name and name != "Dict"])
def test_own_environments_with_spaces_of_gymnasium(name, standard_promotion):
    _, taus, _ = trip(Own(SPACES[name]))
    assert taus.valid.all()


def test_spaces_by_hand_take_lists_arrays_and_integers_of_any_kind():
    make: Any = ActionSpace
    one, two, box = make((), True, 3, ""), make((2,), True, (3, 5), ""), make((2,), False, None, "", (-1.0, -2.0), 1.0)
    for number in (np.int64(3), jnp.int32(3), np.array(3)):
        assert make([], True, number, "") == one
    for shape, sizes in ((2, [3, 5]), ([2], np.array([3, 5])), (np.int64(2), jnp.array([3, 5]))):
        assert make(shape, True, sizes, "") == two
        assert hash(make(shape, True, sizes, "")) == hash(two)
    for low in ([-1, -2], np.array([-1.0, -2.0]), jnp.array([-1, -2])):
        assert make(2, False, None, "", low, np.float32(1)) == box
    for number in (-1, np.float32(-1), jnp.array(-1.0)):
        assert make((), False, None, "", number, number).low == -1.0
    assert make((2, 2), False, None, "", [0, 1], [0, 1, 0.5, np.inf]).low == (0.0, 1.0)
    for message, *fields in (
        (r"num_values: expected 2 numbers .* shape \(2,\), received 3", (2,), True, 3, ""),
        (r"num_values: expected 2 numbers .*received \(3,\)", (2,), True, (3,), ""),
        (r"num_values: expected one number .*received \[3, 5\]", (), True, [3, 5], ""),
        ("num_values: expected a whole number >= 1, received 2.5", (), True, 2.5, ""),
        ("shape: expected a whole number >= 0, received -1", (-1,), True, None, ""),
        (r"low: expected one number, .* shape \(2,\), received 3", (2,), False, None, "", [0, 0, 0], 1),
        ("high: expected one number, .*received 3", (2,), False, None, "", 0, [1, 1, 1]),
        (r"low: expected one number for an action of shape \(\), received 1 in a list", (), False, None, "", [-1.0], 1),
        (
            r"high: expected one number for an action of shape \(\), received 1 in a list",
            (),
            False,
            None,
            "",
            -1,
            [1.0],
        ),
        (r"low: expected at most high = -1.0, received 1.0; are the two swapped", (2,), False, None, "", 1, -1),
        (r"low: expected at most high = \[1.0, 0.0\], received 0.5", (2,), False, None, "", 0.5, [1, 0]),
        (r"low: expected at most high = 1.0, received \[0.0, 2.0\]", (2, 2), False, None, "", [0, 2], 1),
        (
            r"low: .* high = \[0.0, 1.0\], .*\[\[0.0, 1.0\], \[0.5, 0.0\]\]",
            (2, 2),
            False,
            None,
            "",
            [0, 1, 0.5, 0],
            [0, 1],
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make(*fields)


def test_suites_in_jax(standard_promotion):
    """Spaces of gymnax with parts, specs of jumanji with several choices, and brax; the environments are stubs around them."""
    own, specs = suite("gymnax.environments.spaces"), suite("jumanji.specs")
    space = own.Dict({"gear": own.Discrete(3), "steer": own.Tuple((own.Box(-2.0, 1.0, (2,)), own.Discrete(2)))})
    fake = examples.gymnax().environment.environment
    fake.action_space = lambda params: space
    fake.step_env = lambda key, t, a, params: (
        jnp.full(1, t.astype(float)),
        t + 1,
        a["gear"] + a["steer"][0].sum() + a["steer"][1],
        t + 1 >= 3,
        {},
    )
    _, taus, policy = trip(Gymnax(fake, horizon=3))
    assert policy.outputs == 3 + 4 + 2
    assert taus.actions["steer"][0].min() >= -2
    assert taus.actions["steer"][0].max() <= 1

    timestep = examples.Timestep
    several = examples.jumanji().environment.environment
    several.action_spec = specs.MultiDiscreteArray(jnp.array([3, 2]))
    several.step = lambda t, a: (t + 1, timestep(t + 1, a.sum().astype(float), (t + 1 < 3).astype(float)))
    _, taus, policy = trip(Jumanji(several))
    assert taus.actions.shape == (5, 3, 2)
    assert repr(policy.head) == "<MultiDiscreteArray of shape (2,): 2 categorical choices, 5 logits>"
    _, taus, policy = trip(examples.brax().environment)
    assert isinstance(
        policy.apply(policy.init(jax.random.key(0), jnp.zeros(1)), jnp.zeros(1)), ld.distributions.TanhNormal
    )
    assert abs(taus.actions).max() <= 1
    assert Brax(examples.brax().environment.environment).action_space.high == 1


def test_real_environments_of_suites_are_recognized_and_masked(as_shipped):
    make = suite("jumanji").make
    environment = make("TSP-v1")
    policy = ld.policy_for(environment, hidden=())
    assert policy.mask == "action_mask"
    with pytest.raises(ValueError, match="over combinations needs a Categorical"):
        ld.policy_for(make("Minesweeper-v0"))
    assert ld.policy_for(make("JobShop-v0")).outputs == 10 * 21


def test_craftax_gets_one_choice(as_shipped):
    craftax = suite("craftax.craftax_env")
    assert (
        ld.policy_for(craftax.make_craftax_env_from_name("Craftax-Classic-Symbolic-v1", auto_reset=True)).outputs == 17
    )


def test_squashing_and_what_is_not_supported():
    half, integer = spaces.Box(0, np.inf, (2,), np.float32), spaces.Box(0, 9, (2,), np.int32)
    cases: Any = (
        (ValueError, r"finite bounds .* received Box of shape \(2,\) from 0.0 to inf; pass squash=False", half, {}),
        (ValueError, "finite bounds", SPACES["Box without bounds"], {"squash": True}),
        (TypeError, r"received Box of shape \(2,\) of whole numbers; use MultiDiscrete", integer, {}),
        (TypeError, "expected Discrete, MultiDiscrete.*received Text", spaces.Text(3), {}),
        (
            TypeError,
            r"expected Discrete, .*received Dict\('a': Sequence",
            spaces.Dict({"a": spaces.Sequence(half)}),
            {},
        ),
        (ValueError, "count from 0, received start=1", SPACES["Dict"], {}),
        (TypeError, "received Own", None, {}),
    )
    for error, message, space, options in cases:
        with pytest.raises(error, match=message):
            ld.policy_for(Own(space), **options)
    for space in (half, SPACES["Box"]):
        policy = ld.policy_for(Own(space), hidden=(), squash=False)
        assert isinstance(policy.apply(policy.init(jax.random.key(0), jnp.zeros(3)), jnp.zeros(3)), ld.Normal)
    critic = ld.policy_for(Own(SPACES["Discrete"]), value=True)
    assert isinstance(critic, ld.MLPActorCritic)
    assert critic.value(critic.init(jax.random.key(0), jnp.zeros(3)), jnp.zeros(3)).shape == ()


def test_parts_that_cannot_be_meant_are_refused_at_trace_time():
    two, box = ActionSpace((), True, 2, "2 actions"), ActionSpace((3,), False, None, "Box of shape (3,)")
    environment: Any = Own({"a": two, "b": box})
    joint, choice, real = ld.distributions.Joint, ld.Categorical(jnp.zeros(2)), ld.Normal(jnp.zeros(3), jnp.ones(3))

    def draw(distribution):
        policy = ld.FunctionPolicy(lambda params, _: distribution)
        return jax.eval_shape(lambda key: ld.rollout(jnp.zeros(()), key, policy, environment), jax.random.key(0))

    draw(joint({"a": choice, "b": real}))
    for error, message, distribution in (
        (ValueError, r"takes .*'a'\] 2 actions.*Joint", choice),
        (
            ValueError,
            r"actions\['a'\]: the policy chooses among 3",
            joint({"a": ld.Categorical(jnp.zeros(3)), "b": real}),
        ),
        (
            TypeError,
            r"actions\['a'\]: .*whole numbers",
            joint({"a": ld.Normal(jnp.zeros(()), jnp.ones(())), "b": real}),
        ),
        (
            ValueError,
            r"actions\['b'\]: .*shape \(3,\); the policy drew \(2,\)",
            joint({"a": choice, "b": ld.Normal(jnp.zeros(2), jnp.ones(2))}),
        ),
    ):
        with pytest.raises(error, match=message):
            draw(distribution)
    environment.action_space = SPACES["MultiDiscrete"]
    draw(joint(ld.Categorical(jnp.zeros((2, 5)))))
    with pytest.raises(ValueError, match="chooses among 6"):
        draw(joint(ld.Categorical(jnp.zeros((2, 6)))))
