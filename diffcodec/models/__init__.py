"""A model at work, its file, its export, and its known answers."""
