"""Entry point of `bentoml serve service:StableDiffusionVideo`; works with only the requirements installed."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("kinema") is None:  # in a Bento, src is beside this file; worker processes inherit the path
    sys.path.append(str(Path(__file__).with_name("src")))

from kinema.serving.service import StableDiffusionVideo

__all__ = ["StableDiffusionVideo"]
