"""The pocket text-to-image model's model card, whose figures come from a record of `evaluate.py` or are not there."""

from typing import Any

from training.t2i.networks import HEIGHT, WIDTH
from training.t2i.scenes import COLOURS, GROUNDS, HOURS, STYLES, THINGS, WEATHERS

TITLES = {
    "thing_found": "thing found",
    "ground_found": "ground found",
    "hour_found": "hour found",
    "colour_found": "colour found",
    "colour_swapped": "colour follows its swapped word",
}


def card(record: dict[str, Any] | None) -> str:
    """The card in Markdown."""
    rider = {"rider": "astronaut riding a horse", "balloon": "hot-air balloon"}
    things = ", ".join(rider.get(t, t) for t in THINGS)
    return f"""---
library_name: diffusers
license: apache-2.0
pipeline_tag: text-to-image
---

# Pocket text-to-image model

A text-to-image model in a pocket's size, in Stable Diffusion's classes and layout. It draws one small world in
{WIDTH}×{HEIGHT} pixels, and stands in for a real model where there is nothing to download. `training/t2i/train.py` made
it from nothing on scenes that `training/t2i/drawing.py` draws; no photographs or texts of others are in it.

- grounds: {", ".join(GROUNDS)} (a city from the air)
- hours: {", ".join(HOURS)}; weathers: {", ".join(WEATHERS)}
- things: {things}; in {", ".join(COLOURS)}
- styles: {", ".join(STYLES)}

Words outside it become the unknown token, and the picture is the nearest scene without them. English only.

Euler, 12 steps, guidance 3. The noise schedule ends in pure noise, and predictions are of v.

## Figures

{_figures(record)}
"""


def _figures(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Not measured yet: `training/t2i/evaluate.py`."
    figures, drawn = record["figures"], record["judge_on_drawn_held_out_scenes"]
    lines = [
        f"{len(record['captions'])} captions of combinations of thing, colour, ground and hour never trained on,",
        f"at {record['settings']['num_inference_steps']} steps and guidance {record['settings']['guidance_scale']:g},",
        "seen by a small network that learnt from drawn scenes; beside it, how often it is right about drawings.",
        "",
        "| figure | generated | drawn |",
        "| --- | --- | --- |",
    ]
    for name, title in TITLES.items():
        drawn_share = drawn.get(name.removesuffix("_found"))
        lines.append(f"| {title} | {figures[name]:.1%} | {'' if drawn_share is None else f'{drawn_share:.1%}'} |")
    lines += [f"| size | {figures['size_mib']:.1f} MiB | |"]
    return "\n".join(lines)
