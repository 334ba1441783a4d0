"""Policies that take trajectories as a whole: their log-factors, and terms of single steps by them."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from logderiv._core import check
from logderiv.likelihood.token_sums import token_sum
from logderiv.likelihood.vocabulary import token_log_probs
from logderiv.policies.stepwise import StepPolicy
from logderiv.types import FunctionPolicy, Params, Trajectory


def per_trajectory(function: Callable[..., Any], num_axes: int) -> Callable[..., Any]:
    """`function`, written for one trajectory, over leading batch axes."""
    for _ in range(num_axes):
        function = jax.vmap(function)
    return function


def of_sequences(
    visit: Callable[..., Any], params: Params, model: Any, trajectory: Trajectory, rows: Any, reduce: str | None
) -> tuple[jax.Array, bool]:
    """The term of every step of a policy that takes trajectories as a whole, or the sum over all of them; and whether it is that.

    Args:
        visit: `(policy, params, carry, row)` to the carry after a step and its term.
        params: Parameters of the policy.
        model: The policy's own `log_factors`.
        trajectory: Leading axes `(*batch, T)`; what stands in invalid steps is safe.
        rows: What `visit` is given of each step.
        reduce: `"all"` where the sum over all steps is wanted.
    """
    num_axes, valid = trajectory.valid.ndim, trajectory.valid

    def log_factors(tau: Trajectory) -> jax.Array:
        values = model(params, tau)
        hint = "(T,) of one trajectory: one log-probability per step, event axes summed"
        check.shape(tau.valid.shape, hint=hint, **{"policy.log_factors": values})
        return values

    def one(log: jax.Array, row: Any) -> jax.Array:
        return visit(StepPolicy(FunctionPolicy(lambda *_: _KnownFactor(log))), params, (), row)[1]

    if isinstance(model, HiddenStates):
        hidden = per_trajectory(partial(model.hidden, params), num_axes - 1)(trajectory)
        tokens, scales = (model.unembedding(params), hidden, trajectory.actions), model.scales
        if reduce == "all" and valid.size:
            found = token_sum(lambda token, row: one(token.log_prob, row), *tokens, rows, valid=valid, **scales)
            return found.value, True
        logs = token_log_probs(*tokens, valid=valid, **scales).log_probs
    else:
        logs = per_trajectory(log_factors, num_axes - 1)(trajectory)
    return per_trajectory(one, num_axes)(logs, rows), False


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """Log-factors of a model of tokens by its hidden states: `FunctionPolicy(step, log_factors=HiddenStates(hidden, unembedding))`.

    Log-probabilities are then those of `token_log_probs`, and what sums over the steps of a batch, as estimators of the first order do, takes value and
    gradient in one pass, by `token_sum`. As with any `log_factors`, every valid step is one that the model chose: a prompt belongs into the observations.

    Attributes:
        hidden: `(params, trajectory) -> (T, D)` for one trajectory: that of step t has seen the tokens before t.
        unembedding: `(params) -> (V, D)`.
        temperature: At which the tokens are drawn, > 0.
        soft_cap: That of the logits, > 0; `None` for none.

    Raises:
        ValueError: Temperature or soft-cap is not positive.
    """

    hidden: Callable[[Params, Trajectory], jax.Array]
    unembedding: Callable[[Params], jax.Array]
    temperature: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        check.positive(temperature=self.temperature)
        if self.soft_cap is not None:
            check.positive(soft_cap=self.soft_cap)

    @property
    def scales(self) -> dict[str, Any]:
        """What `token_log_probs` and `token_sum` are told beside hidden states and unembedding."""
        return {"temperature": self.temperature, "soft_cap": self.soft_cap}

    def __call__(self, params: Params, trajectory: Trajectory) -> jax.Array:
        """The log-probability of each token of one trajectory.

        Args:
            params: Parameters of the model.
            trajectory: One trajectory; its actions are tokens.

        Returns:
            Shape `(T,)`.
        """
        arrays = self.unembedding(params), self.hidden(params, trajectory), trajectory.actions
        return token_log_probs(*arrays, valid=trajectory.valid, **self.scales).log_probs


@dataclasses.dataclass(frozen=True)
class _KnownFactor:
    """The distribution of a step of which only the log-probability of its action is known."""

    log: jax.Array

    def log_prob(self, action: Any) -> jax.Array:
        del action  # the step's own
        return self.log

    def __getattr__(self, name: str) -> Any:
        if name in ("entropy", "sample", "mode", "mean", "contains"):
            raise TypeError(
                f"policy: one with log_factors of its own does not give its {name}, only the log-probability of the action that was "
                "taken; leave log_factors out to have its steps taken one by one."
            )
        raise AttributeError(name)
