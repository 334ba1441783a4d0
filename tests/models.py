"""Small models with plain calls, one of each construct that JAX has; `tests.models_by_hand` has every one as a loop in Python.

The laws of the first seventeen are those of the published table in `tests.models_truth`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import logderiv as ld


class Model(NamedTuple):
    """A model, where it is differentiated, and how many paths it has; tuples are arrays."""

    model: Callable[..., Any]
    theta: Any
    direction: tuple[float, ...]  # of the third derivative, in the raveled parameters
    num_choices: int  # the most on a path
    num_outcomes: int = 2  # the most of a choice
    reverse: bool = True  # whether JAX has a reverse mode for it
    args: tuple[Any, ...] = ()

    @property
    def params(self) -> Any:
        """Theta as arrays."""
        return arrays(self.theta)

    @property
    def extras(self) -> tuple[Any, ...]:
        """The further arguments as arrays."""
        return tuple(map(arrays, self.args))

    @property
    def sizes(self) -> dict[str, int]:
        """How many paths to list."""
        return {"num_choices": self.num_choices, "num_outcomes": self.num_outcomes}


def arrays(tree: Any) -> Any:
    """What stands in a tuple is one array."""
    return jax.tree.map(jnp.asarray, tree, is_leaf=lambda x: isinstance(x, tuple))


def flip(logit: Any) -> jax.Array:
    """A coin, 0.0 or 1.0."""
    return ld.sample(ld.Bernoulli(logit)).astype(float)


def pick(*logits: Any) -> jax.Array:
    """One of as many outcomes as logits, an integer."""
    return ld.sample(ld.Categorical(jnp.stack([jnp.asarray(x, float) for x in logits])))


def urn(theta):
    def draw(red, _):
        new = flip(theta @ jnp.stack([jnp.ones(()), red]))
        ld.cost(new * red / 2)
        return red + new, new

    red, _ = lax.scan(draw, jnp.zeros(()), length=4)
    ld.cost((red - 1) ** 2)


def detour(theta):
    def both(square):
        left = flip(theta[1])
        right = flip(theta[1] * theta[2] - left)
        ld.cost(right * jnp.exp(theta[2]))
        return square * (1 + left + right)

    def neither(square):
        ld.cost(theta[1] * square)
        return pick(theta[2], theta[0] / 2, square).astype(float)

    way = flip(theta[0]) > 0
    length = lax.cond(way, both, neither, theta[1] ** 2)
    ld.cost(length * (length + theta[0]))


def menu(theta):
    def plain(price):
        ld.cost(price)
        return -price

    def second(price):
        return price * flip(theta[1])

    def third(price):
        start = flip(theta[0] - 1)
        ld.cost(2 * start)
        return start + price * flip(theta[1] + start)

    joy = lax.switch(pick(theta[0], theta[1], 0.0), (plain, second, third), 1 + theta[0])
    ld.cost(joy**2)
    ld.cost(flip(joy - 0.5) * (3 - joy))


def drift(theta):
    def move(i, x):
        x = x + 2 * flip(theta[0] - 0.3 * x) - 1
        ld.cost(x**2 / (i + 1).astype(float))
        return x

    ld.cost(theta[0] * lax.fori_loop(0, 4, move, jnp.zeros(())))


def rooms(theta):
    def look(carry, _):
        room, seen, found, weight = carry
        new = flip(theta[1] * room + theta[2] * (found - 0.5) - 0.2 * seen)
        ld.cost(weight * new * (1 + room))
        return (room, seen, found + new, weight), None

    def visit(seen, weight):
        room = flip(theta[0] + theta[3] * seen)
        (_, _, found, _), _ = lax.scan(look, (room, seen, jnp.zeros(()), weight), length=2)
        ld.cost(theta[1] * found * seen)
        return seen + found, None

    ld.cost(jnp.exp(lax.scan(visit, jnp.zeros(()), jnp.array([1, -0.5]))[0] / 2))


def rescue(theta):
    def search(effort):
        def try_once(found, x):
            ld.cost(effort * x)
            hit = flip(theta[1] + x * (1 - found))
            return jnp.maximum(found, hit), hit

        found, hits = lax.scan(try_once, jnp.zeros(()), jnp.array([0.5, 1, 2]))
        return 2 * found + hits.sum()

    alarm = flip(theta[0])
    ld.cost(theta[1] * lax.cond(alarm > 0, search, lambda effort: effort, 1 + theta[0] ** 2) ** 2)


def survey(theta):
    def ask(row):
        yes = flip(theta @ row)
        ld.cost(yes * row[0])
        ld.cost(theta[1] * row[1])
        return yes * (1 + row[1])

    ld.cost(jnp.prod(0.5 + lax.map(ask, jnp.array([[1, -0.5], [0.3, 2], [-1.2, 0.7]]))))


def remat(theta):
    @jax.checkpoint
    def change(level, shift):
        step = pick(theta[0] + shift, theta[1] + 0.2 * level, theta[2]).astype(float)
        level = jnp.tanh(level + step - 1)
        ld.cost(theta[0] * shift * level)
        return level, step

    ld.cost(jnp.exp(lax.scan(change, jnp.zeros(()), jnp.array([0.4, -0.8, 1.1]))[0]))


@jax.jit
def jitted_flip(logit):
    """Traced once for all models, each of which has choices of its own."""
    return flip(logit)


def twice(theta):
    x = jitted_flip(theta[0])
    y = jitted_flip(theta[0] + theta[1] * x)
    return (x + 2 * y - 1) ** 2 + theta[1] * x * y


def closure(theta):
    kind = pick(*theta).astype(float)
    gain = jnp.exp(theta[2] * kind)

    def lose(lost, _):
        lost = lost + flip(gain - 0.8 * lost)
        return lost, lost

    lost, sums = lax.scan(lose, jnp.zeros(()), length=2)
    ld.cost(gain * sums[-1])
    ld.cost(lax.cond(lost == 0, lambda: theta[0] * kind + gain, lambda: gain * flip(theta[1] * lost)))


def crowd(theta):
    warm = flip(theta[0])

    def person(taste):
        goes = flip(theta[1] * taste + warm)
        ld.cost(theta[0] * taste * goes)
        stays = flip(theta[0] - goes)
        ld.cost(1 + taste * stays)
        return goes * stays

    ld.cost(warm * ld.plate(person)(jnp.array([1.0, 2.0])).sum() ** 2)


def herd(theta):
    def step(mood, _):
        def animal(size):
            runs = flip(theta[0] * size + theta[1] * mood)
            ld.cost(runs * (size + theta[2] * mood))
            return runs

        mood = ld.plate(animal)(jnp.array([1, -0.6])).mean()
        ld.cost(jnp.exp(theta[2] * mood))
        return mood, None

    ld.cost(2 * lax.scan(step, jnp.ones(()), length=3)[0] ** 2)


def family(theta):
    def generation(alive, _):
        def place(born, i):
            children = lax.cond(i < alive, lambda: pick(0.3 * alive, *theta).astype(float), lambda: jnp.zeros(()))
            return born + children, None

        born, _ = lax.scan(place, jnp.zeros(()), jnp.arange(3.0))
        ld.cost(theta[1] * born)
        return jnp.minimum(born, 3), None

    ld.cost(lax.scan(generation, jnp.ones(()), length=3)[0] ** 2)


def prepaid(theta):
    first = flip(theta[0])
    ld.cost(theta[1] + 10 * first)
    flip(theta[0] * theta[1])
    second = flip(theta[1] - first)
    ld.cost(theta[0] + second * (1 + first))
    flip(theta[0] + theta[1])


def survival(theta):
    def year(carry, price):
        alive, age = carry
        ld.cost(jnp.where(alive, price + theta[2] * age, 0))
        dead = flip(theta[0] + theta[1] * age) > 0
        return (alive & ~dead, age + alive.astype(float)), None

    prices = jnp.array([1, 0.5, -2, 3])
    (alive, age), _ = lax.scan(year, (jnp.array(True), jnp.zeros(())), prices)
    ld.cost(jnp.where(alive, theta[0], age**2))


def patience(theta):
    def wait(carry):
        waited, _ = carry
        ld.cost(1 + theta[1] * waited)
        return waited + 1, flip(theta[0] - 0.4 * theta[1] * waited) > 0

    ld.cost(lax.while_loop(lambda c: c[1] & (c[0] < 4), wait, (jnp.zeros(()), jnp.array(True)))[0] ** 2)


def fresh(theta):
    def step(ones, _):
        new = flip(theta[0] + theta[1] * ones)
        ld.cost(new * (1 + ones))
        return ones + new, None

    ld.cost((1 + theta[0]) * jnp.exp(lax.scan(step, jnp.zeros(()), length=3)[0]))


PUBLISHED = {
    "urn": Model(urn, (-0.4, 0.7), (0.6, -0.8), 4),  # a scan: the law depends on the carry
    "detour": Model(detour, (0.3, -0.7, 0.5), (1.0, 0.5, -0.25), 3, 3),  # a cond: two choices, or one of three outcomes
    "menu": Model(menu, (0.4, -0.3), (0.5, 1.0), 4, 3),  # a switch of no choice, one, two
    "drift": Model(drift, (0.35,), (1.0,), 4),  # a fori_loop, costs of the number of the step
    "rooms": Model(rooms, (-0.2, 0.6, 0.45, -0.5), (0.5, -1.0, 0.25, 1.0), 6),  # a scan in a scan
    "rescue": Model(rescue, (0.6, -0.9), (1.0, -0.5), 4),  # a scan in a cond
    "survey": Model(survey, (0.5, -0.3), (1.0, 0.75), 3),  # a lax.map
    "remat": Model(remat, (0.7, -0.4, 0.2), (1.0, 0.5, -1.0), 3, 3),  # jax.checkpoint
    "twice": Model(
        twice, (0.4, -1.1), (0.8, 0.6), 2
    ),  # a jitted function of the module, two calls; the cost is returned
    "closure": Model(closure, (0.2, -0.5, -0.6), (1.0, -0.5, 0.75), 4, 3),  # closures over traced values
    "crowd": Model(crowd, (0.3, 0.8), (1.0, -1.0), 5),  # a plate, a choice before it, a cost after it
    "herd": Model(herd, (0.5, -0.8, 0.3), (-0.5, 1.0, 0.75), 6),  # a plate in a scan
    "family": Model(family, (0.2, -0.3), (1.0, 0.5), 6, 3),  # a branching process: as many choices as members
    "prepaid": Model(prepaid, (0.3, -0.6), (1.0, 0.5), 4),  # costs before choices, and choices without influence
    "survival": Model(survival, (-0.7, 0.4, 0.5), (1.0, -0.5, 0.5), 4),  # an end by a mask
    "patience": Model(patience, (0.6, 0.7), (1.0, 0.75), 4, reverse=False),  # a while_loop
    "fresh": Model(fresh, (0.0, 0.0), (1.0, -0.5), 3),  # logits of exactly 0
}
