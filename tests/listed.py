"""A small process with all its trajectories written out, and known variances: what the tests of `logderiv.exact` share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import logderiv as ld
from tests.worlds import TERMINATING_LOGITS, terminating

DISCOUNT = 0.8
PARAMS = {"table": TERMINATING_LOGITS, "shift": jnp.array([0.1, -0.2])}


def shifted(params, state):
    return ld.Categorical(params["table"][state] + params["shift"])


POLICY = ld.FunctionPolicy(shifted)


def ravel(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@functools.cache
def listed(horizon: int):
    """Probabilities (K,), scores of the steps (K, T, D), discounted rewards (K, T) and the trajectories, for `PARAMS`."""
    every = ld.exact.enumerate_trajectories(terminating(), horizon=horizon)
    flat, unravel = ravel_pytree(PARAMS)
    probabilities, scores = jax.jit(
        lambda flat: (
            ld.prob(unravel(flat), POLICY, every, environment=terminating()),
            jax.jacfwd(lambda flat: ld.log_factors(unravel(flat), POLICY, every))(flat),
        )
    )(flat)
    rewards = np.where(every.valid, every.rewards, 0) * DISCOUNT ** np.arange(horizon)
    return np.asarray(probabilities), np.asarray(scores), rewards, jax.tree.map(np.asarray, every)


def mean_and_covariance(probabilities, values):
    mean = probabilities @ values
    return mean, (probabilities[:, None] * (values - mean)).T @ (values - mean)


# Variances of single-trajectory estimators of the two-state process, discount 0.9, as (logits of state 0, of state 1), both
# entries of a pair equal; and the optimal constant baselines E[R s^2] / E[s^2], of one parameter and of all: every trajectory
# enumerated by another program, in float64.
TWO_STATES_VARIANCES = {
    1: {
        "full_return": np.array([0.03507723390872625, 0.18195671914546013]),
        "reward_to_go": np.array([0.03507723390872625, 0.18195671914546013]),
        "rtg_minus_V": np.array([0.03958577127071423, 0.046470923992467834]),
        "full_minus_J": np.array([0.07059672561301944, 0.0725981420109102]),
        "full_minus_bstar_per_param": np.array([0.03227032772353252, 0.04570848092538086]),
        "full_minus_bstar_scalar": np.array([0.05778600781524245, 0.08322724218269253]),
        "bstar_per_param": (0.1383362247825115, 1.1687135780881452),
        "bstar_scalar": 0.5554221599955693,
    },
    2: {
        "full_return": np.array([0.6230780071612214, 0.5200689593781544]),
        "reward_to_go": np.array([0.2791591680796186, 0.4207115202267186]),
        "rtg_minus_V": np.array([0.1175022286245741, 0.10150227565359195]),
        "full_minus_J": np.array([0.23886998079711555, 0.17905291366972587]),
        "full_minus_bstar_per_param": np.array([0.2364961376613823, 0.1788901551588507]),
        "full_minus_bstar_scalar": np.array([0.23721407653987803, 0.17987883911781238]),
        "bstar_per_param": (1.1634144182611237, 1.2825955533947802),
        "bstar_scalar": 1.2135513135479457,
    },
    3: {
        "full_return": np.array([1.9235464013711074, 1.4234053745519086]),
        "reward_to_go": np.array([0.7023167919149478, 0.8828398848642809]),
        "rtg_minus_V": np.array([0.23211979736216518, 0.1920972671059569]),
        "full_minus_J": np.array([0.6115663304754834, 0.4687565109986763]),
        "full_minus_bstar_per_param": np.array([0.6108760821961078, 0.46798824349043155]),
        "full_minus_bstar_scalar": np.array([0.6108826463602672, 0.46799716723337215]),
        "bstar_per_param": (1.7551535793747923, 1.7458929541337285),
        "bstar_scalar": 1.7512286937262298,
    },
}
