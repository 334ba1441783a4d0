"""The expected cost of one choice, or of a program of many, and its gradient."""

from logderiv.expectations.one_choice import gradients_measure_valued, gradients_pathwise, gradients_score
from logderiv.expectations.programs import Expectation, bounded_while_loop, expectation
from logderiv.expectations.tape import Tape

__all__ = ["Expectation", "Tape", "bounded_while_loop", "expectation", "gradients_measure_valued"]
__all__ += ["gradients_pathwise", "gradients_score"]
