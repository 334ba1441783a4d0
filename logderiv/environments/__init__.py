"""Worlds with the two-function protocol of `logderiv.types.Environment`, and adapters to public suites."""

from logderiv.environments.adapters import as_environment as as_environment
from logderiv.environments.brax import Brax as Brax
from logderiv.environments.gymnasium import Gymnasium as Gymnasium
from logderiv.environments.gymnax import Gymnax as Gymnax
from logderiv.environments.jumanji import Jumanji as Jumanji
from logderiv.environments.suites import ActionSpace as ActionSpace
from logderiv.environments.suites import check_action as check_action
from logderiv.environments.tabular import TabularMDP as TabularMDP
from logderiv.environments.tabular import short_corridor as short_corridor
