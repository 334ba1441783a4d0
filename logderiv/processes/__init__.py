"""Stochastic processes as policies: what depends on the parameters is drawn, and scored, like an action.

A process is an environment that carries its own `policy`, so that everything in the library applies to it as it stands:

    taus = ld.rollout(params, keys, process.policy, process, horizon=T)
    logp = ld.log_prob(params, process.policy, taus)
    score = jax.grad(ld.log_prob)(params, process.policy, tau)

Parameters in the start are drawn at the first step, whose observation says `start`; parameters in the dynamics are
drawn as an action that *is* the next state. Beside each process stand its exact numbers.
"""

from logderiv.processes.autoregressive import Autoregressive as Autoregressive
from logderiv.processes.autoregressive import AutoregressiveParams as AutoregressiveParams
from logderiv.processes.autoregressive import GaussianMoments as GaussianMoments
from logderiv.processes.base import AutonomousProcess as AutonomousProcess
from logderiv.processes.base import Previous as Previous
from logderiv.processes.base import ProcessPolicy as ProcessPolicy
from logderiv.processes.diffusion import EulerMaruyama as EulerMaruyama
from logderiv.processes.diffusion import EulerPolicy as EulerPolicy
from logderiv.processes.diffusion import Position as Position
from logderiv.processes.diffusion import double_well as double_well
from logderiv.processes.diffusion import double_well_drift as double_well_drift
from logderiv.processes.diffusion import girsanov_log_ratios as girsanov_log_ratios
from logderiv.processes.diffusion import ornstein_uhlenbeck as ornstein_uhlenbeck
from logderiv.processes.diffusion import ornstein_uhlenbeck_drift as ornstein_uhlenbeck_drift
from logderiv.processes.diffusion import ornstein_uhlenbeck_moments as ornstein_uhlenbeck_moments
from logderiv.processes.diffusion import transfer_value as transfer_value
from logderiv.processes.games import JointPolicy as JointPolicy
from logderiv.processes.games import MatrixGame as MatrixGame
from logderiv.processes.games import look_ahead as look_ahead
from logderiv.processes.games import prisoners_dilemma as prisoners_dilemma
from logderiv.processes.gaussian import MultivariateNormal as MultivariateNormal
from logderiv.processes.gaussian import covariance_from as covariance_from
from logderiv.processes.gaussian import log_cholesky_of as log_cholesky_of
from logderiv.processes.hidden import HiddenProcess as HiddenProcess
from logderiv.processes.hidden import fisher_score as fisher_score
from logderiv.processes.hidden import fisher_score_samples as fisher_score_samples
from logderiv.processes.hidden_markov import HiddenMarkovModel as HiddenMarkovModel
from logderiv.processes.hidden_markov import HiddenMarkovParams as HiddenMarkovParams
from logderiv.processes.hidden_markov import SmoothedChain as SmoothedChain
from logderiv.processes.jump import Event as Event
from logderiv.processes.jump import JumpPolicy as JumpPolicy
from logderiv.processes.jump import JumpProcess as JumpProcess
from logderiv.processes.jump import MassAction as MassAction
from logderiv.processes.jump import MasterEquationValue as MasterEquationValue
from logderiv.processes.jump import NextEvent as NextEvent
from logderiv.processes.jump import Population as Population
from logderiv.processes.jump import birth_death as birth_death
from logderiv.processes.jump import birth_death_mean as birth_death_mean
from logderiv.processes.jump import master_equation_value as master_equation_value
from logderiv.processes.jump import schlogl as schlogl
from logderiv.processes.kalman import Filtered as Filtered
from logderiv.processes.kalman import SmoothedStates as SmoothedStates
from logderiv.processes.kalman import StateSpaceMatrices as StateSpaceMatrices
from logderiv.processes.linear_gaussian import LinearPolicyParams as LinearPolicyParams
from logderiv.processes.linear_gaussian import LinearQuadratic as LinearQuadratic
from logderiv.processes.linear_gaussian import QuadraticValues as QuadraticValues
from logderiv.processes.markov_chain import MarkovChain as MarkovChain
from logderiv.processes.markov_chain import MarkovChainParams as MarkovChainParams
from logderiv.processes.markov_chain import markov_chain as markov_chain
from logderiv.processes.random_walk import RandomWalk as RandomWalk
from logderiv.processes.random_walk import WalkPolicy as WalkPolicy
from logderiv.processes.random_walk import random_walk as random_walk
from logderiv.processes.state_space import LinearGaussian as LinearGaussian
from logderiv.processes.state_space import LinearGaussianParams as LinearGaussianParams
from logderiv.processes.state_space import LocalLevel as LocalLevel
from logderiv.processes.state_space import LocalLevelParams as LocalLevelParams
from logderiv.processes.state_space import StateSpaceModel as StateSpaceModel
from logderiv.processes.tokens import TokenModel as TokenModel
from logderiv.processes.tokens import TokenObservation as TokenObservation
from logderiv.processes.tokens import TokenPolicy as TokenPolicy
from logderiv.processes.tokens import Tree as Tree
