"""Composition of declarations and structures."""

import math

import jax
import numpy as np
import pytest

import logderiv as ld
from logderiv.estimators.declaration import (
    RETURN,
    Declaration,
    Structure,
    biased,
    concrete,
    declaration_of,
    one,
)


def half(num_trajectories):
    return 1 - 1 / num_trajectories


HALF = Declaration({RETURN: half})
NONE = Declaration({})


def factor(declaration):
    return declaration.objectives.get(RETURN)


def test_the_default_is_unbiased_at_every_order():
    assert Declaration().order == math.inf
    assert Declaration().unbiased
    assert factor(Declaration()) is one
    assert [Declaration().factor(n) for n in (1, 7)] == [1.0, 1.0]
    assert Structure() == (1, 1, True, False, False)


def test_composition_takes_the_worse_of_each():
    first = Declaration(order=1, assumes=("a",), reasons=("x",))
    second = Declaration(order=3, assumes=("a", "b"), reasons=("y",))
    for both in (first & second, second & first):
        assert both.order == 1
        assert set(both.assumes) == {"a", "b"}
        assert set(both.reasons) == {"x", "y"}
    assert (first & second).assumes == ("a", "b")
    one_structure, other = Structure(2, 2), Structure(4, 1, symmetric=False)
    for both in (one_structure & other, other & one_structure):
        assert both == Structure(4, 2, symmetric=False)
    assert (one_structure & Structure(degree=None)).degree is None
    assert (Structure(degree=None) & one_structure).degree is None
    assert (Structure(streams=True) & Structure()).streams
    assert not (Structure() & Structure(streams=True, reusable=True)).streams


def test_factors_multiply_and_an_unknown_one_wins():
    assert (HALF & HALF).factor(4) == 0.75**2
    assert factor(HALF & Declaration()) is half
    assert factor(Declaration() & HALF) is half
    assert factor(Declaration() & Declaration()) is one
    assert factor(HALF & NONE) is None
    assert factor(NONE & HALF) is None
    assert NONE.factor(4) is None
    assert not any(x.unbiased for x in (HALF, NONE, Declaration(order=0)))


def test_composition_is_associative_and_the_default_is_neutral():
    a, b, c = Declaration(order=1), biased("y"), Declaration({RETURN: half}, assumes=("z",))
    assert a & Declaration() == Declaration() & a == a
    assert (a & b) & c == a & (b & c)
    assert ((HALF & c) & HALF).factor(4) == (HALF & (c & HALF)).factor(4) == 0.75**3


def test_objectives_that_only_one_part_estimates_are_lost():
    """An estimator is the gradient of an objective only if each of its parts leaves it one."""
    average = Declaration({"average reward": one, RETURN: half})
    assert dict((Declaration() & average).objectives) == {RETURN: half}
    assert average.factor(2, "average reward") == 1.0
    assert (Declaration() & Declaration({"average reward": one})).objectives == {}


def test_check_raises_below_the_minimum():
    Structure(2).check(2)
    with pytest.raises(ValueError, match="expected at least 2 for this estimator, received 1"):
        Structure(2).check(1)


def test_what_declares_nothing_is_refused():
    class Part:
        declaration = "unbiased, trust me"

    for part in (lambda x: x, Part(), 3, [1]):
        declared = declaration_of(part)
        assert (declared.order, declared.factor(1)) == (0, None)
        assert "unknown part" in declared.reasons[0]
    own = biased("own")
    Part.declaration = own  # pyright: ignore
    assert declaration_of(Part()) is own


def test_surrogates_declare_their_order():
    estimators = ld.estimators
    surrogates = (estimators.Score(), estimators.DiCE(), estimators.LoadedDiCE(1.0), estimators.LoadedDiCE(0.9))
    assert [declaration_of(s).order for s in surrogates] == [1, math.inf, math.inf, 1]
    assert declaration_of(lambda x, w: x).order == 0


def test_an_estimator_says_what_it_assumes():
    on = ld.ScoreFunction().declaration
    off = ld.ScoreFunction(importance=ld.importance.Importance()).declaration
    assert any("drawn with these parameters" in a for a in on.assumes)
    assert not any("drawn with these parameters" in a for a in off.assumes)
    assert any("behavior_log_probs" in a for a in off.assumes)
    left_out = ld.ScoreFunction(discount=0.9, gamma_t=False).declaration
    assert "gamma^t left out" in left_out.reasons[0]
    assert ld.ScoreFunction(discount=1.0, gamma_t=False).declaration == on


def test_settings_decide_a_declaration_only_where_they_are_numbers():
    assert [concrete("a", x).tolist() for x in (0.5, np.ones(2))] == [0.5, [1.0, 1.0]]
    with pytest.raises(ValueError, match=r"lambda_: expected a concrete number to read the declaration"):
        jax.eval_shape(lambda x: concrete("lambda_", x), 0.5)
