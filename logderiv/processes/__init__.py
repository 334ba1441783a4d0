"""Stochastic processes as policies: what depends on the parameters is drawn, and scored, like an action.

A process is an environment that carries its own `policy`, so that everything in the library applies to it as it stands:

    taus = ld.rollout(params, keys, process.policy, process, horizon=T)
    logp = ld.log_prob(params, process.policy, taus)
    score = jax.grad(ld.log_prob)(params, process.policy, tau)

Parameters in the start are drawn at the first step, whose observation says `start`; parameters in the dynamics are
drawn as an action that *is* the next state. Beside each process stand its exact numbers.
"""

from logderiv.processes.autoregressive import Autoregressive, AutoregressiveParams
from logderiv.processes.base import GaussianMoments, Previous, Process
from logderiv.processes.control import LinearPolicyParams, LinearQuadratic, QuadraticValues
from logderiv.processes.diffusion import (
    EulerMaruyama,
    Position,
    double_well_drift,
    girsanov_log_ratios,
    ornstein_uhlenbeck_drift,
    ornstein_uhlenbeck_moments,
    transfer_value,
)
from logderiv.processes.games import MatrixGame, look_ahead, prisoners_dilemma
from logderiv.processes.jump import (
    Event,
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
from logderiv.processes.markov_chains import MarkovChain, MarkovChainParams, MarkovChainPolicy, RandomWalk
from logderiv.processes.parameter_search import Fitness, NormalSearch, SearchParams, TreeNormal, rollout_pairs
from logderiv.processes.state_space.hidden import Emitting, Filtered, HiddenProcess, fisher_score, fisher_score_samples
from logderiv.processes.state_space.hidden_markov import (
    HiddenMarkovModel,
    HiddenMarkovParams,
    NormalEmissionParams,
    StatePath,
    categorical_emission,
    normal_emission,
    poisson_emission,
)
from logderiv.processes.state_space.kalman import StateSpaceMatrices
from logderiv.processes.state_space.models import (
    LinearGaussian,
    LinearGaussianParams,
    LocalLevel,
    LocalLevelParams,
    StateSpaceModel,
)
from logderiv.processes.state_space.particles import HiddenChain, Particles, particle_filter
from logderiv.processes.token_model import TokenModel, TokenObservation, TokenPolicy, TokenState

__all__ = ["Autoregressive", "AutoregressiveParams", "Emitting", "EulerMaruyama", "Event", "Filtered", "Fitness"]
__all__ += ["GaussianMoments", "HiddenChain", "HiddenMarkovModel", "HiddenMarkovParams", "HiddenProcess", "JumpProcess"]
__all__ += ["LinearGaussian", "LinearGaussianParams", "LinearPolicyParams", "LinearQuadratic", "LocalLevel"]
__all__ += ["LocalLevelParams", "MarkovChain", "MarkovChainParams", "MarkovChainPolicy", "MassAction"]
__all__ += [
    "MasterEquationValue",
    "MatrixGame",
    "NextEvent",
    "NormalEmissionParams",
    "NormalSearch",
    "Particles",
    "Population",
    "Position",
    "Previous",
]
__all__ += ["Process", "QuadraticValues", "RandomWalk", "SearchParams", "StatePath", "StateSpaceMatrices"]
__all__ += ["StateSpaceModel", "categorical_emission", "normal_emission", "poisson_emission"]
__all__ += ["TokenModel", "TokenObservation", "TokenPolicy", "TokenState", "TreeNormal", "birth_death"]
__all__ += ["birth_death_mean", "double_well_drift", "fisher_score", "fisher_score_samples", "girsanov_log_ratios"]
__all__ += [
    "look_ahead",
    "master_equation_value",
    "ornstein_uhlenbeck_drift",
    "ornstein_uhlenbeck_moments",
    "particle_filter",
]
__all__ += ["prisoners_dilemma", "rollout_pairs", "schlogl", "transfer_value"]
