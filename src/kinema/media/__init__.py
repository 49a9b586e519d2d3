"""Stills in, videos out."""
