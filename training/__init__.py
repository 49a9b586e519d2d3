"""Scripts that train the embedded models; run as modules from the root of the repository."""
