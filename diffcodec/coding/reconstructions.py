"""What is shown at a timestep above 0 by name; for the command line too, without torch.

``mean`` is the posterior mean of x given z_t, ``ensemble`` the mean of that and a second one,
``flow`` its continuation by the probability-flow ODE (DDIM), ``sample`` its continuation by
ancestral sampling. ``perceptual`` follows the flow for ``PERCEPTUAL_STEPS`` timesteps and shows the
posterior mean there.
"""

RECONSTRUCTIONS = ("ensemble", "mean", "perceptual", "flow", "sample")
PERCEPTUAL_STEPS = 2
SEEDS = 1 << 24  # of samples
