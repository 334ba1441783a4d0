"""What a run tells while it runs."""

from logderiv.training.reporting.bar import Bar
from logderiv.training.reporting.files import CSVWriter, TensorBoardWriter
from logderiv.training.reporting.protocol import Reporter

__all__ = ["Bar", "CSVWriter", "Reporter", "TensorBoardWriter"]
