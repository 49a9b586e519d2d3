"""Models: the catalog, downloading, loading, devices and memory plans."""
