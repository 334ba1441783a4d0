r"""An autoregressive token model: a language model as a process, with prompts, an end token and a reward for the whole sequence.

$P(y|\theta) = \prod_t \pi_\theta(y_t|y_{<t})$ over tokens $0, \ldots, V - 1$ until the end token or the horizon. Tokens of the prompt are forced:
steps like any other, with the factor 1.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import is_traced, register_dataclass, scalar_cost
from logderiv.distributions.forced import Forced
from logderiv.distributions.interop import num_categories
from logderiv.environments.tabular import TabularMDP
from logderiv.types import Step, as_policy

PAD = -1  # in prompts after their last token, in sequences after theirs


class TokenObservation(NamedTuple):
    """What the next token is chosen on; int32.

    Attributes:
        context: The tokens before it, the last one last; `V` before the first. Shape `(context,)`.
        forced: The token that is prescribed here, or -1. Shape `()`.
    """

    context: jax.Array
    forced: jax.Array


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class TokenPolicy:
    """The next token from the ones before it, or the prescribed one.

    Attributes:
        network: A policy over the `V` tokens on one-hot rows of its context, `(context, V + 1)`: `logderiv.GRU(V)` with its own memory,
            `logderiv.linear(V)` a bigram model, `logderiv.MLP(V)` with a longer context an n-gram model.
        vocabulary: `V`.
        context: Length of what the network is shown.
    """

    network: Any
    vocabulary: int
    context: int = 1

    log_factors = None

    @property
    def initial_carry(self) -> Callable[[Any], Any] | None:
        """The network's own."""
        return self.network.initial_carry

    def init(self, key: jax.Array) -> Any:
        """The network's parameters; `key` is consumed."""
        return self.network.init(key, jnp.zeros((self.context, self.vocabulary + 1)))

    def apply(self, params: Any, *carry_and_observation: Any) -> Any:
        """The distribution of the next token, with the next carry where the network has memory."""
        *carry, observation = carry_and_observation
        dtype = jnp.result_type(*(x.dtype for x in jax.tree.leaves(params)))
        rows = jax.nn.one_hot(observation.context, self.vocabulary + 1, dtype=dtype)
        found = self.network.apply(params, *carry, rows)
        distribution, *carry = found if carry else (found,)
        if num_categories(distribution, observation.forced) not in (None, self.vocabulary):
            raise ValueError(
                f"network: expected a distribution over the {self.vocabulary} tokens of the vocabulary, received one over "
                f"{num_categories(distribution, observation.forced)}."
            )
        forced = Forced(distribution, observation.forced, observation.forced >= 0)
        return (forced, *carry) if carry else forced


class TokenState(NamedTuple):
    """Tokens so far `(T,)`, then -1; the prompt `(T + 1,)`, then -1; how many tokens there are."""

    tokens: jax.Array
    prompt: jax.Array
    length: jax.Array


class Tree(NamedTuple):
    """Every sequence of a token model as a decision process whose states are the beginnings of sequences; unpacks as `policy, mdp, tokens`.

    Attributes:
        policy: The model's policy, on the number of a beginning.
        mdp: The decision process; its episodes are the sequences.
        tokens: The beginnings, -1 after their last token, the empty row for the end. Shape `(S, T)`.
    """

    policy: Any
    mdp: TabularMDP
    tokens: np.ndarray


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _OnTree:
    """A token policy whose observation is the number of a beginning; the tables are tuples, so that it can be hashed."""

    inner: TokenPolicy
    contexts: tuple[tuple[int, ...], ...]
    forced: tuple[int, ...]

    log_factors = None

    @property
    def initial_carry(self) -> Callable[[Any], Any] | None:
        return self.inner.initial_carry

    def apply(self, params: Any, *carry_and_state: Any) -> Any:
        *carry, state = carry_and_state
        contexts, forced = jnp.asarray(self.contexts, jnp.int32), jnp.asarray(self.forced, jnp.int32)
        return self.inner.apply(params, *carry, TokenObservation(contexts[state], forced[state]))


@dataclasses.dataclass(frozen=True)
class TokenModel:
    r"""Sequences of at most `horizon` tokens, prompt included, with one reward when they end.

        model = ld.processes.TokenModel(ld.GRU(5), reward, vocabulary=5, end=0, horizon=12, prompts=[[3, 1], [4, -1]])
        params = model.policy.init(key)
        taus = ld.rollout(params, keys, model.policy, model)  # taus.actions are the tokens

    A prompt is drawn uniformly, or given: `environment_params=i` is the prompt `i`, so that the answers to one prompt are one
    `rollout` (`jax.vmap` over `i` for several). A chosen end token terminates; a sequence that fills the horizon without it is truncated,
    is rewarded as it stands, and counts in `info.truncated_fraction`. Valid steps count the prompt's: so does the length that GRPO divides by.

    Attributes:
        network: See `TokenPolicy`.
        reward: `(tokens (T,), length ()) -> ()`, prompt included, -1 after the last token.
        vocabulary: `V`.
        end: The end token.
        horizon: `T`.
        prompts: Tokens, -1 after the last one of a shorter prompt. Shape `(P, L)` with `L < T`, or one of shape `(L,)`; none by default.
        context: See `TokenPolicy`.

    Raises:
        ValueError: A token, of a prompt or the end, out of the vocabulary; a prompt that leaves nothing to choose before the horizon; a
            vocabulary below 2, or a horizon or context below 1.
        TypeError: The prompts are no integers; `network` is no policy.
    """

    network: Any
    reward: Callable[[jax.Array, jax.Array], jax.Array]
    vocabulary: int
    end: int
    horizon: int
    prompts: Any = ()
    context: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", as_policy(self.network))
        for name, least in (("vocabulary", 2), ("horizon", 1), ("context", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected a whole number >= {least}, received {value!r}.")
        if not 0 <= self.end < self.vocabulary:
            raise ValueError(f"end: expected a token in 0 .. {self.vocabulary - 1}, received {self.end}.")
        object.__setattr__(self, "prompts", jnp.asarray(self._checked_prompts(), jnp.int32))

    @property
    def policy(self) -> TokenPolicy:
        """The model."""
        return TokenPolicy(self.network, self.vocabulary, self.context)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[TokenObservation, TokenState]:
        """Before the first token. `params` is the number of a prompt; `None` draws one, uniformly. `key` is consumed."""
        if params is not None and not is_traced(params) and not 0 <= int(params) < len(self.prompts):
            raise ValueError(
                f"environment_params: expected the number of a prompt, 0 .. {len(self.prompts) - 1}, received {params}."
            )
        number = jax.random.randint(key, (), 0, len(self.prompts)) if params is None else params
        prompt = self.prompts[number]
        prompt = jnp.pad(prompt, (0, self.horizon + 1 - len(prompt)), constant_values=PAD)
        state = TokenState(jnp.full(self.horizon, PAD, jnp.int32), prompt, jnp.zeros((), jnp.int32))
        return self._observe(state), state

    def step(self, key: jax.Array, state: TokenState, action: jax.Array, params: Any = None) -> Step:
        """One more token. Nothing is drawn."""
        del key, params
        chosen = state.prompt[state.length] == PAD
        tokens, length = state.tokens.at[state.length].set(action), state.length + 1
        new = TokenState(tokens, state.prompt, length)
        terminated = chosen & (action == self.end)
        truncated = ~terminated & (length == self.horizon)
        reward = self._reward(tokens, length)
        return Step(self._observe(new), new, jnp.where(terminated | truncated, reward, 0), terminated, truncated)

    def tree(self) -> Tree:
        r"""Every sequence: a decision process for `logderiv.exact`, whose functions take any network.

            policy, mdp, _ = model.tree()
            ld.exact.gradient(params, policy, mdp, horizon=model.horizon)

        The states are the $O(V^{T-1})$ beginnings. Where a token is forced every other leads to the end, with probability 0. A
        sequence that fills the horizon ends like any other. The model must be concrete.
        """
        rows, following, rewards = self._grow()
        ended = len(rows)
        transition = np.zeros((ended + 1, self.vocabulary, ended + 1))
        np.put_along_axis(transition, np.append(following, np.full((1, self.vocabulary), ended), 0)[..., None], 1, 2)
        starts = [row for row in range(ended) if rows[row].length == 0]
        initial = np.bincount(starts, minlength=ended + 1) / len(starts)
        contexts = [self._context_of(row.tokens) for row in rows]
        policy = _OnTree(self.policy, (*contexts, contexts[0]), (*(row.forced for row in rows), PAD))
        dtype = jnp.zeros(()).dtype
        mdp = TabularMDP(
            initial=jnp.asarray(initial, dtype),
            transition=jnp.asarray(transition, dtype),
            reward=jnp.asarray(np.append(rewards, np.zeros((1, self.vocabulary)), 0), dtype),
            terminal=jnp.arange(ended + 1) == ended,
            horizon=self.horizon,
        )
        return Tree(policy, mdp, np.array([self._padded(row.tokens) for row in rows] + [self._padded(())]))

    def _observe(self, state: TokenState) -> TokenObservation:
        before = jnp.pad(state.tokens, (self.context, 0), constant_values=self.vocabulary)
        return TokenObservation(
            jax.lax.dynamic_slice_in_dim(before, state.length, self.context), state.prompt[state.length]
        )

    def _reward(self, tokens: jax.Array, length: jax.Array) -> jax.Array:
        return scalar_cost(self.reward(tokens, length), "reward")

    def _checked_prompts(self) -> np.ndarray:
        prompts = np.asarray(self.prompts)
        prompts = np.zeros((1, 0), np.int32) if prompts.size == 0 else np.atleast_2d(prompts)
        if not np.issubdtype(prompts.dtype, np.integer):
            raise TypeError(f"prompts: expected integers, received dtype {prompts.dtype}.")
        if prompts.ndim != 2:
            raise ValueError(f"prompts: expected shape (P, L), received {prompts.shape}.")
        if prompts.shape[1] >= self.horizon:
            raise ValueError(
                f"prompts: expected fewer than horizon = {self.horizon} tokens, so that one is left to choose, received "
                f"{prompts.shape[1]}; the horizon counts the prompt."
            )
        outside = (prompts < PAD) | (prompts >= self.vocabulary)
        if outside.any():
            raise ValueError(
                f"prompts: expected tokens in 0 .. {self.vocabulary - 1}, or {PAD} after the last, received {prompts[outside][0]}."
            )
        if np.any((prompts[:, :-1] == PAD) & (prompts[:, 1:] != PAD)):
            raise ValueError(f"prompts: expected {PAD} only after a prompt's last token.")
        return prompts

    def _grow(self) -> tuple[list["_Beginning"], np.ndarray, np.ndarray]:
        """Every beginning, breadth first; its successors, the number of beginnings for the end; the reward on the way."""
        prompts = np.asarray(self.prompts)
        rows = [_Beginning((), tuple(p for p in prompt.tolist() if p != PAD)) for prompt in prompts]
        following, whole = [], []
        for row in rows:  # grows as it is read
            successors = []
            for token in range(self.vocabulary):
                new = _Beginning((*row.tokens, token), row.prompt)
                impossible = row.forced not in (PAD, token)
                ends = (row.forced == PAD and token == self.end) or new.length == self.horizon
                whole.append((new.tokens, ends and not impossible))
                successors.append(PAD if impossible or ends else len(rows))
                if not (impossible or ends):
                    rows.append(new)
            following.append(successors)
        tokens = jnp.asarray([self._padded(t) for t, _ in whole], jnp.int32)
        lengths = jnp.asarray([len(t) for t, _ in whole], jnp.int32)
        rewards = np.where([paid for _, paid in whole], np.asarray(jax.vmap(self._reward)(tokens, lengths)), 0)
        table = np.array(following)
        return rows, np.where(table == PAD, len(rows), table), rewards.reshape(table.shape)

    def _padded(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return (*tokens, *(PAD,) * (self.horizon - len(tokens)))

    def _context_of(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return ((self.vocabulary,) * self.context + tokens)[-self.context :]


class _Beginning(NamedTuple):
    """A sequence so far, and its prompt."""

    tokens: tuple[int, ...]
    prompt: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def forced(self) -> int:
        return self.prompt[self.length] if self.length < len(self.prompt) else PAD


register_dataclass(TokenModel, ("prompts",), ("network", "reward", "vocabulary", "end", "horizon", "context"))
