"""Make `training` importable: it is in the root of the repository and not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
