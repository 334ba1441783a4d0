r"""Two players, one matrix game, repeated, with a memory of one round: the iterated prisoner's dilemma.

A round's *joint action* is the number $a A_2 + b$ of the pair (a, b), and the observation is the joint action of the round
before, or the start, $A_1 A_2$. So a game is a decision process of $S = A_1 A_2 + 1$ states whose policy is the product of
two, and everything in the library applies to it; only the reward has a column for each player.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core.arrays import register_dataclass
from logderiv.distributions.basic import Categorical
from logderiv.environments.tabular import TabularMDP
from logderiv.exact import policy_table
from logderiv.exact import value as exact_value
from logderiv.types import Step, Trajectory


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class JointPolicy:
    r"""Both players at once: $\pi(a, b|s) = \pi_1(a|s)\, \pi_2(b|\bar s)$, with $\bar s$ the state as the second player sees it.

    `params` is a pair of logits, `(S, A_1)` and `(S, A_2)`, with $S = A_1 A_2 + 1$. The rows of each are the last round with the
    *own* action first, (own, other) = (0, 0), (0, 1), ..., then the start: with two actions C and D the rows are CC, CD, DC,
    DD, start, and "CD" is for both players "I cooperated, the other did not".

    Attributes:
        num_actions: $(A_1, A_2)$.
    """

    num_actions: tuple[int, int]

    initial_carry = None
    log_factors = None

    def init(self) -> tuple[jax.Array, jax.Array]:
        """Uniform play: a pair of zero logits."""
        first, second = self.num_actions
        states = first * second + 1
        return jnp.zeros((states, first)), jnp.zeros((states, second))

    def apply(self, params: tuple[jax.Array, jax.Array], observation: jax.Array) -> Categorical:
        """The distribution of the joint action."""
        self._check(params)
        first, second = self.num_actions
        a, b = jnp.divmod(observation, second)
        mirrored = jnp.where(observation == first * second, observation, b * first + a)
        mine, other = jax.nn.log_softmax(params[0][observation]), jax.nn.log_softmax(params[1][mirrored])
        return Categorical((mine[:, None] + other[None, :]).reshape(-1))

    def _check(self, params: Any) -> None:
        first, second = self.num_actions
        expected = ((first * second + 1, first), (first * second + 1, second))
        received = tuple(jnp.shape(x) for x in jax.tree.leaves(params))
        if received != expected:
            raise ValueError(
                f"params: expected a pair of logits of shapes (S, A_1) and (S, A_2) = {expected}, received {received}; rows are "
                "the last round (own action first), then the start."
            )


@dataclasses.dataclass(frozen=True)
class MatrixGame:
    r"""A two-player matrix game, repeated. Rollouts have rewards of shape `(T, 2)`: choose a player before estimating.

        taus = ld.rollout(params, keys, game.policy, game)
        estimate, _ = estimator.estimate(params, (), game.policy, game.rewards_of(taus, 0))

    The estimate has both players' derivatives of the one player's return. Episodes have no end but `horizon`.

    Attributes:
        payoffs: `payoffs[i, a, b]` is what player `i` gets when the first plays `a` and the second `b`. Shape `(2, A_1, A_2)`.
        horizon: Default number of rounds of a rollout, static.

    Raises:
        ValueError: `payoffs` has another shape.
    """

    payoffs: jax.Array
    horizon: int | None = None

    def __post_init__(self) -> None:
        payoffs = jnp.asarray(self.payoffs)
        if payoffs.ndim != 3 or payoffs.shape[0] != 2 or 0 in payoffs.shape:
            raise ValueError(
                f"payoffs: expected shape (2, A_1, A_2), one matrix for each player with rows for the first player's actions, "
                f"received {payoffs.shape}; for a symmetric game use jnp.stack([matrix, matrix.T])."
            )
        if not jnp.issubdtype(payoffs.dtype, jnp.floating):
            payoffs = payoffs.astype(jnp.zeros(()).dtype)
        object.__setattr__(self, "payoffs", payoffs)

    @property
    def policy(self) -> JointPolicy:
        """The two players."""
        _, first, second = self.payoffs.shape
        return JointPolicy((first, second))

    def reset(self, key: jax.Array, params: Any = None) -> tuple[jax.Array, jax.Array]:
        """The start; nothing is drawn."""
        del key, params
        start = jnp.asarray(self.payoffs[0].size, jnp.int32)
        return start, start

    def step(self, key: jax.Array, state: jax.Array, action: jax.Array, params: Any = None) -> Step:
        """One round: the joint action is the next state, the reward has shape `(2,)`."""
        del key, state, params
        never = jnp.zeros((), bool)
        return Step(action, action, self.payoffs.reshape(2, -1)[:, action], never, never)

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """As `TabularMDP.log_initial`: 0 from the start."""
        return self.mdp(0).log_initial(trajectory)

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """As `TabularMDP.log_factors`: 0 where each round is remembered as it was played."""
        return self.mdp(0).log_factors(trajectory)

    def actions_of(self, trajectories: Trajectory) -> tuple[jax.Array, jax.Array]:
        """What each player did, shapes `(*batch, T)`."""
        first, second = jnp.divmod(trajectories.actions, self.payoffs.shape[2])
        return first, second

    def rewards_of(self, trajectories: Trajectory, player: int) -> Trajectory:
        """The same trajectories with the rewards of one player, shape `(*batch, T)`."""
        return trajectories._replace(rewards=trajectories.rewards[..., _player(player)])

    def mdp(self, player: int) -> TabularMDP:
        """The game with one player's payoffs as a decision process over joint actions, for `logderiv.exact`."""
        joint = self.payoffs[0].size
        dtype = self.payoffs.dtype
        states = joint + 1
        return TabularMDP(
            initial=jax.nn.one_hot(joint, states, dtype=dtype),
            transition=jnp.broadcast_to(jnp.eye(joint, states, dtype=dtype), (states, joint, states)),
            reward=jnp.broadcast_to(self.payoffs[_player(player)].reshape(-1), (states, joint)),
            terminal=jnp.zeros(states, bool),
            horizon=self.horizon,
        )

    def value(self, params: Any, *, horizon: int | None = None, discount: float = 1.0) -> jax.Array:
        r"""Both players' expected discounted return, exactly; shape `(2,)`.

        $V_i = s_0^\top (I - \gamma P)^{-1} r_i$ over endless play, with $P(s, s')$ the probability of each outcome and $r_i(s)$ the
        expected payoff of a round; a backward recursion up to a horizon.

        Args:
            params: A pair of logits, see `JointPolicy`.
            horizon: Number of rounds; `None` for endless play, whatever the game's default for rollouts.
            discount: $\gamma$ in [0, 1]; below 1 for endless play.

        Returns:
            Shape `(2,)`. Differentiable in `params` and `payoffs` at any order, in both players at once.

        Raises:
            ValueError: Endless play without discount; `params` of other shapes; as `logderiv.exact.value`.

        Example:
            >>> import logderiv as ld
            >>> game = ld.processes.prisoners_dilemma()
            >>> game.value(game.policy.init(), horizon=2).tolist()
            [-3.0, -3.0]

        References:
            Foerster et al. (2018), arXiv:1709.04326, for endless play.
        """
        if horizon is not None:
            values = [
                exact_value(params, self.policy, self.mdp(i), horizon=horizon, discount=discount) for i in range(2)
            ]
            return jnp.stack(values)
        if not 0.0 <= discount < 1.0:
            raise ValueError(
                f"discount: expected a number in [0, 1) for endless play, received {discount}; or give a horizon."
            )
        table = policy_table(params, self.policy, self.mdp(0))  # (S, A_1 A_2): also the probability of the next state
        joint = table.shape[1]
        payoffs = self.payoffs.reshape(2, joint).T.astype(table.dtype)
        # After the start a state is an outcome: v = table[:-1] (r + gamma v), then one round before it.
        values = jnp.linalg.solve(jnp.eye(joint, dtype=table.dtype) - discount * table[:-1], table[:-1] @ payoffs)
        return table[-1] @ (payoffs + discount * values)


register_dataclass(MatrixGame, ("payoffs",), ("horizon",))


def prisoners_dilemma(*, horizon: int | None = None) -> MatrixGame:
    """The iterated prisoner's dilemma: action 0 cooperates, 1 defects; (C, C) pays -1 each, (D, D) -2, and (C, D) -3 and 0.

    Args:
        horizon: Default number of rounds of a rollout.

    References:
        Foerster et al. (2018), arXiv:1709.04326.
    """
    payoffs = jnp.array([[-1.0, -3.0], [0.0, -2.0]])
    return MatrixGame(jnp.stack([payoffs, payoffs.T]), horizon)


def look_ahead(
    params: Any, key: jax.Array, objective: Callable[[Any, jax.Array], jax.Array], *, learning_rate: float, steps: int
) -> Any:
    r"""Parameters after some steps of gradient ascent, as a differentiable function of everything `objective` depends on.

    $\theta \leftarrow \theta + \alpha \nabla_\theta L(\theta, k)$ with a fresh key `k` at each step. To shape another player's learning, let `objective`
    close over one's own parameters and differentiate what follows: its own gradient then needs $\nabla_{\text{own}} \nabla_\theta L$, which
    `logderiv.dice_surrogate` estimates and `logderiv.score_surrogate` does not (it has 0 there).

    Args:
        params: Where the other player stands; a pytree.
        key: Split into one for each step; consumed.
        objective: `(params, key) -> scalar` that draws its own batch, for instance.
        learning_rate: $\alpha$.
        steps: Number of steps, unrolled; 0 returns `params`.

    Returns:
        Pytree of `params`.

    Raises:
        ValueError: `steps` is negative.

    Gradients: flow through every step; nothing is detached.

    References:
        Foerster et al. (2018), arXiv:1802.05098, section 5.2 (LOLA-DiCE).
    """
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps: expected a whole number >= 0, received {steps!r}.")
    # Unrolled: a scan over keys, differentiated, would use them twice.
    for step_key in jax.random.split(key, steps) if steps else ():
        grads = jax.grad(objective)(params, step_key)
        params = jax.tree.map(lambda p, g: p + learning_rate * g, params, grads)
    return params


def _player(player: int) -> int:
    if player not in (0, 1):
        raise ValueError(f"player: expected 0 or 1, received {player!r}.")
    return player
