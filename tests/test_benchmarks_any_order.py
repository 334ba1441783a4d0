"""The benchmarks of higher derivatives, at small sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import loaded_dice, prisoners_dilemma


def test_hessian_of_one_step_by_hand():
    """T = 1 with the state value: E[h] = E[w (l'' + l' l'^T)], and there is nothing to forget."""
    found = loaded_dice.curve(1, baseline=True, lambdas=(0.0, 1.0))
    assert found.bias.max() < 1e-12
    np.testing.assert_allclose(found.variance[0], found.variance[1], rtol=1e-12)
    mdp, params = loaded_dice.world()
    pi = np.asarray(jax.nn.softmax(params))
    value = (pi * mdp.reward).sum(1)
    second, mean = 0.0, np.zeros((4, 4))
    for s in range(2):
        for a in range(2):
            chance = float(mdp.initial[s]) * pi[s, a]
            score, curvature = np.zeros((2, 2)), np.zeros((2, 2, 2, 2))
            score[s] = np.eye(2)[a] - pi[s]
            curvature[s, :, s, :] = np.outer(pi[s], pi[s]) - np.diag(pi[s])
            h = (float(mdp.reward[s, a]) - value[s]) * (
                curvature.reshape(4, 4) + np.outer(score.ravel(), score.ravel())
            )
            second, mean = second + chance * np.sum(h**2), mean + chance * h
    size = np.sum(mean**2)
    np.testing.assert_allclose(found.variance[0], (second - size) / size, rtol=1e-12)


@pytest.mark.slow
def test_lambda_one_is_unbiased_and_zero_is_not():
    found = loaded_dice.curve(2, baseline=False, lambdas=(0.0, 1.0))
    assert found.bias[1] < 1e-12
    assert found.bias[0] > 0.1
    assert max(found.gradient_error, found.moments_error) < 1e-12


def test_best_lambda_weighs_bias_against_variance():
    found = loaded_dice.Curve(np.linspace(1, 0, 8), np.linspace(0, 100, 8), 0.0, 0.0)
    assert loaded_dice.best_lambda(found, 1) == (0.0, 1.0)
    assert loaded_dice.best_lambda(found, 10**9)[0] == 1.0


@pytest.mark.slow
def test_first_update_of_the_exact_learner_is_a_step_of_adam_along_the_shaped_gradient(standard_promotion):
    size = prisoners_dilemma.Size(seeds=1, batch=1, rounds=2, updates=1)
    curve, thetas = prisoners_dilemma.train(jax.random.key(0), prisoners_dilemma.Learner("exact", 1), size)
    game = prisoners_dilemma.game()

    def shaped(mine):
        """V_1 at (mine, theirs + 0.3 grad V_2), with V_2 the other's value in its own view."""

        def value(first, second):
            pair = tuple(jnp.stack([x, jnp.zeros(5)], axis=-1) for x in (first, second))
            return game.value(pair, discount=0.96)

        theirs = 0.3 * jax.grad(lambda second: value(mine, second)[1])(jnp.zeros(5))
        return value(mine, theirs)[0]

    gradient = jax.jit(jax.grad(shaped))(jnp.zeros(5))
    np.testing.assert_allclose(thetas, np.tile(0.2 * np.sign(gradient), (2, 1)), rtol=1e-5)
    pair = tuple(prisoners_dilemma.logits(x) for x in thetas)
    np.testing.assert_allclose(curve, [game.value(pair, horizon=2).mean() / 2], rtol=1e-12)
