"""Composition of declarations."""

import math

import jax
import pytest

import logderiv as ld
from logderiv.estimators.declaration import Bias, biased, declared, unit
from logderiv.estimators.surrogates import surrogate_bias


def half(num_trajectories):
    return 1 - 1 / num_trajectories


def test_the_default_is_unbiased_at_every_order():
    bias = Bias()
    assert (bias.order, bias.min_trajectories, bias.degree, bias.symmetric) == (math.inf, 1, 1, True)
    assert bias.factor is unit
    assert [unit(n) for n in (1, 7)] == [1.0, 1.0]


def test_composition_takes_the_worse_of_each():
    first = Bias(order=1, min_trajectories=2, degree=2, assumes=("a",), reasons=("x",))
    second = Bias(order=3, min_trajectories=4, degree=1, symmetric=False, assumes=("a", "b"), reasons=("y",))
    for both in (first & second, second & first):
        assert (both.order, both.min_trajectories, both.degree, both.symmetric) == (1, 4, 2, False)
        assert set(both.assumes) == {"a", "b"}
        assert set(both.reasons) == {"x", "y"}
    assert (first & Bias(degree=None)).degree is None
    assert (Bias(degree=None) & first).degree is None


def test_factors_multiply_and_an_unknown_one_wins():
    factor = (Bias(factor=half) & Bias(factor=half)).factor
    assert factor is not None
    assert factor(4) == 0.75**2
    assert (Bias(factor=half) & Bias()).factor is half
    assert (Bias() & Bias(factor=half)).factor is half
    assert (Bias() & Bias()).factor is unit
    assert (Bias(factor=half) & Bias(factor=None)).factor is None
    assert (Bias(factor=None) & Bias(factor=half)).factor is None


def test_composition_is_associative_and_the_default_is_neutral():
    a, b, c = Bias(order=1), biased("y", min_trajectories=2), Bias(factor=half, degree=2, assumes=("z",))
    assert a & Bias() == Bias() & a == a
    assert (a & b) & c == a & (b & c)


def test_composed_declarations_are_hashable_and_equal():
    build = lambda: Bias(factor=half) & Bias(factor=half, order=0)  # noqa: E731
    assert build() == build()
    assert hash(build()) == hash(build())
    assert jax.tree.leaves(build()) == []


def test_objectives_must_agree():
    with pytest.raises(
        ValueError, match="different objectives, 'finite-horizon discounted return' and 'average reward'"
    ):
        _ = Bias() & Bias(objective="average reward")


def test_check_raises_below_the_minimum():
    Bias(min_trajectories=2).check(2)
    with pytest.raises(ValueError, match="expected at least 2 for this estimator, received 1"):
        Bias(min_trajectories=2).check(1)


def test_what_declares_nothing_is_refused():
    class Part:
        bias = "unbiased, trust me"

    for part in (lambda x: x, Part(), 3):
        bias = declared(part, {}, "credit")
        assert (bias.order, bias.factor, bias.degree) == (0, None, None)
        assert "unknown credit" in bias.reasons[0]
    known = declared(len, {len: Bias(order=2)}, "credit")
    assert known.order == 2
    own = biased("own")
    Part.bias = own  # pyright: ignore
    assert declared(Part(), {}, "credit") is own


def test_an_unhashable_part_is_refused_too():
    assert declared([1], {len: Bias()}, "credit").order == 0


def test_surrogates_declare_their_order():
    orders = [
        surrogate_bias(s).order
        for s in (ld.score_surrogate, ld.dice_surrogate, ld.loaded_dice(1.0), ld.loaded_dice(0.9))
    ]
    assert orders == [1, math.inf, math.inf, 1]
    assert surrogate_bias(lambda x, w: x).order == 0


def test_an_estimator_says_what_it_assumes():
    on = ld.score_function().bias
    off = ld.score_function(importance=ld.importance_per_decision()).bias
    assert any("drawn with these parameters" in a for a in on.assumes)
    assert not any("drawn with these parameters" in a for a in off.assumes)
    assert any("behavior_log_probs" in a for a in off.assumes)
    left_out = ld.score_function_without_gamma_t(discount=0.9).bias
    assert "gamma^t left out" in left_out.reasons[0]
    assert ld.score_function_without_gamma_t(discount=1.0).bias == on
