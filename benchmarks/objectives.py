r"""Which gradient does each objective that frameworks of sequence models ship estimate, how noisy is it, and what breaks it?

Every preset of `ld.objectives` on small worlds of tokens (`token_groups`), exactly: all groups of answers are summed, nothing is sampled.
Three worlds (bigram, GRU, "long wrong answers"), each with rewards 0/1 and graded ones. With g the first gradient of one batch and
$\nabla J$ that of the mean return:

- size is $|\mathbb{E}g| / |\nabla J|$, the angle that between $\mathbb{E}g$ and $\nabla J$;
- noise is $\sqrt{\operatorname{tr}\operatorname{Cov} g} / |\mathbb{E}g|$;
- the gain of a step is $(\mathbb{E}g \cdot \nabla J)^2 / (|\nabla J|^2\, \mathbb{E}|g|^2) = \cos^2 / (1 + \text{noise}^2)$, 0 where the cosine is negative: what one
  step along g of the best length gains in expectation, as a part of what a step along $\nabla J$ gains, where J curves alike in all directions;
- the asymmetry is $|A - A^T| / |A|$ of the Jacobian A of $\mathbb{E}g$ as a function of the parameters, by central differences: that of a gradient is
  symmetric, so with another one the recipe descends nothing.

Off policy the old parameters draw, a fixed step away. Two prompts, of different difficulty, stand in one batch. Truncated samplers (top-k, top-p) draw, and
their log-probabilities are what corrections see: angles to the gradient of the return of what is sampled, and of the policy itself.
The worst case is the largest angle on policy over parameters with logits within 3 of their middle and |∇J| at least a tenth of its largest, by random
search and steps from the worst.

Finding (33 presets): five are the gradient of the return times a constant (Dr. GRPO in three frameworks, both of Tinker's), one that of the return and a
divergence (TRL's RLOO), exactly; the other 27 are of no objective. Weights over the own length turn the step by up to 59 degrees however many the answers,
and in the worst case against the return; weights over the tokens of the batch by 11, 6, 6 and 4 at G = 2, 4, 8 and 16. Off policy and under truncated
sampling none is exact.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from benchmarks import token_groups
from benchmarks.harness import Report, Table, at_least, at_most
from benchmarks.objectives_figure import draw
from benchmarks.token_groups import World
from logderiv.objectives import PRESETS, Ratio, Recipe

EXACT, STEP, ASYMMETRIC = 1e-12, 1e-4, 1e-5
SIZES = {True: (2, 4), False: (2, 4, 8, 16)}  # answers to a prompt
ENUMERATED = (
    4  # up to so many answers every group is listed, beyond the library's sums are taken; where one number is shown
)
STATES = 2**20  # of those sums, at most
KINDS = {True: ("bigram",), False: tuple(token_groups.KINDS)}
ROUNDS = {True: 2, False: 8}  # of the search for the worst case
QUICK = ("trl_grpo", "trl_dr_grpo", "trl_rloo")
RETURN, REGULARIZED, OTHER, NONE = "return", "return and a divergence", "another objective", "no objective"
ANGLES_AND_GAINS = (("angle", ".1f"), ("gain", ".2f"))
BROKEN = ("off policy", "two prompts", "top-k, sampled", "top-k, policy", "top-p, sampled", "top-p, policy")


class Effect(NamedTuple):
    """What a recipe's gradient is beside the exact one.

    Attributes:
        size: |E g| / |∇J|.
        cosine: Of the angle between them.
        noise: √tr Cov g / |E g|.
        gain: cosine² / (1 + noise²); 0 where the cosine is negative.
    """

    size: float
    cosine: float
    noise: float
    gain: float

    @property
    def angle(self) -> float:
        """In degrees."""
        return degrees(self.cosine)


def degrees(cosine: float) -> float:
    """The angle of a cosine."""
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine))))


def effect(mean: Any, trace: float, exact: Any) -> Effect:
    """Of E[g], the trace of the covariance, and the exact gradient."""
    own, whole, inner = float(np.linalg.norm(mean)), float(np.linalg.norm(exact)), float(mean @ exact)
    gain = max(inner, 0.0) ** 2 / (whole**2 * (own**2 + trace))
    return Effect(own / whole, inner / (own * whole), math.sqrt(max(trace, 0)) / own, gain)


@dataclasses.dataclass
class Row:
    """One preset.

    Attributes:
        name: Its name.
        recipe: Itself.
        effects: World to column to effect; columns are "G = 2" and so on, and those of `BROKEN`.
        errors: How far E[g] is from what is declared, relative to the largest gradient that is named; nothing of what declares none.
        ratio: How far the first gradient is from that of `first_gradient`, relative.
        asymmetry: The largest of all worlds.
        worst: World to the largest angle.
        missing: Column to the reason why it could not be computed.
    """

    name: str
    recipe: Recipe
    effects: dict[str, dict[str, Effect]] = dataclasses.field(default_factory=dict)
    errors: list[float] = dataclasses.field(default_factory=list)
    ratio: float = 0.0
    asymmetry: float = 0.0
    worst: dict[str, float] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Of what E[g] is the gradient, on policy."""
        declared = set(self.recipe.declaration.objectives)
        if declared:
            return RETURN if declared == {"return"} else REGULARIZED
        return NONE if self.asymmetry > ASYMMETRIC else OTHER

    @property
    def estimates(self) -> str:
        """The declared objectives with their factors for four answers, or the verdict."""
        declared = self.recipe.declaration.objectives
        return (
            " ".join(f"{factor(ENUMERATED):+.3g} {name}" for name, factor in declared.items()).lstrip("+")
            or self.verdict
        )

    @property
    def error(self) -> float:
        """The largest; NaN of what declares nothing."""
        return max(self.errors, default=math.nan)

    def of(self, column: str, field: str = "angle") -> list[float]:
        """One number in every world where it could be computed."""
        found = [effects[column] for effects in self.effects.values() if column in effects]
        return [getattr(x, field) for x in found if math.isfinite(x.cosine)]

    def __getitem__(self, key: str) -> float:
        """For tables: "angle, G = 2" is the largest of all worlds, "gain, G = 2" and the others the median; NaN where one is missing."""
        field, _, column = key.partition(", ")
        found = self.of(column, field)
        if not found or column in self.missing:
            return math.nan
        return max(found) if field == "angle" else median(found)

    def numbers(self) -> dict[str, Any]:
        """All of it, to save."""
        own = {name: getattr(self, name) for name in ("estimates", "verdict", "error", "ratio", "asymmetry")}
        own |= {"source": self.recipe.source, "effects": self.effects, "worst": self.worst, "missing": self.missing}
        return own


def first_gradient(recipe: Recipe) -> Recipe:
    """A recipe with the same gradient on policy, where ratios are 1: many differ in the ratio alone."""
    plain = dataclasses.replace(recipe, correction=None, source="")
    return plain if recipe.ratio.level == "sequence" else dataclasses.replace(plain, ratio=Ratio())


def moments(recipe: Recipe, world: World, size: int) -> tuple[np.ndarray, float]:
    """E[g] and the trace of the covariance, on policy, of answers to the first prompt."""
    if size <= ENUMERATED:
        return token_groups.moments(recipe, [world.policies(world.params)], size)
    return by_sums(recipe, world, size)


def by_sums(recipe: Recipe, world: World, size: int) -> tuple[np.ndarray, float]:
    """The same by the law of sums over a group, which the library has: groups may be large."""
    params, reference = (world.unravel(jnp.asarray(x)) for x in (world.params, world.reference))
    where = {"horizon": token_groups.HORIZON, "size": size, "reference": reference, "limit": STATES}
    own = token_groups.of_group_size(recipe, size)
    found = ld.exact.group_moments(params, world.model.policy, world.first_prompt, own, **where)
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found.mean)]), float(found.trace)


def disagreement(recipe: Recipe, world: World) -> float:
    """The largest difference of the two ways, relative, mean and trace."""
    (mean, trace), (other, others) = (way(recipe, world, ENUMERATED) for way in (moments, by_sums))
    return float(max(np.max(np.abs(mean - other)) / np.max(np.abs(mean)), abs(trace - others) / trace))


def on_policy(recipe: Recipe, same: Sequence[Row], world: World, sizes: Sequence[int]) -> None:
    """Fill in the effect for each number of answers, and how far the declarations are off, of recipes that are one on policy."""
    policies = world.policies(world.params)
    for size in sizes:
        try:
            mean, trace = moments(recipe, world, size)
        except ValueError as error:
            for other in same:
                other.missing[f"G = {size}"] = str(error)
            continue
        found = effect(mean, trace, policies.named("return"))
        for other in same:
            other.effects.setdefault(world.name, {})[f"G = {size}"] = found
            declared = other.recipe.declaration.objectives
            if declared:
                exact = {name: np.asarray(policies.named(name)) for name in declared}
                expected = sum(factor(size) * exact[name] for name, factor in declared.items())
                largest = max(np.max(np.abs(x)) for x in (expected, *exact.values()))
                other.errors.append(float(np.max(np.abs(mean - expected)) / largest))
            if size == sizes[0]:
                own, _ = moments(other.recipe, world, size)
                other.ratio = max(other.ratio, float(np.max(np.abs(own - mean)) / np.max(np.abs(mean))))


def disturbed(recipe: Recipe, world: World) -> dict[str, Effect]:
    """The effect off policy, for two prompts in a batch, and under truncated sampling."""
    found = {}
    for how in ("off policy", "top-k", "top-p"):
        policies = world.policies(world.params, how)
        mean, trace = token_groups.moments(recipe, [policies], ENUMERATED)
        found[how if how == "off policy" else f"{how}, policy"] = effect(mean, trace, policies.named("return"))
        if how != "off policy":
            found[f"{how}, sampled"] = effect(mean, trace, policies.named("return", of_sampler=True))
    both = [world.policies(world.params, prompt=prompt) for prompt in (0, 1)]
    exact = np.mean([x.named("return") for x in both], axis=0)
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
    return dict(zip(recipes, np.min(np.where(_counts(exact), cosines, 1), axis=1).tolist(), strict=True))


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


def examine(names: Sequence[str], quick: bool) -> tuple[dict[str, Row], float]:
    """All rows, and by how much the two ways to moments disagree."""
    rows = {name: Row(name, PRESETS[name]) for name in names}
    classes: dict[Recipe, list[Row]] = {}
    for row in rows.values():
        classes.setdefault(first_gradient(row.recipe), []).append(row)
    recipes = {same[0].name: recipe for recipe, same in classes.items()}
    for kind in KINDS[quick]:
        for world in token_groups.worlds(kind):
            _on_policy(classes, recipes, world, quick)
            for row in rows.values():
                row.effects[world.name] |= disturbed(row.recipe, world)
    world = token_groups.worlds(KINDS[quick][0])[1]
    return rows, max(disagreement(x, world) for x in list(recipes.values())[: 1 if quick else None])


def _on_policy(classes: Mapping[Recipe, list[Row]], recipes: Mapping[str, Recipe], world: World, quick: bool) -> None:
    """Fill in all that depends on the first gradient on policy alone."""
    worst = worst_cosines(recipes, world, ROUNDS[quick])
    for recipe, same in classes.items():
        on_policy(recipe, same, world, SIZES[quick])
        found, angle = asymmetry(recipe, world), degrees(worst[same[0].name])
        for row in same:
            row.asymmetry = max(row.asymmetry, found)
            row.worst[world.kind] = max(row.worst.get(world.kind, 0.0), angle)


def main(quick: bool) -> Report:
    with jax.enable_x64(True):
        rows, agreement = examine(QUICK if quick else list(PRESETS), quick)
    declared = [row for row in rows.values() if row.verdict in (RETURN, REGULARIZED)]
    none = [row.asymmetry for row in rows.values() if row.verdict == NONE]
    bounds = [
        at_most(
            "largest |E[g] - what is declared|, relative to the largest gradient", max(x.error for x in declared), EXACT
        ),
        at_most("largest asymmetry of what declares an objective", max(x.asymmetry for x in declared), ASYMMETRIC),
        at_least("smallest asymmetry of what is said to be of no objective", min(none), 1e-2),
        at_most("on policy, largest change by a ratio that is 1, relative", max(x.ratio for x in rows.values()), EXACT),
        at_most("largest difference of moments by every group and by sums, relative", agreement, EXACT),
    ]
    numbers = {name: row.numbers() for name, row in rows.items()}
    return Report(tables(rows, quick), bounds, numbers, partial(draw, rows, f"G = {ENUMERATED}"))


def tables(rows: Mapping[str, Row], quick: bool) -> list[Table]:
    """What each recipe is, what it estimates on policy, what breaks it, and its worst case."""
    chosen, columns = list(rows.values()), [f"G = {size}" for size in SIZES[quick]]
    shown = f"G = {ENUMERATED}"
    reasons = {f"{c}, {name}: {why.partition(';')[0]}" for name, row in rows.items() for c, why in row.missing.items()}
    angles, gains = (" | ".join(f"{{r[{field}, {c}]:{spec}}}" for c in columns) for field, spec in ANGLES_AND_GAINS)
    return [
        Table("Where they are from", "preset and source", "{r.name}: {r.recipe.source}", chosen),
        Table(
            "On policy, one prompt: what E[g] is, and the angle to the gradient of the return in degrees, the largest of all worlds; "
            "size, noise and gain, their median",
            f"preset | is the gradient of | off by | asymmetry | size, {shown} | angle, {' | '.join(columns)} | noise, {shown}"
            f" | gain, {' | '.join(columns)}",
            f"{{r.name}} | {{r.estimates}} | {{r.error:.0e}} | {{r.asymmetry:.0e}} | {{r[size, {shown}]:.3g}} | {angles}"
            f" | {{r[noise, {shown}]:.2f}} | {gains}",
            chosen,
            "\n".join(["a dash: not computable, or nothing is declared", *sorted(reasons)]),
        ),
        Table(
            "What breaks it: the largest angle of all worlds, in degrees",
            "preset | on policy | off policy | two prompts | top-k: to what is sampled | to the policy's"
            " | top-p: to what is sampled | to the policy's | gain on policy | off policy",
            f"{{r.name}} | {{r[angle, {shown}]:.1f}} | "
            + " | ".join(f"{{r[angle, {column}]:.1f}}" for column in BROKEN)
            + f" | {{r[gain, {shown}]:.2f}} | {{r[gain, off policy]:.2f}}",
            chosen,
            f"{ENUMERATED} answers to a prompt; with two prompts, two to each",
        ),
        Table(
            "The worst case over parameters: angle in degrees, groups of two answers on policy; above 90 the return falls",
            f"preset | {' | '.join(KINDS[quick])}",
            "{r.name} | " + " | ".join(f"{{r.worst[{kind}]:.1f}}" for kind in KINDS[quick]),
            chosen,
        ),
    ]
