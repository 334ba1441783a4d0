"""What `gradient_from_samples` refuses, and by which words."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.ising import PAIR, close


def estimate(**given: Any) -> Any:
    usual: dict[str, Any] = {
        "params": PAIR.params,
        "log_prob": PAIR.log_prob,
        "samples": PAIR.states,
        "values": PAIR.values,
    }
    return ld.gradient_from_samples(**usual | given)


PATHS = {"samples": PAIR.states[:, None], "values": PAIR.values[:, None]}
REFUSED = [
    (ValueError, r"samples: expected the leading axis \(3,\), received shape \(4, 2\)", {"values": jnp.ones(3)}),
    (ValueError, r"samples\['x'\]: expected the leading axis \(4,\)", {"samples": {"x": jnp.ones(3)}}),
    (ValueError, "samples: expected arrays", {"samples": None}),
    (ValueError, r"values: expected one number.*received \(4, 1\).*chains=True", PATHS),
    (ValueError, r"values: expected one number.*\(C, N\), received \(4,\)", {"chains": True}),
    (ValueError, r"values: expected one number", {"samples": PAIR.states[:0], "values": PAIR.values[:0]}),
    (
        ValueError,
        "at least 2 independent draws, received 1.*baseline=0.0",
        {"samples": PAIR.states[:1], "values": [1.0]},
    ),
    (
        ValueError,
        "at least 2 chains, received 1",
        {"samples": PAIR.states[None], "values": PAIR.values[None], "chains": True},
    ),
    (ValueError, "baseline: expected normalized=True", {"baseline": 0.0}),
    (ValueError, "baseline: expected a finite number", {"baseline": jnp.inf, "normalized": True}),
    (ValueError, r"baseline: expected shape \(\), received \(4,\)", {"baseline": jnp.ones(4), "normalized": True}),
    (ValueError, "weights: expected a sum of 1, received one of 4", {"weights": jnp.ones(4)}),
    (ValueError, "weights: expected a number >= 0", {"weights": jnp.array([1.5, -0.5, 0.0, 0.0])}),
    (ValueError, "weights: expected a finite number", {"weights": jnp.array([1.5, jnp.inf, 0.0, 0.0])}),
    (ValueError, r"weights: expected shape \(4,\), received \(3,\)", {"weights": jnp.ones(3) / 3}),
    (ValueError, "weights: expected None with chains", {**PATHS, "chains": True, "weights": jnp.ones((4, 1)) / 4}),
    (ValueError, r"log_prob: expected a scalar.*\(2,\)", {"log_prob": lambda params, x: params["field"] * x}),
    (ValueError, "block_size: expected", {"block_size": 0}),
    (TypeError, "values: expected real numbers", {"values": jnp.ones(4, complex)}),
    (TypeError, "samples: expected real numbers", {"samples": PAIR.states.astype(complex)}),
    (TypeError, "weights: expected real numbers", {"weights": jnp.ones(4, complex)}),
    (TypeError, "log_prob: expected real numbers", {"log_prob": lambda params, x: params["field"].astype(complex)}),
    (TypeError, r"params\['field'\]: expected real", {"params": {"coupling": 0.1, "field": 1j}}),
    (TypeError, r"params\['field'\]: expected a floating-point", {"params": {"coupling": 0.1, "field": 1}}),
]


@pytest.mark.parametrize(("error", "message", "given"), REFUSED, ids=[message for _, message, _ in REFUSED])
def test_bad_input_is_named(error, message, given):
    with pytest.raises(error, match=message):
        estimate(**given)


def test_weights_that_are_traced_and_do_not_sum_to_one_are_nan():
    weighted = jax.jit(lambda weights: estimate(weights=weights).grads)
    close(weighted(PAIR.law()), PAIR.exact)
    for weights in (PAIR.law() * 1.01, PAIR.law() - jnp.array([1.0, -1.0, 0.0, 0.0])):
        assert all(np.isnan(leaf) for leaf in jax.tree.leaves(weighted(weights)))


@pytest.mark.parametrize("transform", [jax.jacfwd, jax.jacrev])
@pytest.mark.parametrize("name", ["params", "samples", "values", "weights"])
def test_a_derivative_of_the_gradient_raises(name, transform):
    """It would lack the products of scores: of this model, whose score does not depend on the parameters, it would be 0."""
    given = {
        "params": PAIR.params,
        "samples": jnp.asarray(PAIR.states),
        "values": jnp.asarray(PAIR.values),
        "weights": PAIR.law(),
    }

    def gradient(x):
        return estimate(**given | {name: x}).grads

    for call in (gradient, jax.jit(gradient)):
        with pytest.raises(ValueError, match=r"differentiated no further.*Tape\.score"):
            transform(call)(given[name])


def test_what_log_prob_closes_over_has_no_derivative_either():
    def shared(scale):
        return estimate(log_prob=lambda params, x: scale * PAIR.log_prob(params, x)).grads["field"]

    with pytest.raises(ValueError, match="differentiated no further"):
        jax.grad(shared)(1.0)
    assert np.isfinite(jax.jit(shared)(1.0))  # a tracer in a closure is no derivative
