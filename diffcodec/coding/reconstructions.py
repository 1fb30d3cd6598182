"""What is shown at a timestep above 0 by name; for the command line too, without torch.

``mean`` is the posterior mean of x given z_t, ``flow`` its continuation by the probability-flow ODE
(DDIM), ``sample`` its continuation by ancestral sampling.
"""

RECONSTRUCTIONS = ("mean", "flow", "sample")
