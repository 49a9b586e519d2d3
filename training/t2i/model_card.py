"""The model card of the pocket text-to-image model, with figures from the JSON of `evaluate.py`."""

from typing import Any

from training.t2i.networks import HEIGHT, WIDTH
from training.t2i.scenes import COLOURS, GROUNDS, HOURS, STYLES, THINGS, WEATHERS

TITLES = {
    "thing_found": "object correct",
    "ground_found": "landscape correct",
    "hour_found": "time of day correct",
    "colour_found": "colour correct",
    "colour_swapped": "colour follows when its word is replaced",
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

A small text-to-image model with the classes and file layout of Stable Diffusion. It generates scenes of one small
world at {WIDTH}×{HEIGHT} pixels and is used where no larger model is available. The scripts in `training/t2i` trained
it from scratch on scenes that they rendered; no third-party images or texts were used.

- landscapes: {", ".join(GROUNDS)} (a city from the air)
- times of day: {", ".join(HOURS)}; weather: {", ".join(WEATHERS)}
- objects: {things}; in {", ".join(COLOURS)}
- styles: {", ".join(STYLES)}

Other words have no effect, and Kinema warns of them by the words in `words.json`. English only.

Euler scheduler, 12 steps, guidance 3. Zero terminal SNR, v-prediction.

## Evaluation

{_figures(record)}
"""


def _figures(record: dict[str, Any] | None) -> str:
    if record is None:
        return "Not measured yet; run `training/t2i/evaluate.py`."
    figures, drawn = record["figures"], record["judge_on_drawn_held_out_scenes"]
    lines = [
        f"{len(record['captions'])} captions with unseen combinations of object, colour, landscape and time of day,",
        f"at {record['settings']['num_inference_steps']} steps and guidance {record['settings']['guidance_scale']:g},",
        "judged by a small classifier trained on rendered scenes; the last column is its accuracy on rendered scenes.",
        "",
        "| metric | generated | rendered |",
        "| --- | --- | --- |",
    ]
    for name, title in TITLES.items():
        drawn_share = drawn.get(name.removesuffix("_found"))
        lines.append(f"| {title} | {figures[name]:.1%} | {'' if drawn_share is None else f'{drawn_share:.1%}'} |")
    lines += [f"| size | {figures['size_mib']:.1f} MiB | |"]
    return "\n".join(lines)
