"""Arguments and methods that a choice may not have, each at the line that ends in `# here`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

import logderiv as ld

from .refusals import Table, coin

ROWS = np.arange(3.0)
TABLE = Table()
refused = TABLE.refused


# Options of a choice.


@refused(r"'reinforce'.*score.*pathwise|score.*pathwise.*'reinforce'")
def an_unknown_method(theta):
    ld.cost(ld.sample(ld.Bernoulli(theta), method="reinforce"))  # here


@refused("score", listed=False)
def a_pathwise_choice_of_a_coin(theta):
    ld.cost(ld.sample(ld.Bernoulli(theta), method="pathwise"))  # here


@refused("log_prob")
def no_distribution(theta):
    ld.cost(ld.sample(theta))  # here


@refused("name")
def a_name_as_numpyro_has_it(theta):
    sample: Any = ld.sample
    ld.cost(sample("x", ld.Bernoulli(theta)))  # here


@refused("name")
def a_name_alone(theta):
    ld.cost(ld.sample("x"))  # here


@refused("baseline.*number")
def a_baseline_of_trajectories(theta):
    ld.cost(ld.sample(ld.Bernoulli(theta), baseline=ld.baselines.LeaveOneOut()))  # here


@refused("baseline: expected a scalar")
def a_baseline_of_a_vector(theta):
    ld.cost(ld.sample(ld.Bernoulli(theta), baseline=ROWS))  # here


@refused("where: .*bool")
def a_mask_of_numbers(theta):
    ld.cost(ld.sample(ld.Bernoulli(theta), where=0.5))  # here


@refused(r"where: .*\(3,\)")
def a_mask_of_another_shape(theta):
    ld.cost(ld.sample(ld.Bernoulli(theta), where=ROWS > 0))  # here


@refused("leading axis")
def a_plate_of_a_number(theta):
    ld.cost(ld.plate(coin)(theta).sum())  # here


@refused("leading axis")
def a_plate_of_rows_that_do_not_agree(theta):
    ld.cost(ld.plate(lambda x, y: coin(x * y))(ROWS, ROWS[:2]).sum())  # here


@refused("leading axis")
def a_plate_of_nothing(theta):
    ld.cost(ld.plate(lambda: coin(theta))().sum())  # here


# Methods that do not fit the distribution, the loop, or each other.


@refused("finitely many outcomes.*Normal")
def an_enumerated_normal(theta):
    ld.cost(ld.sample(ld.Normal(theta, jnp.ones(())), method="enumerate"))  # here


@refused("finitely many outcomes.*plate")
def three_enumerated_choices_at_once(theta):
    ld.cost(ld.sample(ld.Bernoulli(theta * ROWS), method="enumerate").sum())  # here


@refused("finitely many outcomes.*Normal.*plate")
def three_alternative_normals_at_once(theta):
    ld.cost(ld.sample(ld.Normal(theta * ROWS, jnp.ones(3)), method="alternative").sum())  # here


@refused("finitely many outcomes.*Normal.*Poisson.*received logderiv's TanhNormal.*'score' or 'pathwise'")
def an_alternative_normal_within_bounds(theta):
    ld.cost(ld.sample(ld.distributions.TanhNormal(theta, jnp.ones(()), -1.0, 1.0), method="alternative"))  # here


@refused("OneHotCategorical.*Categorical")
def a_straight_through_integer(theta):
    ld.cost(ld.sample(ld.Categorical(theta * ROWS), method="straight_through_biased"))  # here


@refused("bounded_while_loop", listed=False)
def an_enumerated_choice_in_a_while_loop(theta):
    def body(carry):
        return carry[0] + 1, ld.sample(ld.Bernoulli(theta), method="enumerate") > 0  # here

    ld.cost(lax.while_loop(lambda carry: carry[1], body, (jnp.zeros(()), jnp.array(True)))[0])


@refused("10\\^6.*worlds", listed=False)
def too_many_worlds(theta):
    def step(total, _):
        return total + ld.sample(ld.Bernoulli(theta), method="enumerate").astype(float), None  # here

    ld.cost(lax.scan(step, jnp.zeros(()), length=20)[0])


@refused("alternative.*enumerate", listed=False)
def an_alternative_beside_an_enumerated_choice(theta):
    x = ld.sample(ld.Bernoulli(theta), method="enumerate").astype(float)
    ld.cost(x * ld.sample(ld.Bernoulli(theta), method="alternative").astype(float))  # here


@refused("expected")
def an_enumerated_choice_within_expected(theta):
    def part(x):
        return (x * ld.sample(ld.Bernoulli(theta), method="enumerate")).astype(float)  # here

    ld.expected(ld.Bernoulli(theta), part)  # here


@refused("finitely many outcomes.*Normal")
def an_expected_normal(theta):
    ld.expected(ld.Normal(theta, jnp.ones(())), lambda x: x)  # here


@refused("baseline.*'pathwise'")
def a_baseline_of_a_pathwise_choice(theta):
    ld.cost(ld.sample(ld.Normal(theta, jnp.ones(())), method="pathwise", baseline=1.0))  # here
