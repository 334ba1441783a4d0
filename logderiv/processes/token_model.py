"""An autoregressive token model: a language model as a process, with prompts, an end token and a reward for the whole sequence.

P(y|θ) = prod_t π_θ(y_t|y_{<t}) over tokens 0, ..., V - 1 until the end token or the horizon. Tokens of the prompt are forced:
steps like any other, with the factor 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import integers, scalar_cost
from logderiv._core.pytrees import pytree
from logderiv.distributions.interop import Forced, num_categories
from logderiv.policies import PolicyWrapper, StepPolicy, as_policy
from logderiv.types import Key, Params, Step, Trajectory

PAD = -1  # in prompts after their last token, in sequences after theirs


class TokenObservation(NamedTuple):
    """What the next token is chosen on; int32.

    Attributes:
        context: The tokens before it, the last one last; `V` before the first. Shape `(context,)`.
        forced: The token that is prescribed here, or -1. Shape `()`.
    """

    context: jax.Array
    forced: jax.Array


@pytree(static=("vocabulary", "context"))
class TokenPolicy(PolicyWrapper):
    """The next token from the ones before it, or the prescribed one.

    Attributes:
        inner: A policy over the `V` tokens on one-hot rows of its context, `(context, V + 1)`: `logderiv.GRU(V)` with its own memory,
            `logderiv.MLP(V, hidden=())` a bigram model, `logderiv.MLP(V)` with a longer context an n-gram model.
        vocabulary: `V`.
        context: Length of what the network is shown.
    """

    inner: StepPolicy
    vocabulary: int
    context: int = 1

    def init(self, key: Key) -> Params:
        """The network's parameters.

        Args:
            key: Consumed.

        Returns:
            A pytree.
        """
        return self.inner.policy.init(key, jnp.zeros((self.context, self.vocabulary + 1)))

    def observe(self, params: Params, observation: TokenObservation) -> jax.Array:
        """One-hot rows of the context, in the dtype of the parameters.

        Args:
            params: Parameters of the network.
            observation: What the next token is chosen on.

        Returns:
            Shape `(context, V + 1)`.
        """
        dtype = jnp.result_type(*map(jnp.result_type, jax.tree.leaves(params)))
        return jax.nn.one_hot(observation.context, self.vocabulary + 1, dtype=dtype)

    def change(self, distribution: Any, observation: TokenObservation) -> Forced:
        """The network's distribution, or the prescribed token.

        Args:
            distribution: The network's, over the tokens.
            observation: What the next token is chosen on.

        Returns:
            A distribution over the tokens.

        Raises:
            ValueError: The network's distribution is over another number of tokens.
        """
        categories = num_categories(distribution, observation.forced)
        if categories not in (None, self.vocabulary):
            raise ValueError(
                f"network: expected a distribution over the {self.vocabulary} tokens of the vocabulary, received one over {categories}."
            )
        return Forced(distribution, observation.forced, observation.forced >= 0)


class TokenState(NamedTuple):
    """Where a sequence stands; int32.

    Attributes:
        tokens: So far, then -1. Shape `(T,)`.
        prompt: Its tokens, then -1. Shape `(T + 1,)`.
        length: How many tokens there are. Shape `()`.
    """

    tokens: jax.Array
    prompt: jax.Array
    length: jax.Array


@pytree(static=("reward", "vocabulary", "end", "horizon", "context"))
class TokenModel:
    """Sequences of at most `horizon` tokens, prompt included, with one reward when they end.

        model = ld.processes.TokenModel(ld.GRU(5), reward, vocabulary=5, end=0, horizon=12, prompts=[[3, 1], [4, -1]])
        params = model.policy.init(key)
        taus = ld.rollout(params, keys, model.policy, model)  # taus.actions are the tokens

    A prompt is drawn uniformly, or given: `environment_params=i` is the prompt `i`, so that the answers to one prompt are one
    `rollout` (`jax.vmap` over `i` for several). A chosen end token terminates; a sequence that fills the horizon without it is truncated,
    is rewarded as it stands, and counts in `info.truncated_fraction`. The functions of `logderiv.exact` list every sequence of a small
    model: `ld.exact.gradient(params, model.policy, model, horizon=model.horizon)`. The prompt's steps are valid,
    but not the policy's own: no length that an estimator divides by counts them.

    Attributes:
        network: A policy over the `V` tokens on one-hot rows of its context, `(context, V + 1)`.
        reward: `(tokens (T,), length ()) -> ()`, prompt included, -1 after the last token.
        vocabulary: `V`.
        end: The end token.
        horizon: `T`.
        prompts: Tokens, -1 after the last one of a shorter prompt. Shape `(P, L)` with `L < T`, or one of shape `(L,)`; none by default.
        context: Length of what the network is shown.

    Raises:
        ValueError: A token, of a prompt or the end, out of the vocabulary; a prompt that leaves nothing to choose before the horizon; a
            vocabulary below 2, or a horizon or context below 1.
        TypeError: The prompts are no integers; `network` is no policy.
    """

    network: Any
    reward: Callable[[jax.Array, jax.Array], jax.Array]
    vocabulary: int
    end: Any  # a whole number from 0
    horizon: int
    prompts: Any = ()
    context: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", as_policy(self.network))
        check.whole(at_least=2, vocabulary=self.vocabulary)
        end = check.whole(at_least=0, at_most=self.vocabulary - 1, hint="a token of the vocabulary", end=self.end)
        object.__setattr__(self, "end", end)
        object.__setattr__(self, "prompts", jnp.asarray(self._checked_prompts(), jnp.int32))

    @property
    def policy(self) -> TokenPolicy:
        """The model."""
        return TokenPolicy(self.network, self.vocabulary, self.context)

    @property
    def num_actions(self) -> int:
        """`V`."""
        return self.vocabulary

    @property
    def starts(self) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the different prompts, and the probability of each."""
        _, first, counts = np.unique(np.asarray(self.prompts), axis=0, return_index=True, return_counts=True)
        return first.astype(np.int32), counts / counts.sum()

    def reset(self, key: Key, params: Any = None) -> tuple[TokenObservation, TokenState]:
        """Before the first token.

        Args:
            key: Consumed.
            params: The number of a prompt; `None` draws one, uniformly.

        Returns:
            `(observation, state)`.

        Raises:
            ValueError: There is no prompt of that number.
        """
        if params is not None:
            check.between(0, len(self.prompts) - 1, environment_params=params, hint="the number of a prompt")
            params = integers(params, "environment_params")
        number = jax.random.randint(key, (), 0, len(self.prompts)) if params is None else params
        prompt = self.prompts[number]
        prompt = jnp.pad(prompt, (0, self.horizon + 1 - len(prompt)), constant_values=PAD)
        state = TokenState(jnp.full(self.horizon, PAD, jnp.int32), prompt, jnp.zeros((), jnp.int32))
        return self._observe(state), state

    def step(self, key: Key, state: TokenState, action: jax.Array, params: Any = None) -> Step:
        """One more token; another one than the prompt's ends the sequence without a reward. Nothing is drawn.

        Args:
            key: Not used.
            state: The tokens so far, and the prompt.
            action: The token.
            params: Not used.

        Returns:
            A `Step`.

        Raises:
            ValueError: The reward is not a scalar.
        """
        del key, params
        action = integers(action, "action")
        forced = state.prompt[state.length]
        impossible = (forced != PAD) & (action != forced)
        tokens, length = state.tokens.at[state.length].set(action), state.length + 1
        new = TokenState(tokens, state.prompt, length)
        terminated = impossible | ((forced == PAD) & (action == self.end))
        truncated = ~terminated & (length == self.horizon)
        reward = scalar_cost(self.reward(tokens, length), "reward")
        paid = (terminated | truncated) & ~impossible
        return Step(self._observe(new), new, jnp.where(paid, reward, 0), terminated, truncated)

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """Logarithm of the probability that the prompt of one trajectory is drawn.

        Args:
            trajectory: One, without batch axes.

        Returns:
            Shape `()`.
        """
        forced, (number, longest) = trajectory.observations.forced, self.prompts.shape
        ends = jnp.full((number, max(len(forced) - longest, 0)), PAD, jnp.int32)
        prompts = jnp.concatenate([self.prompts, ends], axis=1)[:, : len(forced)]
        same = jnp.all((prompts == forced[None]) | ~trajectory.valid[None], axis=1)
        return jnp.log(jnp.mean(same, dtype=trajectory.rewards.dtype))

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """0 for every step: nothing is drawn.

        Args:
            trajectory: One, without batch axes.

        Returns:
            Shape `(T,)`.
        """
        return jnp.zeros_like(trajectory.rewards)

    def _observe(self, state: TokenState) -> TokenObservation:
        before = jnp.pad(state.tokens, (self.context, 0), constant_values=self.vocabulary)
        context = jax.lax.dynamic_slice_in_dim(before, state.length, self.context)
        return TokenObservation(context, state.prompt[state.length])

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
        check.between(PAD, self.vocabulary - 1, prompts=prompts, hint=f"tokens, or {PAD} after the last")
        if np.any((prompts[:, :-1] == PAD) & (prompts[:, 1:] != PAD)):
            raise ValueError(f"prompts: expected {PAD} only after a prompt's last token.")
        return prompts
