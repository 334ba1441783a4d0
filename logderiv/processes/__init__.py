"""Stochastic processes as policies: what depends on the parameters is drawn, and scored, like an action.

A process is an environment that carries its own `policy`, so that everything in the library applies to it as it stands:

    taus = ld.rollout(params, keys, process.policy, process, horizon=T)
    logp = ld.log_prob(params, process.policy, taus)
    score = jax.grad(ld.log_prob)(params, process.policy, tau)

Parameters in the start are drawn at the first step, whose observation says `start`; parameters in the dynamics are
drawn as an action that *is* the next state. Beside each process stand its exact numbers, as plain methods.
"""
