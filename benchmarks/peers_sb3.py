"""PPO of stable-baselines3 on environments of Gymnasium, with the settings that the JAX peers have; this file runs nothing."""

import copy
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks.rl_peers import Settings, installed

SB3 = "stable-baselines3"


class Snapshot(NamedTuple):
    """What a model was at one point of its training.

    Attributes:
        parameters: Of its networks.
        moments: Of its observations; `None` where they are not normalized.
    """

    parameters: Any
    moments: Any


def stable_baselines3_ppo(
    settings: Settings, seed: int = 0, make: str | Callable[[], Any] = "CartPole-v1", **options: Any
) -> Any:
    """A model of stable-baselines3's PPO, or `None` where it is not installed.

    Args:
        settings: Of PPO.
        seed: Of networks, actions and environments.
        make: An id of Gymnasium, or what makes an environment.
        **options: More of `stable_baselines3.PPO`, such as `use_sde`.
    """
    if not installed("stable_baselines3", "gymnasium"):
        return None
    sb3, torch = importlib.import_module("stable_baselines3"), importlib.import_module("torch")
    torch.set_num_threads(1)  # two that wait for each other's small layers are slower, on a busy machine much slower
    c = settings
    network = {
        "net_arch": list(c.hidden),
        "activation_fn": {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[c.activation],
    }
    numbers = {"n_steps": c.num_steps, "batch_size": c.batch // c.minibatches, "n_epochs": c.epochs}
    numbers |= {
        "clip_range": c.clip,
        "learning_rate": (lambda left: left * c.learning_rate) if c.anneal else c.learning_rate,
    }
    numbers |= {"policy_kwargs": network | {"log_std_init": c.log_std}, "seed": seed, "device": "cpu", "verbose": 0}
    environments = _environments(make, c.num_environments, seed, c.reward_scale)
    if c.normalize:
        environments = _normalized(environments)
    return sb3.PPO("MlpPolicy", environments, **numbers, **c.shared, **options)


def stable_baselines3_train(model: Any, settings: Settings, num_updates: int, every: int) -> list[Snapshot]:
    """Train a model; what it was after every so many updates."""
    callbacks = importlib.import_module("stable_baselines3.common.callbacks")
    snapshots = []

    class Keep(callbacks.BaseCallback):
        """Looks between two updates."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            done = self.num_timesteps // settings.batch
            if done and done % every == 0:
                snapshots.append(_snapshot(self.model))

    model.learn(num_updates * settings.batch, callback=Keep())
    return [*snapshots, _snapshot(model)]


def stable_baselines3_return(
    model: Any,
    num_episodes: int,
    seed: int = 0,
    make: str | Callable[[], Any] = "CartPole-v1",
    snapshot: Snapshot | None = None,
) -> float:
    """Mean return of fresh episodes side by side, actions sampled, rewards as they come; of a model, or of what it was."""
    evaluation = importlib.import_module("stable_baselines3.common.evaluation")
    parameters, moments = _snapshot(model) if snapshot is None else snapshot
    model.policy.load_state_dict(parameters)
    environments = _environments(make, num_episodes, 1000 + seed)
    if moments is not None:
        environments = _normalized(environments)
        environments.obs_rms, environments.training = moments, False
    return float(np.mean(evaluation.evaluate_policy(model, environments, num_episodes, deterministic=False)[0]))


def _environments(make: Any, num: int, seed: int, reward_scale: float = 1.0) -> Any:
    util, wrappers = (
        importlib.import_module("stable_baselines3.common.env_util"),
        importlib.import_module("gymnasium.wrappers"),
    )
    options = {
        "wrapper_class": wrappers.TransformReward,
        "wrapper_kwargs": {"func": lambda reward: reward_scale * reward},
    }
    return util.make_vec_env(make, n_envs=num, seed=seed, **(options if reward_scale != 1 else {}))


def _normalized(environments: Any) -> Any:
    return importlib.import_module("stable_baselines3.common.vec_env").VecNormalize(environments, norm_reward=False)


def _snapshot(model: Any) -> Snapshot:
    normalizer = model.get_vec_normalize_env()
    moments = None if normalizer is None else copy.deepcopy(normalizer.obs_rms)
    return Snapshot(copy.deepcopy(model.policy.state_dict()), moments)
