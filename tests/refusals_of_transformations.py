"""What JAX's transformations and rules may not take: choices and costs of a model, each at the line that ends in `# here`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld

from .refusals import Table

ROWS = np.arange(3.0)
TABLE = Table()
refused = TABLE.refused
PLATE, DIFFERENTIATE = r"(ld|logderiv)\.plate", "expectation"


# Plain jax.vmap of a choice or a cost: the parts would have one key, and costs that nobody adds up.


@refused(PLATE)
def a_vmap(theta):
    ld.cost(jax.vmap(lambda x: ld.sample(ld.Bernoulli(theta * x)).astype(float))(ROWS).sum())  # here


@refused(PLATE)
def a_vmap_of_what_does_not_depend_on_the_row(theta):
    ld.cost(jax.vmap(lambda x: x * ld.sample(ld.Bernoulli(theta)).astype(float))(ROWS).sum())  # here


@refused(PLATE)
def a_vmap_without_operands(theta):
    ld.cost(jax.vmap(lambda: ld.sample(ld.Bernoulli(theta)).astype(float), axis_size=3)().sum())  # here


@refused(PLATE)
def a_scan_under_a_vmap(theta):
    def row(x):
        def step(total, _):
            return total + ld.sample(ld.Bernoulli(theta)).astype(float), None  # here

        return lax.scan(step, x, length=2)[0]

    ld.cost(jax.vmap(row)(ROWS).sum())


@refused(PLATE)
def a_vmap_in_a_scan(theta):
    def step(total, _):
        return total + jax.vmap(lambda x: ld.sample(ld.Bernoulli(theta - x)).astype(float))(ROWS).sum(), None  # here

    ld.cost(lax.scan(step, jnp.zeros(()), length=2)[0])


@refused(PLATE)
def a_vmap_in_a_branch(theta):
    def branch():
        return jax.vmap(lambda x: ld.sample(ld.Bernoulli(theta - x)).astype(float))(ROWS).sum()  # here

    ld.cost(lax.cond(theta > 0, branch, lambda: jnp.zeros(())))


@refused(PLATE)
def a_vmap_of_a_jitted_closure(theta):
    ld.cost(jax.vmap(jax.jit(lambda x: ld.sample(ld.Bernoulli(theta * x)).astype(float)))(ROWS).sum())  # here


@refused(PLATE)
def a_vmap_of_a_checkpoint(theta):
    kept = jax.checkpoint(lambda x: ld.sample(ld.Bernoulli(theta * x)).astype(float))  # here
    ld.cost(jax.vmap(kept)(ROWS).sum())


@refused(PLATE)
def a_vectorized_function(theta):
    row = jnp.vectorize(lambda x: ld.sample(ld.Bernoulli(theta * x)).astype(float))  # here
    ld.cost(row(ROWS).sum())


@refused(PLATE)
def a_cost_under_a_vmap(theta):
    jax.vmap(lambda x: ld.cost(theta * x))(ROWS)  # here


@refused(PLATE)
def a_plate_under_a_vmap(theta):
    def row(x):
        return ld.plate(lambda y: ld.sample(ld.Bernoulli(theta * y - x)).astype(float))(ROWS).sum()  # here

    ld.cost(jax.vmap(row)(ROWS[:2]).sum())


@refused(PLATE)
def a_vmap_in_a_plate(theta):
    def row(x):
        return jax.vmap(lambda y: ld.sample(ld.Bernoulli(theta * y - x)).astype(float))(ROWS).sum()  # here

    ld.cost(ld.plate(row)(ROWS[:2]).sum())


@refused(PLATE)
def a_key_under_a_vmap(theta):
    ld.cost(jax.vmap(lambda x: x * jax.random.uniform(ld.key()))(ROWS).sum() * theta)  # here


@refused(PLATE)
def a_map_in_batches(theta):
    ld.cost(lax.map(lambda x: ld.sample(ld.Bernoulli(theta * x)).astype(float), ROWS, batch_size=2).sum())  # here


@refused(r"lax\.scan")
def an_associative_scan(theta):
    def join(a, b):
        return a + b * ld.sample(ld.Bernoulli(theta)).astype(float)  # here

    ld.cost(lax.associative_scan(join, ROWS).sum())


@refused("inside pmap")
def a_pmap(theta):
    ld.cost(jax.pmap(lambda x: x * ld.sample(ld.Bernoulli(theta)).astype(float))(ROWS[1:2]).sum())  # here


@refused("inside shard_map")
def a_shard_map(theta):
    mesh, spec = (
        jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.sharding.PartitionSpec("rows"),
    )

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    def rows(x):
        return x * ld.sample(ld.Bernoulli(theta)).astype(float)  # here

    ld.cost(rows(ROWS).sum())


# Derivatives of a choice, within the model.


@refused(DIFFERENTIATE)
def a_gradient(theta):
    ld.cost(jax.grad(lambda x: x * ld.sample(ld.Bernoulli(x)).astype(float))(theta))  # here


@refused(DIFFERENTIATE)
def a_gradient_in_what_the_choice_does_not_depend_on(theta):
    ld.cost(jax.grad(lambda x: x * ld.sample(ld.Bernoulli(theta)).astype(float))(1.0))  # here


@refused(DIFFERENTIATE)
def a_gradient_of_a_cost(theta):
    def part(x):
        ld.cost(x * theta)  # here
        return x**2

    ld.cost(jax.grad(part)(theta))


@refused(DIFFERENTIATE)
def a_gradient_of_a_scan(theta):
    def part(x):
        def step(total, _):
            return total + x * ld.sample(ld.Bernoulli(x)).astype(float), None  # here

        return lax.scan(step, x, length=2)[0]

    ld.cost(jax.grad(part)(theta))


@refused(DIFFERENTIATE)
def a_gradient_in_a_scan(theta):
    def step(x, _):
        return x - jax.grad(lambda x: x**2 * ld.sample(ld.Bernoulli(theta)).astype(float))(x), None  # here

    ld.cost(lax.scan(step, theta, length=2)[0])


@refused(DIFFERENTIATE)
def a_gradient_of_a_plate(theta):
    def part(x):
        return ld.plate(lambda y: ld.sample(ld.Bernoulli(x * y)).astype(float))(ROWS).sum() * x  # here

    ld.cost(jax.grad(part)(theta))


@refused(DIFFERENTIATE)
def a_jvp(theta):
    part = lambda x: x * ld.sample(ld.Bernoulli(x)).astype(float)  # noqa: E731  # here
    ld.cost(jax.jvp(part, (theta,), (1.0,))[1])


@refused(DIFFERENTIATE)
def a_jvp_in_what_the_choice_does_not_depend_on(theta):
    part = lambda x: x * ld.sample(ld.Bernoulli(theta)).astype(float)  # noqa: E731  # here
    ld.cost(jax.jvp(part, (2.0,), (1.0,))[1])


@refused(DIFFERENTIATE)
def a_linearization(theta):
    out, _ = jax.linearize(lambda x: x * ld.sample(ld.Bernoulli(theta)).astype(float), theta)  # here
    ld.cost(out)


@refused(DIFFERENTIATE)
def a_vjp(theta):
    out, _ = jax.vjp(lambda x: x * ld.sample(ld.Bernoulli(theta)).astype(float), theta)  # here
    ld.cost(out)


@refused(DIFFERENTIATE)
def a_hessian(theta):
    ld.cost(jax.hessian(lambda x: x**2 * ld.sample(ld.Bernoulli(theta)).astype(float))(theta))  # here


@refused(DIFFERENTIATE)
def a_jacobian(theta):
    rows = jax.jacrev(lambda x: x * ld.sample(ld.Bernoulli(theta)).astype(float))(ROWS)  # here
    ld.cost(rows.sum())


@refused(DIFFERENTIATE)
def a_gradient_of_a_pathwise_choice(theta):
    ld.cost(jax.grad(lambda x: ld.sample(ld.Normal(x, jnp.ones(())), method="pathwise"))(theta))  # here
