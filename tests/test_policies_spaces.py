"""A policy for every kind of action space on every adapter, and masks: from the outputs of a network to a step of the environment."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.environments import ActionSpace, Brax, Gymnasium, Gymnax, Jumanji
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
    assert isinstance(policy.apply(policy.init(jax.random.key(0), jnp.zeros(1)), jnp.zeros(1)), ld.TanhNormal)
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


MASKS = {
    "Discrete": np.array([1, 0, 1], np.int8),
    "MultiDiscrete": (np.array([1, 0, 0], np.int8), np.array([0, 0, 1, 1, 0], np.int8)),
    "Tuple": (
        np.array([0, 1], np.int8),
        {"z": (np.array([1, 0], np.int8), np.array([0, 1, 0], np.int8)), "a": np.array([[1, 0], [1, 1]], np.int8)},
    ),
    "Dict": {"steer": None, "gear": np.array([0, 0, 1, 0], np.int8)},
    "MultiBinary": np.array([[1, 0], [0, 1], [1, 1], [1, 1]], np.int8),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_gymnasium_are_kept(name, standard_promotion):
    environment = Gymnasium(lambda: Any3(SPACES[name], MASKS[name]), mask="legal")
    params, taus, policy = trip(environment)
    drawn = taus.actions
    allowed = {
        "Discrete": lambda: np.isin(drawn, (0, 2)),
        "MultiDiscrete": lambda: (drawn[..., 0] == 0) & np.isin(drawn[..., 1], (2, 3)),
        "Tuple": lambda: (
            (drawn[0] == 1) & (np.asarray(drawn[1]["z"]) == np.array([0, 1])).all(-1) & (drawn[1]["a"][..., 0] == 0)
        ),
        "Dict": lambda: drawn["gear"] == 2,
        "MultiBinary": lambda: (
            (drawn[..., 0] == 0) & (drawn[..., 1] == 1) & (np.ptp(drawn[..., 2:], (0, 1)) == 1).all()
        ),
    }[name]
    assert allowed().all()
    one = jax.tree.map(lambda x: x[0, 0], taus)
    forbidden = {
        "Discrete": 1,
        "MultiDiscrete": jnp.array([0, 1]),
        "Tuple": (1, {"z": jnp.array([0, 1]), "a": jnp.array([1, 1])}),
        "Dict": {"steer": jnp.zeros(1, jnp.float32), "gear": 3},
        "MultiBinary": jnp.array([0, 0, 1, 1]),
    }[name]
    law = policy.apply(params, one.observations)
    assert law.log_prob(forbidden) == -jnp.inf
    assert np.isfinite(law.log_prob(one.actions))
    blind = ld.MLP(policy.outputs, policy.hidden, policy.head).apply(params, one.observations)  # the wrong twin
    assert np.isfinite(blind.log_prob(forbidden))


@pytest.mark.parametrize("name", ["Discrete", "MultiDiscrete", "Tuple", "Dict", "MultiBinary"])
def test_masks_have_the_form_that_sample_takes_but_for_binary_choices(name):
    """Of `MultiBinary` that form is 0, 1 or 2 for either: shape `(4,)`, which is refused here."""
    space = SPACES[name]
    own = {"Tuple": (MASKS["Tuple"][0], {"z": MASKS["Tuple"][1]["z"], "a": np.array([0, 2], np.int8)})}
    own |= {"MultiBinary": np.array([0, 1, 2, 2], np.int8)}
    assert space.contains(space.sample(mask=own.get(name, MASKS[name])))
    if name not in own:
        return
    with pytest.raises(AssertionError, match="expected shape of the mask"):
        space.sample(mask=MASKS[name])
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"expected 0 and 1|expected shape \(4, 2\)"):
        trip(Gymnasium(lambda: Any3(space, own[name]), mask="legal"))


def test_masks_that_do_not_fit_are_refused(standard_promotion):
    def fails(message, space, masks, name="legal", stuck=None):
        environment = Gymnasium(lambda: Any3(space, masks, stuck), mask=name)
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            trip(environment)

    three, two = SPACES["Discrete"], SPACES["MultiDiscrete"]
    fails(
        r"info\['legal'\] after step 0 of row 0: expected shape \(3,\) for 3 actions, received \(4,\)",
        three,
        np.ones(4, np.int8),
    )
    fails("expected booleans, received float64", three, np.ones(3))
    fails(r"info\['legal'\] after step 0 of row 0: expected 0 and 1, received \[2 2 2\]", three, np.full(3, 2, np.int8))
    gear = {"steer": None, "gear": np.array([0, 1, 3, 1], np.uint8)}
    fails(
        r"info\['legal'\] after step 0 of row 0\['gear'\]: expected 0 and 1, received \[0 1 3 1\]", SPACES["Dict"], gear
    )
    fails("after step 0 .* received info with", three, np.ones(3, np.int8), name="other")
    fails("after step 1 of row 0: a mask allows nothing", three, np.ones(3, np.int8), stuck=1)
    fails("expected shape .*received", two, (np.ones(3, bool), np.ones(4, bool)))
    fails("expected a mask for each part", SPACES["Dict"], {"gear": np.ones(4, bool)})
    trip(Gymnasium(lambda: Any3(three, np.ones(3, np.int8), 3), mask="legal"))  # nothing is allowed after the end
    with pytest.raises(ValueError, match=r"action_mask: expected shape \(3,\).*received \(2,\)"):
        ld.policy_for(Own(three, jnp.ones(2, bool)))
    with pytest.raises(TypeError, match="action_mask: expected booleans, received float32"):
        ld.policy_for(Own(three, jnp.ones(3, jnp.float32)))
    masked = ld.policy_for(Own(three, jnp.ones(3, bool)))
    with pytest.raises(ValueError, match="observation: expected the mask of the actions, 'action_mask'"):
        masked.apply(masked.init(jax.random.key(0), jnp.zeros(3)), jnp.zeros(3))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("make", [ld.policy_for, lambda _: ld.MLP(3, (4,), mask="action_mask")])
def test_masks_in_observations_may_be_of_eight_bits(make, dtype, standard_promotion):
    seen = {"observation": jnp.array([1.0, 0, 0]), "action_mask": jnp.array([1, 0, 1], dtype)}
    as_booleans = seen | {"action_mask": jnp.array([True, False, True])}
    policy = make(Own(SPACES["Discrete"], seen["action_mask"]))
    params = policy.init(jax.random.key(0), seen)
    logits = policy.apply(params, seen).logits
    np.testing.assert_array_equal(logits, policy.apply(params, as_booleans).logits)
    np.testing.assert_array_equal(logits, jax.jit(policy.apply)(params, seen).logits)
    np.testing.assert_array_equal(np.isfinite(logits), [True, False, True])
    for wrong in (np.array([1, 0, 2], dtype), jnp.array([1, 0, 2], dtype)):
        with pytest.raises(ValueError, match=r"action_mask: expected 0 and 1, received \[1 0 2\]"):
            policy.apply(params, seen | {"action_mask": wrong})
    with pytest.raises(TypeError, match="mask: expected booleans, received int32"):
        policy.apply(params, seen | {"action_mask": jnp.array([1, 0, 1], jnp.int32)})


def test_a_mask_in_the_observation_of_gymnasium(standard_promotion):
    class Within(Any3):
        observation_space = spaces.Dict({"x": Any3.observation_space, "action_mask": spaces.MultiBinary(3)})

        def _seen(self):
            return {"x": super()._seen(), "action_mask": np.array([1, 0, 1], np.int8)}

    _, taus, policy = trip(Gymnasium(lambda: Within(SPACES["Discrete"])))
    assert policy.mask == "action_mask"
    assert taus.observations["action_mask"].dtype == np.int8
    assert set(np.unique(taus.actions)) == {0, 2}


def test_a_mask_that_allows_nothing_under_jit_leaves_the_batch_out(standard_promotion):
    """As everywhere where a log-probability has no number: it is NaN, and training says so."""
    stuck = Own(SPACES["MultiDiscrete"], jnp.zeros((2, 5), bool))
    policy = ld.policy_for(stuck, hidden=())
    params = policy.init(jax.random.key(0), stuck.reset(None)[0])
    taus = jax.jit(lambda: ld.rollout(params, jax.random.key(1), policy, stuck))()
    assert np.isnan(taus.behavior_log_probs).all()
    options = {"estimator": ld.ScoreFunction(), "optimizer": optax.sgd(0.1), "num_updates": 1}
    with pytest.warns(UserWarning, match="1 gradients were not finite"):
        ld.train(params, jax.random.key(1), policy, stuck, ld.Episodes(2), **options)


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


def test_a_policy_of_parts_learns_under_its_mask(standard_promotion):
    """Means of the parts: at most 2 + 1 a step, where gear 3 is forbidden; the entropy of all parts is what a bonus sees."""
    mask = {"gear": jnp.array([True, True, True, False]), "steer": None}
    space = spaces.Dict({"steer": spaces.Box(-1, 1, (1,), np.float32), "gear": spaces.Discrete(4)})
    environment = Own(space, mask)
    policy = ld.policy_for(environment, hidden=())
    params = policy.init(jax.random.key(0), environment.reset(None)[0])
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
    options = {"estimator": estimator, "optimizer": optax.adam(0.1), "num_updates": 40}
    returns = ld.train(params, jax.random.key(1), policy, environment, ld.Episodes(32), **options).metrics.mean_return
    assert returns[0] < 4.5
    assert 7 < returns[-1] <= 9


def test_a_mask_that_is_asked_for_must_be_there():
    """A name that the observation has not would give a policy without a mask, silently."""
    masks = np.array([1, 0, 1], np.int8)
    adapter = Gymnasium(lambda: Any3(SPACES["Discrete"], masks=masks), horizon=3, mask="legal")
    assert ld.policy_for(adapter).mask == "action_mask"
    for name in ("legal", "acton_mask"):
        with pytest.raises(ValueError, match=f"mask.*'{name}'.*'action_mask'"):
            ld.policy_for(adapter, mask=name)
    assert ld.policy_for(adapter, mask=None).mask is None
