"""Environments of Gymnasium, which run on the host."""

from logderiv.environments.gymnasium.adapter import Gymnasium

__all__ = ["Gymnasium"]
