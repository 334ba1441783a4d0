"""Every public number: what is out of its range is refused, by name, before anything is compiled.

The public callables are walked, so that a new one with a number is found by itself: where its other arguments have names that are
not known here, the test says so.
"""

import enum
import inspect
import math
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from tests.worlds import batch

TAUS = batch(jax.random.key(0), (3, 5))
STREAMS = ld.sampling.StreamState(jnp.zeros(2, int), jnp.zeros(2, int), jnp.zeros(2, int), jnp.zeros(2))
DIFFUSION = ld.processes.EulerMaruyama(ld.processes.double_well_drift, 0.5, -1.0, 0.05, 2)
HIDDEN = ld.processes.HiddenMarkovModel()
EYE, KEY = jnp.eye(1), jax.random.key(3)
AUTOREGRESSIVE = {"params": ld.processes.AutoregressiveParams(jnp.zeros(()), jnp.zeros(()))}
CONTROL = {"params": ld.processes.LinearPolicyParams(EYE, jnp.zeros(1))}


def _scalar(*_: Any) -> jax.Array:
    return jnp.zeros(())


def _flip(logit: Any, tape: ld.Tape) -> ld.Tape:
    tape, x = tape.sample(ld.Bernoulli(logit))
    return tape.cost(x)


# What the other arguments are, by name; for one callable alone by its name and theirs.
GIVEN: dict[str, Any] = {
    "params": jnp.zeros(2),
    "key": KEY,
    "keys": jax.random.split(jax.random.key(1)),
    "policy": ld.shared_softmax,
    "environment": ld.environments.short_corridor(horizon=4),
    "mdp": ld.environments.short_corridor(),
    "trajectories": TAUS,
    "trajectory": TAUS,
    "weights": jnp.ones((3, 5)),
    "estimator": ld.ScoreFunction(),
    "actor": ld.ScoreFunction(),
    "advantage": ld.advantages.ToGo(),
    "optimizer": optax.sgd(0.1),
    "batch": ld.Episodes(2, horizon=3),
    "state": STREAMS,
    "distribution": ld.Bernoulli,
    "program": _flip,
    "expectation": ld.expectation(_flip),
    "samples": jnp.arange(40.0),
    "probabilities": jnp.ones(3) / 3,
    "directory": "a folder",
    "observations": jnp.zeros(4, int),
    "model": HIDDEN,
    "process": DIFFUSION,
    "payoffs": jnp.ones((2, 2, 2)),
    "baselined": jnp.ones((3, 2)),
    "plain": jnp.ones((3, 2)),
    "search": ld.processes.NormalSearch(),
    "mean": jnp.zeros(2),
    "shape": (1,),
    "integer": True,
    "name": "a choice",
    "unembedding": jnp.ones((3, 2)),
    "hidden": jnp.ones((4, 2)),
    "tokens": jnp.zeros(4, int),
    "curves": {"a": np.ones((2, 3))},
    "lengths": np.arange(1, 3),
    "errors": {"a": np.ones(2)},
    "stoichiometry": [[1]],
    "reactants": [[1]],
    "make": "CartPole-v1",
    "loc": 0.0,
    "initial": 0.0,
    "noise": 1.0,
    "reward": jnp.ones(2),
    "wait": 1.0,
    **dict.fromkeys(("rewards", "discounts", "values", "next_values", "ratios", "log_ratio", "weight"), jnp.ones(3)),
    **dict.fromkeys(
        ("value", "function", "start", "cost", "objective", "log_prob", "sample", "drift", "term"), _scalar
    ),
    **dict.fromkeys(("propensities", "cond_fun", "body_fun", "network"), _scalar),
    "init": 0,
    "groups": jnp.zeros(3, int),
    "mask": jnp.ones((3, 2), bool),
    "Entropy": {"weight": 1.0},
    "TabularMDP": {"transition": jnp.ones((1, 1, 1)), "initial": jnp.ones(1), "reward": EYE, "terminal": jnp.zeros(1)},
    "from_transitions": {"transitions": {0: {0: [(1.0, 0, 1.0, True)]}}, "initial": jnp.ones(1)},
    "LinearQuadratic": dict.fromkeys(("transition", "control", "noise", "state_cost", "control_cost"), EYE)
    | {"initial_mean": jnp.zeros(1)},
    "TokenModel": {"vocabulary": 3, "end": 0, "reward": _scalar},
    "TokenPolicy": {"inner": ld.policies.as_policy(ld.shared_softmax)},
    "Truncated": {"inner": ld.shared_softmax},
    "Normalized": {"inner": ld.shared_softmax},
    "recipe": ld.objectives.Recipe(),
    "JumpProcess": {"initial": [1]},
    "fisher_score_samples": {"params": ld.processes.HiddenMarkovParams(jnp.zeros(2), jnp.eye(2), jnp.eye(2))},
    "assert_unbiased": {"exact": jnp.zeros(())},
    "check_order": {"exact": jnp.sum},
    "Autoregressive.moments": AUTOREGRESSIVE,
    "Autoregressive.fisher_information": AUTOREGRESSIVE,
    "LinearQuadratic.quadratics": CONTROL,
    "LinearQuadratic.value": CONTROL,
    "look_ahead": {"params": (jnp.zeros(2), jnp.zeros(2))},
    "transfer_value": {"low": -2.0, "high": 1.0},
    "gradient_from_samples": {
        "log_prob": lambda params, x: jnp.sum(params) * x,
        "values": jnp.ones(40),
        "normalized": True,
    },
    "variance_by_step": {"params": jnp.zeros(2)},
    "Brax": {"environment": None},
    "EulerMaruyama": {"horizon": 2},
    "visit_counts": {"states": jnp.zeros(3, int), "actions": jnp.zeros(3, int), "weights": jnp.ones(3)},
    "master_equation_value": {"process": ld.processes.schlogl()},
    "Jumanji": {"environment": None},
}
WHOLE = 2  # what another whole number is
# Objects whose methods take numbers.
OBJECTS: list[Any] = [
    ld.diagnostics.summary(jnp.arange(3.0)),
    ld.processes.Autoregressive(0.0),
    ld.processes.MatrixGame(jnp.ones((2, 2, 2)), horizon=2),
    ld.processes.LinearQuadratic(EYE, EYE, EYE, EYE, EYE, jnp.zeros(1)),
    ld.processes.NormalSearch(),
    ld.Tape.start(jax.random.key(2)),
    ld.estimators.Declaration(),
    ld.estimators.Structure(),
    ld.Episodes(2, horizon=3),
    ld.Checkpoints("a folder", 1),
    ld.policies.as_policy(ld.shared_softmax),
    ld.reporting.Bar(),
    ld.reporting.CSVWriter("a file"),
    ld.reporting.TensorBoardWriter("a folder"),
]
# Numbers that are annotated otherwise, since they may be arrays.
ARRAYS = {"discount", "resolution", "temperature", "soft_cap", "dt", "t_end", "initial_variance"}
ARRAYS |= {"NormalSearch.scale"}
FROM_ZERO = {
    "num_extra",
    "state_independent",
    "ddof",
    "end",
    "player",
    "program_derivatives.order",
    "num_choices",
    "look_ahead.steps",
}
FROM_ZERO |= {"birth_death.initial", "schlogl.initial", "Checkpoints.save.step"}
UNIT = {"discount", "lambda_", "decay", "level", "check_order.tolerance", "top_p"}
SIGNED = {"stop_at", "threshold", "low", "high", "value", "learning_rate", "initial_mean"}
SIGNED |= {"gradient_from_samples.baseline"}
UNBOUNDED = {"clip", "clip_rho", "clip_c", "clip_pg", "truncate", "stop_at", "low", "high", "soft_cap", "temperature"}
SEQUENCES = {"MLP.hidden", "MLPActorCritic.hidden", "MLPValue.hidden", "visit_counts.shape"}
SEQUENCES |= {"master_equation_value.max_counts"}
FROM_ZERO |= SEQUENCES - {"MLP.hidden", "MLPActorCritic.hidden", "MLPValue.hidden", "visit_counts.shape"}
# Told by others: results, what is drawn, and what the loop over updates passes on.
APART = {
    "Declaration.order",
    "Structure.check.num_trajectories",
    "Declaration.factor.num_trajectories",
    "Declaration.scaled.factor",
    "Bar.open.total",
}
APART |= {
    "CSVWriter.open.total",
    "TensorBoardWriter.open.total",
    "StepPolicy.ranges.return",
    "Reporter.open.total",
}


def _callables() -> dict[str, Any]:
    """Public functions and classes, and methods of public classes, by name."""
    rooms = [ld, *(x for x in (getattr(ld, name) for name in ld.__all__) if inspect.ismodule(x))]
    found: dict[str, Any] = {
        n: getattr(room, n) for room in rooms for n in room.__all__ if not inspect.ismodule(getattr(room, n))
    }
    made = {n: x for n, x in found.items() if callable(x) and not _is_result(x)}
    for obj in OBJECTS:
        kind = type(obj)
        names = [
            n for n in dir(kind) if not n.startswith("_") and inspect.isfunction(inspect.getattr_static(kind, n, None))
        ]
        made |= {f"{kind.__name__}.{n}": getattr(obj, n) for n in names}
    return made


def _is_result(x: Any) -> bool:
    """What functions return, a base without fields, or a protocol: nothing that is given numbers."""
    return inspect.isclass(x) and (issubclass(x, tuple | enum.Enum) or getattr(x, "_is_protocol", False))


def _numbers(name: str, function: Any) -> dict[str, tuple[type, bool]]:
    """Parameter to its kind of number, and whether it may be `None`."""
    try:
        signature = inspect.signature(function, eval_str=True)
    except (TypeError, ValueError, NameError):
        signature = inspect.signature(function)
    found = {}
    for key, parameter in signature.parameters.items():
        kinds = [parameter.annotation, *typing.get_args(parameter.annotation)]
        kind = float if float in kinds or {key, f"{name}.{key}"} & ARRAYS else int if int in kinds else None
        if kind is not None and not {key, f"{name}.{key}"} & APART:
            found[key] = kind, type(None) in kinds or parameter.default is None
    return found


def _bad(name: str, key: str, kind: type, optional: bool) -> list[Any]:
    names = {key, f"{name}.{key}"}
    values = [math.nan, True, "x", 1j] if kind is float else [2.5, 2.0, True, math.nan]
    values += [] if names & (SIGNED if kind is float else set()) else [-1]
    values += [0] if kind is int and not names & FROM_ZERO else []
    values += [2.0] if kind is float and names & UNIT else []
    values += [math.inf] if kind is float and not names & (UNBOUNDED | UNIT) else []
    values += [] if optional or key == "resolution" else [None]
    return [(value, 2) for value in values] if names & SEQUENCES else values


def _arguments(name: str, function: Any, numbers: dict[str, Any]) -> dict[str, Any]:
    own, given = GIVEN.get(name), {}
    own = own if isinstance(own, dict) else {}
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            given[key] = (
                own[key] if key in own else WHOLE if key in numbers and numbers[key][0] is int else GIVEN.get(key, 0.5)
            )
    return own | given


CALLS = {name: (function, _numbers(name, function)) for name, function in _callables().items()}
CASES = [(name, key) for name, (_, numbers) in CALLS.items() for key in numbers]


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_number_out_of_its_range_is_named_before_anything_is_compiled(name, key, monkeypatch):
    function, numbers = CALLS[name]
    given = _arguments(name, function, numbers)
    for value in _bad(name, key, *numbers[key]):
        error = (
            TypeError
            if isinstance(value, str | complex) or (value is None and numbers[key][0] is float)
            else ValueError
        )
        with pytest.raises(error, match=rf"\b{key}\b.*expected|expected.*\b{key}\b"):
            function(**given | {key: value})
