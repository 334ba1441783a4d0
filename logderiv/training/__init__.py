"""The training loop, and what surrounds it."""

from logderiv._core.sharding import make_mesh
from logderiv.training.batches import Batch, Episodes, Groups, Steps
from logderiv.training.checkpoints import Checkpoints
from logderiv.training.evaluation import Evaluation, evaluate
from logderiv.training.loop import Metrics, TrainState
from logderiv.training.optimizers import maximize
from logderiv.training.run import Training, train

__all__ = ["Batch", "Checkpoints", "Episodes", "Evaluation", "Groups", "Metrics", "Steps", "TrainState", "Training"]
__all__ += ["evaluate", "make_mesh", "maximize", "train"]
