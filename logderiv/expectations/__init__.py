"""The expected cost of one choice, or of a program of many, and its gradient."""

from logderiv.expectations.one_choice import gradients_measure_valued, gradients_pathwise, gradients_score
from logderiv.expectations.programs import bounded_while_loop, expectation
from logderiv.expectations.tape import Tape

__all__ = ["Tape", "bounded_while_loop", "expectation", "gradients_measure_valued", "gradients_pathwise"]
__all__ += ["gradients_score"]
