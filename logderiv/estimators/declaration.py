"""What is known about an estimator: its `Structure`, and its `Declaration`.

The structure follows from what is static: how many trajectories are needed, and what may be done with a batch. Compiled code,
`estimate`, `train` and `logderiv.exact` ask for nothing else. The declaration says whose gradient the estimator's expectation
is, and is computed when it is read, from concrete settings. It belongs to the whole estimator: parts that are harmless alone can
be biased together (`Weighting.declaration`), so each part only contributes to it.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from logderiv._core import check
from logderiv.types import Params, State

Factor = Callable[[int], float]
RETURN = "return"  # the finite-horizon discounted return


class Structure(NamedTuple):
    """What follows from an estimator's static fields alone.

    Attributes:
        min_trajectories: Below this many trajectories the estimator is not defined, and raises.
        degree: The estimator is the mean over all subsets of this many trajectories of itself (a U-statistic), so that mean
            and covariance at every N follow from `degree`-tuples; `None` where it has no such structure.
        symmetric: The estimate does not depend on the order of the trajectories.
        streams: It takes a `Stream`, whose episodes may be cut anywhere.
        reusable: Several gradients may be taken from one batch, at parameters other than those that drew it.
        group_size: So many consecutive trajectories belong together; 1 where none do.
    """

    min_trajectories: int = 1
    degree: int | None = 1
    symmetric: bool = True
    streams: bool = False
    reusable: bool = False
    group_size: int = 1

    def __and__(self, other: "Structure") -> "Structure":
        """The structure of both parts together; `streams`, `reusable` and `group_size` are those of the first."""
        return self._replace(
            min_trajectories=max(self.min_trajectories, other.min_trajectories),
            degree=None if self.degree is None or other.degree is None else max(self.degree, other.degree),
            symmetric=self.symmetric and other.symmetric,
        )

    def check(self, num_trajectories: int) -> None:
        """Raise `ValueError` below the minimum number of trajectories.

        Args:
            num_trajectories: N of the batch.

        Raises:
            ValueError: There are too few.
        """
        if num_trajectories < self.min_trajectories:  # also of a symbolic dimension, which `check` does not know
            hint = "this estimator needs as many; draw more, or choose another baseline"
            check.whole(at_least=self.min_trajectories, hint=hint, trajectories=num_trajectories)


def one(num_trajectories: int) -> float:
    """The factor of an unbiased estimator, 1.

    Args:
        num_trajectories: N, on which it does not depend.

    Returns:
        1.
    """
    del num_trajectories
    return 1.0


@dataclasses.dataclass(frozen=True)
class Declaration:
    """Which objectives an estimator's expectation is the gradient of, and up to which derivative.

    Attributes:
        objectives: Name of each objective to its exact factor at N trajectories, a function of N: E[g] is the sum of their
            gradients, each times its factor. Without an entry no factor exists.
        order: Derivatives 1 to `order` of the objective are unbiased; 0 where the gradient itself is biased.
        assumes: Conditions that the declaration needs.
        reasons: What spoiled unbiasedness, and why.
    """

    objectives: Mapping[str, Factor] = dataclasses.field(default_factory=lambda: {RETURN: one})
    order: float = math.inf
    assumes: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()

    @property
    def unbiased(self) -> bool:
        """Whether the expectation of the gradient is the gradient of the return itself, at every N."""
        return self.order >= 1 and self.objectives.get(RETURN) is one and len(self.objectives) == 1

    def factor(self, num_trajectories: int, objective: str = RETURN) -> float | None:
        """The factor of one objective, `E[g] / grad J`.

        Args:
            num_trajectories: N.
            objective: Its name.

        Returns:
            The factor; `None` where the expectation is no multiple of the gradient.
        """
        found = self.objectives.get(objective)
        return None if found is None else found(num_trajectories)

    def __and__(self, other: "Declaration") -> "Declaration":
        """The declaration of an estimator with both parts, if the two do not meet in any other way."""
        shared = [name for name in self.objectives if name in other.objectives]
        return Declaration(
            {name: _product(self.objectives[name], other.objectives[name]) for name in shared},
            min(self.order, other.order),
            tuple(dict.fromkeys(self.assumes + other.assumes)),
            tuple(dict.fromkeys(self.reasons + other.reasons)),
        )

    def __add__(self, other: "Declaration") -> "Declaration":
        """The declaration of the sum of two estimates, which is of no known objective where one of them is of none."""
        found: dict[str, Factor] = {}
        if all(part.objectives or part.order >= 1 for part in (self, other)):
            found = {**self.objectives, **other.objectives}
            found |= {
                name: _sum(self.objectives[name], other.objectives[name])
                for name in self.objectives
                if name in other.objectives
            }
        return dataclasses.replace(self & other, objectives=found)

    def scaled(self, factor: Factor) -> "Declaration":
        """The declaration of the estimate times a number that may depend on N.

        Args:
            factor: The number.

        Returns:
            The same with every factor multiplied.
        """
        return dataclasses.replace(
            self, objectives={name: _product(own, factor) for name, own in self.objectives.items()}
        )


def biased(reason: str, factor: Factor | None = None) -> Declaration:
    """The declaration of a part that biases the gradient.

    Args:
        reason: Why.
        factor: What is left of the gradient, as a function of N, where that is known.

    Returns:
        A `Declaration` of order 0.
    """
    return Declaration({} if factor is None else {RETURN: factor}, order=0, reasons=(reason,))


class Part:
    """Base of what an estimator is composed of, and of estimators. Nothing is assumed of a part that does not say it.

    Attributes:
        structure: What it asks of a batch, a `Structure`.
        declaration: What it does to the expectation, a `Declaration`; a part without one is counted as biased.
    """

    structure: Any = Structure(degree=None)
    declaration: Any = None

    def init(self, params: Params) -> State:
        """The first state, of a part that carries one from batch to batch.

        Args:
            params: Parameters of the policy.

        Returns:
            A pytree of arrays, `()` for nothing.
        """
        del params
        return ()


def declaration_of(part: Any) -> Declaration:
    """What a part declares by its attribute `declaration`; one that declares nothing is counted as biased, with the remedy.

    Args:
        part: A part of an estimator, or a function.

    Returns:
        Its `Declaration`.
    """
    own = getattr(part, "declaration", None)
    if isinstance(own, Declaration):
        return own
    name = getattr(part, "__name__", type(part).__name__)
    remedy = "declare it by an attribute declaration = logderiv.estimators.Declaration(...)"
    return biased(f"unknown part {name!r}: {remedy}")


def concrete(name: str, setting: Any) -> np.ndarray:
    """A setting as a number, or an array of numbers, to decide a declaration.

    Args:
        name: Its name.
        setting: Its value.

    Returns:
        The value.

    Raises:
        ValueError: It is traced; the message names it.
    """
    if check.is_traced(setting):
        raise ValueError(
            f"{name}: expected a concrete number to read the declaration, received a traced one; read it outside of jax.jit "
            "and jax.vmap. What compiled code needs is in `structure`."
        )
    return np.asarray(setting)


def _product(first: Factor, second: Factor) -> Factor:
    if first is one or second is one:
        return second if first is one else first
    return lambda num_trajectories: first(num_trajectories) * second(num_trajectories)


def _sum(first: Factor, second: Factor) -> Factor:
    return lambda num_trajectories: first(num_trajectories) + second(num_trajectories)
