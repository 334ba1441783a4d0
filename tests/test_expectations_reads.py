"""What a model reads beside its arguments, globals and the like, is read at each call, though models are compiled."""

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld

from .mostly import mostly_slow, slow

SCALE: Any = 1.0


def helper(logit):
    return SCALE * ld.sample(ld.Bernoulli(logit)).astype(float)


def through_a_helper(logit):
    return jnp.sum(jnp.stack([helper(logit), 0.0 * logit]))


def by_hand_with_a_global(logit, tape):
    tape, x = tape.sample(ld.Bernoulli(logit))
    return tape.cost(SCALE * x.astype(float))


@pytest.mark.parametrize("program", [through_a_helper, slow(by_hand_with_a_global)])
def test_globals_are_read_at_each_call(program, monkeypatch):
    """As in a notebook, where a constant or a helper is defined anew; the list of all paths has them anew, too."""
    objective = ld.expectation(program, num_samples=8)

    def found():
        listed = ld.exact.program_derivatives(jnp.zeros(()), objective, order=1, num_choices=1, num_outcomes=2)[1]
        value, slope = jax.value_and_grad(objective)(0.0, jax.random.key(0))
        mean = ld.exact.program_value(0.0, program, num_choices=1, num_outcomes=2)
        return np.array([value, slope, listed.mean.item(), listed.exact.item(), mean])

    before = found()
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    np.testing.assert_allclose(found(), 5 * before, rtol=1e-12)
    if program is through_a_helper:
        monkeypatch.setitem(globals(), "helper", lambda logit: 2.0 * ld.sample(ld.Bernoulli(logit)).astype(float))
        np.testing.assert_allclose(found(), 2 * before, rtol=1e-12)


def scaled_by(function):
    @functools.wraps(function)
    def scaled(x):
        return SCALE * function(x)

    return scaled


@scaled_by
def decorated(x):
    return x


class Holder:
    def __call__(self, x):
        return SCALE * x

    def method(self, x):
        return SCALE * x

    @staticmethod
    def static(x):
        return SCALE * x

    @property
    def scale(self):
        return SCALE


HOLDER, BOX = Holder(), {"scale": 1.0}
MODULE: Any = types.ModuleType("settings")
LARGE = np.ones(2**20 + 1)


def in_a_cell(box: Any = None):
    box = BOX if box is None else box
    return lambda x: box["scale"] * x


READS: dict[str, Callable[[Any], Any]] = {
    "a decorator's": lambda x: decorated(x),
    "a callable object's": lambda x: HOLDER(x),
    "a method's": lambda x: HOLDER.method(x),
    "a new object's": lambda x: Holder().method(x),
    "a static method's": lambda x: Holder.static(x),
    "a property's": lambda x: HOLDER.scale * x,
    "a module's": lambda x: MODULE.scale * x,
    "in a cell": in_a_cell(),
    "in a dictionary": lambda x: BOX["scale"] * x,
    "a large array's": lambda x: LARGE[7] * x,
}


@pytest.mark.parametrize(
    "name", mostly_slow(READS, ("a decorator's", "a callable object's", "a module's", "in a cell"))
)
def test_what_is_read_by_name_is_read_at_each_call(name, monkeypatch):
    function = READS[name]
    MODULE.scale = 1.0

    def model(logit):
        return function(1.0 + 0.0 * ld.sample(ld.Bernoulli(logit)).astype(float))

    objective = ld.expectation(model)

    def found():
        listed = ld.exact.program_derivatives(jnp.zeros(()), objective, order=0, num_choices=1, num_outcomes=2)[0]
        return [float(objective(0.0, jax.random.key(0))), float(listed.exact)]

    assert found() == [1.0, 1.0]
    monkeypatch.setitem(globals(), "SCALE", 5.0)
    monkeypatch.setattr(MODULE, "scale", 5.0)
    monkeypatch.setitem(BOX, "scale", 5.0)
    monkeypatch.setattr(sys.modules[__name__], "LARGE", 5.0 * LARGE)
    assert found() == [5.0, 5.0]


def test_what_is_traced_in_a_global_is_not_kept(monkeypatch):
    """x and 10 x, once in a dictionary each, in one transformation and in several."""

    def model(logit):
        return BOX["scale"] + 0.0 * ld.sample(ld.Bernoulli(logit)).astype(float)

    objective = ld.expectation(model)

    def at(x, seed):
        monkeypatch.setitem(BOX, "scale", x)
        return objective(0.0, jax.random.key(seed))

    def both_of(x):
        return at(x, 0) + at(10 * x, 1)

    assert float(jax.jit(both_of)(1.0)) == 11.0
    assert float(jax.grad(both_of)(1.0)) == 11.0
    assert [float(jax.jit(lambda x: at(x, 2))(x)) for x in (1.0, 2.0)] == [1.0, 2.0]
