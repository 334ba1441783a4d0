"""Composition of declarations and structures."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.estimators import DiCE, OptimalPerParameter
from logderiv.estimators.declaration import RETURN, Declaration, Structure, biased, concrete, declaration_of, one

from .zoo import GIVEN, wrong_value


def half(num_trajectories):
    return 1 - 1 / num_trajectories


HALF, NONE, PLAIN = Declaration({RETURN: half}), Declaration({}), Declaration()


def test_the_default_is_unbiased_at_every_order():
    assert (PLAIN.order, PLAIN.unbiased, PLAIN.factor(1), PLAIN.factor(7)) == (math.inf, True, 1.0, 1.0)
    assert PLAIN.objectives[RETURN] is one
    assert Structure() == (1, 1, True, False, False, 1)


def test_composition_takes_the_worse_of_each():
    first = Declaration(order=1, assumes=("a",), reasons=("x",))
    second = Declaration(order=3, assumes=("a", "b"), reasons=("y",))
    for both in (first & second, second & first):
        assert (both.order, set(both.assumes), set(both.reasons)) == (1, {"a", "b"}, {"x", "y"})
    assert (first & second).assumes == ("a", "b")
    one_structure, other, unknown = Structure(2, 2), Structure(4, 1, symmetric=False), Structure(degree=None)
    for both in (one_structure & other, other & one_structure):
        assert both == Structure(4, 2, symmetric=False)
    assert (one_structure & unknown).degree is (unknown & one_structure).degree is None
    assert (Structure(streams=True) & Structure()).streams
    assert not (Structure() & Structure(streams=True, reusable=True)).streams


def test_factors_multiply_and_an_unknown_one_wins():
    assert (HALF & HALF).factor(4) == 0.75**2
    assert [(a & b).objectives.get(RETURN) for a, b in ((HALF, PLAIN), (PLAIN, HALF), (PLAIN, PLAIN))] == [
        half,
        half,
        one,
    ]
    assert [x.factor(4) for x in (HALF & NONE, NONE & HALF, NONE)] == [None] * 3
    assert not any(x.unbiased for x in (HALF, NONE, Declaration(order=0)))


def test_composition_is_associative_and_the_default_is_neutral():
    a, b, c = Declaration(order=1), biased("y"), Declaration({RETURN: half}, assumes=("z",))
    assert a & PLAIN == PLAIN & a == a
    assert (a & b) & c == a & (b & c)
    assert ((HALF & c) & HALF).factor(4) == (HALF & (c & HALF)).factor(4) == 0.75**3


def test_objectives_that_only_one_part_estimates_are_lost():
    """An estimator is the gradient of an objective only if each of its parts leaves it one."""
    average = Declaration({"average reward": one, RETURN: half})
    assert dict((PLAIN & average).objectives) == {RETURN: half}
    assert average.factor(2, "average reward") == 1.0
    assert (PLAIN & Declaration({"average reward": one})).objectives == {}


def test_check_raises_below_the_minimum():
    Structure(2).check(2)
    with pytest.raises(ValueError, match="expected a whole number >= 2, received 1; this estimator needs"):
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


def test_an_estimator_says_what_it_assumes():
    on = ld.ScoreFunction().declaration
    off = ld.ScoreFunction(importance=ld.importance.Importance()).declaration
    for words, declared, others in (("drawn with these parameters", on, off), ("behavior_log_probs", off, on)):
        assert any(words in assumed for assumed in declared.assumes)
        assert not any(words in assumed for assumed in others.assumes)
    per_step = ld.ScoreFunction(ld.advantages.Return(), importance=ld.importance.Importance()).declaration
    assert (per_step.order, per_step.factor(1)) == (0, None)
    assert all(words in per_step.reasons[-1] for words in ("Importance(per='step')", "Return"))
    assert "gamma^t left out" in ld.ScoreFunction(discount=0.9, gamma_t=False).declaration.reasons[0]
    assert ld.ScoreFunction(discount=1.0, gamma_t=False).declaration == on


def test_settings_decide_a_declaration_only_where_they_are_numbers():
    assert [concrete("a", x).tolist() for x in (0.5, np.ones(2))] == [0.5, [1.0, 1.0]]
    with pytest.raises(ValueError, match=r"lambda_: expected a concrete number to read the declaration"):
        jax.eval_shape(lambda x: concrete("lambda_", x), 0.5)


def test_what_a_credit_function_of_ones_own_declares_decides_what_is_assumed_of_it():
    def halved(rewards, discounts):
        return ld.advantages.reward_to_go(rewards, discounts) / 2

    credit = ld.advantages.Credit(halved)
    assert credit.structure.degree is None
    halved.declaration = PLAIN  # pyright: ignore[reportFunctionMemberAccess]
    assert credit.structure.degree == 1
    assert credit.past_rewards  # nothing else is known: off policy the ratios of earlier steps do not suffice
    off = ld.ScoreFunction(credit, importance=ld.importance.Importance()).declaration
    assert "Importance(per='step')" in off.reasons[-1]
    bootstrapped = ld.advantages.GAE(0.9, ld.baselines.Value(lambda o: jnp.zeros(())))
    off = ld.ScoreFunction(bootstrapped, importance=ld.importance.Importance()).declaration
    assert not any(
        "Importance(per='step')" in reason for reason in off.reasons
    )  # its weights begin with their own step


def test_an_entropy_bonus_is_declared_unless_it_weighs_nothing():
    for weight, reasons in ((0.01, 1), (0.0, 0), (None, 0)):
        declared = ld.ActorCritic(ld.ScoreFunction(), entropy_weight=weight).declaration
        assert sum("entropy bonus" in reason for reason in declared.reasons) == reasons


def test_streams_are_taken_without_ratios_and_without_folds_only():
    gae = ld.advantages.GAE(0.9, GIVEN)
    assert ld.ScoreFunction(gae).structure.streams
    assert not ld.ScoreFunction(gae, importance=ld.importance.Importance()).structure.streams
    assert not OptimalPerParameter(gae).structure.streams
    assert ld.PPO().structure == Structure(reusable=True)


def test_every_order_is_that_of_the_surrogate_and_else_one():
    """A surrogate of the weights alone has order one, and so has what is fitted to scores or trained beside a value."""
    plain = ld.ScoreFunction()
    assert ld.ScoreFunction(surrogate=DiCE()).declaration.order == math.inf
    for estimator in (
        plain,
        ld.PPO(),
        OptimalPerParameter(),
        ld.ActorCritic(plain, wrong_value),
        ld.ActorCritic(plain),
    ):
        assert estimator.declaration.order == 1


def test_a_declaration_is_a_value():
    """It is compared by its fields, and cannot be changed under the estimators that share it."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.order = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert Declaration(order=1) == Declaration(order=1) != PLAIN


def test_weights_standardized_over_trajectories_take_no_stream():
    inner = ld.A2C(lambda p, o: jnp.zeros(())).actor.advantage
    assert ld.advantages.Standardized(inner, per="step").structure.streams
    assert not ld.advantages.Standardized(inner, per="trajectory").structure.streams


def test_declarations_of_sums_add_up_name_by_name_and_one_that_is_unknown_spoils_all():
    both = HALF + Declaration({RETURN: one, "other": half})
    assert {name: factor(4) for name, factor in both.objectives.items()} == {
        RETURN: 1 + half(4),
        "other": half(4),
    }
    assert not (PLAIN + Declaration({"other": one})).unbiased
    assert (PLAIN + Declaration({}, order=1)).unbiased  # plus nothing
    assert not (PLAIN + biased("unknown")).objectives
    assert (PLAIN + biased("known", half)).factor(4) == 1 + half(4)
    assert HALF.scaled(half).factor(4) == half(4) ** 2
