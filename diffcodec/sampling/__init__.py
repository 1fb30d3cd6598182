"""The chain as a generative model: samples, edits, likelihoods. No bits are coded here."""
