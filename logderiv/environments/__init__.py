"""Environments with the two-function protocol of `logderiv.types.Environment`, and adapters to public suites."""

from logderiv.environments._spaces import ActionSpace, check_action
from logderiv.environments.gymnasium.adapter import Gymnasium
from logderiv.environments.rewards import RewardLaw
from logderiv.environments.suites import Brax, Gymnax, Jumanji, as_environment
from logderiv.environments.tabular import TabularMDP, short_corridor
from logderiv.environments.transitions import Converted, from_transitions

__all__ = ["ActionSpace", "Brax", "Gymnasium", "Gymnax", "Jumanji", "TabularMDP", "as_environment", "check_action"]
__all__ += ["Converted", "RewardLaw", "from_transitions", "short_corridor"]
