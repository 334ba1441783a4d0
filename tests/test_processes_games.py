"""Repeated matrix games: closed forms, every game listed, and a look ahead whose derivative is a formula."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import logderiv as ld
from tests.worlds import cast, rollout

DISCOUNT = 0.96
PENNIES = jnp.array([[1.0, -1.0], [-1.0, 1.0]])

# V1 = s0^T (I - gamma P)^-1 r at uniform play, gamma 0.96, and its derivatives in the logits of cooperation; each player's in the order
# CC, CD, DC, DD, start, own action first. The game of arXiv:1709.04326, differentiated
# in a separate program, checked by finite differences, and rounded to the exact fractions.
GRADIENT = [-1.5, -1.5, -1.5, -1.5, -0.25, 3.0, 3.0, 3.0, 3.0, 0.5]
HESSIAN = [
    [-0.36, -0.36, 0.0, 0.0, -0.03, 0.18, -0.54, 0.18, -0.54, -0.03],
    [-0.36, -0.36, 0.0, 0.0, -0.03, 0.54, -0.18, 0.54, -0.18, 0.03],
    [0.0, 0.0, 0.36, 0.36, 0.03, 0.18, -0.54, 0.18, -0.54, -0.03],
    [0.0, 0.0, 0.36, 0.36, 0.03, 0.54, -0.18, 0.54, -0.18, 0.03],
    [-0.03, -0.03, 0.03, 0.03, 0.0, 0.06, -0.06, 0.06, -0.06, 0.0],
    [0.18, 0.54, 0.18, 0.54, 0.06, 0.72, 0.72, 0.0, 0.0, 0.06],
    [-0.54, -0.18, -0.54, -0.18, -0.06, 0.72, 0.72, 0.0, 0.0, 0.06],
    [0.18, 0.54, 0.18, 0.54, 0.06, 0.0, 0.0, -0.72, -0.72, -0.06],
    [-0.54, -0.18, -0.54, -0.18, -0.06, 0.0, 0.0, -0.72, -0.72, -0.06],
    [-0.03, 0.03, -0.03, 0.03, 0.0, 0.06, 0.06, -0.06, -0.06, 0.0],
]
FINITE = {1: -1.5, 2: -2.94, 3: -4.3224, 5: -6.92352384}  # the sums of as many rounds, -1.5 (1 - gamma^T) / (1 - gamma)
COOPERATE, DEFECT = [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]
TIT_FOR_TAT = [1, 0, 1, 0, 1]


def dilemma():
    return ld.processes.prisoners_dilemma()


def uneven() -> tuple[Any, Any]:
    """Two actions against three."""
    random = np.random.default_rng(5)
    game = ld.processes.MatrixGame(jnp.asarray(random.normal(size=(2, 2, 3))))
    return game, tuple(jnp.asarray(random.normal(size=x.shape)) for x in game.init())


def logits(theta):
    return jnp.stack([theta, jnp.zeros_like(theta)], axis=-1)


def value_of_first(theta, **options):
    return dilemma().value((logits(theta[:5]), logits(theta[5:])), **options)[0]


def test_value_gradient_and_hessian_at_uniform_play_are_the_closed_form():
    theta = jnp.zeros(10)

    @jax.jit
    def everything(theta):
        endless = [f(value_of_first)(theta, discount=DISCOUNT) for f in (lambda f: f, jax.grad, jax.hessian)]
        return endless, [value_of_first(theta, horizon=T, discount=DISCOUNT) for T in FINITE]

    (value, gradient, hessian), finite = everything(theta)
    np.testing.assert_allclose(value, -37.5, rtol=1e-13)
    np.testing.assert_allclose(gradient, GRADIENT, atol=1e-12)
    np.testing.assert_allclose(hessian, HESSIAN, atol=1e-12)
    np.testing.assert_allclose(finite, list(FINITE.values()), rtol=1e-13)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (COOPERATE, COOPERATE, (-25, -25)),
        (DEFECT, DEFECT, (-50, -50)),
        (TIT_FOR_TAT, TIT_FOR_TAT, (-25, -25)),
        (TIT_FOR_TAT, DEFECT, (-51, -48)),
        (DEFECT, COOPERATE, (0, -75)),
    ],
)
def test_pure_strategies(first, second, expected):
    params = tuple(logits(100.0 * (2.0 * jnp.array(p, float) - 1)) for p in (first, second))
    np.testing.assert_allclose(dilemma().value(params, discount=DISCOUNT), expected, atol=1e-9)


def test_value_of_uneven_players_is_the_sum_over_all_games_played_by_hand():
    """Each player's own view written down anew: a row for (own, other) of the last round."""
    game, params = uneven()
    first, second = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in map(np.asarray, params))
    payoffs, total = np.asarray(game.payoffs), np.zeros(2)
    rounds = list(itertools.product(range(2), range(3)))
    for played in itertools.product(rounds, repeat=3):
        probability, row_1, row_2 = 1.0, 6, 6
        for a, b in played:
            probability *= first[row_1, a] * second[row_2, b]
            row_1, row_2 = 3 * a + b, 2 * b + a
        total += probability * sum(0.9**t * payoffs[:, a, b] for t, (a, b) in enumerate(played))
    np.testing.assert_allclose(game.value(params, horizon=3, discount=0.9), total, rtol=1e-12)
    long = jax.jit(lambda p: (game.value(p, discount=0.5), game.value(p, horizon=60, discount=0.5)))(params)
    np.testing.assert_allclose(*long, rtol=1e-12)


@pytest.mark.parametrize("player", [0, 1])
def test_dice_estimates_all_blocks_of_the_hessian_and_the_plain_surrogate_has_no_cross_block(player):
    keys = jax.random.split(jax.random.key(1))
    game = dilemma()
    params = tuple(0.5 * jax.random.normal(k, x.shape) for k, x in zip(keys, game.init(), strict=True))

    def hessian(surrogate):
        estimator = ld.ScoreFunction(discount=DISCOUNT, surrogate=surrogate)
        sizes: Any = {"horizon": 2, "num_trajectories": 1, "order": 2}
        return ld.exact.moments(params, game.policy, game.mdp(player), estimator, **sizes)

    dice, plain = hessian(ld.estimators.DiCE()), hessian(ld.estimators.Score())
    own = jax.jit(jax.hessian(lambda p: game.value(p, horizon=2, discount=DISCOUNT)[player]))(params)
    cross = np.asarray(own[0][1]).reshape(10, 10)
    np.testing.assert_allclose(dice.exact[:10, 10:], cross, atol=1e-14)
    np.testing.assert_allclose(dice.mean, dice.exact, atol=1e-12)
    assert np.abs(cross).max() > 0.03
    assert np.abs(plain.mean[:10, 10:]).max() < 1e-15
    assert np.abs(plain.bias[:10, :10]).max() > 0.03


def test_rollout_has_a_reward_for_each_player_and_remembers_what_was_played():
    game, params = uneven()
    taus = rollout(params, jax.random.split(jax.random.key(0), (2, 3)), game.policy, game, horizon=4)
    assert taus.rewards.shape == (2, 3, 4, 2)
    a, b = game.actions_of(taus)
    assert (a.max(), b.max()) == (1, 2)
    np.testing.assert_array_equal(taus.observations[..., 0], 6)
    np.testing.assert_array_equal(taus.observations[..., 1:], (3 * a + b)[..., :-1])
    np.testing.assert_array_equal(taus.rewards[..., 1], game.payoffs[1, a, b])
    np.testing.assert_array_equal(game.rewards_of(taus, 0).rewards, game.payoffs[0, a, b])
    false_memory = taus._replace(
        observations=jnp.asarray(taus.observations).at[0, 0, 2].set((taus.observations[0, 0, 2] + 1) % 6)
    )

    @jax.jit
    def log_probs(params):
        pairs = ((taus, None), (taus, game), (false_memory, game))
        return [ld.log_prob(params, game.policy, tau, environment=world) for tau, world in pairs]

    alone, whole, impossible = log_probs(params)
    np.testing.assert_allclose(whole, alone, rtol=1e-14)
    assert impossible[0, 0] == -jnp.inf
    assert jnp.isfinite(impossible[1]).all()


@pytest.mark.parametrize("outside", [-1, 7, 99])
def test_a_round_that_is_none_has_no_law_and_the_start_keeps_its_own(outside):
    """Number A_1 A_2 is the start, and no other: an index that is clamped or counts from the end would take them for it."""
    game, params = uneven()
    laws = jax.jit(jax.vmap(lambda s: game.transition(params, s).log_prob(jnp.arange(6))))(jnp.arange(7))
    first, second = (np.log(np.asarray(jax.nn.softmax(x))) for x in params)
    for s, law in enumerate(laws):
        mirrored = s if s == 6 else 2 * (s % 3) + s // 3
        np.testing.assert_allclose(law.reshape(2, 3), first[s][:, None] + second[mirrored], rtol=1e-12)
    of = jax.jit(lambda s: jax.value_and_grad(lambda p: game.transition(p, s).log_prob(jnp.int32(1)))(params))
    value, slopes = of(jnp.int32(outside))
    assert np.isnan(value)
    assert all(np.isnan(x).any() for x in slopes)  # of both players
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(of(jnp.int32(6))))


@pytest.mark.slow
def test_sampled_gradients_of_one_player_are_those_of_its_value():
    game, params = uneven()
    estimator = ld.ScoreFunction(ld.advantages.ToGo(ld.baselines.LeaveOneOut()))

    @jax.jit
    def run(params):
        keys = jax.random.split(jax.random.key(7), (400, 8))
        taus = ld.rollout(params, keys, game.policy, game, horizon=3)
        grads = jax.vmap(lambda t: estimator.estimate(params, (), game.policy, game.rewards_of(t, 1))[0].grads)(taus)
        return grads, [jax.grad(lambda p: game.value(p, horizon=3)[i])(params) for i in range(2)]  # noqa: B023

    samples, (other, exact) = run(params)
    ld.testing.assert_unbiased(samples, exact, resolution=0.2)
    with pytest.raises(AssertionError):
        ld.testing.assert_unbiased(samples, other, resolution=0.2)


def test_look_ahead_is_gradient_ascent_that_can_be_differentiated():
    """V = x y - y^2 / 2 seen by y: one step moves y to y + a (x - y), and x sees dy'/dx = 1 - (1 - a)^steps."""

    def anticipated(x, steps):
        return ld.processes.look_ahead(
            jnp.asarray(0.5), jax.random.key(0), lambda y, key: x * y - y**2 / 2, learning_rate=0.1, steps=steps
        )

    for steps in (0, 1, 3):
        value, slope = jax.value_and_grad(lambda x: anticipated(x, steps))(2.0)  # noqa: B023
        np.testing.assert_allclose(value, 2 + 0.9**steps * (0.5 - 2), rtol=1e-14)
        np.testing.assert_allclose(slope, 1 - 0.9**steps, rtol=1e-13, atol=1e-15)


def test_look_ahead_uses_a_fresh_key_at_each_step():
    moved = ld.processes.look_ahead(
        jnp.zeros(()), jax.random.key(0), lambda y, key: y * jax.random.normal(key), learning_rate=1.0, steps=2
    )
    draws = [float(jax.random.normal(key)) for key in jax.random.split(jax.random.key(0))]
    np.testing.assert_allclose(moved, sum(draws), rtol=1e-14)
    assert draws[0] != draws[1]


def test_float32_and_vmap_over_games():
    game, params = uneven()
    scaled = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), game)

    @jax.jit
    def values(params):
        single = cast(game, jnp.float32).value(cast(params, jnp.float32), discount=0.5)
        return single, game.value(params, discount=0.5), jax.vmap(lambda g: g.value(params, discount=0.5))(scaled)

    single, exact, both = values(params)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, exact, rtol=1e-5)
    np.testing.assert_allclose(both, jnp.stack([exact, 2 * exact]), rtol=1e-12)


def test_payoffs_may_be_integers():
    assert ld.processes.MatrixGame(jnp.ones((2, 2, 2), int)).payoffs.dtype == jnp.float64


GAME = ld.processes.MatrixGame(jnp.stack([PENNIES, -PENNIES]))
INIT: Any = GAME.init()
KEY = jax.random.key(0)
SHAPE = r"payoffs: expected shape \(2, A_1, A_2\)"
BAD = [
    *((SHAPE, lambda s=s: ld.processes.MatrixGame(jnp.zeros(s))) for s in ((2, 2), (3, 2, 2), (2, 2, 0))),
    (r"discount: .* in \[0, 1\), received 1.0; endless play is discounted", lambda: GAME.value(INIT)),
    (r"params\[1\]: .*\(5, 2\), received \(4, 2\); a pair of", lambda: GAME.value((INIT[0], INIT[1][:4]), horizon=2)),
    (r"player: expected a whole number from 0 to 1, received 2", lambda: GAME.mdp(2)),
    ("horizon: this environment has no default", lambda: ld.rollout(INIT, KEY, GAME.policy, GAME)),
    ("steps: .* >= 0", lambda: ld.processes.look_ahead(INIT, KEY, lambda p, k: p, learning_rate=0.1, steps=-1)),
]


@pytest.mark.parametrize(("words", "call"), BAD)
def test_bad_input(words, call):
    with pytest.raises(ValueError, match=words):
        call()
