"""Two players, one matrix game, repeated, with a memory of one round: the iterated prisoner's dilemma.

A round's *joint action* is the number a A_2 + b of the pair (a, b), and the observation is the joint action of the round
before, or the start, A_1 A_2. So a game is a decision process of S = A_1 A_2 + 1 states whose policy is the product of
two, and everything in the library applies to it; only the reward has a column for each player.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from logderiv._core import check
from logderiv._core.arrays import as_key, check_params, integers, numbers, row_of, summable, wide
from logderiv._core.products import exact_products
from logderiv._core.pytrees import jit, pytree
from logderiv.distributions.basic import Categorical, log_softmax
from logderiv.environments.tabular import TabularMDP
from logderiv.exact import policy_table
from logderiv.processes.base import Process
from logderiv.processes.markov_chains import MarkovChain
from logderiv.types import Key, Params, Trajectory


@pytree(static=("horizon",))
class MatrixGame(Process):
    """A two-player matrix game, repeated. Rollouts have rewards of shape `(T, 2)`: choose a player before estimating.

        taus = ld.rollout(params, keys, game.policy, game)
        estimate, _ = estimator.estimate(params, (), game.policy, game.rewards_of(taus, 0))

    The estimate has both players' derivatives of the one player's return. Episodes have no end but `horizon`.

    The policy plays both at once: π(a, b | s) = π_1(a | s) π_2(b | s'), with s' the state as the second player sees it. Its
    parameters are a pair of logits, `(S, A_1)` and `(S, A_2)`, with S = A_1 A_2 + 1. The rows of each are the last round with the
    *own* action first, (own, other) = (0, 0), (0, 1), ..., then the start: with two actions C and D the rows are CC, CD, DC,
    DD, start, and "CD" is for both players "I cooperated, the other did not". A trajectory that remembers a round otherwise than
    it was played has probability 0.

    Attributes:
        payoffs: `payoffs[i, a, b]` is what player `i` gets when the first plays `a` and the second `b`. Shape `(2, A_1, A_2)`.
        horizon: Default number of rounds of a rollout, static.

    Raises:
        ValueError: `payoffs` has another shape.
        TypeError: They are no real numbers.
    """

    payoffs: jax.Array
    horizon: int | None = None

    num_players = 2

    def __post_init__(self) -> None:
        payoffs = summable(self.payoffs, "payoffs")
        if payoffs.ndim != 3 or payoffs.shape[0] != 2 or 0 in payoffs.shape:
            raise ValueError(
                f"payoffs: expected shape (2, A_1, A_2), one matrix for each player with rows for the first player's actions, "
                f"received {payoffs.shape}; for a symmetric game use jnp.stack([matrix, matrix.T])."
            )
        object.__setattr__(self, "payoffs", payoffs)

    def init(self) -> tuple[jax.Array, jax.Array]:
        """Uniform play.

        Returns:
            A pair of zero logits, `(S, A_1)` and `(S, A_2)`, the parameters of `policy`.
        """
        _, first, second = self.payoffs.shape
        states = first * second + 1
        return jnp.zeros((states, first)), jnp.zeros((states, second))

    def first(self) -> jax.Array:
        return jnp.asarray(self.payoffs[0].size, jnp.int32)

    def transition(self, params: tuple[jax.Array, jax.Array], observation: jax.Array) -> Categorical:
        """The distribution of the joint action, π_1(a | s) π_2(b | s').

        Args:
            params: A pair of logits, `(S, A_1)` and `(S, A_2)`.
            observation: The joint action of the last round, or the start.

        Returns:
            A categorical distribution of A_1 A_2 joint actions; its logits are NaN in a state outside `0 .. A_1 A_2`.

        Raises:
            ValueError: `params` is no pair of logits of these shapes.
            TypeError: The observation is no whole number.
        """
        hint = "a pair of logits of shapes (S, A_1) and (S, A_2); rows are the last round, own action first, then the start"
        params = numbers(tuple(params))
        check.like("params", params, jax.eval_shape(self.init), hint=hint)
        _, first, second = self.payoffs.shape
        observation = integers(observation, "observation")
        a, b = jnp.divmod(observation, second)
        mirrored = jnp.where(observation == first * second, observation, b * first + a)
        mine, other = map(log_softmax, (row_of(params[0], observation), row_of(params[1], mirrored)))
        return Categorical((mine[:, None] + other[None, :]).reshape(-1))

    def advance(self, state: jax.Array, action: jax.Array) -> tuple[jax.Array, jax.Array, bool]:
        del state
        return action, self.payoffs.reshape(2, -1)[:, action], False

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        return self.mdp(0).log_initial(trajectory)

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        return self.mdp(0).log_factors(trajectory)

    def actions_of(self, trajectories: Trajectory) -> tuple[jax.Array, jax.Array]:
        """What each player did.

        Args:
            trajectories: Leading axes `(*batch, T)`.

        Returns:
            The actions of the first and of the second player, each `(*batch, T)`.
        """
        return jnp.divmod(trajectories.actions, self.payoffs.shape[2])

    def rewards_of(self, trajectories: Trajectory, player: int) -> Trajectory:
        """The same trajectories with the rewards of one player.

        Args:
            trajectories: Of this game; rewards `(*batch, T, 2)`.
            player: 0 or 1.

        Returns:
            Trajectories with rewards `(*batch, T)`.

        Raises:
            ValueError: `player` is neither 0 nor 1.
        """
        player = check.whole(at_least=0, at_most=1, player=player)
        return trajectories._replace(rewards=trajectories.rewards[..., player])

    def mdp(self, player: int) -> TabularMDP:
        """The game with one player's payoffs as a decision process over joint actions, for `logderiv.exact`.

        Args:
            player: 0 or 1.

        Returns:
            A `TabularMDP` of S = A_1 A_2 + 1 states and A_1 A_2 actions: the rounds are a `MarkovChain`.

        Raises:
            ValueError: `player` is neither 0 nor 1.
        """
        player = check.whole(at_least=0, at_most=1, player=player)
        return MarkovChain(self.payoffs[player].reshape(-1), horizon=self.horizon)

    def value(self, params: Params, *, horizon: int | None = None, discount: float = 1.0) -> jax.Array:
        """Both players' expected discounted return, exactly.

            V_i = s_0ᵀ (I - γ P)⁻¹ r_i

        over endless play, with P(s, s') the probability of each outcome and r_i(s) the expected payoff of a round; a backward
        recursion up to a horizon.

        Args:
            params: A pair of logits, `(S, A_1)` and `(S, A_2)`.
            horizon: Number of rounds; `None` for endless play, whatever the game's default for rollouts.
            discount: γ in [0, 1]; below 1 for endless play.

        Returns:
            Shape `(2,)`.

        Raises:
            ValueError: Endless play without discount; `params` of other shapes; `horizon` or `discount` out of range.

        Gradients: flow through `params` and `payoffs` at any order, in both players at once.

        Example:
            >>> import logderiv as ld
            >>> game = ld.processes.prisoners_dilemma()
            >>> game.value(game.init(), horizon=2).tolist()
            [-3.0, -3.0]

        References:
            Foerster et al. (2018), arXiv:1709.04326, for endless play.
        """
        endless = horizon is None
        hint = "endless play is discounted; or give a horizon" if endless else ""
        check.between(0, 1, open_right=endless, discount=discount, hint=hint)
        check.shape((), discount=discount)
        horizon = check.whole(or_none=True, horizon=horizon)
        return _value(self, params, horizon, discount)


@jit
@exact_products()
def _value(game: MatrixGame, params: Params, horizon: int | None, discount: Any) -> jax.Array:
    table = policy_table(params, game.policy, game.mdp(0))  # (S, A_1 A_2): also the probability of the next state
    payoffs = game.payoffs.reshape(2, -1).T.astype(table.dtype)
    # After the start a state is an outcome: v = outcomes (r + gamma v), then one round before it.
    outcomes, start, discount = table[:-1], table[-1], jnp.asarray(discount, table.dtype)
    if horizon is None:
        values = jnp.linalg.solve(jnp.eye(len(payoffs), dtype=table.dtype) - discount * outcomes, outcomes @ payoffs)
    else:
        rounds = jnp.zeros_like(payoffs), jnp.arange(horizon - 1)
        values, _ = lax.scan(lambda values, _: (outcomes @ (payoffs + discount * values), None), *rounds)
    return start @ (payoffs + discount * values)


def prisoners_dilemma(*, horizon: int | None = None) -> MatrixGame:
    """The iterated prisoner's dilemma: action 0 cooperates, 1 defects; (C, C) pays -1 each, (D, D) -2, and (C, D) -3 and 0.

    Args:
        horizon: Default number of rounds of a rollout.

    Returns:
        A `MatrixGame`.

    References:
        Foerster et al. (2018), arXiv:1709.04326.
    """
    payoffs = jnp.array([[-1.0, -3.0], [0.0, -2.0]])
    return MatrixGame(jnp.stack([payoffs, payoffs.T]), horizon)


def look_ahead(params: Params, key: Key, objective: Callable[..., Any], *, learning_rate: float, steps: int) -> Params:
    """Parameters after some steps of gradient ascent, as a differentiable function of everything `objective` depends on.

        θ ← θ + α ∇L(θ, k)

    with a fresh key k at each step. To shape another player's learning, let `objective` close over one's own parameters and
    differentiate what follows: its own gradient then needs the mixed derivative of L in both, which `logderiv.estimators.DiCE`
    estimates and `logderiv.estimators.Score` does not (it has 0 there).

    Args:
        params: Where the other player stands; a pytree.
        key: Split into one for each step; consumed.
        objective: `(params, key) -> scalar` that draws its own batch, for instance.
        learning_rate: α.
        steps: Number of steps, unrolled; 0 returns `params`.

    Returns:
        Pytree of `params`.

    Raises:
        ValueError: `steps` is negative, `learning_rate` not finite, or there are several keys.
        TypeError: A parameter is not floating point, or `learning_rate` no real number.

    Gradients: flow through every step; nothing is detached.

    References:
        Foerster et al. (2018), arXiv:1802.05098, section 5.2 (LOLA-DiCE).
    """
    steps = check.whole(at_least=0, steps=steps)
    check.finite(learning_rate=learning_rate)
    check_params(params)
    params, rate = wide(params), summable(learning_rate, "learning_rate")
    # Unrolled: a scan over keys, differentiated, would use them twice.
    for step_key in jax.random.split(as_key(key), steps) if steps else ():
        grads = jax.grad(objective)(params, step_key)
        params = jax.tree.map(lambda p, g: p + rate.astype(p.dtype) * g, params, grads)
    return params
