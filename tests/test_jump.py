"""Jump processes: the density of an event by hand, the score as events minus expected events, moments in closed form."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import jump_processes as benchmark
from logderiv.processes import Event, JumpProcess, MassAction, NextEvent, birth_death, master_equation_value, schlogl

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


def draw(params, process, number, *, horizon, seed=0):
    keys = jax.random.split(jax.random.key(seed), number)
    return jax.jit(lambda p, k: ld.rollout(p, k, process.policy, process, horizon=horizon))(params, keys)


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
    for (wait, reaction), value in expected.items():
        assert next_event.log_prob(event(wait, reaction)) == pytest.approx(value, abs=1e-15), (wait, reaction)
        assert next_event.prob(event(wait, reaction)) == pytest.approx(math.exp(value), abs=1e-15)

    def slopes(action):
        return jax.grad(lambda rates: NextEvent(rates, jnp.array(0.5)).log_prob(action))(next_event.rates)

    np.testing.assert_allclose(slopes(event(0.2, 0)), [0.5 - 0.2, -0.2, -0.2], atol=1e-15)
    np.testing.assert_allclose(slopes(event(0.5, -1)), [-0.5, -0.5, -0.5], atol=1e-15)
    assert np.isfinite(slopes(event(0.2, 1))).all()  # at a probability of 0
    # the probabilities add up: of an event before the end, and of none
    waits = (np.arange(2000) + 0.5) * (0.5 / 2000)
    densities = jax.vmap(lambda w: next_event.prob(event(w, 0)) + next_event.prob(event(w, 2)))(jnp.asarray(waits))
    assert densities.mean() * 0.5 + next_event.prob(event(0.5, -1)) == pytest.approx(1, abs=1e-7)


def test_nothing_happens_where_no_reaction_can():
    absorbed = NextEvent(jnp.zeros(2), jnp.array(3.0))
    action = absorbed.sample(jax.random.key(0))
    assert (action.wait, action.reaction) == (3.0, -1)
    assert absorbed.log_prob(action) == 0
    assert absorbed.prob(action) == 1
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
    number, exposure, logs, integral = np.zeros((5, 3)), np.zeros((5, 3)), np.zeros(5), np.zeros(5)
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

    @jax.jit
    def ours(params):
        def log_prob(params, tau):
            return ld.log_prob(params, DIMERS.policy, tau, environment=DIMERS)

        return [jax.vmap(f, (None, 0))(params, taus) for f in (log_prob, jax.grad(log_prob), jax.hessian(log_prob))]

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


def test_birth_death_sensitivities_at_100_000_paths():
    """The mean at t = 2 and its two sensitivities by leave-one-out, within 4 standard errors of the closed form; then other rates by weights."""
    process = birth_death(3, 2.0)
    estimator = ld.ScoreFunction(ld.advantages.Return(ld.baselines.LeaveOneOut()))
    taus = draw(RATES, process, 100_000, horizon=32)
    assert ld.types.batch_info(taus).truncated_fraction == 0
    other = RATES + jnp.array([0.1, -0.1])

    @jax.jit
    def run(taus):
        def gradients(policy):
            return ld.diagnostics.per_trajectory_gradients(RATES, policy, taus, estimator, block_size=1000)

        weights = jnp.exp(ld.importance.log_ratios(other, process.policy, taus).sum(1))
        exact = jax.grad(ld.processes.birth_death_mean)(RATES, process)
        return gradients(process.policy), gradients(NO_SURVIVAL), exact, weights

    right, wrong, exact, weights = run(taus)
    births, deaths = math.exp(RATES[0]), math.exp(RATES[1])
    decay, t = math.exp(-deaths * 2), 2
    by_hand = [
        births / deaths * (1 - decay),
        -3 * deaths * t * decay - births / deaths * (1 - decay) + births * t * decay,
    ]
    np.testing.assert_allclose(exact, by_hand, rtol=1e-12)
    ld.testing.assert_unbiased(right, exact, resolution=0.1, k=4)
    with pytest.raises(AssertionError, match="BIASED"):
        ld.testing.assert_unbiased(wrong, exact, resolution=0.1, k=4)
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
        def mean(params):
            return master_equation_value(params, birth_death(3, 2.0), max_counts=[40]).value

        slopes = jax.grad(mean)(params), jax.grad(ld.processes.birth_death_mean)(params, birth_death(3, 2.0))
        return master_equation_value(params, process, max_counts=[40]), slopes

    (value, lost), (slope, exact) = run(RATES)
    np.testing.assert_allclose(value, variance + mean**2 + integral, rtol=1e-12)
    np.testing.assert_allclose(slope, exact, rtol=1e-12)
    assert abs(lost) < 1e-12
    found = jax.jit(lambda p: master_equation_value(p, exchange, max_counts=[6, 6]))(RATES)
    stays, comes = (0.5 + 2 * math.exp(-2.5 * 0.7)) / 2.5, 0.5 * (1 - math.exp(-2.5 * 0.7)) / 2.5
    np.testing.assert_allclose(found.value, 4 * stays + 2 * comes, rtol=1e-12)
    assert jax.jit(lambda p: master_equation_value(p, process, max_counts=[6]).lost)(RATES) > 0.1


def test_schlogl_rates_by_hand():
    """The customary constants at x = 250: 0.03 * 31125, 1e-4 * 2573000, 200, 3.5 * 250."""
    rates = schlogl().propensities(jnp.log(jnp.array([0.03, 1e-4, 200, 3.5])), jnp.array([250.0]))
    np.testing.assert_allclose(rates, [933.75, 257.3, 200, 875], rtol=1e-12)
    np.testing.assert_array_equal(schlogl().propensities(jnp.zeros(4), jnp.array([1.0])), [0, 0, 1, 1])


def test_processes_are_arguments_of_jit_and_vmap_and_narrow_params_stay_narrow():
    @jax.jit
    def means(params, process, times):
        return jax.vmap(
            lambda t: ld.processes.birth_death_mean(params, dataclasses.replace(process, t_end=t)), in_axes=0
        )(times)

    np.testing.assert_allclose(means(RATES, birth_death(3), jnp.array([1e-9, 2.0])), [3, 4 - math.exp(-1)], rtol=1e-8)
    with jax.enable_x64(False):
        narrow, process = RATES.astype(jnp.float32), birth_death(3, 2.0)
        taus = draw(narrow, process, 4, horizon=20)
        score = jax.jit(jax.grad(lambda p: ld.log_prob(p, process.policy, taus).sum()))(narrow)
    assert (taus.rewards.dtype, score.dtype) == (jnp.float32, jnp.float32)
    assert np.isfinite(score).all()
    assert (taus.behavior_log_probs.sum(1) != 0).all()


def linear_rates(params, x):
    """Negative below params / 2."""
    return params * x - 1.0


def test_illegal_rates_raise_outside_jit_and_are_nan_inside():
    process = JumpProcess([[-1]], linear_rates, [3], 1.0)
    keys = iter(jax.random.split(jax.random.key(0), 6))
    with pytest.raises(ValueError, match=r"in \[0, inf\), received \[-2.5\]; in the initial state \(3,\)"):
        ld.rollout(jnp.array([-0.5]), next(keys), process.policy, process, horizon=3)
    with pytest.raises(ValueError, match=r"received \[nan  3\.\]"):
        ld.rollout(jnp.array([jnp.nan, 0.0]), next(keys), birth_death(3).policy, birth_death(3), horizon=3)
    for rates in ([-1.0, 2.0], [jnp.nan, 1.0], [jnp.inf, 1.0]):
        illegal = NextEvent(jnp.array(rates), jnp.array(1.0))
        assert jnp.isnan(illegal.log_prob(event(0.5, 1)))
        assert jnp.isnan(illegal.prob(event(0.5, 1)))
        assert jnp.isnan(illegal.sample(next(keys)).wait)
    # legal at the start, negative after two deaths: the path does not pass for one that ended well
    process = dataclasses.replace(process, t_end=50.0)
    tau = jax.jit(lambda p, key: ld.rollout(p, key, process.policy, process, horizon=6))(jnp.array([0.6]), next(keys))
    assert jnp.isnan(tau.rewards.sum())
    assert jnp.isnan(tau.behavior_log_probs.sum())


def scalar_rates():
    process = JumpProcess([[-1]], lambda p, x: p * x[0], [3], 1.0)
    return ld.rollout(jnp.ones(()), jax.random.key(0), process.policy, process, horizon=3)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("stoichiometry: expected whole numbers", lambda: JumpProcess([[1.5]], MassAction([[1]]), [1], 1.0)),
        (
            r"reactants: expected shape \(2, 1\), received \(1, 1\); that of stoichiometry",
            lambda: JumpProcess([[1], [-1]], MassAction([[1]]), [1], 1.0),
        ),
        ("initial: expected a number >= 0", lambda: birth_death(-1)),
        ("t_end: expected a positive number, received 0", lambda: birth_death(1, 0.0)),
        ("reactants: expected a number >= 0", lambda: MassAction([[-1]])),
        (
            r"params: expected shape \(2,\), received \(3,\); the logarithm of one rate constant per reaction",
            lambda: master_equation_value(jnp.zeros(3), birth_death(), max_counts=[3]),
        ),
        (
            r"max_counts - initial counts: expected a number >= 0, received \[-2\]",
            lambda: master_equation_value(RATES, birth_death(5), max_counts=[3]),
        ),
        (r"propensities: expected shape \(1,\), received \(\); one rate per reaction", scalar_rates),
    ],
)
def test_bad_input_is_named(match, call):
    with pytest.raises(ValueError, match=match):
        call()


def test_error_of_a_method_by_hand():
    """Bias 0.3 of a sensitivity 3, variance 4 at 10 events a sample: after 1000 events sqrt(0.09 + 0.04) / 3."""
    one = np.ones(1)
    method = benchmark.Method(3.3 * one, one, 0.3 * one, 4 * one, 10.0)
    assert method.error(3 * one, 1000) == pytest.approx(math.sqrt(0.13) / 3)


def test_closed_form_sensitivities_of_the_benchmark():
    """E[X_t] = 3 e^(-t/2) + 4 (1 - e^(-t/2)) at t = 2: by log 2 that is 4 (1 - 1/e); by log 1/2 it is -3 / e - 4 (1 - 2/e)."""
    e = math.exp(-1)
    np.testing.assert_allclose(benchmark.closed_form(), [4 * (1 - e), -3 * e - 4 * (1 - 2 * e)], rtol=1e-12)
