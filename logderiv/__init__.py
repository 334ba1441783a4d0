"""The log-derivative identity on trajectories: score-function gradients that can be proved right.

`import logderiv as ld` and everything public is one dot away.
"""

from logderiv import exact as exact
from logderiv.baselines import Baseline as Baseline
from logderiv.baselines import baseline_leave_one_out as baseline_leave_one_out
from logderiv.baselines import baseline_none as baseline_none
from logderiv.bias import Bias as Bias
from logderiv.credit import reward_to_go as reward_to_go
from logderiv.credit import total_return as total_return
from logderiv.distributions import Bernoulli as Bernoulli
from logderiv.distributions import Categorical as Categorical
from logderiv.distributions import Normal as Normal
from logderiv.environments import Gymnax as Gymnax
from logderiv.environments import TabularMDP as TabularMDP
from logderiv.environments import short_corridor as short_corridor
from logderiv.estimators import Estimator as Estimator
from logderiv.estimators import score_function as score_function
from logderiv.identity import Case as Case
from logderiv.identity import Comparison as Comparison
from logderiv.identity import compare as compare
from logderiv.likelihood import grad_prob as grad_prob
from logderiv.likelihood import log_factors as log_factors
from logderiv.likelihood import log_prob as log_prob
from logderiv.likelihood import prob as prob
from logderiv.likelihood import signed_prob as signed_prob
from logderiv.policies import GRU as GRU
from logderiv.policies import MLP as MLP
from logderiv.policies import linear as linear
from logderiv.policies import normal_head as normal_head
from logderiv.policies import shared_softmax as shared_softmax
from logderiv.policies import tabular_softmax as tabular_softmax
from logderiv.rollout import batch_info as batch_info
from logderiv.rollout import rollout as rollout
from logderiv.surrogates import dice_surrogate as dice_surrogate
from logderiv.surrogates import score_surrogate as score_surrogate
from logderiv.training import Metrics as Metrics
from logderiv.training import Training as Training
from logderiv.training import maximize as maximize
from logderiv.training import train as train
from logderiv.types import BatchInfo as BatchInfo
from logderiv.types import Distribution as Distribution
from logderiv.types import Environment as Environment
from logderiv.types import Estimate as Estimate
from logderiv.types import Policy as Policy
from logderiv.types import SignedLog as SignedLog
from logderiv.types import Step as Step
from logderiv.types import Trajectory as Trajectory
from logderiv.types import next_observations as next_observations

__version__ = "0.1.0"
