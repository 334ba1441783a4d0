"""Advantages: the one object that decides what the score of every step is multiplied by.

An estimator of ∇E[R] is a weighting of per-step scores, Σ_t w_t ∇log π(a_t|s_t). An advantage takes `(params, state, batch)` and
returns `(weights, targets, state)`. Whether the result is unbiased is a property of the estimator as a whole: see
`Estimator.declaration`. Here are those that are returns minus a baseline, and those made of another one; `bootstrapped` has GAE
and V-trace.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from logderiv._core import check
from logderiv._core.moments import beyond_rounding
from logderiv._core.pytrees import pytree
from logderiv.estimators.baselines import Baseline
from logderiv.estimators.batch import SHARED, Batch, averaged, in_groups
from logderiv.estimators.declaration import RETURN, Declaration, Part, Structure, biased, declaration_of, one
from logderiv.estimators.returns import Scaled, reward_to_go, scaled_sums, total_return
from logderiv.types import Params, Per, State

Weighed = tuple[jax.Array, jax.Array, State]


class Advantage(Part):
    """Base of all advantages: from a batch to the weight of every step's score.

    One of your own is a frozen dataclass that inherits from this one, with `__call__` and the attributes `structure` and
    `declaration`, without which it is counted as biased; registered by `jax.tree_util.register_dataclass` it may be an argument
    of `jax.jit`.

    Attributes:
        past_rewards: Whether the weight of a step contains rewards from before it, as the whole return does; taken to be so where
            nothing else is said.
        from_start: Whether every weight is discounted from the first step on, as the whole return is: there is no γ^t to leave out.
        own_ratios: Whether it weighs off-policy steps by their ratios itself.
    """

    past_rewards = True
    from_start = False
    own_ratios = False

    def __call__(self, params: Params, state: State, batch: Batch) -> Weighed:
        """Weights, from the *old* state, and the new one.

        Args:
            params: Parameters of the policy.
            state: From `init`, or from the last call.
            batch: The batch.

        Returns:
            `(weights, targets, state)`: what multiplies each score, and what a value of each state should predict, both of shape
            `(N, T)` and 0 on invalid steps; and the state after this batch.
        """
        raise NotImplementedError


def check_advantage(advantage: Any) -> None:
    """Raise `TypeError` unless it is an advantage; one that was not called is named."""
    fits = callable(advantage) and hasattr(advantage, "init")
    check.made("advantage", advantage, fits, "one of logderiv.advantages, such as ToGo()")


class Credited(Advantage):
    """Base of advantages that give credit by a function of rewards and discounts, minus a baseline.

    Rewards are multiplied by the ratio and γ^t *before* the credit is given, and the baseline is multiplied by them too. Off
    policy both stay `Scaled` until they are subtracted: a ratio may have no floating-point number where the weight has one.

    Attributes:
        baseline: From `logderiv.baselines`; `None` for none.

    Raises:
        TypeError: `baseline` is none, or was not called.
    """

    baseline: Baseline | None

    def __post_init__(self) -> None:
        fits = self.baseline is None or hasattr(self.baseline, "values")
        check.made("baseline", self.baseline, fits, "one of logderiv.baselines, such as LeaveOneOut() or Constant(0.5)")

    @property
    def structure(self) -> Structure:
        """That of the baseline."""
        return Structure() if self.baseline is None else Structure() & self.baseline.structure

    @property
    def declaration(self) -> Declaration:
        """That of the credit and of the baseline."""
        return Declaration() if self.baseline is None else Declaration() & declaration_of(self.baseline)

    def credit(self, rewards: jax.Array, discounts: jax.Array) -> jax.Array:
        """The credit of one trajectory.

        Args:
            rewards: Shape `(T,)`.
            discounts: Shape `(T,)`.

        Returns:
            Shape `(T,)`.
        """
        raise NotImplementedError

    def _scaled_credit(self, rewards: Scaled, discounts: Scaled) -> Scaled:
        """The credit of a batch, of rewards and discounts of shape `(N, T)`."""
        return Scaled(jax.vmap(self.credit)(rewards.value, discounts.value))

    def _scaled_targets(self, rewards: Scaled, discounts: Scaled) -> Scaled:
        """The credit from each step on, as if the trajectory started there."""
        return self._scaled_credit(rewards, discounts)

    def init(self, params: Params) -> State:
        return () if self.baseline is None else self.baseline.init(params)

    def __call__(self, params: Params, state: State, batch: Batch) -> Weighed:
        del params
        valid, inside, later = batch.valid, batch.inside * batch.discounts, batch.discount * batch.discounts
        scaled = self._scaled_credit(Scaled(batch.rewards * batch.powers, batch.log_scale), Scaled(inside))
        target = self._scaled_targets(*(Scaled(x, batch.log_step_ratios) for x in (batch.rewards, later)))
        credit, targets = (jnp.where(valid, x.value, 0) for x in (scaled, target))
        if self.baseline is None:
            return credit, targets, state
        values, log = self.baseline.values(state, credit, batch), batch.log_ratios
        if self.baseline.discounted:
            values, log = batch.powers * values, batch.log_scale
        weights = jnp.where(valid, scaled.plus(-values, log).value, 0)
        return weights, targets, self.baseline.update(state, credit, targets, batch)


@pytree
class ToGo(Credited):
    """Reward-to-go minus a baseline: w_t = γ^t G_t − b_t with G_t = r_t + γ G_{t+1} (`reward_to_go`).

    A choice is credited with what comes after it only. GPOMDP, the policy gradient.

    Attributes:
        baseline: From `logderiv.baselines`; `None` for none.

    Raises:
        TypeError: `baseline` is none, or was not called.

    References:
        Baxter & Bartlett (2001), JAIR 15 (from memory); Sutton et al. (1999), "Policy gradient methods", theorem 1.
    """

    baseline: Baseline | None = None

    past_rewards = False

    def credit(self, rewards: jax.Array, discounts: jax.Array) -> jax.Array:
        return reward_to_go(rewards, discounts)

    def _scaled_credit(self, rewards: Scaled, discounts: Scaled) -> Scaled:
        return scaled_sums(rewards, discounts)


@pytree
class Return(Credited):
    """The whole return minus a baseline, at every step: w_t = G_0 − b_t (`total_return`).

    The plain identity, REINFORCE. A weight contains rewards from before its step, so off policy it needs the whole product of
    ratios, `Importance(per="trajectory")`.

    Attributes:
        baseline: From `logderiv.baselines`; `None` for none.

    Raises:
        TypeError: `baseline` is none, or was not called.

    References:
        Williams (1992), Machine Learning 8, theorem 1.
    """

    baseline: Baseline | None = None

    from_start = True

    def credit(self, rewards: jax.Array, discounts: jax.Array) -> jax.Array:
        return total_return(rewards, discounts)

    def _scaled_credit(self, rewards: Scaled, discounts: Scaled) -> Scaled:
        return jax.tree.map(lambda x: jnp.broadcast_to(x[:, :1], x.shape), scaled_sums(rewards, discounts))

    def _scaled_targets(self, rewards: Scaled, discounts: Scaled) -> Scaled:
        return scaled_sums(rewards, discounts)


@pytree(static=("function", "past_rewards"))
class Credit(Credited):
    """Credit by a function of your own, minus a baseline. A baseline that is fitted is shown the credit, which should then look ahead only.

    Attributes:
        function: `(rewards (T,), discounts (T,)) -> (T,)` of one trajectory. It declares what it does to the expectation by an
            attribute `declaration`, without which the estimator is counted as biased.
        baseline: From `logderiv.baselines`; `None` for none.
        past_rewards: Whether the weight of a step contains rewards from before it.

    Raises:
        TypeError: `function` is none; `baseline` is none, or was not called.
    """

    function: Callable[[jax.Array, jax.Array], jax.Array]
    baseline: Baseline | None = None
    past_rewards: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = callable(self.function) and not isinstance(self.function, Part)
        check.made("function", self.function, fits, "a function such as logderiv.advantages.reward_to_go")

    @property
    def structure(self) -> Structure:
        """That of the baseline; nothing is assumed of a function that declares nothing."""
        known = isinstance(getattr(self.function, "declaration", None), Declaration)
        return super().structure if known else super().structure._replace(degree=None)

    @property
    def declaration(self) -> Declaration:
        """That of the function and of the baseline."""
        return declaration_of(self.function) & super().declaration

    def credit(self, rewards: jax.Array, discounts: jax.Array) -> jax.Array:
        return self.function(rewards, discounts)


class Transformed(Advantage):
    """Base of advantages made of another one: they have its state, and treat past rewards and ratios as it does.

    Attributes:
        advantage: The other one.

    Raises:
        TypeError: It is none, or was not called.
    """

    advantage: Advantage

    def __post_init__(self) -> None:
        check_advantage(self.advantage)

    @property
    def past_rewards(self) -> bool:
        """As the inner advantage."""
        return self.advantage.past_rewards

    @property
    def from_start(self) -> bool:
        """As the inner advantage."""
        return self.advantage.from_start

    @property
    def own_ratios(self) -> bool:
        """As the inner advantage."""
        return self.advantage.own_ratios

    def init(self, params: Params) -> State:
        return self.advantage.init(params)


@pytree(static=("per", "ddof"))
class Standardized(Transformed):
    """Weights with mean 0 and standard deviation 1 over the batch: (A − mean A) / (std A + ε). Biased, in size and direction.

    Weights that are all equal, up to their rounding, become 0, whatever ε.

    Attributes:
        advantage: What gives A.
        per: Mean and deviation over all valid steps ("step", as in most PPO code), or over the trajectories' A_{n,0}.
        ddof: The variance is divided by the count minus this.
        epsilon: ε, added to the deviation.

    Raises:
        ValueError: `per` is neither; `ddof` or `epsilon` is out of range.
        TypeError: `advantage` is none, or was not called.
    """

    advantage: Advantage
    per: Per = "step"
    ddof: int = 0
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of(("step", "trajectory"), per=self.per)
        check.whole(at_least=0, ddof=self.ddof)
        check.not_negative(finite=True, epsilon=self.epsilon)

    @property
    def structure(self) -> Structure:
        """Two trajectories at least; a stream has none whose mean could be taken."""
        inner = self.advantage.structure & Structure(min_trajectories=2, degree=None)
        return inner._replace(streams=inner.streams and self.per == "step")

    @property
    def declaration(self) -> Declaration:
        """No factor: mean and scale are random and contain the own sample."""
        reason = "standardized weights: mean and standard deviation contain the own sample"
        return declaration_of(self.advantage) & biased(reason)

    def __call__(self, params: Params, state: State, batch: Batch) -> Weighed:
        weights, targets, state = self.advantage(params, state, batch)
        over, counts = averaged(weights, batch, self.per)
        count, epsilon = jnp.maximum(jnp.sum(counts), 1), jnp.asarray(self.epsilon, weights.dtype)
        # Relative to one of them, so that equal weights are 0 and others keep their digits; in units of a power of two, as a square might overflow.
        size, counted = jnp.max(jnp.abs(weights)), counts > 0
        origin = jnp.where(jnp.any(counted), jnp.max(over, where=counted, initial=-jnp.inf), 0)
        exponent = jnp.frexp(jnp.maximum(size, epsilon))[1]
        most = jnp.finfo(size.dtype).maxexp - 8  # beyond which the reciprocal of the unit has no number
        unit = jnp.ldexp(jnp.ones_like(size), jnp.clip(exponent, -most, most))
        weights, over = (x / unit - origin / unit for x in (weights, over))
        mean = jnp.sum(over, where=counted) / count
        squares = jnp.sum(jnp.square(over - mean), where=counted)
        deviation = beyond_rounding(jnp.sqrt(squares / jnp.maximum(count - self.ddof, 1)), size / unit)
        scale = jnp.where(deviation == 0, jnp.inf, deviation + epsilon / unit)
        return jnp.where(batch.valid, (weights - mean) / scale, 0), targets, state


@pytree(static=("group_size",))
class Grouped(Transformed):
    """An advantage taken within consecutive groups of trajectories, such as the answers to one prompt.

    `Grouped(Return(LeaveOneOut(per="trajectory")), 8)` is RLOO over groups of eight. The declaration is that of the inner
    advantage at `group_size` trajectories.

    Attributes:
        advantage: One without state.
        group_size: The number of trajectories must be a multiple of it.

    Raises:
        ValueError: A group smaller than the advantage needs; later, from `init`, an advantage with state, and a batch that does
            not divide.
        TypeError: `advantage` is none, or was not called.
    """

    advantage: Advantage
    group_size: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check.whole(at_least=self.advantage.structure.min_trajectories, group_size=self.group_size)

    @property
    def structure(self) -> Structure:
        """A group at least; a batch is the mean over its trajectories only where the groups' members do not meet."""
        inner = self.advantage.structure
        alone = inner.degree == 1
        symmetric = alone and inner.symmetric
        return Structure(self.group_size, 1 if alone else None, symmetric, group_size=self.group_size)

    @property
    def declaration(self) -> Declaration:
        """That of the inner advantage at N = `group_size`, whatever the number of groups."""
        inner = declaration_of(self.advantage)
        factor = inner.objectives.get(RETURN)
        if factor in (None, one):
            return inner
        return Declaration({RETURN: lambda _: factor(self.group_size)}, inner.order, inner.assumes, inner.reasons)

    def init(self, params: Params) -> State:
        if jax.tree.leaves(state := super().init(params)):
            raise ValueError(f"advantage: expected one without state in groups, received {self.advantage}.")
        return state

    def __call__(self, params: Params, state: State, batch: Batch) -> Weighed:
        per_trajectory = {name: x for name, x in batch._asdict().items() if name not in SHARED}
        groups = jax.tree.map(lambda x: in_groups(x, self.group_size), per_trajectory)

        def of_group(group: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            return self.advantage(params, state, batch._replace(**group))[:2]

        weights, targets = jax.vmap(of_group)(groups)
        return weights.reshape(batch.valid.shape), targets.reshape(batch.valid.shape), state
