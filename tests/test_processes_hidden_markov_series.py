"""Hidden Markov models on published series, and beside the numbers of hmmlearn and statsmodels."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.flatten_util import ravel_pytree

import logderiv as ld
from benchmarks.nile import VOLUMES
from logderiv.processes import (
    HiddenMarkovModel,
    HiddenMarkovParams,
    LocalLevel,
    LocalLevelParams,
    NormalEmissionParams,
    normal_emission,
    poisson_emission,
)

COUNTS = HiddenMarkovModel(poisson_emission)
# Earthquakes of magnitude 7 and above, 1900 to 2006: Zucchini & MacDonald (2009), Hidden Markov Models for Time Series, table 1.1.
EARTHQUAKES = np.array(
    [
        *(13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21, 21, 14, 8, 11, 14, 23, 18, 17, 19),
        *(20, 22, 19, 13, 26, 13, 14, 22, 24, 21, 22, 26, 21, 23, 24, 27, 41, 31, 27, 35, 26, 28, 36, 39, 21, 17, 22),
        *(17, 19, 15, 34, 10, 15, 22, 18, 15, 20, 15, 22, 19, 16, 30, 27, 29, 23, 20, 16, 21, 21, 25, 16, 18, 15, 18),
        *(14, 10, 15, 8, 15, 6, 11, 8, 7, 18, 16, 13, 12, 13, 20, 15, 16, 12, 18, 15, 16, 13, 15, 16, 11, 11),
    ]
)
# Durbin, Eddy, Krogh & Mitchison (1998), Biological Sequence Analysis, figure 3.5: 300 rolls of a die that is exchanged at times.
ROLLS = (
    "315116246446644245311321631164152133625144543631656626566666651166453132651245636664631636663162326455236266666625151631"
    "222555441666566563564324364131513465146353411126414626253356366163666466232534413661661163252562462255265252266435353336"
    "233121625364414432335163243633665562466662632666612355245242"
)
# And the Viterbi path, F for the fair die: lengths of its runs. Both were read again in public programs, not in the book.
RUNS = [("F", 48), ("L", 18), ("F", 12), ("L", 34), ("F", 67), ("L", 13), ("F", 78), ("L", 19), ("F", 11)]
START, KERNEL = np.array([0.6, 0.3, 0.1]), np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.25, 0.05, 0.7]])


def fitted(initial, rates):
    """The maximum of the likelihood, from rates close to it."""
    states = len(rates)
    flat, unravel = ravel_pytree(HiddenMarkovParams(initial, 2 * jnp.eye(states), jnp.log(jnp.array(rates))))
    loss = jax.jit(jax.value_and_grad(lambda x: -COUNTS.log_likelihood(unravel(x), EARTHQUAKES)))
    found: Any = scipy.optimize.minimize(
        lambda x: jax.tree.map(np.asarray, loss(x)), flat, jac=True, method="BFGS", options={"gtol": 1e-5}
    )
    return found.fun, unravel(jnp.asarray(found.x))


@pytest.mark.parametrize(
    ("rates", "stationary", "free", "published"),
    [
        ((15.0, 25.0), 342.3183, 341.8787, (15.472, 26.125)),
        pytest.param((10.0, 20.0, 30.0), 329.4603, 328.5275, (13.146, 19.721, 29.714), marks=pytest.mark.slow),
    ],
)
def test_earthquakes_have_the_published_likelihoods(rates, stationary, free, published):
    """Minus log-likelihoods that the R code of Zucchini & MacDonald gives, with a stationary start and with a free one, to four decimals.

    Both, and the rates of three states, were read again in public notes on the book (vinky-wang/HMM-notes), not in the book itself; the
    rates of two states are from memory.
    """
    value, params = fitted(None, rates)
    assert value == pytest.approx(stationary, abs=6e-5)
    np.testing.assert_allclose(np.exp(params.emission), published, atol=6e-4)
    other = fitted(jnp.zeros(len(rates)), rates)[0]
    assert other == pytest.approx(free, abs=6e-5)
    assert abs(other - stationary) > 0.1  # the wrong start would be seen


def test_the_casino_exchanges_its_die_where_it_is_published():
    loaded = jnp.log(jnp.array([[1 / 6] * 6, [0.1] * 5 + [0.5]]))
    moves = jnp.log(jnp.array([[0.95, 0.05], [0.1, 0.9]]))
    rolls = np.array([int(x) - 1 for x in ROLLS])
    found = HiddenMarkovModel().most_likely_states(HiddenMarkovParams(jnp.zeros(2), moves, loaded), rolls)
    runs = [("FL"[state], len(list(run))) for state, run in itertools.groupby(np.asarray(found.states).tolist())]
    assert runs == RUNS


def compared(name: str) -> tuple[Any, HiddenMarkovParams, Any]:
    """A model, its parameters, and a series."""
    start, kernel = jnp.log(START), jnp.log(KERNEL)
    if name == "Poisson":
        return COUNTS, HiddenMarkovParams(start, kernel, jnp.log(jnp.array([10.0, 20.0, 30.0]))), EARTHQUAKES[:20]
    if name == "Categorical":
        symbols = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]]))
        return HiddenMarkovModel(), HiddenMarkovParams(start, kernel, symbols), np.array([0, 2, 1, 1, 0, 2, 2, 1, 0, 0])
    loc, variance = np.array([[0, 1], [2, -1], [-1, 0.5]]), np.array([[1, 0.25], [0.5, 2], [0.3, 1.2]])
    series = np.stack([2 * np.sin(1.3 * np.arange(10)), np.cos(0.7 * np.arange(10))], axis=1)
    emission = NormalEmissionParams(jnp.asarray(loc), jnp.log(jnp.asarray(variance)) / 2)
    return HiddenMarkovModel(normal_emission), HiddenMarkovParams(start, kernel, emission), series


def ours(name: str) -> tuple[Any, ...]:
    model, params, y = compared(name)

    @jax.jit
    def of(params):
        path = model.most_likely_states(params, y)
        return model.log_likelihood(params, y), path.log_prob, path.states, model.smooth(params, y).states

    value, best, states, smoothed = of(params)
    return float(value), float(best), np.asarray(states).tolist(), smoothed


# score, decode (its log-probability and its path) and the fourth row of predict_proba of hmmlearn 0.3.3.
HMMLEARN = {
    "Poisson": (
        -66.33715241956057,
        -68.83626766713476,
        [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0.9712092450629213, 0.028786842616269317, 3.91232081284282e-06],
    ),
    "Categorical": (
        -11.652050875250128,
        -13.731938458113765,
        [0] * 10,
        [0.395587920806431, 0.4606609068519676, 0.14375117234160076],
    ),
    "Normal": (
        -34.28306803531842,
        -36.66243362750717,
        [0, 1, 1, 2, 2, 1, 1, 1, 2, 2],
        [0.004489818755365429, 1.1490980687752687e-05, 0.9954986902639462],
    ),
}


@pytest.mark.parametrize("name", HMMLEARN)
def test_likelihood_path_and_marginals_are_those_that_hmmlearn_gave(name):
    value, best, states, smoothed = ours(name)
    assert (value, best) == pytest.approx(HMMLEARN[name][:2], rel=1e-10)
    assert states == HMMLEARN[name][2]
    np.testing.assert_allclose(smoothed[3], HMMLEARN[name][3], rtol=1e-8)


@pytest.mark.parametrize("name", HMMLEARN)
def test_likelihood_path_and_marginals_are_those_of_hmmlearn(name):
    hmm = pytest.importorskip("hmmlearn.hmm")
    _, params, y = compared(name)
    kind = {"Poisson": "PoissonHMM", "Categorical": "CategoricalHMM", "Normal": "GaussianHMM"}[name]
    theirs = getattr(hmm, kind)(n_components=3)
    theirs.startprob_, theirs.transmat_ = START, KERNEL
    if name == "Normal":
        theirs.means_, theirs.covars_ = (
            np.asarray(params.emission.loc),
            np.exp(2 * np.asarray(params.emission.log_scale)),
        )
    elif name == "Poisson":
        theirs.lambdas_ = np.exp(np.asarray(params.emission))[:, None]
    else:
        theirs.emissionprob_, theirs.n_features = np.exp(np.asarray(params.emission)), 3
    rows = y if name == "Normal" else y[:, None]
    value, best, states, smoothed = ours(name)
    log_prob, path = theirs.decode(rows)
    assert (value, best) == pytest.approx((theirs.score(rows), log_prob), rel=1e-8)
    assert states == path.tolist()
    np.testing.assert_allclose(smoothed, theirs.predict_proba(rows), atol=1e-8)


# Log-likelihood, and mean and variance of the level 31 years in, of statsmodels 0.15.0: the Nile, in full and with twice 20 years
# missing (Durbin & Koopman 2012, section 2.7), at the variances 15099 and 1469.1, the first level N(0, 10⁷).
STATSMODELS = {
    "full": (-641.5855784594156, 895.7838032950056, 2326.7568834895637),
    "missing": (-389.6269775255986, 893.7909246519295, 9715.005540580709),
}


def nile(name: str) -> tuple[Any, ...]:
    """The series, its log-likelihood, and the smoothed levels."""
    y, seen = np.array(VOLUMES, float), np.ones(100, bool)
    if name == "missing":
        seen[20:40] = seen[60:80] = False
        y[~seen] = np.nan
    params, model = LocalLevelParams(jnp.log(15099.0), jnp.log(1469.1)), LocalLevel()

    @jax.jit
    def of():
        return model.log_likelihood(params, y, observed=seen), model.smooth(params, y, observed=seen).states

    return y, *of()


@pytest.mark.parametrize("name", STATSMODELS)
def test_the_nile_with_years_missing_is_what_statsmodels_gave(name):
    _, value, smoothed = nile(name)
    found = float(value), float(smoothed.mean[30, 0]), float(smoothed.covariance[30, 0, 0])
    assert found == pytest.approx(STATSMODELS[name], rel=1e-8)


@pytest.mark.parametrize("name", STATSMODELS)
def test_the_nile_with_years_missing_is_that_of_statsmodels(name):
    structural = pytest.importorskip("statsmodels.tsa.api")
    y, value, smoothed = nile(name)
    theirs = structural.UnobservedComponents(y, "llevel")
    theirs.ssm.initialize_known(np.zeros(1), np.full((1, 1), 1e7))
    theirs.ssm.loglikelihood_burn = 0
    result = theirs.smooth(np.array([15099.0, 1469.1]))
    np.testing.assert_allclose(smoothed.mean[:, 0], result.smoothed_state[0], rtol=1e-8)
    assert float(value) == pytest.approx(result.llf, rel=1e-8)


def test_a_step_draws_from_parameters_of_numpy_within_a_compiled_function():
    """The emission takes a traced state as an index; parameters of numpy that are closed over are made arrays first."""
    model = HiddenMarkovModel(lambda params, state: ld.Normal(params[state], jnp.ones(())))
    given: Any = (np.zeros(2), np.eye(2), np.array([0.3, 1.7]))
    params, start = HiddenMarkovParams(*given), model.first()
    found = jax.jit(lambda: model.transition(params, start).log_prob((jnp.int32(1), 1.0)))()
    assert float(found) == pytest.approx(-np.log(2) - 0.5 * 0.7**2 - 0.5 * np.log(2 * np.pi), rel=1e-12)
