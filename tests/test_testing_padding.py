"""Padding: what depends on invalid steps is caught, and named by field and quantity."""

import jax
import jax.numpy as jnp
import pytest

import logderiv as ld
from logderiv import testing
from tests.worlds import batch


def _padded():
    taus = batch(jax.random.key(0), (4, 5))
    lengths = jnp.array([5, 1, 3, 2])
    return taus._replace(valid=jnp.arange(5)[None] < lengths[:, None], observations=jnp.abs(taus.observations) + 0.1)


POLICY = ld.FunctionPolicy(lambda params, observation: ld.Categorical(jnp.log(observation) @ params))


PARAMS = 0.1 * jnp.arange(8.0).reshape(4, 2)
ESTIMATOR = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))


def _objective(params, taus):
    weights, _ = ESTIMATOR.advantages(params, (), POLICY, taus)
    return ESTIMATOR.objective(params, POLICY, taus, weights), ld.log_prob(params, POLICY, taus)


def _unmasked_input(params, taus):
    """Right value, NaN derivatives: the output is masked, the input is not."""
    logs = jax.nn.log_softmax(jnp.log(taus.observations) @ params)[..., 0]
    return jnp.sum(jnp.where(taus.valid, logs, 0))


def _multiplied_credit(params, taus):
    return jnp.sum(params) * jnp.sum(taus.rewards * taus.valid.astype(taus.rewards.dtype))


def _discounted_unmasked(params, taus):
    rewards = jnp.where(taus.valid, taus.rewards, 0)
    return jnp.sum(jax.vmap(ld.advantages.reward_to_go)(rewards, taus.discounts)) * jnp.sum(params)


def _counts_padding(params, taus):
    return jnp.sum(params) * jnp.mean(taus.actions.astype(params.dtype))


def _divides_by_the_length(params, taus):
    """What fills the padding is masked, yet a mean over T counts it."""
    return jnp.mean(ld.log_factors(params, POLICY, taus))


def test_padding_passes_where_it_does_not_matter():
    report = testing.check_padding(PARAMS, _objective, _padded())
    assert report.num_cases == 24
    assert report.num_invalid == 9
    assert str(report).endswith("no bit changed")
    assert testing.check_padding(PARAMS, _divides_by_the_length, _padded(), num_extra=0).passed


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (_unmasked_input, "NaN in observations: the gradient changes"),
        (_multiplied_credit, "NaN in rewards: the value changes"),
        (_discounted_unmasked, "NaN in discounts: the value changes"),
        (
            _divides_by_the_length,
            r"2 more invalid steps: the value changes by \S+, allowed \S+\n.*the gradient changes by",
        ),
        (_counts_padding, "largest, .*in actions: the value changes"),
    ],
)
def test_padding_that_matters_is_caught_and_named(function, message):
    with pytest.raises(AssertionError, match=message) as caught:
        testing.check_padding(PARAMS, function, _padded())
    if function is _unmasked_input:
        assert "NaN in observations: the value changes" not in str(caught.value)


def _infinite_beside_one_that_divides(params, taus):
    """An entry that is infinite must not make every change of the others look small."""
    return {"a": jnp.inf * jnp.ones(2), "b": _divides_by_the_length(params, taus)}


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (_infinite_beside_one_that_divides, AssertionError, "2 more invalid steps: the value changes by"),
        (lambda params, taus: (), ValueError, "function: expected a pytree of arrays"),
        (
            lambda params, taus: jax.lax.complex(jnp.sum(params), jnp.ones(())),
            TypeError,
            "outputs: expected real numbers",
        ),
    ],
)
def test_padding_is_not_talked_into_passing(function, error, message):
    with pytest.raises(error, match=message):
        testing.check_padding(PARAMS, function, _padded())


def test_padding_needs_padding_and_a_finite_start():
    taus = _padded()
    with pytest.raises(ValueError, match="some invalid steps"):
        testing.check_padding(PARAMS, _objective, taus._replace(valid=jnp.ones((4, 5), bool)))
    dirty = taus._replace(rewards=jnp.where(taus.valid, taus.rewards, jnp.nan))
    with pytest.raises(AssertionError, match="NaN with the padding as given"):
        testing.check_padding(PARAMS, _multiplied_credit, dirty)
    with pytest.raises(TypeError, match="floating"):
        testing.check_padding(jnp.arange(8), _objective, taus)
