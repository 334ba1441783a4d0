"""The Fisher matrix of the trajectory distribution, as products with vectors, and the natural gradient.

    F(θ) = E[∇log P(τ) ∇log P(τ)ᵀ] = E Σ_t ∇ℓ_t ∇ℓ_tᵀ,  ℓ_t = log π_θ(a_t|s_t)

The scores of different steps are uncorrelated, so the two forms agree in expectation and the second, per step, has less noise. A product with `F` is
one forward derivative of the log-factors followed by one backward; neither `(N, D)` nor `(D, D)` is ever formed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.sparse.linalg import cg

from logderiv._core import check
from logderiv._core.arrays import (
    accumulator_dtype,
    as_trajectory,
    check_params,
    one_axis,
    refuse_complex,
    summable,
    wide,
)
from logderiv.likelihood.probability import log_factors
from logderiv.policies import as_policy
from logderiv.types import Params, Per, Trajectory


def fisher_vector_product(
    params: Params, policy: Any, trajectories: Trajectory, *, per: Per = "step", probabilities: Any = None
) -> Callable[[Params], Params]:
    """The map v ↦ F v over a batch of trajectories drawn with these `params`.

    | `per` | F v |
    |---|---|
    | `"step"` | 1/N Σ_n Σ_t ∇ℓ_nt ⟨∇ℓ_nt, v⟩ |
    | `"trajectory"` | 1/N Σ_n ∇log P_n ⟨∇log P_n, v⟩ |

    Args:
        params: Parameters of the policy, floating point.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectories: Leading axes `(N, T)`; rewards are not used.
        per: Whose score is squared.
        probabilities: Shape `(N,)`, in the place of `1/N`. With every trajectory of a finite process and its probability
            (`logderiv.exact.enumerate_trajectories`, `logderiv.prob`) the product is exact. Detached.

    Returns:
        A linear function from pytrees of `params` to pytrees of `params`; linearized once, cheap to call many times. It raises
        `ValueError` for another structure or other shapes.

    Raises:
        ValueError: `per` is neither, `probabilities` has another shape, or not exactly one batch axis.
        TypeError: A parameter is not floating point.

    References:
        Amari (1998), Neural Computation 10; Kakade (2001), "A natural policy gradient", eq. 2.
    """
    check_params(params)
    check.one_of(("step", "trajectory"), per=per)
    trajectories = as_trajectory(trajectories)
    num = one_axis(trajectories)
    weights = jnp.full(num, 1 / num) if probabilities is None else summable(probabilities, "probabilities")
    check.shape((num,), hint="one per trajectory", probabilities=weights)

    def logs(params: Any) -> jax.Array:
        factors = log_factors(params, policy, trajectories)
        return factors if per == "step" else jnp.sum(factors, axis=-1, keepdims=True)

    params = wide(params)
    value, push = jax.linearize(logs, params)
    pull = jax.linear_transpose(push, params)
    scale = jax.lax.stop_gradient(weights).astype(value.dtype)[:, None]

    def product(vector: Any) -> Any:
        check.like("vector", vector, params, hint="that of params")
        refuse_complex(vector=vector)
        found = pull(scale * push(jax.tree.map(lambda p, v: jnp.asarray(v, p.dtype), params, vector)))[0]
        return jax.tree.map(lambda x, v: x.astype(getattr(v, "dtype", x.dtype)), found, vector)

    return product


def fisher_matrix(
    params: Params, policy: Any, trajectories: Trajectory, *, per: Per = "step", probabilities: Any = None
) -> jax.Array:
    """The Fisher matrix itself, for small `D`: mean outer product of scores.

    Args:
        params: Parameters of the policy, floating point.
        policy: A policy, or a function `(params, observation) -> distribution`.
        trajectories: Leading axes `(N, T)`; rewards are not used.
        per: Whose score is squared, a step's or a trajectory's.
        probabilities: Shape `(N,)`, in the place of `1/N`: the matrix is exact with every trajectory and what probability each has.
            Detached.

    Returns:
        Shape `(D, D)`, in the order of `jax.flatten_util.ravel_pytree`.

    Raises:
        ValueError: `per` is neither, `probabilities` has another shape, or not exactly one batch axis.
        TypeError: A parameter is not floating point.
    """
    check_params(params)
    theta, unravel = ravel_pytree(wide(params))
    product = fisher_vector_product(params, policy, trajectories, per=per, probabilities=probabilities)
    return jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(jnp.eye(theta.size, dtype=theta.dtype))


class NaturalGradientState(NamedTuple):
    """How the last solve went.

    Attributes:
        residual: |(F + λ) x - g| / |g|, a scalar; 0 before the first update. Close to 1, the iterations were too
            few and the update hardly is a natural gradient.
    """

    residual: jax.Array


def natural_gradient(
    policy: Any, *, damping: float = 1e-3, iterations: int = 10, tolerance: float = 1e-5, per: Per = "step"
) -> optax.GradientTransformationExtraArgs:
    """Replace a gradient by (F + λ I)⁻¹ g, as an optax transformation.

    Solved by conjugate gradients, in float32 at least, so `F` is never formed. `update` takes the batch by keyword and passes through `optax.chain`:

        optimizer = ld.maximize(optax.chain(ld.natural_gradient(policy), optax.scale_by_learning_rate(0.1)))
        updates, opt_state = optimizer.update(est.grads, opt_state, params, trajectories=taus)

    It is linear in the gradient, so the sign of `maximize` may be applied before or after it.

    Args:
        policy: The policy that drew the trajectories.
        damping: λ ≥ 0. A softmax has directions that change no probability, in which `F` is zero: with an exact gradient and
            λ = 0 the result is the pseudo-inverse's; with a sampled one, keep it positive.
        iterations: Largest number of conjugate-gradient steps; `D` suffice in exact arithmetic.
        tolerance: Relative residual at which they stop.
        per: Whose score is squared, a step's or a trajectory's.

    Returns:
        An `optax.GradientTransformationExtraArgs`; its state is a `NaturalGradientState`.

    Raises:
        ValueError: `damping` or `tolerance` is negative or not finite, `iterations` below 1.
        ValueError: In `update`, the gradient has another structure or other shapes than `params`.
        TypeError: In `update`, `params` or `trajectories` is missing.

    References:
        Amari (1998), Neural Computation 10; Kakade (2001), "A natural policy gradient"; conjugate gradients as in Schulman et
        al. (2015), arXiv:1502.05477, appendix C.
    """
    policy = as_policy(policy)
    check.not_negative(finite=True, damping=damping, tolerance=tolerance)
    iterations = check.whole(iterations=iterations)

    def init(params: Params) -> NaturalGradientState:
        check_params(params)
        return NaturalGradientState(jnp.zeros((), accumulator_dtype(jnp.result_type(jax.tree.leaves(params)[0]))))

    def update(updates: Any, state: Any, params: Any = None, *, trajectories: Any = None, **extra: Any) -> Any:
        del extra  # is for other members of a chain
        if params is None or trajectories is None:
            call = "optimizer.update(grads, state, params, trajectories=trajectories)"
            missing = "params" if params is None else "trajectories, the batch of the gradient"
            raise TypeError(f"natural_gradient: expected {call}, received no {missing}.")
        check.like("updates", updates, params, hint="that of params, as the gradient has")
        product, given = fisher_vector_product(params, policy, trajectories, per=per), updates
        updates = wide(updates)

        def damped(vector: Any) -> Any:
            return jax.tree.map(lambda f, v: f + damping * v, product(vector), vector)

        solution, _ = cg(damped, updates, tol=tolerance, maxiter=iterations)
        error, length = optax.tree.norm(optax.tree.sub(damped(solution), updates)), optax.tree.norm(updates)
        residual = error / jnp.where(length > 0, length, 1)
        solution = jax.tree.map(lambda x, g: x.astype(jnp.result_type(g)), solution, given)
        return solution, NaturalGradientState(residual.astype(state.residual.dtype))

    return optax.GradientTransformationExtraArgs(init, update)
