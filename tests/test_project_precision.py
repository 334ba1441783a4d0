"""Products are taken in float32 as float32, also on a device that shortens those that name no precision; see `tests.tf32`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import logderiv as ld
from logderiv import exact, processes
from logderiv._core.products import EXACT, Products, float32_products, precision_of, precisions
from tests import examples, modes, tf32
from tests.mostly import mostly_slow
from tests.worlds import batch

BOUND, LOW = 2e-6, "tensorfloat32"
TAUS = batch(jax.random.key(2), (2, 5))
NETWORKS = {"MLP": ld.MLP, "GRU": ld.GRU, "MLPActorCritic": ld.MLPActorCritic}


@pytest.fixture(autouse=True, scope="module")
def _on_such_a_device():
    with tf32.emulated():
        yield


def network(name="MLP", **options):
    return NETWORKS[name](2, hidden=8 if name == "GRU" else (8,), **options)


def parameters(policy):
    """Large enough for every layer to matter."""
    policy = policy if hasattr(policy, "init") else network()
    shapes, draw = jax.eval_shape(policy.init, jax.random.key(0), jnp.zeros(4)), np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(draw.normal(0, 0.5, x.shape)), shapes)


def plain(params, observation):
    """What people write: the products name no precision."""
    x = observation
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["weight"] + layer["bias"])
    return ld.Categorical(x @ params[-1]["weight"] + params[-1]["bias"])


def singles(tree, dtype=jnp.float32):
    return jax.tree.map(lambda x: x.astype(dtype) if x.dtype == float else x, tree)


def errors(functions, *arguments):
    """The largest errors of values and gradients in float32, relative to the first function's in float64."""

    def found(function, dtype):
        return jax.tree.leaves(jax.jit(jax.value_and_grad(function))(*singles(arguments, dtype)))

    def error(a, b):
        assert a.dtype == jnp.float32
        return np.max(np.abs(a.astype(float) - b)) / (np.max(np.abs(b)) + 1e-30)

    right = found(functions[0], jnp.float64)
    return [max(map(error, found(function, jnp.float32), right)) for function in functions]


def log_prob_of(policy):
    return lambda params, taus: jnp.sum(ld.log_prob(params, policy, taus))


def asked_for(precision, function):
    """The same function while JAX is set to a precision."""

    def call(*arguments):
        with jax.default_matmul_precision(precision):
            return function(*arguments)

    return call


@pytest.mark.parametrize("name", NETWORKS)
def test_log_probabilities_of_networks_and_their_gradients_are_exact_unless_another_precision_is_asked_for(name):
    policies = network(name), network(name, precision=LOW)
    found, low = errors([*map(log_prob_of, policies)], parameters(policies[0]), TAUS)
    assert found < BOUND < low / 10


def test_a_network_of_ones_own_that_names_no_precision_is_not():
    functions = asked_for("highest", log_prob_of(plain)), log_prob_of(plain)
    found, low = errors(functions, parameters(network()), TAUS)
    assert found < BOUND < low / 10


def test_values_of_states():
    networks = network("MLPActorCritic"), network("MLPActorCritic", precision=LOW)
    found, low = errors([x.value for x in networks], parameters(networks[0]), jnp.arange(4.0))
    assert found < BOUND < low / 10


def test_the_likelihood_of_a_state_space_model():
    eye, turn = jnp.eye(2), jnp.array([[0.8, 0.31], [-0.27, 0.7]])
    params = processes.LinearGaussianParams(jnp.array([0.3, 1.1]), eye / 3, turn, eye / 7, turn + eye / 9, -eye / 3)
    likelihood = processes.LinearGaussian(num_states=2, num_observed=2).log_likelihood
    series = jnp.asarray(np.random.default_rng(0).normal(size=(30, 2)))
    found, low = errors([likelihood, asked_for(LOW, likelihood)], params, series)
    assert found < BOUND < low / 10


def scored(policy, derivative=jax.grad):
    """The precisions of all products in a derivative of log P."""
    return precisions(jax.make_jaxpr(derivative(log_prob_of(policy)))(parameters(policy), TAUS))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", [None, LOW, lax.Precision.DEFAULT, lax.DotAlgorithmPreset.F32_F32_F32])
def test_a_precision_reaches_every_product(name, precision):
    for derivative in (lambda f: f, jax.grad, jax.hessian, lambda f: jax.jit(jax.jacfwd(f))):
        assert scored(network(name, precision=precision), derivative) == {precision_of(precision)}


def test_products_follow_jax_where_it_is_set_and_are_otherwise_exact():
    for asked in (LOW, "default", "BF16_BF16_F32"):
        with jax.default_matmul_precision(asked):
            assert scored(network()) == {precision_of(asked)} == {precision_of()}
            assert scored(network(precision="high")) == {lax.Precision.HIGH}
    assert scored(network()) == {EXACT} == {precision_of()}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_other_dtypes_are_as_they_were(dtype):
    params, x = jax.tree.map(lambda x: x.astype(dtype), (parameters(network()), jnp.arange(4.0)))
    np.testing.assert_array_equal(network().apply(params, x).logits, plain(params, x).logits)


def of_process(name):
    """Draws, and the gradient of their log-probability."""

    def call():
        process, policy, params = examples.process(name)
        tau = ld.rollout(params, jax.random.key(0), policy, process)
        return jax.grad(ld.log_prob)(params, policy, tau), ld.log_prob(params, policy, tau, environment=process)

    return call


def smoothed():
    process, _, params = examples.process("LinearGaussian")
    series = jnp.ones((3, 1))
    path = process.sample_states(params, jax.random.key(0), series)
    return path, processes.fisher_score(params, process, series), jax.grad(process.log_likelihood)(params, series)


def controlled():
    process, _, params = examples.process("LinearQuadratic")
    return jax.grad(lambda params: process.value(params, horizon=3))(params)


CALLS = modes.TRACED | {
    **{f"draws of {name}": of_process(name) for name in examples.PROCESSES.keys() - {"Fitness"}},
    "exact.compare_expectation": modes.EAGER["exact.compare_expectation"],
    "a smoother": smoothed,
    "a controller": controlled,
    "an entropy": lambda: [ld.distributions.TanhNormal(jnp.zeros(2), jnp.ones(2)).entropy()],
    "by enumeration": modes.exactly("value", horizon=2, method="enumeration"),
    "endless play": lambda: modes.GAME.value(modes.GAME.init(), discount=0.9),
}


WITHOUT_ANY = (
    "advantages.",
    "objectives.",
    "estimators",
    "importance.",
    "diagnostics.",
    "training.",
    "sampling",
    "types",
)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", mostly_slow(sorted(CALLS), [x for x in CALLS if not x.startswith(WITHOUT_ANY)]))
def test_every_product_of_the_library_names_a_precision(name):
    assert None not in precisions(jax.make_jaxpr(lambda: jax.tree.leaves(CALLS[name]()))())


class Own(processes.LinearGaussian):
    """A model whose matrices are made by a product that names no precision."""

    def matrices(self, params):
        found = super().matrices(params)
        return found._replace(transition=found.transition @ found.transition)


def within_a_smoother():
    process, _, params = examples.process("LinearGaussian")
    return processes.fisher_score(params, Own(num_states=2, num_observed=1), jnp.ones((3, process.num_observed)))


def within_a_value():
    policy = ld.FunctionPolicy(lambda params, s: ld.Categorical(jax.nn.one_hot(s, 4, dtype=params.dtype) @ params))
    return exact.fisher(jnp.ones((4, 2)), policy, ld.environments.short_corridor(horizon=3), horizon=2)


def within_a_transfer():
    process = processes.EulerMaruyama(lambda params, x, t: x * (params @ params), 0.5, -1.0, 0.1, 3)
    return processes.transfer_value(jnp.ones(2), process, low=-3.0, high=3.0, num_points=9)


@pytest.mark.parametrize("call", [within_a_smoother, within_a_value, within_a_transfer])
def test_products_of_a_users_functions_are_left_as_they_are(call):
    assert precisions(jax.make_jaxpr(call)()) == {None, EXACT}


def test_products_are_found_wherever_they_stand():
    def steps(x):
        return lax.scan(lambda c, _: (c @ c, None), x, None, length=2)[0]

    def branches(x):
        return lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x, x)

    @jax.custom_vjp
    def own(x):
        return x @ x

    own.defvjp(lambda x: (x, x), lambda x, g: (lax.dot(g, x, precision=EXACT),))
    x = jnp.ones((2, 2))
    for function in (steps, branches, own, jax.jit(steps), jax.checkpoint(branches)):
        assert precisions(jax.make_jaxpr(function)(x)) == {None}
    assert precisions(jax.make_jaxpr(jax.grad(lambda x: jnp.sum(own(x))))(x)) == {EXACT}
    assert precisions(jax.make_jaxpr(lambda x: jax.pure_callback(np.asarray, x, x))(x)) == {Products.HIDDEN}
    assert precisions(jax.make_jaxpr(lambda x: x * x)(x)) == set() == precisions(jax.make_jaxpr(steps)(x), jnp.float32)


def called_back(params, observation):
    """What stands behind a callback cannot be seen."""
    halves = jax.pure_callback(
        lambda x: x[:2], observation[:2], lax.stop_gradient(observation), vmap_method="sequential"
    )
    return ld.Categorical(params[0]["bias"][:2] + halves)


OF_POLICIES = [
    (Products.EXACT, network()),
    (Products.EXACT, network(precision="F32_F32_F32")),
    (Products.SHORTENED, network(precision=LOW)),
    (Products.UNNAMED, plain),
    (Products.HIDDEN, called_back),
]


@pytest.mark.parametrize(("products", "policy"), OF_POLICIES)
def test_comparisons_and_checks_of_scores_say_how_a_policy_takes_its_products(products, policy):
    single = singles((parameters(policy), TAUS))
    assert float32_products(log_prob_of(policy), *single) == products
    assert float32_products(log_prob_of(policy), parameters(policy), TAUS) in (Products.EXACT, Products.HIDDEN)


def test_their_reports_say_so_on_an_accelerator(monkeypatch):
    tau, params = singles(jax.tree.map(lambda x: x[0], TAUS)), singles(parameters(network()))
    compared = jax.jit(ld.compare)(params, ld.FunctionPolicy(plain), tau)
    weight = params[0]["weight"][0]
    checked = ld.testing.check_score(
        weight,
        jax.random.key(0),
        lambda mean, x: ld.Normal(mean @ mean, jnp.ones(())).log_prob(x),
        lambda mean, key: lax.stop_gradient(ld.Normal(mean @ mean, jnp.ones(())).sample(key)),
        num_samples=9,
        raises=False,
    )
    for report in (compared, checked):
        assert report.products == Products.UNNAMED
        assert "products name" not in str(report)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert "float32 products name no precision: a GPU rounds" in str(report)
        assert "as was asked for" in str(report._replace(products=jnp.int32(Products.SHORTENED)))
        assert "products" not in str(report._replace(products=jnp.int32(Products.EXACT)))
        monkeypatch.undo()


@pytest.mark.parametrize("name", NETWORKS)
def test_an_unknown_precision_is_refused_when_the_policy_is_made(name):
    for unknown in ("tf32", 2, "DEFAULT", True, ["high"], ("high", "high")):
        with pytest.raises(ValueError, match=r"precision: expected None, .*tensorfloat32.*F32_F32_F32.*; received"):
            network(name, precision=unknown)
    assert network(name, precision="high") == network(name, precision="high") != network(name)
