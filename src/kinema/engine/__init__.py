"""Stable Video Diffusion as a generator of steps."""
