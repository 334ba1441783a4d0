"""Figures: learning curves over seeds, both sides of the identity, and errors against length, number or time.

matplotlib is imported inside the functions only, so that `import logderiv` does not need it. Each function draws into
`ax` and returns it; titles and limits are the caller's.
"""

from logderiv.plots.errors import frontier as frontier
from logderiv.plots.errors import identity as identity
from logderiv.plots.errors import relative_error as relative_error
from logderiv.plots.learning import learning_curves as learning_curves
