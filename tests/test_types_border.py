"""What a trajectory may be made of: every consumer passes one border, which casts, names and refuses. Numbers by hand and by NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv import diagnostics, estimators, testing
from logderiv.advantages import GAE, Return, Standardized, ToGo, VTrace
from logderiv.baselines import LeaveOneOut, MovingAverage, Value
from tests.worlds import terminating, trajectory

library: Any = ld  # without its annotations: what it takes besides arrays is tried here
advantages, importance, likelihood, types = (
    getattr(library, n) for n in ("advantages", "importance", "likelihood", "types")
)
POLICY, PARAMS = ld.shared_softmax, jnp.array([0.3, -0.2])
ACTIONS = jnp.array([[0, 1, 1, 0], [1, 1, 0, 1]])
REWARDS = np.array([[1, 0, 0, 1], [0, 1, 1, 0]])
ENDS = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
TAUS = trajectory(
    actions=ACTIONS,
    rewards=jnp.asarray(REWARDS, float),
    discounts=jnp.asarray(ENDS, float),
    behavior_log_probs=jnp.zeros((2, 4)),
    observations=jnp.arange(8.0).reshape(2, 4),
)
SCORE = ld.ScoreFunction(discount=0.5)
QUARTER = Value(lambda observation: observation / 4)
IMAGINARY = PARAMS.astype(complex)
ONES, THREE = jnp.ones((2, 4)), jnp.ones(3)


def estimate(estimator: Any, taus: Any, params: Any = PARAMS) -> Any:
    return estimator.estimate(params, estimator.init(params), POLICY, taus)[0]


def weights(estimator: Any, taus: Any) -> Any:
    return estimator.advantages(PARAMS, estimator.init(PARAMS), POLICY, taus)[0]


# Dtypes

CASTS = {
    **{
        np.dtype(d).name: lambda x, d=d: x.astype(d)
        for d in (bool, np.int8, np.uint8, np.int32, np.float16, np.float64)
    },
    **{
        f"jax {d}": lambda x, d=d: jnp.asarray(x.tolist(), d)
        for d in ("bool", "int8", "float16", "bfloat16", "float32")
    },
    "Python": np.ndarray.tolist,
}
GAE_HALF = ld.ScoreFunction(GAE(0.5, QUARTER), discount=0.5)


@pytest.mark.parametrize("cast", CASTS.values(), ids=CASTS)
def test_the_dtype_of_data_decides_nothing(cast):
    """Rewards, discounts and masks of 0 and 1 are the same numbers in every dtype. By hand: reward-to-go at γ = 1/2, γ^t included."""
    to_go = np.array([[1.125, 0.125, 0.125, 0.125], [0.75, 0.75, 0.25, 0]])
    scores = np.eye(2)[ACTIONS] - np.exp(PARAMS) / np.sum(np.exp(PARAMS))
    parts = {"rewards": cast(REWARDS), "discounts": cast(ENDS), "behavior_log_probs": cast(0 * ENDS)}
    found = estimate(SCORE, TAUS._replace(**parts))
    np.testing.assert_allclose(found.grads, np.einsum("nt,ntd->d", to_go, scores) / 2, rtol=1e-6)
    assert (found.info.mean_return, found.info.truncated_fraction, found.info.num_steps) == (2, 0.5, 8)
    assert found.info.mean_return.dtype in (jnp.float32, jnp.float64)
    ours, expected = (estimate(GAE_HALF, taus).grads for taus in (TAUS._replace(**parts), TAUS))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_masks_may_be_whole_numbers_or_lists_and_no_fractions():
    valid = np.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    for mask in (valid.astype(np.int8), jnp.asarray(valid, bool), valid.tolist()):
        assert types.batch_info(TAUS._replace(valid=mask)).num_steps == 7
        np.testing.assert_array_equal(likelihood.log_factors(PARAMS, POLICY, TAUS._replace(valid=mask))[0, 3], 0)
    with pytest.raises(TypeError, match=r"trajectory\.valid: expected a boolean mask"):
        types.batch_info(TAUS._replace(valid=valid / 2))


def test_the_ends_of_a_stream_may_be_whole_numbers():
    """Two environments in the middle of an episode: `~` of 1 is -2, and a mean of it no fraction."""
    steps = jax.tree.map(lambda x: x[:, :, None], TAUS._replace(final_observation=TAUS.observations))
    ends, times = np.array([[0, 1, 0, 0], [0, 0, 0, 0]], np.int32), jnp.zeros((2, 4), int)
    stream = types.Stream(
        steps._replace(final_observation=TAUS.observations), ends, times, np.full((2, 4), 3, np.uint8)
    )
    info = types.batch_info(stream)
    assert (info.truncated_fraction, info.num_episodes, info.mean_return) == (1, 1, 3)
    assert np.mean(~ends[:, -1]) == -1  # what would come of them uncast


ARRAYS = {  # a function of arrays, and what it gives by hand
    "reward_to_go": (lambda x: advantages.reward_to_go(x([200, 200]), x([1, 1])), [400, 200]),
    "total_return": (lambda x: advantages.total_return(x([200, 200]), x([1, 0])), [400, 400]),
    "td_residuals": (lambda x: advantages.td_residuals(x([1, 2]), x([1, 0]), x([5, 7]), x([7, 9])), [3, -5]),
    "lambda_returns": (lambda x: advantages.lambda_returns(x([1, 2]), x([1, 1]), x([5, 7]), lambda_=0.5), [8, 9]),
    "generalized_advantages": (
        lambda x: advantages.generalized_advantages(x([1, 2]), x([1, 1]), x([5, 7]), x([7, 9]), lambda_=x(1)),
        [7, 4],
    ),
    "vtrace": (lambda x: advantages.vtrace(x([1, 2]), x([1, 1]), x([5, 7]), x([7, 9]), x([3, 1])).advantages, [7, 4]),
    "ratios": (lambda x: importance.Importance().ratios(x([[1, 2]])), [[math.exp(1), math.exp(3)]]),
    "effective_sample_size": (lambda x: importance.effective_sample_size(x([0, 0, 0])), 3),
    "score": (lambda x: estimators.Score()(x([[100, 100]]), x([[2, 2]])), 400),
    "clipped": (lambda x: estimators.clipped(x([0, 9]), x([200, 200]), 0.5), [200, 300]),
    "reduce_steps": (
        lambda x: estimators.reduce_steps(x([[100, 100, 100]]), x([[1, 1, 1]]) != 0, "per_step_of_batch"),
        100,
    ),
    "summary": (lambda x: diagnostics.summary(x([50, 250])).variance, 20000),
    "cosine": (lambda x: diagnostics.cosine(x([100, 100]), x([100, 0])), 0.5**0.5),
    "visit_counts": (
        lambda x: likelihood.visit_counts(np.zeros(300, int), np.zeros(300, int), x([1] * 300), (1, 1)),
        [[300]],
    ),
}


@pytest.mark.parametrize(("function", "expected"), ARRAYS.values(), ids=ARRAYS)
def test_functions_of_arrays_take_every_real_dtype_and_no_complex_one(function, expected):
    for dtype in (np.uint8, np.float16, jnp.bfloat16):
        found = function(lambda x, dtype=dtype: np.asarray(x, dtype))
        assert jnp.result_type(found) not in (jnp.float16, jnp.bfloat16)
        np.testing.assert_allclose(np.asarray(found, float), expected, rtol=1e-2 if dtype == jnp.bfloat16 else 1e-6)
    with pytest.raises(TypeError, match=r"\w+: expected real numbers, received complex128"):
        function(lambda x: np.asarray(x, complex))


W = jnp.zeros((2, 4), complex)
COMPLEX = {
    "log_prob": ("params", lambda: ld.log_prob(IMAGINARY, POLICY, TAUS)),
    "traced": ("params", lambda: jax.jit(lambda p: ld.log_factors(p, POLICY, TAUS))(IMAGINARY)),
    "prob": (r"params\['a'\]", lambda: ld.prob({"a": 1j}, lambda p, _: ld.Categorical(p["a"] * THREE), TAUS)),
    "weighted_log_prob": ("params", lambda: ld.weighted_log_prob(IMAGINARY, POLICY, TAUS, ONES)),
    "compare": ("params", lambda: ld.compare(IMAGINARY, POLICY, jax.tree.map(lambda x: x[0], TAUS))),
    "fisher": ("params", lambda: likelihood.fisher_matrix(IMAGINARY, POLICY, TAUS)),
    "estimate": ("params", lambda: estimate(SCORE, TAUS, IMAGINARY)),
    "advantages": ("params", lambda: SCORE.advantages(IMAGINARY, (), POLICY, TAUS)),
    "objective": ("params", lambda: SCORE.objective(IMAGINARY, POLICY, TAUS, ONES)),
    "weights": ("weights", lambda: SCORE.objective(PARAMS, POLICY, TAUS, W)),
    "a pair": (r"weights\[1\]", lambda: ld.A2C(lambda p, o: p[0]).objective(PARAMS, POLICY, TAUS, (ONES, W))),
    "weights of scores": ("weights", lambda: ld.weighted_log_prob(PARAMS, POLICY, TAUS, W)),
    "weights of steps": ("weights", lambda: diagnostics.variance_by_step(PARAMS, POLICY, TAUS, W)),
    "rewards": (r"trajectory\.rewards", lambda: estimate(SCORE, TAUS._replace(rewards=W))),
    "discounts": (r"trajectory\.discounts", lambda: types.batch_info(TAUS._replace(discounts=W))),
    "behavior": (
        r"trajectory\.behavior_log_probs",
        lambda: ld.log_prob(PARAMS, POLICY, TAUS._replace(behavior_log_probs=W)),
    ),
    "actions": (r"trajectory\.actions", lambda: ld.log_prob(PARAMS, POLICY, TAUS._replace(actions=W))),
    "valid": (r"trajectory\.valid", lambda: ld.log_prob(PARAMS, POLICY, TAUS._replace(valid=W))),
    "probabilities": ("probabilities", lambda: likelihood.fisher_matrix(PARAMS, POLICY, TAUS, probabilities=W[:, 0])),
    "term": ("term", lambda: likelihood.over_steps(lambda p, s, d: d.entropy().astype(complex), PARAMS, POLICY, TAUS)),
    "a text": (r"params\['a'\]", lambda: ld.log_prob({"a": "x"}, POLICY, TAUS)),
}


@pytest.mark.parametrize(("name", "call"), COMPLEX.values(), ids=COMPLEX)
def test_complex_numbers_are_refused_by_name(name, call):
    with pytest.raises(
        TypeError, match=rf"{name}: expected (real numbers, received complex128|an array, received str)"
    ):
        call()


# Shapes

FIELDS = ("rewards", "discounts", "behavior_log_probs")
SHAPES = {"(2, 4, 1)": lambda x: x[..., None], "(1, 2, 4)": lambda x: x[None], "(2, 3)": lambda x: x[:, :3]}
SHAPES |= {"(4,)": lambda x: x[0], "(2, 1)": lambda x: x[:, :1], "()": lambda x: x[0, 0]}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_number_for_each_step_or_the_field_is_named(field, shape):
    """With one axis more, one less, or an axis of length one a product broadcasts, to another number."""
    taus = TAUS._replace(**{field: SHAPES[shape](getattr(TAUS, field))})
    calls = [lambda: ld.log_prob(PARAMS, POLICY, taus), lambda: estimate(SCORE, taus), lambda: types.batch_info(taus)]
    for call in calls:
        with pytest.raises(ValueError, match=rf"trajectory\.{field}: expected shape \(2, 4\), received"):
            call()


def test_a_reward_for_each_player_is_no_reward_of_a_step():
    taus = TAUS._replace(rewards=jnp.stack([TAUS.rewards, -TAUS.rewards], axis=-1))
    np.testing.assert_array_equal(ld.log_prob(PARAMS, POLICY, taus), ld.log_prob(PARAMS, POLICY, TAUS))
    with pytest.raises(ValueError, match=r"trajectory\.rewards: expected shape \(2, 4\), received \(2, 4, 2\)"):
        estimate(SCORE, taus)


PER_PARAMETER = estimators.OptimalPerParameter()
OBJECTIVES = {
    "score": (r"weights: .*\(2, 4\), received \(2, 1\)", SCORE, ONES[:, :1]),
    "DiCE": (r"weights: .*\(2, 4\), received \(4,\)", ld.ScoreFunction(surrogate=estimators.DiCE()), ONES[0]),
    "a function": (
        r"weights: .*received \(2, 1\)",
        ld.ScoreFunction(surrogate=lambda x, w: (x * w).sum()),
        ONES[:, :1],
    ),
    "PPO": (r"weights: .*received \(2, 4, 1\)", ld.PPO(), ONES[..., None]),
    "targets": (r"weights\[1\]: .*received \(4,\)", ld.A2C(lambda p, o: p[0]), (ONES, jnp.arange(4.0))),
    "per parameter": (r"weights: .*received \(2, 1\)", PER_PARAMETER, (ONES[:, :1], ONES, [PARAMS] * 2)),
    "its ratios": (r"weights: .*received \(1, 1\)", PER_PARAMETER, (ONES, ONES[:, :1], [PARAMS] * 2)),
    "its baselines": (r"weights\[2\]\[1\]: .*received \(1,\)", PER_PARAMETER, (ONES, ONES, [PARAMS, PARAMS[:1]])),
}


@pytest.mark.parametrize(("words", "estimator", "wrong"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_takes_one_weight_a_step(words, estimator, wrong):
    with pytest.raises(ValueError, match=words):
        estimator.objective(PARAMS, POLICY, TAUS, wrong)


def test_masks_and_mixing_of_returns_have_their_shape():
    def generalized(rewards, discounts, values, **options):
        return advantages.generalized_advantages(rewards, discounts, values, values, **options)

    for of in (advantages.lambda_returns, generalized):
        with pytest.raises(ValueError, match=r"valid: expected shape \(3,\), received \(1,\)"):
            of(THREE, THREE, THREE, valid=jnp.array([True]))
        with pytest.raises(ValueError, match=r"lambda_: expected shape \(3,\), received \(1,\)"):
            of(THREE, THREE, THREE, lambda_=THREE[:1])
    found = advantages.lambda_returns(THREE, THREE, THREE, valid=[True] * 3)
    assert found.tolist() == [4, 3, 2] != [2, 2, 2]  # which a mask of shape (1,) would give


@pytest.mark.parametrize("final", [jnp.ones(2), jnp.ones((2, 1)), jnp.ones((2, 4, 3)), {"x": jnp.ones((2, 3))}])
def test_the_final_observation_is_one_observation(final):
    taus = TAUS._replace(observations=jnp.ones((2, 4, 3)), final_observation=final)
    bootstrap = ld.ScoreFunction(GAE(0.5, Value(lambda observation: jnp.sum(observation))))
    for call in (types.next_observations, lambda taus: estimate(bootstrap, taus)):
        with pytest.raises(ValueError, match=r"trajectory\.final_observation: expected (shape \(2, 3\)|a pytree)"):
            call(taus)


# Holes

HOLE = jnp.array([[True, True, False, True], [True, True, True, True]])  # step 2 of the first was not the policy's
BROKEN = trajectory(
    valid=HOLE,
    rewards=jnp.array([[0.0, 0, 0, 2]] * 2),
    discounts=jnp.array([[1.0, 1, 1, 0]] * 2),
    observations=jnp.array([[0.0, 1, 2, 3]] * 2),
    behavior_log_probs=jnp.full((2, 4), -0.5),
    final_observation=jnp.full(2, 40.0),
)
OF_TIME = {
    "reward-to-go": ld.ScoreFunction(),
    "GAE": ld.ScoreFunction(GAE(1.0, QUARTER)),
    "V-trace": ld.ScoreFunction(VTrace(QUARTER)),
    "leave one out": ld.ScoreFunction(Return(LeaveOneOut(per="trajectory"))),
    "standardized": ld.ScoreFunction(Standardized(ToGo())),
    "off policy": ld.ScoreFunction(ToGo(MovingAverage()), importance=importance.Importance()),
}


def test_weights_of_a_trajectory_with_a_hole_are_refused_and_never_a_number_under_jit():
    """With the hole for an end GAE gave [11.25, 11, 0, 1.25] where 2 - t/4 is right."""
    for estimator in OF_TIME.values():
        for call in (weights, estimate):
            with pytest.raises(ValueError, match=r"trajectory\.valid: .*hole: .*\(0, 2\).*Forced.*split"):
                call(estimator, BROKEN)
    found = jax.jit(lambda taus: [weights(estimator, taus) for estimator in OF_TIME.values()])(BROKEN)
    assert all(np.isnan(w).all() for w in found)  # a batch is used whole or not at all
    kept = BROKEN._replace(valid=HOLE | True)
    np.testing.assert_allclose(weights(OF_TIME["GAE"], kept), [[2, 1.75, 1.5, 1.25]] * 2)
    info = jax.jit(types.batch_info)(BROKEN)
    assert np.isnan([info.mean_return, info.truncated_fraction]).all()


def test_what_looks_at_the_next_step_refuses_holes():
    env, hole = terminating(), jnp.array([True, False, True])
    calls = {
        "next observations": lambda: types.next_observations(BROKEN),
        "information": lambda: types.batch_info(BROKEN),
        "contributions": lambda: diagnostics.per_trajectory_gradients(PARAMS, POLICY, BROKEN, SCORE),
        "moments": lambda: diagnostics.gradient_moments(PARAMS, POLICY, BROKEN, SCORE),
        "transitions": lambda: ld.log_prob(PARAMS, POLICY, BROKEN, environment=env),
        "their product": lambda: ld.prob(PARAMS, POLICY, BROKEN, environment=env),
        "padding": lambda: testing.check_padding(PARAMS, lambda p, taus: jnp.sum(p), BROKEN),
        "lambda-returns": lambda: advantages.lambda_returns(THREE, THREE, THREE, valid=hole),
        "advantages": lambda: advantages.generalized_advantages(THREE, THREE, THREE, THREE, valid=hole),
        "memory": lambda: ld.log_prob(MEMORY, COUNTING, BROKEN),
        "sequences": lambda: ld.log_prob(PARAMS, SEQUENCES, BROKEN),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=r"valid: expected a prefix mask, received a hole"):
            call()
    assert jax.jit(types.next_observations)(BROKEN).tolist() == [[1, 2, 3, 40]] * 2
    assert np.isnan(jax.jit(lambda v: advantages.lambda_returns(THREE, THREE, THREE, valid=v))(hole)).all()


MEMORY = jnp.array([0.4, -0.3])
COUNTING = ld.FunctionPolicy(
    lambda p, carry, observation: (ld.Bernoulli(p[0] * carry + p[1] * observation), carry + observation),
    initial_carry=lambda p: jnp.zeros(()),
)
SEQUENCES = ld.FunctionPolicy(POLICY.apply, log_factors=lambda p, tau: p[0] * jnp.cumsum(tau.observations))


def test_factors_of_a_policy_that_sees_earlier_steps_are_no_number_after_a_hole():
    """It is not shown what stood in the hole. Neither value nor gradient may pass for one; the whole row beside it is right."""

    @jax.jit
    def under_jit(taus):
        def each(policy):
            return [likelihood.log_factors(MEMORY, policy, taus), ld.log_prob(MEMORY, policy, taus)]

        score = jax.grad(lambda p: ld.weighted_log_prob(p, COUNTING, taus, ONES))(MEMORY)
        return each(COUNTING), each(SEQUENCES), score

    counting, sequences, score = under_jit(BROKEN)
    for factors, total in (counting, sequences):
        assert np.isnan(factors[0]).all()
        assert np.isnan(total[0])
        np.testing.assert_allclose(total[1], np.sum(factors[1]))
    assert np.isnan(score).all()
    logits = 0.4 * np.array([0, 0, 1, 3]) - 0.3 * np.arange(4)
    np.testing.assert_allclose(counting[0][1], -np.log1p(np.exp(logits)), rtol=1e-12)


def test_the_log_probability_with_a_hole_leaves_the_step_out():
    logs = np.log(np.exp(PARAMS) / np.sum(np.exp(PARAMS)))[np.asarray(ACTIONS)]
    taus, expected = TAUS._replace(valid=HOLE), np.where(HOLE, logs, 0)
    for transform in (lambda f: f, jax.jit):
        np.testing.assert_allclose(transform(likelihood.log_factors)(PARAMS, POLICY, taus), expected, rtol=1e-12)
        np.testing.assert_allclose(transform(ld.log_prob)(PARAMS, POLICY, taus), expected.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(ld.prob(PARAMS, POLICY, taus), np.exp(expected.sum(axis=1)), rtol=1e-12)
    np.testing.assert_allclose(importance.log_ratios(PARAMS, POLICY, taus), expected, rtol=1e-12)
    assert abs(expected.sum() - logs.sum()) > 0.1  # the step in the hole would count


def test_no_value_is_taken_where_nothing_follows():
    """The episode terminates, and the value of what follows is NaN: by hand the last error is 2 - v."""
    assert advantages.td_residuals([1.0, 2.0], [1, 0], [5.0, 7.0], [7.0, np.nan]).tolist() == [3, -5]
    assert advantages.lambda_returns([1.0, 2.0], [1, 0], [7.0, np.nan]).tolist() == [3, 2]
    found = advantages.vtrace([1.0, 2.0], [1, 0], [5.0, 7.0], [7.0, np.inf], [1.0, 1.0])
    assert (found.targets.tolist(), found.q_values.tolist()) == ([3, 2], [3, 2])
    assert np.isnan(advantages.td_residuals([1.0], [0.5], [5.0], [np.nan])).all()  # one that counts stays
