"""Every statistical check of the other files again, on 200 fresh seeds: at most one may fail.

Each check holds a right estimator to its standard errors and rejects a wrong one, so that a failure is either a false
alarm or a wrong twin that got through. `test_testing` and `test_testing_score` have such sweeps of their own, over seeds in one program.
"""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests import (
    test_autoregressive,
    test_diagnostics,
    test_diffusion,
    test_distributions,
    test_environments,
    test_estimator_benchmarks,
    test_games,
    test_hidden_markov,
    test_identity,
    test_jump,
    test_linear_gaussian,
    test_siblings,
    test_state_space,
)

NUM_SEEDS = 200
CHECKS = {
    "noise laws": test_siblings.test_noise_has_the_stated_laws,
    "moments of the score": lambda: test_siblings.test_sampled_mean_and_variance_agree_with_the_closed_forms("score"),
    "moments of pathwise": lambda: test_siblings.test_sampled_mean_and_variance_agree_with_the_closed_forms("pathwise"),
    "moments of measure": lambda: test_siblings.test_sampled_mean_and_variance_agree_with_the_closed_forms("measure"),
    "a cost that jumps": test_siblings.test_a_cost_that_jumps_needs_no_derivative_and_fools_pathwise,
    "vectors, score": lambda: test_siblings.test_vectors_and_the_chain_rule("score", jax.numpy.float64),
    "vectors, pathwise": lambda: test_siblings.test_vectors_and_the_chain_rule("pathwise", jax.numpy.float64),
    "vectors, measure": lambda: test_siblings.test_vectors_and_the_chain_rule("measure", jax.numpy.float64),
    "discrete": test_siblings.test_categorical_and_bernoulli_through_the_public_calls,
    "three routes": test_identity.test_under_the_expectation_three_routes_give_one_gradient,
    "frequencies": test_environments.test_sampled_trajectories_have_their_enumerated_probabilities,
    "normal samples": lambda: test_distributions.test_samples_have_the_declared_mean_within_four_standard_errors(
        test_distributions.ld.Normal(jax.numpy.asarray(0.4), jax.numpy.asarray(1.5)), 0.4, 2.25
    ),
    "variance ratio": test_diagnostics.test_variance_ratio_of_a_good_baseline_and_alarm_for_a_bad_one,
    "error of the alarm": test_diagnostics.test_the_alarm_knows_its_error,
    "double well": test_diffusion.test_sampled_double_well_and_its_sensitivities,
    "score of jumps": test_jump.test_score_of_a_path_has_mean_zero_and_without_survival_it_has_not,
    "birth and death": test_jump.test_birth_death_sensitivities_at_100_000_paths,
    "linear-quadratic": (
        test_estimator_benchmarks.test_pathwise_gradient_of_the_linear_quadratic_task_is_that_of_its_value
    ),
    "AR(1), scores": test_autoregressive.test_sampled_paths_have_scores_and_those_of_another_start_have_not,
    "AR(1), estimator": test_autoregressive.test_an_estimator_of_the_library_takes_the_process_as_it_is,
    "linear-Gaussian": test_linear_gaussian.test_sampled_gradient_agrees_with_the_exact_one_and_not_with_a_wrong_one,
    "hidden Markov": (test_hidden_markov.test_paths_are_drawn_from_the_posterior_and_their_scores_average_to_the_score),
    "state space": (test_state_space.test_paths_drawn_from_the_posterior_have_its_moments_and_average_to_the_score),
    "two players": test_games.test_sampled_gradients_of_one_player_are_those_of_its_value,
}


@pytest.fixture
def compiled_once(tmp_path):
    """Each check jits anew: the programs, equal but for their keys, are kept on disk."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    compilation_cache.reset_cache()
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_two_hundred_fresh_seeds(name, monkeypatch, compiled_once):
    original, failures = jax.random.key, []
    for fresh in range(1, NUM_SEEDS + 1):
        monkeypatch.setattr(jax.random, "key", lambda seed, fresh=fresh: original(seed + 1000 * fresh))
        try:
            CHECKS[name]()
        except AssertionError as error:
            failures.append(f"seed {fresh}: {error}")
        if fresh % 20 == 0:
            jax.clear_caches()
    assert len(failures) <= NUM_SEEDS // 200, failures


def test_a_check_that_always_fails_is_noticed(monkeypatch, compiled_once):
    monkeypatch.setitem(CHECKS, "wrong", lambda: test_siblings.np.testing.assert_equal(1, 2))
    monkeypatch.setattr("tests.test_seeds.NUM_SEEDS", 2)
    with pytest.raises(AssertionError, match="seed 2"):
        test_two_hundred_fresh_seeds("wrong", monkeypatch, None)
