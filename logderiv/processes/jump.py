"""Chemical jump processes: Gillespie's direct method in a fixed time, as an environment and a policy.

A network of `R` reactions changes the counts x of its species by the rows of a stoichiometric matrix. In state x reaction r
fires at rate a_r(θ, x), its propensity; a_0 = Σ_r a_r. One action is one event, `(wait, reaction)`: after an exponential
waiting time with rate a_0, reaction r with probability a_r / a_0. An event that would fall behind the end of the observation,
`remaining` from now, is not seen; what is seen is that nothing happened, `reaction = -1`, and the path ends. So one factor is

    p(wait, r) = a_r exp(-a_0 wait)  for wait < remaining,    p(-1) = exp(-a_0 remaining),

a density and a probability side by side. The last one is the survival factor: it depends on θ, and a score without it is
biased. Summed over a path, ∂ log P / ∂ log k_r = N_r - ∫ a_r(x_s) ds for a rate constant k_r of mass action: events minus
expected events.

References:
    Gillespie (1977), J. Phys. Chem. 81, 2340-2361, the direct method; Glynn (1990), Commun. ACM 33, 75-84, and Plyasunov & Arkin (2007),
    J. Comput. Phys. 221, 724-738, for the score.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core import check
from logderiv._core.arrays import integers, nan_unless, set_alike, summable
from logderiv._core.noise import exponential
from logderiv._core.products import precision_of
from logderiv._core.pytrees import pytree
from logderiv.distributions.basic import Categorical
from logderiv.processes.base import Process, first_component, no_reward
from logderiv.types import Key, Params


class Event(NamedTuple):
    """One action of a jump process.

    Attributes:
        wait: Time until `reaction` fires; with `reaction = -1` the time to the end. Shape `()`.
        reaction: Its number; -1 where nothing more happens. Shape `()`, int32.
    """

    wait: jax.Array
    reaction: jax.Array


class Population(NamedTuple):
    """State and observation of a jump process.

    Attributes:
        counts: Of the species. Shape `(species,)`, int32.
        remaining: Time to the end. Shape `()`.
    """

    counts: jax.Array
    remaining: jax.Array


@pytree
class NextEvent:
    """The next event of a jump process, or that there is none before the end. See the module for its density.

    A reaction of rate 0 has log-probability `-inf` and leaves the gradients finite; if all rates are 0, nothing happens, with
    probability 1. A rate that is negative, infinite or NaN makes samples and log-probabilities NaN.

    Attributes:
        rates: Propensities in the present state, shape `(R,)`; float32 at least.
        remaining: Time to the end, shape `()`, in the same dtype.

    Raises:
        TypeError: One of them is no real number.
    """

    rates: jax.Array
    remaining: jax.Array

    def __post_init__(self) -> None:
        set_alike(self, "rates", "remaining")

    def log_prob(self, action: Event) -> jax.Array:
        """Log-density of an event, or log-probability of none.

        Args:
            action: An event, or that nothing happens any more.

        Returns:
            Shape `()`; `-inf` outside the support.
        """
        rate, total, duration, inside = self._factors(action)
        logs = jnp.log(jnp.where(rate > 0, rate, 1)) - total * duration
        return jnp.where(jnp.isnan(total) | (inside & (rate > 0)), logs, -jnp.inf)

    def prob(self, action: Event) -> jax.Array:
        """The density of an event, or the probability of none.

        Args:
            action: An event, or that nothing happens any more.

        Returns:
            Shape `()`; 0 outside the support.
        """
        rate, total, duration, inside = self._factors(action)
        return jnp.where(jnp.isnan(total) | inside, rate * jnp.exp(-total * duration), 0)

    def sample(self, key: Key) -> Event:
        """Draw the next event: its time, and then which it is.

        Args:
            key: Consumed.

        Returns:
            An event, or `reaction = -1` and the time to the end.
        """
        key_wait, key_reaction = jax.random.split(key)
        total = self._total()
        wait = exponential(key_wait, (), self.rates.dtype) / jnp.where(total == 0, 1, total)
        wait = jnp.where(total == 0, jnp.inf, wait)
        fires = wait < self.remaining
        reaction = Categorical(jnp.log(self.rates)).sample(key_reaction)
        return Event(jnp.where(fires | jnp.isnan(wait), wait, self.remaining), jnp.where(fires, reaction, -1))

    def _total(self) -> jax.Array:
        legal = jnp.all((self.rates >= 0) & jnp.isfinite(self.rates))
        return nan_unless(legal, jnp.sum(self.rates))

    def _factors(self, action: Event) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Rate of what happened (1 for nothing), total rate, for how long it acted, and whether all that is possible."""
        wait, reaction = summable(action.wait, "wait").astype(self.rates.dtype), integers(action.reaction, "reaction")
        number = self.rates.shape[0]
        fires = reaction >= 0
        rate = jnp.where(fires, self.rates[jnp.clip(reaction, 0, number - 1)], 1)
        event = (reaction < number) & (wait >= 0) & (wait < self.remaining)
        return rate, self._total(), jnp.where(fires, wait, self.remaining), jnp.where(fires, event, reaction == -1)


@pytree(static=("reactants",))
class MassAction:
    """a_r = k_r Π_s binomial(x_s, n_rs), with `params` the logarithms log k_r, shape `(R,)`.

    The binomials count the distinct combinations of reactant molecules (Gillespie 1977, section II.B).

    Attributes:
        reactants: n_rs, molecules of species s that reaction r takes, `(R, species)` whole numbers.

    Raises:
        ValueError: `reactants` are no whole numbers, or negative.
    """

    reactants: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "reactants", _matrix("MassAction.reactants", self.reactants))
        check.not_negative(reactants=self.reactants)

    def __call__(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Propensities of all reactions.

        Args:
            params: log k_r, shape `(R,)`.
            x: Counts of the species, shape `(species,)`.

        Returns:
            Shape `(R,)`, in the dtype of `params`.

        Raises:
            ValueError: `params` has another shape.
        """
        params = summable(params, "params")
        check.shape((len(self.reactants),), params=params, hint="the logarithm of one rate constant per reaction")
        x = summable(x, "x").astype(params.dtype)
        return jnp.exp(params) * jnp.stack([_combinations(x, row) for row in self.reactants])


@pytree(static=("stoichiometry", "propensities", "initial", "terminal", "running", "horizon"))
class JumpProcess(Process):
    """A reaction network from `initial` until `t_end`; its return is f(X_t) + ∫ g(X_s) ds from 0 to t, t = `t_end`.

    An environment (`reset`, `step`) whose member `policy` carries all that is random:
    `ld.rollout(params, keys, process.policy, process, horizon=T)`. `T` bounds the number of events and is not part of the model: a
    path that it cuts short never receives its `terminal` reward. `ld.rollout` warns of such paths, and
    `ld.types.batch_info(taus).truncated_fraction` is their fraction; raise `T` until it is 0. The observations are `Population`, the actions `Event`.

    Attributes:
        stoichiometry: Change of the counts by each reaction, `(R, species)` whole numbers.
        propensities: `(params, x) -> (R,)` for floating counts `x`, a `MassAction` or any function; wrap it once.
        initial: Counts at time 0, `(species,)` whole numbers.
        t_end: The time of observation, positive; a pytree leaf.
        terminal: f: from floating counts `(species,)` to a number, paid with the last step; by default the count of species 0.
        running: g: from floating counts to a number, by default 0; paid as g(x) times the wait. Rewards are constants to every estimator.
        horizon: Default number of steps of a rollout: the events of a path, and one step for its end.

    Raises:
        ValueError: Shapes disagree, something is not a whole number, or `t_end` is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> pair = JumpProcess([[-2], [1]], MassAction([[2], [0]]), initial=[10], t_end=1.0)
        >>> taus = ld.rollout(jnp.zeros(2), jax.random.split(jax.random.key(0), 5), pair.policy, pair, horizon=40)
        >>> ld.log_prob(jnp.zeros(2), pair.policy, taus).shape, float(ld.types.batch_info(taus).truncated_fraction)
        ((5,), 0.0)
    """

    stoichiometry: Any
    propensities: Callable[[Any, jax.Array], jax.Array]
    initial: Any
    t_end: Any
    terminal: Callable[[jax.Array], jax.Array] = first_component
    running: Callable[[jax.Array], jax.Array] = no_reward
    horizon: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stoichiometry", _matrix("JumpProcess.stoichiometry", self.stoichiometry))
        object.__setattr__(self, "initial", _matrix("JumpProcess.initial", (self.initial,))[0])
        shape = np.shape(self.stoichiometry)
        reactants = np.asarray(getattr(self.propensities, "reactants", self.stoichiometry))
        check.shape(shape, reactants=reactants, hint="that of stoichiometry, (R, species)")
        check.shape(shape[1:], initial=np.asarray(self.initial), hint="one count per species")
        check.not_negative(initial=self.initial)
        check.positive(finite=True, t_end=self.t_end)

    def first(self) -> Population:
        return Population(jnp.asarray(self.initial, jnp.int32), jnp.asarray(self.t_end, jnp.zeros(()).dtype))

    def transition(self, params: Params, observation: Population) -> NextEvent:
        """What happens next.

        Args:
            params: Parameters of the propensities.
            observation: Counts, and the time to the end.

        Returns:
            The distribution of the next event.

        Raises:
            ValueError: The propensities have another shape; or, where `params` are concrete, a rate in the initial state is
                negative, infinite or NaN. Where they are not, log-probabilities and rewards become NaN.
        """
        self.check_params(params)
        counts, remaining = observation
        rates = self._rates(params, counts.astype(remaining.dtype))
        return NextEvent(rates, remaining.astype(rates.dtype))

    def advance(self, state: Population, action: Event) -> tuple[Population, jax.Array, jax.Array]:
        counts, remaining = state
        ended = action.reaction < 0
        wait, remaining = summable(action.wait, "wait"), summable(remaining, "remaining")
        change = jnp.asarray(self.stoichiometry, jnp.int32)[jnp.maximum(action.reaction, 0)]
        wait = wait.astype(remaining.dtype)
        new = Population(counts + jnp.where(ended, 0, change), jnp.where(ended, 0, remaining - wait))
        x, following = counts.astype(remaining.dtype), new.counts.astype(remaining.dtype)
        paid = jnp.where(ended, summable(self.terminal(following), "terminal"), 0)
        reward = paid + summable(self.running(x), "running") * wait
        return new, jnp.where(jnp.isnan(wait), jnp.nan, reward), ended

    def check_params(self, params: Params) -> None:
        if not check.is_traced(*jax.tree.leaves(params)):
            with jax.ensure_compile_time_eval():
                start = self._rates(params, jnp.asarray(self.initial, jnp.zeros(()).dtype))
            hint = f"in the initial state {self.initial}; parametrize rate constants by their logarithms"
            check.between(0, math.inf, open_right=True, propensities=start, hint=hint)

    def _rates(self, params: Params, x: jax.Array) -> jax.Array:
        rates = summable(self.propensities(params, x), "propensities")
        check.shape((len(self.stoichiometry),), propensities=rates, hint="one rate per reaction")
        return rates


def birth_death(initial: int = 0, t_end: float = 1.0, **options: Any) -> JumpProcess:
    """Immigration and death: ∅ → X at rate λ, X → ∅ at rate μ x; `params` = (log λ, log μ).

    The births do not depend on the population. Its mean is `birth_death_mean`; at time t the population is the sum of a
    Binomial(n_0, exp(-μ t)) and an independent Poisson(λ (1 - exp(-μ t)) / μ) number.

    Args:
        initial: n_0.
        t_end: Time of observation.
        **options: `terminal`, `running`, `horizon` of `JumpProcess`.

    Returns:
        A `JumpProcess` of one species and two reactions.

    Raises:
        ValueError: `initial` is negative, or `t_end` is not positive.
    """
    return JumpProcess(((1,), (-1,)), MassAction(((0,), (1,))), (initial,), t_end, **options)


def birth_death_mean(params: jax.Array, process: JumpProcess) -> jax.Array:
    """Mean of a `birth_death` process at its `t_end`: m(t) = n_0 exp(-μ t) + λ (1 - exp(-μ t)) / μ; n_0 + λ t where μ = 0.

    Args:
        params: (log λ, log μ), shape `(2,)`; `-inf` for no births, or no deaths.
        process: From `birth_death`.

    Returns:
        Shape `()`.

    Gradients: flow through `params` and `t_end`.
    """
    params = summable(params, "params")
    births, d = jnp.exp(params) * jnp.asarray(process.t_end, params.dtype)  # λ t, μ t
    small, large = jnp.where(d < 1, d, 0), jnp.where(d < 1, 1, d)
    # (1 - exp(-d)) / d by its series below 1: derivatives of the quotient lose their digits there
    series = jnp.polyval(jnp.array([1 / math.factorial(k) for k in range(20, 0, -1)], d.dtype), -small)
    return process.initial[0] * jnp.exp(-d) + births * jnp.where(d < 1, series, -jnp.expm1(-large) / large)


def schlogl(initial: int = 25, t_end: float = 1.0, **options: Any) -> JumpProcess:
    """Schlogl's bistable network: 2X → 3X, 3X → 2X, ∅ → X, X → ∅; `params`: four log rate constants.

    Propensities k_1 x (x - 1) / 2, k_2 x (x - 1) (x - 2) / 6, k_3, k_4 x, the two reservoirs being part of k_1 and k_3. The
    customary constants are `log([0.03, 1e-4, 200, 3.5])` from x = 250; a volume smaller by `v` has
    `log([0.03 * v, 1e-4 * v**2, 200 / v, 3.5])` from x = 250 / v (`v = 10` for the default `initial`), with the same two stable
    concentrations and faster switching.

    Args:
        initial: Count at time 0.
        t_end: Time of observation.
        **options: `terminal`, `running`, `horizon` of `JumpProcess`.

    Returns:
        A `JumpProcess` of one species and four reactions.

    Raises:
        ValueError: `initial` is negative, or `t_end` is not positive.

    References:
        Schlogl (1972), Z. Phys. 253, 147-161; constants as in Gillespie (1992), Markov Processes, section 6.4.
    """
    return JumpProcess(((1,), (-1,), (1,), (-1,)), MassAction(((2,), (3,), (0,), (1,))), (initial,), t_end, **options)


class MasterEquationValue(NamedTuple):
    """What `master_equation_value` returns.

    Attributes:
        value: The expected return.
        lost: The probability of having left the truncated state space by the end.
    """

    value: jax.Array
    lost: jax.Array


def master_equation_value(params: Params, process: JumpProcess, *, max_counts: Sequence[int]) -> MasterEquationValue:
    """E[f(X_t) + ∫ g(X_s) ds] exactly, by the chemical master equation on the counts 0, ..., `max_counts`.

    The backward equation dv/dt = Q v + g, v(0) = f, is solved by one matrix exponential, that of Q t with g as an additional
    column. Paths that leave the box are lost, with all that they would have earned; where f, g ≥ 0 the value is a lower
    bound. Dense: `prod(max_counts + 1)` states, a few hundred. Use float64.

    Args:
        params: Parameters of the propensities.
        process: Its `terminal` and `running` functions take one state.
        max_counts: The largest count kept of each species, `(species,)`.

    Returns:
        `MasterEquationValue`, scalars.

    Raises:
        ValueError: `max_counts` does not contain the initial state; the propensities have another shape.

    Gradients: flow through `params` and `t_end`, at any order.

    References:
        Munsky & Khammash (2006), J. Chem. Phys. 124, 044104 (finite state projection, whose error is `lost`).
    """
    highest = np.array([check.whole(at_least=0, **{f"max_counts[{i}]": n}) for i, n in enumerate(max_counts)])
    check.shape((len(process.initial),), max_counts=highest, hint="one count per species")
    check.not_negative(**{"max_counts - initial counts": highest - process.initial})
    shape = tuple(int(n) + 1 for n in highest)
    states = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=1)
    x = jnp.asarray(states, jnp.zeros(()).dtype)
    rates = jax.vmap(process._rates, (None, 0))(params, x)  # (S, R)
    f, g = (summable(jax.vmap(reward)(x)).astype(rates.dtype) for reward in (process.terminal, process.running))
    generator = jnp.diag(jnp.append(-jnp.sum(rates, axis=1), 0)).at[:-1, -1].set(g)
    for r, change in enumerate(process.stoichiometry):
        target = states + np.asarray(change)
        (source,) = np.nonzero(np.all((target >= 0) & (target <= highest), axis=1))
        generator = generator.at[source, np.ravel_multi_index(tuple(target[source].T), shape)].add(rates[source, r])
    start = np.ravel_multi_index(process.initial, shape)
    row = jax.scipy.linalg.expm(generator * jnp.asarray(process.t_end, rates.dtype))[start]
    value = jnp.dot(row[:-1], f, precision=precision_of()) + row[-1]
    return MasterEquationValue(value, 1 - jnp.sum(row[:-1]))


def _combinations(x: jax.Array, numbers: tuple[int, ...]) -> jax.Array:
    """The product over species of binomials."""
    factors = [jnp.maximum(x[s] - i, 0) / (i + 1) for s, n in enumerate(numbers) for i in range(n)]
    return math.prod(factors, start=jnp.ones((), x.dtype))


def _matrix(name: str, rows: Any) -> tuple[tuple[int, ...], ...]:
    """Nested tuples of whole numbers from anything like a matrix."""
    table = np.asarray(rows)
    if table.ndim != 2 or table.size == 0 or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"{name}: expected whole numbers, (R, species), received {rows!r}.")
    return tuple(tuple(int(n) for n in row) for row in table)
