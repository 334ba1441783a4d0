"""Bad input to processes, streams, steps and search is answered with what was expected, what came and the likely fix."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest

import logderiv as ld
from logderiv import processes
from logderiv.likelihood import fisher_vector_product, natural_gradient, over_steps, visit_counts
from logderiv.processes.diffusion import ornstein_uhlenbeck_moments, transfer_value
from tests import examples
from tests.test_project_messages import BLIND, MLP, PARAMS, TAU, TAUS
from tests.worlds import batch, two_states


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
    start = ld.sampling.start_streams(jax.random.key(0), two_states(), 2)
    how = {"params": jnp.zeros((2, 2)), "policy": ld.tabular_softmax} | options
    arguments: Any = {
        "key": jax.random.key(0),
        "environment": two_states(),
        "state": start,
        "num_steps": num_steps,
    } | how
    return ld.sampling.collect(**arguments)


AR, _, AR_PARAMS = examples.process("Autoregressive")
CHAIN, _, CHAIN_PARAMS = examples.process("MarkovChain")
HIDDEN, _, HIDDEN_PARAMS = examples.process("HiddenMarkovModel")
GAUSSIAN, _, GAUSSIAN_PARAMS = examples.process("LinearGaussian")
CONTROL, _, CONTROL_PARAMS = examples.process("LinearQuadratic")
WELL, Y = jnp.array([1.0, 0.8]), jnp.zeros((4, 1))
SEARCH = processes.NormalSearch()
NATURAL: Any = natural_gradient(ld.shared_softmax)
EYE, TALL = jnp.eye(2), jnp.ones((2, 1))

VALUES = {
    "block_size": lambda: ld.log_prob(BLIND, ld.shared_softmax, TAUS, block_size=0),
    "low < high, received .*1.*1": lambda: ld.distributions.TanhNormal(BLIND, BLIND + 1, 1.0, 1.0),
    "low < high, received .*0.*inf": lambda: ld.distributions.TanhNormal(BLIND, BLIND + 1, 0.0, jnp.inf),
    "low < high, received .*3.*2": lambda: ld.distributions.TanhNormal(BLIND, BLIND + 1, (0.0, 3.0), 2.0),
    "outputs - state_independent: expected a whole number >= 1, received 0": lambda: ld.MLP(4, state_independent=4),
    "state_independent: expected .* -1": lambda: ld.MLP(4, state_independent=-1),
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
    r"params: expected logits of shape \(S, A\), received \(1, 2, 2\)": lambda: ld.weighted_log_prob(
        jnp.zeros((1, 2, 2)), ld.tabular_softmax, TAUS._replace(observations=TAUS.actions), jnp.ones((3, 5))
    ),
    "num_environments: .*>= 1, received 0": lambda: ld.sampling.start_streams(jax.random.key(0), two_states(), 0),
    "num_steps": lambda: _collect(0),
    "horizon: expected a whole number >= 1, received 0": lambda: _collect(horizon=0),
    r"series: expected shape \(T,\).*use jax.vmap": lambda: AR.log_likelihood(AR_PARAMS, Y),
    "actions: .*common leading axis of at least 1": lambda: AR.trajectory(jnp.ones(0)),
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
    "observations: .*common leading axis of at least 1": lambda: HIDDEN.log_likelihood(
        HIDDEN_PARAMS, jnp.zeros(0, int)
    ),
    r"observations: expected shape .*received \(4, 3\); use jax.vmap": lambda: GAUSSIAN.log_likelihood(
        GAUSSIAN_PARAMS, jnp.zeros((4, 3))
    ),
    "common leading axis of at least 1, received": lambda: GAUSSIAN.log_likelihood(GAUSSIAN_PARAMS, Y[:0]),
    r"observed: expected shape \(4,\) or \(4, 1\), received \(3,\)": lambda: GAUSSIAN.smooth(
        GAUSSIAN_PARAMS, Y, observed=jnp.ones(3)
    ),
    r"initial_mean: expected shape \(2,\).*must agree": lambda: GAUSSIAN.log_likelihood(
        GAUSSIAN_PARAMS._replace(initial_mean=jnp.zeros(3)), Y
    ),
    r"design: expected shape \(1, 2\)": lambda: _roll("LinearGaussian", params=GAUSSIAN_PARAMS._replace(design=EYE)),
    "expected leaves with one common leading axis": lambda: GAUSSIAN.pair_trajectory(jnp.zeros((3, 2)), Y),
    r"noise: expected shape \(2, 2\), received \(2, 1\); n = 2, m = 1": lambda: processes.LinearQuadratic(
        EYE, TALL, TALL, EYE, jnp.eye(1), BLIND
    ),
    r"control: expected shape \(n, m\)": lambda: processes.LinearQuadratic(EYE, BLIND, EYE, EYE, EYE, BLIND),
    r"params.gain: expected shape \(1, 1\), received \(2, 1\); \(m, n\) from log_std": lambda: _roll(
        "LinearQuadratic", params=CONTROL_PARAMS._replace(gain=TALL)
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
    "expected a whole number >= 4, received 2": lambda: _in_pairs(2),
    r"scale: expected a positive number, received 0\.0; or None": lambda: processes.NormalSearch(scale=0.0),
    "std: expected a positive number": lambda: SEARCH.init(BLIND, std=-1.0),
    "with a fixed scale the mean is the parameter": lambda: processes.NormalSearch(0.1).init(BLIND),
    "keys: expected one axis of keys": lambda: _pairs(jax.random.key(0)),
    r"fitness: expected a scalar for one sample, received shape \(2,\)": lambda: _pairs(
        jax.random.split(jax.random.key(0))
    ),
    r"end: expected a whole number from 0 to 2, received 3": lambda: _model(end=3),
    "prompts: expected fewer than horizon = 3 tokens": lambda: _model(prompts=[0, 1, 2]),
    r"prompts: expected a number in \[-1, 2\], .*; tokens, or -1 after the last": lambda: _model(prompts=[0, 3]),
    "prompts: expected -1 only after a prompt's last token": lambda: _model(prompts=[-1, 1]),
    r"prompts: expected shape \(P, L\)": lambda: _model(prompts=jnp.zeros((1, 1, 1), int)),
    "vocabulary: expected a whole number >= 2": lambda: _model(vocabulary=1),
    "horizon: expected a whole number >= 1": lambda: _model(horizon=0),
    "context: expected a whole number >= 1": lambda: _model(context=0),
    r"reward: expected a scalar for one sample, received shape \(3,\)": lambda: _roll(
        "TokenModel", _model(reward=lambda tokens, length: tokens)
    ),
    r"environment_params: expected a number in \[0, 0\], received 1; the number of a prompt": lambda: _roll(
        "TokenModel", environment_params=1
    ),
    "network: expected a distribution over the 3 tokens of the vocabulary": lambda: _roll(
        "TokenModel", _model(ld.FunctionPolicy(lambda params, x: ld.Categorical(BLIND)))
    ),
}
TYPES = {
    "no params": lambda: NATURAL.update(BLIND, NATURAL.init(BLIND), trajectories=TAUS),
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
NOISES = [
    (ValueError, "noise: expected a positive number", lambda x=x: _well(noise=x, initial=[1.0, 1.0]))
    for x in (0.0, -0.5, [0.5, 0.0], jnp.nan)
]
CASES = [(ValueError, *case) for case in VALUES.items()] + [(TypeError, *case) for case in TYPES.items()] + NOISES


@pytest.mark.parametrize(("error", "words", "call"), CASES, ids=[words for _, words, _ in CASES])
def test_bad_input_is_answered_in_words(error, words, call):
    with pytest.raises(error, match=words):
        call()
