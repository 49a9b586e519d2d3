"""Code shared by the training of both models."""
