"""Several videos of each image or prompt: consecutive seeds, and for a sheet several motions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kinema.errors import InvalidRequest
from kinema.values import MAX_SEED, VideoRequest, draw_seed

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SEEDS = 1000
MAX_SHEET_VIDEOS = 100
SHEET_SEEDS = 3
DEFAULT_MOTIONS = 3
TRAINED_MOTION = 255


@dataclass(frozen=True, slots=True)
class Variations:
    """How each request becomes several. `motions` None: that of the request; empty: some around it."""

    seeds: int = 1
    motions: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        """Videos per image or prompt, at most."""
        return self.seeds * (1 if self.motions is None else len(self.motions) or DEFAULT_MOTIONS)

    def motions_of(self, request: VideoRequest) -> tuple[int, ...]:
        """Return the motion bucket ids, in ascending order."""
        motion = request.motion_bucket_id
        if self.motions is None:
            return (motion,)
        higher = min(motion * 3 // 2, max(motion, TRAINED_MOTION))
        return self.motions or tuple(sorted({motion // 2, motion, higher}))

    def seeds_of(self, request: VideoRequest) -> range:
        """Return the seeds."""
        return range(request.seed, request.seed + self.seeds)

    def requests(self, request: VideoRequest) -> list[VideoRequest]:
        """Return the requests of all videos."""
        return [
            request.changed(seed=seed, motion_bucket_id=motion)
            for motion in self.motions_of(request)
            for seed in self.seeds_of(request)
        ]

    def suffix(self, request: VideoRequest) -> str:
        """Return what distinguishes a file's name from those of the same image."""
        motion = "" if self.motions is None else f"-motion{request.motion_bucket_id}"
        return motion + ("" if self.seeds == 1 else f"-seed{request.seed}")


def read_variations(
    num_videos: int | None, motions: str | None, sheet: str | None, images: int, parameters: Mapping[str, Any]
) -> tuple[Variations, dict[str, Any]]:
    """Return the variations that the options ask for, and the parameters with the first of several seeds drawn.

    Args:
        num_videos: Videos per image or prompt; None is 1, or `SHEET_SEEDS` for a sheet.
        motions: Comma-separated motion bucket ids of the sheet.
        sheet: Path of the sheet.
        images: Number of images; 0 for prompts.
        parameters: Valid parameters of the request.

    Raises:
        InvalidRequest: the options contradict each other or are out of range.
    """
    if sheet is None:
        if motions is not None:
            raise InvalidRequest(
                "--motions only applies with --sheet; add --sheet or use --motion-bucket-id", "motions"
            )
        variations = Variations(num_videos or 1)
    else:
        if images != 1:
            count = f"{images} were passed" if images else "a prompt was passed; save its image with --save-image"
            raise InvalidRequest(f"--sheet compares videos of one image, but {count}", "sheet")
        if motions is not None and parameters.get("motion_bucket_id") is not None:
            raise InvalidRequest("--motions and --motion-bucket-id were both passed; remove one", "motions")
        variations = Variations(num_videos or SHEET_SEEDS, _parse_motions(motions))
        if variations.count > MAX_SHEET_VIDEOS:
            raise InvalidRequest(
                f"the sheet would have {variations.count} videos; at most {MAX_SHEET_VIDEOS} are possible, so lower "
                "--num-videos or pass fewer --motions",
                "sheet",
            )
    return variations, dict(parameters) | _first_seed(variations, parameters)


def _first_seed(variations: Variations, parameters: Mapping[str, Any]) -> dict[str, int]:
    """Return the first seed of several, the same for all images; nothing for one video per image."""
    if variations.seeds == 1 and variations.motions is None:
        return {}
    seed: int = VideoRequest.checked(seed=draw_seed(parameters.get("seed"))).seed
    if seed > (highest := MAX_SEED - variations.seeds + 1):
        raise InvalidRequest(
            f"seed {seed} is too high for {variations.seeds} videos with consecutive seeds; use at most {highest}",
            "seed",
        )
    return {"seed": seed}


def _parse_motions(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    values = [VideoRequest.checked(motion_bucket_id=part.strip()).motion_bucket_id for part in text.split(",")]
    return tuple(sorted(set(values)))
