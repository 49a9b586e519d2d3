"""The model card of the pocket text-to-image model, with figures from the JSON of `evaluate.py`."""

from typing import Any

from training.t2i.networks import HEIGHT, WIDTH
from training.t2i.scenes import COLOURS, GROUNDS, HOURS, STYLES, THINGS, WEATHERS

TITLES = {
    "thing_found": "thing found",
    "ground_found": "ground found",
    "hour_found": "hour found",
    "colour_found": "colour found",
    "colour_swapped": "colour follows a replaced colour word",
}


def card(record: dict[str, Any] | None) -> str:
    """Return the model card in Markdown; without a record it has no figures."""
    names = {"rider": "astronaut riding a horse", "balloon": "hot-air balloon"}
    things = ", ".join(names.get(t, t) for t in THINGS)
    return f"""---
library_name: diffusers
license: apache-2.0
pipeline_tag: text-to-image
---

# Pocket text-to-image model

A very small text-to-image model in Stable Diffusion's classes and layout. It generates images of a limited set of
scenes in {WIDTH}×{HEIGHT} pixels, as a substitute for a full-size model that needs no download. It was trained from
scratch by `training/t2i/train.py` on scenes drawn by `training/t2i/drawing.py`, without third-party images or texts.

- grounds: {", ".join(GROUNDS)} (a city from the air)
- times of day: {", ".join(HOURS)}; weather: {", ".join(WEATHERS)}
- things: {things}; in {", ".join(COLOURS)}
- styles: {", ".join(STYLES)}

Words outside the vocabulary become the unknown token, and the image shows a scene without them. English only.

Sampling: Euler, 12 steps, guidance 3. The noise schedule ends in pure noise (zero terminal SNR); v-prediction.

## Figures

{_figures(record)}
"""


def _figures(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Not measured yet; run `training/t2i/evaluate.py`."
    figures, drawn = record["figures"], record["judge_on_drawn_held_out_scenes"]
    lines = [
        f"{len(record['captions'])} captions of combinations of thing, colour, ground and hour held out from training,",
        f"at {record['settings']['num_inference_steps']} steps and guidance {record['settings']['guidance_scale']:g},",
        "classified by a small network trained on drawn scenes. Its accuracy on drawn scenes is in the last column.",
        "",
        "| figure | generated | drawn |",
        "| --- | --- | --- |",
    ]
    for name, title in TITLES.items():
        drawn_share = drawn.get(name.removesuffix("_found"))
        lines.append(f"| {title} | {figures[name]:.1%} | {'' if drawn_share is None else f'{drawn_share:.1%}'} |")
    lines += [f"| size | {figures['size_mib']:.1f} MiB | |"]
    return "\n".join(lines)
