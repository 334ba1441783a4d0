"""Oracles for Gaussian processes: expectations of polynomials by Gauss-Hermite quadrature, exactly, and scipy's density."""

import itertools
from typing import Any

import numpy as np
import scipy.stats

normal_logpdf: Any = scipy.stats.multivariate_normal.logpdf  # (x, mean, covariance); its stubs know no arrays


def gauss_hermite(dimensions: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes `(K, dimensions)` and weights `(K,)` of a standard normal, exact to degree `2 points - 1` in each variable."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    grid = np.array(list(itertools.product(nodes, repeat=dimensions)))
    products = np.array([np.prod(w) for w in itertools.product(weights, repeat=dimensions)])
    return grid, products / products.sum()
