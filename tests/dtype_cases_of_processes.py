"""The calls of processes that `test_project_dtypes` varies."""

# pyright: reportArgumentType=false, reportCallIssue=false
# Lists and numbers are given where the signatures say arrays.

from typing import Any

import jax
import jax.numpy as jnp

import logderiv as ld
from logderiv import exact, processes
from tests.dtype_calls import EYE, KEY, LOGITS, ROW, by_log_prob, case

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


def particles(noise: Any, level: Any, observations: Any, observed: Any, valid: Any) -> Any:
    def model(params: Any) -> Any:
        found = processes.particle_filter(
            params, LEVEL, observations, num_particles=3, states="pathwise", observed=observed, valid=valid
        )
        return found.log_likelihood, found

    params = processes.LocalLevelParams(noise, level)
    return ld.expectation(model, num_samples=2, has_aux=True)(params, KEY)


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
    "categorical_emission": case(
        lambda logits: processes.categorical_emission(logits, jnp.int32(1)).log_prob(jnp.int32(0)),
        names={"logits": "params.emission"},
        logits=[[0.3, 1.2], [-0.9, 0.1]],
    ),
    "poisson_emission": case(
        lambda log_rates: processes.poisson_emission(log_rates, jnp.int32(1)).log_prob(jnp.int32(3)),
        names={"log_rates": "params.emission"},
        log_rates=[0.3, 1.2],
    ),
    "normal_emission": case(
        lambda loc, log_scale, y: processes.normal_emission((loc, log_scale), jnp.int32(1)).log_prob(y),
        names={"loc": "params.emission.loc", "log_scale": "params.emission.log_scale", "y": "action"},
        loc=[0.3, 1.2],
        log_scale=[-0.9, 0.1],
        y=0.7,
    ),
    "LocalLevel": case(
        local_level,
        names={"noise": "log_observation_variance", "level": "log_level_variance"},
        noise=0.37,
        level=-0.6,
        observations=SERIES,
        observed=[1, 0, 1],
    ),
    "particle_filter": case(
        particles,
        names={"noise": "log_observation_variance", "level": "log_level_variance"},
        noise=0.37,
        level=-0.6,
        observations=SERIES,
        observed=[1, 0, 1],
        valid=[1, 1, 0],
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
