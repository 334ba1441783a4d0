"""Jump processes: the density of an event by hand, the score as events minus expected events, moments in closed form."""

import dataclasses
import math
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import jump_processes as benchmark
from logderiv.processes import Event, JumpProcess, MassAction, NextEvent, birth_death, master_equation_value, schlogl
from tests.worlds import rollout

RATES = jnp.log(jnp.array([2.0, 0.5]))  # births, deaths
# A + A -> B, B -> A + A, A -> nothing: two species, a reactant twice
DIMERS = JumpProcess(
    ((-2, 1), (2, -1), (-1, 0)), MassAction(((2, 0), (0, 1), (1, 0))), (7, 1), 0.6, running=lambda x: x[0] + 2 * x[1]
)
DIMER_RATES = jnp.log(jnp.array([0.3, 1.2, 0.7]))


@dataclasses.dataclass(frozen=True)
class NoSurvival(NextEvent):
    """The mistake of this trade: the wait behind the last event is forgotten."""

    def log_prob(self, action: Event) -> jax.Array:
        return jnp.where(action.reaction < 0, 0.0, super().log_prob(action))


NO_SURVIVAL = ld.FunctionPolicy(lambda p, o: NoSurvival(*dataclasses.astuple(birth_death().policy.apply(p, o))))


def draw(params, process, number, *, horizon):
    return rollout(params, jax.random.split(jax.random.key(0), number), process.policy, process, horizon=horizon)


def event(wait, reaction):
    return Event(jnp.asarray(wait), jnp.asarray(reaction, jnp.int32))


def test_density_of_one_event_by_hand():
    """Rates 2, 0, 1 and half a unit of time left."""
    next_event = NextEvent(jnp.array([2.0, 0.0, 1.0]), jnp.array(0.5))
    expected = {
        (0.2, 0): math.log(2) - 0.6,
        (0.2, 2): -0.6,
        (0.2, 1): -math.inf,  # rate 0
        (0.5, -1): -1.5,  # survival
        (0.5, 0): -math.inf,  # behind the end
        (-0.1, 0): -math.inf,
        (0.2, 3): -math.inf,
        (0.2, -2): -math.inf,
    }
    actions = event(*map(np.array, zip(*expected, strict=True)))
    values = np.array(list(expected.values()))
    waits = np.arange(0.5, 2000) * (0.5 / 2000)

    @jax.jit
    def run(actions):
        logs = lambda rates: jax.vmap(NextEvent(rates, next_event.remaining).log_prob)(actions)  # noqa: E731
        densities = jax.vmap(lambda w: next_event.prob(event(w, 0)) + next_event.prob(event(w, 2)))(waits)
        total = densities.mean() * 0.5 + next_event.prob(event(0.5, -1))
        return logs(next_event.rates), jax.vmap(next_event.prob)(actions), jax.jacrev(logs)(next_event.rates), total

    logs, probs, slopes, total = run(actions)
    np.testing.assert_allclose(logs, values, rtol=0, atol=1e-15)
    np.testing.assert_allclose(probs, np.exp(values), rtol=0, atol=1e-15)
    np.testing.assert_allclose(slopes[0], [0.5 - 0.2, -0.2, -0.2], atol=1e-15)
    np.testing.assert_allclose(slopes[3], [-0.5, -0.5, -0.5], atol=1e-15)
    assert np.isfinite(slopes[2]).all()  # at a probability of 0
    assert total == pytest.approx(1, abs=1e-7)  # of an event before the end, and of none


def test_nothing_happens_where_no_reaction_can():
    absorbed = NextEvent(jnp.zeros(2), jnp.array(3.0))
    action = absorbed.sample(jax.random.key(0))
    assert (action.wait, action.reaction) == (3.0, -1)
    assert (absorbed.log_prob(action), absorbed.prob(action)) == (0, 1)
    assert absorbed.log_prob(event(1.0, 0)) == -math.inf
    # pure death: every path dies out and then waits for the end, at no cost
    process = JumpProcess([[-1]], MassAction([[1]]), [2], 50.0)
    taus = draw(jnp.zeros(1), process, 8, horizon=4)
    assert taus.valid.sum(1).tolist() == [3] * 8
    assert (taus.behavior_log_probs[:, 2] == 0).all()
    assert np.isfinite(jax.jit(jax.grad(lambda p: ld.log_prob(p, process.policy, taus).sum()))(jnp.zeros(1))).all()


def test_score_is_events_minus_expected_events():
    """d log P / d log k_r = N_r - int a_r ds, its derivative -int a_r ds, log P = sum log a_r - int a_0 ds: by NumPy from the paths."""
    taus = draw(DIMER_RATES, DIMERS, 5, horizon=24)
    assert ld.types.batch_info(taus).truncated_fraction == 0
    number, exposure, logs, integral = (np.zeros(shape) for shape in ((5, 3), (5, 3), 5, 5))
    k = np.exp(DIMER_RATES)
    for n, t in zip(*np.nonzero(np.asarray(taus.valid)), strict=True):
        a, b = (int(x) for x in taus.observations.counts[n, t])
        wait, reaction = float(taus.actions.wait[n, t]), int(taus.actions.reaction[n, t])
        rates = k * [a * (a - 1) / 2, b, a]
        exposure[n] += rates * wait
        integral[n] += (a + 2 * b) * wait
        if reaction >= 0:
            number[n, reaction] += 1
            logs[n] += math.log(rates[reaction])
    assert number.sum(0).min() >= 3  # every reaction happened

    def of(params, tau):
        return ld.log_prob(params, DIMERS.policy, tau, environment=DIMERS)

    @jax.jit
    def ours(params):
        return [jax.vmap(f, (None, 0))(params, taus) for f in (of, jax.grad(of), jax.hessian(of))]

    log_prob, score, hessian = ours(DIMER_RATES)
    np.testing.assert_allclose(log_prob, logs - exposure.sum(1), rtol=1e-12)
    np.testing.assert_allclose(score, number - exposure, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(hessian, -exposure[:, :, None] * np.eye(3), rtol=1e-12, atol=1e-12)
    final = np.asarray(taus.final_observation.counts)
    np.testing.assert_allclose(taus.rewards.sum(1), final[:, 0] + integral, rtol=1e-12)
    np.testing.assert_array_equal(final, [7, 1] + number @ np.asarray(DIMERS.stoichiometry))
    np.testing.assert_allclose(jnp.where(taus.valid, taus.actions.wait, 0).sum(1), 0.6, rtol=1e-12)


def test_score_of_a_path_has_mean_zero_and_without_survival_it_has_not():
    process = birth_death(2, 0.5)

    def sample(params, key):
        return ld.rollout(params, key, process.policy, process, horizon=12)

    def check(policy):
        return ld.testing.check_score(
            RATES, jax.random.key(3), lambda p, tau: ld.log_prob(p, policy, tau), sample, num_samples=10_000
        )

    assert check(process.policy).passed
    with pytest.raises(AssertionError, match=r"E\[score\] is not 0"):
        check(NO_SURVIVAL)


@pytest.mark.slow
def test_birth_death_sensitivities_at_100_000_paths():
    """The mean at t = 2 and its two sensitivities by leave-one-out, within 4 standard errors of the closed form; then other rates by weights."""
    process = birth_death(3, 2.0)
    estimator = ld.ScoreFunction(ld.advantages.Return(ld.baselines.LeaveOneOut()))
    taus = draw(RATES, process, 100_000, horizon=32)
    assert ld.types.batch_info(taus).truncated_fraction == 0
    other = RATES + jnp.array([0.1, -0.1])

    @jax.jit
    def run(taus):
        def gradients(policy, number):
            first = jax.tree.map(lambda x: x[:number], taus)
            return ld.diagnostics.per_trajectory_gradients(RATES, policy, first, estimator, block_size=1000)

        weights = jnp.exp(ld.importance.log_ratios(other, process.policy, taus).sum(1))
        exact = jax.grad(ld.processes.birth_death_mean)(RATES, process)
        return gradients(process.policy, 100_000), gradients(NO_SURVIVAL, 10_000), exact, weights

    right, wrong, exact, weights = run(taus)
    np.testing.assert_allclose(exact, benchmark.closed_form(), rtol=1e-12)
    ld.testing.assert_unbiased(right, exact, resolution=0.1, k=4)
    with pytest.raises(AssertionError, match="BIASED"):
        ld.testing.assert_unbiased(wrong, exact, resolution=0.4, k=4)
    values = weights * taus.rewards.sum(1)
    mean = ld.processes.birth_death_mean(other, process)
    assert abs(values.mean() - mean) < 4 * values.std() / 316
    assert abs(taus.rewards.sum(1).mean() - mean) > 4 * values.std() / 316  # what the weights are for


def test_a_cut_path_is_reported_and_not_paid():
    taus = draw(RATES, birth_death(3, 2.0), 200, horizon=8)
    info = ld.types.batch_info(taus)
    cut = np.asarray(taus.valid.all(1) & (taus.discounts[:, -1] == 1))
    assert 0 < info.truncated_fraction == pytest.approx(cut.mean())
    assert (taus.rewards.sum(1)[cut] == 0).all()
    assert (taus.final_observation.remaining[cut] > 0).all()
    assert (taus.final_observation.remaining[~cut] == 0).all()


def test_master_equation_against_closed_forms():
    """Mean, variance and time integral of birth and death; a two-species exchange, where the count is binomial; what a small box loses."""
    process = birth_death(3, 2.0, terminal=lambda x: x[0] ** 2, running=lambda x: x[0])
    decay = math.exp(-1)
    mean = 3 * decay + 4 * (1 - decay)
    variance = 3 * decay * (1 - decay) + 4 * (1 - decay)
    integral = 3 * (1 - decay) / 0.5 + 4 * (2 - (1 - decay) / 0.5)
    exchange = JumpProcess(((-1, 1), (1, -1)), MassAction(((1, 0), (0, 1))), (4, 2), 0.7)

    @jax.jit
    def run(params):
        slope = jax.grad(lambda p: master_equation_value(p, birth_death(3, 2.0), max_counts=[40]).value)(params)
        cases = (process, [40]), (process, [6]), (exchange, [6, 6])
        return slope, [master_equation_value(params, each, max_counts=counts) for each, counts in cases]

    slope, ((value, lost), (_, much), (exchanged, _)) = run(RATES)
    np.testing.assert_allclose(value, variance + mean**2 + integral, rtol=1e-12)
    np.testing.assert_allclose(slope, benchmark.closed_form(), rtol=1e-12)
    assert abs(lost) < 1e-12 < 0.1 < much
    stays, comes = (0.5 + 2 * math.exp(-2.5 * 0.7)) / 2.5, 0.5 * (1 - math.exp(-2.5 * 0.7)) / 2.5
    np.testing.assert_allclose(exchanged, 4 * stays + 2 * comes, rtol=1e-12)


def test_schlogl_rates_by_hand():
    """The customary constants at x = 250: 0.03 * 31125, 1e-4 * 2573000, 200, 3.5 * 250."""
    rates = schlogl().propensities(jnp.log(jnp.array([0.03, 1e-4, 200, 3.5])), jnp.array([250.0]))
    np.testing.assert_allclose(rates, [933.75, 257.3, 200, 875], rtol=1e-12)
    np.testing.assert_array_equal(schlogl().propensities(jnp.zeros(4), jnp.array([1.0])), [0, 0, 1, 1])


def test_times_are_mapped_over():
    @jax.jit
    @jax.vmap
    def means(t):
        return ld.processes.birth_death_mean(RATES, birth_death(3, t))

    np.testing.assert_allclose(means(jnp.array([1e-9, 2.0])), [3, 4 - math.exp(-1)], rtol=1e-8)


def mean_by_fractions(log_death):
    """Mean, gradient and Hessian in (log λ, log μ) with n_0 = 2, λ = 3, t = 1/2; (1 - exp(-d)) / d from 40 terms of its series."""
    d = 0.5 * math.exp(log_death)
    terms = [Fraction(-d) ** k / math.factorial(k + 1) for k in range(40)]
    share, slope, second = (1.5 * float(sum(k**n * term for k, term in enumerate(terms))) for n in range(3))
    stays = 2 * math.exp(-d)
    hessian = [[share, slope], [slope, stays * (d**2 - d) + second]]
    return stays + share, [share, slope - stays * d], hessian


def test_mean_of_birth_and_death_at_any_death_rate():
    """A rate of 0, one that underflows, tiny and large ones; the quotient as it stands is NaN, or loses the digits of its derivatives."""
    logs = jnp.array([-jnp.inf, -800.0, -90.0, -40.0, -5.0, 0.6, 0.7, 2.0])
    process = birth_death(2, 0.5)

    def quotient(params):
        births, d = 0.5 * jnp.exp(params)
        return 2 * jnp.exp(-d) - births / d * jnp.expm1(-d)

    def derivatives(mean, logs):
        params = jnp.stack([jnp.full_like(logs, math.log(3.0)), logs], axis=1)
        return jax.vmap(lambda p: (mean(p), jax.grad(mean)(p), jax.hessian(mean)(p)))(params)

    @jax.jit
    def run():
        mean = partial(ld.processes.birth_death_mean, process=process)
        return derivatives(mean, logs), derivatives(mean, logs.astype(jnp.float32)), derivatives(quotient, logs)

    expected = [np.stack(x) for x in zip(*map(mean_by_fractions, logs.tolist()), strict=True)]
    exact, narrow, twin = run()
    for wide, single, wanted in zip(exact, narrow, expected, strict=True):
        np.testing.assert_allclose(wide, wanted, rtol=1e-13, atol=0)
        np.testing.assert_allclose(single, wanted, rtol=1e-5, atol=1e-38)
    assert np.isnan(twin[0][:2]).all()
    assert (twin[1][2:4, 1] / expected[1][2:4, 1] < 0.8).all()  # what the deaths do to the births is lost


def test_illegal_rates_raise_outside_jit_and_are_nan_inside():
    process = JumpProcess([[-1]], lambda params, x: params * x - 1.0, [3], 1.0)
    keys = iter(jax.random.split(jax.random.key(0), 6))
    with pytest.raises(ValueError, match=r"in \[0, inf\), received \[-2.5\]; in the initial state \(3,\)"):
        ld.rollout(jnp.array([-0.5]), next(keys), process.policy, process, horizon=3)
    with pytest.raises(ValueError, match=r"received \[nan  3\.\]"):
        ld.rollout(jnp.array([jnp.nan, 0.0]), next(keys), birth_death(3).policy, birth_death(3), horizon=3)
    for rates in ([-1.0, 2.0], [jnp.nan, 1.0], [jnp.inf, 1.0]):
        illegal, at = NextEvent(jnp.array(rates), jnp.array(1.0)), event(0.5, 1)
        assert np.isnan([illegal.log_prob(at), illegal.prob(at), illegal.sample(next(keys)).wait]).all()
    # legal at the start, negative after two deaths: the path does not pass for one that ended well
    process = dataclasses.replace(process, t_end=50.0)
    tau = jax.jit(lambda p, key: ld.rollout(p, key, process.policy, process, horizon=6))(jnp.array([0.6]), next(keys))
    assert np.isnan([tau.rewards.sum(), tau.behavior_log_probs.sum()]).all()


def test_error_of_a_method_by_hand():
    """Bias 0.3 of a sensitivity 3, variance 4 at 10 events a sample: after 1000 events sqrt(0.09 + 0.04) / 3."""
    one = np.ones(1)
    method = benchmark.Method(3.3 * one, one, 0.3 * one, 4 * one, 10.0)
    assert method.error(3 * one, 1000) == pytest.approx(math.sqrt(0.13) / 3)


def test_closed_form_sensitivities_of_the_benchmark():
    """E[X_t] = 3 e^(-t/2) + 4 (1 - e^(-t/2)) at t = 2: by log 2 that is 4 (1 - 1/e); by log 1/2 it is -3 / e - 4 (1 - 2/e)."""
    e = math.exp(-1)
    np.testing.assert_allclose(benchmark.closed_form(), [4 * (1 - e), -3 * e - 4 * (1 - 2 * e)], rtol=1e-12)
