"""What a run tells while it runs: pass these to `train(..., reporters=[...])`, or write your own `Reporter`."""

from logderiv.training.reporting import Bar, CSVWriter, Reporter, TensorBoardWriter

__all__ = ["Bar", "CSVWriter", "Reporter", "TensorBoardWriter"]
