"""grad P by direct differentiation beside P * grad log P."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests import worlds
from tests.mostly import slow
from tests.worlds import TERMINATING_LOGITS, TWO_STATES_LOGITS, rollout, terminating, trajectory, two_states

compare = jax.jit(ld.compare, static_argnums=1)


class Coin:
    """A coin whose parameter is the probability of heads itself, so that a factor can be exactly zero."""

    def __init__(self, heads):
        self.heads = heads

    def prob(self, action):
        return jnp.where(action == 1, self.heads, 1 - self.heads)

    def log_prob(self, action):
        return jnp.log(self.prob(action))


def _tosses(actions, dtype=jnp.float64):
    ones = jnp.ones(len(actions), dtype)
    return trajectory(observations=ones, actions=jnp.array(actions), rewards=ones)


def test_identity_holds_on_fifty_random_worlds_and_policies_in_float64():
    """The largest relative difference of the two forms, each with its start and dynamics, is at most 1e-12."""

    @jax.jit
    @jax.vmap
    def check(key):
        keys = jax.random.split(key, 3)
        mdp = worlds.random_mdp(keys[0])
        params = jax.random.normal(keys[1], (3, 2))
        tau = ld.rollout(params, keys[2], ld.tabular_softmax, mdp, horizon=6)
        return ld.compare(params, ld.tabular_softmax, tau, environment=mdp)

    found = check(jax.random.split(jax.random.key(0), 50))
    assert found.difference.shape == (50,)
    assert found.difference.max() <= 1e-12
    assert (found.case == ld.likelihood.Case.AGREE).all()
    assert (found.num_factors == 13).all()
    form = found.score_form.sign * np.exp(found.score_form.logabs)
    np.testing.assert_allclose(form, found.direct, rtol=1e-12, atol=1e-18)


# What lies below the smallest normal number is zero on a CPU; a GPU keeps it, with fewer and fewer digits.
FLUSHED = not jax.jit(lambda x: x / 2)(jnp.finfo(jnp.float32).tiny)
LAST = {jnp.float32: 126 if FLUSHED else 149, jnp.float64: 1022 if FLUSHED else 1074}


@pytest.mark.parametrize(("dtype", "first"), LAST.items())
def test_a_product_of_fair_coins_underflows_where_the_smallest_number_ends(dtype, first):
    """Factor 126 (the 127th) makes 2^-127 in float32: below the smallest normal number."""
    tau = _tosses([1] * 1200, dtype)
    found = jax.jit(ld.compare)(jnp.zeros((), dtype), ld.FunctionPolicy(lambda p, _: ld.Bernoulli(p)), tau)
    assert found.case == ld.likelihood.Case.UNDERFLOW
    assert (found.prob, found.direct, found.score, found.score_form.sign) == (0, 0, 600, 1)
    assert found.first_underflow == first
    np.testing.assert_allclose(found.score_form.logabs, 1200 * np.log(0.5) + np.log(600), rtol=1e-5)


def test_densities_overflow_while_the_signed_logarithm_is_right():
    policy = ld.FunctionPolicy(lambda p, _: ld.Normal(p, jnp.asarray(1e-3, p.dtype)))
    tau = _tosses([1] * 30, jnp.float32)
    tau = tau._replace(actions=jnp.full(30, 2e-4, jnp.float32))
    found = jax.jit(ld.compare)(jnp.float32(0), policy, tau)
    assert found.case == ld.likelihood.Case.OVERFLOW
    assert jnp.isinf(found.prob)
    density = -0.5 * 0.2**2 - np.log(1e-3) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found.log_prob, 30 * density, rtol=1e-6)
    np.testing.assert_allclose(found.score_form.logabs, 30 * density + np.log(30 * 200), rtol=1e-6)


def test_at_a_factor_of_exactly_zero_only_the_direct_form_is_right():
    found = compare(jnp.asarray(0.0), lambda p, _: Coin(p), _tosses([1, 0]))
    assert found.case == ld.likelihood.Case.ZERO_FACTOR
    assert found.direct == 1  # d/dp p (1 - p) at p = 0
    assert not jnp.isfinite(found.score_form.logabs)
    assert "only the direct form is right" in str(found)


def test_a_policy_whose_prob_is_not_the_exponential_of_its_log_prob_is_found_out():
    class Wrong(Coin):
        def log_prob(self, action):
            return jnp.log(self.prob(action)) * 1.01

    found = compare(jnp.asarray(0.3), lambda p, _: Wrong(p), _tosses([1, 0, 1]))
    assert found.case == ld.likelihood.Case.DIFFER


def test_a_difference_of_one_rounding_of_the_logarithm_is_agreement():
    """In float32 at log P = -68 both forms are right; most trajectories make them part by about eps |log P| = 8e-6."""
    mdp, logits = worlds.cast(two_states(), jnp.float32), TWO_STATES_LOGITS.astype(jnp.float32)
    taus = rollout(logits, jax.random.split(jax.random.key(2), 8), ld.tabular_softmax, mdp, horizon=100)
    found = jax.jit(jax.vmap(lambda tau: ld.compare(logits, ld.tabular_softmax, tau)))(taus)
    assert (found.case == ld.likelihood.Case.AGREE).all()
    assert (found.log_prob < -60).all()
    assert (found.difference < 8 * found.resolution).all()
    assert (found.difference > found.resolution / 2).any()


def test_the_verdict_is_that_of_the_printed_numbers():
    """Of 40 trajectories in float32 all agree, by the printed tolerance; by the resolution of log P alone some would not."""
    params, keys = jnp.array([0.3, -0.2], jnp.float32), jax.random.split(jax.random.key(5), 40)
    corridor = worlds.cast(ld.environments.short_corridor(horizon=100), jnp.float32)
    taus = ld.rollout(params, keys, ld.shared_softmax, corridor)
    found = jax.jit(jax.vmap(lambda tau: ld.compare(params, ld.shared_softmax, tau)))(taus)
    assert (found.difference <= found.allowed).all()
    assert (found.case == ld.likelihood.Case.AGREE).all()
    assert (found.difference > found.resolution).any()
    one = jax.tree.map(lambda x: x[jnp.argmax(found.difference / found.resolution)], found)
    difference, allowed = map(float, str(one).splitlines()[-2].split()[-2:])
    assert difference <= allowed


def test_forms_that_cannot_be_compared_do_not_agree():
    """log P does not depend on the parameter, the product does: the score form is 0, and no relative difference exists."""

    class Torn(Coin):
        def log_prob(self, action):
            return jax.lax.stop_gradient(super().log_prob(action))

    found = compare(jnp.asarray(0.3), lambda p, _: Torn(p), _tosses([1, 0, 1]))
    assert jnp.isnan(found.difference)
    assert found.case == ld.likelihood.Case.DIFFER


def _alone(actions):
    return trajectory(observations=jnp.zeros_like(actions), actions=actions, rewards=jnp.ones(len(actions)))


class Moved:
    """A standard Normal whose probability is that of a mean further off."""

    def __init__(self, mean, by):
        self.normals = [ld.Normal(m, jnp.ones_like(mean)) for m in (mean, mean + jnp.asarray(by, mean.dtype))]

    def log_prob(self, action):
        return self.normals[0].log_prob(action)

    def prob(self, action):
        return jnp.exp(self.normals[1].log_prob(action))


def _normals(mean, actions, by=0.0):
    return jax.jit(jax.vmap(lambda a: ld.compare(mean, lambda p, _: Moved(p, by), _alone(a))))(actions)


def test_where_the_scores_of_the_steps_cancel_their_rounding_is_agreement():
    """Uniform actions and a mean of the greatest likelihood: the score is 0, or a rounding, and the direct form another."""
    actions = jax.random.randint(jax.random.key(6), (300, 6), 0, 3)
    zeros = jnp.zeros(3, jnp.float32)
    found = jax.jit(jax.vmap(lambda a: ld.compare(zeros, ld.shared_softmax, _alone(a))))(actions)
    assert (found.case == ld.likelihood.Case.AGREE).all()
    assert ((found.score == 0).all(axis=-1) & (found.direct != 0).any(axis=-1)).any()

    actions = jax.random.normal(jax.random.key(7), (50, 4), jnp.float32)
    actions = actions - jnp.mean(actions, axis=1, keepdims=True)
    right, wrong = (_normals(jnp.float32(0), actions, by) for by in (0.0, 1e-3))
    assert (right.case == ld.likelihood.Case.AGREE).all()
    assert (wrong.case == ld.likelihood.Case.DIFFER).all()
    assert (
        np.abs(right.direct / right.score - right.prob) > right.allowed * right.prob
    ).any()  # relative to the score itself


def test_terms_that_underflow_before_the_product_does_are_no_difference_of_the_forms():
    """Down to the smallest normal number, log P = -87.3 in float32; a policy that is wrong by 0.1 % is found down to -70."""
    noise = jax.random.normal(jax.random.key(8), (200, 50), jnp.float32)

    def down_to(logs, noise=noise):
        spread = 2 * (-logs - 25 * np.log(2 * np.pi))
        return noise * jnp.sqrt(jnp.asarray(spread, jnp.float32) / jnp.sum(noise**2, axis=1))[:, None]

    near = _normals(jnp.float32(0), down_to(np.linspace(-87.3, -60, 200)))
    assert not (near.case == ld.likelihood.Case.DIFFER).any()
    assert (near.case == ld.likelihood.Case.AGREE)[near.log_prob > -75].all()
    if FLUSHED:
        normal = np.isfinite(near.score_form.logabs) & (near.score_form.logabs > np.log(np.finfo(np.float32).tiny))
        assert ((near.case == ld.likelihood.Case.UNDERFLOW) & normal).any()
    wrong = _normals(jnp.float32(0), down_to(np.linspace(-70, -60, 200), jnp.abs(noise)), by=1e-3)
    assert (wrong.case == ld.likelihood.Case.DIFFER).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_in_half_precision_are_compared_in_single(dtype):
    """As those float32 that they are: rounded to bfloat16 the forms would part by 4e-3, and in float16 P = 2e-9 has no digits."""
    params = jnp.array([0.3, -0.7, 0.1]).astype(dtype)
    tau = _alone(jnp.arange(18) % 3)
    half, single = (compare(p, ld.shared_softmax, tau) for p in (params, params.astype(jnp.float32)))
    assert half.case == ld.likelihood.Case.AGREE
    jax.tree.map(np.testing.assert_array_equal, half, single)


def test_a_difference_without_a_standard_error_is_not_printed_as_none():
    same = jnp.array([1.0, 1.0, 0.0])
    found = ld.exact.ExpectationComparison(2, jnp.ones(()), same, same, same, jnp.zeros(3))
    printed = str(found._replace(sampled=jnp.array([2.0, 1.0, 0.0]), sem=jnp.array([0.0, 0.5, 0.0])))
    assert [row.split()[-1] for row in printed.splitlines()[2:]] == ["inf", "0.00", "0.00"]


def test_the_report_names_numbers_and_reasons():
    mdp = terminating()
    tau = rollout(TERMINATING_LOGITS, jax.random.key(0), ld.tabular_softmax, mdp, horizon=4)
    text = str(compare(TERMINATING_LOGITS, ld.tabular_softmax, tau, environment=mdp))
    assert all(words in text for words in ("agree", "resolution", "allowed"))
    text = str(compare({"heads": jnp.float32(0.5)}, lambda p, _: Coin(p["heads"]), _tosses([1] * 200, jnp.float32)))
    assert all(
        words in text
        for words in ("['heads']", f"becomes zero at factor {LAST[jnp.float32]}", "the score form is right")
    )


@pytest.mark.parametrize(
    ("mdp", "logits"),
    [slow((two_states(), TWO_STATES_LOGITS)), (terminating(), TERMINATING_LOGITS)],
    ids=["cut", "ending"],
)
def test_under_the_expectation_three_routes_give_one_gradient(mdp, logits):
    """Direct and score form agree to 1e-12; the sampled one within 4 standard errors, and no better than that."""
    options = {"horizon": 3, "discount": 0.9}
    found = ld.exact.compare_expectation(
        logits, jax.random.key(3), ld.tabular_softmax, mdp, num_samples=4000, **options
    )
    by_programming = jax.jit(lambda p: ld.exact.gradient(p, ld.tabular_softmax, mdp, **options))(logits)
    np.testing.assert_allclose([found.score, by_programming], [found.direct] * 2, atol=1e-12, rtol=0)
    live = np.asarray(found.sem) > 0
    assert live.any()
    sampled, direct, sem = (np.asarray(x)[live] for x in (found.sampled, found.direct, found.sem))
    assert np.abs((sampled - direct) / sem).max() < 4 < np.abs((1.5 * sampled - direct) / sem).max()
    assert "z" in str(found)
