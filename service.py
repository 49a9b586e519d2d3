"""So that `bentoml serve service:StableDiffusionVideo` works from here, also with only the requirements installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("kinema") is None:  # in a Bento it lies beside this file, and the workers are given this path
    sys.path.append(str(Path(__file__).with_name("src")))

from kinema.serving.service import StableDiffusionVideo

__all__ = ["StableDiffusionVideo"]
