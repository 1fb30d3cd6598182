"""The timesteps of a file for the eye: a page, a contact sheet."""
