"""JSON round trips of recipes."""

import pytest

from kinema.recipe import ImageGeneration, ModelIdentity, Recipe
from kinema.values import MAX_SEED, VideoRequest

IMAGE_GENERATION = ImageGeneration(
    model=ModelIdentity(name="sd-2.1-base", revision="2" * 40, weights_sha256="3" * 64),
    pipeline="StableDiffusionPipeline",
    dtype="float16",
    memory_plan="resident",
    events=("the image has NaN or infinity in float16: repeated in float32",),
)


@pytest.mark.parametrize("image_generation", [None, IMAGE_GENERATION])
def test_recipe_survives_json(image_generation: ImageGeneration | None) -> None:
    recipe = Recipe(
        kinema="0.1.0",
        request=VideoRequest(model="pocket", seed=MAX_SEED),
        image_sha256="0" * 64,
        image_generation=image_generation,
        model=ModelIdentity(name="pocket", revision=None, weights_sha256="1" * 64),
        device="cpu",
        dtype="float32",
        memory_plan="resident",
        decode_chunk_size=14,
        events=("memory ran out while decoding 14 frames together: continued with 7",),
        versions={"torch": "2.13.0"},
    )
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
