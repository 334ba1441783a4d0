"""The table of objectives: its worlds are what the library computes, its numbers by hand, and a wrong declaration is seen."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import objectives, token_groups
from logderiv.objectives import KL, PRESETS, Centered, Recipe
from tests.pasted import ROOT

pytestmark = pytest.mark.usefixtures("broadcasting")  # as benchmarks are run
PAGE = ROOT / "notebooks" / "objectives_table.md"
TINY = {
    "QUICK": ("trl_sapo", "verl_dr_grpo"),
    "SIZES": {True: (2,)},
    "ENUMERATED": 2,
    "ROUNDS": {True: 1},
}


@pytest.mark.slow
def test_a_tiny_run(monkeypatch):
    """One preset of no objective, whose ratio does nothing on policy, and one of the return."""
    for name, value in TINY.items():
        monkeypatch.setattr(objectives, name, value)
    report = objectives.main(quick=True)
    assert all(bound.holds for bound in report.bounds)
    assert all(name in str(table) for table in report.tables for name in TINY["QUICK"])
    wrong, right = report.numbers.values()
    assert (wrong["verdict"], right["verdict"]) == ("no objective", "return")
    assert right["estimates"] == "0.000977 return"  # (1 - 1/2) / 512
    for world, effects in right["effects"].items():
        assert effects["G = 2"].cosine == pytest.approx(1, abs=1e-12)
        assert effects["off policy"].cosine < 0.99
        assert wrong["effects"][world]["G = 2"].cosine < 0.99


def test_numbers_by_hand():
    """E[g] is (3, 4) beside (0, 10): half as long, a cosine of 0.8; E|g|² is 100."""
    found = objectives.effect(np.array([3.0, 4.0]), 75.0, np.array([0.0, 10.0]))
    assert found == pytest.approx((0.5, 0.8, math.sqrt(3), 0.16))
    assert found.gain == pytest.approx(found.cosine**2 / (1 + found.noise**2))
    assert objectives.effect(np.array([3.0, 4.0]), 75.0, np.array([0.0, -10.0])).gain == 0
    assert found.angle == pytest.approx(math.degrees(math.acos(0.8)))


def test_every_batch_is_counted_as_often_as_it_comes():
    rows, orders = token_groups.every_batch((3, 2), 2)
    assert (len(rows), orders.sum()) == (6 * 3, 3**2 * 2**2)
    assert (rows[:, :2].max(), rows[:, 2:].min()) == (2, 3)


@pytest.mark.parametrize("kind", ["bigram", pytest.param("GRU", marks=pytest.mark.slow)])
def test_worlds_are_those_of_the_library(kind):
    """Log-probabilities; and gradients of the return, of the policy and of what truncation leaves, are those of its values."""
    world, step = token_groups.worlds(kind)[1], 1e-6
    params, policy = world.unravel(jnp.asarray(world.params)), world.model.policy
    logs = ld.log_factors(params, policy, world.every)
    for how, kept in {"top-k": {"top_k": token_groups.TOP_K}, "top-p": {"top_p": token_groups.TOP_P}}.items():
        drawn = ld.log_factors(params, ld.policies.Truncated(policy, **kept), world.every)[world.prompts[0]]
        found = world.policies(world.params, how).chances
        np.testing.assert_allclose(found, jnp.exp(jnp.sum(drawn, axis=1)), rtol=0, atol=1e-14)
    for prompt, rows in enumerate(world.prompts):
        np.testing.assert_allclose(world.policies(world.params, prompt=prompt).policy, logs[rows], rtol=0, atol=1e-14)
    moves = step * np.concatenate([np.eye(world.params.size), -np.eye(world.params.size)])
    for how in ("on policy", "top-k", "top-p"):
        several = jax.vmap(functools.partial(world.policies, how=how))(world.params + moves)
        ahead, behind = jnp.split(jnp.sum(several.chances * several.rewards, axis=1), 2)
        found = world.policies(world.params, how)
        exact, other = (found.named("return", of_sampler=of_sampler) for of_sampler in (True, False))
        np.testing.assert_allclose(exact, (ahead - behind) / (2 * step), rtol=0, atol=1e-8)
        assert how == "on policy" or np.max(np.abs(other - exact)) > 1e-2


def test_a_right_declaration_is_proved_and_a_wrong_one_is_not():
    """The mean of the group leaves a half at two answers; the others' mean is called that."""
    world = token_groups.worlds("bigram")[1]
    right, wrong = (objectives.Row("a", Recipe(Centered("group"))) for _ in range(2))
    objectives.on_policy(right.recipe, [right], world, (2,))
    objectives.on_policy(Recipe(Centered("others")), [wrong], world, (2,))
    assert right.effects[world.name]["G = 2"].size == pytest.approx(0.5, abs=1e-12)
    assert (right.error, right.ratio) == (pytest.approx(0, abs=1e-13), 0)
    assert min(wrong.error, wrong.ratio) > 0.4


def test_the_jacobian_tells_what_is_no_gradient_and_the_search_finds_worse_parameters():
    world = token_groups.worlds("bigram")[1]
    recipes = {"right": Recipe(kl=KL(0.1, "k2", level="sequence")), "wrong": Recipe(per="own length")}
    asymmetries = {name: objectives.asymmetry(recipe, world) for name, recipe in recipes.items()}
    assert asymmetries["right"] < 1e-7
    assert asymmetries["wrong"] > 0.1
    few, more = (objectives.worst_cosines({"wrong": recipes["wrong"]}, world, n, tries=8)["wrong"] for n in (2, 4))
    mean, trace = objectives.moments(recipes["wrong"], world, 2)
    assert more <= few < objectives.effect(mean, trace, world.policies(world.params).named("return")).cosine


def test_the_two_ways_to_moments_agree_and_three_answers_are_not_four(monkeypatch):
    world, recipe = token_groups.worlds("bigram")[0], PRESETS["verl_grpo"]
    monkeypatch.setattr(objectives, "ENUMERATED", 2)
    assert objectives.disagreement(recipe, world) < 1e-12
    two, three = (objectives.by_sums(recipe, world, size) for size in (2, 3))
    assert np.max(np.abs(two[0] - three[0])) > 1e-3


def printed(title: str) -> dict[str, list[str]]:
    """Rows of the page's table under this title, by preset."""
    text = PAGE.read_text(encoding="utf-8").partition(title)[2].partition("```")[0]
    rows = [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows if row[0] in PRESETS}


def test_the_page_has_every_preset_and_what_it_declares():
    of_page = printed("On policy, one prompt")
    assert list(of_page) == list(PRESETS)
    for name, row in of_page.items():
        declared = PRESETS[name].declaration.objectives
        assert row[0] == objectives.Row(name, PRESETS[name], asymmetry=float(not declared)).estimates, name


@pytest.mark.slow
def test_the_page_shows_what_is_computed():
    rows = {name: objectives.Row(name, PRESETS[name]) for name in ("trl_grpo", "verl_opo", "trl_rloo")}
    for kind in token_groups.KINDS:
        for world in token_groups.worlds(kind):
            for row in rows.values():
                objectives.on_policy(objectives.first_gradient(row.recipe), [row], world, (2, 4))
    for name, row in rows.items():
        shown = printed("On policy, one prompt")[name]
        found = [f"{row[f'angle, G = {size}']:.1f}" for size in (2, 4)]
        assert shown[4:6] == found, name
        assert shown[3] == f"{row['size, G = 4']:.3g}"
