"""State-space models and hidden Markov models, with their exact filters and smoothers."""

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

__all__ = [
    "Filtered",
    "HiddenMarkovModel",
    "HiddenMarkovParams",
    "HiddenProcess",
    "LinearGaussian",
    "LinearGaussianParams",
    "LocalLevel",
    "LocalLevelParams",
    "SmoothedChain",
    "SmoothedStates",
    "StateSpaceMatrices",
    "StateSpaceModel",
    "fisher_score",
    "fisher_score_samples",
]
