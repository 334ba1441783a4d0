"""Environments of Gymnasium, which run on the host."""

from logderiv.environments.gymnasium.adapter import Gymnasium, is_gymnasium

__all__ = ["Gymnasium", "is_gymnasium"]
