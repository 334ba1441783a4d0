"""Derivatives of log-probabilities and entropies, orders 0 to 4, against mpmath: both tails, the kinks, every mix of modes, in a scan."""

# pyright: reportArgumentType=false

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import logderiv as ld
from logderiv._core.blocks import sum_rows
from logderiv.distributions.basic import log_sigmoid, log_softmax
from logderiv.distributions.tanh_normal import _LOG_NDTR, log_ndtr
from tests.mostly import slow

ORDERS = range(5)
TAILS = [-80.0, -20.0, -2.3, -0.4, 0.0, 1.9, 12.2, 70.0]
NORMAL_TAILS = [-100.0, -20.0, -9.9, -4.3, -2.1, -0.6, 0.0, 0.4, 2.6, 8.0]
MIDDLE = [-3.25, -0.75, 0.0, 0.5, 2.25]


def log_sigma(x):
    return -mpmath.log1p(mpmath.exp(-x))


def sigma(x):
    return 1 / (1 + mpmath.exp(-x))


def entropy_of_two(x):
    return -sigma(x) * log_sigma(x) - sigma(-x) * log_sigma(-x)


def log_phi(x):
    return mpmath.log1p(-mpmath.ncdf(-x)) if x > 0 else mpmath.log(mpmath.ncdf(x))


def three(x, chosen):
    """The log-probability of one of three, whose logits are 0, x and -x / 2."""
    logits = [mpmath.mpf(0), x, -x / 2]
    return -mpmath.log(mpmath.fsum(mpmath.exp(logit - logits[chosen]) for logit in logits))


def entropy_of_three(x):
    return -mpmath.fsum(mpmath.exp(three(x, i)) * three(x, i) for i in range(3))


def log_normal(x, loc, scale):
    return -((x - loc) ** 2) / (2 * scale**2) - mpmath.log(scale) - mpmath.log(2 * mpmath.pi) / 2


def of_three(x):
    return ld.Categorical(jnp.stack([jnp.zeros_like(x), x, -x / 2]))


def of_two(x):
    return ld.Categorical(jnp.stack([x, jnp.zeros_like(x)]))


EPS = {jnp.float32: 2.0**-23, jnp.float64: 2.0**-52}
CASES = {
    "Bernoulli 1": (lambda x: ld.Bernoulli(x).log_prob(1), log_sigma, TAILS),
    "Bernoulli 0": (lambda x: ld.Bernoulli(x).log_prob(0), lambda x: log_sigma(-x), TAILS),
    "Bernoulli prob": (lambda x: ld.Bernoulli(x).prob(1), sigma, TAILS),
    "Bernoulli entropy": (lambda x: ld.Bernoulli(x).entropy(), entropy_of_two, TAILS),
    "Categorical 0": (lambda x: of_three(x).log_prob(0), lambda x: three(x, 0), TAILS),
    "Categorical 1": (lambda x: of_three(x).log_prob(1), lambda x: three(x, 1), TAILS),
    "Categorical prob": (lambda x: of_three(x).prob(2), lambda x: mpmath.exp(three(x, 2)), TAILS),
    "Categorical entropy": (lambda x: of_three(x).entropy(), entropy_of_three, TAILS),
    "Categorical of two": (lambda x: of_two(x).log_prob(0), log_sigma, TAILS),
    "Categorical of two, prob": (lambda x: of_two(x).prob(1), lambda x: sigma(-x), TAILS),
    "Categorical of two, entropy": (lambda x: of_two(x).entropy(), entropy_of_two, TAILS),
    "Normal loc": (lambda x: ld.Normal(x, 0.75).log_prob(0.25), lambda x: log_normal(0.25, x, 0.75), MIDDLE),
    "Normal scale": (
        lambda x: ld.Normal(0.5, jnp.exp(x)).log_prob(2.0),
        lambda x: log_normal(2, 0.5, mpmath.exp(x)),
        MIDDLE,
    ),
    "log Φ": (log_ndtr, log_phi, NORMAL_TAILS),
}


NOW = [("Bernoulli entropy", jnp.float32), ("Categorical 1", jnp.float64), ("Categorical of two", jnp.float32)]
LATER = [slow(case) for case in itertools.product(CASES, EPS) if case not in NOW]


def scanned(function):
    """The same within a scan, as a function of what is carried: there JAX forgets rules of `custom_jvp`."""

    def of(x):
        def step(carry, _):
            return carry + 1, function(x * (1 + 0 * carry))

        return jnp.sum(jax.lax.scan(step, jnp.zeros_like(x), None, length=2)[1]) / 2

    return of


def nested(function, modes):
    for mode in modes:
        function = {"r": jax.jacrev, "f": jax.jacfwd}[mode](function)
    return function


@functools.cache
def exact(name):
    """Derivatives of all orders, and of one more, at all points; shape `(points, 6)`."""
    _, function, points = CASES[name]
    with mpmath.workdps(120):
        step = mpmath.mpf(10) ** -12
        rows = [[mpmath.diff(function, mpmath.mpf(x), k, h=step) for k in range(6)] for x in points]
        return np.array([[float(y) if abs(y) > 1e-300 else 0.0 for y in row] for row in rows])


def errors(found, right, order, dtype):
    """Relative to the tolerance; at a zero of this derivative, to the resolution of the next one."""
    rtol, tiny = (1e-4, 1e-37) if dtype == jnp.float32 else (1e-10, 1e-300)
    allowed = rtol * np.abs(right[:, order]) + 64 * EPS[dtype] * np.abs(right[:, order + 1]) + tiny
    return np.abs(np.asarray(found, float) - right[:, order]) / allowed


@pytest.mark.parametrize(("name", "dtype"), NOW + LATER)
def test_orders_0_to_4_in_both_tails_and_at_the_kinks(name, dtype):
    function, _, points = CASES[name]
    at = jnp.asarray(points, dtype)
    right = exact(name)
    modes = ["", "r", "rf", "frr", "rfff"]
    found = jax.jit(lambda at: [jax.vmap(nested(function, m))(at) for m in modes])(at)
    for order, values in enumerate(found):
        assert (errors(values, right, order, dtype) <= 1).all(), (order, values, right[:, order])


@functools.cache
def in_every_mode(name):
    function, _, points = CASES[name]
    modes = ["".join(m) for order in (1, 2) for m in itertools.product("rf", repeat=order)] + ["rrr", "fff"]

    @jax.jit
    def found(at):
        return [jax.vmap(nested(scanned(function), m))(at) for m in modes]

    return modes, found(jnp.asarray(points))


@pytest.mark.parametrize(
    "name", ["Bernoulli 1", *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n != "Bernoulli 1")]
)
def test_every_mix_of_modes_within_a_scan(name):
    for mode, values in zip(*in_every_mode(name), strict=True):
        assert (errors(values, exact(name), len(mode), jnp.float64) <= 1).all(), (mode, values)


def test_a_rule_of_its_own_is_forgotten_within_a_scan():
    """What `jax.nn.log_sigmoid` gives at its kink before JAX 0.12, where ours is right: the reason for writing it out."""
    theirs, ours = (jax.jit(nested(scanned(f), "rr")) for f in (jax.nn.log_sigmoid, log_sigmoid))
    np.testing.assert_allclose(ours(0.0), -0.25, rtol=1e-14)
    assert jax.__version_info__ >= (0, 12) or abs(theirs(0.0) + 0.25) > 0.2


@pytest.mark.parametrize("mask", [[0.0] * 3, [0.0, -np.inf, 0.0]], ids=["all", "masked"])
def test_logits_that_are_made_in_the_same_program(mask):
    """XLA computes them anew for each use, not always with the same rounding: none need equal the maximum."""

    def run(function, modes):
        def of(key, scale):
            logits = scale * jax.random.normal(key, (3,)) + jnp.array(mask)
            return logits, [nested(lambda x: function(x)[0], mode)(logits) for mode in modes]

        scales = jnp.tile(jnp.array([1.0, 50.0, 1e3]), 50)
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(of))(jax.random.split(jax.random.key(0), 150), scales))

    logits, (first, *seconds) = run(log_softmax, ["r", "rr", "rf", "fr", "ff"])
    probs = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    one = np.eye(3)
    others = probs @ (1 - one)
    gradient = np.where(one[0] == 1, others, -probs)
    hessian = probs[..., None] * np.where(one == 1, -others[..., None], probs[..., None, :])
    np.testing.assert_allclose(first, gradient, rtol=1e-11, atol=1e-300)
    for second in seconds:
        np.testing.assert_allclose(second, hessian, rtol=1e-11, atol=1e-300)


def test_coefficients_of_the_normal_tail():
    """By interpolation at 100 Chebyshev nodes, 80 digits."""
    with mpmath.workdps(80):
        num, size = 100, len(_LOG_NDTR.split())
        angles = [mpmath.pi * (j + mpmath.mpf(1) / 2) / num for j in range(num)]
        values = []
        for angle in angles:
            distance = mpmath.mpf("6.5") / (mpmath.cos(angle) + 1)
            x = mpmath.mpf("3.5") - distance
            log_tail = mpmath.log(mpmath.erfc(-x / mpmath.sqrt(2)) / 2)
            values.append(log_tail + x**2 / 2 + mpmath.log(distance))
        powers = [mpmath.mpf(0)] * size
        before, this = [mpmath.mpf(1)], [mpmath.mpf(0), mpmath.mpf(1)]
        for k in range(size):
            pairs = zip(values, angles, strict=True)
            weight = (2 if k else 1) * mpmath.fsum(v * mpmath.cos(k * angle) for v, angle in pairs) / num
            for i, c in enumerate(before):
                powers[i] += weight * c
            following = [mpmath.mpf(0), *(2 * c for c in this)]
            for i, c in enumerate(before):
                following[i] -= c
            before, this = this, following
        np.testing.assert_allclose([float(c) for c in powers], [float(c) for c in _LOG_NDTR.split()], rtol=1e-14)


@jax.jit
def tanh_entropies(loc, scale):
    function = jax.vmap(lambda loc, scale: ld.distributions.TanhNormal(loc, scale).entropy())
    orders = [function]
    for _ in range(2):
        orders.append(
            lambda loc, scale, f=orders[-1]: jax.jvp(lambda x: f(loc, x), (scale,), (jnp.ones_like(scale),))[1]
        )
    return [f(loc, scale) for f in orders]


def tanh_entropy(loc, scale):
    def log_slope(u):
        return 2 * (mpmath.log(2) - abs(u) - mpmath.log1p(mpmath.exp(-2 * abs(u))))

    kink = -loc / scale
    cuts = sorted({-12, -4, -1, 1, 4, 12, *(c for c in (kink - 2, kink, kink + 2) if -12 < c < 12)})
    expected = mpmath.quad(lambda x: mpmath.npdf(x) * log_slope(loc + scale * x), cuts)
    return expected + mpmath.log(scale) + (1 + mpmath.log(2 * mpmath.pi)) / 2


def test_the_entropy_of_the_tanh_normal_at_any_scale():
    """Derivatives in the scale, on both sides of where the formula changes."""
    points = [(-2.5, 0.97), (0.7, 1.05), (4.0, 8.0)]
    found = np.stack(tanh_entropies(*jnp.asarray(points).T), axis=1)
    for row, (loc, scale) in zip(found, points, strict=True):
        with mpmath.workdps(20):
            h = mpmath.mpf("1e-3")
            nodes = {i: tanh_entropy(mpmath.mpf(loc), mpmath.mpf(scale) + i * h) for i in range(-2, 3)}
            first = (8 * (nodes[1] - nodes[-1]) - (nodes[2] - nodes[-2])) / (12 * h)
            second = (16 * (nodes[1] + nodes[-1]) - (nodes[2] + nodes[-2]) - 30 * nodes[0]) / (12 * h**2)
        np.testing.assert_allclose(row[0], float(nodes[0]), rtol=1e-12)
        np.testing.assert_allclose(row[1:3], [float(first), float(second)], rtol=1e-7)


def ties(x):
    """All logits 0 at x = 0: hidden states and an unembedding that vanish there."""
    rows = x * jnp.array([[0.3, -1.0], [2.0, 0.4], [-0.6, 0.9], [1.1, 0.2]])
    return rows, jnp.array([[1.0, -0.5], [0.2, 0.7]])


def tokens(x):
    rows, hidden = ties(x)
    found = ld.token_log_probs(rows, hidden, jnp.array([0, 3]), block_size=2, entropy=True)
    return jnp.sum(found.log_probs + 2 * jnp.asarray(found.entropy))


def tokens_at_once(x):
    rows, hidden = ties(x)
    logs = jax.nn.log_softmax(hidden @ rows.T)
    return jnp.sum(logs[jnp.arange(2), jnp.array([0, 3])] - 2 * jnp.sum(jnp.exp(logs) * logs, axis=1))


def one_pass(x):
    row = lambda p, r: log_sigmoid(p * r) * jnp.cos(p)  # noqa: E731
    return sum_rows(row, x, jnp.arange(6.0)[None], jnp.ones((1, 6), bool), block_size=2)


def row_by_row(x):
    return jnp.sum(-jnp.logaddexp(0.0, -x * jnp.arange(6.0))) * jnp.cos(x)


@pytest.mark.parametrize(("ours", "plain"), [(tokens, tokens_at_once), slow((one_pass, row_by_row))])
def test_kernels_with_a_rule_of_their_own_within_a_scan(ours, plain):
    modes = ["rr", "rf", "fr", "ff"]
    pairs = [(nested(scanned(ours), mode), nested(plain, "f" * len(mode))) for mode in modes]
    found = jax.jit(lambda x: [(f(x), g(x)) for f, g in pairs])(0.0)
    for mode, (value, right) in zip(modes, found, strict=True):
        np.testing.assert_allclose(value, right, rtol=1e-10, atol=1e-12, err_msg=mode)
