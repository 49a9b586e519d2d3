import numpy as np
import pytest
from PIL import Image

from kinema.recipe import ModelIdentity, Recipe
from kinema.values import VideoRequest


@pytest.fixture
def recipe():
    return Recipe(
        kinema="0.1.0",
        request=VideoRequest(model="pocket", seed=7, width=96, height=64, num_frames=6, fps=7),
        image_sha256="0" * 64,
        model=ModelIdentity(name="modèle <&> locale", revision=None, weights_sha256="1" * 64),
        device="cpu",
        dtype="float32",
        memory_plan="resident",
        decode_chunk_size=4,
        events=("decoded again in float32",),
        versions={"torch": "2.13.0"},
    )


@pytest.fixture
def frames():
    """Six different smooth frames of 96×64 with motion."""
    seed = np.random.default_rng(0).integers(60, 200, (4, 6, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(seed).resize((120, 80), Image.Resampling.BICUBIC))
    return np.stack([wide[i : i + 64, 2 * i : 2 * i + 96] for i in range(6)])
