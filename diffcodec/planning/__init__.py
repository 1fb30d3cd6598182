"""The search for plans: noise levels and lattices that suit a model and images."""
