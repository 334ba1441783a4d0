"""The expected cost of one choice, or of a program of many, and its gradient."""

from logderiv.expectations.measure_valued import gradients_measure_valued
from logderiv.expectations.programs import bounded_while_loop, expectation
from logderiv.expectations.score_and_pathwise import gradients_pathwise, gradients_score
from logderiv.expectations.tape import Tape

__all__ = ["Tape", "bounded_while_loop", "expectation", "gradients_measure_valued", "gradients_pathwise"]
__all__ += ["gradients_score"]
