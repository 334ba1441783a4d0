"""Worlds of tokens whose every answer is listed, and a recipe's gradient over every group of answers; this file runs nothing.

Three tokens, of which the first ends an answer; two prompts of unequal length, the longer one easier; a horizon that cuts.
The policy sees the last token (bigram), all of them (GRU), or the last two (long wrong answers). Everything is in float64.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import logderiv as ld
from logderiv.objectives import MaxAtK, Recipe

VOCABULARY, END, HORIZON = 3, 0, 5
PROMPTS = ((1, -1), (1, 2))
REWARDS = ("0/1", "graded")
SEEDS = {"bigram": 9, "GRU": 6, "long wrong answers": 0}  # where truncation leaves something to learn
SCALES = (0.7, 0.35, 0.35)  # standard deviations of parameters, and of their steps to the old policy and the reference
TOP_K, TOP_P = 2, 0.7


def right(tokens: jax.Array, length: jax.Array) -> jax.Array:
    """0 or 1: it ends, after a 2."""
    return ((tokens[length - 1] == END) & (tokens[length - 2] == 2)).astype(float)


def graded(tokens: jax.Array, length: jax.Array) -> jax.Array:
    """0, a half or 1: half of it as `right`, half for a second 2, prompt included."""
    return 0.5 * right(tokens, length) + 0.5 * (jnp.sum(tokens == 2) >= 2)


def right_and_short(tokens: jax.Array, length: jax.Array) -> jax.Array:
    """0 or 1: as `right`, and of three tokens at most, prompt included."""
    return right(tokens, length) * (length <= 3)


def graded_and_short(tokens: jax.Array, length: jax.Array) -> jax.Array:
    """0, a half or 1: half of it for an end after a 2 that comes too late."""
    return 0.5 * right(tokens, length) + 0.5 * right_and_short(tokens, length)


def last_token(table: jax.Array, rows: jax.Array) -> ld.Categorical:
    """Logits by the last token."""
    return ld.Categorical(rows[-1] @ table)


def last_two_tokens(table: jax.Array, rows: jax.Array) -> ld.Categorical:
    """Logits by the last two."""
    return ld.Categorical(jnp.einsum("i,j,ijv->v", rows[-2], rows[-1], table))


class Policies(NamedTuple):
    """The answers to one prompt, or to several, under all policies that an objective looks at.

    Attributes:
        policy: Log-probabilities of the tokens under the policy that is trained. Shape `(K, T)`.
        old: Under the policy at the start of the update.
        sampler: Under what drew the answers.
        reference: Under the reference of a divergence.
        scores: Derivatives of `policy`. Shape `(K, T, D)`.
        truncated: Those of `sampler` where that is what truncation leaves of the policy, else `scores`.
        chances: Of the answers to their prompt, under the sampler. Shape `(K,)`.
        mask: Where the policy chose the token. Shape `(K, T)`.
        rewards: Shape `(K,)`.
        greedy: The reward of the policy's likeliest tokens after the same prompt. Shape `(K,)`.
    """

    policy: Any
    old: Any
    sampler: Any
    reference: Any
    scores: Any
    truncated: Any
    chances: Any
    mask: Any
    rewards: Any
    greedy: Any

    def named(self, objective: str, *, of_sampler: bool = False) -> jax.Array:
        """∇ of a named objective of the policy, or of the truncated policy that drew. Shape `(D,)`."""
        logs, scores = (jnp.sum(x, axis=1) for x in (self.policy, self.scores))
        chances, reference = jnp.exp(logs), jnp.sum(self.reference, axis=1)
        if of_sampler:
            chances, scores = self.chances, jnp.sum(self.truncated, axis=1)
        weights = {
            "return": chances * self.rewards,
            "reverse KL": chances * (logs - reference),
            "forward KL": -jnp.exp(reference),
            "mean inverse length": chances / jnp.sum(self.mask, axis=1),
        }
        return weights[objective] @ scores


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """A token model, its policies, and every answer to its two prompts.

    Attributes:
        name: The world and its reward.
        model: The environment, of both prompts.
        rewards: Of all answers. Shape `(K,)`.
        every: All answers. Shape `(K, T)`.
        prompts: Which of them answer each prompt.
        params: Raveled.
        old: Those of the old policy.
        reference: Those of the reference.
        unravel: To what the policy takes.
        tables: From raveled parameters to log-probabilities `(K, T, V)` of all tokens, 0 where the prompt prescribes one or an
            answer is over, and to their derivatives `(K, T, V, D)`.
    """

    name: str
    model: ld.processes.TokenModel
    rewards: np.ndarray
    every: ld.Trajectory
    prompts: tuple[np.ndarray, ...]
    params: np.ndarray
    old: np.ndarray
    reference: np.ndarray
    unravel: Callable[[jax.Array], Any]
    tables: Callable[[Any], tuple[jax.Array, jax.Array]]

    @property
    def kind(self) -> str:
        """Its name without the reward."""
        return self.name.partition(",")[0]

    @functools.cached_property
    def first_prompt(self) -> ld.processes.TokenModel:
        """The environment of the first prompt alone."""
        prompt = [token for token in PROMPTS[0] if token >= 0]
        return dataclasses.replace(self.model, prompts=prompt)

    def policies(self, params: Any, how: str = "on policy", prompt: int = 0) -> Policies:
        """The answers to a prompt as drawn "on policy", "off policy" by the old one, by "top-k" or "top-p" of the policy."""
        rows = self.prompts[prompt]
        tokens, mask = self.every.actions[rows], own_tokens(self.every)[rows]
        logs, derivatives = (x[rows] for x in self.tables(params))
        reference, old = (self.tables(x)[0][rows] for x in (self.reference, self.old))
        sampler, of_sampler = (old, derivatives) if how == "off policy" else truncated(logs, derivatives, how)
        sampler = jnp.where(mask[..., None], sampler, 0)
        rewards = jnp.asarray(self.rewards[rows])
        greedy = jnp.all(~mask | (jnp.argmax(logs, -1) == tokens), axis=1) @ rewards

        def chosen(x: jax.Array) -> jax.Array:
            return jax.vmap(jax.vmap(lambda row, token: row[token]))(x, tokens)

        drawn, own = chosen(sampler), chosen(logs)
        return Policies(
            policy=own,
            old=chosen(old) if how == "off policy" else own,
            sampler=jnp.where(jnp.isfinite(drawn), drawn, own),  # what cannot be drawn has no chance
            reference=chosen(reference),
            scores=chosen(derivatives),
            truncated=chosen(of_sampler),
            chances=jnp.exp(jnp.sum(drawn, axis=1)),
            mask=mask,
            rewards=rewards,
            greedy=jnp.full(len(rows), greedy),
        )


def own_tokens(every: ld.Trajectory) -> np.ndarray:
    """Where the policy chose: neither prompt nor padding. Shape `(K, T)`."""
    return np.asarray(every.valid & (every.observations.forced < 0))


def truncated(logs: jax.Array, derivatives: jax.Array, how: str) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and derivatives of the likeliest tokens alone: `TOP_K` of them, or as few as hold `TOP_P` together."""
    if how == "on policy":
        return logs, derivatives
    chances, order = jnp.exp(logs), jnp.argsort(-logs, axis=-1)
    rank = jnp.argsort(order, axis=-1)
    likelier = jnp.take_along_axis(jnp.cumsum(jnp.take_along_axis(chances, order, -1), -1), rank, -1) - chances
    kept = jnp.where(rank < TOP_K if how == "top-k" else likelier < TOP_P, chances, 0)
    kept = kept / jnp.sum(kept, axis=-1, keepdims=True)
    return jnp.log(kept), derivatives - jnp.einsum("ktv,ktvd->ktd", kept, derivatives)[:, :, None]


KINDS: dict[str, Any] = {  # network, context, rewards: 0/1 and graded
    "bigram": (ld.FunctionPolicy(last_token), 1, (right, graded)),
    "GRU": (ld.GRU(VOCABULARY, hidden=2), 1, (right, graded)),
    "long wrong answers": (ld.FunctionPolicy(last_two_tokens), 2, (right_and_short, graded_and_short)),
}


@functools.cache
def worlds(kind: str) -> tuple[World, World]:
    """A world with rewards 0/1, and with graded ones.

    In "long wrong answers" an answer that does not begin rightly goes on to the horizon, more often than not.
    """
    network, context, rewards = KINDS[kind]
    options = {"vocabulary": VOCABULARY, "end": END, "horizon": HORIZON, "prompts": PROMPTS, "context": context}
    models = [ld.processes.TokenModel(network, reward, **options) for reward in rewards]
    policy, keys = models[0].policy, jax.random.split(jax.random.key(SEEDS[kind]), 4)
    start: Any = jnp.zeros((VOCABULARY + 1,) * context + (VOCABULARY,))
    if kind == "GRU":
        start = jax.tree.map(lambda x: x.astype(float), policy.init(keys[3]))
    if kind == "long wrong answers":
        start = (start + jnp.array([-1.5, 1.0, 0.0])).at[:, 2].add(jnp.array([1.5, -0.5, 0.0]))
    flat, unravel = ravel_pytree(start)
    moves = [scale * jax.random.normal(key, flat.shape) for key, scale in zip(keys, SCALES, strict=False)]
    params = flat + moves[0]
    places = [np.asarray(x) for x in (params, params + moves[1], params + moves[2])]
    every = ld.exact.enumerate_trajectories(models[0], horizon=HORIZON)
    forced = every.observations.forced
    possible = np.all(np.asarray((forced < 0) | (every.actions == forced) | ~every.valid), axis=1)
    every = jax.tree.map(lambda x: np.asarray(x)[possible], every)
    prompts = tuple(np.flatnonzero(every.observations.forced[:, 1] == prompt[1]) for prompt in PROMPTS)
    tokens, lengths = jnp.where(every.valid, every.actions, -1), jnp.sum(every.valid, axis=1)
    shared: Any = (every, prompts, *places, unravel, _tables(policy, unravel, every))
    found = [
        World(f"{kind}, {name}", model, np.asarray(jax.vmap(reward)(tokens, lengths)), *shared)
        for name, model, reward in zip(REWARDS, models, rewards, strict=True)
    ]
    return found[0], found[1]


def _tables(policy: Any, unravel: Callable[[Any], Any], every: ld.Trajectory) -> Callable[[Any], Any]:
    """`World.tables`."""
    own = own_tokens(every)[..., None]

    def logs(flat: Any) -> jax.Array:
        params = unravel(flat)

        def step(carry: Any, observation: Any) -> tuple[Any, jax.Array]:
            distribution, carry = policy.inner.step(params, carry, policy.observe(params, observation))
            return carry, jax.nn.log_softmax(distribution.logits)

        def of_answer(observations: Any) -> jax.Array:
            return jax.lax.scan(step, policy.inner.start(params), observations)[1]

        return jnp.where(own, jax.vmap(of_answer)(every.observations), 0)

    return jax.jit(lambda flat: (logs(flat), jax.jacfwd(logs)(flat)))


def multisets(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every choice of `size` of `count` with repetition, without regard to order, and in how many orders it comes."""
    chosen = np.array(list(itertools.combinations_with_replacement(range(count), size)))
    orders = [
        math.factorial(size) / math.prod(map(math.factorial, np.unique(row, return_counts=True)[1])) for row in chosen
    ]
    return chosen, np.array(orders)


@functools.cache
def every_batch(counts: tuple[int, ...], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Every batch of one group to each prompt, which has so many answers: rows of the table `(M, P G)`, and how often each comes."""
    rows, orders, start = np.zeros((1, 0), int), np.ones(1), 0
    for count in counts:
        chosen, more = multisets(count, size)
        rows = np.concatenate([np.repeat(rows, len(chosen), 0), np.tile(start + chosen, (len(rows), 1))], axis=1)
        orders, start = np.repeat(orders, len(more)) * np.tile(more, len(orders)), start + count
    return rows, orders


def of_group_size(recipe: Recipe, size: int) -> Recipe:
    """The recipe for groups of so many answers: max@k is of as many as there are."""
    if not isinstance(recipe.advantage, MaxAtK):
        return recipe
    return dataclasses.replace(recipe, advantage=dataclasses.replace(recipe.advantage, k=size))


def objective_of_batch(recipe: Recipe, own: jax.Array, batch: Policies, groups: np.ndarray) -> jax.Array:
    """Both stages of a recipe on one batch; `own` are the log-probabilities that are differentiated."""
    shared = {"num_groups": int(groups[-1]) + 1}
    logs = {"old": batch.old, "sampler": batch.sampler, "reference": batch.reference}
    seen = {"mask": batch.mask, "greedy": batch.greedy, "log_probs": batch.old, "reference": batch.reference}
    advantages = recipe.advantages(batch.rewards, groups, **seen, **shared)
    return recipe.objective(own, advantages, recipe.token_weights(batch.mask, groups, **shared), **logs)


def moments(recipe: Recipe, of_prompts: Sequence[Policies], size: int) -> tuple[np.ndarray, float]:
    """E[g] and the trace of its covariance, over every batch of one group to each prompt."""
    table = jax.tree.map(lambda *x: jnp.concatenate(x), *of_prompts)
    rows, orders = every_batch(tuple(len(x.chances) for x in of_prompts), size)
    groups = tuple(np.repeat(np.arange(len(of_prompts)), size).tolist())
    light = table._replace(scores=None, truncated=None)  # so that all worlds share a program
    own = _coefficients(of_group_size(recipe, size), light, rows, groups)
    mean, square = _sums(own, table.scores, rows, orders * np.prod(table.chances[rows], axis=1))
    return np.asarray(mean), float(square - mean @ mean)


@functools.partial(jax.jit, static_argnames="groups")
def _coefficients(recipe: Recipe, table: Policies, rows: Any, groups: tuple[int, ...]) -> jax.Array:
    """What the score of each token is multiplied by, in every batch. Shape `(M, N, T)`."""

    def of_batch(row: Any) -> jax.Array:
        batch = jax.tree.map(lambda x: x[row], table)
        return jax.grad(objective_of_batch, argnums=1)(recipe, batch.policy, batch, np.array(groups))

    return jax.vmap(of_batch)(rows)


@jax.jit
def _sums(coefficients: Any, scores: Any, rows: Any, chances: Any) -> tuple[jax.Array, jax.Array]:
    """E[g] and E|g|²."""
    gradients = sum(jnp.einsum("mt,mtd->md", coefficients[:, i], scores[rows[:, i]]) for i in range(rows.shape[1]))
    return chances @ gradients, chances @ jnp.sum(jnp.square(gradients), axis=1)


def expected_gradients(recipe: Recipe, several: Policies, size: int) -> jax.Array:
    """E[g] for groups of answers to one prompt, at several places of the parameters. Shape `(B, D)`."""
    rows, orders = every_batch((several.chances.shape[1],), size)
    light = several._replace(scores=None, truncated=None)
    weights = _expected_coefficients(of_group_size(recipe, size), light, rows, orders)
    return jnp.einsum("bkt,bktd->bd", weights, several.scores)


@jax.jit
def _expected_coefficients(recipe: Recipe, several: Policies, rows: Any, orders: Any) -> jax.Array:
    """What the score of each answer's tokens is multiplied by in expectation. Shape `(B, K, T)`."""

    def at_one(table: Policies) -> jax.Array:
        own = _coefficients(recipe, table, rows, (0,) * rows.shape[1])
        chances = orders * jnp.prod(table.chances[rows], axis=1)
        return jnp.zeros_like(table.policy).at[rows].add(chances[:, None, None] * own)

    return jax.vmap(at_one)(several)
