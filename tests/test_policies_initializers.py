"""Where the weights of perceptrons start: their scales, orthogonality, the same for each seed of a batch."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

import logderiv as ld

NETWORK = ld.MLPActorCritic(3, hidden=(8, 4), initializer="orthogonal")


def scale_if_orthogonal(weight):
    """c where WᵀW or WWᵀ, whichever is smaller, is c² times the unit matrix; NaN elsewhere."""
    weight = np.asarray(weight)
    gram = weight.T @ weight if weight.shape[0] >= weight.shape[1] else weight @ weight.T
    is_multiple = np.allclose(gram, gram[0, 0] * np.eye(len(gram)), rtol=0, atol=1e-12)
    return math.sqrt(gram[0, 0]) if is_multiple else math.nan


def equations(jaxpr, name):
    """The equations of a primitive, at any depth."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == name:
            yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner, name)


@pytest.mark.parametrize("inputs", [2, 11])
def test_orthogonal_weights_have_the_scales_of_ppo(inputs):
    params = NETWORK.init(jax.random.key(0), jnp.zeros(inputs))
    scales = {name: [scale_if_orthogonal(layer["weight"]) for layer in layers] for name, layers in params.items()}
    np.testing.assert_allclose(scales["actor"], [math.sqrt(2), math.sqrt(2), 0.01], rtol=1e-12)
    np.testing.assert_allclose(scales["critic"], [math.sqrt(2), math.sqrt(2), 1.0], rtol=1e-12)
    assert all(not layer["bias"].any() for layers in params.values() for layer in layers)
    normal = ld.MLPActorCritic(3, hidden=(8, 4)).init(jax.random.key(0), jnp.zeros(inputs))
    assert np.isnan(scale_if_orthogonal(normal["actor"][0]["weight"]))


def test_normal_weights_have_variance_one_over_the_inputs():
    layers = ld.MLP(100, hidden=(400,)).init(jax.random.key(0), jnp.zeros(200))
    errors = [
        4 / math.sqrt(2 * layer["weight"].size) for layer in layers
    ]  # four standard errors of a deviation, relative
    for layer, scale, error in zip(layers, (1, 0.01), errors, strict=True):
        assert np.std(layer["weight"]) * math.sqrt(len(layer["weight"])) / scale == pytest.approx(1, abs=error)


def test_seeds_side_by_side_start_as_one_by_one():
    keys = jax.random.split(jax.random.key(1), 3)
    batch = jax.jit(jax.vmap(lambda key: NETWORK.init(key, jnp.zeros(5))))(keys)
    each = [jax.jit(lambda key: NETWORK.init(key, jnp.zeros(5)))(key) for key in keys]
    jax.tree.map(lambda x, *ys: np.testing.assert_allclose(x, np.stack(ys), rtol=0, atol=1e-12), batch, *each)
    assert np.abs(batch["actor"][0]["weight"][0] - batch["actor"][0]["weight"][1]).max() > 0.1


def test_one_factorization_is_taken_after_the_other():
    """Two batches of them at once may never end. The wrong twin is the initializer of JAX, which takes the seeds side by side."""
    keys = jax.random.split(jax.random.key(1), 3)
    at_once = jax.nn.initializers.orthogonal()
    for init, rank in ((lambda key: NETWORK.init(key, jnp.zeros(5)), 2), (lambda key: at_once(key, (5, 8)), 3)):
        operands: list[Any] = [
            eqn.invars[0].aval for eqn in equations(jax.make_jaxpr(jax.vmap(init))(keys).jaxpr, "qr")
        ]
        assert operands
        assert {operand.ndim for operand in operands} == {rank}


def test_dtypes_are_those_of_the_call():
    NETWORK.init(jax.random.key(0), jnp.zeros(5))
    with jax.enable_x64(False):
        params = NETWORK.init(jax.random.key(0), jnp.zeros(5))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_no_inputs_and_unknown_names():
    layers = ld.MLP(2, hidden=(3,), initializer="orthogonal").init(jax.random.key(0), jnp.zeros(0))
    assert layers[0]["weight"].shape == (0, 3)
    for make in (ld.MLP, ld.MLPActorCritic):
        with pytest.raises(ValueError, match=r"initializer: expected 'lecun_normal' or 'orthogonal', received 'he'"):
            make(2, initializer="he")


class Choices:
    """An environment of three choices."""

    action_space = ld.environments.ActionSpace((), True, 3, "three choices")

    def reset(self, key, params=None):
        return jnp.zeros(4), jnp.zeros(())

    def step(self, key, state, action, params=None):
        raise NotImplementedError


def test_a_policy_for_an_environment_takes_it():
    policies = [ld.policy_for(Choices(), value=value, initializer="orthogonal") for value in (False, True)]
    assert [policy.initializer for policy in policies] == ["orthogonal"] * 2
    assert policies[1].actor.initializer == "orthogonal"
