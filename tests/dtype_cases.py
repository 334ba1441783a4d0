"""What `test_project_dtypes` gives to every public function: the arguments that are numbers, and the rest of the call."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Lists and numbers are given where the signatures say arrays.

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
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
    objectives,
    policies,
    processes,
    testing,
)

KEY = jax.random.key(0)
ROW, TABLE = [0.3, -0.9, 120.2], [[0.3, -0.2, 1.4], [0.5, 2.1, -0.7]]
ENDS, UNIT, MASK = [1.0, 1.0, 0.0], [0.999, 0.37, 0.0], [1.0, 1.0, 0.0]
EYE, LOGITS = [[1.0, 0.0], [0.0, 1.0]], [0.3, -0.9]


class Case(NamedTuple):
    """A call; its arguments that are numbers, those among them that are whole; and what messages call an argument, a pattern."""

    call: Callable[..., Any]
    numbers: dict[str, np.ndarray]
    whole: tuple[str, ...] = ()
    names: dict[str, str] = {}  # noqa: RUF012, not changed


def case(
    call: Callable[..., Any], whole: tuple[str, ...] = (), names: dict[str, str] | None = None, **numbers: Any
) -> Case:
    return Case(call, {name: np.asarray(x, float) for name, x in numbers.items()}, whole, names or {})


class Clock:
    """Three steps, of which it is given what they pay and whether they are the last."""

    horizon, num_actions = 3, 2

    def __init__(self, reward: Any, terminated: Any) -> None:
        self.reward, self.terminated = jnp.asarray(reward), jnp.asarray(terminated)

    def reset(self, key: Any, params: Any = None) -> Any:
        return jnp.int32(0), jnp.int32(0)

    def step(self, key: Any, state: Any, action: Any, params: Any = None) -> Any:
        return state + 1, state + 1, self.reward[state], self.terminated[state], 0


def taus(**fields: Any) -> ld.Trajectory:
    """Two trajectories of three steps, with these fields."""
    ones = jnp.ones((2, 3))
    usual = {"observations": jnp.zeros((2, 3), int), "actions": jnp.array([[0, 1, 1], [1, 0, 0]]), "rewards": ones}
    usual |= {"discounts": ones, "valid": ones > 0, "behavior_log_probs": -ones, "final_observation": jnp.zeros(2, int)}
    return ld.Trajectory(**usual | fields)


def one(**fields: Any) -> ld.Trajectory:
    """The first of `taus`."""
    return jax.tree.map(lambda x: x[0], taus())._replace(**fields)


def estimate(estimator: Any, trajectories: Any = None, params: Any = None) -> Any:
    params = jnp.array(LOGITS) if params is None else params
    trajectories = taus() if trajectories is None else trajectories
    return estimator.estimate(params, estimator.init(params), ld.shared_softmax, trajectories)[0].grads


def estimated(make: Callable[[], Any]) -> Case:
    """The gradient of an estimator, from trajectories with these fields."""

    def call(**fields: Any) -> Any:
        return estimate(make(), taus(**fields))

    return case(call, rewards=TABLE, discounts=[ENDS, [1, 1, 1]], valid=[MASK, [1, 1, 1]], behavior_log_probs=TABLE)


def set_to(make: Callable[..., Any], **settings: Any) -> Case:
    """The gradient of an estimator with these settings."""
    return case(lambda **kwargs: estimate(make(**kwargs), taus(rewards=jnp.array(TABLE))), **settings)


def by_log_prob(make: Callable[..., Any], action: Any, whole: bool = False, **parameters: Any) -> Case:
    """Log-probability of an action, entropy where there is one, and a draw."""

    def call(action: Any, **parameters: Any) -> Any:
        made = make(**parameters)
        entropy = made.entropy() if hasattr(made, "entropy") else 0.0
        return made.log_prob(action), entropy, made.sample(KEY)

    return case(call, ("action",) if whole else (), {"action": r"action|\bx\b"}, action=action, **parameters)


def flip(params: Any, tape: ld.Tape) -> ld.Tape:
    tape, x = tape.sample(ld.Bernoulli(params))
    return tape.cost(2.5 * x)


def mdp(reward: Any, **tables: Any) -> Any:
    tables = {"initial": jnp.array([1.0, 0.0]), "transition": jnp.ones((2, 2, 2)) / 2, "terminal": [0, 0]} | tables
    made = environments.TabularMDP(tables["initial"], tables["transition"], reward, tables["terminal"])
    where: Any = (jnp.array([LOGITS, LOGITS]), ld.tabular_softmax, made)
    by_hand = exact.value(*where, horizon=2, discount=0.9, method="enumeration")
    return exact.value(*where, horizon=2, discount=0.9), by_hand


def of_exact(function: Callable[..., Any], **numbers: Any) -> Case:
    def call(params: Any, **kwargs: Any) -> Any:
        return function(params, ld.shared_softmax, environments.short_corridor(horizon=3), horizon=3, **kwargs)

    return case(call, params=LOGITS, **numbers)


def of_trajectories(function: Callable[..., Any]) -> Case:
    """A function of parameters, policy and trajectories."""

    def call(params: Any, valid: Any) -> Any:
        return function(params, ld.shared_softmax, taus(valid=valid))

    return case(call, params=LOGITS, valid=[MASK, [1, 1, 1]])


def score_of_normal(distribution: Any) -> Case:
    def call(params: Any) -> Any:
        made = lambda p: ld.Normal(p, 0.9)  # noqa: E731
        return distribution(params, KEY, made, lambda x: jnp.sum(x**2), num_samples=3)

    return case(call, params=0.37)


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
    "GAE": set_to(
        lambda lambda_: ld.ScoreFunction(advantages.GAE(lambda_, ld.baselines.Value(lambda o: o * 0.37))), lambda_=0.37
    ),
    "VTrace": estimated(lambda: ld.ScoreFunction(advantages.VTrace(ld.baselines.Value(lambda o: o * 0.37)))),
    "PPO": set_to(ld.PPO, clip=0.37, discount=0.9),
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
TOKENS = [[-0.3, -1.2], [-0.7, -2.1], [-1.4, -0.2]]
ON_TOKENS = {name: np.float32(TOKENS) for name in ("log_probs", "weights", "step_kl", "step_entropy")}
ON_TOKENS |= {"old": np.float32(TOKENS[::-1]), "advantages": np.float32(ROW)}
OBJECTIVES = {
    "advantages": case(
        lambda rewards, greedy, groups: objectives.advantages(
            rewards, groups, num_groups=2, kind=objectives.Centered("greedy"), greedy=greedy
        ),
        whole=("groups",),
        rewards=ROW,
        greedy=[1.3, 0.2, 0.7],
        groups=[0, 1, 1],
    ),
    "token_weights": case(
        lambda mask, groups: objectives.token_weights(mask, groups, per="group"),
        whole=("groups",),
        mask=[[1, 1], [1, 0], [0, 1]],
        groups=[0, 1, 1],
    ),
    "objective": case(
        lambda **arrays: objectives.objective(**arrays, kl=objectives.KL(0.37, "k3")),
        log_probs=TOKENS,
        advantages=ROW,
        weights=[[0.25, 0.5], [1.0, 0.0], [0.5, 1.5]],
        old=TOKENS[::-1],
        reference=TOKENS[::-1],
    ),
    "KL": case(lambda beta: objectives.objective(**ON_TOKENS, kl=objectives.KL(beta)), beta=0.37),
    "Entropy": case(lambda weight: objectives.objective(**ON_TOKENS, entropy=objectives.Entropy(weight)), weight=0.37),
    "Clip": case(
        lambda low, high, dual: objectives.objective(
            **ON_TOKENS, ratio=objectives.Ratio(bound=objectives.Clip(low, high, dual))
        ),
        low=0.37,
        high=0.37,
        dual=3.7,
    ),
    "divergences": case(
        lambda params, reference: exact.divergences(
            params, reference, ld.shared_softmax, environments.short_corridor(horizon=3), horizon=2
        ),
        names={"params": "params|reference"},
        params=LOGITS,
        reference=LOGITS[::-1],
    ),
}
EXPECTATIONS = {
    "Expectation": case(lambda params: ld.expectation(flip, num_samples=3)(params, KEY), params=0.37),
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
    "rollout": case(
        lambda params, reward, terminated: ld.rollout(params, KEY, ld.shared_softmax, Clock(reward, terminated)),
        params=LOGITS,
        reward=ROW,
        terminated=[0, 1, 1],
    ),
    "collect": case(
        lambda params, reward, terminated: ld.collect(
            params,
            KEY,
            ld.shared_softmax,
            Clock(reward, terminated),
            ld.start_streams(KEY, Clock(reward, terminated), 2),
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
    "Bernoulli": by_log_prob(ld.Bernoulli, [1, 0, 1], True, logits=[0.3, -0.9, 20.2]),
    "Normal": by_log_prob(ld.Normal, ROW, loc=[0.2, 0.1, 100.9], scale=[0.9, 1.2, 3.1]),
    "TanhNormal": by_log_prob(ld.TanhNormal, [0.37, -0.2], loc=[0.2, 0.9], scale=[0.9, 1.2]),
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

EXACTLY = processes.AutoregressiveParams
SERIES = [0.37, -1.2, 100.9]
HIDDEN, LEVEL = processes.HiddenMarkovModel(), processes.LocalLevel(0.5, 2.0)


def autoregressive(coefficient: Any, log_scale: Any, series: Any, initial: Any) -> Any:
    process, params = processes.Autoregressive(initial), processes.AutoregressiveParams(coefficient, log_scale)
    tau = process.trajectory(series)
    by_steps = ld.log_prob(params, process.policy, tau)
    moments = process.moments(params, 3)
    return by_steps, process.log_likelihood(params, series), moments, process.fisher_information(params, 3), tau.rewards


def markov_chain(initial: Any, transition: Any, reward: Any, terminal: Any) -> Any:
    chain = processes.MarkovChain(reward, terminal=terminal)
    params = processes.MarkovChainParams(initial, transition)
    return exact.value(params, chain.policy, chain, horizon=3), chain.policy.apply(params, jnp.int32(0)).logits


def hidden_markov(initial: Any, transition: Any, emission: Any, observations: Any, observed: Any) -> Any:
    params = processes.HiddenMarkovParams(initial, transition, emission)
    given: Any = {"observed": observed}
    likelihood = HIDDEN.log_likelihood(params, observations, **given)
    return likelihood, HIDDEN.smooth(params, observations, **given), HIDDEN.sample_states(params, KEY, observations)


def local_level(noise: Any, level: Any, observations: Any, observed: Any) -> Any:
    params = processes.LocalLevelParams(noise, level)
    found = LEVEL.log_likelihood(params, observations, observed=observed)
    return found, processes.fisher_score(processes.LocalLevelParams(0.2, -0.3), LEVEL, observations)


def linear_quadratic(gain: Any, log_std: Any, discount: Any, **arrays: Any) -> Any:
    system = processes.LinearQuadratic(**arrays, horizon=2)
    params = processes.LinearPolicyParams(gain, log_std)
    return system.value(params, horizon=3, discount=discount), ld.rollout(params, KEY, system.policy, system)


def jumps(params: Any, t_end: Any) -> Any:
    process = processes.birth_death(2, t_end, horizon=9)
    mean, value = (
        processes.birth_death_mean(params, process),
        processes.master_equation_value(params, process, max_counts=[9]),
    )
    return mean, value, ld.rollout(params, KEY, process.policy, process)


def diffusion(params: Any, noise: Any, initial: Any, dt: Any) -> Any:
    process = processes.EulerMaruyama(processes.ornstein_uhlenbeck_drift, noise, initial, dt, 3)
    moments = processes.ornstein_uhlenbeck_moments(params, process)
    value = processes.transfer_value(params, process, low=-6.0, high=9.0, num_points=40)
    tau = ld.rollout(params, KEY, process.policy, process)
    ratios = processes.girsanov_log_ratios(params, process, tau, reference_params=jnp.array([0.5, 0.3]))
    return moments, value, tau, ratios


def search(mean: Any, std: Any, fitness: Any) -> Any:
    normal = processes.NormalSearch()
    params = normal.init(mean, std=std)
    return processes.rollout_pairs(params, jax.random.split(KEY, 2), normal, processes.Fitness(lambda x, key: fitness))


PROCESSES = {
    "Autoregressive": case(
        autoregressive, names={"series": "actions"}, coefficient=0.37, log_scale=0.2, series=SERIES, initial=1.2
    ),
    "MarkovChain": case(
        markov_chain,
        initial=LOGITS,
        transition=[[0.3, 1.2], [-0.9, 0.1]],
        reward=[0.37, 100.9],
        terminal=[0, 1],
    ),
    "RandomWalk": case(
        lambda params: exact.value(params, processes.RandomWalk.policy, processes.RandomWalk(2), horizon=2), params=3.7
    ),
    "MatrixGame": case(
        lambda payoffs, first, second, discount: processes.MatrixGame(payoffs).value(
            (first, second), horizon=2, discount=discount
        ),
        names={"first": r"params\[0\]", "second": r"params\[1\]"},
        payoffs=[[[0.3, 1.2], [100.9, 0.1]], [[0.3, 1.2], [-0.9, 0.1]]],
        first=[[0.3, 1.2]] * 5,
        second=[[0.3, -1.2]] * 5,
        discount=0.37,
    ),
    "look_ahead": case(
        lambda params, learning_rate: processes.look_ahead(
            params, KEY, lambda p, key: jnp.sum(p**2), learning_rate=learning_rate, steps=2
        ),
        params=0.37,
        learning_rate=0.37,
    ),
    "LinearQuadratic": case(
        linear_quadratic,
        gain=[[0.37, -0.2]],
        log_std=[0.2],
        discount=0.9,
        transition=EYE,
        control=[[0.9], [1.2]],
        noise=EYE,
        state_cost=EYE,
        control_cost=[[1.3]],
        initial_mean=[0.37, 1.9],
        initial_noise=EYE,
    ),
    "JumpProcess": case(jumps, params=[0.3, -0.4], t_end=1.37),
    "NextEvent": case(
        lambda rates, remaining, wait: (
            processes.NextEvent(rates, remaining).log_prob(processes.Event(wait, 1)),
            processes.NextEvent(rates, remaining).sample(KEY),
        ),
        rates=[0.37, 1.9, 3.1],
        remaining=2.37,
        wait=0.6,
    ),
    "MassAction": case(processes.MassAction([[2], [0]]), params=LOGITS, x=[3.0]),
    "EulerMaruyama": case(diffusion, params=[0.7, 0.37], noise=0.9, initial=1.2, dt=0.6),
    "double_well_drift": case(
        lambda params, x: processes.double_well_drift(params, x, 0.0), params=LOGITS, x=[0.3, 12.2]
    ),
    "ornstein_uhlenbeck_drift": case(
        lambda params, x: processes.ornstein_uhlenbeck_drift(params, x, 0.0), params=LOGITS, x=[0.3, 120.2]
    ),
    "NormalSearch": case(search, mean=ROW, std=1.37, fitness=100.9),
    "TreeNormal": by_log_prob(processes.TreeNormal, ROW, loc=[0.2, 0.1, 100.9], scale=1.2),
    "HiddenMarkovModel": case(
        hidden_markov,
        ("observations",),
        {"observations": "action|observations"},
        initial=LOGITS,
        transition=[[0.3, 1.2], [-0.9, 0.1]],
        emission=[[0.3, 1.2], [-0.9, 0.1]],
        observations=[0, 1, 1],
        observed=[1, 0, 1],
    ),
    "LocalLevel": case(
        local_level,
        names={"noise": "log_observation_variance", "level": "log_level_variance"},
        noise=0.37,
        level=-0.6,
        observations=SERIES,
        observed=[1, 0, 1],
    ),
    "TokenModel": case(
        lambda reward: (
            processes.TokenModel(
                ld.shared_softmax, lambda tokens, length: jnp.asarray(reward), vocabulary=2, end=0, horizon=2
            )
            .step(KEY, processes.TokenState(jnp.full(2, -1), jnp.full(3, -1), jnp.int32(1)), 0)
            .reward
        ),
        reward=100.37,
    ),
}
CASES = (
    RETURNED | ESTIMATORS | EXACT | OBJECTIVES | EXPECTATIONS | ENVIRONMENTS | LIKELIHOOD | DISTRIBUTIONS | PROCESSES
)
LIGHT = {*RETURNED, *DISTRIBUTIONS}  # nothing that is compiled anew for each dtype

# What takes no numbers of its own: results, bases, protocols, adapters, and what is made of functions, names and whole numbers.
APART = [
    "QuadraticValues",
    "Advantage",
    "Batch",
    "Bootstrapped",
    "Credited",
    "Transformed",
    "VTraceReturns",
    "Baseline",
    "MovingAverageState",
    "SharedValue",
    "StateBaseline",
    "Summary",
    "VarianceRatio",
    "ActionSpace",
    "Brax",
    "Gymnasium",
    "Gymnax",
    "Jumanji",
    "Declaration",
    "Estimator",
    "Part",
    "Structure",
    "Surrogate",
    "Weighting",
    "ExpectationComparison",
    "Moments",
    "ScoreMoments",
    "Case",
    "Comparison",
    "TokenLogProbs",
    "FunctionPolicy",
    "PolicyWrapper",
    "StepPolicy",
    "Emitting",
    "Event",
    "Filtered",
    "GaussianMoments",
    "HiddenProcess",
    "MarkovChainPolicy",
    "MasterEquationValue",
    "Population",
    "Position",
    "Previous",
    "Process",
    "SearchParams",
    "StateSpaceMatrices",
    "StateSpaceModel",
    "TokenObservation",
    "TokenPolicy",
    "TokenState",
    "AutoregressiveParams",
    "HiddenMarkovParams",
    "LinearGaussianParams",
    "LinearPolicyParams",
    "LocalLevelParams",
    "MarkovChainParams",
    "Bar",
    "CSVWriter",
    "Reporter",
    "TensorBoardWriter",
    "StreamState",
    "OrderReport",
    "PaddingReport",
    "ScoreReport",
    "UnbiasedReport",
    "Checkpoints",
    "Episodes",
    "Evaluation",
    "Groups",
    "Metrics",
    "Steps",
    "TrainState",
    "Training",
    "BatchInfo",
    "Distribution",
    "Environment",
    "Estimate",
    "Policy",
    "SignedLog",
    "Step",
    "Stream",
    "TimeStep",
    "Trajectory",
    "as_environment",
    "as_policy",
    "check_action",
    "check_distribution",
    "biased",
    "count_trajectories",
    "num_categories",
    "num_trajectories",
    "make_mesh",
    "start_streams",
    "short_corridor",
    "prisoners_dilemma",
    "schlogl",
    "familywise",
    "bounded_while_loop",
    "GRU",
    "MLP",
    "MLPActorCritic",
    "MLPValue",
    "TanhNormalHead",
    "Divergences",
    "Bound",
    "PRESETS",
    "preset",
    "MaxAtK",
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
    **dict.fromkeys(("sample", "log_probs", "Forced", "TabularSoftmax", "SharedSoftmax"), "Categorical"),
    **dict.fromkeys(("PartlyObserved", "LinearGaussian", "fisher_score", "fisher_score_samples"), "LocalLevel"),
    **dict.fromkeys(("birth_death", "birth_death_mean", "master_equation_value"), "JumpProcess"),
    **dict.fromkeys(("ornstein_uhlenbeck_moments", "transfer_value", "girsanov_log_ratios"), "EulerMaruyama"),
    **dict.fromkeys(("Fitness", "rollout_pairs"), "NormalSearch"),
    **dict.fromkeys(("ClipTokens", "Mask", "Ratio", "Soft", "TotalVariation", "Truncate"), "Clip"),
    **dict.fromkeys(("Centered", "Recipe"), "advantages"),
    "expectation": "Expectation",
    "frontier": "sem",
    "identity": "compare",
    "learning_curves": "evaluate",
    "relative_error": "compare",
}
