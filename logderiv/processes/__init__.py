"""Stochastic processes as policies: what depends on the parameters is drawn, and scored, like an action.

A process is an environment that carries its own `policy`, so that everything in the library applies to it as it stands:

    taus = ld.rollout(params, keys, process.policy, process, horizon=T)
    logp = ld.log_prob(params, process.policy, taus)
    score = jax.grad(ld.log_prob)(params, process.policy, tau)

Parameters in the start are drawn at the first step, whose observation says `start`; parameters in the dynamics are
drawn as an action that *is* the next state. Beside each process stand its exact numbers.
"""

from logderiv.distributions.multivariate_normal import MultivariateNormal, covariance_from, log_cholesky_of
from logderiv.processes.autoregressive import Autoregressive, AutoregressiveParams, GaussianMoments
from logderiv.processes.base import AutonomousProcess, Previous, ProcessPolicy
from logderiv.processes.control import LinearPolicyParams, LinearQuadratic, QuadraticValues
from logderiv.processes.diffusion import (
    EulerMaruyama,
    EulerPolicy,
    Position,
    double_well,
    double_well_drift,
    girsanov_log_ratios,
    ornstein_uhlenbeck,
    ornstein_uhlenbeck_drift,
    ornstein_uhlenbeck_moments,
    transfer_value,
)
from logderiv.processes.games import JointPolicy, MatrixGame, look_ahead, prisoners_dilemma
from logderiv.processes.jump import (
    Event,
    JumpPolicy,
    JumpProcess,
    MassAction,
    MasterEquationValue,
    NextEvent,
    Population,
    birth_death,
    birth_death_mean,
    master_equation_value,
    schlogl,
)
from logderiv.processes.markov_chains import MarkovChain, MarkovChainParams, markov_chain
from logderiv.processes.random_walks import RandomWalk, WalkPolicy, random_walk
from logderiv.processes.state_space.hidden import HiddenProcess, fisher_score, fisher_score_samples
from logderiv.processes.state_space.hidden_markov import HiddenMarkovModel, HiddenMarkovParams, SmoothedChain
from logderiv.processes.state_space.kalman import Filtered, SmoothedStates, StateSpaceMatrices
from logderiv.processes.state_space.models import (
    LinearGaussian,
    LinearGaussianParams,
    LocalLevel,
    LocalLevelParams,
    StateSpaceModel,
)
from logderiv.processes.token_model import TokenModel, TokenObservation, TokenPolicy, Tree

__all__ = [
    "AutonomousProcess",
    "Autoregressive",
    "AutoregressiveParams",
    "EulerMaruyama",
    "EulerPolicy",
    "Event",
    "Filtered",
    "GaussianMoments",
    "HiddenMarkovModel",
    "HiddenMarkovParams",
    "HiddenProcess",
    "JointPolicy",
    "JumpPolicy",
    "JumpProcess",
    "LinearGaussian",
    "LinearGaussianParams",
    "LinearPolicyParams",
    "LinearQuadratic",
    "LocalLevel",
    "LocalLevelParams",
    "MarkovChain",
    "MarkovChainParams",
    "MassAction",
    "MasterEquationValue",
    "MatrixGame",
    "MultivariateNormal",
    "NextEvent",
    "Population",
    "Position",
    "Previous",
    "ProcessPolicy",
    "QuadraticValues",
    "RandomWalk",
    "SmoothedChain",
    "SmoothedStates",
    "StateSpaceMatrices",
    "StateSpaceModel",
    "TokenModel",
    "TokenObservation",
    "TokenPolicy",
    "Tree",
    "WalkPolicy",
    "birth_death",
    "birth_death_mean",
    "covariance_from",
    "double_well",
    "double_well_drift",
    "fisher_score",
    "fisher_score_samples",
    "girsanov_log_ratios",
    "log_cholesky_of",
    "look_ahead",
    "markov_chain",
    "master_equation_value",
    "ornstein_uhlenbeck",
    "ornstein_uhlenbeck_drift",
    "ornstein_uhlenbeck_moments",
    "prisoners_dilemma",
    "random_walk",
    "schlogl",
    "transfer_value",
]
