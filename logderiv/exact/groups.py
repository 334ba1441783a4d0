"""Exact moments of the first gradient of objectives of sequence models, of groups of any size: by sums over their answers."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jax.flatten_util import ravel_pytree

from logderiv._core import check
from logderiv._core.arrays import array_of, check_params, refuse_complex, wide
from logderiv.estimators.objectives.advantages import MaxAtK
from logderiv.estimators.objectives.presets import Recipe
from logderiv.exact.enumeration import list_trajectories
from logderiv.exact.estimators import unravel
from logderiv.exact.group_answers import Answers, Policies, list_answers
from logderiv.exact.group_coefficients import (
    Problem,
    Slot,
    coefficients,
    crossed,
    entries_of,
    law_of,
    mean_of,
    weights_of,
)
from logderiv.exact.group_sums import (
    Needs,
    classes_of,
    fingerprint,
    groups_of,
    linear,
    of_advantage,
    of_weight,
    refusal,
    three_rewards,
)
from logderiv.policies import as_policy
from logderiv.types import Params

STATES = 2**22
_WIDEST = 2048  # parameters of a full covariance
EQUAL = ("keep", "refill", "redraw", "mask", "drop")


class GroupMoments(NamedTuple):
    """Exact moments of the first gradient of an objective; float64.

    Attributes:
        mean: E[g], a pytree of `params`.
        covariance: Cov[g], raveled, shape `(D, D)`; with M directions that of their products with g, shape `(M, M)`.
        trace: tr Cov[g], the sum of the variances of all parameters.
        unequal: The probability that the rewards of a group that is drawn are not all equal; 1 where it was not asked for.
        num_classes: Answers that differ in prompt, reward or length; or what stands for them.
        num_states: Groups with different sums, of all prompts.
    """

    mean: Any
    covariance: np.ndarray
    trace: float
    unequal: float
    num_classes: int
    num_states: int


def group_moments(
    params: Params,
    policy: Any,
    environment: Any,
    recipe: Recipe,
    *,
    horizon: int,
    size: int,
    num_groups: int | None = None,
    prompts: str = "drawn",
    old: Params | None = None,
    sampler: Params | None = None,
    sampler_policy: Any = None,
    reference: Params | None = None,
    equal_rewards: str = "keep",
    directions: Any = None,
    limit: int = STATES,
) -> GroupMoments:
    """E[g] and Cov[g] of the first gradient of an objective, on batches of P groups of G answers, exactly and for any G.

        g = Σ_n w_n [A_n⁺ φ⁺(y_n) + A_n⁻ φ⁻(y_n) + φ⁰(y_n)]

    An answer's gradients φ depend on it alone; its advantage A and weight w on its reward, its length, and on sums over the others,
    such as ΣR, ΣR² and ΣT. So every answer is listed once, and in place of all groups the law of those sums is computed, an answer
    at a time. Advantages and weights are the recipe's own, on one batch for each value of the sums. Where the advantage is linear
    in all rewards, and its sign does not matter, three different rewards stand for all; where it is max@k, moments of the best of
    several stand for sums; else rewards that are all different, as those less a penalty, leave as many sums as groups, and what is
    too large is refused with their number.

    | equal_rewards | a group whose rewards (before a penalty) are all equal |
    |---|---|
    | `"keep"` | is like any other |
    | `"refill"` | makes room for a new group of a new prompt, until there are P: DAPO, arXiv:2503.14476, section 3.2 |
    | `"redraw"` | makes room for another group of the same prompt, as often as it takes |
    | `"mask"` | has no gradient, and is in every count and mean |
    | `"drop"` | is in no count: the batch is what is left of it |

    Lists, compiles and loops by itself: arguments are concrete. Memory is of the order of states times classes, and `(D, D)`.

    Args:
        params: Parameters of the policy that is trained; use float64.
        policy: The policy.
        environment: What `enumerate_trajectories` takes; a start is a prompt, a trajectory an answer, its return the reward.
        recipe: A `logderiv.objectives.Recipe`.
        horizon: `T`.
        size: G, answers to each prompt.
        num_groups: P; `None` for 1, or with fixed prompts for one each.
        prompts: "drawn", each group's by itself from the environment's law; or "fixed", one group for each prompt.
        old: Parameters at the start of the update; `None` for `params`.
        sampler: Parameters of what draws the answers; `None` for `old`.
        sampler_policy: What draws the answers; `None` for `policy`. Such as `logderiv.policies.Truncated(policy, top_k=3)`.
        reference: Parameters of the reference of a divergence.
        equal_rewards: What becomes of a group whose rewards are all equal.
        directions: Only the covariance of the products of these with g is given; shape `(M, D)`, D the raveled parameters.
        limit: Refuse more states of a group times classes.

    Returns:
        `GroupMoments`. The greedy answer of a baseline is that of what draws.

    Raises:
        ValueError: Too many answers or states; a number out of its range, an unknown name; parameters of another structure; more
            than 2048 parameters without `directions`; the recipe needs more answers, or a reference.
        TypeError: A parameter is not floating point; the recipe is none; an environment that cannot be listed.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> bandit = ld.environments.TabularMDP(jnp.ones(1), jnp.ones((1, 2, 1)), jnp.array([[0.0, 1.0]]), jnp.zeros(1, bool))
        >>> recipe = ld.objectives.Recipe(ld.objectives.Centered("group"))
        >>> found = group_moments(jnp.zeros((1, 2)), ld.tabular_softmax, bandit, recipe, horizon=1, size=4)
        >>> found.mean.round(6).tolist()  # (1 - 1/4) times the gradient
        [[-0.1875, 0.1875]]
    """
    horizon, limit = check.whole(horizon=horizon, limit=limit)
    num_groups = check.whole(or_none=True, num_groups=num_groups)
    check.one_of(("drawn", "fixed"), prompts=prompts)
    check.one_of(EQUAL, equal_rewards=equal_rewards)
    check.made("recipe", recipe, isinstance(recipe, Recipe), "logderiv.objectives.Recipe(), or one of PRESETS")
    size = check.whole(at_least=recipe.advantage.min_answers, hint=f"which {recipe.advantage} needs", size=size)
    check_params(params)
    given = {"old": old, "sampler": sampler, "reference": reference}
    refuse_complex(**given)
    for name, x in given.items():
        if x is not None and not (name == "sampler" and sampler_policy is not None):
            check.like(name, x, params)
    if equal_rewards != "keep":
        check.whole(at_least=2, hint="of one answer all rewards are equal", size=size)
    shown = _directions(directions, ravel_pytree(params)[0].size)
    params, old, sampler, reference = (wide(x) for x in (params, old, sampler, reference))
    old = params if old is None else old
    policy = as_policy(policy)
    drawn_by = policy if sampler_policy is None else as_policy(sampler_policy)
    sampler = old if sampler is None else sampler
    every = list_trajectories(environment, horizon)
    policies = Policies(params, policy, sampler, drawn_by, old, reference, environment.num_actions)
    answers = list_answers(recipe, policies, every)
    slots = _slots(answers.of_prompts, num_groups, prompts, equal_rewards)
    problem, shares = _problem(recipe, answers, len(slots), size, equal_rewards, limit)
    return _moments(problem, answers, shares, slots, params, shown)


def _slots(of_prompts: np.ndarray, num_groups: int | None, prompts: str, equal_rewards: str) -> list[np.ndarray]:
    """The probabilities of prompts in each group of the batch."""
    number = len(of_prompts)
    if prompts == "drawn":
        return [of_prompts] * (1 if num_groups is None else num_groups)
    if num_groups not in (None, number):
        raise ValueError(
            f"num_groups: expected {number}, a group for each prompt with prompts='fixed', received {num_groups}."
        )
    if equal_rewards == "refill":
        raise ValueError(
            "equal_rewards: 'refill' draws other prompts; take prompts='drawn', or 'redraw' with fixed ones."
        )
    return list(np.eye(number))


def _directions(directions: Any, size: int) -> np.ndarray | None:
    if directions is None:
        if size > _WIDEST:
            raise ValueError(
                f"directions: expected some (M, D), as the covariance of D = {size} > {_WIDEST} parameters is large; "
                f"numpy.zeros((0, {size})) for the trace alone."
            )
        return None
    shown = np.asarray(array_of(directions, "directions"), np.float64)
    if shown.ndim != 2 or shown.shape[1] != size:
        raise ValueError(f"directions: expected shape (M, D) with D = {size} parameters, received {shown.shape}.")
    return shown


def _problem(
    recipe: Recipe, answers: Answers, num_groups: int, size: int, equal_rewards: str, limit: int
) -> tuple[Problem, np.ndarray]:
    """What is to be computed, and the share of each answer in the classes."""
    needs = of_advantage(recipe.advantage), of_weight(recipe.per, equal_rewards == "drop")
    one_state = answers.parts[0] == "both" and equal_rewards == "keep" and not needs[1].sources
    best = recipe.advantage if one_state and isinstance(recipe.advantage, MaxAtK) else None
    if best is not None:
        needs = Needs(), Needs()
    names = dict.fromkeys(needs[0].sources + needs[1].sources + (() if equal_rewards == "keep" else ("raw",)))
    classes, shares = classes_of(answers.each)
    refuse = refusal(recipe, len(classes.rewards), size, limit)
    if equal_rewards == "keep" and linear(recipe, answers.parts) and len(np.unique(classes.rewards)) > 3:
        classes, between = three_rewards(classes)
        shares = shares @ between
    keys = fingerprint(classes.sums(tuple(names)))
    groups = [groups_of(x, classes, keys, size, refuse) for x in range(len(answers.of_prompts))]
    plain = dataclasses.replace(recipe, penalty=None)
    return Problem(plain, classes, groups, needs, answers.parts, num_groups, equal_rewards, best, refuse), shares


def _moments(
    problem: Problem, answers: Answers, shares: np.ndarray, slots: list[np.ndarray], params: Params, shown: Any
) -> GroupMoments:
    entries = entries_of(problem)
    drawn = all(x is slots[0] for x in slots)  # the groups of a batch are alike
    weights, unequal = zip(*(weights_of(problem, entries, x) for x in slots[: 1 if drawn else None]), strict=True)
    every = list(weights) * (len(slots) if drawn else 1)
    size, times = problem.groups[0].whole.members.shape[1], len(slots) if drawn else 1

    def without(*left_out: int) -> Any:
        return law_of(problem, entries, [x for i, x in enumerate(every) if i not in left_out])

    others = [without(i) for i in range(len(weights))]
    found = [coefficients(problem, entries, Slot(*x)) for x in zip(weights, others, strict=True)]
    mean = times * size * sum(mean_of(*x) for x in zip(found, others, strict=True))
    squares = times * size * sum(x.squares for x in found)
    pairs = times * size * (size - 1) * sum(x.pairs for x in found)
    number = range(len(slots))
    two = [(0, 1)] * (len(slots) > 1) if drawn else [(i, j) for i in number for j in number if i != j]
    for i, j in two:
        a, b, often = (0, 0, len(slots) * (len(slots) - 1)) if drawn else (i, j, 1)
        cross = crossed(found[a], found[b], (others[a], others[b]), without(i, j), entries.keys)
        pairs = pairs + often * size**2 * cross
    states = sum(len(x.whole.keys) for x in problem.groups)
    return _assemble(answers, shares, mean, squares, pairs, params, shown, float(np.mean(unequal)), states)


def _assemble(
    answers: Answers,
    shares: np.ndarray,
    mean: np.ndarray,
    squares: np.ndarray,
    pairs: np.ndarray,
    params: Params,
    shown: np.ndarray | None,
    unequal: float,
    states: int,
) -> GroupMoments:
    """The moments from their coefficients and the gradients of the answers."""
    of_classes = np.tensordot(shares.T * answers.each.chances, answers.gradients, axes=1)
    expected = np.einsum("cs,csd->d", mean, of_classes)
    weights = answers.each.chances[:, None, None] * np.tensordot(shares, squares, axes=1)

    def second(gradients: np.ndarray, of_classes: np.ndarray) -> np.ndarray:
        flat = of_classes.reshape(-1, of_classes.shape[-1])
        own = np.einsum("ksu,kud->ksd", weights, gradients).reshape(-1, gradients.shape[-1])
        return gradients.reshape(own.shape).T @ own + flat.T @ pairs.reshape(len(flat), len(flat)) @ flat

    if shown is None:
        covariance = second(answers.gradients, of_classes) - np.outer(expected, expected)
        trace = float(np.trace(covariance))
    else:
        covariance = second(answers.gradients @ shown.T, of_classes @ shown.T)
        covariance -= np.outer(shown @ expected, shown @ expected)
        gram = np.einsum("csd,eud->cseu", of_classes, of_classes, optimize=True)
        inner = np.einsum("ksd,kud->ksu", answers.gradients, answers.gradients)
        trace = float(np.sum(weights * inner) + np.sum(pairs * gram) - expected @ expected)
    return GroupMoments(unravel(params, expected), covariance, trace, unequal, len(mean), states)
