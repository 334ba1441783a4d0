"""`Bias`: what is known about the expectation of an estimator, as data.

Each part of an estimator (credit, importance, baseline, surrogate) declares what it does to the expectation; `&` gives
the declaration of the whole. A part that declares nothing is not called unbiased: `declared` refuses it with a reason.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax


def unit(num_trajectories: int) -> float:
    """The factor of an unbiased estimator: 1 at every N."""
    del num_trajectories  # the same at every N
    return 1.0


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Bias:
    """What is known about E[g]; declared by each part of an estimator, composed by `&`, and tested exactly.

    Attributes:
        order: Derivatives 1 to `order` of the objective are unbiased; 0 where the gradient itself is biased.
        min_trajectories: Below this many trajectories the estimator is not defined, and raises.
        factor: Exact `E[g] / grad J` at N trajectories, `None` where no such factor exists.
        degree: The estimator is the mean over all subsets of this many trajectories of itself (a U-statistic), so that
            mean and covariance at every N follow from `degree`-tuples; `None` where it has no such structure.
        symmetric: The estimate does not depend on the order of the trajectories.
        objective: Whose gradient it estimates.
        assumes: Conditions that the declaration needs.
        reasons: Which part spoiled unbiasedness, and why.
    """

    order: float = math.inf
    min_trajectories: int = 1
    factor: Callable[[int], float] | None = unit
    degree: int | None = 1
    symmetric: bool = True
    objective: str = "finite-horizon discounted return"
    assumes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    def __and__(self, other: "Bias") -> "Bias":
        """The bias of an estimator with both parts.

        Raises:
            ValueError: The two parts estimate different objectives.
        """
        if self.objective != other.objective:
            raise ValueError(
                f"bias: the parts estimate different objectives, {self.objective!r} and {other.objective!r}."
            )
        return dataclasses.replace(
            self,
            order=min(self.order, other.order),
            min_trajectories=max(self.min_trajectories, other.min_trajectories),
            factor=_product(self.factor, other.factor),
            degree=None if self.degree is None or other.degree is None else max(self.degree, other.degree),
            symmetric=self.symmetric and other.symmetric,
            assumes=_union(self.assumes, other.assumes),
            reasons=_union(self.reasons, other.reasons),
        )

    def check(self, num_trajectories: int) -> None:
        """Raise `ValueError` below the minimum number of trajectories."""
        if num_trajectories < self.min_trajectories:
            raise ValueError(
                f"trajectories: expected at least {self.min_trajectories} for this estimator, received {num_trajectories}; "
                "draw more, or choose another baseline."
            )


def biased(reason: str, **fields: Any) -> Bias:
    """The declaration of a part that biases the gradient, without a known factor unless one is given."""
    return Bias(**{"order": 0, "factor": None, "reasons": (reason,), **fields})


def declared(part: Any, known: Mapping[Any, Bias], kind: str) -> Bias:
    """What a part declares: its attribute `bias`, or what is `known` of a function of the library.

    A part that declares nothing is refused: order 0, with the reason and the remedy, and `degree` None.
    """
    if isinstance(own := getattr(part, "bias", None), Bias):
        return own
    for function, bias in known.items():
        if part is function:
            return bias
    name = getattr(part, "__name__", type(part).__name__)
    return biased(f"unknown {kind} {name!r}: declare it by an attribute bias = logderiv.Bias(...)", degree=None)


def _product(first: Callable | None, second: Callable | None) -> Callable | None:
    if first is None or second is None:
        return None
    if first is unit:
        return second
    return first if second is unit else _Product(first, second)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Product:
    first: Callable
    second: Callable

    def __call__(self, num_trajectories: int) -> float:
        return self.first(num_trajectories) * self.second(num_trajectories)


def _union(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return first + tuple(x for x in second if x not in first)
