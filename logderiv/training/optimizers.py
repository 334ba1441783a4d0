"""Optimizers that climb an estimate: which way round, what they are given beside the gradient, and which of them cannot."""

import inspect
import operator
from collections.abc import Callable, Iterator
from types import FunctionType, MethodType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from logderiv.types import Params, Stream, Trajectory, batch_info

_CANNOT = {
    "lookahead": "keeps two copies of the parameters, and a policy acts with one; average the parameters of evaluations instead, or "
    "take optax.contrib.schedule_free_adamw",
    "differentially_private_aggregate": "takes a gradient for each example, and an estimate is one gradient for the batch",
}


class _Maximized(NamedTuple):
    """Marks the state of an optimizer that `maximize` has turned round."""


def maximize(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that ascends, for loops written by hand: optax descends, and `Estimate.grads` points uphill.

    The same as `optax.chain(optax.scale(-1.0), optimizer)`, but for an optimizer that takes some further arguments and no others,
    as `optax.contrib.sam` does: it is given those. `train` turns its optimizer round itself and refuses one that already is.

    Args:
        optimizer: Any optax optimizer.

    Returns:
        The optimizer; its state is the pair of a mark without content and the state of `optimizer`.

    Example:
        >>> import jax.numpy as jnp
        >>> climbing = maximize(optax.sgd(0.5))
        >>> climbing.update(jnp.array(2.0), climbing.init(jnp.array(0.0)))[0].item()
        1.0
    """
    return optax.chain(optax.scale(-1.0)._replace(init=lambda _: _Maximized()), _taking_its_own(optimizer))


def init_climbing(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """The first state of `maximize(optimizer)`.

    Args:
        optimizer: Descends, as optax's do.
        params: Parameters.

    Returns:
        The state.

    Raises:
        ValueError: Somewhere in `optimizer` is a `maximize`.
    """

    def turned(x: Any) -> bool:
        return isinstance(x, _Maximized)

    state: Any = maximize(optimizer).init(params)
    if any(map(turned, jax.tree.leaves(state[1], is_leaf=turned))):
        raise ValueError(
            "optimizer: expected one that descends, as optax's do, since train climbs by itself; received one with "
            "logderiv.maximize(...) in it, which would descend: leave maximize out."
        )
    return state


def check_optimizer(optimizer: Any, *, reusable: bool, streams: bool) -> None:
    """Refuse by name what cannot climb such an estimate.

    Args:
        optimizer: Descends.
        reusable: Whether the estimator's objective has a meaning at other parameters than those that drew the batch.
        streams: Whether batches are streams, in which no episode may have ended.

    Raises:
        TypeError: It takes other parameters, or other gradients, than there are.
        ValueError: It wants a value of the objective where there is none.
    """
    parts = [(_name(part), _wanted(part)) for part in _parts(optimizer, [])]
    for name, wanted in parts:
        if name in _CANNOT:
            raise TypeError(f"optimizer: received one with {name}, which {_CANNOT[name]}.")
        if "value_fn" in wanted and not reusable:
            raise ValueError(f"optimizer: received one with {name}; {_no_value('searches along a line')}")
        if "value" in wanted and "value_fn" not in wanted and streams:
            raise ValueError(
                f"optimizer: received one with {name}, which wants the mean return of each batch; in a stream (logderiv.Steps) no episode "
                "may have ended. Draw whole episodes (logderiv.Episodes)."
            )


def searches_a_line(optimizer: Any) -> bool:
    """Whether an optimizer wants a function to search along."""
    return any("value_fn" in _wanted(part) for part in _parts(optimizer, []))


def further_arguments(
    objective: Callable[[Params], jax.Array],
    value: jax.Array,
    grads: Params,
    batch: Trajectory | Stream,
    *,
    reusable: bool,
    searches: bool = False,
) -> dict[str, Any]:
    """What optax's optimizers may take beside gradients, all of the function that they descend.

    | name | is |
    |---|---|
    | `value` | minus the mean return of the batch; 0 of a stream, and where a search along a line compares values |
    | `value_fn` | `value` + L(θ) - L(·) of the estimator's objective L, where that is a surrogate of the return: of `PPO` and its kin |
    | `grad`, `grad_fn` | minus the gradient of L, here and elsewhere |

    Args:
        objective: L, of the batch at hand.
        value: L(θ), at the parameters θ before the step.
        grads: Its gradient.
        batch: The whole batch.
        reusable: Whether L has a meaning elsewhere than at θ; else the two functions raise `ValueError`.
        searches: Whether the optimizer searches along a line: a constant would take digits of what it compares.

    Returns:
        The arguments by name.
    """
    known = not searches and not isinstance(batch, Stream)
    cost = -batch_info(batch).mean_return.astype(value.dtype) if known else jnp.zeros_like(value)

    def elsewhere(function: Callable[..., Any], what: str) -> Callable[..., Any]:
        # optax hands a line search's function all that it names, and refuses what it does not.
        def given(params: Params, step: Any = None, trajectories: Any = None, grad_fn: Any = None) -> Any:
            del step, trajectories, grad_fn
            if not reusable:
                raise ValueError(f"optimizer: {_no_value(what)}")
            return function(params)

        return given

    def downhill(params: Params) -> Params:
        return jax.tree.map(lambda x: -x, jax.grad(objective)(params))

    return {
        "value": cost,
        "grad": jax.tree.map(lambda x: -x, grads),
        "value_fn": elsewhere(lambda params: cost + value - objective(params), "searches along a line"),
        "grad_fn": elsewhere(downhill, "takes gradients at several parameters"),
    }


def _no_value(what: str) -> str:
    return (
        f"it {what}, and this estimator is right at the parameters that drew the batch only: elsewhere its objective has no "
        "meaning. Use logderiv.PPO or one of its kin, or an optimizer that takes one gradient."
    )


def _taking_its_own(optimizer: Any) -> optax.GradientTransformation:
    """The same optimizer, which is given of further arguments only those that it names, where it takes no others."""
    if not isinstance(optimizer, optax.GradientTransformationExtraArgs) or _takes_any(optimizer.update):
        return optimizer
    names = _keywords(optimizer.update)

    def update(updates: Any, state: Any, params: Any = None, **further: Any) -> Any:
        return optimizer.update(updates, state, params, **{name: x for name, x in further.items() if name in names})

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _keywords(function: Any) -> list[str]:
    return [x.name for x in inspect.signature(function).parameters.values() if x.kind == x.KEYWORD_ONLY]


def _takes_any(function: Any) -> bool:
    return any(x.kind == x.VAR_KEYWORD for x in inspect.signature(function).parameters.values())


def _name(function: Any) -> str:
    """Of the function of optax that made this one."""
    return function.__qualname__.partition(".")[0]


def _wanted(function: Any) -> list[str]:
    """What it takes by name, where it updates."""
    names = list(inspect.signature(function).parameters)
    return _keywords(function) if names[:2] == ["updates", "state"] else []


def _parts(thing: Any, seen: list[Any]) -> Iterator[Any]:
    """The functions that an optimizer is made of."""
    if isinstance(thing, (tuple, list)):
        inside: Any = thing
    elif isinstance(thing, dict):
        inside = list(thing.values())
    elif isinstance(thing, MethodType):
        inside = [thing.__func__, *vars(thing.__self__).values()] if hasattr(thing.__self__, "__dict__") else []
    elif isinstance(thing, FunctionType) and thing not in seen:
        seen.append(thing)
        yield thing
        inside = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        inside += [getattr(thing, "__wrapped__", None)]
    elif hasattr(thing, "update") and hasattr(thing, "init"):
        inside = operator.attrgetter("init", "update")(thing)
    else:
        inside = []
    for x in inside:
        yield from _parts(x, seen)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False
