"""Masks of actions on every adapter: which forms are taken, that they are kept, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv.environments import Gymnasium
from tests.mostly import mostly_slow
from tests.test_policies_spaces import SPACES, Any3, Own, spaces, trip

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


@pytest.mark.parametrize(
    "name", mostly_slow(["Discrete", "MultiDiscrete", "Tuple", "Dict", "MultiBinary"], ("MultiDiscrete", "Dict"))
)
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
