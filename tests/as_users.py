"""Numbers under a user's defaults: float32, standard promotion, every optimization, no checks of keys. `python -m tests.as_users`

The suite runs in float64, with strict promotion and hardly optimized, as no user does. Here each number is held to one computed in
float64 by numpy, which shares no code with the library; one that is off by three times its tolerance must not pass.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import logderiv as ld
from benchmarks import likelihood_accuracy, peers
from logderiv.estimators.advantages import Return, ToGo
from logderiv.estimators.bootstrapped import GAE
from tests.worlds import TWO_STATES_LOGITS, trajectory, two_states

GAMMA = 0.9


class Check(NamedTuple):
    """A number of ours, what it has to be, and how far it may be off, relative to the largest entry."""

    name: str
    found: Any
    expected: Any
    tolerance: float

    @property
    def error(self) -> float:
        expected = np.asarray(self.expected, np.float64)
        return float(np.max(np.abs(np.asarray(self.found, np.float64) - expected)) / np.max(np.abs(expected)))

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance


def likelihood() -> Iterator[Check]:
    """A network over 20 000 steps, value and gradient; a table's P and grad P of a short trajectory, by multiplying."""
    params = peers.parameters(likelihood_accuracy.MLP, jax.random.key(1))
    tau = likelihood_accuracy.trajectory(20_000, jax.random.key(0), actions=jnp.zeros(20_000, jnp.int32))
    value, grads = likelihood_accuracy.exact_mlp(params, tau)
    for how, function in (("", jax.value_and_grad(ld.log_prob)), (", jit", jax.jit(jax.value_and_grad(ld.log_prob)))):
        found, gradient = function(params, likelihood_accuracy.MLP, tau)
        yield Check(f"log P of a network{how}", found, value, 1e-6)
        for layer, name in itertools.product((0, 1), ("weight", "bias")):
            yield Check(f"its gradient in {name} {layer}{how}", gradient[layer][name], grads[layer][name], 1e-5)
    states, actions = np.array([0, 1, 1, 0, 1]), np.array([1, 1, 0, 1, 1])
    logits = np.asarray(TWO_STATES_LOGITS, np.float64)
    pi = softmax(logits)
    score = np.zeros_like(pi)
    for s, a in zip(states, actions, strict=True):
        score[s] += np.eye(2)[a] - pi[s]
    short, table = trajectory(observations=jnp.asarray(states), actions=jnp.asarray(actions)), ld.tabular_softmax
    probability = np.prod(pi[states, actions])
    yield Check("P of a table", ld.prob(TWO_STATES_LOGITS, table, short), probability, 1e-6)
    yield Check("grad P of a table", jax.grad(ld.prob)(TWO_STATES_LOGITS, table, short), probability * score, 1e-5)
    yield Check("grad log P of a table", jax.grad(ld.log_prob)(TWO_STATES_LOGITS, table, short), score, 1e-5)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def listed() -> tuple[np.ndarray, ...]:
    """All trajectories of two steps of the world with two states: states, actions, rewards, probabilities; the values V_t(s)."""
    initial, transition, reward, _ = (np.asarray(x, np.float64) for x in jax.tree.leaves(two_states())[:4])
    pi = softmax(np.asarray(TWO_STATES_LOGITS, np.float64))
    paths = np.array(list(itertools.product((0, 1), repeat=5)))  # s_0, a_0, s_1, a_1, s_2
    s, a = paths[:, 0:5:2], paths[:, 1:4:2]
    steps = pi[s[:, :2], a] * transition[s[:, :2], a, s[:, 1:]]
    last = (pi * reward).sum(axis=1)
    first = (pi * (reward + GAMMA * transition @ last)).sum(axis=1)
    return s, a, reward[s[:, :2], a], initial[s[:, 0]] * steps.prod(axis=1), np.stack([first, last, np.zeros(2)])


# The gradient of E[r_0 + GAMMA r_1]: every trajectory enumerated by another program, in float64.
GRADIENT = np.array([[0.3600762392217371, -0.3600762392217371], [-0.3182649256447019, 0.3182649256447019]])


def estimators() -> Iterator[Check]:
    """E[g] over every batch of two trajectories, drawn by counting."""
    states, actions, rewards, probability, values = listed()
    table = jnp.asarray(values, jnp.float32)
    every = trajectory(
        rewards=jnp.asarray(rewards, jnp.float32),
        actions=jnp.asarray(actions),
        observations=(jnp.asarray(states[:, :2]), jnp.broadcast_to(jnp.arange(2), actions.shape)),
        final_observation=(jnp.asarray(states[:, 2]), jnp.full(len(states), 2)),
    )
    policy = ld.FunctionPolicy(lambda params, observation: ld.tabular_softmax.apply(params, observation[0]))
    value = ld.baselines.Value(lambda observation: table[observation[1], observation[0]])
    pairs = np.array(list(itertools.product(range(len(states)), repeat=2)))
    chances = np.prod(probability[pairs], axis=1)
    score = functools.partial(ld.ScoreFunction, discount=GAMMA)
    each = {
        "total return": score(Return()),
        "reward-to-go": score(),
        "leave one out": score(ToGo(ld.baselines.LeaveOneOut())),
        "given value": score(ToGo(value)),
        "gae(0.5), given value": score(GAE(0.5, value)),
        "DiCE, given value": score(ToGo(value), surrogate=ld.estimators.DiCE()),
    }

    def gradients(indices: jax.Array) -> dict[str, jax.Array]:
        batch, start = jax.tree.map(lambda x: x[indices], every), TWO_STATES_LOGITS
        return {name: e.estimate(start, e.init(start), policy, batch)[0].grads for name, e in each.items()}

    for name, grads in jax.jit(jax.vmap(gradients))(pairs).items():
        yield Check(f"E[g], {name}", np.einsum("k,kij->ij", chances, np.asarray(grads, np.float64)), GRADIENT, 1e-5)


def training() -> Iterator[Check]:
    """REINFORCE in the short corridor: at best right with p = 2 - sqrt 2, and a return of (4 - 2 p) / (p (p - 1))."""
    where = ld.shared_softmax, ld.environments.short_corridor(horizon=200), ld.Episodes(64)
    estimator = ld.ScoreFunction(ToGo(ld.baselines.LeaveOneOut()))
    start = jnp.array([1.0, -1.0]), jax.random.key(0)
    training = ld.train(*start, *where, estimator=estimator, optimizer=optax.adam(0.05), num_updates=150)
    p, best = softmax(np.asarray(training.params, np.float64))[1], 2 - math.sqrt(2)
    yield Check("training: probability of right", p, best, 0.1)
    yield Check("training: exact return", (4 - 2 * p) / (p * (p - 1)), -6 - 4 * math.sqrt(2), 0.02)
    last = np.mean(training.metrics.mean_return[-30:])
    yield Check("training: mean return of 30 updates", last, -6 - 4 * math.sqrt(2), 0.05)


def main() -> None:
    assert jnp.ones(()).dtype == jnp.float32
    assert (jnp.ones(1, jnp.float16) + jnp.ones(1)).dtype == jnp.float32  # strict promotion refuses
    for check in itertools.chain(likelihood(), estimators(), training()):
        wrong = check._replace(found=np.asarray(check.found, np.float64) * (1 + 3 * check.tolerance))
        verdict = "ok  " if check.holds and not wrong.holds else "FAIL"
        print(f"{verdict} {check.name}: {check.error:.1e} <= {check.tolerance:g}")


if __name__ == "__main__":
    main()
