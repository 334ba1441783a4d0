"""Every public function under the modes of JAX that take what may be meant for a mistake, in 32 bits, as users have it.

Dtypes and ranks are never promoted, and no key is used twice. `python -m tests.modes traced` compiles nothing, `python -m tests.modes eager`
calls what looks at numbers. Each prints what failed, and why.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental.key_reuse._core import check_key_reuse

import logderiv as ld
from logderiv import (
    advantages,
    diagnostics,
    distributions,
    estimators,
    exact,
    expectations,
    importance,
    likelihood,
    objectives,
    policies,
    processes,
    testing,
    types,
)
from tests import examples
from tests.worlds import TERMINATING_LOGITS, InUnits, terminating

# Nothing is computed in these, or by another library, or they are called under other names.
APART = {"plots", "reporting", "environments.as_environment", "environments.check_action", "training.make_mesh"}
APART |= {"distributions.check_distribution", "policies.as_policy", "estimators.biased", "testing.familywise"}
APART |= {"exact.enumerate_trajectories", "processes.birth_death", "processes.double_well_drift"}
APART |= {"processes.ornstein_uhlenbeck_drift", "objectives.preset"}
WORLD, POLICY, SGD = terminating(), ld.tabular_softmax, optax.sgd(0.1)
PARAMS = TERMINATING_LOGITS.astype(jnp.float32)
LOO = ld.ScoreFunction(advantages.ToGo(ld.baselines.LeaveOneOut()))
JOINT = distributions.Joint({"a": ld.Categorical(jnp.ones((2, 3), jnp.float32)), "b": ld.Bernoulli(jnp.float32(0.5))})
MATRIX = jnp.ones((4, 2), jnp.float32)
ONES, HALF, KEY = jnp.ones(3), jnp.float32(0.5), jax.random.key(0)


def key() -> Any:
    return jax.random.clone(KEY)


def value(params: Any, observation: Any) -> Any:
    return 0.1 * jnp.sum(params)


def by_numbers(params: Any, observation: Any) -> Any:
    return ld.Categorical(jnp.matmul(observation["x"], params, precision="highest"))


def normal(mean: Any) -> Any:
    return ld.Normal(mean, jnp.ones(()))


def draws(num: int = 4) -> Any:
    return ld.rollout(PARAMS, jax.random.split(key(), num), POLICY, WORLD, horizon=3)


def one() -> Any:
    return jax.tree.map(lambda x: x[0], draws())


def weighted() -> Any:
    every = exact.enumerate_trajectories(WORLD, horizon=1)
    return every, ld.prob(PARAMS, POLICY, every, environment=WORLD)


def stream() -> Any:
    start = ld.sampling.start_streams(key(), WORLD, 2)
    return ld.sampling.collect(PARAMS, key(), POLICY, WORLD, start, num_steps=3, horizon=4)[0]


def train(batch: Any, estimator: Any = LOO, *, params: Any = PARAMS, keys: Any = None, **options: Any) -> Any:
    keys = key() if keys is None else keys
    options = {"optimizer": SGD, "num_updates": 4, **options}
    return ld.train(params, keys, POLICY, WORLD, batch, estimator=estimator, **options)


def program(logit: Any, tape: Any) -> Any:
    tape, x = tape.sample(ld.Bernoulli(logit))
    return tape.cost(x.astype(jnp.float32))


def model(logit: Any) -> None:
    """One call of each kind."""
    x = ld.plate(lambda logit: ld.sample(ld.Bernoulli(logit)))(logit * jnp.ones(2))
    y = jax.random.bernoulli(ld.key())
    ld.score(ld.Bernoulli(logit), y)
    ld.expected(ld.Bernoulli(logit), lambda z: z.astype(jnp.float32))
    ld.cost(jnp.sum(x).astype(jnp.float32))


def trained() -> dict[str, Callable[[], Any]]:
    """Training in each of its ways."""
    episodes, often = ld.Episodes(4, horizon=3), partial(ld.Evaluation, num_episodes=2)
    natural = optax.chain(ld.natural_gradient(POLICY), SGD)
    seeds = {"params": jnp.stack([PARAMS, PARAMS]), "keys": jax.random.split(key())}
    ppo = ld.PPOActorCritic(value)
    running = advantages.ScaledRewards(advantages.GAE(0.9))
    scaled: Any = {"estimator": ld.ActorCritic(ld.PPO(running), value), "optimizer": SGD, "num_updates": 3, "epochs": 2}
    return {
        "training.train": lambda: train(episodes, evaluation=often(every=3)),
        "an early stop": lambda: train(episodes, evaluation=often(every=2, stop_at=-99.0), **seeds),
        "a stream in which no episode ends": lambda: train(ld.Steps(2, 1, horizon=9), ld.A2C(value)),
        "normalized, over a running scale": lambda: ld.train(
            MATRIX, key(), policies.Normalized(by_numbers), InUnits(jnp.float32), ld.Steps(2, 4), **scaled
        ),
        "minibatches": lambda: train(ld.Steps(2, 4, horizon=9), ppo, epochs=2, minibatches=2),
        "groups": lambda: train(ld.Groups(2, 2, horizon=3), ld.GRPO(2)),
        "likelihood.natural_gradient": lambda: train(episodes, optimizer=natural),
    }


ONE = jnp.int32(1)
SERIES, TWO, CHAIN = jnp.array([0, 1, 1]), jnp.array([1.0, 0.8]), examples.process("HiddenMarkovModel")
WELL = processes.EulerMaruyama(processes.double_well_drift, 0.5, -1.0, 0.1, 3)
SETTLED = processes.EulerMaruyama(processes.ornstein_uhlenbeck_drift, 0.5, -1.0, 0.1, 3)
BIRTHS, GAME = processes.birth_death(2, 0.5, horizon=9), processes.prisoners_dilemma()
SAMPLES = jnp.sin(jnp.arange(90.0)).reshape(30, 3)
MAPPED = {"horizon": 2, "discount": 0.9}


def filtered(params: Any) -> Any:
    return processes.particle_filter(params, CHAIN.environment, SERIES, num_particles=3).likelihood()


def of(function: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], Any]:
    """A call that is made later; keys are used once."""
    return lambda: function(*args, **options)


def exactly(name: str, **options: Any) -> Callable[[], Any]:
    """A call of `logderiv.exact`."""
    return of(getattr(exact, name), PARAMS, POLICY, WORLD, **options)


# What needs no numbers.
TRACED = {
    **{f"exact.{name}": exactly(name, **MAPPED) for name in ("value", "gradient", "hessian", "state_values")},
    **{f"exact.{name}": exactly(name, horizon=2) for name in ("fisher", "occupancy")},
    "exact.policy_table": of(exact.policy_table, PARAMS, POLICY, WORLD),
    "exact.program_value": of(exact.program_value, HALF, program, num_choices=1, num_outcomes=2),
    "exact.divergences": of(exact.divergences, PARAMS, PARAMS, POLICY, WORLD, horizon=2),
    "objectives.advantages": of(objectives.advantages, ONES, jnp.zeros(3, int), num_groups=1),
    "objectives.token_weights": of(objectives.token_weights, ONES[:, None] > 0, jnp.zeros(3, int)),
    "objectives.objective": lambda: objectives.objective(
        ONES[:, None], ONES, ONES[:, None], reference=ONES[:, None], kl=objectives.KL(0.1, "k3")
    ),
    "exact.weighted_score_moments": lambda: exact.weighted_score_moments(
        PARAMS, POLICY, WORLD, horizon=2, credit=advantages.reward_to_go
    ),
    **{f"advantages.{name}": of(getattr(advantages, name), ONES, ONES) for name in ("reward_to_go", "total_return")},
    "advantages.generalized_advantages": of(advantages.generalized_advantages, ONES, ONES, ONES, ONES, lambda_=0.9),
    "advantages.lambda_returns": of(advantages.lambda_returns, ONES, ONES, ONES, lambda_=0.9),
    "advantages.td_residuals": of(advantages.td_residuals, ONES, ONES, ONES, ONES),
    "advantages.vtrace": of(advantages.vtrace, ONES, ONES, ONES, ONES, ONES),
    "diagnostics.cosine": of(diagnostics.cosine, ONES, ONES),
    "diagnostics.sem": of(diagnostics.sem, SAMPLES),
    "diagnostics.sampler_mismatch": of(diagnostics.sampler_mismatch, -SAMPLES, -2 * SAMPLES),
    "diagnostics.gradient_moments": lambda: diagnostics.gradient_moments(PARAMS, POLICY, draws(), LOO),
    "diagnostics.per_trajectory_gradients": lambda: diagnostics.per_trajectory_gradients(PARAMS, POLICY, draws(), LOO),
    "diagnostics.variance_by_step": lambda: diagnostics.variance_by_step(PARAMS, POLICY, draws(), jnp.ones((4, 3))),
    "distributions": lambda: [
        (distributions.prob(d, x), distributions.log_prob(d, x), distributions.log_probs(d, x))
        for d in (ld.Categorical(TWO), ld.Bernoulli(HALF), normal(HALF), ld.distributions.TanhNormal(HALF, HALF), JOINT)
        for x in [distributions.sample(d, key())]
    ],
    "distributions.masked": of(distributions.masked, TWO, jnp.array([True, False])),
    "distributions.covariance_from": lambda: distributions.covariance_from(distributions.log_cholesky_of(jnp.eye(2))),
    "distributions.num_categories": of(distributions.num_categories, ld.Categorical(TWO), jnp.array(0)),
    "environments.from_transitions": of(ld.environments.from_transitions, {0: {0: [(1.0, 0, 1.0, True)]}}, [1.0]),
    "environments.short_corridor": of(ld.environments.short_corridor),
    "estimators": lambda: [
        estimator.estimate(PARAMS, estimator.init(PARAMS), POLICY, draws())
        for estimator in (LOO, ld.RLOO(2), ld.GRPO(2), estimators.DrGRPO(2), ld.ActorCritic(LOO, value))
    ],
    "estimators.A2C": lambda: ld.A2C(value).estimate(PARAMS, (), POLICY, stream()),
    "estimators.PPOActorCritic": lambda: ld.PPOActorCritic(value).estimate(PARAMS, (), POLICY, stream()),
    "estimators.box": of(estimators.box, ONES),
    "estimators.clipped": of(estimators.clipped, ONES, ONES, 0.2),
    "estimators.reduce_steps": of(estimators.reduce_steps, ONES[None], ONES[None] > 0, "per_step_of_batch"),
    "estimators.step_weights": of(estimators.step_weights, ONES[None] > 0, "per_step_of_batch", jnp.float32),
    "estimators.gradient_from_samples": lambda: [
        ld.gradient_from_samples(HALF, lambda mean, x: normal(mean).log_prob(x), ONES, ONES, weights=weights)
        for weights in (None, ONES / 3)
    ],
    "expectations.bounded_while_loop": lambda: ld.bounded_while_loop(
        lambda x: x < 3, lambda x: x + 1, jnp.int32(0), max_steps=5
    ),
    **{
        f"expectations.{name}": of(getattr(expectations, name), HALF, key(), normal, jnp.square, num_samples=4)
        for name in ("gradients_score", "gradients_pathwise", "gradients_measure_valued")
    },
    **dict.fromkeys(
        [f"expectations.{name}" for name in ("sample", "cost", "score", "key", "plate", "expected")],
        lambda: jax.value_and_grad(ld.expectation(model, num_samples=4))(HALF, key()),
    ),
    "an expectation": lambda: jax.value_and_grad(ld.expectation(program, num_samples=4))(HALF, key()),
    "importance.effective_sample_size": of(importance.effective_sample_size, ONES),
    "importance.log_ratios": lambda: importance.log_ratios(PARAMS, POLICY, draws()),
    "importance.with_behavior": lambda: importance.with_behavior(PARAMS, POLICY, draws()),
    "likelihood.fisher_matrix": lambda: likelihood.fisher_matrix(PARAMS, POLICY, draws()),
    "likelihood.fisher_vector_product": lambda: likelihood.fisher_vector_product(PARAMS, POLICY, draws())(PARAMS),
    "likelihood.grad_prob": lambda: ld.grad_prob(PARAMS, POLICY, one()),
    "likelihood.log_factors": lambda: ld.log_factors(PARAMS, POLICY, draws()),
    "likelihood.log_prob": lambda: jax.grad(ld.log_prob)(PARAMS, POLICY, one()),
    "likelihood.prob": lambda: ld.prob(PARAMS, POLICY, draws()),
    "likelihood.weighted_log_prob": lambda: ld.weighted_log_prob(PARAMS, POLICY, draws(), jnp.ones((4, 3))),
    "likelihood.over_steps": lambda: likelihood.over_steps(
        lambda params, step, distribution: distribution.log_prob(step.action), PARAMS, POLICY, draws()
    ),
    "likelihood.token_log_probs": of(ld.token_log_probs, jnp.ones((5, 4)), jnp.ones((3, 4)), SERIES),
    "likelihood.token_sum": of(ld.token_sum, lambda t: t.log_prob, jnp.ones((5, 4)), jnp.ones((3, 4)), SERIES),
    "likelihood.visit_counts": of(likelihood.visit_counts, SERIES, SERIES, ONES, (2, 2)),
    "policies.policy_for": lambda: policies.policy_for(examples.jumanji().environment),
    "policies.normal_head": of(policies.normal_head, TWO),
    "policies.tanh_normal_head": of(policies.tanh_normal_head, TWO),
    "a recurrent policy": lambda: ld.GRU(2, hidden=4).init(key(), ONES),
    "processes.birth_death_mean": of(jax.grad(processes.birth_death_mean), TWO, BIRTHS),
    "processes.master_equation_value": of(processes.master_equation_value, TWO, BIRTHS, max_counts=[6]),
    "processes.fisher_score": of(processes.fisher_score, CHAIN.params, CHAIN.environment, SERIES),
    "processes.fisher_score_samples": of(
        processes.fisher_score_samples, CHAIN.params, key(), CHAIN.environment, SERIES, num_samples=2
    ),
    "processes.categorical_emission": lambda: processes.categorical_emission(jnp.eye(2), ONE).log_prob(ONE),
    "processes.poisson_emission": lambda: processes.poisson_emission(TWO, ONE).log_prob(ONE),
    "processes.normal_emission": lambda: processes.normal_emission(
        processes.NormalEmissionParams(TWO, TWO), ONE
    ).log_prob(TWO[0]),
    "the likeliest states": lambda: CHAIN.environment.most_likely_states(CHAIN.params, SERIES),
    "processes.girsanov_log_ratios": lambda: processes.girsanov_log_ratios(
        TWO, WELL, ld.rollout(TWO, key(), WELL.policy, WELL), reference_params=TWO
    ),
    "processes.look_ahead": of(
        processes.look_ahead, TWO, key(), lambda p, key: jnp.sum(p**2), learning_rate=0.1, steps=2
    ),
    "processes.ornstein_uhlenbeck_moments": of(processes.ornstein_uhlenbeck_moments, TWO, SETTLED),
    "processes.particle_filter": lambda: jax.value_and_grad(ld.expectation(filtered))(CHAIN.params, key()),
    "processes.prisoners_dilemma": of(GAME.value, GAME.init(), horizon=3),
    "processes.rollout_pairs": lambda: processes.rollout_pairs(
        TWO, jax.random.split(key()), processes.NormalSearch(0.5), processes.Fitness(lambda x, key: jnp.sum(x))
    ),
    "processes.schlogl": of(processes.schlogl),
    "processes.transfer_value": of(processes.transfer_value, TWO, WELL, low=-3.0, high=3.0, num_points=20),
    "sampling": stream,
    "training.evaluate": of(ld.evaluate, PARAMS, key(), POLICY, WORLD, num_episodes=2, horizon=3, greedy=True),
    "training.maximize": lambda: ld.maximize(SGD).update(TWO, ld.maximize(SGD).init(TWO)),
    "types": lambda: [f(draws()) for f in (types.batch_info, types.next_observations, types.num_trajectories)],
    **trained(),
}

# What looks at numbers.
EAGER = {
    "exact.compare_expectation": lambda: exact.compare_expectation(
        PARAMS, key(), POLICY, WORLD, horizon=1, num_samples=9
    ),
    "exact.count_trajectories": of(exact.count_trajectories, WORLD, 2),
    "exact.group_moments": exactly("group_moments", recipe=objectives.Recipe(), horizon=1, size=2),
    "exact.moments": exactly("moments", estimator=ld.ScoreFunction(), horizon=1, num_trajectories=1),
    "exact.program_derivatives": lambda: exact.program_derivatives(
        HALF, ld.expectation(program, num_samples=1), order=1, num_choices=1, num_outcomes=2
    ),
    "diagnostics.summary": of(diagnostics.summary, SAMPLES),
    "diagnostics.variance_ratio": of(diagnostics.variance_ratio, SAMPLES, 2 * SAMPLES),
    "likelihood.compare": lambda: ld.compare(PARAMS, POLICY, one()),
    "testing.assert_unbiased": of(testing.assert_unbiased, SAMPLES, jnp.zeros(3), resolution=9.0),
    "testing.check_padding": lambda: testing.check_padding(
        PARAMS,
        lambda params, taus: ld.log_prob(params, POLICY, taus),
        draws()._replace(valid=jnp.ones((4, 3), bool).at[:, 2:].set(False)),
    ),
    "testing.check_score": lambda: testing.check_score(
        HALF,
        key(),
        lambda mean, x: normal(mean).log_prob(x),
        lambda mean, key: jax.lax.stop_gradient(normal(mean).sample(key)),
        resolution=1.0,
        num_samples=99,
    ),
    "testing.check_objective": lambda: testing.check_objective(
        lambda log_probs, mask, advantages: -jnp.mean(jnp.where(mask, advantages[:, None] * log_probs, 0).sum(1)),
        {"return": 1},
    ),
    "testing.check_order": lambda: testing.check_order(
        PARAMS,
        POLICY,
        ld.ScoreFunction(),
        lambda params: exact.value(params, POLICY, WORLD, horizon=1),
        *weighted(),
        order=1,
    ),
}


def missing() -> list[str]:
    """Public functions that nothing here calls."""
    found = []
    for room in ld.__all__:
        family: Any = getattr(ld, room)
        if inspect.ismodule(family) and room not in APART | TRACED.keys():
            functions = [name for name in family.__all__ if inspect.isfunction(getattr(family, name))]
            found += [f"{room}.{name}" for name in functions]
    return [name for name in found if name not in APART | TRACED.keys() | EAGER.keys()]


def main(kind: str) -> None:
    """Call all of a kind, and print what fails."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_debug_key_reuse", kind == "eager")
    for name, call in (EAGER if kind == "eager" else TRACED).items():
        try:
            call() if kind == "eager" else check_key_reuse(lambda call=call: jax.tree.leaves(call()))
        except Exception as error:
            print(f"{name}: {error!r}")


if __name__ == "__main__":
    main(sys.argv[1])
