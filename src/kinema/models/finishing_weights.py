"""Hashes of the weights of the networks after decoding, for recipes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kinema.errors import ModelCorrupt
from kinema.models.model_files import weights_sha256

if TYPE_CHECKING:
    from kinema.values import VideoRequest


def finishing_sha256(request: VideoRequest) -> dict[str, str]:
    """Return the hash of the weights of each stage after decoding, as `ModelIdentity.weights_sha256`.

    Raises:
        InvalidRequest: the package with the weights of `upscale` is not installed.
        ModelCorrupt: its file is missing.
    """
    from kinema.models.frame_interpolator import WEIGHTS_FILE
    from kinema.models.upscaler_weights import upscaler_file

    files = {"interpolate": lambda: WEIGHTS_FILE, "upscale": upscaler_file}
    hashes = {}
    for stage in request.finishing:
        file = files[stage]()
        try:
            hashes[stage] = weights_sha256(file.parent, [file.name])
        except OSError as error:
            raise ModelCorrupt(f"{file} can't be read ({error.strerror}); install its package again") from None
    return hashes
