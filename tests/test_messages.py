"""Bad input is answered with what was expected, what came and the likely fix: the exception, the words that matter, the call."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
import pytest

import logderiv as ld
from logderiv import processes
from logderiv.likelihood import fisher_vector_product, natural_gradient, over_steps, visit_counts
from logderiv.processes.diffusion import ornstein_uhlenbeck_moments, transfer_value
from tests import examples
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


def _entropy(params, step, distribution, *extras):
    return distribution.entropy()


def _model(network: Any = None, reward=lambda tokens, length: 1.0, **options):
    options = {"vocabulary": 3, "end": 0, "horizon": 3, **options}
    return processes.TokenModel(ld.MLP(3, hidden=()) if network is None else network, reward, **options)


def _roll(name, process: Any = None, params: Any = None, **options):
    """A rollout of an example of a process, or of a variant of it."""
    given = examples.process(name)
    process, params = process or given.environment, given.params if params is None else params
    return ld.rollout(params, jax.random.key(0), process.policy, process, **options)


def _well(drift=processes.double_well_drift, noise: Any = 0.5, initial: Any = -1.0, dt=0.05, horizon=2):
    return processes.EulerMaruyama(drift, noise, initial, dt, horizon)


def _girsanov(**other):
    tau = _roll("EulerMaruyama", _well())
    return processes.girsanov_log_ratios(WELL, _well(), tau, reference_params=WELL, reference=_well(**other))


def _pairs(keys):
    return processes.rollout_pairs(SEARCH.init(BLIND, std=1.0), keys, SEARCH, processes.Fitness(lambda x, key: x))


def _in_pairs(number):
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut(group_size=2)))
    return estimator.estimate(PARAMS, (), MLP, batch(jax.random.key(0), (number, 5)))


def _collect(num_steps=1, **options):
    start = ld.start_streams(jax.random.key(0), two_states(), 2)
    how = {"params": jnp.zeros((2, 2)), "policy": ld.tabular_softmax} | options
    arguments: Any = {
        "key": jax.random.key(0),
        "environment": two_states(),
        "state": start,
        "num_steps": num_steps,
    } | how
    return ld.collect(**arguments)


AR, _, AR_PARAMS = examples.process("Autoregressive")
CHAIN, _, CHAIN_PARAMS = examples.process("MarkovChain")
HIDDEN, _, HIDDEN_PARAMS = examples.process("HiddenMarkovModel")
GAUSSIAN, _, GAUSSIAN_PARAMS = examples.process("LinearGaussian")
CONTROL, _, CONTROL_PARAMS = examples.process("LinearQuadratic")
WELL, Y = jnp.array([1.0, 0.8]), jnp.zeros((4, 1))
SEARCH = processes.NormalSearch()
NATURAL: Any = natural_gradient(ld.shared_softmax)
EYE, COLUMN = jnp.eye(2), jnp.ones((2, 1))

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
    (ValueError, r"\(3, 5\) and \(3, 1\)", lambda: ld.estimators.Score()(jnp.zeros((3, 5)), jnp.zeros((3, 1)))),
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


VALUES = {
    "block_size": lambda: ld.log_prob(BLIND, ld.shared_softmax, TAUS, block_size=0),
    "low < high, received .*1.*1": lambda: ld.TanhNormal(BLIND, BLIND, 1.0, 1.0),
    "low < high, received .*0.*inf": lambda: ld.TanhNormal(BLIND, BLIND, 0.0, jnp.inf),
    "low < high, received .*3.*2": lambda: ld.TanhNormal(BLIND, BLIND, (0.0, 3.0), 2.0),
    "state_independent: expected .* 4": lambda: ld.MLP(4, state_independent=4),
    "state_independent: expected .* -1": lambda: ld.MLP(4, state_independent=-1),
    "no params": lambda: NATURAL.update(BLIND, NATURAL.init(BLIND), trajectories=TAUS),
    "damping": lambda: natural_gradient(MLP, damping=-1.0),
    "iterations": lambda: natural_gradient(MLP, iterations=0),
    "'step' or 'trajectory'": lambda: fisher_vector_product(PARAMS, MLP, TAUS, per=cast("Any", "batch")),
    r"shape \(3,\)": lambda: fisher_vector_product(PARAMS, MLP, TAUS, probabilities=jnp.ones(5)),
    "batch axes": lambda: fisher_vector_product(PARAMS, MLP, TAU),
    r"term: expected a scalar.*\(4,\)": lambda: over_steps(lambda p, s, d: s.observation, PARAMS, MLP, TAU),
    r"extras\[0\]\['w'\].*\(3, 5\).*\(3,\)": lambda: over_steps(_entropy, PARAMS, MLP, TAUS, {"w": jnp.ones(3)}),
    "reduce: expected None, 'time' or 'all', received 'sum'": lambda: over_steps(
        _entropy, PARAMS, MLP, TAUS, reduce=cast("Any", "sum")
    ),
    "one shape": lambda: visit_counts(jnp.zeros(3, int), jnp.zeros(2, int), jnp.ones(3), (2, 2)),
    r"\(3, 5\), received \(3, 1\)": lambda: ld.weighted_log_prob(BLIND, ld.shared_softmax, TAUS, jnp.ones((3, 1))),
    "of one action to be a scalar": lambda: ld.log_prob(jnp.zeros((2, 2)), ld.shared_softmax, TAUS),
    "log_prob of one action to be a scalar": lambda: ld.weighted_log_prob(
        jnp.zeros((1, 2, 2)), ld.tabular_softmax, TAUS._replace(observations=TAUS.actions), jnp.ones((3, 5))
    ),
    "num_environments: .*>= 1, received 0": lambda: ld.start_streams(jax.random.key(0), two_states(), 0),
    "num_steps": lambda: _collect(0),
    "horizon: expected a whole number >= 1, received 0": lambda: _collect(horizon=0),
    r"series: expected shape \(T,\).*use jax.vmap": lambda: AR.log_likelihood(AR_PARAMS, Y),
    r"series: expected shape \(T,\), .*use jax.vmap": lambda: AR.score(AR_PARAMS, Y),
    "actions: expected the same number of rows": lambda: AR.trajectory(jnp.ones(0)),
    r"actions.state: expected shape \(\), received \(3,\)": lambda: AR.trajectory(jnp.ones((2, 3))),
    "no default": lambda: _roll("Autoregressive", processes.Autoregressive()),
    "whole number >= 1, received 0": lambda: processes.RandomWalk(0),
    r"params.initial: expected shape \(2,\).*must agree": lambda: _roll(
        "MarkovChain", params=CHAIN_PARAMS._replace(initial=jnp.zeros(3))
    ),
    r"params.transition: expected shape \(2, 2\)": lambda: CHAIN.policy.apply(
        CHAIN_PARAMS._replace(transition=jnp.zeros((2, 3))), jnp.int32(0)
    ),
    r"reward: expected shape \(S,\) or \(S, S\)": lambda: processes.MarkovChain(jnp.ones((2, 3))),
    "reward: expected shape": lambda: processes.MarkovChain(1.0),
    r"terminal: expected shape \(2,\)": lambda: processes.MarkovChain(BLIND, terminal=[True] * 3),
    r"transition: expected shape \(3, 3\), received \(2, 2\); start and kernel": lambda: HIDDEN.log_likelihood(
        HIDDEN_PARAMS._replace(initial=jnp.zeros(3)), jnp.zeros(4, int)
    ),
    r"transition: expected shape \(3, 3\), .*; start and kernel": lambda: _roll(
        "HiddenMarkovModel", params=HIDDEN_PARAMS._replace(initial=jnp.zeros(3))
    ),
    r"observed: expected shape \(4,\)": lambda: HIDDEN.smooth(
        HIDDEN_PARAMS, jnp.zeros(4, int), observed=jnp.ones((4, 1))
    ),
    "observations: expected the same number of rows": lambda: HIDDEN.log_likelihood(HIDDEN_PARAMS, jnp.zeros(0, int)),
    r"observations: expected shape .*received \(4, 3\); use jax.vmap": lambda: GAUSSIAN.log_likelihood(
        GAUSSIAN_PARAMS, jnp.zeros((4, 3))
    ),
    "same number of rows, at least one": lambda: GAUSSIAN.log_likelihood(GAUSSIAN_PARAMS, Y[:0]),
    r"observed: expected shape \(4,\) or \(4, 1\), received \(3,\)": lambda: GAUSSIAN.smooth(
        GAUSSIAN_PARAMS, Y, observed=jnp.ones(3)
    ),
    r"initial_mean: expected shape \(2,\).*must agree": lambda: GAUSSIAN.log_likelihood(
        GAUSSIAN_PARAMS._replace(initial_mean=jnp.zeros(3)), Y
    ),
    r"design: expected shape \(1, 2\)": lambda: _roll("LinearGaussian", params=GAUSSIAN_PARAMS._replace(design=EYE)),
    "expected the same number of rows": lambda: GAUSSIAN.pair_trajectory(jnp.zeros((3, 2)), Y),
    r"noise: expected shape \(2, 2\), received \(2, 1\); n = 2, m = 1": lambda: processes.LinearQuadratic(
        EYE, COLUMN, COLUMN, EYE, jnp.eye(1), BLIND
    ),
    r"control: expected shape \(n, m\)": lambda: processes.LinearQuadratic(EYE, BLIND, EYE, EYE, EYE, BLIND),
    r"params.gain: expected shape \(1, 1\), received \(2, 1\); \(m, n\) from log_std": lambda: _roll(
        "LinearQuadratic", params=CONTROL_PARAMS._replace(gain=COLUMN)
    ),
    "without noise the path has no density": lambda: _well(noise=jnp.abs, initial=0.0),
    r"dt: expected a positive number, received 0\.0": lambda: _well(dt=0.0),
    "^horizon: expected a whole number >= 1, received 0": lambda: _well(horizon=0),
    "initial: expected a number or D numbers": lambda: _well(initial=[[1.0]]),
    "one number, or as many as initial": lambda: _well(noise=[0.5, 0.5]),
    r"drift: expected shape \(2,\), received \(3,\); that of x": lambda: _roll(
        "EulerMaruyama", _well(lambda p, x, t: jnp.ones(3), initial=[0.0, 0.0])
    ),
    "same noise and dt.*": lambda: _girsanov(noise=0.6),
    "same noise and dt": lambda: _girsanov(dt=0.1),
    r"initial: expected shape \(\)": lambda: transfer_value(WELL, _well(initial=[0.0]), low=-1.0, high=1.0),
    "initial - low: expected a pos": lambda: transfer_value(WELL, _well(), low=0.0, high=1.0),
    "expected an EulerMaruyama process with ornstein": lambda: ornstein_uhlenbeck_moments(
        jnp.array([0.7, 0.3]), _well()
    ),
    "stoichiometry: expected whole numbers": lambda: processes.JumpProcess(
        [[1.5]], processes.MassAction([[1]]), [1], 1.0
    ),
    r"reactants: expected shape \(2, 1\), received \(1, 1\); that of stoichiometry": lambda: processes.JumpProcess(
        [[1], [-1]], processes.MassAction([[1]]), [1], 1.0
    ),
    "initial: expected a number >= 0": lambda: processes.birth_death(-1),
    "t_end: expected a positive number, received 0": lambda: processes.birth_death(1, 0.0),
    "reactants: expected a number >= 0": lambda: processes.MassAction([[-1]]),
    r"params: expected shape \(2,\), received \(3,\); the logarithm of one rate constant per reaction": lambda: (
        processes.master_equation_value(jnp.zeros(3), processes.birth_death(), max_counts=[3])
    ),
    r"max_counts - initial counts: expected a number >= 0, received \[-2\]": lambda: processes.master_equation_value(
        BLIND, processes.birth_death(5), max_counts=[3]
    ),
    r"propensities: expected shape \(1,\), received \(\); one rate per reaction": lambda: _roll(
        "JumpProcess", processes.JumpProcess([[-1]], lambda p, x: p[0] * x[0], [3], 1.0), horizon=3
    ),
    "group_size: .*>= 1, received 0": lambda: ld.baselines.LeaveOneOut(group_size=0),
    "expected a multiple of group_size = 2, received 5": lambda: _in_pairs(5),
    "expected at least 4": lambda: _in_pairs(2),
    r"scale: expected a positive number, received 0\.0; or None": lambda: processes.NormalSearch(scale=0.0),
    "std: expected a positive number": lambda: SEARCH.init(BLIND, std=-1.0),
    "with a fixed scale the mean is the parameter": lambda: processes.NormalSearch(0.1).init(BLIND),
    "keys: expected one axis of keys": lambda: _pairs(jax.random.key(0)),
    r"fitness: expected a scalar for one sample, received shape \(2,\)": lambda: _pairs(
        jax.random.split(jax.random.key(0))
    ),
    r"end: expected a token in 0 .. 2, received 3": lambda: _model(end=3),
    "prompts: expected fewer than horizon = 3 tokens": lambda: _model(prompts=[0, 1, 2]),
    r"prompts: expected tokens in 0 .. 2, or -1 after the last, received 3": lambda: _model(prompts=[0, 3]),
    "prompts: expected -1 only after a prompt's last token": lambda: _model(prompts=[-1, 1]),
    r"prompts: expected shape \(P, L\)": lambda: _model(prompts=jnp.zeros((1, 1, 1), int)),
    "vocabulary: expected a whole number >= 2": lambda: _model(vocabulary=1),
    "horizon: expected a whole number >= 1": lambda: _model(horizon=0),
    "context: expected a whole number >= 1": lambda: _model(context=0),
    r"reward: expected a scalar for one sample, received shape \(3,\)": lambda: _roll(
        "TokenModel", _model(reward=lambda tokens, length: tokens)
    ),
    r"environment_params: expected the number of a prompt, 0 .. 0, received 1": lambda: _roll(
        "TokenModel", environment_params=1
    ),
    "network: expected a distribution over the 3 tokens of the vocabulary": lambda: _roll(
        "TokenModel", _model(ld.FunctionPolicy(lambda params, x: ld.Categorical(BLIND)))
    ),
}
TYPES = {
    "action.*expected integers": lambda: ld.Categorical(BLIND).log_prob(jnp.array(1.0)),
    "action: expected integers": lambda: ld.Bernoulli(BLIND).log_prob(jnp.array(1.0)),
    "expected booleans": lambda: ld.masked(BLIND, jnp.ones(2)),
    "trajectories=trajectories": lambda: NATURAL.update(BLIND, NATURAL.init(BLIND), BLIND),
    "floating-point": lambda: fisher_vector_product(jnp.arange(2), ld.shared_softmax, TAUS),
    "memory": lambda: _collect(params={}, policy=ld.GRU(2)),
    "expected integers": lambda: HIDDEN.log_likelihood(HIDDEN_PARAMS, jnp.zeros(4)),
    "prompts: expected integers": lambda: _model(prompts=[0.5]),
    "expected a policy": lambda: _model(3),
}
for noise in (0.0, -0.5, [0.5, 0.0], jnp.nan):
    CASES.append((ValueError, "noise: expected a positive number", lambda x=noise: _well(noise=x, initial=[1.0, 1.0])))
CASES += [(ValueError, *case) for case in VALUES.items()] + [(TypeError, *case) for case in TYPES.items()]


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
