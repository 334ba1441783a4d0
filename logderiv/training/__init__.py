"""The training loop, and what surrounds it."""

from logderiv.training.checkpoints import Checkpoints
from logderiv.training.evaluation import Evaluation, evaluate
from logderiv.training.loop import Metrics, TrainState
from logderiv.training.run import Training, maximize, train

__all__ = [
    "Checkpoints",
    "Evaluation",
    "Metrics",
    "TrainState",
    "Training",
    "evaluate",
    "maximize",
    "train",
]
