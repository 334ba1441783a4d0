"""Token models: every sequence listed by hand, forced tokens, and estimators summed over all batches."""

import functools
import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import logderiv as ld
from tests.worlds import rollout

LOGITS = jnp.array([0.3, -0.2, 0.5])
BIGRAM = ld.MLP(3, hidden=())


def reward(tokens, length):
    """Twos are good, length costs, and it matters what comes first."""
    twos = jnp.sum((tokens == 2).astype(float)) - 0.3 * length.astype(float)
    return twos + jnp.where(tokens[0] == 1, 0.7, 0.0)


def moved(params, scale=0.4):
    """Parameters away from the nearly uniform start."""
    flat, unravel = ravel_pytree(params)
    return unravel(flat + scale * jax.random.normal(jax.random.key(3), flat.shape))


def of_three(network: Any = BIGRAM, reward=reward, **options):
    return ld.processes.TokenModel(network, reward, **{"vocabulary": 3, "end": 0, "horizon": 3, **options})


@functools.cache
def bigram(**options):
    model = of_three(**options)
    return model, moved(model.policy.init(jax.random.key(0)))


def listed(model, params):
    """Every trajectory of four steps, and the probability of each."""
    every = ld.exact.enumerate_trajectories(model, horizon=4)
    probabilities = jax.jit(lambda p: ld.prob(p, model.policy, every, environment=model))(params)
    np.testing.assert_allclose(np.sum(probabilities), 1, rtol=1e-13)
    return jax.tree.map(np.asarray, (every, probabilities))


PROMPTED = {"horizon": 4, "prompts": ((1, 0), (2, -1))}


@pytest.fixture(scope="module")
def prompted():
    """A model with two prompts, trajectories drawn from it, all that there are, and the probability of each."""
    model, params = bigram(**PROMPTED)
    taus = rollout(params, jax.random.split(jax.random.key(0), 2000), model.policy, model)
    return model, params, taus, *listed(model, params)


def test_forced_choices_have_probability_one_and_no_score():
    @jax.jit
    def run(logits):
        def of(forced, action):
            choice = ld.distributions.Forced(ld.Categorical(logits), jnp.int32(2), jnp.asarray(forced))
            return jnp.stack([choice.log_prob(jnp.int32(action)), choice.prob(jnp.int32(action))])

        return of(True, 2), of(True, 1), of(False, 2), of(False, 1)

    own, other, free, other_free = run(LOGITS)
    np.testing.assert_array_equal([own, other], [[0, 1], [-np.inf, 0]])
    logs = np.asarray(jax.nn.log_softmax(LOGITS))[[2, 1]]
    np.testing.assert_allclose([free, other_free], np.stack([logs, np.exp(logs)], axis=1))
    own, other, free, _ = jax.jacrev(run)(LOGITS)
    np.testing.assert_array_equal(own, 0)
    assert np.abs(free).max() > 0.1


def test_forced_takes_any_distribution_and_structure():
    class Pair:
        """Of another library: a pair of normals."""

        def sample(self, *, seed):
            return {"x": jax.random.normal(seed, (2,))}

        def log_prob(self, action):
            return -0.5 * jnp.sum(action["x"] ** 2)

    given = {"x": jnp.array([1.0, 2.0])}
    forced, free = (ld.distributions.Forced(Pair(), given, jnp.asarray(f)) for f in (True, False))
    np.testing.assert_array_equal(forced.sample(jax.random.key(0))["x"], given["x"])
    drawn = free.sample(jax.random.key(0))
    np.testing.assert_array_equal(drawn["x"], jax.random.normal(jax.random.key(0), (2,)))
    assert forced.log_prob(given) == 0
    assert forced.log_prob(drawn) == -jnp.inf
    np.testing.assert_allclose(free.prob(given), np.exp(-2.5))


def sequences(vocabulary, horizon, end):
    """Every string up to its end token or the horizon, each once."""
    for text in itertools.product(range(vocabulary), repeat=horizon):
        length = text.index(end) + 1 if end in text else horizon
        if all(token == 0 for token in text[length:]):
            yield text[:length]


def test_value_and_gradient_are_the_sum_over_every_sequence_by_hand():
    """A bigram table written out: row 3 is the start."""
    model, params = bigram(horizon=4)
    every = list(sequences(3, 4, 0))
    assert len(every) == 1 + 2 + 4 + 8 * 3
    rewards = np.array([text.count(2) - 0.3 * len(text) + 0.7 * (text[0] == 1) for text in every])
    pairs = np.zeros((len(every), 4, 3))
    for counts, text in zip(pairs, every, strict=True):
        np.add.at(counts, ((3, *text[:-1]), text), 1)

    def by_hand(params):
        logs = jax.nn.log_softmax(params[0]["weight"] + params[0]["bias"][None])
        return rewards @ jnp.exp(jnp.tensordot(pairs, logs, 2))

    assert ld.exact.count_trajectories(model, 4) == len(every)
    value = jax.value_and_grad(lambda p: ld.exact.value(p, model.policy, model, horizon=4))
    (found, exact), (total, expected) = jax.jit(lambda p: (value(p), jax.value_and_grad(by_hand)(p)))(params)
    np.testing.assert_allclose(found, total, rtol=1e-13)
    assert np.abs(expected[0]["weight"]).max() > 0.05
    np.testing.assert_allclose(exact[0]["weight"], expected[0]["weight"], atol=1e-14)


@pytest.mark.slow
def test_leave_one_out_is_unbiased_over_every_pair_of_sequences_of_a_gru():
    """Vocabulary 5, length 3: 85 sequences, 7 225 pairs."""
    model = ld.processes.TokenModel(ld.GRU(5, hidden=3), reward, vocabulary=5, end=0, horizon=3)
    params = moved(model.policy.init(jax.random.key(0)), 0.3)
    assert ld.exact.count_trajectories(model, 3) == 85
    moments = ld.exact.moments(params, model.policy, model, ld.RLOO(), horizon=3, num_trajectories=8)
    assert moments.method == "degree"
    assert np.abs(ravel_pytree(moments.exact)[0]).max() > 0.1
    assert np.abs(ravel_pytree(moments.bias)[0]).max() < 1e-12


@pytest.mark.slow
def test_group_relative_estimators_have_the_bias_that_is_computed():
    """Group means leave 1 - 1/G of the gradient; dividing by deviation and length changes its direction too."""
    model, params = bigram()

    def moments(estimator):
        found = ld.exact.moments(params, model.policy, model, estimator, horizon=3, num_trajectories=3)
        return ravel_pytree(found.mean)[0], ravel_pytree(found.exact)[0]

    def cosine(a, b):
        return a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    mean, gradient = moments(ld.estimators.DrGRPO(group_size=3))
    np.testing.assert_allclose(mean, gradient * 2 / 3, atol=1e-12)
    normalized, _ = moments(ld.GRPO(group_size=3, normalizer="per_trajectory"))
    divided, _ = moments(ld.GRPO(group_size=3))
    assert cosine(mean, gradient) > 1 - 1e-12
    assert 0.9 < cosine(normalized, gradient) < 1 - 1e-4
    assert cosine(divided, gradient) < cosine(normalized, gradient) - 1e-3


def test_the_list_gives_each_sequence_the_probability_and_the_reward_that_the_model_does(prompted):
    model, params, taus, every, _ = prompted
    logs, own = jax.jit(lambda p: [ld.log_prob(p, model.policy, each) for each in (every, taus)])(params)
    sequence, drawn = (np.where(each.valid, each.actions, -1) for each in (every, taus))
    known = dict(zip(map(tuple, sequence), zip(logs, every.rewards.sum(1), strict=True), strict=True))
    expected = [known[tuple(row)] for row in drawn[:200]]
    np.testing.assert_allclose(np.stack([own, taus.rewards.sum(1)], 1)[:200], expected, rtol=1e-12)
    np.testing.assert_array_equal(sequence[np.asarray(every.observations.forced[:, 0] == 1)][0], (0, -1, -1, -1))
    assert every.rewards[0].sum() == 0  # contradicts its prompt


def test_prompts_are_forced_and_the_end_token_of_a_prompt_does_not_end(prompted):
    _, _, taus, _, _ = prompted
    first = taus.actions[:, 0] == 1
    assert 0.4 < jnp.mean(first.astype(float)) < 0.6
    np.testing.assert_array_equal(taus.actions[first, 1], 0)
    np.testing.assert_array_equal(taus.actions[~first, 0], 2)
    np.testing.assert_array_equal(taus.behavior_log_probs[:, 0], 0)
    np.testing.assert_array_equal(taus.behavior_log_probs[first, 1], 0)
    assert taus.valid[first, 2].all()
    assert (taus.behavior_log_probs[~first, 1] < 0).all()
    ended = taus.discounts == 0
    np.testing.assert_array_equal(taus.actions[ended], 0)
    lengths = taus.valid.sum(1)
    rows = np.arange(len(lengths))
    np.testing.assert_array_equal(taus.rewards[rows, lengths - 1], taus.rewards.sum(1))
    text = jnp.where(taus.valid, taus.actions, -1)
    np.testing.assert_allclose(taus.rewards.sum(1), jax.vmap(reward)(text, lengths), rtol=1e-13)


def test_sampled_mean_reward_is_the_exact_value_and_unfinished_the_chance_of_no_end(prompted):
    model, params, taus, every, probability = prompted
    returns = np.asarray(taus.rewards.sum(1))
    exact = float(ld.exact.value(params, model.policy, model, horizon=4))
    sem = returns.std(ddof=1) / np.sqrt(len(returns))
    assert abs(returns.mean() - exact) < 4.5 * sem
    assert abs(returns[np.asarray(taus.actions[:, 0] == 1)].mean() - exact) > 4.5 * sem
    cut = float(probability @ (every.valid[:, -1] & (every.actions[:, -1] != 0)).astype(float))
    assert 0.1 < cut < 0.4
    info = ld.types.batch_info(taus)
    assert abs(float(info.truncated_fraction) - cut) < 4.5 * np.sqrt(cut * (1 - cut) / len(returns))


def test_prompts_that_are_listed_twice_are_drawn_twice_as_often():
    model, params = bigram(horizon=4, prompts=((1, 0), (2, -1), (2, -1)))
    every, probability = listed(model, params)
    np.testing.assert_allclose(probability[np.asarray(every.observations.forced[:, 0] == 2)].sum(), 2 / 3, rtol=1e-13)
    value = ld.exact.value(params, model.policy, model, horizon=4)
    np.testing.assert_allclose(value, probability @ every.rewards.sum(1), rtol=1e-13)


def test_a_prompt_can_be_given():
    model, params = bigram(**PROMPTED)

    @jax.jit
    @jax.vmap
    def group(prompt, keys):
        return ld.rollout(params, keys, model.policy, model, environment_params=prompt)

    taus = group(jnp.arange(2), jax.random.split(jax.random.key(1), (2, 5)))
    np.testing.assert_array_equal(taus.actions[0, :, :2], [[1, 0]] * 5)
    np.testing.assert_array_equal(taus.actions[1, :, 0], 2)
    batch = jax.tree.map(lambda x: x.reshape(10, *x.shape[2:]), taus)
    estimate, _ = jax.jit(ld.RLOO(group_size=5).estimate)(params, (), model.policy, batch)
    chex.assert_tree_all_finite(estimate.grads)
    whole = jax.jit(jax.grad(lambda p: ld.log_prob(p, model.policy, batch).sum()))(params)
    seen = whole[0]["weight"]  # rows: one-hot of the last token, then the start, always followed by a forced one
    np.testing.assert_array_equal(seen[3], 0)
    assert jnp.abs(seen[0]).max() > 0.1


@pytest.mark.slow
def test_a_longer_context_is_an_n_gram_model_and_padding_never_matters():
    model = of_three(ld.MLP(3, hidden=(4,)), horizon=4, prompts=(2,), context=2)
    params = moved(model.policy.init(jax.random.key(0)))
    assert params[0]["weight"].shape == (2 * 4, 4)
    taus = rollout(params, jax.random.split(jax.random.key(2), 4), model.policy, model)
    padded = jnp.pad(jnp.where(taus.valid, taus.actions, 0), ((0, 0), (2, 0)), constant_values=3)
    expected = jnp.stack([padded[:, :-2], padded[:, 1:-1]], axis=-1)
    np.testing.assert_array_equal(taus.observations.context[taus.valid], expected[taus.valid])
    assert not taus.valid.all()
    ld.testing.check_padding(params, lambda p, t: ld.log_prob(p, model.policy, t), taus, num_extra=0)


def test_integer_rewards_and_tokens_outside_the_vocabulary():
    whole = of_three(reward=lambda tokens, length: length)
    params = moved(whole.policy.init(jax.random.key(0)))
    taus = rollout(params, jax.random.key(0), whole.policy, whole)
    assert float(taus.rewards.sum()) == int(taus.valid.sum())
    assert (
        jax.jit(ld.log_prob)(params, whole.policy, taus._replace(actions=jnp.asarray(taus.actions).at[0].set(7)))
        == -jnp.inf
    )
