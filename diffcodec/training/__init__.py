"""Training of the epsilon-model."""
