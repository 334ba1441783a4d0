"""Small worlds of tokens in closed form: every answer with its probability, its scores, and gradients that have a name.

Three tokens, of which 0 ends an answer of at most three; the prompt stands before it, padding behind. A policy is a table of
logits with one row for each context. An expectation over answers, or groups of them, is a finite sum

    Σ_k Σ_t W_kt ∂ log π(y_kt) / ∂ logits

over the answers k and their tokens, with weights W that are all that one gradient differs in from another.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import numpy as np

from logderiv.estimators.declaration import RETURN
from logderiv.estimators.objectives.regularizers import ENTROPY, FORWARD, INVERSE, REVERSE

TOKENS, LONGEST, WIDTH = 3, 3, 7  # a prompt of at most two, the answer, and two columns of padding
LENGTH = "mean length"
WITHIN = {name: f"{name} within tokens" for name in (REVERSE, FORWARD, ENTROPY)}
NAMES = (RETURN, REVERSE, FORWARD, ENTROPY, LENGTH, INVERSE, *WITHIN.values())


@dataclasses.dataclass(frozen=True, eq=False)
class TokenWorld:
    """Every answer to one prompt, and three policies.

    Attributes:
        rows: The row of the logits at each place of each answer, prompt included. Shape `(K, T)`.
        tokens: The token there. Shape `(K, T)`.
        real: Where there is a token. Shape `(K, T)`.
        mask: Where the policy chose it. Shape `(K, T)`.
        rewards: Shape `(K,)`.
        policy: Logits, shape `(rows, V)`.
        behavior: Those that draw the answers off policy.
        reference: Those of the reference.
    """

    rows: np.ndarray
    tokens: np.ndarray
    real: np.ndarray
    mask: np.ndarray
    rewards: np.ndarray
    policy: np.ndarray
    behavior: np.ndarray
    reference: np.ndarray

    def logs(self, logits: np.ndarray) -> np.ndarray:
        """Log-probabilities of the tokens, prompt included, 0 behind. Shape `(K, T)`."""
        return np.where(self.real, log_softmax(logits)[self.rows, self.tokens], 0)

    def chances(self, logits: np.ndarray) -> np.ndarray:
        """The probability of each answer. Shape `(K,)`."""
        return np.exp(np.sum(self.logs(logits), axis=1, where=self.mask))

    def steps(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Divergence from the reference and entropy of each step, over the full vocabulary. Shape `(K, T)`."""
        logs, reference = log_softmax(logits), log_softmax(self.reference)
        found = {"step_kl": logs - reference, "step_entropy": -logs}
        return {name: np.where(self.real, np.sum(np.exp(logs) * x, 1)[self.rows], 0) for name, x in found.items()}

    def back(self, logits: np.ndarray, name: str, weights: np.ndarray) -> np.ndarray:
        """Σ W times the derivative of "log_probs", "step_kl" or "step_entropy" by the logits, raveled.

        With p = π(·|row): ∂ log p_y / ∂z = 1_y − p, and for f = Σ_v p_v x_v of a table x whose own derivative averages to 0,
        ∂f / ∂z = p (x − f).
        """
        weights = np.where(self.real, weights, 0)
        counts = np.zeros(logits.shape)
        np.add.at(counts, (self.rows, self.tokens), weights)
        of_rows, logs = counts.sum(1, keepdims=True), log_softmax(logits)
        chances = np.exp(logs)
        if name == "log_probs":
            return (counts - of_rows * chances).ravel()
        x = -logs if name == "step_entropy" else logs - log_softmax(self.reference)
        return (of_rows * chances * (x - np.sum(chances * x, 1, keepdims=True))).ravel()

    def named(self) -> dict[str, np.ndarray]:
        """The gradients of the objectives that have a name, and what three of them lose within the tokens, raveled.

        "Within tokens" is E[Σ_t s_t f_t] with the token's own f_t alone: what a token does to later ones is not seen.
        """
        chances = self.chances(self.policy)[:, None]
        apart = np.where(self.mask, self.logs(self.policy) - self.logs(self.reference), 0)
        logs, lengths = np.where(self.mask, self.logs(self.policy), 0), self.mask.sum(1, keepdims=True)
        whole = functools.partial(np.sum, axis=1, keepdims=True)
        weights = {
            RETURN: self.rewards[:, None],
            REVERSE: whole(apart),
            FORWARD: -np.exp(-whole(apart)),
            ENTROPY: -whole(logs),
            LENGTH: lengths,
            INVERSE: 1 / lengths,
            WITHIN[REVERSE]: apart,
            WITHIN[FORWARD]: -np.expm1(-apart),
            WITHIN[ENTROPY]: -logs,
        }
        return {
            name: self.back(self.policy, "log_probs", np.where(self.mask, chances * x, 0))
            for name, x in weights.items()
        }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis."""
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def answers() -> list[tuple[int, ...]]:
    """Every answer: it ends with token 0, or is as long as can be."""
    every = [x for n in range(1, LONGEST + 1) for x in itertools.product(range(TOKENS), repeat=n)]
    return [x for x in every if 0 not in x[:-1] and (x[-1] == 0 or len(x) == LONGEST)]


def token_world(
    prompt: tuple[int, ...], context: Callable[[tuple[int, ...]], object], reward: Callable[[tuple[int, ...]], float]
) -> TokenWorld:
    """A world, with random policies that are always the same.

    Args:
        prompt: Its tokens.
        context: What the policy sees of the tokens so far.
        reward: Of an answer.

    Returns:
        A `TokenWorld`.
    """
    every = answers()
    number: dict[object, int] = {}
    rows, tokens = np.zeros((2, len(every), WIDTH), int)
    for k, answer in enumerate(every):
        whole = (*prompt, *answer)
        for t, token in enumerate(whole):
            rows[k, t], tokens[k, t] = number.setdefault(context(whole[:t]), len(number)), token
    start, places = len(prompt), np.arange(WIDTH)
    real = places < start + np.array([len(x) for x in every])[:, None]
    policy, away, reference = 0.7 * np.random.default_rng(len(number)).normal(size=(3, len(number), TOKENS))
    rewards = np.array([reward(x) for x in every])
    return TokenWorld(rows, tokens, real, real & (places >= start), rewards, policy, policy + away / 2, reference)


@functools.cache
def token_worlds() -> tuple[TokenWorld, ...]:
    """Of one shape: the last token is seen, or the place, or all tokens; rewards are graded, 0 or 1, and less for long answers."""
    return (
        token_world((1,), lambda before: before[-1:], lambda answer: answer.count(2) - 0.25 * len(answer)),
        token_world((2, 1), len, lambda answer: float(answer[-1] == 0 and len(answer) > 1)),
        token_world(
            (1, 2), lambda before: before, lambda answer: 0.5 * answer.count(1) - float(len(answer) == LONGEST)
        ),
    )
