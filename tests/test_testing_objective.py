"""`check_objective`: right losses pass, eight faults in three codings each are found and named, and the worlds are what they say."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from logderiv import objectives
from logderiv.testing import check_objective
from logderiv.testing.token_worlds import NAMES, TokenWorld, token_worlds

from .losses import BETA, FAULTS, RETURN, RIGHT, WITH_KL, by_recipe, grpo, k1_of_numpy, k3_of_numpy, rloo_of_numpy

pytestmark = pytest.mark.usefixtures("broadcasting")  # losses are written as people write them


@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_pass(name):
    loss, claim, options = RIGHT[name]
    report = check_objective(loss, claim, **options)
    assert report.passed
    if claim is not None:
        assert report.is_gradient
        assert report.on_policy.combination == pytest.approx(claim, rel=1e-9)


PRESETS = {"trl_rloo": "mean", "verl_dr_grpo": "mean", "tinker_importance_sampling": "sum"}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_that_are_right_pass_by_their_declaration(name):
    recipe = objectives.preset(name)
    claim = {objective: factor(2) for objective, factor in recipe.declaration.objectives.items()}
    report = check_objective(functools.partial(by_recipe, recipe), claim, accumulate=PRESETS[name])
    assert report.on_policy.combination == pytest.approx(claim, rel=1e-9)


CODED = [(name, claim, text, loss) for name, (claim, text, losses) in FAULTS.items() for loss in losses]


@pytest.mark.parametrize(("claim", "text", "loss"), [x[1:] for x in CODED], ids=[x[3].__name__ for x in CODED])
def test_faults_are_found_and_named(claim, text, loss):
    with pytest.raises(AssertionError, match=text):
        check_objective(loss, claim)


# What the report says, and what it rests on.


def test_no_word_of_a_fault_in_the_reports_of_right_losses():
    texts = [text for _, text, _ in FAULTS.values()]
    for name in ("RLOO off policy", "k2 of sequences", "DAPO"):
        loss, claim, options = RIGHT[name]
        report = str(check_objective(loss, claim, **options))
        assert report.startswith("passed")
        assert not [text for text in texts if re.search(text, report)]


def test_the_report_names_both_regimes_and_prints_a_row_for_each_named_gradient():
    report = check_objective(k1_of_numpy, WITH_KL, raises=False)
    assert report.on_policy.combination == pytest.approx({"return": 1, "mean inverse length": -BETA}, rel=1e-9)
    assert report.without_rewards.combination == pytest.approx({"mean inverse length": -BETA}, rel=1e-9)
    assert report.off_policy.combination is None
    assert (report.off_policy.nearest or "")[0] == "return"
    lines = str(report).splitlines()
    assert lines[0] == "FAILED:"
    assert "on policy        1 * return - 0.04 * mean inverse length" in lines
    assert len([line for line in lines if line.strip().startswith(NAMES)]) == len(NAMES)


def test_what_is_the_gradient_of_nothing_is_said_to_be():
    """The bonus of steps, and tokens alone, have no objective; what a baseline turns has none either."""
    tokens = check_objective(k3_of_numpy, raises=False)
    assert not tokens.is_gradient
    assert tokens.on_policy.combination == pytest.approx({"return": 1, "forward KL within tokens": -BETA}, rel=1e-9)
    assert not check_objective(grpo).is_gradient
    assert "the gradient of no objective" in str(tokens)


def test_a_group_whose_rewards_are_equal_may_not_give_nan():
    def no_epsilon(log_probs, mask, rewards):
        pairs = rewards.reshape(-1, 2)
        advantages = (pairs - pairs.mean(1, keepdims=True)) / pairs.std(1, keepdims=True)
        return 0.0, mask * -advantages.reshape(-1, 1) / len(mask)

    with pytest.raises(AssertionError, match="the gradient is not finite: where the rewards of a group are equal"):
        check_objective(no_epsilon)


def test_a_loss_may_write_into_what_it_is_given():
    def writes(log_probs, mask, rewards):
        rewards *= 2
        log_probs[~mask] = np.nan
        return 0.0, mask * -(rewards - rewards.reshape(-1, 2).mean(1).repeat(2))[:, None] / len(mask)

    assert check_objective(writes, RETURN).passed


def test_groups_are_counted_from_zero_in_each_micro_batch():
    sizes = set()

    def looks(log_probs, mask, rewards, groups, num_groups, group_size, num_answers):
        assert sorted(set(groups)) == list(range(num_groups))
        assert len(groups) == num_groups * group_size
        sizes.add((len(groups), int(num_answers)))
        return rloo_of_numpy(log_probs, mask, rewards)

    check_objective(looks)
    assert sizes == {(2, 2), (4, 4), (2, 4)}


def test_padding_that_is_held_is_found_too():
    """It has no derivative, and only changes that of the tokens."""

    def weighted(log_probs, old, mask, advantages):
        value, weights = rloo_of_numpy(log_probs, mask, advantages)
        return value, weights * np.exp(np.sum(log_probs - old, axis=1, keepdims=True))

    report = check_objective(weighted, raises=False)
    assert min(report.changes["padding"], report.changes["prompt"]) > 0.1
    assert not check_objective(rloo_of_numpy).changes["padding"]


def test_whitened_advantages_need_the_whole_batch():
    def whitened(log_probs, mask, advantages):
        return rloo_of_numpy(log_probs, mask, (advantages - advantages.mean()) / (advantages.std() + 1e-6))

    with pytest.raises(AssertionError, match="a mean or a deviation runs over both"):
        check_objective(whitened)


def test_how_micro_batches_are_put_together_decides():
    assert check_objective(rloo_of_numpy, accumulate="mean").passed
    with pytest.raises(AssertionError, match="the parts are 4 times the whole; is accumulate right"):
        check_objective(rloo_of_numpy, accumulate="sum")


def test_the_claim_is_held_off_policy_where_that_is_asked_for():
    with pytest.raises(AssertionError, match="off policy the gradient is not that of 1 \\* return"):
        check_objective(rloo_of_numpy, RETURN, off_policy=True)


def exact_objectives(world: TokenWorld, logits):
    """Functions of the logits whose gradients have a name, from the probabilities of the answers."""

    def logs_of(logits):
        table = jax.nn.log_softmax(logits)[world.rows, world.tokens]
        return jnp.sum(jnp.where(world.mask, table, 0), axis=1)

    logs, reference, lengths = logs_of(logits), logs_of(world.reference), world.mask.sum(1)
    chances = jnp.exp(logs)
    return {
        "return": chances @ world.rewards,
        "reverse KL": chances @ (logs - reference),
        "forward KL": jnp.exp(reference) @ (reference - logs),
        "sequence entropy": -chances @ logs,
        "mean length": chances @ lengths,
        "mean inverse length": chances @ (1 / lengths),
    }


@pytest.mark.parametrize("world", token_worlds(), ids=range(len(token_worlds())))
def test_named_gradients_are_those_of_the_objectives(world):
    exact = jax.jit(jax.jacrev(functools.partial(exact_objectives, world)))(world.policy)
    found = world.named()
    for name, gradient in exact.items():
        np.testing.assert_allclose(found[name], gradient.ravel(), rtol=0, atol=1e-13)
    assert np.sum(world.chances(world.policy)) == pytest.approx(1, abs=1e-14)
    chances = world.chances(world.policy)[:, None] * world.mask
    for name, of in (("step_kl", "reverse KL"), ("step_entropy", "sequence entropy")):  # of each step, its state held
        within = world.back(world.policy, name, chances)
        np.testing.assert_allclose(within, found[f"{of} within tokens"], rtol=0, atol=1e-13)


def test_named_gradients_are_independent_over_all_worlds():
    """Else a combination would not be the only one."""
    columns = np.stack([np.concatenate([world.named()[name] for world in token_worlds()]) for name in NAMES])
    singular = np.linalg.svd(columns / np.linalg.norm(columns, axis=1, keepdims=True), compute_uv=False)
    assert singular[-1] > 1e-3


def test_derivatives_by_steps_are_those_of_their_tables():
    world = token_worlds()[2]

    def total(logits, name, weights):
        logs, reference = jax.nn.log_softmax(logits), jax.nn.log_softmax(world.reference)
        of_rows = jnp.sum(jnp.exp(logs) * (logs - reference if name == "step_kl" else -logs), axis=1)
        return jnp.sum(jnp.where(world.real, weights * of_rows[world.rows], 0))

    weights = np.random.default_rng(0).normal(size=world.mask.shape)
    for name in ("step_kl", "step_entropy"):
        found = world.back(world.policy, name, weights)
        np.testing.assert_allclose(found, jax.grad(total)(world.policy, name, weights).ravel(), rtol=0, atol=1e-13)


REFUSED = {
    "no such objective": (dict(claim={"returns": 1}), ValueError, "claim: expected 'return', 'reverse KL'"),
    "a factor that is none": (dict(claim={"return": "1"}), TypeError, "claim"),
    "a claim without factors": (dict(claim=["return"]), TypeError, "claim: expected a dictionary"),
    "accumulate": (dict(accumulate="add"), ValueError, "accumulate: expected 'mean' or 'sum'"),
    "k above two": (dict(advantage=objectives.MaxAtK(3)), ValueError, "advantage: expected one of 2 answers"),
    "greedy": (dict(advantage=objectives.Centered("greedy")), ValueError, "advantage: expected one of 2 answers"),
    "a class": (dict(advantage=objectives.Centered), TypeError, "advantage: expected .* call it"),
    "no function": (dict(loss=1.0), TypeError, "loss: expected a function"),
    "unknown argument": (dict(loss=lambda logps, mask: 0.0), ValueError, "loss: expected log_probs and some of"),
    "an aggregate missing": (dict(loss=lambda log_probs: log_probs.sum(1)), ValueError, r"loss: expected shape \(\)"),
    "another derivative": (
        dict(loss=lambda log_probs: (0.0, np.zeros(3))),
        ValueError,
        "derivative by log_probs of shape",
    ),
    "steps of numpy": (
        dict(loss=lambda log_probs, step_kl: (0.0, 0 * log_probs)),
        ValueError,
        "loss: expected one of JAX where it takes step_kl",
    ),
    "complex": (dict(loss=lambda log_probs: log_probs.sum() * 1j), TypeError, "loss: expected real numbers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_named(name):
    options, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        check_objective(**{"loss": rloo_of_numpy, **options})
