"""Worlds with the two-function protocol of `logderiv.types.Environment`, and adapters to public suites."""

from logderiv.environments.adapters import Gymnax as Gymnax
from logderiv.environments.adapters import as_environment as as_environment
from logderiv.environments.tabular import TabularMDP as TabularMDP
from logderiv.environments.tabular import short_corridor as short_corridor
