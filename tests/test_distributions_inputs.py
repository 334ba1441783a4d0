"""What distributions take: numbers of any kind, in the shapes that fit; all else is refused by name."""

# pyright: reportArgumentType=false

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from logderiv.distributions import MultivariateNormal, PartlyObserved, covariance_from, log_cholesky_of
from logderiv.processes import RandomWalk
from logderiv.processes.parameter_search import TreeNormal
from tests.mostly import slow

KEY = jax.random.key(0)
# The same parameters in other dtypes; what is made of them is that of float32, or of float64.
KINDS = {
    "list": lambda x: np.asarray(x).tolist(),
    "numpy": lambda x: np.asarray(x),
    "int8": lambda x: jnp.asarray(x, jnp.int8),
    "uint8": lambda x: jnp.asarray(x, jnp.uint8),
    "int32": lambda x: jnp.asarray(x, jnp.int32),
    "float16": lambda x: jnp.asarray(x, jnp.float16),
    "bfloat16": lambda x: jnp.asarray(x, jnp.bfloat16),
    "float32": lambda x: jnp.asarray(x, jnp.float32),
    "float64": lambda x: jnp.asarray(x, jnp.float64),
}


def numbers(cast):
    """Every number that a distribution gives, of parameters that are whole."""
    normal, box = ld.Normal(cast([1, 2]), cast([2, 1])), ld.distributions.TanhNormal(cast(1), cast(2), -2.0, 2.0)
    choice, flip = ld.Categorical(cast([0, 1, 3])), ld.Bernoulli(cast([1, 2]))
    both = MultivariateNormal(cast([1, 2]), cast([[2, 0], [1, 1]]))
    some = PartlyObserved(cast([1, 2]), cast([[2, 1], [1, 2]]), np.array([True, False]))
    tree = TreeNormal({"a": cast([1, 2])}, cast(2))
    return [
        *(normal.log_prob(cast([0, 3])), normal.entropy(), normal.mode()),
        *(box.log_prob(cast(1)), box.entropy(), box.mode()),
        *(choice.log_prob(2), choice.prob([0, 2]), choice.entropy(), choice.mode()),
        *(flip.log_prob([0, 1]), flip.prob(True), flip.entropy(), flip.mode()),
        *(both.log_prob(cast([0, 3])), some.log_prob(cast([0, 3]))),
        tree.log_prob({"a": cast([0, 3])}),
        ld.masked(cast([0, 1, 3]), [True, False, True]),
    ]


@pytest.mark.parametrize(
    "kind", [slow(k) if k == "bfloat16" else k for k in KINDS if k not in ("list", "int8", "int32", "float16")]
)
def test_parameters_and_actions_of_any_kind_give_the_same_numbers(kind):
    with jax.numpy_dtype_promotion("standard"):
        found, right = numbers(KINDS[kind]), numbers(KINDS["float64"])
    for a, b in zip(found, right, strict=True):
        assert a.dtype in (b.dtype, jnp.float32)
        np.testing.assert_allclose(a, b, rtol=2e-6)


def test_python_numbers_take_the_dtype_of_what_stands_beside_them():
    assert ld.Normal(jnp.float32(1), 2).sample(KEY).dtype == jnp.float32
    assert ld.Normal(jnp.float32(1), 2.0).log_prob(0.5).dtype == jnp.float32
    assert ld.Normal(1, 2.0).log_prob(0.5).dtype == jnp.float64
    np.testing.assert_allclose(ld.Normal(0.0, 1.0).log_prob(0.5), -0.125 - 0.5 * np.log(2 * np.pi))
    assert ld.distributions.TanhNormal(0.0, 1.0).mode() == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda z: ld.Categorical([z, 0.0]),
        lambda z: ld.Bernoulli(z),
        lambda z: ld.Normal(z, 1.0),
        lambda z: ld.Normal(0.0, z),
        lambda z: ld.distributions.TanhNormal(z, 1.0),
        lambda z: MultivariateNormal([z], [[1.0]]),
        lambda z: ld.masked([z, 0.0], [True, True]),
        lambda z: TreeNormal({"a": z}, 1.0),
        lambda z: ld.Normal(0.0, 1.0).log_prob(z),
        lambda z: ld.distributions.TanhNormal(0.0, 1.0).log_prob(z),
        lambda z: MultivariateNormal([0.0], [[1.0]]).log_prob([z]),
        lambda z: ld.Categorical([0.0, 1.0]).log_prob(z),
        lambda z: ld.Bernoulli(0.0).log_prob(z),
        lambda z: ld.tabular_softmax.apply(jnp.zeros((2, 2)), z),
    ],
)
def test_complex_numbers_and_texts_are_refused_by_name(make):
    names = "logits|loc|scale|values|action|^x|observation"
    for value in (1.0 + 1.0j, "text"):
        with pytest.raises(TypeError, match=names):
            make(value)


def test_a_complex_observation_of_a_network_is_refused_by_name():
    with pytest.raises(TypeError, match="observation"):
        ld.MLP(2).apply([{"weight": jnp.ones((1, 2)), "bias": jnp.zeros(2)}], jnp.ones(1, complex))


INDEFINITE = jnp.array([[1.0, 2.0], [2.0, 1.0]])
SHAPES = [
    (lambda: ld.Categorical(jnp.zeros(())), "logits: expected shape"),
    (lambda: ld.Categorical(jnp.zeros(0)), "at least one action"),
    (lambda: ld.Categorical(jnp.zeros((2, 3))).log_prob(jnp.zeros(5, int)), "action: expected a shape"),
    (lambda: ld.Bernoulli(jnp.zeros(2)).log_prob(jnp.zeros(3, int)), "action: expected a shape"),
    (lambda: ld.Normal(jnp.zeros(1), jnp.ones(1)).log_prob(jnp.zeros(3)), "action: expected 1 numbers"),
    (lambda: ld.Normal(jnp.zeros(3), 1.0).log_prob(jnp.zeros(1)), "action: expected 3 numbers"),
    (lambda: ld.Normal(jnp.zeros(3), 1.0).log_prob(0.0), "action: expected 3 numbers"),
    (lambda: ld.Normal(jnp.zeros((2, 1)), 1.0).log_prob(jnp.zeros((2, 4))), "action: expected 1 numbers"),
    (lambda: ld.Normal(jnp.zeros((2, 3)), 1.0).log_prob(jnp.zeros((5, 3))), "action: expected a shape"),
    (lambda: ld.Normal(jnp.zeros(3), jnp.ones(2)), "scale: expected a shape"),
    (
        lambda: ld.distributions.TanhNormal(jnp.zeros(1), jnp.ones(1)).log_prob(jnp.zeros(3)),
        "action: expected 1 numbers",
    ),
    (lambda: ld.distributions.TanhNormal(0.0, 1.0, (-1.0, -2.0), 3.0), "low: expected shape"),
    (lambda: MultivariateNormal(jnp.zeros(3), jnp.eye(3)).log_prob(jnp.zeros(1)), "x: expected shape"),
    (lambda: MultivariateNormal(jnp.zeros(3), jnp.eye(2)), "scale_tril: expected shape"),
    (lambda: PartlyObserved(jnp.zeros(3), jnp.eye(3), jnp.ones(1, bool)), "observed: expected shape"),
    (lambda: TreeNormal({"a": jnp.zeros(1)}, 1.0).log_prob({"a": jnp.zeros(3)}), "action"),
    (lambda: ld.masked(jnp.zeros(3), jnp.ones(2, bool)), "mask: expected a shape"),
    (
        lambda: ld.distributions.Forced(ld.Categorical(jnp.zeros(3)), jnp.zeros(2, int), True).sample(
            jax.random.key(2)
        ),
        "Forced.action",
    ),
    (lambda: ld.Bernoulli(jnp.zeros(2)).quantile(jnp.full(3, 0.5)), "probability: expected a shape that broadcasts"),
    (lambda: ld.Normal(jnp.zeros(2), 1.0).quantile(jnp.full(3, 0.5)), "probability: expected a shape that broadcasts"),
    (lambda: ld.Normal(jnp.zeros(2), 1.0).quantile(0.5, upper=jnp.ones(3, bool)), "upper: expected a shape that"),
    (lambda: ld.distributions.TanhNormal(jnp.zeros(2), 1.0).quantile(jnp.full(3, 0.5)), "probability: expected a"),
    (lambda: ld.normal_head(jnp.zeros(3)), r"outputs: expected shape \(\.\.\., 2 D\).*received \(3,\)"),
    (
        lambda: ld.distributions.TanhNormal(0.0, 1.0, 1000.0, 1001.0).log_prob(jnp.bfloat16(1000)),
        "bounds that differ in the dtype of the action, received 1000.0 and 1001.0, which are one number in bfloat16",
    ),
    (lambda: ld.Normal(0.0, -1.0), "scale: expected a positive number"),
    (lambda: ld.Normal(jnp.zeros(2), jnp.array([1.0, 0.0])), "scale: expected a positive number"),
    (lambda: ld.distributions.TanhNormal(0.0, -1.0), "scale: expected a positive number"),
    (lambda: MultivariateNormal(jnp.zeros(1), -jnp.eye(1)), "diagonal of scale_tril"),
    (lambda: MultivariateNormal(jnp.zeros(2), jnp.ones((2, 2))), "scale_tril: expected a lower-triangular matrix"),
    (
        lambda: MultivariateNormal(jnp.zeros(2), jnp.linalg.cholesky(INDEFINITE)),
        "diagonal of scale_tril.*the covariance was not positive definite",
    ),
    (lambda: covariance_from(jnp.zeros((3, 2, 2))), r"log_cholesky: expected shape \(n, n\).*use jax.vmap"),
    (lambda: covariance_from(jnp.zeros((2, 3))), r"log_cholesky: expected shape \(n, n\), received \(2, 3\)"),
    (lambda: covariance_from(jnp.zeros(3)), r"log_cholesky: expected shape \(n, n\), received \(3,\)"),
    (lambda: log_cholesky_of(jnp.ones(3)), r"covariance: expected shape \(n, n\), received \(3,\)"),
    (lambda: log_cholesky_of(INDEFINITE), r"covariance: expected a positive definite matrix, received \[\[1.0, 2.0\]"),
]


@pytest.mark.parametrize(("call", "message"), SHAPES, ids=[message for _, message in SHAPES])
def test_shapes_and_scales_that_do_not_fit_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shapes", [((), (3,)), ((1,), (3,)), ((3,), (2, 3)), ((2, 3), (3,))])
def test_location_and_scale_that_broadcast_give_one_shape(shapes):
    """Draws, modes and quantiles have it; entropies are those of parameters of that shape."""
    loc, scale = (jnp.full(shape, x) for shape, x in zip(shapes, (0.3, 0.7), strict=True))
    shape = np.broadcast_shapes(*shapes)
    bounded = partial(ld.distributions.TanhNormal, low=(-1.0, -2.0, -3.0), high=(1.0, 2.0, 3.0))
    for make in (ld.Normal, bounded):
        law, whole = make(loc, scale), make(jnp.full(shape, 0.3), jnp.full(shape, 0.7))
        assert law.sample(jax.random.key(3)).shape == shape
        np.testing.assert_array_equal(law.mode(), whole.mode())
        np.testing.assert_array_equal(law.quantile(0.2), whole.quantile(jnp.full(shape, 0.2)))
        np.testing.assert_array_equal(law.entropy(), whole.entropy())
        np.testing.assert_array_equal(law.log_prob(law.mode()), whole.log_prob(whole.mode()))
        assert law.entropy().shape == shape[:-1]


def test_what_stands_above_the_diagonal_of_a_traced_factor_is_neither_drawn_from_nor_scored():
    """The wrong twin draws from the covariance [[5, 1], [1, 1]] of all entries."""
    factor = jnp.array([[2.0, 1.0], [0.5, 1.0]])

    @jax.jit
    def both(factor):
        law = MultivariateNormal(jnp.zeros(2), factor)
        return law.sample(jax.random.key(1)), law.log_prob(jnp.ones(2))

    (draw, log_prob), (right, scored) = both(factor), both(jnp.tril(factor))
    np.testing.assert_array_equal(draw, right)
    assert log_prob == scored
    assert draw[0] != (factor @ jnp.linalg.solve(jnp.tril(factor), draw))[0]


def test_several_covariances_are_mapped_over():
    several = jax.random.normal(jax.random.key(2), (3, 2, 2))
    covariances = jax.vmap(covariance_from)(several)
    np.testing.assert_allclose(jax.vmap(log_cholesky_of)(covariances), jnp.tril(several), atol=1e-12)
    assert np.isnan(log_cholesky_of(jnp.full((2, 2), jnp.nan))).any()  # NaN is let through


def test_leading_axes_broadcast_and_scalars_stay_elementwise():
    x = jnp.linspace(-1.0, 1.0, 6).reshape(3, 2)
    rows = ld.Normal(jnp.zeros(2), 1.0).log_prob(x)
    np.testing.assert_allclose(rows, ld.Normal(0.0, 1.0).log_prob(x).sum(axis=1), rtol=1e-14)
    assert ld.Normal(0.0, 1.0).log_prob(x).shape == (3, 2)
    assert ld.distributions.TanhNormal(0.0, 1.0).log_prob(x / 2).shape == (3, 2)


@pytest.mark.parametrize("value", [1.5, jnp.asarray(1.0), "1", None])
def test_an_index_is_a_whole_number(value):
    for call in (
        lambda: ld.Categorical(jnp.zeros(3)).log_prob(value),
        lambda: ld.Bernoulli(0.0).prob(value),
        lambda: ld.tabular_softmax.apply(jnp.zeros((2, 2)), value),
        lambda: ld.distributions.Forced(ld.Categorical(jnp.zeros(3)), value, True).sample(jax.random.key(1)),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()


def test_a_negative_scale_under_a_trace_is_nan_on_the_bound_too():
    log_prob = jax.jit(lambda scale, y: ld.distributions.TanhNormal(0.0, scale).log_prob(y))
    assert jnp.isnan(log_prob(-1.0, 1.0))
    assert jnp.isnan(log_prob(-1.0, 0.5))


def test_nan_stays_nan_with_its_gradient():
    value, slope = jax.jit(jax.value_and_grad(lambda m: ld.distributions.TanhNormal(m, 1.0).log_prob(jnp.nan)))(1.0)
    assert jnp.isnan(value)
    assert jnp.isnan(slope)


def test_equality_is_true_or_false():
    one = [
        lambda: ld.Categorical([0.0, 1.0]),
        lambda: ld.distributions.TanhNormal(jnp.zeros(2), 1.0),
        lambda: RandomWalk(3),
    ]
    other = [ld.Categorical([0.0, 2.0]), ld.distributions.TanhNormal(jnp.zeros(2), 2.0), RandomWalk(4)]
    for make, different in zip(one, other, strict=True):
        assert (make() == make()) is True
        assert (make() == different) is False
        assert (make() != different) is True
        assert make() != 3
    assert ld.Categorical(jnp.zeros(3)) != ld.Categorical(jnp.zeros((1, 3)))
    assert ld.distributions.TanhNormal(0.0, 1.0) != ld.distributions.TanhNormal(0.0, 1.0, -2.0, 2.0)
    assert ld.environments.short_corridor() == ld.environments.short_corridor()
    assert ld.environments.short_corridor() != ld.environments.short_corridor(horizon=5)
