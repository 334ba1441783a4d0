"""Which adapter stands for an object of a public suite."""

from typing import Any

from logderiv.environments.brax import Brax
from logderiv.environments.gymnasium.adapter import Gymnasium
from logderiv.environments.gymnax import Gymnax
from logderiv.environments.jumanji import Jumanji


def as_environment(environment: Any) -> Any:
    """An environment of the protocol from one, or from an unmodified object of a suite, told by its attributes.

    | object of | has | becomes |
    |---|---|---|
    | gymnax 0.x and 1.x, craftax | `reset_env`, `step_env` | `Gymnax` |
    | brax, MuJoCo Playground | `action_size`, `observation_size` | `Brax` |
    | jumanji | `action_spec`, `observation_spec` | `Jumanji` |
    | Gymnasium | a class of that library | `Gymnasium` |

    No suite is imported for it.

    Args:
        environment: An object with `reset` and `step` of the protocol, or of one of the suites.

    Returns:
        The object itself, or its adapter.

    Raises:
        TypeError: None of them.
    """

    def has(*names: str) -> bool:
        return all(hasattr(environment, name) for name in names)

    if has("reset_env", "step_env"):
        return Gymnax(environment)
    if not has("reset", "step"):
        raise TypeError(
            "environment: expected reset(key, params) and step(key, state, action, params), or an environment of gymnax, "
            f"craftax, brax, jumanji or Gymnasium; received {type(environment).__name__}."
        )
    if has("action_size", "observation_size"):
        return Brax(environment)
    if has("action_spec", "observation_spec"):
        return Jumanji(environment)
    of_gymnasium = any(base.__module__.split(".")[0] == "gymnasium" for base in type(environment).__mro__)
    return Gymnasium.of(environment) if of_gymnasium else environment
