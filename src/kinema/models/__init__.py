"""Weights: what can be loaded, how it is loaded, and where it is placed."""
