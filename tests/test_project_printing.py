"""What the values print as: a report where there are numbers, shapes where there are none."""

import jax
import jax.numpy as jnp
import numpy as np

import logderiv as ld
from tests.worlds import TERMINATING_LOGITS, terminating, trajectory

ESTIMATOR = ld.ScoreFunction(ld.advantages.Return(ld.baselines.BatchMean()))


def test_trajectories_say_what_is_valid_and_returned():
    """By hand: returns 1 and 3, lengths 1 and 2; the first one terminates."""
    valid, discounts = jnp.array([[True, False], [True, True]]), jnp.array([[0.0, 1], [1, 1]])
    taus = trajectory(rewards=jnp.array([[1.0, jnp.nan], [1.0, 2.0]]), discounts=discounts, valid=valid)
    printed = str(taus)
    assert printed.startswith(
        "Trajectory: batch of 2, at most 2 steps each, 1 terminated\n  valid steps 1 to 2; mean return "
    )
    assert "mean return 2 (standard error 1)" in printed
    assert "behavior_log_probs" in printed
    assert "standard error" not in str(jax.tree.map(lambda x: x[0], taus))


def test_printing_is_safe_without_numbers():
    taus = trajectory(rewards=jnp.ones((2, 3)))
    estimate = ld.types.Estimate(jnp.ones((4, 2)), ld.types.batch_info(taus))
    batched = estimate._replace(info=jax.tree.map(lambda x: jnp.stack([x, x]), estimate.info))
    assert str(batched).startswith("Estimate\n  leaf")
    assert str(jax.tree.map(lambda x: x[:0], taus)).startswith("Trajectory\n")
    assert str(jax.tree.map(lambda x: None, taus)).startswith("Trajectory\n")
    seen = []

    @jax.jit
    def traced(taus, estimate):
        seen.extend(map(str, (taus, estimate)))
        return 0

    traced(taus, estimate)
    assert [text.splitlines()[0] for text in seen] == ["Trajectory", "Estimate"]
    assert "(2, 3)" in seen[0]


def test_estimates_moments_and_training_say_how_large():
    estimate = ld.types.Estimate(
        {"w": jnp.array([3.0, 4.0])}, ld.types.batch_info(trajectory(rewards=jnp.ones((2, 3))))
    )
    assert str(estimate).startswith("Estimate of grad E[R]: norm 5\n  from 2 episodes, 6 steps, mean return 3\n")
    world = (TERMINATING_LOGITS, ld.tabular_softmax, terminating())
    moments = ld.exact.moments(*world, ESTIMATOR, horizon=2, num_trajectories=2)
    assert "50.00% of it, sqrt(tr Cov)" in str(moments)  # the mean of two, the own one among them, leaves half
    assert "params[0, 1]" in str(moments)

    rows = jnp.arange(20.0).reshape(1, 20)
    one, none = jnp.ones_like(rows), jnp.zeros_like(rows, int)
    metrics = ld.training.Metrics(rows, one.astype(int), one.astype(int), none, one, none, num_skipped=none)
    metrics = metrics._replace(num_nonfinite_rewards=none)
    printed = str(ld.training.Training(jnp.zeros(2), metrics)).splitlines()  # pyright: ignore[reportArgumentType]
    assert printed[1].split()[:2] == ["20", "steps,"]
    assert printed[3].split() == ["mean_return", "0.5", "18.5", "18.5", "18.5"]
    stopped = metrics._replace(num_steps=metrics.num_steps.at[:, 10:].set(0), mean_return=rows.at[:, 10:].set(np.nan))
    assert str(ld.training.Training(jnp.zeros(2), stopped)).splitlines()[3].split()[2] == "9"  # pyright: ignore[reportArgumentType]
