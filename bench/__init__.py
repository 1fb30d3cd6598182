"""Comparisons and demonstrations; not part of the package."""
