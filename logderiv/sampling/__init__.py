"""Trajectories and streams, drawn."""

from logderiv.sampling.episodes import rollout
from logderiv.sampling.streams import StreamState, collect, start_streams

__all__ = ["StreamState", "collect", "rollout", "start_streams"]
