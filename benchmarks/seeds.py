"""Training of several seeds, and what is said of it: interquartile means, bootstrap intervals, steps to a threshold; this file runs nothing."""

from typing import Any, NamedTuple

import numpy as np
from scipy.stats import trim_mean

POINTS = 24  # evaluations of a run, so that numbers of updates are multiples of it
MORE = 4  # times as many episodes of what was trained at last


class Run(NamedTuple):
    """Training of several seeds, evaluated on fresh episodes, actions sampled.

    Attributes:
        steps: Environment steps before each evaluation, `(seeds, points)`.
        returns: Mean return of each evaluation, `(seeds, points)`.
        final: Mean return of what was trained at last, on `MORE` times as many episodes, `(seeds,)`.
        compile_seconds: Tracing and compiling of the training; NaN where nothing is compiled.
        seconds: Training of all seeds, without evaluations: all side by side but for those of stable-baselines3, one a core.
        params: What was trained, leading axis `(seeds,)`, where it is the library's.
    """

    steps: np.ndarray
    returns: np.ndarray
    final: np.ndarray
    compile_seconds: float
    seconds: float
    params: Any = None

    def steps_to(self, threshold: float) -> np.ndarray:
        """Per seed, the steps used at the first evaluation that reaches the threshold; infinite if none does."""
        reached = self.returns >= threshold
        first = self.steps[np.arange(len(self.steps)), reached.argmax(axis=1)]
        return np.where(reached.any(axis=1), first, np.inf)

    def summary(self, threshold: float) -> dict[str, Any]:
        """What is printed and saved."""
        reached, used = self.steps_to(threshold), self.steps[:, -1]
        steps_per_s = float(used.sum() / self.seconds)
        return {
            "final": self.final,
            "final_mean": interquartile_mean(self.final),
            "final_interval": interval(self.final),
            "steps": float(used.mean()),
            "steps_to_threshold": reached,
            "reached": f"{np.isfinite(reached).sum()} of {len(reached)}",
            "steps_mean": interquartile_mean(reached),
            "steps_interval": interval(reached),
            "steps_per_s": steps_per_s,
            "seconds_to_threshold": interquartile_mean(reached) * len(reached) / steps_per_s,
            "compile_seconds": self.compile_seconds,
            "seconds": self.seconds,
        }


def interquartile_mean(values: np.ndarray) -> float:
    """Mean of the middle half of the seeds; infinite where one of these never got there."""
    return float(trim_mean(values, 0.25))


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval over seeds of the interquartile mean, ends that were drawn."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values)))
    low, high = np.quantile(trim_mean(drawn, 0.25, axis=1), (0.025, 0.975), method="inverted_cdf")
    return float(low), float(high)
