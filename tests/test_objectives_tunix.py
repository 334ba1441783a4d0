"""The block of `notebooks/coming_from.md` that registers a recipe with tunix: on a stand-in, and with tunix where it is installed."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.pasted import ROOT, blocks

nnx = pytest.importorskip("flax.nnx")
PAD, PROMPTS = 5, np.repeat([1, 2, 3], 8)


def pasted():
    """The names that the block defines."""
    (source,) = blocks(ROOT / "notebooks" / "coming_from.md", "py")
    names = {}
    exec(source, names)
    return names


def registered(_):
    return lambda function: function


def test_the_loss_is_the_negative_objective_and_the_advantages_leave_one_out(monkeypatch):
    common = types.SimpleNamespace(compute_per_token_logps=lambda _, state, *args, **kwargs: state["log_probs"][...])
    registry = types.SimpleNamespace(register_advantage_estimator=registered, register_policy_loss_fn=registered)
    stand_in = types.SimpleNamespace(common=common, function_registry=registry)
    monkeypatch.setitem(sys.modules, "tunix", types.SimpleNamespace(rl=stand_in))
    monkeypatch.setitem(sys.modules, "tunix.rl", stand_in)
    block = pasted()

    rewards = np.array([1.0, 0.0, 0.5, 0.0])
    found = block["advantages"](rewards=rewards, num_generations=2)
    np.testing.assert_allclose(found, [1, -1, 0.5, -0.5])
    log_probs, mask = jnp.array([[-1.0, -2.0], [-0.5, -3.0]]), jnp.array([[1, 1], [1, 0]])
    model = nnx.Dict(log_probs=nnx.Param(log_probs))
    example = types.SimpleNamespace(prompt_ids=None, completion_ids=None, completion_mask=mask)
    example.advantages, example.old_per_token_logps = found[:2], None
    settings = types.SimpleNamespace(temperature=1.0)
    (value, _), slope = nnx.value_and_grad(block["loss"], has_aux=True)(
        model, example, algo_config=settings, pad_id=0, eos_id=1
    )
    np.testing.assert_allclose(value, 0.5 * (-1 - 1 + 1))
    np.testing.assert_allclose(slope["log_probs"][...], [[-0.5, -0.5], [0.5, 0.0]])


class Table(nnx.Module):
    """Called as tunix calls a model."""

    def __init__(self):
        self.logits = nnx.Embed(PAD + 1, PAD + 1, rngs=nnx.Rngs(0))

    def __call__(self, tokens, positions, cache, attention_mask):
        return self.logits(tokens), None


@nnx.jit
def draw(model, key):
    """Answers that count down to 0, where they are right; padded after it."""
    tokens = jnp.asarray(PROMPTS)[:, None]
    for key_token in jax.random.split(key, 3):
        logits = model(tokens[:, -1], None, None, None)[0].at[:, PAD].set(-jnp.inf)
        tokens = jnp.concatenate([tokens, jax.random.categorical(key_token, logits)[:, None]], axis=1)
    mask = jnp.cumsum(tokens[:, :-1] == 0, axis=1) == 0
    right = jnp.all((tokens[:, 1:] == tokens[:, :-1] - 1) | ~mask, axis=1)
    return jnp.where(mask, tokens[:, 1:], PAD), mask, right


@pytest.mark.slow
@pytest.mark.usefixtures("as_shipped")
@pytest.mark.filterwarnings("ignore")
def test_tunix_trains_with_it():
    pytest.importorskip("tunix", reason="pip install -e '.[frameworks]'", exc_type=ImportError)
    from tunix.rl import common, trainer
    from tunix.rl.grpo.grpo_learner import GRPOConfig
    from tunix.sft.peft_trainer import TrainingConfig

    pasted()
    registry = sys.modules["tunix.rl.function_registry"]
    config = GRPOConfig(policy_loss_fn="recipe", advantage_estimator="recipe", beta=0.0, num_generations=8)
    config.temperature = 1.0  # the learner's own first step
    loss, advantages = registry.get_policy_loss_fn("recipe"), registry.get_advantage_estimator("recipe")
    model, options = Table(), {"eval_every_n_steps": 10**6, "max_steps": 1000}
    training = trainer.Trainer(model, optax.adam(0.2), TrainingConfig(**options), lambda: {})
    training.with_loss_fn(lambda m, train_example: loss(m, train_example, config, PAD, 0), has_aux=True)
    training.with_gen_model_input_fn(lambda example: {"train_example": example})
    training.with_rl_metrics_to_log({"kl": np.mean, "pg_clipfrac": np.mean})
    training.is_managed_externally = True
    returns = []
    for key in jax.random.split(jax.random.key(0), 40):
        tokens, mask, right = draw(model, key)
        given = advantages(rewards=right, num_generations=8)
        prompts = jnp.asarray(PROMPTS)[:, None]
        training.train([common.TrainExample(prompts, prompts > 0, tokens, mask, given, None, None)])
        returns.append(float(right.mean()))
    assert np.mean(returns[:4]) < 0.4
    assert np.mean(returns[-8:]) > 0.9
