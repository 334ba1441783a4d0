"""What every process and every adapter keeps to, whichever it is: found in `__all__`, made by `tests.examples`."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv import environments, processes
from logderiv._core.pytrees import pytree
from logderiv.distributions import sample
from tests import examples, zoo
from tests.mostly import mostly_slow, slow
from tests.worlds import cast, compilations, rollout

BASES = {"HiddenProcess", "Process", "StateSpaceModel"}


def classes(package):
    """The public classes of a package that are environments, bases left out."""
    found = {name: getattr(package, name) for name in package.__all__}
    return {n for n, x in found.items() if inspect.isclass(x) and hasattr(x, "reset") and hasattr(x, "step")} - BASES


CASES = [(package, name) for package in (processes, environments) for name in sorted(classes(package))]
NAMES = [name for _, name in CASES]
EVERY = pytest.mark.parametrize(("package", "name"), CASES, ids=NAMES)
KINDS = ("HiddenMarkovModel", "JumpProcess", "MatrixGame", "TokenModel", "TabularMDP", "Gymnax")
ALWAYS = mostly_slow(CASES, [case for case in CASES if case[1] in KINDS])


def example(package, name):
    return (examples.process if package is processes else examples.environment)(name)


@jax.jit
def draw(params, keys, policy, environment):
    """A batch of keys and the same keys by `vmap`, the batch's log-factors, its log-probability with its own environment, its score."""
    taus = ld.rollout(params, keys, policy, environment)
    mapped = jax.vmap(ld.rollout, (None, 0, None, None))(params, jax.random.clone(keys), policy, environment)
    known = environment if hasattr(environment, "log_factors") else None
    whole = ld.log_prob(params, policy, taus, environment=known)
    score = jax.grad(lambda p: jnp.sum(ld.log_prob(p, policy, taus)))(params)
    return taus, mapped, ld.log_factors(params, policy, taus), whole, score


def test_there_is_an_example_of_each():
    assert classes(processes) == set(examples.PROCESSES)
    assert classes(environments) == set(examples.ENVIRONMENTS)


def test_every_baseline_and_advantage_is_in_the_zoo(monkeypatch):
    """So that enumeration and benchmarks/proof_table.py walk it: a new one by itself, or it is named here until it has an example."""
    assert zoo.missing() == []

    @pytree(static=("per",))
    class New(ld.baselines.Constant):
        value: float = 0.2

    @pytree
    class NeedsAnother(ld.advantages.Advantage):
        other: ld.advantages.Advantage

    for family, part in ((ld.baselines, New), (ld.advantages, NeedsAnother)):
        monkeypatch.setattr(family, part.__name__, part, raising=False)
        monkeypatch.setattr(family, "__all__", [*family.__all__, part.__name__])
    assert zoo.zoo()["New"].advantage.baseline == New()
    assert zoo.missing() == ["NeedsAnother"]


@EVERY
def test_it_is_a_pytree_whose_settings_survive(package, name):
    environment, policy, _ = example(package, name)
    for thing in (environment, policy):
        leaves, structure = jax.tree.flatten(thing)
        assert all(isinstance(leaf, (float, jax.Array)) for leaf in leaves)
        rebuilt = jax.tree.unflatten(structure, leaves)
        assert jax.tree.structure(rebuilt) == structure
        assert type(rebuilt) is type(thing)
        assert hash(structure) == hash(jax.tree.structure(rebuilt))


@EVERY
def test_reset_and_step_agree(package, name):
    environment, policy, params = example(package, name)

    def one(key):
        observation, state = environment.reset(key)
        action = sample(policy.apply(params, observation), key)
        return (observation, state), environment.step(key, state, action)

    with jax.debug_key_reuse(False):
        start, new = jax.eval_shape(one, jax.random.key(0))
    assert isinstance(new, ld.types.Step)
    shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (start, (new.observation, new.state))]
    assert shapes[0] == shapes[1]
    assert new.terminated.shape == new.truncated.shape == ()
    assert new.terminated.dtype == new.truncated.dtype == bool


@pytest.mark.parametrize(("package", "name"), ALWAYS, ids=NAMES)
def test_what_is_drawn_has_the_probability_that_it_says(package, name):
    """Under `jit`, with environment and policy as its arguments, for a batch of keys, and again by `vmap`."""
    environment, policy, params = example(package, name)
    taus, mapped, logs, whole, score = draw(params, jax.random.split(jax.random.key(0), 5), policy, environment)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), mapped, taus)
    np.testing.assert_allclose(logs, taus.behavior_log_probs, rtol=1e-12)
    assert np.isfinite(whole).all()
    assert np.abs(logs).max() > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(score))
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(score)) > 0


@pytest.mark.parametrize("name", mostly_slow(sorted(classes(processes)), ("HiddenMarkovModel", "TokenModel")))
def test_a_process_in_float32_stays_there_and_agrees_with_float64(name):
    process, policy, params = examples.process(name)
    narrow, *rest = cast((params, policy, process), jnp.float32)
    keys, single = jax.random.split(jax.random.key(0), 5), {jnp.dtype(jnp.float32)}
    if name != "EulerMaruyama":  # whose positions have JAX's default type
        _, _, logs, _, score = jax.eval_shape(draw, narrow, keys, *rest)
        assert {leaf.dtype for leaf in jax.tree.leaves((logs, score))} == single
    with jax.enable_x64(False):
        taus, _, *others = jax.eval_shape(draw, narrow, keys, *rest)
        drawn = rollout(narrow, keys, *rest)
    assert {leaf.dtype for leaf in jax.tree.leaves((taus.rewards, others))} == single
    wide = ld.log_factors(*cast((params, policy, drawn), jnp.float64))
    np.testing.assert_allclose(drawn.behavior_log_probs, wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name", sorted(n for n in classes(processes) if issubclass(getattr(processes, n), processes.Process))
)
def test_a_process_scores_a_path_that_is_given(name):
    """`trajectory` of the actions of one that was drawn is the same trajectory."""
    process, policy, params = examples.process(name)
    tau = jax.jit(ld.rollout)(params, jax.random.key(3), policy, process)
    given = process.trajectory(jax.tree.map(lambda x: x[: int(tau.valid.sum())], tau.actions))
    for field in ("observations", "rewards", "discounts", "final_observation"):
        ours, theirs = getattr(given, field), getattr(tau, field)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[: a.shape[0]] if a.ndim else b), ours, theirs)


def test_settings_are_mapped_over():
    """Noise and step of a diffusion as axes of `vmap`."""
    make = lambda noise, dt: processes.EulerMaruyama(processes.ornstein_uhlenbeck_drift, noise, 0.5, dt, 4)  # noqa: E731
    params = jnp.array([0.7, 0.3])
    settings = jnp.array([[0.5, 0.1], [0.8, 0.2]])
    sweep = jax.jit(jax.vmap(lambda s: processes.ornstein_uhlenbeck_moments(params, make(s[0], s[1]))))
    apart = [processes.ornstein_uhlenbeck_moments(params, make(*map(float, s))) for s in settings]
    np.testing.assert_allclose(jnp.stack(sweep(settings), 1), jnp.stack([jnp.stack(x) for x in apart]), rtol=1e-12)


@pytest.mark.parametrize("name", ["MatrixGame", slow("LinearGaussian"), slow("LocalLevel"), slow("HiddenMarkovModel")])
def test_a_second_call_with_other_numbers_compiles_nothing(name):
    process, _, params = examples.process(name)

    def calls(scale):
        p = jax.tree.map(lambda x: scale * x, params)
        if name == "MatrixGame":
            return [process.value(p, horizon=3, discount=0.5 * scale), process.value(p, discount=0.5 * scale)]
        y = jnp.array([0, 1, 1]) if name == "HiddenMarkovModel" else scale * jnp.array([0.3, 1.0, -0.2])
        score = processes.fisher_score_samples(p, jax.random.key(1), process, y, num_samples=2)
        return [process.log_likelihood(p, y), process.smooth(p, y), processes.fisher_score(p, process, y), score]

    for scale in (1.0, 0.9):
        with compilations() as found:
            jax.block_until_ready(calls(scale))
        assert bool(found) == (scale == 1)
