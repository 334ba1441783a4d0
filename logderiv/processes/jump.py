r"""Chemical jump processes: Gillespie's direct method in a fixed time, as an environment and a policy.

A network of `R` reactions changes the counts `x` of its species by the rows of a stoichiometric matrix. In state `x` reaction `r`
fires at rate $a_r(\theta, x)$, its propensity; $a_0 = \sum_r a_r$. One action is one event, `(wait, reaction)`: after an exponential
waiting time with rate $a_0$, reaction `r` with probability $a_r / a_0$. An event that would fall behind the end of the observation,
`remaining` from now, is not seen; what is seen is that nothing happened, `reaction = -1`, and the path ends. So one factor is

$$p(\mathrm{wait}, r) = a_r\, e^{-a_0\, \mathrm{wait}} \;\text{for}\; \mathrm{wait} < \mathrm{remaining}, \qquad p(-1) = e^{-a_0\, \mathrm{remaining}},$$

a density and a probability side by side. The last one is the survival factor: it depends on $\theta$, and a score without it is
biased. Summed over a path, $\partial \log P / \partial \log k_r = N_r - \int_0^{t} a_r(x_s)\, ds$ for a rate constant $k_r$ of mass action: events minus
expected events.

References:
    Gillespie (1977), J. Phys. Chem. 81, 2340-2361, the direct method; Glynn (1990), Commun. ACM 33, 75-84, and Plyasunov & Arkin (2007),
    J. Comput. Phys. 221, 724-738, for the score.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from logderiv._core.arrays import is_traced, register_dataclass
from logderiv.types import Step, Trajectory

Matrix = tuple[tuple[int, ...], ...]


class Event(NamedTuple):
    """One action: `reaction` fires after `wait`. With `reaction = -1` nothing more happens, and `wait` is the time to the end."""

    wait: jax.Array
    reaction: jax.Array


class Population(NamedTuple):
    """One observation: counts of the species, shape `(species,)`, int32, and the time to the end."""

    counts: jax.Array
    remaining: jax.Array


@dataclasses.dataclass(frozen=True)
class NextEvent:
    r"""The next event of a jump process, or that there is none before the end. See the module for its density.

    A reaction of rate 0 has log-probability `-inf` and leaves the gradients finite; if all rates are 0, nothing happens, with
    probability 1. A rate that is negative, infinite or NaN makes samples and log-probabilities NaN.

    Attributes:
        rates: Propensities in the present state, shape `(R,)`.
        remaining: Time to the end, shape `()`.
    """

    rates: jax.Array
    remaining: jax.Array

    def log_prob(self, action: Event) -> jax.Array:
        """Log-density of an event, or log-probability of none; `-inf` outside the support."""
        rate, total, duration, inside = self._factors(action)
        positive = rate > 0
        logs = jnp.log(jnp.where(positive, rate, 1)) - total * duration
        return jnp.where(jnp.isnan(total) | (inside & positive), logs, -jnp.inf)

    def prob(self, action: Event) -> jax.Array:
        """The density of an event, or the probability of none; 0 outside the support."""
        rate, total, duration, inside = self._factors(action)
        return jnp.where(jnp.isnan(total) | inside, rate * jnp.exp(-total * duration), 0)

    def sample(self, key: jax.Array) -> Event:
        """The next event; `key` is consumed."""
        key_wait, key_reaction = jax.random.split(key)
        total = self._total()
        never = total == 0
        unit = jax.random.exponential(key_wait, dtype=self.rates.dtype)
        wait = jnp.where(never, jnp.inf, unit / jnp.where(never, 1, total))
        fires = wait < self.remaining
        reaction = jax.random.categorical(key_reaction, jnp.log(self.rates)).astype(jnp.int32)
        return Event(jnp.where(fires | jnp.isnan(wait), wait, self.remaining), jnp.where(fires, reaction, -1))

    def _total(self) -> jax.Array:
        legal = jnp.all((self.rates >= 0) & jnp.isfinite(self.rates))
        return jnp.where(legal, jnp.sum(self.rates), jnp.nan)

    def _factors(self, action: Event) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Rate of what happened (1 for nothing), total rate, for how long it acted, and whether all that is possible."""
        wait, reaction = jnp.asarray(action.wait).astype(self.rates.dtype), jnp.asarray(action.reaction)
        number = self.rates.shape[0]
        fires = reaction >= 0
        rate = jnp.where(fires, self.rates[jnp.clip(reaction, 0, number - 1)], 1)
        event = (reaction < number) & (wait >= 0) & (wait < self.remaining)
        return rate, self._total(), jnp.where(fires, wait, self.remaining), jnp.where(fires, event, reaction == -1)


register_dataclass(NextEvent, ("rates", "remaining"))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MassAction:
    r"""$a_r = k_r \prod_s \binom{x_s}{n_{rs}}$ with `params` the logarithms $\log k_r$, shape `(R,)`.

    The binomials count the distinct combinations of reactant molecules (Gillespie 1977, section II.B).

    Attributes:
        reactants: $n_{rs}$, molecules of species `s` that reaction `r` takes, `(R, species)` whole numbers.
    """

    reactants: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "reactants", _matrix("MassAction.reactants", self.reactants))
        if min(min(row) for row in self.reactants) < 0:
            raise ValueError(f"MassAction.reactants: expected numbers of molecules >= 0, received {self.reactants}.")

    def __call__(self, params: jax.Array, x: jax.Array) -> jax.Array:
        """Propensities, shape `(R,)`."""
        if jnp.shape(params) != (len(self.reactants),):
            raise ValueError(
                f"params: expected the logarithm of one rate constant per reaction, shape ({len(self.reactants)},), "
                f"received {jnp.shape(params)}."
            )
        x = x.astype(params.dtype)
        return jnp.exp(params) * jnp.stack([_combinations(x, row) for row in self.reactants])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class JumpPolicy:
    """The random choices of a `JumpProcess`: from its propensities in a `Population` to the `NextEvent`.

    Attributes:
        propensities: `(params, x) -> (R,)`.
        num_reactions: `R`.
        initial: Where concrete parameters are checked outside `jax.jit`.
    """

    propensities: Callable[[Any, jax.Array], jax.Array]
    num_reactions: int
    initial: tuple[int, ...]

    initial_carry = None
    log_factors = None

    def apply(self, params: Any, observation: Population) -> NextEvent:
        """What happens next.

        Raises:
            ValueError: The propensities have another shape; or, where `params` are concrete, a rate in the initial state is
                negative, infinite or NaN. Where they are not, log-probabilities and rewards become NaN.
        """
        self._check_start(params)
        counts, remaining = observation
        rates = self._rates(params, counts.astype(remaining.dtype))
        return NextEvent(rates, remaining.astype(rates.dtype))

    def _rates(self, params: Any, x: jax.Array) -> jax.Array:
        rates = self.propensities(params, x)
        if jnp.shape(rates) != (self.num_reactions,):
            raise ValueError(
                f"propensities: expected one rate per reaction, shape ({self.num_reactions},), received {jnp.shape(rates)}."
            )
        return rates

    def _check_start(self, params: Any) -> None:
        if is_traced(*jax.tree.leaves(params)):
            return
        with jax.ensure_compile_time_eval():
            rates = self._rates(params, jnp.asarray(self.initial, jnp.zeros(()).dtype))
        if not is_traced(rates) and not np.all((np.asarray(rates) >= 0) & np.isfinite(rates)):
            raise ValueError(
                f"propensities: expected rates that are finite and >= 0, received {np.asarray(rates)} in the initial state "
                f"{self.initial}; parametrize rate constants by their logarithms."
            )


def first_species(x: jax.Array) -> jax.Array:
    """The count of species 0: the default reward at the end."""
    return x[0]


@dataclasses.dataclass(frozen=True)
class JumpProcess:
    r"""A reaction network from `initial` until `t_end`; its return is $f(X_{t}) + \int_0^{t} g(X_s)\, ds$, `t = t_end`.

    An environment (`reset`, `step`) whose member `policy` carries all that is random:
    `ld.rollout(params, keys, process.policy, process, horizon=T)`. `T` bounds the number of events and is not part of the model: a
    path that it cuts short never receives its `terminal` reward. `ld.batch_info(taus).truncated_fraction` is the fraction of such
    paths; raise `T` until it is 0. The observations are `Population`, the actions `Event`.

    Attributes:
        stoichiometry: Change of the counts by each reaction, `(R, species)` whole numbers.
        propensities: `(params, x) -> (R,)` for floating counts `x`, a `MassAction` or any function; wrap it once.
        initial: Counts at time 0, `(species,)` whole numbers.
        t_end: The time of observation, positive; a pytree leaf.
        terminal: $f$: from floating counts `(species,)` to a number, paid with the last step.
        running: $g$, or `None`; paid as $g(x)$ times the wait. Rewards are constants to every estimator.
        horizon: Default number of steps of a rollout: the events of a path, and one step for its end.

    Raises:
        ValueError: Shapes disagree, something is not a whole number, or `t_end` is not positive.

    Example:
        >>> import jax, jax.numpy as jnp, logderiv as ld
        >>> pair = JumpProcess([[-2], [1]], MassAction([[2], [0]]), initial=[10], t_end=1.0)
        >>> taus = ld.rollout(jnp.zeros(2), jax.random.split(jax.random.key(0), 5), pair.policy, pair, horizon=40)
        >>> ld.log_prob(jnp.zeros(2), pair.policy, taus).shape, float(ld.batch_info(taus).truncated_fraction)
        ((5,), 0.0)
    """

    stoichiometry: Any
    propensities: Callable[[Any, jax.Array], jax.Array]
    initial: Any
    t_end: Any
    terminal: Callable[[jax.Array], jax.Array] = first_species
    running: Callable[[jax.Array], jax.Array] | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stoichiometry", _matrix("JumpProcess.stoichiometry", self.stoichiometry))
        object.__setattr__(self, "initial", _matrix("JumpProcess.initial", (self.initial,))[0])
        reactants = getattr(self.propensities, "reactants", self.stoichiometry)
        shape = len(self.stoichiometry), len(self.stoichiometry[0])
        if (len(reactants), len(reactants[0]), len(self.initial)) != (*shape, shape[1]) or min(self.initial) < 0:
            raise ValueError(
                f"JumpProcess: expected reactants of the shape of stoichiometry, (R, species) = {shape}, and initial counts >= 0 "
                f"of shape ({shape[1]},), received {(len(reactants), len(reactants[0]))} and {self.initial}."
            )
        if not is_traced(self.t_end) and not 0 < float(self.t_end) < math.inf:
            raise ValueError(f"JumpProcess.t_end: expected a positive time, received {self.t_end}.")

    @property
    def policy(self) -> JumpPolicy:
        """The random choices."""
        return JumpPolicy(self.propensities, len(self.stoichiometry), self.initial)

    def reset(self, key: jax.Array, params: Any = None) -> tuple[Population, Population]:
        """The initial counts; `key` is not used."""
        del key, params
        start = Population(jnp.asarray(self.initial, jnp.int32), jnp.asarray(self.t_end, jnp.zeros(()).dtype))
        return start, start

    def step(self, key: jax.Array, state: Population, action: Event, params: Any = None) -> Step:
        """The counts after one event, or the end; `key` is not used, all that is random is in the action."""
        del key, params
        counts, remaining = state
        ended = action.reaction < 0
        change = jnp.asarray(self.stoichiometry, jnp.int32)[jnp.maximum(action.reaction, 0)]
        wait = action.wait.astype(remaining.dtype)
        new = Population(counts + jnp.where(ended, 0, change), jnp.where(ended, 0, remaining - wait))
        reward = jnp.where(ended, self.terminal(new.counts.astype(remaining.dtype)), 0)
        if self.running is not None:
            reward = reward + self.running(counts.astype(remaining.dtype)) * wait
        return Step(new, new, jnp.where(jnp.isnan(wait), jnp.nan, reward), ended, jnp.zeros((), bool))

    def log_initial(self, trajectory: Trajectory) -> jax.Array:
        """0: the start is fixed."""
        return jnp.zeros((), trajectory.rewards.dtype)

    def log_factors(self, trajectory: Trajectory) -> jax.Array:
        """0, shape `(T,)`: given the events, the path is fixed."""
        return jnp.zeros_like(trajectory.rewards)


register_dataclass(
    JumpProcess, ("t_end",), ("stoichiometry", "propensities", "initial", "terminal", "running", "horizon")
)


def birth_death(initial: int = 0, t_end: float = 1.0, **options: Any) -> JumpProcess:
    r"""Immigration and death: $\emptyset \to X$ at rate $\lambda$, $X \to \emptyset$ at rate $\mu x$; `params` $= (\log\lambda, \log\mu)$.

    The births do not depend on the population. Its mean is `birth_death_mean`; at time t the population is the sum of a
    Binomial($n_0, e^{-\mu t}$) and an independent Poisson($\tfrac\lambda\mu (1 - e^{-\mu t})$) number.

    Args:
        initial: $n_0$.
        t_end: Time of observation.
        **options: `terminal`, `running`, `horizon` of `JumpProcess`.
    """
    return JumpProcess(((1,), (-1,)), MassAction(((0,), (1,))), (initial,), t_end, **options)


def birth_death_mean(params: jax.Array, process: JumpProcess) -> jax.Array:
    r"""$m(t) = n_0 e^{-\mu t} + \tfrac\lambda\mu (1 - e^{-\mu t})$ of a `birth_death` process at its `t_end`; differentiable in `params`."""
    birth, death = jnp.exp(params)
    decay = death * jnp.asarray(process.t_end, params.dtype)
    return process.initial[0] * jnp.exp(-decay) - birth / death * jnp.expm1(-decay)


def schlogl(initial: int = 25, t_end: float = 1.0, **options: Any) -> JumpProcess:
    r"""Schlogl's bistable network: $2X \to 3X$, $3X \to 2X$, $\emptyset \to X$, $X \to \emptyset$; `params`: four log rate constants.

    Propensities $k_1 \binom{x}{2}$, $k_2 \binom{x}{3}$, $k_3$, $k_4 x$, the two reservoirs being part of $k_1$ and $k_3$. The customary constants are
    `log([0.03, 1e-4, 200, 3.5])` from $x = 250$; a volume smaller by `v` has `log([0.03 * v, 1e-4 * v**2, 200 / v, 3.5])` from
    $x = 250 / v$ (`v = 10` for the default `initial`), with the same two stable concentrations and faster switching.

    Args:
        initial: Count at time 0.
        t_end: Time of observation.
        **options: `terminal`, `running`, `horizon` of `JumpProcess`.

    References:
        Schlogl (1972), Z. Phys. 253, 147-161; constants as in Gillespie (1992), Markov Processes, section 6.4.
    """
    return JumpProcess(((1,), (-1,), (1,), (-1,)), MassAction(((2,), (3,), (0,), (1,))), (initial,), t_end, **options)


class MasterEquationValue(NamedTuple):
    """The expected return of a jump process, and the probability of having left the truncated state space by the end."""

    value: jax.Array
    lost: jax.Array


def master_equation_value(params: Any, process: JumpProcess, *, max_counts: Sequence[int]) -> MasterEquationValue:
    r"""$\mathbb{E}[f(X_t) + \int_0^t g(X_s) ds]$ exactly, by the chemical master equation on the counts $0, \ldots,$ `max_counts`.

    The backward equation $\dot v = Q v + g$, $v(0) = f$, is solved by one matrix exponential, that of $Q t$ with $g$ as an additional
    column. Paths that leave the box are lost, with all that they would have earned; where $f, g \ge 0$ the value is a lower
    bound. Dense: `prod(max_counts + 1)` states, a few hundred. Use float64.

    Args:
        params: Parameters of the propensities.
        process: Its `terminal` and `running` functions take one state.
        max_counts: The largest count kept of each species, `(species,)`.

    Returns:
        `MasterEquationValue`, scalars; differentiable in `params` at any order.

    Raises:
        ValueError: `max_counts` does not contain the initial state.

    References:
        Munsky & Khammash (2006), J. Chem. Phys. 124, 044104 (finite state projection, whose error is `lost`).
    """
    highest = np.asarray(max_counts)
    if highest.shape != (len(process.initial),) or np.any(highest < process.initial):
        raise ValueError(
            f"max_counts: expected one number per species, at least the initial counts {process.initial}, received {max_counts}."
        )
    shape = tuple(int(n) + 1 for n in highest)
    states = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=1)
    x = jnp.asarray(states, jnp.zeros(()).dtype)
    rates = jax.vmap(process.policy._rates, (None, 0))(params, x)  # (S, R)
    f = jax.vmap(process.terminal)(x).astype(rates.dtype)
    g = jnp.zeros_like(f) if process.running is None else jax.vmap(process.running)(x).astype(rates.dtype)
    generator = jnp.zeros((len(states) + 1, len(states) + 1), rates.dtype)
    generator = generator.at[np.arange(len(states)), np.arange(len(states))].set(-jnp.sum(rates, axis=1))
    for r, change in enumerate(process.stoichiometry):
        target = states + np.asarray(change)
        (source,) = np.nonzero(np.all((target >= 0) & (target <= highest), axis=1))
        generator = generator.at[source, np.ravel_multi_index(tuple(target[source].T), shape)].add(rates[source, r])
    generator = generator.at[:-1, -1].set(g)
    start = np.ravel_multi_index(process.initial, shape)
    row = jax.scipy.linalg.expm(generator * jnp.asarray(process.t_end, rates.dtype))[start]
    return MasterEquationValue(row[:-1] @ f + row[-1], 1 - jnp.sum(row[:-1]))


def _combinations(x: jax.Array, numbers: tuple[int, ...]) -> jax.Array:
    """The product over species of binomials."""
    factors = [jnp.maximum(x[s] - i, 0) / (i + 1) for s, n in enumerate(numbers) for i in range(n)]
    return math.prod(factors, start=jnp.ones((), x.dtype))


def _matrix(name: str, rows: Any) -> Matrix:
    """Nested tuples of whole numbers from anything like a matrix."""
    table = np.asarray(rows)
    if table.ndim != 2 or table.size == 0 or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"{name}: expected whole numbers, (R, species), received {rows!r}.")
    return tuple(tuple(int(n) for n in row) for row in table)
