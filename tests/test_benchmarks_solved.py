"""Tasks and their configurations, training of several seeds and what is said of it: by hand, and at a tiny size."""

import dataclasses
from functools import partial
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from benchmarks import solved, solved_peers, solved_tasks
from benchmarks.rl_peers import Settings
from benchmarks.seeds import POINTS, Run, interquartile_mean, interval

pytestmark = [
    pytest.mark.usefixtures("as_shipped"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what brax imports
    pytest.mark.filterwarnings("ignore:Brax System:UserWarning"),
]


def made_up_run(returns, final):
    steps = np.cumsum(np.full(returns.shape, 1000), axis=1)
    return Run(steps, returns, final, 1.0, 2.0)


def test_steps_to_a_threshold_by_hand():
    returns = np.array([[475.0, 0, 500], [0, 474, 475], [500, 0, 0], [0, 400, 474]])
    run = made_up_run(returns, np.zeros(4))
    assert run.steps_to(475.0).tolist() == [1000, 3000, 1000, np.inf]
    summary = run.summary(400.0)
    assert summary["steps_to_threshold"].tolist() == [1000, 2000, 1000, 2000]
    assert summary["reached"] == "4 of 4"
    assert summary["steps_mean"] == 1500  # of the middle two
    assert summary["steps_per_s"] == 4 * 3000 / 2.0
    assert summary["seconds_to_threshold"] == 1500 * 4 / 6000


def test_interquartile_means_and_their_intervals_by_hand():
    assert interquartile_mean(np.array([0.0, 1, 3, 100])) == 2
    assert interquartile_mean(np.array([1.0, 1, 1, np.inf])) == 1
    assert interquartile_mean(np.array([1.0, 1, np.inf, np.inf])) == np.inf
    # Of four seeds a resample has the fourth n times, n binomial (4, 1/4); the middle two are 0 and 4 where n = 2 (probability
    # 0.211), both 4 where n > 2 (0.051): the quantile at 0.975 is 4, that of three seeds in eight, whose middle four it enters, 2.
    assert interval(np.array([0.0, 0, 0, 4])) == (0.0, 4.0)
    assert interval(np.full(5, 3.0)) == (3.0, 3.0)


def corridor(**options):
    """Every step costs 1: a return is minus a length, between 2 and 40."""
    policy = solved_tasks.SoftmaxTables(4, 2)
    world = partial(ld.environments.short_corridor, horizon=40)  # in the precision of who calls it

    def recipe(rate=0.1):
        how = {"estimator": solved_tasks.scaled_ppo(policy.value, unit=10.0), "num_updates": POINTS}
        where = {"policy": policy, "environment": world(), "batch": ld.Steps(4, 8), "epochs": 2, "minibatches": 2}
        return where | how | {"optimizer": solved_tasks.annealed(rate, 96)}

    def by_others():
        return {
            "reward-to-go, leave-one-out": solved_tasks.reinforce(
                policy, world(), solved_tasks.LEAVE_ONE_OUT, updates=24
            )
        }

    task = solved_tasks.Task("corridor", recipe, -20.0, (("somebody", "-11.7", "1 k", "a book"),), by_others)
    return dataclasses.replace(task, **{"seeds": 2, "episodes": 2} | options)


@pytest.mark.slow
def test_seeds_are_trained_in_other_units_and_reported_in_the_task_s():
    task = corridor()
    run = solved.train_seeds(task.recipe(), seeds=2, episodes=2, repeats=1)
    assert run.returns.shape == run.steps.shape == (2, POINTS)
    for returns in (run.returns, run.final):
        assert -40 <= returns.min() <= returns.max() <= -2
    np.testing.assert_array_equal(run.steps, np.tile(32 * np.arange(1, 25), (2, 1)))
    assert run.seconds > 0


def test_the_settings_of_the_peers_are_those_of_the_configuration():
    assert solved_peers.settings_of(corridor().recipe(), 0.1) == Settings(
        num_environments=4,
        num_steps=8,
        epochs=2,
        minibatches=2,
        learning_rate=0.1,
        entropy_weight=0.0,
        anneal=True,
        reward_scale=0.1,
    )
    found = solved_peers.settings_of(solved_tasks.mountain_car(), solved_tasks.OTHERS[0].rate)
    assert (found.normalize, found.discount, found.reward_scale, found.learning_rate) == (True, 0.999, 0.1, 1e-3)
    assert solved_peers.settings_of(solved_tasks.cartpole(), 2e-3).entropy_weight == 0.01


@pytest.mark.parametrize("task", solved_tasks.TASKS, ids=lambda task: task.name)
def test_every_configuration_fits_its_points_its_minibatches_and_its_schedule(task):
    try:
        recipe = task.recipe()
    except solved.MISSING as error:
        pytest.skip(str(error))
    assert recipe["num_updates"] % POINTS == 0
    assert recipe["batch"].num_steps % recipe["minibatches"] == 0
    steps = recipe["num_updates"] * recipe["epochs"] * recipe["minibatches"]
    *_, scale = jax.eval_shape(recipe["optimizer"].init, jnp.zeros(()))[1]
    assert scale.count.shape == ()  # the rate follows a schedule
    assert float(schedule_ends(recipe["optimizer"], steps)) == 0


def schedule_ends(optimizer, steps):
    """The size of an update once the count is `steps`."""
    state = optimizer.init(jnp.ones(()))
    state = jax.tree.map(lambda x: jnp.full_like(x, steps) if x.dtype == jnp.int32 else x, state)
    return optimizer.update(jnp.ones(()), state, jnp.ones(()))[0]


def test_the_best_of_a_lake_of_two_states_by_hand():
    """Staying pays 0; the risk wins 1 with probability 1/2 and is over either way: at best 1/2, whatever the horizon."""
    transition = np.zeros((2, 2, 2))
    transition[0, 0, 0] = transition[0, 1, 1] = transition[1, :, 1] = 1
    tables: dict[str, Any] = {"initial": [1.0, 0.0], "transition": transition, "terminal": [False, True]}

    def best(*rewards):
        reward: Any = [rewards, (9.0, 9.0)]
        return solved.optimum(ld.environments.TabularMDP(**tables, reward=reward, horizon=3))

    assert best(0.0, 0.5) == 0.5
    assert best(0.25, 0.5) == 1.0  # two steps of a quarter, then the risk


def test_the_best_of_frozen_lake_is_the_published_one():
    with jax.enable_x64(True):
        assert solved.optimum(solved_tasks.frozen_lake()["environment"]) == pytest.approx(0.7441902878, abs=1e-10)


def test_two_engines_are_forces_of_the_continuous_lander():
    pytest.importorskip("Box2D")
    world = solved_tasks.two_engines()
    assert world.action([0, 1]).tolist() == [-1, 0]
    assert world.action([1, 0]).tolist() == [0, -1]
    assert world.action([2, 2]).tolist() == [1, 1]
    world.reset(seed=0)
    observation, *_ = world.step(np.array([2, 1]))
    other = gymnasium.make("LunarLander-v3", continuous=True)
    other.reset(seed=0)
    np.testing.assert_array_equal(observation, other.step(np.array([1.0, 0.0], np.float32))[0])


def test_gymnasium_returns_equal_a_plain_loop():
    """A policy of zeros takes action 0, greedily: each episode falls as it does in one environment with that seed."""
    policy = ld.MLP(2)
    params = policy.init(jax.random.key(0), jnp.zeros(4, jnp.float32))
    params = jax.tree.map(lambda x: jnp.zeros((2, *x.shape), x.dtype), params)
    world, expected = gymnasium.make("CartPole-v1"), []
    for seed in range(6):
        world.reset(seed=seed)
        expected.append(1)
        while not world.step(0)[2]:  # each step is paid 1
            expected[-1] += 1
    played = solved.play_gymnasium(policy, params, episodes=3, greedy=True)
    assert played.tolist() == [expected[:3], expected[3:]]
    sampled = solved.play_gymnasium(policy, params, episodes=20)
    assert sampled.mean() > 1.5 * np.mean(expected)  # fair coins balance for about 22 steps, one direction for 9


def test_a_task_whose_world_is_not_installed_is_left_out_and_the_others_are_bounded(monkeypatch):
    def missing():
        raise ImportError("brax is not installed")

    def train_seeds(recipe, *, seeds, episodes):
        del episodes
        end = 480.0 if recipe["batch"] == ld.Steps(32, 64) else 470.0
        return made_up_run(np.tile(np.linspace(20, end, 24), (seeds, 1)), np.full(seeds, end))

    def peer_runs(recipe, rate, where, *, seeds, episodes):
        return {
            "late": made_up_run(np.tile(np.linspace(20, 475, 24), (seeds, 1)), np.full(seeds, 475.0))._replace(
                seconds=1.0
            )
        }

    some = dataclasses.replace(
        solved_tasks.CARTPOLE, by_others=lambda: {"A2C": {"batch": None}, "other": {"batch": None}}, held={"A2C": 8}
    )
    monkeypatch.setattr(solved_tasks, "TASKS", (some, corridor(recipe=missing)))
    monkeypatch.setattr(solved, "train_seeds", train_seeds)
    monkeypatch.setattr(solved, "peer_runs", peer_runs)
    monkeypatch.setattr(solved, "play_gymnasium", lambda *_, **__: np.full((8, 100), 470.0))
    report = solved.main(quick=False, peers=True)
    assert set(report.numbers) == {"CartPole-v1"}
    rows = report.numbers["CartPole-v1"]
    assert {name: rows[name]["steps_to_threshold"].tolist() for name in ("PPO", "A2C", "late")} == {
        "PPO": [24000] * 8,  # only the last evaluation
        "A2C": [np.inf] * 8,
        "late": [24000] * 8,
    }
    assert {bound.name: (bound.value, bound.holds) for bound in report.bounds} == {
        "CartPole-v1, PPO: seeds that reach 475": (8, True),
        "CartPole-v1, A2C: seeds that return 475": (0, False),
        "CartPole-v1, PPO: steps": (24000, True),
        "CartPole-v1, PPO: worst seed's gymnasium return": (470, False),
        "CartPole-v1, PPO: steps, low end of 95 %, over the best peer's high end": (1, True),
    }
    ahead = report.timings[0]
    assert (ahead.name, ahead.value, ahead.holds) == ("CartPole-v1: seconds to the threshold, PPO over late", 2, False)


def test_where_no_threshold_is_usual_the_best_peer_sets_it():
    run = made_up_run(np.array([[1.0, 3, 2]] * 4), np.full(4, 2.0))
    beside = {"worse": run._replace(final=np.full(4, 1.5)), "better": run._replace(final=np.array([2.0, 2, 4, 4]))}
    task = corridor(usual=False, threshold=7.0)
    assert solved.Found(task, {"PPO": run}, {}, {}).threshold == 7
    low, high = interval(beside["better"].final)
    assert (low, high) == (2, 4)
    assert solved.Found(task, {"PPO": run}, beside, {}).threshold == 3 - (4 - 2) / 2
