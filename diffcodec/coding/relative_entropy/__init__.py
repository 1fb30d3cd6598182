"""Relative entropy coding: a sample of one reverse step in little more than its KL."""
