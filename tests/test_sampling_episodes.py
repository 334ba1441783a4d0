"""Paths that the number of steps cuts short: warned of where it is no part of the model, and nowhere else."""

import contextlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import logderiv as ld
from logderiv import processes
from tests import examples

BIRTHS, RATES = processes.birth_death(0, 2.0), jnp.array([1.0, 0.0])
WELL = processes.EulerMaruyama(processes.double_well_drift, 0.5, -1.0, 0.1, 6)
KEYS = jax.random.split(jax.random.key(0), 40)
pytestmark = pytest.mark.usefixtures("standard_promotion")


def keys():
    return jax.random.clone(KEYS)


def drawn(horizon, process: Any = BIRTHS, params=RATES, **options):
    return ld.rollout(params, keys(), process.policy, process, horizon=horizon, **options)


def evaluated(horizon):
    return ld.evaluate(RATES, keys()[0], BIRTHS.policy, BIRTHS, num_episodes=4, horizon=horizon)


class Told:
    """A reporter that has been told of the warning before the rows arrive."""

    def __init__(self, caught):
        self.caught, self.before = caught, None

    def open(self, past, total):
        return contextlib.nullcontext(self.write)

    def write(self, updates, rows):
        self.before = len(self.caught)


def trained(horizon, **options):
    how: Any = {"estimator": ld.ScoreFunction(), "optimizer": optax.sgd(0.0), "num_updates": 2} | options
    return ld.train(RATES, keys()[0], BIRTHS.policy, BIRTHS, ld.Episodes(3, horizon=horizon), **how)


def caught(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        result = call(found)
    assert all(warning.filename == __file__ for warning in found)
    return result, [str(warning.message) for warning in found]


def test_the_fraction_of_paths_that_are_cut_is_told():
    """The number is that of the paths whose last event is not the end; with as many steps as they need there is no warning."""
    with pytest.warns(UserWarning, match="rollout: the horizon cuts"):
        taus = drawn(9)
    fraction = np.mean([row[-1] >= 0 for row in np.asarray(taus.actions.reaction)])
    assert 0 < fraction < 1
    for options in ({}, {"block_size": 4}):
        _, told = caught(lambda _, options=options: drawn(9, **options))
        assert len(told) == 1
        assert f"cuts {fraction:.2%} of the paths" in told[0]
        assert "raise it until no path is cut" in told[0]
    whole, told = caught(lambda _: drawn(40))
    assert told == []
    cut = ld.types.batch_info(taus).mean_return, ld.types.batch_info(whole).mean_return
    assert cut[0] < cut[1]  # what comes after is missing: the twin that says nothing is biased


def test_evaluation_and_training_tell_too_and_what_is_traced_does_not():
    for name, call in (("evaluate", evaluated), ("train", trained)):
        _, told = caught(lambda _, call=call: call(2))
        assert [text.partition(":")[0] for text in told] == [name], told
        assert "cuts 100.00% of the paths" in told[0]
    reporters: list[Any] = []
    _, told = caught(lambda found: trained(2, reporters=reporters.append(Told(found)) or reporters))
    assert len(told) == reporters[0].before == 1
    assert caught(lambda _: jax.jit(lambda: (drawn(2), evaluated(2)))())[1] == []


class Walk(processes.Process):
    """Of one's own, until it leaves an interval; or for ever."""

    def __init__(self, ends):
        self.ends = ends

    def first(self):
        return jnp.zeros(())

    def transition(self, params, observation):
        return ld.Normal(observation + params, jnp.ones(()))

    def advance(self, state, action):
        return action, action, jnp.abs(action) > 50 if self.ends else False


@pytest.mark.parametrize("ends", [True, False])
def test_a_process_ends_by_itself_if_its_advance_says_when(ends):
    walk = Walk(ends)
    _, told = caught(lambda _: drawn(2, walk, jnp.zeros(())))
    assert len(told) == ends


@pytest.mark.slow
def test_a_diffusion_that_is_cut_is_told_and_whatever_has_a_horizon_of_its_own_is_not():
    params = jnp.array([1.0, 0.8])
    assert caught(lambda _: drawn(None, WELL, params))[1] == []
    assert len(caught(lambda _: drawn(3, WELL, params))[1]) == 1
    for name in ("Autoregressive", "TokenModel"):
        example = examples.process(name)
        draw = lambda _, e=example: ld.rollout(e.params, keys(), e.policy, e.environment)  # noqa: E731
        assert caught(draw)[1] == [], name
    corridor = ld.environments.short_corridor(horizon=2)
    assert caught(lambda _: ld.rollout(jnp.zeros(2), keys(), ld.shared_softmax, corridor))[1] == []
