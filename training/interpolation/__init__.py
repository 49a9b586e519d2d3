"""Training of the network that makes frames between frames: `python -m training.interpolation.train --help`."""
