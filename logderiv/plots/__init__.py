"""Figures: learning curves over seeds, both sides of the identity, and errors against length, number or time.

matplotlib is imported inside the functions only, so that `import logderiv` does not need it. Each function draws into
`ax` and returns it; titles and limits are the caller's.
"""

from logderiv.plots.errors import frontier, identity, relative_error
from logderiv.plots.learning import learning_curves

__all__ = ["frontier", "identity", "learning_curves", "relative_error"]
