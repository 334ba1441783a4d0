"""Every statistical check of the other files again, on 200 fresh seeds: at most one may fail.

Each check holds a right estimator to its standard errors and rejects a wrong one, so that a failure is either a false
alarm or a wrong twin that got through. `test_testing_checks` and `test_testing_score` have such sweeps of their own, over seeds in one program.
"""

import importlib
import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import logderiv as ld
from tests.worlds import TERMINATING_LOGITS, terminating

NUM_SEEDS = 200
NORMAL = ld.Normal(jnp.asarray(0.4), jnp.asarray(1.5))
# Module, test and its arguments.
TESTS = [
    ("expectations_siblings", "noise_has_the_stated_laws"),
    *(
        ("expectations_siblings", "sampled_mean_and_variance_agree_with_the_closed_forms", k)
        for k in ("score", "pathwise", "measure")
    ),
    ("expectations_siblings", "a_cost_that_jumps_needs_no_derivative_and_fools_pathwise"),
    *(
        ("expectations_siblings", "vectors_and_the_chain_rule", kind, jnp.float64)
        for kind in ("score", "pathwise", "measure")
    ),
    ("expectations_siblings", "categorical_and_bernoulli_through_the_public_calls"),
    ("likelihood_identity", "under_the_expectation_three_routes_give_one_gradient", terminating(), TERMINATING_LOGITS),
    ("environments_tabular", "sampled_trajectories_have_their_enumerated_probabilities"),
    ("distributions_basic", "samples_have_the_declared_mean_within_four_standard_errors", NORMAL, 0.4, 2.25),
    ("diagnostics_statistics", "variance_ratio_of_a_good_baseline_and_alarm_for_a_bad_one"),
    ("diagnostics_statistics", "the_alarm_knows_its_error"),
    ("estimators_samples", "a_few_draws_are_right_on_average_and_their_twins_are_not", 2, 40_000, "log_prob"),
    ("estimators_samples", "errors_from_between_chains_cover"),
    ("processes_diffusion", "sampled_double_well_and_its_sensitivities"),
    ("processes_jump", "score_of_a_path_has_mean_zero_and_without_survival_it_has_not"),
    ("processes_jump", "birth_death_sensitivities_at_100_000_paths"),
    ("benchmarks_estimators", "pathwise_gradient_of_the_linear_quadratic_task_is_that_of_its_value"),
    ("processes_autoregressive", "sampled_paths_have_scores_and_those_of_another_start_have_not"),
    ("processes_linear_gaussian", "sampled_gradient_agrees_with_the_exact_one_and_not_with_a_wrong_one"),
    ("processes_hidden_markov", "paths_are_drawn_from_the_posterior_and_their_scores_average_to_the_score"),
    ("processes_state_space", "paths_drawn_from_the_posterior_have_its_moments_and_average_to_the_score"),
    ("processes_games", "sampled_gradients_of_one_player_are_those_of_its_value"),
]
CHECKS = {
    " ".join(word for word in test if isinstance(word, str)): partial(
        getattr(importlib.import_module(f"tests.test_{test[0]}"), f"test_{test[1]}"), *test[2:]
    )
    for test in TESTS
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


def test_every_check_has_its_arguments():
    assert len(CHECKS) == len(TESTS)
    for check in CHECKS.values():
        inspect.signature(check).bind()  # raises where one is missing


def test_a_check_that_always_fails_is_noticed(monkeypatch, compiled_once):
    monkeypatch.setitem(CHECKS, "wrong", lambda: np.testing.assert_equal(1, 2))
    monkeypatch.setattr("tests.test_project_seeds.NUM_SEEDS", 2)
    with pytest.raises(AssertionError, match="seed 2"):
        test_two_hundred_fresh_seeds("wrong", monkeypatch, None)
