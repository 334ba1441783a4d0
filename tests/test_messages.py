"""Bad input is answered with what was expected, what came and the likely fix: the exception, the words that matter, the call."""

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
LOO = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))
BLIND = jnp.zeros(2)


def _log_prob(policy: Any = MLP, tau=TAU, params=PARAMS):
    return ld.log_prob(params, policy, tau)


def _where() -> dict[str, Any]:
    return {"key": jax.random.key(0), "policy": ld.shared_softmax, "environment": ld.environments.short_corridor()}


def _rollout(**options):
    return ld.rollout(BLIND, **_where() | options)


def _train(**options):
    how: dict[str, Any] = {"estimator": LOO, "optimizer": optax.sgd(0.1), "num_updates": 1, "params": BLIND}
    arguments: Any = _where() | how | {"batch": ld.Episodes(2, horizon=2)} | options
    return ld.train(**arguments)


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


CASES = [
    (ValueError, r"trajectory\.rewards.*\(5,\).*\(4,\)", lambda: _log_prob(tau=TAU._replace(rewards=jnp.ones(4)))),
    (
        ValueError,
        r"observations\['x'\].*\(5,\).*\(6, 4\)",
        lambda: _log_prob(tau=TAU._replace(observations={"x": jnp.ones((6, 4))})),
    ),
    (TypeError, r"boolean mask.*float64.*astype\(bool\)", lambda: _log_prob(tau=TAU._replace(valid=jnp.ones(5)))),
    (ValueError, "empty trajectory.*T = 0", lambda: _log_prob(tau=jax.tree.map(lambda x: x[:0], TAU))),
    (ValueError, r"\(\*batch, T\)", lambda: _log_prob(tau=jax.tree.map(lambda x: x[0], TAU))),
    (TypeError, "expected integers.*float64.*int32", lambda: _log_prob(tau=TAU._replace(actions=jnp.ones(5)))),
    (
        ValueError,
        r"0 \.\. 1, received 2 at index \(3,\)",
        lambda: _log_prob(tau=TAU._replace(actions=TAU.actions.at[3].set(2))),
    ),
    (ValueError, "received -1", lambda: _log_prob(tau=TAU._replace(actions=TAU.actions.at[0].set(-1)))),
    (
        TypeError,
        r"params\['w'\].*int64.*astype",
        lambda: ld.grad_prob({"w": jnp.zeros((4, 2), int)}, lambda p, x: ld.Categorical(x @ p["w"]), TAU),
    ),
    (TypeError, "floating-point", lambda: ld.compare(jnp.zeros(2, int), ld.shared_softmax, TAU)),
    (TypeError, "floating-point", lambda: LOO.estimate(jnp.zeros(2, int), (), ld.shared_softmax, TAUS)),
    (TypeError, "floating-point", lambda: _train(params=jnp.zeros(2, int))),
    (TypeError, "expected a policy.*received int", lambda: _log_prob(policy=3)),
    (TypeError, r"log_prob method.*Categorical", lambda: _log_prob(policy=lambda p, x: x)),
    (
        ValueError,
        r"scalar, received shape \(3,\).*batch.*event axis",
        lambda: _log_prob(policy=lambda p, x: ld.Categorical(jnp.zeros((3, 2)))),
    ),
    (
        ValueError,
        r"scalar, received shape \(4,\)",
        lambda: _log_prob(policy=lambda p, x: ld.Bernoulli(x), tau=TAU._replace(actions=jnp.ones((5, 4), int))),
    ),
    (
        ValueError,
        r"policy\.log_factors.*\(5,\).*\(5, 2\)",
        lambda: _log_prob(policy=ld.FunctionPolicy(MLP.apply, log_factors=lambda p, tau: jnp.zeros((5, 2)))),
    ),
    (ValueError, "block_size: .*>= 1, received 0", lambda: ld.log_factors(PARAMS, MLP, TAU, block_size=0)),
    (
        ValueError,
        "known densities.*_Growing",
        lambda: ld.log_prob(BLIND, ld.shared_softmax, TAU, environment=_Growing()),
    ),
    (ValueError, r"one trajectory.*\(3,\).*vmap", lambda: ld.grad_prob(PARAMS, MLP, TAUS)),
    (ValueError, "one trajectory", lambda: ld.compare(PARAMS, MLP, TAUS)),
    (ValueError, "horizon.*>= 1, received 0", lambda: _rollout(horizon=0)),
    (ValueError, "pass horizon=", lambda: _rollout(environment=two_states())),
    (TypeError, r"jax\.random\.key", lambda: _rollout(key=jnp.zeros(2), horizon=2)),
    (TypeError, "reset.*step.*received int", lambda: _rollout(environment=4, horizon=2)),
    (
        ValueError,
        r"after step\[0\]: expected shape \(2,\), received \(3,\); as after reset",
        lambda: _rollout(environment=_Growing(), horizon=2),
    ),
    (
        TypeError,
        r"\['speed'\].*int64 after reset and float64 after step.*cut off",
        lambda: _rollout(environment=_Rounded(), horizon=2),
    ),
    (ValueError, "structure", lambda: _rollout(environment=_Restructured(), horizon=2)),
    (
        ValueError,
        "at least 2.*received 1",
        lambda: LOO.estimate(BLIND, (), ld.shared_softmax, jax.tree.map(lambda x: x[:1], TAUS)),
    ),
    (ValueError, "at least 2.*received 1", lambda: _train(batch=ld.Episodes(1, horizon=2))),
    (ValueError, "num_updates", lambda: _train(num_updates=0)),
    (ValueError, r"batch of shape \(N, T\)", lambda: LOO.estimate(PARAMS, (), MLP, TAU)),
    (ValueError, r"\[0, 1\], received 1\.1", lambda: ld.ScoreFunction(discount=1.1)),
    (ValueError, "'step' or 'trajectory'", lambda: ld.baselines.LeaveOneOut(per=cast("Any", "batch"))),
    (ValueError, "outputs", lambda: ld.MLP(0)),
    (ValueError, r"\(3, 5\), received \(3, 1\)", lambda: ld.estimators.Score()(jnp.zeros((3, 5)), jnp.zeros((3, 1)))),
    (
        ValueError,
        r"initial.*\(3,\).*\(2,\)",
        lambda: ld.environments.TabularMDP(jnp.ones(2) / 2, jnp.ones((3, 2, 3)) / 3, jnp.zeros((3, 2)), jnp.zeros(3)),
    ),
    (
        ValueError,
        "transition.*sum to 1.*off by 1",
        lambda: ld.environments.TabularMDP(jnp.ones(2) / 2, jnp.ones((2, 1, 2)), jnp.zeros((2, 1)), jnp.zeros(2)),
    ),
    (
        ValueError,
        "no mass on terminal",
        lambda: ld.environments.TabularMDP(
            jnp.array([0.5, 0.5]), jnp.ones((2, 1, 2)) / 2, jnp.zeros((2, 1)), jnp.array([False, True])
        ),
    ),
    (ValueError, r"trajectories of 30 steps.*value", lambda: ld.exact.enumerate_trajectories(two_states(), horizon=30)),
    (ValueError, "horizon", lambda: ld.exact.enumerate_trajectories(two_states(), horizon=0)),
]


@pytest.mark.parametrize(("error", "words", "call"), CASES, ids=[words for _, words, _ in CASES])
def test_bad_input_is_answered_in_words(error, words, call):
    with pytest.raises(error, match=words):
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
