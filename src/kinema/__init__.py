"""Kinema."""
