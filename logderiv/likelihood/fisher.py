r"""The Fisher matrix of the trajectory distribution, as products with vectors, and the natural gradient.

$F(\theta) = \mathbb{E}[\nabla\log P(\tau)\, \nabla\log P(\tau)^\top] = \mathbb{E} \sum_t \nabla\ell_t \nabla\ell_t^\top$: the scores of different steps
are uncorrelated, so the two forms agree in expectation and the second, per step, has less noise. A product with `F` is
one forward derivative of the log-factors followed by one backward; neither `(N, D)` nor `(D, D)` is ever formed.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from logderiv.likelihood.factors import log_factors
from logderiv.types import Trajectory, as_policy, check_params, check_trajectory

Per = Literal["step", "trajectory"]


def fisher_vector_product(
    params: Any,
    policy: Any,
    trajectories: Trajectory,
    *,
    per: Per = "step",
    probabilities: jax.Array | None = None,
    rows: int | None = None,
) -> Callable[[Any], Any]:
    r"""The map $v \mapsto F v$ over a batch of trajectories drawn with these `params`.

    | `per` | $F v$ |
    |---|---|
    | `"step"` | $\tfrac1N \sum_n \sum_t \nabla\ell_{n,t}\, \langle\nabla\ell_{n,t}, v\rangle$ |
    | `"trajectory"` | $\tfrac1N \sum_n \nabla\log P_n\, \langle\nabla\log P_n, v\rangle$ |

    Args:
        params: Parameters of the policy, floating point.
        policy: The policy.
        trajectories: Leading axes `(N, T)`; rewards are not used.
        per: Whose score is squared.
        probabilities: Shape `(N,)`, in the place of `1/N`. With every trajectory of a finite process and its probability
            (`logderiv.exact.enumerate_trajectories`, `logderiv.prob`) the product is exact. Detached.
        rows: As in `logderiv.log_factors`.

    Returns:
        A linear function from pytrees of `params` to pytrees of `params`; linearized once, cheap to call many times.

    Raises:
        ValueError: `per` is neither, `probabilities` has another shape, or not exactly one batch axis.
        TypeError: A parameter is not floating point.

    References:
        Amari (1998), Neural Computation 10; Kakade (2001), "A natural policy gradient", eq. 2.
    """
    check_params(params)
    if per not in ("step", "trajectory"):
        raise ValueError(f"per: expected 'step' or 'trajectory', received {per!r}.")
    weights = _weights(trajectories, probabilities)

    def logs(params: Any) -> jax.Array:
        factors = log_factors(params, policy, trajectories, rows=rows)
        return factors if per == "step" else jnp.sum(factors, axis=-1, keepdims=True)

    value, push = jax.linearize(logs, params)
    pull = jax.linear_transpose(push, params)
    scale = weights.astype(value.dtype)[:, None]
    return lambda vector: pull(scale * push(vector))[0]


def fisher_matrix(
    params: Any,
    policy: Any,
    trajectories: Trajectory,
    *,
    per: Per = "step",
    probabilities: jax.Array | None = None,
) -> jax.Array:
    r"""`F` itself, shape `(D, D)` in the order of `jax.flatten_util.ravel_pytree`; for small `D`.

    Arguments and errors as in `fisher_vector_product`. Exact where `trajectories` is every trajectory and `probabilities`
    what each has.
    """
    theta, unravel = ravel_pytree(params)
    product = fisher_vector_product(params, policy, trajectories, per=per, probabilities=probabilities)
    return jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(jnp.eye(theta.size, dtype=theta.dtype))


class NaturalGradientState(NamedTuple):
    r"""How the last solve went.

    Attributes:
        residual: $|(F + \lambda) x - g| / |g|$, a scalar; 0 before the first update. Close to 1, the iterations were too
            few and the update hardly is a natural gradient.
    """

    residual: jax.Array


def natural_gradient(
    policy: Any,
    *,
    damping: float = 1e-3,
    iterations: int = 10,
    tolerance: float = 1e-5,
    per: Per = "step",
) -> optax.GradientTransformationExtraArgs:
    r"""Replace a gradient by $(F + \lambda I)^{-1} g$, as an optax transformation.

    Solved by conjugate gradients, so `F` is never formed. `update` takes the batch by keyword and passes through `optax.chain`:

        optimizer = ld.maximize(optax.chain(ld.natural_gradient(policy), optax.scale_by_learning_rate(0.1)))
        updates, opt_state = optimizer.update(est.grads, opt_state, params, trajectories=taus)

    It is linear in the gradient, so the sign of `maximize` may be applied before or after it.

    Args:
        policy: The policy that drew the trajectories.
        damping: $\lambda \ge 0$. A softmax has directions that change no probability, in which `F` is zero: with an exact gradient and
            $\lambda = 0$ the result is the pseudo-inverse's; with a sampled one, keep it positive.
        iterations: Largest number of conjugate-gradient steps; `D` suffice in exact arithmetic.
        tolerance: Relative residual at which they stop.
        per: As in `fisher_vector_product`.

    Returns:
        An `optax.GradientTransformationExtraArgs`; its state is a `NaturalGradientState`.

    Raises:
        ValueError: `damping` is negative, `iterations` below 1; in `update`, `params` is missing.
        TypeError: In `update`, `trajectories` is missing.

    References:
        Amari (1998), Neural Computation 10; Kakade (2001), "A natural policy gradient"; conjugate gradients as in Schulman et
        al. (2015), arXiv:1502.05477, appendix C.
    """
    policy = as_policy(policy)
    if not damping >= 0:
        raise ValueError(f"damping: expected a number >= 0, received {damping}.")
    if iterations < 1:
        raise ValueError(f"iterations: expected a whole number >= 1, received {iterations}.")

    def init(params: Any) -> NaturalGradientState:
        check_params(params)
        return NaturalGradientState(jnp.zeros((), _dtype(params)))

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        trajectories: Trajectory | None = None,
        **extra: Any,
    ) -> tuple[Any, NaturalGradientState]:
        del state, extra  # nothing is remembered; the rest is for other members of a chain
        if params is None:
            raise ValueError(
                "natural_gradient: expected update(grads, state, params, trajectories=...), received no params."
            )
        if trajectories is None:
            raise TypeError(
                "natural_gradient: expected the batch that the gradient came from, received none; call "
                "optimizer.update(grads, state, params, trajectories=trajectories)."
            )
        product = fisher_vector_product(params, policy, trajectories, per=per)

        def damped(vector: Any) -> Any:
            return jax.tree.map(lambda f, v: f + damping * v, product(vector), vector)

        solution, _ = cg(damped, updates, tol=tolerance, maxiter=iterations)
        error = jax.tree.map(jnp.subtract, damped(solution), updates)
        length = _norm(updates)
        residual = _norm(error) / jnp.where(length > 0, length, 1)
        return solution, NaturalGradientState(residual.astype(_dtype(params)))

    return optax.GradientTransformationExtraArgs(init, update)


def _norm(tree: Any) -> jax.Array:
    return jnp.linalg.norm(ravel_pytree(tree)[0])


def _dtype(params: Any) -> Any:
    return jnp.result_type(jax.tree.leaves(params)[0])


def _weights(trajectories: Trajectory, probabilities: jax.Array | None) -> jax.Array:
    """What each trajectory counts, shape `(N,)`."""
    batch, _ = check_trajectory(trajectories)
    if len(batch) != 1:
        raise ValueError(
            f"trajectories: expected a batch of shape (N, T), received batch axes {batch}; the Fisher matrix is a mean over one axis."
        )
    if probabilities is None:
        return jnp.full(batch, 1 / batch[0])
    if jnp.shape(probabilities) != batch:
        raise ValueError(
            f"probabilities: expected one per trajectory, shape {batch}, received {jnp.shape(probabilities)}."
        )
    return jax.lax.stop_gradient(jnp.asarray(probabilities))
