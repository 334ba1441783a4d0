"""The frameworks' own functions as losses of log-probabilities, called as they were released; this file runs nothing.

Each loss takes a batch on arrays, and what is different in it from the framework's defaults, and returns its value and its
derivative by the log-probabilities. The model is left out: where a function asks one for log-probabilities, it is given ours. TRL
and tunix take advantages, the others compute them from rewards.
"""

import importlib
import importlib.metadata
import sys
import types
import warnings
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np


class Batch(NamedTuple):
    """Answers, padded, in groups of equal size that stand side by side; float64.

    Attributes:
        log_probs: Under the policy. Shape `(N, T)`, as are the others of tokens.
        old: Under the policy at the start of the update.
        sampler: Under what drew the tokens.
        reference: Under the reference.
        mask: True where the policy chose.
        rewards: Shape `(N,)`.
        greedy: Rewards of the greedy answers. Shape `(N,)`.
        size: Answers to each prompt.
    """

    log_probs: np.ndarray
    old: np.ndarray
    sampler: np.ndarray
    reference: np.ndarray
    mask: np.ndarray
    rewards: np.ndarray
    greedy: np.ndarray
    size: int

    @property
    def groups(self) -> np.ndarray:
        """Prompt of each answer. Shape `(N,)`."""
        return np.arange(len(self.rewards)) // self.size

    def at_last(self, values: np.ndarray) -> np.ndarray:
        """One number of each answer at its last token, as rewards of tokens. Shape `(N, T)`."""
        last = self.mask.shape[1] - 1 - np.argmax(self.mask[:, ::-1], axis=1)
        return np.where(np.arange(self.mask.shape[1]) == last[:, None], values[:, None], 0.0)


Result = tuple[float, np.ndarray]
Loss = Callable[..., Result]


def version(distribution: str) -> str | None:
    """The installed version, or `None`."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


class _Placeholder(types.ModuleType):
    """A module that has every name: what a file imports and the function in it does not use."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _module(name: str) -> Any:
    """A module; what others warn of while it is imported is theirs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def _alone(name: str, *unused: str) -> Any:
    """A module of a package whose `__init__` files are not run, with placeholders for modules that it does not need."""
    root, *folders = name.split(".")[:-1]
    path = importlib.metadata.distribution(root).locate_file(root)
    for folder in ("", *folders):
        path, root = (path.joinpath(folder), f"{root}.{folder}") if folder else (path, root)
        module = types.ModuleType(root)
        module.__path__ = [str(path)]
        sys.modules.setdefault(root, module)
    placed = {other: _Placeholder(other) for other in unused if other not in sys.modules}
    sys.modules.update(placed)
    try:
        return _module(name)
    finally:
        for other in placed:  # others would take them for what they stand for
            del sys.modules[other]


def _by_torch(log_probs: np.ndarray, loss: Callable[[Any], Any]) -> Result:
    """Value and derivative of a loss in torch, float64."""
    import torch

    x = torch.tensor(log_probs, dtype=torch.float64, requires_grad=True)
    value = loss(x)
    (slope,) = torch.autograd.grad(value, x)
    return value.item(), slope.numpy()


def trl_loss(batch: Batch, advantages: np.ndarray, **settings: Any) -> Result:
    """`GRPOTrainer._compute_loss` of TRL, on a stand-in for the trainer. The sampler's weights are TRL's defaults."""
    import torch

    trainer = _module("trl.trainer.grpo_trainer").GRPOTrainer
    whole = np.exp(np.sum((batch.old - batch.sampler) * batch.mask, axis=1, keepdims=True))
    tensors = {"advantages": advantages, "old_per_token_logps": batch.old, "ref_per_token_logps": batch.reference}
    tensors |= {"importance_sampling_ratio": np.where(whole > 3.0, 0.0, whole)}
    given = {name: torch.tensor(np.asarray(x)) for name, x in tensors.items()}
    mask = torch.tensor(batch.mask, dtype=torch.long)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    given |= dict.fromkeys(names, mask) | {"num_items_in_batch": mask.sum()}

    def loss(log_probs: Any) -> Any:
        stand_in = _trl_trainer(log_probs, **settings)
        return trainer._compute_loss(stand_in, None, given)

    return _by_torch(batch.log_probs, loss)


def _trl_trainer(log_probs: Any, **settings: Any) -> Any:
    names = {"delta": None, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05, "steps_per_generation": 1}
    names |= {"use_bias_correction_kl": settings.pop("use_bias_correction_kl", True)}
    as_it_is = lambda x, **_: x  # noqa: E731
    accelerator = types.SimpleNamespace(num_processes=1, gather=as_it_is, reduce=as_it_is)
    found = {"args": types.SimpleNamespace(**names), "accelerator": accelerator, "_metrics": defaultdict(_lists)}
    found |= {"model": types.SimpleNamespace(training=True), "top_entropy_quantile": 1.0, "aux_loss_enabled": False}
    found |= {"off_policy_mask_threshold": None, "importance_sampling_level": "token", "beta": 0.0, "use_vllm": True}
    found |= {"vllm_importance_sampling_correction": True, "current_gradient_accumulation_steps": 1}
    found |= {"_entropy_bonus_enabled": False, "loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.2}
    found |= {"_get_per_token_logps_and_entropies": lambda *_, **__: (log_probs, log_probs.detach(), None)}
    return types.SimpleNamespace(**(found | settings))


def _lists() -> defaultdict[str, list[float]]:
    return defaultdict(list)


def trl_rloo_loss(batch: Batch, advantages: np.ndarray) -> Result:
    """`RLOOTrainer._compute_loss` of TRL."""
    import torch

    trainer = _module("trl.trainer.rloo_trainer").RLOOTrainer
    mask = torch.tensor(batch.mask, dtype=torch.long)
    given = dict.fromkeys(("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"), mask)
    given |= {"advantages": torch.tensor(np.asarray(advantages))}
    given |= {"old_logps": torch.tensor(np.sum(batch.old * batch.mask, axis=1))}
    return _by_torch(batch.log_probs, lambda x: trainer._compute_loss(_trl_trainer(x), None, given))


def verl_loss(batch: Batch, estimator: str, kind: str = "vanilla", **settings: Any) -> Result:
    """A policy loss of verl with the advantages of its own estimator.

    `times` multiplies the advantages, `ones` is what the loss has in its mask, `options` are those of the estimator; the others
    are of `ActorConfig`.
    """
    import torch

    core = _module("verl.trainer.ppo.core_algos")
    config = _module("verl.workers.config").ActorConfig
    mask = torch.tensor(batch.mask, dtype=torch.float64)
    arguments = {"token_level_rewards": torch.tensor(batch.at_last(batch.rewards)), "response_mask": mask}
    arguments |= {"index": batch.groups, "config": _Options(gamma=1.0, norm_adv_by_std_in_grpo=False)}
    options = settings.pop("options", {})
    if estimator == "remax":
        del arguments["index"]
        options = {"reward_baselines": torch.tensor(batch.greedy)}
    ones = settings.pop("ones", 1.0)
    times, mode = settings.pop("times", 1.0), settings.pop("loss_agg_mode", "token-mean")
    advantages = times * core.get_adv_estimator_fn(estimator)(**arguments, **options)[0]
    actor = config(strategy="fsdp", rollout_n=batch.size, ppo_micro_batch_size_per_gpu=1, **settings)

    def loss(log_probs: Any) -> Any:
        function = core.get_policy_loss_fn(kind)
        return function(torch.tensor(batch.old), log_probs, advantages, ones * mask, mode, actor)[0]

    return _by_torch(batch.log_probs, loss)


class _Options(dict[str, Any]):
    """A mapping whose items are attributes, too, as configurations of verl are."""

    __getattr__ = dict.__getitem__


def openrlhf_loss(batch: Batch, estimator: str, beta: float) -> Result:
    """`PolicyLoss` of OpenRLHF, with the advantages of its experience maker, which normalizes in float32."""
    import torch

    unused = ("deepspeed", "ray", "openrlhf.trainer.ray.launcher", "openrlhf.trainer.ppo_utils.experience")
    losses = _alone("openrlhf.models.loss", *unused)
    _alone("openrlhf.utils.logging_utils")
    maker = _alone("openrlhf.trainer.ppo_utils.experience_maker", *unused).RemoteExperienceMaker
    mask = torch.tensor(batch.mask)
    names = {"rewards": torch.tensor(batch.rewards), "kl": torch.tensor((batch.old - batch.reference) * batch.mask)}
    names |= {"action_mask": mask, "index": list(range(len(batch.rewards))), "info": {}}
    experience = types.SimpleNamespace(**names)
    advantage = types.SimpleNamespace(estimator=estimator, gamma=1.0, no_std_norm=False)
    args = types.SimpleNamespace(
        algo=types.SimpleNamespace(advantage=advantage),
        rollout=types.SimpleNamespace(n_samples_per_prompt=batch.size),
        reward=types.SimpleNamespace(clip_range=None),
    )
    stand_in = types.SimpleNamespace(
        strategy=types.SimpleNamespace(args=args),
        kl_ctl=types.SimpleNamespace(value=beta),
        advantage_estimator=estimator,
    )
    stand_in.get_cumulative_returns = lambda *given: maker.get_cumulative_returns(stand_in, *given)
    maker.compute_advantages_and_returns(stand_in, [experience])

    def loss(log_probs: Any) -> Any:
        return losses.PolicyLoss()(log_probs, torch.tensor(batch.old), experience.advantages, mask)[0]

    return _by_torch(batch.log_probs, loss)


def tunix_loss(batch: Batch, estimator: str, **settings: Any) -> Result:
    """`grpo_loss_fn` of tunix, which computes in float32, with the advantages of its own estimator."""
    nnx, core = _module("flax.nnx"), _module("tunix.rl.algo_core")
    registry, common = (_module(f"tunix.rl.{name}") for name in ("function_registry", "common"))
    advantages = registry.get_advantage_estimator(estimator)(batch.rewards, batch.size)
    names = {"beta": 0.04, "epsilon": 0.2, "loss_algo": "grpo", "loss_agg_mode": "sequence-mean-token-mean"}
    names |= {"kl_loss_mode": "kl", "kl_clamp_value": None, "temperature": 1.0}
    config = types.SimpleNamespace(**(names | settings))
    mask, wide = jnp.asarray(batch.mask), (batch.old, batch.reference, np.minimum(np.exp(batch.old - batch.sampler), 2))
    old, reference, weights = (jnp.asarray(x, jnp.float32) for x in wide)
    options = {"old_per_token_logps": old, "ref_per_token_logps": reference, "sampler_is_weights": weights}
    example = common.TrainExample(mask, mask, mask, mask.astype(jnp.float32), jnp.asarray(advantages), **options)

    def loss(log_probs: jax.Array) -> jax.Array:
        model = lambda *_, **__: (log_probs, jnp.zeros((*mask.shape, 2), jnp.float32))  # noqa: E731
        with mock.patch.object(common, "compute_per_token_logps", model):
            return core.grpo_loss_fn(nnx.Dict(), example, config, 0, 1)[0]

    value, slope = jax.value_and_grad(loss)(jnp.asarray(batch.log_probs, jnp.float32))
    return float(value), np.asarray(slope, np.float64)
