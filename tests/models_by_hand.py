"""Every model as a loop in plain Python, and a walk along all of its paths; shares no code with the library, nor with the models.

A twin is `(theta, flip, pick) -> cost` of one path: `flip(logit)` is 0 or 1 and `pick(*logits)` is 0, 1, ..., as the walk has it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Twin = Callable[[Any, Callable[..., int], Callable[..., int]], Any]


def expected_cost(twin: Twin, theta: Any) -> Any:
    """The sum of probability times cost over all paths, depth first: each is forced up to its last new choice, then takes zeros."""
    total: Any = 0.0
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        forced = waiting.pop()
        made: list[int] = []
        chances: list[Any] = []

        def pick(*logits: Any, forced=forced, made=made, chances=chances) -> int:
            if len(made) >= len(forced):
                waiting.extend((*made, other) for other in range(1, len(logits)))
            made.append(forced[len(made)] if len(made) < len(forced) else 0)
            chances.append(jnp.exp(logits[made[-1]]) / sum(map(jnp.exp, logits)))
            return made[-1]

        cost = twin(theta, lambda logit, pick=pick: pick(0.0, logit), pick)
        total = total + math.prod(chances) * cost
    return total


def derivatives(twin: Twin, theta: Any, direction: Any) -> tuple[Any, ...]:
    """Value, gradient, Hessian, and the third derivative along a direction."""
    theta, direction = jnp.asarray(theta), jnp.asarray(direction)

    def value(theta: Any) -> Any:
        return expected_cost(twin, list(theta))

    def slope(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda t: jax.jvp(function, (t,), (1.0,))[1]

    third = slope(slope(slope(lambda t: value(theta + t * direction))))(0.0)
    return value(theta), jax.jacfwd(value)(theta), jax.jacfwd(jax.jacfwd(value))(theta), third


def urn(theta, flip, pick):
    red = cost = 0
    for _ in range(4):
        new = flip(theta[0] + theta[1] * red)
        cost += new * red / 2
        red += new
    return cost + (red - 1) ** 2


def detour(theta, flip, pick):
    a, b, c = theta
    if flip(a):
        left = flip(b)
        right = flip(b * c - left)
        length, cost = b**2 * (1 + left + right), right * jnp.exp(c)
    else:
        length, cost = pick(c, a / 2, b**2), b**3
    return cost + length**2 + a * length


def menu(theta, flip, pick):
    a, b = theta
    dish, price, paid = pick(a, b, 0.0), 1 + a, 0
    if dish == 0:
        paid, joy = price, -price
    elif dish == 1:
        joy = price * flip(b)
    else:
        start = flip(a - 1)
        paid, joy = 2 * start, start + price * flip(b + start)
    return paid + joy**2 + flip(joy - 0.5) * (3 - joy)


def drift(theta, flip, pick):
    x = cost = 0
    for i in range(4):
        x += 2 * flip(theta[0] - 0.3 * x) - 1
        cost += x**2 / (i + 1)
    return cost + theta[0] * x


def rooms(theta, flip, pick):
    a, b, c, d = theta
    seen = cost = 0
    for weight in (1, -0.5):
        room, found = flip(a + d * seen), 0
        for _ in range(2):
            new = flip(b * room + c * (found - 0.5) - 0.2 * seen)
            cost += weight * new * (1 + room)
            found += new
        cost += b * found * seen
        seen += found
    return cost + jnp.exp(seen / 2)


def rescue(theta, flip, pick):
    a, b = theta
    effort = 1 + a**2
    if not flip(a):
        return b * effort**2
    hits, cost = [], 0
    for x in (0.5, 1, 2):
        cost += effort * x
        hits.append(flip(b + x * (1 - any(hits))))
    return cost + b * (2 * any(hits) + sum(hits)) ** 2


def survey(theta, flip, pick):
    cost, product = 0, 1
    for u, v in ((1, -0.5), (0.3, 2), (-1.2, 0.7)):
        yes = flip(theta[0] * u + theta[1] * v)
        cost += yes * u + theta[1] * v
        product *= 0.5 + yes * (1 + v)
    return cost + product


def remat(theta, flip, pick):
    a, b, c = theta
    level = cost = 0.0
    for shift in (0.4, -0.8, 1.1):
        level = jnp.tanh(level + pick(a + shift, b + 0.2 * level, c) - 1)
        cost += a * shift * level
    return cost + jnp.exp(level)


def twice(theta, flip, pick):
    x = flip(theta[0])
    y = flip(theta[0] + theta[1] * x)
    return (x + 2 * y - 1) ** 2 + theta[1] * x * y


def closure(theta, flip, pick):
    a, b, c = theta
    kind = pick(a, b, c)
    gain, lost = jnp.exp(c * kind), 0
    for _ in range(2):
        lost += flip(gain - 0.8 * lost)
    return gain * lost + (gain * flip(b * lost) if lost else a * kind + gain)


def crowd(theta, flip, pick):
    a, b = theta
    warm, cost, both = flip(a), 0, 0
    for taste in (1, 2):
        goes = flip(b * taste + warm)
        stays = flip(a - goes)
        cost += a * taste * goes + 1 + taste * stays
        both += goes * stays
    return cost + warm * both**2


def herd(theta, flip, pick):
    a, b, c = theta
    mood, cost = 1, 0
    for _ in range(3):
        runs = [flip(size * a + b * mood) for size in (1, -0.6)]
        cost += runs[0] - 0.6 * runs[1] + c * mood * sum(runs)
        mood = sum(runs) / 2
        cost += jnp.exp(c * mood)
    return cost + 2 * mood**2


def family(theta, flip, pick):
    alive, cost = 1, 0
    for _ in range(3):
        born = sum(pick(0.3 * alive, *theta) for _ in range(alive))
        cost += theta[1] * born
        alive = min(born, 3)
    return cost + alive**2


def prepaid(theta, flip, pick):
    a, b = theta
    first = flip(a)
    second = flip(b - first)
    return 10 * first + b + second * (1 + first) + a


def survival(theta, flip, pick):
    a, b, c = theta
    cost = 0
    for age, price in enumerate((1, 0.5, -2, 3)):
        cost += price + c * age
        if flip(a + b * age):
            return cost + (age + 1) ** 2
    return cost + a


def patience(theta, flip, pick):
    a, b = theta
    waited, cost, goes_on = 0, 0, True
    while goes_on and waited < 4:
        cost += 1 + b * waited
        goes_on = flip(a - 0.4 * b * waited)
        waited += 1
    return cost + waited**2


def fresh(theta, flip, pick):
    ones = cost = 0
    for _ in range(3):
        new = flip(theta[0] + theta[1] * ones)
        cost += new * (1 + ones)
        ones += new
    return cost + (1 + theta[0]) * jnp.exp(float(ones))
