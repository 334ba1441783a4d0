"""More small models with plain calls: what JAX lets one nest, and what the calls have options for; the twins stand below each."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import logderiv as ld

from .models import Model, flip, jitted_flip, pick


def cellar(theta):
    """A choice in a jitted closure, in a scan from the end, in a cond."""

    def down(depth):
        @jax.jit
        def step(depth, x):
            deeper = flip(theta[1] - x * depth)
            ld.cost(x * deeper * jnp.exp(theta[0]))
            return depth + deeper, deeper

        depth, steps = lax.scan(step, depth, jnp.array([0.5, 1.0, -1.0]), reverse=True, unroll=2)
        return depth * (1 + steps[0])

    ld.cost(lax.cond(jitted_flip(theta[0]) > 0, down, lambda depth: depth * theta[1], 1 + theta[1]) ** 2)


def cellar_by_hand(theta, flip, pick):
    a, b = theta
    if not flip(a):
        return ((1 + b) * b) ** 2
    depth, cost = 1 + b, 0
    for x in (-1, 1, 0.5):
        deeper = flip(b - x * depth)
        cost += x * deeper * jnp.exp(a)
        depth = depth + deeper
    return cost + (depth * (1 + deeper)) ** 2


@jax.jit
def gamble(stake, logit):
    """A jitted function of the module with two choices, the second of what the first was, and a cost."""
    won = flip(logit)
    ld.cost(stake * won)
    return stake + won - flip(logit * won)


def vault(theta):
    """A jitted function of the module under jax.checkpoint, alone and in a scan whose steps are checkpointed too."""
    kept = jax.checkpoint(gamble)

    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.nothing_saveable)
    def night(stake, _):
        return kept(stake * theta[0], theta[1] + stake), None

    stake, _ = lax.scan(night, kept(jnp.ones(()), theta[0]), length=2)
    ld.cost(jnp.sin(stake))


def vault_by_hand(theta, flip, pick):
    a, b = theta
    stake, cost = 1, 0
    for night in range(3):
        stake, logit = (stake * a, b + stake) if night else (stake, a)
        won = flip(logit)
        cost += stake * won
        stake = stake + won - flip(logit * won)
    return cost + jnp.sin(stake)


def dial(theta):
    """A switch in a fori_loop: the branch is the outcome of the step before; each choice has a baseline of what is known."""

    def silent(total):
        return total, jnp.int32(2)

    def short(total):
        x = ld.sample(ld.Bernoulli(theta[0] * total), baseline=3 * total).astype(float)
        return total + x, 2 - x.astype(jnp.int32)

    def long(total):
        x = ld.sample(ld.Categorical(jnp.stack([theta[1], total, theta[0]])), baseline=jnp.exp(theta[1]))
        ld.cost(theta[1] * total)
        return total - x.astype(float) / 2, x

    def turn(_, carry):
        total, branch = carry
        return lax.switch(branch, (silent, short, long), total)

    total, branch = lax.fori_loop(0, 3, turn, (jnp.ones(()), jnp.int32(2)))
    ld.cost((total - branch.astype(float)) ** 2)


def dial_by_hand(theta, flip, pick):
    a, b = theta
    total, branch, cost = 1, 2, 0
    for _ in range(3):
        if branch == 0:
            branch = 2
        elif branch == 1:
            x = flip(a * total)
            total, branch = total + x, 2 - x
        else:
            cost += b * total
            branch = pick(b, total, a)
            total = total - branch / 2
    return cost + (total - branch) ** 2


def estate(theta):
    """A plate in a cond in a plate, over rows of two arrays; a cost in each, and of all."""
    mood = flip(theta[0])

    def house(size, rent):
        let = flip(theta[1] * size + mood)
        ld.cost(let * rent)

        def flat(shift):
            full = flip(theta[0] * size + shift)
            ld.cost(theta[1] * full * size)
            return full

        def flats(shift):
            return ld.plate(flat)(jnp.stack([shift, -shift])).sum()

        return lax.cond(let > 0, flats, lambda shift: shift, rent / 2)

    taken = ld.plate(house)(jnp.array([1, 0.4]), jnp.array([2.0, -1.0]))
    ld.cost(jnp.exp(theta[0]) * jnp.prod(1 + taken))


def estate_by_hand(theta, flip, pick):
    a, b = theta
    mood, cost, product = flip(a), 0, 1
    for size, rent in ((1, 2), (0.4, -1)):
        taken = rent / 2
        if flip(b * size + mood):
            taken = flip(a * size + rent / 2) + flip(a * size - rent / 2)
            cost += rent + b * size * taken
        product *= 1 + taken
    return cost + jnp.exp(a) * product


def party(theta):
    """A plate in one branch of a cond in a scan, a choice in the other."""

    def night(fun, loud):
        def guest(patience):
            stays = flip(theta[0] * patience - fun)
            ld.cost(stays * loud)
            return stays

        def invite(fun):
            return fun + ld.plate(guest)(jnp.array([1, -0.5])).sum()

        def quiet(fun):
            return fun * flip(theta[0] + theta[1])

        fun = lax.cond(flip(theta[1] * fun) > 0, invite, quiet, fun)
        ld.cost(theta[1] * fun**2)
        return fun, None

    lax.scan(night, jnp.ones(()), jnp.array([0.3, 1.0]))


def party_by_hand(theta, flip, pick):
    a, b = theta
    fun, cost = 1, 0
    for loud in (0.3, 1):
        if flip(b * fun):
            stay = flip(a - fun) + flip(-0.5 * a - fun)
            cost += loud * stay
            fun += stay
        else:
            fun *= flip(a + b)
        cost += b * fun**2
    return cost


def pairs(theta):
    """A jitted function of the module, called twice in the body of a scan, and once more after it."""

    def step(stake, logit):
        return gamble(gamble(stake, logit), theta[0] * stake), None

    stake, _ = lax.scan(step, theta[1], jnp.stack([theta[0], -theta[0]])[:1])
    ld.cost(gamble(stake, theta[1]) ** 2)


def pairs_by_hand(theta, flip, pick):
    a, b = theta
    stake, cost = b, 0
    for turn in range(3):
        logit = (a, a * b, b)[turn]
        won = flip(logit)
        cost += stake * won
        stake = stake + won - flip(logit * won)
    return cost + stake**2


def learner(theta):
    """Derivatives, jax.vmap and custom rules within a model, of functions without choices, at what was chosen."""
    shift = flip(theta[0])

    def loss(w):
        return jnp.sum(jax.vmap(lambda x: jax.nn.softplus(w * x - shift))(jnp.array([1.0, -2.0])))

    w = theta[1] - 0.5 * jax.grad(loss)(theta[1])
    again = flip(jax.jvp(loss, (w,), (jnp.ones(()),))[1])
    ld.cost(jax.nn.relu(again - w) + jax.nn.logsumexp(jnp.stack([theta[0] * again, shift, w])))


def learner_by_hand(theta, flip, pick):
    a, b = theta
    shift = flip(a)

    def slope(w):
        return 1 / (1 + jnp.exp(shift - w)) - 2 / (1 + jnp.exp(shift + 2 * w))

    w = b - 0.5 * slope(b)
    again = flip(slope(w))
    late = again - w if again - w > 0 else 0
    return late + jnp.log(jnp.exp(a * again) + jnp.exp(float(shift)) + jnp.exp(w))


@jax.jit
def verdict(theta):
    """The cost is what the model returns, one of two by what was chosen; jax.jit is around the whole."""
    first = pick(theta[0], theta[1], theta[2])
    second = flip(theta[2] * first.astype(float))
    return jnp.where(first > 1, second * jnp.exp(theta[0]), theta[1] ** 2 - second)


def verdict_by_hand(theta, flip, pick):
    a, b, c = theta
    first = pick(a, b, c)
    second = flip(c * first)
    return second * jnp.exp(a) if first > 1 else b**2 - second


def padded(theta):
    """Rows of which the last two are padding, with parameters that are no numbers: no choices there, and no score."""
    logits = jnp.concatenate([theta, jnp.full(2, jnp.nan)])

    def row(sum_, x):
        logit, valid = x
        new = ld.sample(ld.Bernoulli(logit + sum_), where=valid).astype(float)
        new = jnp.where(valid, new, 0)
        ld.cost(new * jnp.where(valid, logit, 0))
        return sum_ + new, None

    sum_, _ = lax.scan(row, jnp.zeros(()), (logits, jnp.arange(4) < 2))
    ld.cost(jnp.exp(sum_))


def padded_by_hand(theta, flip, pick):
    sum_ = cost = 0
    for logit in theta:
        new = flip(logit + sum_)
        cost += new * logit
        sum_ += new
    return cost + jnp.exp(float(sum_))


def queue(theta):
    """A while_loop with a bound, that has both modes; a choice before, in its body and after."""

    def serve(carry):
        waiting, served = carry
        ld.cost(theta[1] * waiting)
        return waiting + 1 - 2 * flip(theta[0] + theta[1] * served), served + 1

    start = (1 + flip(theta[0]), jnp.zeros(()))
    (waiting, served), done = ld.bounded_while_loop(lambda carry: carry[0] > 0, serve, start, max_steps=3)
    ld.cost(flip(theta[0]) * served - jnp.where(done, 0, waiting))


def queue_by_hand(theta, flip, pick):
    a, b = theta
    waiting, served, cost = 1 + flip(a), 0, 0
    while waiting > 0 and served < 3:
        cost += b * waiting
        waiting += 1 - 2 * flip(a + b * served)
        served += 1
    return cost + flip(a) * served - waiting


def swarm(theta):
    """A plate of loops, each of a length of its own, all from a jitted function of the row."""

    @jax.jit
    def bee(strength):
        def fly(carry):
            far, _ = carry
            ld.cost(strength * far)
            return far + 1, flip(theta[0] * strength - far) > 0

        start = (theta[1], jnp.array(True))
        return ld.bounded_while_loop(lambda carry: carry[1], fly, start, max_steps=3)[0][0]

    ld.cost(jnp.prod(ld.plate(bee)(jnp.array([1, -0.5]))))


def swarm_by_hand(theta, flip, pick):
    a, b = theta
    cost, product = 0, 1
    for strength in (1, -0.5):
        far, goes_on, times = b, True, 0
        while goes_on and times < 3:
            cost += strength * far
            goes_on = flip(a * strength - far)
            far, times = far + 1, times + 1
        product *= far
    return cost + product


def tariff(theta, rates, options):
    """Further arguments: an array, and a dictionary."""
    x = pick(*(theta * rates))
    ld.cost(rates[x] * theta[0] ** 2)
    ld.cost(flip(options["shift"] * theta[1]) * x.astype(float))


RATES, SHIFT = (0.5, -1.0), 0.7


def tariff_by_hand(theta, flip, pick):
    x = pick(*(rate * y for rate, y in zip(RATES, theta, strict=True)))
    return RATES[x] * theta[0] ** 2 + flip(SHIFT * theta[1]) * x


def named(params):
    """Parameters are a dictionary of arrays; the loop is one of Python."""
    total = jnp.zeros(())
    for i in range(2):
        new = flip(params["bias"] + params["weights"][i] * total)
        total = total + params["weights"][i] * new
        ld.cost(total * new)
    ld.cost(jnp.sin(params["bias"] + total))


def named_by_hand(theta, flip, pick):  # the leaves in the order of their names
    bias, *weights = theta
    total = cost = 0
    for weight in weights:
        new = flip(bias + weight * total)
        total = total + weight * new
        cost += total * new
    return cost + jnp.sin(bias + total)


def foreign(theta):
    """Distributions of NumPyro."""
    import numpyro.distributions as numpyro

    first = ld.sample(numpyro.Categorical(logits=jnp.stack([theta[0], theta[1], jnp.zeros(())])))
    ld.cost(theta[0] * first.astype(float))
    second = ld.sample(numpyro.Bernoulli(logits=theta[1] - first.astype(float))).astype(float)
    ld.cost((second + 1) ** (1 + first))


def foreign_by_hand(theta, flip, pick):
    a, b = theta
    first = pick(a, b, 0.0)
    return a * first + (flip(b - first) + 1) ** (1 + first)


NAMED: Any = {"bias": 0.3, "weights": (-0.5, 0.8)}
OUR_OWN = {
    "cellar": Model(cellar, (0.3, -0.4), (1.0, 0.5), 4),
    "vault": Model(vault, (0.6, -0.3), (0.5, -1.0), 6),
    "dial": Model(dial, (0.4, -0.7), (1.0, -0.5), 3, 3),
    "estate": Model(estate, (0.2, -0.5), (-1.0, 0.5), 7),
    "party": Model(party, (0.5, -0.2), (0.5, 1.0), 6),
    "pairs": Model(pairs, (0.3, 0.7), (1.0, -1.0), 6),
    "learner": Model(learner, (0.2, 0.6), (1.0, 0.5), 2),
    "verdict": Model(verdict, (0.3, -0.6, 0.8), (1.0, 0.5, -0.5), 2, 3),
    "padded": Model(padded, (0.4, -0.9), (0.5, 1.0), 4),
    "queue": Model(queue, (0.4, -0.2), (1.0, 0.5), 5),
    "swarm": Model(swarm, (0.8, 0.3), (0.5, -1.0), 6),
    "tariff": Model(tariff, (0.6, -0.4), (1.0, 0.5), 2, args=(RATES, {"shift": SHIFT})),
    "named": Model(named, NAMED, (1.0, 0.5, -0.5), 2),
    "foreign": Model(foreign, (0.5, -0.3), (0.5, 1.0), 2, 3),
}
TWINS = {name: globals()[f"{name}_by_hand"] for name in OUR_OWN}
