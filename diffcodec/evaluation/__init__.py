"""Measuring a model on images: the bound by its parts, and whole files."""
