"""Programs: every derivative against enumeration of every path, the trajectory API, and what cannot be listed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import logderiv as ld
from logderiv import distributions
from logderiv.exact import draws
from logderiv.expectations import tape

from .mostly import mostly_slow, slow
from .worlds import TERMINATING_LOGITS, TWO_STATES_LOGITS, terminating, two_states

LOO = "leave_one_out"
PARAMS = jnp.array([0.3, -0.6])
POINT: Any = 0.3


def flips(params, tape):
    """Three flips in a scan; a cost along the way and a nonlinear one at the end."""

    def step(carry, _):
        tape, ones = carry
        tape, flip = tape.sample(ld.Bernoulli(params[0]))
        tape = tape.cost(0.5 * flip.astype(float) * params[1])
        return (tape, ones + flip), None

    (tape, ones), _ = lax.scan(step, (tape, jnp.zeros((), jnp.int32)), None, length=3)
    return tape.cost(jnp.square(ones.astype(float)) + 2.0)


def branches(params, tape):
    """The first choice decides which choices follow."""
    tape, first = tape.sample(ld.Bernoulli(params[0]))

    def one(tape):
        tape, second = tape.sample(ld.Categorical(jnp.stack([params[1], params[0], params[1] * params[0]])))
        return tape.cost(jnp.exp(params[1]) * second.astype(float))

    tape = lax.cond(first == 1, one, lambda tape: tape.cost(jnp.sin(params[0])), tape)
    tape, last = tape.sample(ld.Bernoulli(params[1]), baseline=1.0 + first.astype(float) * params[0])
    return tape.cost(3.0 * (first * last).astype(float) - 1.0)


def random_length(loop):
    """Flips until the first failure, four at most; each flip costs, and so does their number."""

    def program(params, tape):
        def body(carry):
            tape, count, _ = carry
            tape, flip = tape.sample(ld.Bernoulli(params[0] + 0.2 * params[1] * count))
            return tape.cost(1.0 + params[1] * count), count + 1.0, flip == 1

        start = (tape, jnp.zeros(()), jnp.ones((), bool))
        tape, count, _ = loop(lambda carry: carry[2] & (carry[1] < 4), body, start)
        return tape.cost(jnp.square(count))

    return program


def flip(logit, tape):
    """One choice, which costs."""
    tape, x = tape.sample(ld.Bernoulli(logit))
    return tape.cost(2.0 * x.astype(logit.dtype) + 1.0)


def gradients(objective, params, seed, number):
    """Of many keys."""
    keys = jax.random.split(jax.random.key(seed), number)
    return np.asarray(jax.jit(jax.vmap(jax.grad(objective), (None, 0)))(params, keys))


def bounded(cond_fun, body_fun, init):
    return ld.bounded_while_loop(cond_fun, body_fun, init, max_steps=5)[0]


def agents(params, tape):
    """A common choice, two agents side by side with one or two choices each, and a cost of what they did together."""
    tape, common = tape.sample(ld.Bernoulli(params[1]))

    def agent(tape, strength):
        tape, first = tape.sample(ld.Bernoulli(params[0] * strength))
        tape = tape.cost(strength * first.astype(float))
        tape, second = tape.sample(ld.Bernoulli(params[1] + first.astype(float)))
        return tape.cost(params[0] * second.astype(float)), first + second

    tape, done = tape.plate(agent, jnp.array([1.0, 2.0]))
    return tape.cost(jnp.square(jnp.sum(done).astype(float)) * common.astype(float))


PROGRAMS = {  # program, most choices, most outcomes
    "scan": (flips, 3, 2),
    "cond": (branches, 3, 3),
    "while_loop": (random_length(lax.while_loop), 4, 2),
    "bounded_while_loop": (random_length(bounded), 4, 2),
    "vmap": (agents, 5, 2),
}


def derivatives(name, *, order=3, **options):
    program, num_choices, num_outcomes = PROGRAMS[name]
    objective = ld.expectation(program, **options)
    sizes = {"num_choices": num_choices, "num_outcomes": num_outcomes}
    return ld.exact.program_derivatives(PARAMS, objective, order=order, **sizes)


@pytest.mark.parametrize("name", mostly_slow(PROGRAMS, ("scan", "cond")))
def test_value_and_three_derivatives_are_exact(name):
    for found in derivatives(name):
        assert np.max(np.abs(found.exact)) > 1e-2
        np.testing.assert_allclose(found.mean, found.exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["cond", slow("while_loop"), slow("vmap")])
def test_leave_one_out_is_exact_at_every_order(name):
    order = 1 if name == "vmap" else 2  # 32 paths there, 1024 pairs
    for found in derivatives(name, order=order, num_samples=2, baseline=LOO):
        np.testing.assert_allclose(found.mean, found.exact, rtol=0, atol=1e-12)


def test_own_sample_in_the_mean_shrinks_every_derivative(monkeypatch):
    """The wrong twin of leave-one-out: with its own sample half of each derivative's score part is lost at N = 2."""

    def whole_mean(values, peers):
        return lax.pmean(lax.stop_gradient(values), peers)

    monkeypatch.setattr(tape, "others_mean", whole_mean)
    objective = ld.expectation(flip, num_samples=2, baseline=LOO)
    found = ld.exact.program_derivatives(jnp.asarray(POINT), objective, order=2, num_choices=1, num_outcomes=2)
    np.testing.assert_allclose(found[0].mean, found[0].exact, atol=1e-12)
    for wrong in found[1:]:
        np.testing.assert_allclose(wrong.mean, 0.5 * wrong.exact, atol=1e-12)


def test_a_plain_score_surrogate_is_right_at_order_one_only(monkeypatch):
    """The wrong twin of the box: 1 + l, whose second derivative lacks the product of the scores."""
    plain = functools.partial(draws.tapes_of, box=lambda x: 1 + x - lax.stop_gradient(x))
    monkeypatch.setattr(draws, "tapes_of", plain)
    errors = [np.max(np.abs(found.bias)) for found in derivatives("scan")]
    assert max(errors[:2]) < 1e-12
    assert min(errors[2:]) > 0.1


def test_three_flips_have_mean_3p_and_slope_3():
    """In p itself, where a program that drops the score says 0."""

    def count(p, tape):
        def step(tape, _):
            tape, flip = tape.sample(ld.Bernoulli(jnp.log(p) - jnp.log1p(-p)))
            return tape.cost(flip), None

        return lax.scan(step, tape, None, length=3)[0]

    found = ld.exact.program_derivatives(POINT, ld.expectation(count), order=2, num_choices=3, num_outcomes=2)
    np.testing.assert_allclose([np.squeeze(x.mean) for x in found], [0.9, 3.0, 0.0], atol=1e-12)


def test_a_later_cost_is_all_that_a_choice_is_credited_with():
    def program(logit, tape):
        tape = tape.cost(100.0)
        tape, flip = tape.sample(ld.Bernoulli(logit))
        return tape.cost(flip)

    assert set(gradients(ld.expectation(program), 0.0, 0, 8).tolist()) == {0.0, 0.5}


def test_leave_one_out_leaves_nothing_of_a_cost_that_does_not_depend_on_the_choices():
    """Each choice has its own remaining cost as the baseline, in scans, plates and plates in plates: every gradient is 0."""

    def program(logit, tape):
        def flip(tape, cost):
            tape, x = tape.cost(cost).sample(ld.Bernoulli(logit))
            return tape.cost(2 * cost), x

        def part(tape, cost):
            tape, _ = flip(tape, cost)
            tape, xs = tape.plate(flip, jnp.array([3.0, 4.0]))
            return flip(tape, 5.0 * cost)[0].cost(cost), xs

        tape = lax.scan(flip, tape, jnp.array([1.0, 7.0]))[0]
        tape, _ = tape.plate(part, jnp.array([2.0, 6.0]))
        return flip(tape, 8.0)[0].cost(9.0)

    plain, loo = (ld.expectation(program, num_samples=3, baseline=baseline) for baseline in (None, LOO))
    assert np.min(np.abs(gradients(plain, POINT, 0, 4))) > 1e-2
    assert np.max(np.abs(gradients(loo, POINT, 0, 4))) < 1e-12


def mdp_program(mdp, horizon, discount):
    """The steps of `logderiv.rollout` with its splitting of the key; a finished episode makes no more choices."""

    def program(logits, tape):
        tape, (key,) = tape.split()
        state, _ = mdp.reset(key)

        def live(carry):
            tape, state, _, weight = carry
            tape, (key_action, key_step) = tape.split(2)
            distribution = ld.tabular_softmax.apply(logits, state)
            action = distributions.sample(lax.stop_gradient(distribution), key_action)
            tape = tape.score(distribution, action)
            step = mdp.step(key_step, state, action)
            return tape.cost(weight * step.reward), step.state, ~step.terminated, weight * discount

        def step(carry, _):
            return lax.cond(carry[2], live, lambda carry: carry, carry), None

        start = (tape, state, jnp.ones((), bool), jnp.ones(()))
        return lax.scan(step, start, None, length=horizon)[0][0]

    return program


@pytest.mark.parametrize(
    ("mdp", "logits", "baseline"),
    [slow((terminating(), TERMINATING_LOGITS, None)), (two_states(), TWO_STATES_LOGITS, LOO)],
    ids=["random length", "leave one out"],
)
def test_the_trajectory_api_gives_the_same_derivatives_from_the_same_keys(mdp, logits, baseline):
    key = jax.random.key(3)
    objective = ld.expectation(mdp_program(mdp, 4, 0.9), num_samples=8, baseline=baseline)
    advantage = ld.advantages.ToGo(baseline and ld.baselines.LeaveOneOut())
    estimator = ld.ScoreFunction(advantage, discount=0.9, surrogate=ld.estimators.DiCE())

    def by_trajectories(logits, key):
        taus = ld.rollout(logits, jax.random.split(key, 8), ld.tabular_softmax, mdp, horizon=4)
        weights, _ = estimator.advantages(logits, (), ld.tabular_softmax, taus)

        def surrogate(logits):
            return estimator.objective(logits, ld.tabular_softmax, taus, lax.stop_gradient(weights))

        return jax.grad(surrogate)(logits), jax.hessian(surrogate)(logits)

    def frozen(logits):
        return objective(logits, jax.random.clone(key))

    expected = jax.jit(by_trajectories)(logits, jax.random.clone(key))
    found = jax.jit(lambda logits: (jax.grad(frozen)(logits), jax.hessian(frozen)(logits)))(logits)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.max(np.abs(theirs)) > 1e-2
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def _mixed(own_derivative):
    """A pathwise state, a scored choice that depends on it, and a cost that depends on the parameter, the state and the choice."""

    def program(params, tape):
        tape, x = tape.sample_pathwise(ld.Normal(params, 0.5 + 0.1 * params))
        tape, y = tape.sample(ld.Bernoulli(x))
        cost = (params if own_derivative else lax.stop_gradient(params)) * x
        return tape.cost(jnp.square(cost + y.astype(float)))

    return program


def _mixed_exact(params):
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    x = params + (0.5 + 0.1 * params) * nodes
    p = jax.nn.sigmoid(x)
    return weights @ ((1 - p) * jnp.square(params * x) + p * jnp.square(params * x + 1)) / np.sqrt(2 * np.pi)


def _mixed_samples(own_derivative):
    objective = ld.expectation(_mixed(own_derivative))

    def orders(key):
        def frozen(p):
            return objective(p, jax.random.clone(key))

        return {"value": frozen(0.4), "first": jax.grad(frozen)(0.4), "second": jax.hessian(frozen)(0.4)}

    return jax.jit(jax.vmap(orders))(jax.random.split(jax.random.key(5), 20_000))


def test_pathwise_and_scored_choices_mix_with_a_cost_that_depends_on_the_parameters():
    orders = {"value": _mixed_exact, "first": jax.grad(_mixed_exact), "second": jax.hessian(_mixed_exact)}
    exact = jax.jit(lambda p: {name: function(p) for name, function in orders.items()})(0.4)
    ld.testing.assert_unbiased(_mixed_samples(True), exact, resolution=0.25)
    with pytest.raises(AssertionError, match="BIASED"):
        ld.testing.assert_unbiased(_mixed_samples(False), exact, resolution=0.25)


def test_jit_takes_an_expectation_and_vmap_maps_it():
    objective, keys = ld.expectation(flip, num_samples=3), jax.random.split(jax.random.key(2), 2)
    run = jax.jit(lambda f, params, key: jax.value_and_grad(f)(params, key))
    params = jnp.array([0.3, 0.6])
    found = jax.jit(jax.vmap(jax.value_and_grad(objective)))(params, jax.random.clone(keys))
    expected = [run(objective, *arguments) for arguments in zip(params, keys, strict=True)]
    np.testing.assert_allclose(np.transpose(found), expected, rtol=1e-12)


def test_float32_parameters_have_float32_gradients():
    objective = ld.expectation(flip, num_samples=2, baseline=LOO)
    assert jax.eval_shape(jax.grad(objective), jnp.ones((), jnp.float32), jax.random.key(0)).dtype == jnp.float32


def test_while_loop_differentiates_forward_and_its_bounded_twin_both_ways():
    key = jax.random.key(4)
    loop, twin = (ld.expectation(random_length(w), num_samples=4) for w in (lax.while_loop, bounded))
    forward = jax.jit(jax.jacfwd(loop))(PARAMS, jax.random.clone(key))
    np.testing.assert_allclose(forward, jax.jit(jax.grad(twin))(PARAMS, jax.random.clone(key)), rtol=1e-12)
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(loop)(PARAMS, key)


def test_a_bounded_loop_says_whether_it_was_cut():
    def run(max_steps):
        return ld.bounded_while_loop(lambda x: x < 3, lambda x: x + 1, 0, max_steps=max_steps)

    assert [(int(x), bool(done)) for x, done in map(run, (2, 3, 5))] == [(2, False), (3, True), (3, True)]
    with pytest.raises(ValueError, match="max_steps: expected a whole number >= 1, received 0"):
        run(0)


def _listed(program, num_choices=1, num_outcomes=2):
    return ld.exact.program_value(POINT, program, num_choices=num_choices, num_outcomes=num_outcomes)


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (lambda p, tape: tape.sample(ld.Normal(p, jnp.asarray(1.0)))[0], "received a sample of Normal"),
        (lambda p, tape: tape.sample(ld.Bernoulli(jnp.zeros(2)))[0], "received a sample of Bernoulli"),
        (lambda p, tape: tape.sample_pathwise(ld.Normal(p, jnp.asarray(1.0)))[0], "a pathwise sample of Normal"),
        (lambda p, tape: tape.split()[0], "1 keys from split"),
        (lambda p, tape: tape.score(ld.Bernoulli(p), 1), "a choice of Bernoulli that was drawn elsewhere"),
    ],
)
def test_what_cannot_be_listed_is_refused(program, match):
    with pytest.raises(TypeError, match=match):
        _listed(program)


def test_an_incomplete_list_of_paths_is_refused():
    def program(p, tape):
        tape, a = tape.sample(ld.Bernoulli(p))
        return tape.sample(ld.Categorical(jnp.stack([p, p, p])))[0].cost(a)

    np.testing.assert_allclose(_listed(program, 2, 3), jax.nn.sigmoid(0.3), rtol=1e-12)
    for sizes, message in (((1, 3), "paths sum to 0"), ((2, 2), "paths sum to 0"), ((60, 3), "are about 10")):
        with pytest.raises(ValueError, match=message):
            _listed(program, *sizes)
    many, few = "num_samples: batches of 60 out of 6 .*more than limit=1", "order: expected a whole number >= 0"
    for num_samples, order, message in ((60, 1, many), (1, -1, few)):
        objective = ld.expectation(program, num_samples=num_samples)
        with pytest.raises(ValueError, match=message):
            ld.exact.program_derivatives(POINT, objective, order=order, num_choices=2, num_outcomes=3)


def test_two_methods_on_one_line_are_two_sites():
    """A helper that takes the method; a site found by its line alone lost the first one, and half of the slope."""

    def draw(logit, method):
        return ld.sample(ld.Bernoulli(logit), method=method)

    objective = ld.expectation(lambda logit: draw(logit, "alternative") * draw(logit, "score"))
    assert [(site.method, site.order) for site in objective.sites(POINT)] == [("alternative", 1), ("score", None)]
    slope = ld.exact.program_derivatives(jnp.asarray(POINT), objective, order=1, num_choices=2, num_outcomes=2)[1]
    np.testing.assert_allclose(slope.mean, slope.exact, rtol=1e-12)
    with pytest.raises(ValueError, match="alternative' gives the first derivative only"):
        jax.grad(jax.grad(objective))(POINT, jax.random.key(0))
