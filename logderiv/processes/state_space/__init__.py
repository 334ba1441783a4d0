"""State-space models and hidden Markov models, with their exact filters and smoothers; reached as `logderiv.processes`."""

from logderiv.processes.state_space import hidden, hidden_markov, kalman, models, particles

__all__ = ["hidden", "hidden_markov", "kalman", "models", "particles"]
