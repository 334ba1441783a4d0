r"""Which gradient does each objective that frameworks of sequence models ship estimate, how noisy is it, and what breaks it?

Every preset of `ld.objectives` on small worlds of tokens (`token_groups`), exactly: all groups of answers are summed, nothing is sampled.
Three worlds (bigram, GRU, "long wrong answers"), each with rewards 0/1 and graded ones. With g the first gradient of one batch and
$\nabla J$ that of the mean return:

- size is $|\mathbb{E}g| / |\nabla J|$, the angle that between $\mathbb{E}g$ and $\nabla J$;
- noise is $\sqrt{\operatorname{tr}\operatorname{Cov} g} / |\mathbb{E}g|$;
- the gain of a step is $(\mathbb{E}g \cdot \nabla J)^2 / (|\nabla J|^2\, \mathbb{E}|g|^2) = \cos^2 / (1 + \text{noise}^2)$: what one step along g of the best
  length gains in expectation, as a part of what a step along $\nabla J$ gains, where J curves alike in all directions;
- the asymmetry is $|A - A^T| / |A|$ of the Jacobian A of $\mathbb{E}g$ as a function of the parameters, by central differences: that of a gradient is
  symmetric, so with another one the recipe descends nothing.

Off policy the old parameters draw, a fixed step away. Two prompts, of different difficulty, stand in one batch. Truncated samplers (top-k, top-p) draw, and
their log-probabilities are what corrections see: angles to the gradient of the return of what is sampled, and of the policy itself.
The worst case is the largest angle on policy over parameters with logits within 3 of their middle and |∇J| at least a tenth of its largest, by random
search and steps from the worst.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import token_groups
from benchmarks.token_groups import World
from logderiv.objectives import Recipe

EXACT, STEP, ASYMMETRIC = 1e-12, 1e-4, 1e-5
SIZES = {True: (2, 4), False: (2, 4)}
BESIDE = 4  # answers to a prompt where only one number is shown
QUICK_KINDS = ("bigram",)
RETURN, REGULARIZED, OTHER, NONE = (
    "the gradient of the return, times a constant",
    "the gradient of the return and of a divergence",
    "the gradient of something else",
    "the gradient of no objective",
)


class Effect(NamedTuple):
    """What a recipe's gradient is beside the exact one.

    Attributes:
        size: |E g| / |∇J|.
        cosine: Of the angle between them.
        noise: √tr Cov g / |E g|.
        gain: cosine² / (1 + noise²).
    """

    size: float
    cosine: float
    noise: float
    gain: float

    @property
    def angle(self) -> float:
        """In degrees."""
        return math.degrees(math.acos(min(1.0, max(-1.0, self.cosine))))


def effect(mean: np.ndarray, trace: float, exact: np.ndarray) -> Effect:
    """Of E[g], the trace of the covariance, and the exact gradient."""
    own, whole, inner = np.linalg.norm(mean), np.linalg.norm(exact), float(mean @ exact)
    square = own**2 + trace
    return Effect(own / whole, inner / (own * whole), math.sqrt(max(trace, 0)) / own, inner**2 / (whole**2 * square))


def on_policy(recipe: Recipe, world: World, sizes: Sequence[int]) -> tuple[dict[int, Effect], float]:
    """The effect for each number of answers, and how far the declaration is off, relative to the largest gradient it names."""
    policies, declared = world.policies(world.params), recipe.declaration.objectives
    exact = {name: np.asarray(policies.named(name)) for name in {"return", *declared}}
    effects, errors = {}, [0.0]
    for size in sizes:
        mean, trace = token_groups.moments(recipe, [policies], size)
        effects[size] = effect(mean, trace, exact["return"])
        if declared:
            expected = sum(factor(size) * exact[name] for name, factor in declared.items())
            largest = max(np.max(np.abs(x)) for x in exact.values())
            errors.append(float(np.max(np.abs(mean - expected)) / largest))
    return effects, max(errors)


def disturbed(recipe: Recipe, world: World, size: int) -> dict[str, Effect]:
    """The effect off policy, for two prompts in a batch, and under truncated sampling."""
    found = {}
    for how in ("off policy", "top-k", "top-p"):
        policies = world.policies(world.params, how)
        mean, trace = token_groups.moments(recipe, [policies], size)
        found[how if how == "off policy" else f"{how}, policy"] = effect(mean, trace, policies.named("return"))
        if how != "off policy":
            found[f"{how}, sampled"] = effect(mean, trace, policies.named("return", of_sampler=True))
    both = [world.policies(world.params, prompt=prompt) for prompt in (0, 1)]
    exact = sum(x.named("return") for x in both) / len(both)
    return found | {"two prompts": effect(*token_groups.moments(recipe, both, 2), exact)}


def asymmetry(recipe: Recipe, world: World) -> float:
    """|A − Aᵀ| / |A| of the Jacobian of E[g], groups of two answers."""
    moves = STEP * np.concatenate([np.eye(world.params.size), -np.eye(world.params.size)])
    found = token_groups.expected_gradients(recipe, jax.vmap(world.policies)(world.params + moves), 2)
    ahead, behind = jnp.split(found, 2)
    jacobian = (ahead - behind) / (2 * STEP)
    return float(jnp.linalg.norm(jacobian - jacobian.T) / jnp.linalg.norm(jacobian))


def worst_cosines(recipes: Mapping[str, Recipe], world: World, rounds: int, tries: int = 4) -> dict[str, float]:
    """The smallest cosine of E[g] and ∇J over parameters, groups of two answers."""
    generator, number = np.random.default_rng(0), tries * len(recipes)
    seen, exact, cosines = np.zeros((0, world.params.size)), np.zeros(0), np.zeros((len(recipes), 0))
    for turn in range(rounds):
        if turn < 2:
            points = generator.uniform(-3, 3, (number, world.params.size))
        else:
            middle = np.repeat(seen[np.argmin(np.where(_counts(exact), cosines, 2), axis=1)], tries, axis=0)
            points = np.clip(middle + 2.0 ** (2 - turn) * generator.normal(size=middle.shape), -3, 3)
        of_points, gradients = _at_points(recipes, world, points)
        sizes = np.linalg.norm(gradients, axis=-1) * np.linalg.norm(of_points, axis=-1)
        new = np.einsum("rbd,bd->rb", gradients, of_points) / np.where(sizes == 0, 1, sizes)
        seen, cosines = np.concatenate([seen, points]), np.concatenate([cosines, new], axis=1)
        exact = np.concatenate([exact, np.linalg.norm(of_points, axis=1)])
    return dict(zip(recipes, np.min(np.where(_counts(exact), cosines, 2), axis=1).tolist(), strict=True))


def _counts(exact: np.ndarray) -> np.ndarray:
    """Where the angle is not ill-posed."""
    return exact >= 0.1 * np.max(exact)


def _at_points(recipes: Mapping[str, Recipe], world: World, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """∇J `(B, D)`, 0 where logits are too far apart, and E[g] of every recipe `(R, B, D)`."""
    several = jax.vmap(world.policies)(points)
    logs = np.asarray(jax.vmap(lambda x: world.tables(x)[0])(points))
    near = np.max(np.ptp(logs, axis=-1), axis=(1, 2)) <= 6
    exact = jax.vmap(lambda x: x.named("return"))(several) * near[:, None]
    found = [np.asarray(token_groups.expected_gradients(recipe, several, 2)) for recipe in recipes.values()]
    return np.asarray(exact), np.stack(found)
