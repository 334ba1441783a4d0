"""Several choices as one action: sums over parts, the outcomes by number, and gradients proved by enumeration."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld
from logderiv.distributions import Forced, Joint, OneHotCategorical, Poisson
from logderiv.distributions.finite import num_outcomes, outcome
from tests.mostly import slow
from tests.oracle import QUICK

LOGITS = {"gear": jnp.array([0.3, -1.2, 2.0]), "lamps": jnp.array([[0.1, 0.4, -jnp.inf], [0.7, -0.2, 0.5]])}


def law(logits=LOGITS, mask=True):
    """One choice among 3 of which the last may be forbidden, two in a vector among 2 and 3, and two coins: 3 x 3 x 3 x 4 outcomes."""
    gear = ld.masked(logits["gear"], jnp.array([True, True, not mask]))
    return Joint((ld.Categorical(gear), {"lamps": ld.Categorical(logits["lamps"])}, ld.Bernoulli(logits["gear"][:2])))


def every(law):
    return jax.vmap(functools.partial(outcome, law))(jnp.arange(num_outcomes(law)))


def test_probability_entropy_mode_and_draws_are_those_of_the_parts():
    @jax.jit
    def found(key):
        joint, outcomes = law(), every(law())
        probs, logs = jax.vmap(joint.prob)(outcomes), jax.vmap(joint.log_prob)(outcomes)
        return probs, logs, outcomes, joint.entropy(), joint.mode(), jax.vmap(joint.sample)(jax.random.split(key, 500))

    probs, logs, outcomes, entropy, mode, draws = found(jax.random.key(0))
    assert len(probs) == 3 * 9 * 4
    assert probs.dtype == jnp.float64
    softmax = lambda x: np.exp(x) / np.exp(x).sum()  # noqa: E731
    gear, first = softmax(np.array([0.3, -1.2])), softmax(np.array([0.1, 0.4]))
    coin = 1 / (1 + np.exp(-np.array([0.3, -1.2])))
    by_hand = [
        (*gear, 0),
        (*first, 0),
        softmax(np.array([0.7, -0.2, 0.5])),
        (1 - coin[0], coin[0]),
        (1 - coin[1], coin[1]),
    ]
    expected = functools.reduce(np.multiply.outer, map(np.asarray, by_hand)).ravel()
    np.testing.assert_allclose(probs, expected, rtol=1e-13)
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-13)
    assert (np.isneginf(logs) == (expected == 0)).all()
    some = expected > 0
    np.testing.assert_allclose(logs[some], np.log(expected[some]), atol=1e-12)
    np.testing.assert_allclose(entropy, -np.sum(expected[some] * np.log(expected[some])), rtol=1e-13)
    best = jax.tree.map(lambda x: x[expected.argmax()], outcomes)
    jax.tree.map(np.testing.assert_array_equal, mode, best)
    assert draws[0].max() == 1
    assert draws[1]["lamps"][:, 0].max() == 1
    assert draws[1]["lamps"].shape == (500, 2)
    with pytest.raises(AssertionError):  # the wrong twin: the entropy of one part, summed over nothing
        np.testing.assert_allclose(entropy, law().parts[1]["lamps"].entropy()[0], rtol=1e-2)


def test_the_score_is_that_of_each_part():
    action = (jnp.int32(1), {"lamps": jnp.array([0, 2])}, jnp.array([1, 0]))
    score = jax.grad(lambda logits: law(logits).log_prob(action))(LOGITS)
    parts = (
        jax.grad(lambda x: ld.Categorical(ld.masked(x, jnp.arange(3) < 2)).log_prob(action[0]))(LOGITS["gear"]),
        jax.grad(lambda x: ld.Bernoulli(x[:2]).log_prob(action[2]).sum())(LOGITS["gear"]),
        jax.grad(lambda x: ld.Categorical(x).log_prob(action[1]["lamps"]).sum())(LOGITS["lamps"]),
    )
    np.testing.assert_allclose(score["gear"], parts[0] + parts[1], rtol=1e-13)
    np.testing.assert_allclose(score["lamps"], parts[2], rtol=1e-13)
    assert score["lamps"][0, 2] == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtypes_and_outcomes_out_of_range(dtype):
    joint = Joint((ld.Categorical(jnp.zeros(2, dtype)), OneHotCategorical(jnp.zeros((2, 2), dtype))))
    wide = jnp.float64 if dtype == jnp.float64 else jnp.float32
    assert num_outcomes(joint) == 8
    logs = jax.vmap(joint.log_prob)(every(joint))
    assert logs.dtype == wide
    np.testing.assert_allclose(logs, -3 * np.log(2), rtol=1e-6)
    for index in (8, 9, -1, 2**30):
        assert joint.log_prob(outcome(joint, jnp.int32(index))) == -jnp.inf
    assert joint.log_prob((2, jnp.eye(2, dtype=wide))) == -jnp.inf
    assert joint.prob((2, jnp.eye(2, dtype=wide))) == 0
    assert num_outcomes(Joint(ld.Normal(jnp.zeros(2), jnp.ones(2)))) is None
    assert num_outcomes(Joint(ld.Bernoulli(jnp.zeros(31)))) is None
    mixed = Joint((ld.Normal(jnp.zeros(2, dtype), jnp.ones(2, dtype)), ld.Categorical(jnp.zeros(2, jnp.float64))))
    assert mixed.log_prob(mixed.mode()).dtype == jnp.float64


def test_a_part_without_an_entropy_or_a_mode_is_named():
    coin = ld.Bernoulli(jnp.zeros(2))
    counts = Joint({"a": coin, "b": (coin, Poisson(jnp.zeros(())))})
    assert counts.mode()["b"][1] == 1
    with pytest.raises(TypeError, match=r"parts\['b'\]\[1\]: Poisson has no entropy\(\)"):
        counts.entropy()
    forced = Joint((coin, Forced(coin, jnp.zeros(2, int), jnp.array(True))))
    with pytest.raises(TypeError, match=r"parts\[1\]: Forced has no mode\(\)"):
        forced.mode()


def test_what_does_not_fit_is_refused():
    two = Joint({"a": ld.Categorical(jnp.zeros(2)), "b": ld.Categorical(jnp.zeros((3, 2)))})
    for error, message, make in (
        (ValueError, "parts: expected at least one", lambda: Joint(())),
        (
            TypeError,
            "parts: expected distributions .* received Array|parts: .*ArrayImpl",
            lambda: Joint((jnp.zeros(2),)),
        ),
        (ValueError, "action: expected the structure of the parts", lambda: two.log_prob((0, jnp.zeros(3, int)))),
        (ValueError, r"action: expected shape \(3,\), received \(\)", lambda: two.log_prob({"a": 0, "b": 0})),
        (
            ValueError,
            r"action: expected shape \(\), received \(4,\)",
            lambda: two.prob({"a": np.zeros(4, int), "b": 0}),
        ),
        (TypeError, "action: expected integers", lambda: two.log_prob({"a": 0.5, "b": jnp.zeros(3, int)})),
    ):
        with pytest.raises(error, match=message):
            make()


# A world of two states and an end, in which an action has two parts: 2 values of "push" by 3 of "gear", in state 1 one gear is forbidden.
MASKS = jnp.array([[True, True, True], [True, False, True], [True, True, True]])
MOVES = np.array([[0, 1, 2, 1, 1, 0], [1, 0, 0, 2, 0, 1], [2] * 6])  # the next state, by state and action
REWARDS = jnp.array([[1.0, -0.5, 0.25, 2.0, 0.0, 1.5], [0.5, 9.0, -1.0, 3.0, 9.0, 0.75], [0.0] * 6])
MDP = ld.environments.TabularMDP(
    initial=jnp.array([0.5, 0.5, 0.0]),
    transition=jnp.asarray(np.eye(3)[MOVES]),
    reward=REWARDS,
    terminal=jnp.array([False, False, True]),
)
PARAMS = {"push": jnp.array([0.3, -0.5]), "gear": jnp.array([[0.2, -0.4, 0.1], [0.6, 0.3, -0.7]])}


def parts(params, state, masks=MASKS):
    row = jnp.minimum(state, 1)
    gear = ld.Categorical(ld.masked(params["gear"][row], masks[state]))
    return Joint({"push": ld.Bernoulli(params["push"][row]), "gear": gear})


def pair(action):
    return {"push": action // 3, "gear": action % 3}


def flat(params, state):
    """The same policy as one choice among the six pairs."""
    return ld.Categorical(jax.vmap(parts(params, state).log_prob)(pair(jnp.arange(6))))


class Whole:
    """The wrong twin: a distribution whose log-probability leaves one part out."""

    def __init__(self, law):
        self.law = law

    def log_prob(self, action):
        return self.law.parts["gear"].log_prob(action["gear"])


def moments_of_batches(policy, estimator, num, horizon):
    """Mean and covariance of the estimate over every batch, each trajectory with its two-part actions."""
    every = ld.exact.enumerate_trajectories(MDP, horizon=horizon)
    weights = np.asarray(ld.prob(PARAMS, flat, every, environment=MDP))
    taus = every._replace(actions=pair(every.actions))
    possible = np.flatnonzero(weights > 0)
    index = np.stack(np.meshgrid(*[possible] * num, indexing="ij"), -1).reshape(-1, num)
    batches = jax.tree.map(lambda x: np.asarray(x)[index], taus)

    def gradient(batch):
        grads = estimator.estimate(PARAMS, estimator.init(PARAMS), policy, batch)[0].grads
        return ravel_pytree(grads)[0]

    found = np.asarray(jax.jit(jax.vmap(gradient), compiler_options=QUICK)(batches))
    chance = weights[index].prod(1)
    mean = chance @ found
    return mean, (found - mean).T @ (chance[:, None] * (found - mean))


@pytest.mark.parametrize("num", [slow(1), 2])
def test_mean_and_covariance_of_an_estimator_over_actions_of_two_parts_are_exact(num):
    """Against `exact.moments` of one choice among all pairs, which knows no parts, and the gradient by dynamic programming."""
    baseline = ld.baselines.LeaveOneOut() if num > 1 else ld.baselines.Constant(0.3)
    estimator = ld.ScoreFunction(ld.advantages.ToGo(baseline))
    exact = ld.exact.moments(PARAMS, ld.FunctionPolicy(flat), MDP, estimator, horizon=2, num_trajectories=num)
    gradient = ld.exact.gradient(PARAMS, ld.FunctionPolicy(flat), MDP, horizon=2)
    mean, covariance = moments_of_batches(parts, estimator, num, horizon=2)
    np.testing.assert_allclose(mean, ravel_pytree(exact.mean)[0], atol=1e-12)
    np.testing.assert_allclose(mean, ravel_pytree(gradient)[0], atol=1e-12)
    np.testing.assert_allclose(covariance, exact.covariance, atol=1e-12)
    unmasked = functools.partial(parts, masks=jnp.ones((3, 3), bool))
    for wrong in (unmasked, lambda params, state: Whole(parts(params, state))):
        biased, other = moments_of_batches(wrong, estimator, num, horizon=2)
        assert abs(biased - mean).max() > 1e-2
        assert abs(other - covariance).max() > 1e-2


def test_choices_of_a_program_may_have_parts():
    """Two choices of two parts each, the second after the first: mean of value and gradient to 1e-12."""

    def program(params, tape):
        tape, action = tape.sample(parts(params, 1))
        pays = REWARDS[0][action["push"] * 3 + action["gear"]]
        tape = tape.cost(pays)
        tape, second = tape.sample(parts(params, action["push"]))
        return tape.cost(pays * second["gear"].astype(float))

    options: Any = {"order": 1, "num_choices": 2, "num_outcomes": 6}
    for found in ld.exact.program_derivatives(PARAMS, ld.expectation(program, num_samples=1), **options):
        np.testing.assert_allclose(found.mean, found.exact, atol=1e-12)
    pairs, rows = pair(jnp.arange(6)), jnp.arange(2)
    first = np.asarray(jax.vmap(parts(PARAMS, 1).prob)(pairs))
    second = np.asarray(jax.vmap(lambda row: jax.vmap(parts(PARAMS, row).prob)(pairs))(rows)[pairs["push"]])
    value = np.sum(first[:, None] * second * np.asarray(REWARDS[0])[:, None] * (1 + np.arange(6) % 3))
    exact = ld.exact.program_value(PARAMS, program, num_choices=2, num_outcomes=6)
    np.testing.assert_allclose(exact, value, atol=1e-12)
