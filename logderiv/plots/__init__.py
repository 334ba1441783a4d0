"""Figures: learning curves over seeds, both sides of the identity, errors against length, number or time, samplers beside trainers.

matplotlib is imported inside the functions only, so that `import logderiv` does not need it. Each function draws into
`ax` and returns it; titles and limits are the caller's.
"""

from logderiv.plots.figures import frontier, identity, learning_curves, relative_error, sampler_mismatch

__all__ = ["frontier", "identity", "learning_curves", "relative_error", "sampler_mismatch"]
