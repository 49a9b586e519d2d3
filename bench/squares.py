"""What convolutions in fewer multiplications lose in float16, with the pocket model's trained weights and own pixels:

    python bench/squares.py --out bench/results/pocket-squares.json

On any machine: every 3×3 convolution of the pocket's UNet is computed in float64, from the pixels that reach it as a
video is made, and again with all rounded that `kinema.engine.fast.winograd` rounds to float16: sums before the
products, products, and the result. Errors are relative to the norm of a convolution's result.
"""

import argparse
import datetime
import json
import statistics
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from kinema.engine import generate
from kinema.media.image import open_image
from kinema.models.loading import load
from kinema.values import VideoRequest

EXAMPLE = Path(__file__).parent.parent / "examples" / "rocket.jpg"
SETTINGS: dict[str, Any] = {"width": 320, "height": 192, "num_frames": 4, "num_inference_steps": 4, "seed": 1}
# Results along a side, and the points, beside infinity, at which polynomials are multiplied.
WAYS = {
    "2×2, at 0 and ±1": (2, "0 1 -1"),
    "4×4, at 0, ±1 and ±2": (4, "0 1 -1 2 -2"),
    "4×4, at 0, ±2/3 and ±3/2": (4, "0 2/3 -2/3 3/2 -3/2"),
}
SMALLER = 16
Line = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def line(results: int, points: str) -> Line:
    """What a line's pixels, its three weights and its products are multiplied by: [n, n], [n, 3] and [results, n].

    Products at n − 1 points and infinity, interpolated: what pixels are multiplied by follows from the other two.
    """
    at = [float(Fraction(point)) for point in points.split()]
    weights, together = torch.zeros(len(at) + 1, 3).double(), torch.zeros(results, len(at) + 1).double()
    for i, point in enumerate(at):
        rest = torch.tensor([point - other for other in at if other != point]).double().prod()
        weights[i] = torch.tensor([1, point, point**2]).double() / rest
        together[:, i] = torch.tensor([point**power for power in range(results)]).double()
    weights[-1, -1] = together[-1, -1] = 1
    convolved = torch.zeros(results, 3, len(at) + 1).double()
    for i in range(results):
        convolved[i, :, i : i + 3] = torch.eye(3)
    both = (together[:, None] * weights.T[None]).flatten(0, 1)
    return torch.linalg.lstsq(both, convolved.flatten(0, 1)).solution, weights, together


def half(x: torch.Tensor) -> torch.Tensor:
    return x.half().double()


def in_squares(x: torch.Tensor, weight: torch.Tensor, way: Line) -> torch.Tensor:
    """A convolution of 3×3 that keeps the size, [n, c, h, w], from what is rounded."""
    pixels, weights, together = way
    results, seen = together.shape
    high, wide = x.shape[2:]
    padded = F.pad(x, (1, 1 + (-wide % results), 1, 1 + (-high % results)))
    squares = padded.unfold(2, seen, results).unfold(3, seen, results)
    spread = half(torch.einsum("ai,bj,nctsij->abntsc", pixels, pixels, squares) / SMALLER)
    by = half(torch.einsum("ai,bj,ncij->abnc", weights, weights, weight))
    made = half(torch.einsum("abntsc,abkc->abntsk", spread, by)) * SMALLER
    made = torch.einsum("ia,jb,abntsk->nktisj", together, together, made)
    return half(made.flatten(4, 5).flatten(2, 3)[:, :, :high, :wide])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    args = parser.parse_args()
    pipeline = load("pocket", device="cpu", dtype="float32", engine="reference")
    ways = {name: line(*way) for name, way in WAYS.items()}
    errors: dict[str, list[float]] = {"all multiplications, the result rounded": [], **{name: [] for name in ways}}

    def compare(module: Any, given: Any, _: Any) -> None:
        x, weight = half(given[0][:2]), half(module.weight)
        true = F.conv2d(x, weight, None, 1, 1)
        made = [half(true), *(in_squares(x, weight, way) for way in ways.values())]
        for found, each in zip(errors.values(), made, strict=True):
            found.append(float((each - true).norm() / true.norm()))

    for block in (*pipeline.unet.down_blocks, pipeline.unet.mid_block, *pipeline.unet.up_blocks):
        for resnet in block.resnets:
            for conv in (resnet.spatial_res_block.conv1, resnet.spatial_res_block.conv2):
                conv.register_forward_hook(compare)
    for _ in generate(pipeline, open_image(args.image), VideoRequest.checked(model="pocket", **SETTINGS)):
        pass
    result = {
        "what": "errors of 3×3 convolutions in float16, relative to the result's norm: the pocket's weights and pixels",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"torch": torch.__version__},
        "settings": SETTINGS,
        "convolutions": len(errors["all multiplications, the result rounded"]),
        "errors": {
            name: {"median": float(f"{statistics.median(each):.3g}"), "greatest": float(f"{max(each):.3g}")}
            for name, each in errors.items()
        },
    }
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
