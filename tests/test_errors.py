"""Bad input is answered with what was expected, what came and the likely fix."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import pytest

import logderiv as ld
from tests.worlds import batch, two_states

TAU = batch(jax.random.key(0), (5,))
TAUS = batch(jax.random.key(0), (3, 5))
MLP = ld.MLP(2, hidden=(4,))
PARAMS = MLP.init(jax.random.key(0), jnp.zeros(4))
LOO = ld.score_function(baseline=ld.baseline_leave_one_out())
BLIND = jnp.zeros(2)


def _log_prob(policy: Any = MLP, tau=TAU, params=PARAMS):
    return ld.log_prob(params, policy, tau)


def _rollout(**options):
    policy, environment = (
        options.pop("policy", ld.shared_softmax),
        options.pop("environment", ld.short_corridor()),
    )
    return ld.rollout(BLIND, options.pop("key", jax.random.key(0)), policy, environment, **options)


def _train(**options):
    options = {
        "estimator": LOO,
        "optimizer": optax.sgd(0.1),
        "num_updates": 1,
        "num_trajectories": 2,
        "horizon": 2,
    } | options
    return ld.train(options.pop("params", BLIND), jax.random.key(0), ld.shared_softmax, ld.short_corridor(), **options)


class _Growing:
    def reset(self, key, params=None):
        return jnp.zeros(2), jnp.zeros(2)

    def step(self, key, state, action, params=None):
        return jnp.zeros(3), state, 1.0, jnp.array(False), jnp.array(False)


class _Rounded:
    def reset(self, key, params=None):
        return jnp.zeros(3), {"speed": jnp.zeros(2, int)}

    def step(self, key, state, action, params=None):
        return jnp.zeros(3), {"speed": jnp.full(2, 0.5)}, 1.0, jnp.array(False), jnp.array(False)


class _Restructured(_Growing):
    def step(self, key, state, action, params=None):
        return jnp.zeros(2), (state, state), 1.0, jnp.array(False), jnp.array(False)


CASES = {
    "rewards of another length": (
        lambda: _log_prob(tau=TAU._replace(rewards=jnp.ones(4))),
        ValueError,
        r"trajectory\.rewards.*\(5,\).*\(4,\)",
    ),
    "observations of another length": (
        lambda: _log_prob(tau=TAU._replace(observations={"x": jnp.ones((6, 4))})),
        ValueError,
        r"observations\['x'\].*\(5,\).*\(6, 4\)",
    ),
    "a float mask": (
        lambda: _log_prob(tau=TAU._replace(valid=jnp.ones(5))),
        TypeError,
        r"boolean mask.*float64.*astype\(bool\)",
    ),
    "no steps": (
        lambda: _log_prob(tau=jax.tree.map(lambda x: x[:0], TAU)),
        ValueError,
        "empty trajectory.*T = 0",
    ),
    "one step without a time axis": (
        lambda: _log_prob(tau=jax.tree.map(lambda x: x[0], TAU)),
        ValueError,
        r"\(\*batch, T\)",
    ),
    "float actions": (
        lambda: _log_prob(tau=TAU._replace(actions=jnp.ones(5))),
        TypeError,
        "expected integers.*float64.*int32",
    ),
    "an action out of range": (
        lambda: _log_prob(tau=TAU._replace(actions=TAU.actions.at[3].set(2))),
        ValueError,
        r"0 \.\. 1, received 2 at index \(3,\)",
    ),
    "a negative action": (
        lambda: _log_prob(tau=TAU._replace(actions=TAU.actions.at[0].set(-1))),
        ValueError,
        "received -1",
    ),
    "integer parameters, grad_prob": (
        lambda: ld.grad_prob({"w": jnp.zeros((4, 2), int)}, lambda p, x: ld.Categorical(x @ p["w"]), TAU),
        TypeError,
        r"params\['w'\].*int64.*astype",
    ),
    "integer parameters, compare": (
        lambda: ld.compare(jnp.zeros(2, int), ld.shared_softmax, TAU),
        TypeError,
        "floating-point",
    ),
    "integer parameters, estimate": (
        lambda: LOO.estimate(jnp.zeros(2, int), (), ld.shared_softmax, TAUS),
        TypeError,
        "floating-point",
    ),
    "integer parameters, train": (lambda: _train(params=jnp.zeros(2, int)), TypeError, "floating-point"),
    "a policy of the wrong type": (lambda: _log_prob(policy=3), TypeError, "expected a policy.*received int"),
    "a policy that returns logits": (
        lambda: _log_prob(policy=lambda p, x: x),
        TypeError,
        r"log_prob method.*Categorical",
    ),
    "a batch-shaped log-probability": (
        lambda: _log_prob(policy=lambda p, x: ld.Categorical(jnp.zeros((3, 2)))),
        ValueError,
        r"scalar, received shape \(3,\).*batch.*event axis",
    ),
    "an unsummed event axis": (
        lambda: _log_prob(policy=lambda p, x: ld.Bernoulli(x), tau=TAU._replace(actions=jnp.ones((5, 4), int))),
        ValueError,
        r"scalar, received shape \(4,\)",
    ),
    "log_factors of the wrong shape": (
        lambda: _log_prob(policy=ld.FunctionPolicy(MLP.apply, log_factors=lambda p, tau: jnp.zeros((5, 2)))),
        ValueError,
        r"policy\.log_factors.*\(5,\).*\(5, 2\)",
    ),
    "a block of no rows": (
        lambda: ld.log_factors(PARAMS, MLP, TAU, rows=0),
        ValueError,
        "at least 1 row, received 0",
    ),
    "a black box asked for densities": (
        lambda: ld.log_prob(BLIND, ld.shared_softmax, TAU, environment=_Growing()),
        ValueError,
        "known densities.*_Growing",
    ),
    "grad_prob of a batch": (
        lambda: ld.grad_prob(PARAMS, MLP, TAUS),
        ValueError,
        r"one trajectory.*\(3,\).*vmap",
    ),
    "compare of a batch": (lambda: ld.compare(PARAMS, MLP, TAUS), ValueError, "one trajectory"),
    "horizon below one": (lambda: _rollout(horizon=0), ValueError, "horizon.*>= 1, received 0"),
    "no horizon": (lambda: _rollout(environment=two_states()), ValueError, "pass horizon="),
    "a float as key": (lambda: _rollout(key=jnp.zeros(2), horizon=2), TypeError, r"jax\.random\.key"),
    "not an environment": (
        lambda: _rollout(environment=4, horizon=2),
        TypeError,
        "reset.*step.*received int",
    ),
    "step and reset disagree in shape": (
        lambda: _rollout(environment=_Growing(), horizon=2),
        ValueError,
        r"shape \(2,\) after reset and \(3,\)",
    ),
    "whole numbers after reset, real ones after step": (
        lambda: _rollout(environment=_Rounded(), horizon=2),
        TypeError,
        r"\['speed'\].*int64 after reset and float64 after step.*cut off",
    ),
    "step and reset disagree in structure": (
        lambda: _rollout(environment=_Restructured(), horizon=2),
        ValueError,
        "structure",
    ),
    "leave-one-out with one trajectory": (
        lambda: LOO.estimate(BLIND, (), ld.shared_softmax, jax.tree.map(lambda x: x[:1], TAUS)),
        ValueError,
        "at least 2.*received 1",
    ),
    "leave-one-out with one trajectory, train": (
        lambda: _train(num_trajectories=1),
        ValueError,
        "at least 2.*received 1",
    ),
    "no updates": (lambda: _train(num_updates=0), ValueError, "num_updates"),
    "estimate of one trajectory": (
        lambda: LOO.estimate(PARAMS, (), MLP, TAU),
        ValueError,
        r"batch of shape \(N, T\)",
    ),
    "gamma above one": (lambda: ld.score_function(discount=1.1), ValueError, r"\[0, 1\], received 1\.1"),
    "leave-one-out per nothing": (
        lambda: ld.baseline_leave_one_out(per=cast("Any", "batch")),
        ValueError,
        "'step' or 'trajectory'",
    ),
    "a layer of no width": (lambda: ld.MLP(0), ValueError, "outputs"),
    "weights that would broadcast": (
        lambda: ld.score_surrogate(jnp.zeros((3, 5)), jnp.zeros((3, 1))),
        ValueError,
        r"\(3, 5\) and \(3, 1\)",
    ),
    "an MDP with tables that disagree": (
        lambda: ld.TabularMDP(jnp.ones(2) / 2, jnp.ones((3, 2, 3)) / 3, jnp.zeros((3, 2)), jnp.zeros(3)),
        ValueError,
        r"initial.*\(3,\).*\(2,\)",
    ),
    "an MDP that is not normalized": (
        lambda: ld.TabularMDP(jnp.ones(2) / 2, jnp.ones((2, 1, 2)), jnp.zeros((2, 1)), jnp.zeros(2)),
        ValueError,
        "transition.*sum to 1.*off by 1",
    ),
    "an MDP that starts at its end": (
        lambda: ld.TabularMDP(
            jnp.array([0.5, 0.5]), jnp.ones((2, 1, 2)) / 2, jnp.zeros((2, 1)), jnp.array([False, True])
        ),
        ValueError,
        "no mass on terminal",
    ),
    "too many trajectories to list": (
        lambda: ld.exact.enumerate_trajectories(two_states(), horizon=30),
        ValueError,
        r"trajectories of 30 steps.*value",
    ),
    "enumerating no steps": (
        lambda: ld.exact.enumerate_trajectories(two_states(), horizon=0),
        ValueError,
        "horizon",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_input_is_named(case):
    call, error, message = case
    with pytest.raises(error, match=message):
        call()


def test_jax_itself_refuses_integer_parameters_under_grad():
    with pytest.raises(TypeError, match="int"):
        jax.grad(ld.log_prob)(jnp.zeros(2, int), ld.shared_softmax, TAU)


def test_an_action_out_of_range_under_jit_has_log_probability_minus_infinity():
    bad = TAU._replace(actions=TAU.actions.at[3].set(2))
    assert jax.jit(ld.log_prob)(PARAMS, MLP, bad) == -jnp.inf
    assert jax.jit(ld.prob)(PARAMS, MLP, bad) == 0


def test_an_action_out_of_range_in_the_padding_is_no_error():
    bad = TAU._replace(actions=TAU.actions.at[4].set(9), valid=jnp.arange(5) < 4)
    assert jnp.isfinite(ld.log_prob(PARAMS, MLP, bad))
