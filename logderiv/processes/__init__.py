"""Stochastic processes as policies: what depends on the parameters is drawn, and scored, like an action.

A process is an environment that carries its own `policy`, so that everything in the library applies to it as it stands:

    taus = ld.rollout(params, keys, process.policy, process, horizon=T)
    logp = ld.log_prob(params, process.policy, taus)
    score = jax.grad(ld.log_prob)(params, process.policy, tau)

Parameters in the start are drawn at the first step, whose observation says `start`; parameters in the dynamics are
drawn as an action that *is* the next state. Beside each process stand its exact numbers.
"""

from logderiv.processes.autoregressive import Autoregressive, AutoregressiveParams
from logderiv.processes.base import Process
from logderiv.processes.control import LinearPolicyParams, LinearQuadratic
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
    NextEvent,
    Population,
    birth_death,
    birth_death_mean,
    master_equation_value,
    schlogl,
)
from logderiv.processes.markov_chains import MarkovChain, MarkovChainParams, RandomWalk
from logderiv.processes.parameter_search import Fitness, NormalSearch, SearchParams, TreeNormal, rollout_pairs
from logderiv.processes.state_space.hidden import HiddenProcess, fisher_score, fisher_score_samples
from logderiv.processes.state_space.hidden_markov import HiddenMarkovModel, HiddenMarkovParams
from logderiv.processes.state_space.kalman import StateSpaceMatrices
from logderiv.processes.state_space.models import (
    LinearGaussian,
    LinearGaussianParams,
    LocalLevel,
    LocalLevelParams,
    StateSpaceModel,
)
from logderiv.processes.token_model import TokenModel, TokenObservation, TokenPolicy

__all__ = ["Autoregressive", "AutoregressiveParams", "EulerMaruyama", "Event", "Fitness", "HiddenMarkovModel"]
__all__ += ["HiddenMarkovParams", "HiddenProcess", "JumpProcess", "LinearGaussian", "LinearGaussianParams"]
__all__ += ["LinearPolicyParams", "LinearQuadratic", "LocalLevel", "LocalLevelParams", "MarkovChain"]
__all__ += ["MarkovChainParams", "MassAction", "MatrixGame", "NextEvent", "NormalSearch", "Population", "Position"]
__all__ += ["Process", "RandomWalk", "SearchParams", "StateSpaceMatrices", "StateSpaceModel", "TokenModel"]
__all__ += ["TokenObservation", "TokenPolicy", "TreeNormal", "birth_death", "birth_death_mean", "double_well_drift"]
__all__ += ["fisher_score", "fisher_score_samples", "girsanov_log_ratios", "look_ahead", "master_equation_value"]
__all__ += ["ornstein_uhlenbeck_drift", "ornstein_uhlenbeck_moments", "prisoners_dilemma", "rollout_pairs", "schlogl"]
__all__ += ["transfer_value"]
