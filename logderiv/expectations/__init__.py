"""The expected cost of one choice, or of a model or a program of many, and its gradient."""

from logderiv.expectations.calls import cost, expected, key, plate, sample, score
from logderiv.expectations.loops import bounded_while_loop
from logderiv.expectations.models import Site
from logderiv.expectations.one_choice import gradients_measure_valued, gradients_pathwise, gradients_score
from logderiv.expectations.programs import Expectation, Runs, expectation
from logderiv.expectations.tape import Tape

__all__ = ["Expectation", "Runs", "Site", "Tape", "bounded_while_loop", "cost", "expectation", "expected"]
__all__ += ["gradients_measure_valued", "gradients_pathwise", "gradients_score", "key", "plate", "sample", "score"]
