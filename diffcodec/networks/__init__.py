"""Networks that tell the posterior of x given z_t, in floats and in exact integers."""
