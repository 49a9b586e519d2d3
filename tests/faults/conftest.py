"""Faults of real machines, against a real server process. Server and stub work are those of tests/serving."""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "serving"))
sys.path.append(str(Path(__file__).parents[1] / "media"))  # for image_attacks


@pytest.fixture(scope="session")
def png():
    data = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(data, "PNG")
    return data.getvalue()
