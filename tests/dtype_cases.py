"""What `test_project_dtypes` gives to every public function, by room; and the names that it need not walk."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Lists and numbers are given where the signatures say arrays.

import jax.numpy as jnp
import numpy as np

import logderiv as ld
from logderiv import (
    advantages,
    diagnostics,
    distributions,
    environments,
    estimators,
    exact,
    expectations,
    importance,
    likelihood,
    policies,
    testing,
)
from tests.dtype_calls import (
    ENDS,
    KEY,
    LOGITS,
    MASK,
    ROW,
    TABLE,
    UNIT,
    Clock,
    by_log_prob,
    case,
    estimated,
    flip,
    from_samples,
    mdp,
    of_exact,
    of_trajectories,
    one,
    pays,
    score_of_normal,
    set_to,
    taus,
)
from tests.dtype_cases_of_objectives import OBJECTIVES
from tests.dtype_cases_of_processes import PROCESSES

RETURNS = {"rewards": ROW, "discounts": UNIT}
VALUES = {"values": [0.3, 100.9, -0.7], "next_values": [1.3, -90.9, 0.7]}
COIN = ld.FunctionPolicy(lambda params, observation: ld.Bernoulli(params))

RETURNED = {
    "reward_to_go": case(advantages.reward_to_go, **RETURNS),
    "total_return": case(advantages.total_return, **RETURNS),
    "td_residuals": case(advantages.td_residuals, **RETURNS, **VALUES),
    "lambda_returns": case(
        advantages.lambda_returns, **RETURNS, next_values=VALUES["next_values"], lambda_=0.37, valid=MASK
    ),
    "generalized_advantages": case(advantages.generalized_advantages, **RETURNS, **VALUES, lambda_=0.37, valid=MASK),
    "vtrace": case(advantages.vtrace, **RETURNS, **VALUES, ratios=[0.37, 1.9, 3.1], lambda_=0.9, clip_rho=1.3),
    "box": case(estimators.box, x=ROW),
    "clipped": case(estimators.clipped, log_ratio=[0.37, -1.9, 0.1], weight=ROW, clip=0.37),
    "reduce_steps": case(
        lambda terms, valid: estimators.reduce_steps(terms, valid, "per_step_of_batch"), terms=TABLE, valid=[MASK, MASK]
    ),
    "step_weights": case(
        lambda valid: estimators.step_weights(valid, "per_step_of_batch", jnp.float32), valid=[MASK, MASK]
    ),
    "effective_sample_size": case(importance.effective_sample_size, log_weights=ROW),
    "sem": case(diagnostics.sem, samples=TABLE),
    "summary": case(lambda samples: list(diagnostics.summary(samples)), samples=TABLE),
    "sampler_mismatch": case(
        lambda trainer, sampler, mask: list(diagnostics.sampler_mismatch(trainer, sampler, mask)),
        trainer=TABLE,
        sampler=[[0.3, -1.0, 0.2], [1.0, 0.7, -0.4]],
        mask=[MASK, MASK],
    ),
    "cosine": case(diagnostics.cosine, tree=ROW, reference=[1.2, 0.1, -100.4]),
    "variance_ratio": case(
        lambda baselined, plain: list(diagnostics.variance_ratio(baselined, plain)),
        names={"baselined": "baselined|samples", "plain": "plain|samples|baselined"},
        baselined=[*TABLE, [0.1, 1.4, 2.0]],
        plain=[*TABLE, [100.1, 1.4, 2.0]],
    ),
    "assert_unbiased": case(
        lambda samples, exact: list(testing.assert_unbiased(samples, exact, resolution=900.0, raises=False))[:2],
        samples=np.array([TABLE, TABLE, [[1, 2, 3], [4, 5, 6]]] * 11),
        exact=TABLE,
    ),
}
ESTIMATORS = {
    "ScoreFunction": estimated(ld.ScoreFunction),
    "ScoreFunction: settings": set_to(ld.ScoreFunction, discount=0.37),
    "ToGo": estimated(lambda: ld.ScoreFunction(advantages.ToGo(ld.baselines.LeaveOneOut()), discount=0.999)),
    "Return": estimated(lambda: ld.ScoreFunction(advantages.Return(ld.baselines.BatchMean()), discount=0.37)),
    "Constant": set_to(lambda value: ld.ScoreFunction(advantages.ToGo(ld.baselines.Constant(value))), value=0.37),
    "MovingAverage": set_to(
        lambda decay: ld.ScoreFunction(advantages.ToGo(ld.baselines.MovingAverage(decay))), decay=0.37
    ),
    "Importance": estimated(lambda: ld.ScoreFunction(importance=estimators.Importance())),
    "Importance: settings": set_to(
        lambda truncate: ld.ScoreFunction(importance=estimators.Importance(truncate=truncate)), truncate=1.37
    ),
    "ScaledRewards": set_to(
        lambda scale: ld.ScoreFunction(advantages.ScaledRewards(advantages.ToGo(), scale)), scale=0.37
    ),
    "GAE": set_to(
        lambda lambda_: ld.ScoreFunction(advantages.GAE(lambda_, ld.baselines.Value(lambda o: o * 0.37))), lambda_=0.37
    ),
    "VTrace": estimated(lambda: ld.ScoreFunction(advantages.VTrace(ld.baselines.Value(lambda o: o * 0.37)))),
    "PPO": set_to(ld.PPO, clip=0.37, discount=0.9),
    "gradient_from_samples": from_samples(),
    "gradient_from_samples: weights": from_samples(weights=[0.25, 0.0, 0.75]),
    "gradient_from_samples: a baseline": from_samples(baseline=100.2),
}
EXACT = {
    "value": of_exact(exact.value, discount=0.999),
    "value: enumeration": of_exact(lambda *a, **k: exact.value(*a, method="enumeration", **k), discount=0.37),
    "gradient": of_exact(exact.gradient, discount=0.999),
    "hessian": of_exact(exact.hessian, discount=0.37),
    "state_values": of_exact(exact.state_values, discount=0.999),
    "occupancy": of_exact(exact.occupancy),
    "policy_table": case(
        lambda params: exact.policy_table(params, ld.shared_softmax, environments.short_corridor(horizon=3)),
        params=LOGITS,
    ),
    "fisher": of_exact(exact.fisher),
    "weighted_score_moments": of_exact(
        lambda *a, **k: list(exact.weighted_score_moments(*a, **k)), discount=0.37, baseline=100.2
    ),
    "moments": of_exact(
        lambda *a, **k: list(exact.moments(*a, ld.ScoreFunction(), num_trajectories=2, **k))[:4],
        discount=0.37,
        behavior_params=LOGITS,
    ),
    "compare_expectation": case(
        lambda params, discount: list(
            exact.compare_expectation(
                params,
                KEY,
                ld.shared_softmax,
                environments.short_corridor(horizon=3),
                horizon=2,
                num_samples=4,
                discount=discount,
            )
        )[1:],
        params=LOGITS,
        discount=0.37,
    ),
    "enumerate_trajectories": case(
        lambda params: exact.enumerate_trajectories(
            environments.short_corridor(horizon=3), horizon=2, params=params, policy=ld.shared_softmax
        ),
        params=LOGITS,
    ),
    "enumerate_trajectories: a clock": case(
        lambda reward, terminated: exact.enumerate_trajectories(Clock(reward, terminated), horizon=3),
        reward=ROW,
        terminated=[0, 1, 1],
    ),
    "program_value": case(lambda params: exact.program_value(params, flip, num_choices=1, num_outcomes=2), params=0.37),
    "program_derivatives": case(
        lambda params: [
            list(m)[:3]
            for m in exact.program_derivatives(params, ld.expectation(flip), order=1, num_choices=1, num_outcomes=2)
        ],
        params=0.37,
    ),
}
EXPECTATIONS = {
    "Expectation": case(lambda params: ld.expectation(flip, num_samples=3)(params, KEY), params=0.37),
    "cost": case(
        lambda params, cost, baseline: ld.expectation(pays(cost, baseline), num_samples=3)(params, KEY),
        params=0.37,
        cost=0.37,
        baseline=100.9,
    ),
    "Tape": case(
        lambda cost, baseline: ld.Tape.start(KEY).sample(ld.Bernoulli(0.3), baseline=baseline)[0].cost(cost).total,
        cost=0.37,
        baseline=100.9,
    ),
    "gradients_score": score_of_normal(expectations.gradients_score),
    "gradients_pathwise": score_of_normal(expectations.gradients_pathwise),
    "gradients_measure_valued": score_of_normal(expectations.gradients_measure_valued),
    "gradients_measure_valued: of a choice": case(
        lambda params: expectations.gradients_measure_valued(
            params, KEY, lambda p: ld.Categorical(jnp.stack([p, 2 * p])), lambda x: 2 * x, num_samples=2
        ),
        params=0.37,
    ),
}
ENVIRONMENTS = {
    "TabularMDP": case(
        mdp,
        reward=[[0.37, 120.9], [-0.2, 1.4]],
        initial=[1.0, 0.0],
        transition=[[[0.75, 0.25], [0.0, 1.0]], [[1.0, 0.0], [0.25, 0.75]]],
        terminal=[0, 1],
    ),
    "RewardLaw": case(
        lambda values, probabilities: mdp(environments.RewardLaw(values, probabilities)),
        values=[0.37, 120.9],
        probabilities=[[[0.75, 0.25], [0.5, 0.5]], [[1.0, 0.0], [0.25, 0.75]]],
    ),
    "rollout": case(
        lambda params, reward, terminated: ld.rollout(params, KEY, ld.shared_softmax, Clock(reward, terminated)),
        params=LOGITS,
        reward=ROW,
        terminated=[0, 1, 1],
    ),
    "collect": case(
        lambda params, reward, terminated: ld.sampling.collect(
            params,
            KEY,
            ld.shared_softmax,
            Clock(reward, terminated),
            ld.sampling.start_streams(KEY, Clock(reward, terminated), 2),
            num_steps=4,
        ),
        params=LOGITS,
        reward=ROW,
        terminated=[0, 1, 1],
    ),
    "evaluate": case(
        lambda params, reward, terminated: ld.evaluate(
            params, KEY, ld.shared_softmax, Clock(reward, terminated), num_episodes=2
        ),
        params=LOGITS,
        reward=ROW,
        terminated=[0, 1, 1],
    ),
    "batch_info": case(lambda **fields: ld.types.batch_info(taus(**fields)), rewards=TABLE, discounts=[ENDS, ENDS]),
}
LIKELIHOOD = {
    "log_prob": of_trajectories(ld.log_prob),
    "prob": of_trajectories(ld.prob),
    "log_factors": of_trajectories(ld.log_factors),
    "fisher_matrix": of_trajectories(likelihood.fisher_matrix),
    "grad_prob": case(lambda params: ld.grad_prob(params, COIN, one()), params=0.37),
    "compare": case(lambda params: ld.compare(params, COIN, one()).log_prob, params=0.37),
    "weighted_log_prob": case(
        lambda params, weights: ld.weighted_log_prob(params, ld.shared_softmax, taus(), weights),
        params=LOGITS,
        weights=TABLE,
    ),
    "visit_counts": case(
        lambda states, actions, weights: likelihood.visit_counts(states, actions, weights, (2, 2)) * 1.0,
        ("states", "actions"),
        states=[0, 1, 1],
        actions=[0, 1, 0],
        weights=[100.2, 0.37, 120.9],
    ),
    "token_sum": case(
        lambda unembedding, hidden, tokens: ld.token_sum(lambda t: t.log_prob, unembedding, hidden, tokens).value,
        ("tokens",),
        unembedding=TABLE,
        hidden=TABLE,
        tokens=[0, 1],
    ),
    "token_log_probs": case(
        lambda unembedding, hidden, tokens: ld.token_log_probs(unembedding, hidden, tokens).log_probs,
        ("tokens",),
        unembedding=TABLE,
        hidden=TABLE,
        tokens=[0, 1],
    ),
    "log_ratios": case(
        lambda params, behavior_log_probs: importance.log_ratios(
            params, ld.shared_softmax, taus(behavior_log_probs=behavior_log_probs)
        ),
        params=LOGITS,
        behavior_log_probs=TABLE,
    ),
    "with_behavior": of_trajectories(lambda *a: importance.with_behavior(*a).behavior_log_probs),
}
DISTRIBUTIONS = {
    "Categorical": by_log_prob(ld.Categorical, 1, True, logits=ROW),
    "OneHotCategorical": by_log_prob(ld.distributions.OneHotCategorical, [0, 1, 0], logits=ROW),
    "Poisson": by_log_prob(distributions.Poisson, [1, 0, 40], True, log_rate=[0.3, -0.9, 3.2]),
    "Joint": by_log_prob(
        lambda logits: distributions.Joint(ld.Bernoulli(logits)), [1, 0, 1], True, logits=[0.3, -0.9, 20.2]
    ),
    "Bernoulli": by_log_prob(ld.Bernoulli, [1, 0, 1], True, logits=[0.3, -0.9, 20.2]),
    "Normal": by_log_prob(ld.Normal, ROW, loc=[0.2, 0.1, 100.9], scale=[0.9, 1.2, 3.1]),
    "TanhNormal": by_log_prob(ld.distributions.TanhNormal, [0.37, -0.2], loc=[0.2, 0.9], scale=[0.9, 1.2]),
    "MultivariateNormal": by_log_prob(
        distributions.MultivariateNormal, [0.37, -0.2], loc=[0.2, 100.9], scale_tril=[[0.9, 0.0], [0.2, 1.2]]
    ),
    "masked": case(ld.masked, logits=ROW, mask=[1, 0, 1]),
    "covariance_from": case(distributions.covariance_from, log_cholesky=[[0.3, 0.0], [1.2, -0.4]]),
    "log_cholesky_of": case(distributions.log_cholesky_of, covariance=[[2.3, 0.4], [0.4, 1.4]]),
    "tabular_softmax": case(
        lambda params, observation: ld.tabular_softmax.apply(params, observation).log_prob(1),
        ("observation",),
        params=TABLE,
        observation=1,
    ),
    "shared_softmax": case(
        lambda params: ld.shared_softmax.apply(params, 0).log_prob(1), names={"params": "logits"}, params=LOGITS
    ),
    "normal_head": case(lambda outputs: ld.normal_head(outputs).log_prob(jnp.ones(1)), outputs=LOGITS),
    "tanh_normal_head": case(
        lambda outputs: policies.tanh_normal_head(outputs).log_prob(jnp.ones(1) / 2), outputs=LOGITS
    ),
}
CASES = (
    RETURNED | ESTIMATORS | EXACT | OBJECTIVES | EXPECTATIONS | ENVIRONMENTS | LIKELIHOOD | DISTRIBUTIONS | PROCESSES
)
LIGHT = {*RETURNED, *DISTRIBUTIONS}  # nothing that is compiled anew for each dtype

# What takes no numbers of its own: results, bases, protocols, adapters, and what is made of functions, names and whole numbers.
APART = [
    *("QuadraticValues", "Advantage", "Batch", "Bootstrapped", "Credited", "Transformed", "VTraceReturns"),
    *("Baseline", "MovingAverageState", "SharedValue", "StateBaseline", "Summary", "VarianceRatio", "ActionSpace"),
    *("Differences", "HiddenChain", "Mismatch", "Particles", "Runs", "Site", "key"),
    *("Brax", "Gymnasium", "Gymnax", "Jumanji", "Declaration", "Estimator", "Part", "Structure", "Surrogate"),
    *(
        "Weighting",
        "ExpectationComparison",
        "GroupMoments",
        "Moments",
        "ScoreMoments",
        "Case",
        "Comparison",
        "TokenLogProbs",
        "HiddenStates",
        "TokenNumbers",
        "TokenSum",
    ),
    *("FunctionPolicy", "PolicyWrapper", "StepPolicy", "Emitting", "Event", "Filtered", "GaussianMoments"),
    *("HiddenProcess", "MarkovChainPolicy", "MasterEquationValue", "Population", "Position", "Previous", "Process"),
    *("SearchParams", "StateSpaceMatrices", "StateSpaceModel", "TokenObservation", "TokenPolicy", "TokenState"),
    *("AutoregressiveParams", "HiddenMarkovParams", "LinearGaussianParams", "LinearPolicyParams", "LocalLevelParams"),
    *("MarkovChainParams", "Bar", "CSVWriter", "Reporter", "TensorBoardWriter", "StreamState", "OrderReport"),
    *("PaddingReport", "ScoreReport", "UnbiasedReport", "Checkpoints", "Episodes", "Evaluation", "Groups", "Metrics"),
    *("Steps", "TrainState", "Training", "BatchInfo", "Distribution", "Environment", "Estimate", "Policy"),
    *("SignedLog", "Step", "Stream", "TimeStep", "Trajectory", "as_environment", "as_policy", "check_action"),
    *("check_distribution", "biased", "count_trajectories", "num_categories", "num_trajectories", "make_mesh"),
    *(
        "start_streams",
        "short_corridor",
        "Converted",
        "from_transitions",
        "prisoners_dilemma",
        "schlogl",
        "familywise",
        "bounded_while_loop",
        "GRU",
    ),
    *("MLP", "MLPActorCritic", "MLPValue", "TanhNormalHead", "ActionHead", "policy_for"),
    *("Divergences", "Bound", "PRESETS", "preset", "MaxAtK", "check_objective", "ExpectedGradient", "ObjectiveReport"),
    *("SampleGradient", "RunningMoments", "NormalEmissionParams", "StatePath"),
]
# Whose numbers are those of another case, which they are made of or hand them on to.
AS_OTHERS = {
    **dict.fromkeys(("A2C", "GRPO", "RLOO", "ActorCritic", "DrGRPO", "PPOActorCritic", "OptimalPerParameter"), "ToGo"),
    **dict.fromkeys(("Grouped", "Standardized", "Credit", "BatchMean", "LeaveOneOut", "Optimal"), "ToGo"),
    **dict.fromkeys(("LearnedValue", "Value"), "GAE"),
    **dict.fromkeys(("DiCE", "LoadedDiCE", "Score"), "ScoreFunction"),
    **dict.fromkeys(("gradient_moments", "per_trajectory_gradients", "variance_by_step"), "ScoreFunction"),
    **dict.fromkeys(("train", "maximize", "natural_gradient", "check_order"), "ScoreFunction"),
    **dict.fromkeys(("fisher_vector_product",), "fisher_matrix"),
    **dict.fromkeys(("over_steps", "check_padding", "check_score", "next_observations"), "log_factors"),
    **dict.fromkeys(
        ("sample", "antithetic_sample", "log_probs", "Forced", "TabularSoftmax", "SharedSoftmax"), "Categorical"
    ),
    **dict.fromkeys(("PartlyObserved", "LinearGaussian", "fisher_score", "fisher_score_samples"), "LocalLevel"),
    **dict.fromkeys(("birth_death", "birth_death_mean", "master_equation_value"), "JumpProcess"),
    **dict.fromkeys(("ornstein_uhlenbeck_moments", "transfer_value", "girsanov_log_ratios"), "EulerMaruyama"),
    **dict.fromkeys(("Fitness", "rollout_pairs"), "NormalSearch"),
    **dict.fromkeys(("ClipTokens", "Mask", "Ratio", "Soft", "TotalVariation", "Truncate"), "Clip"),
    **dict.fromkeys(("Centered", "Recipe"), "advantages"),
    **dict.fromkeys(("plate", "expected", "score"), "cost"),
    "expectation": "Expectation",
    "frontier": "sem",
    "identity": "compare",
    "learning_curves": "evaluate",
    "relative_error": "compare",
}
