"""Measure the rounding error of Winograd convolutions in float16 on the pocket model's weights and activations:

    python bench/squares.py --out bench/results/pocket-squares.json

Runs on any machine. Each 3×3 convolution of the pocket model's UNet is computed in float64 from its inputs during a
generation, and again with the float16 rounding of `kinema.engine.fast.kernels.winograd`: transformed inputs and
weights, matmul results, and the output. Errors are relative to the norm of a convolution's output.
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
PARAMETERS: dict[str, Any] = {"width": 320, "height": 192, "num_frames": 4, "num_inference_steps": 4, "seed": 1}
# (outputs per tile side, interpolation points in addition to infinity).
VARIANTS = {
    "2×2, at 0 and ±1": (2, "0 1 -1"),
    "4×4, at 0, ±1 and ±2": (4, "0 1 -1 2 -2"),
    "4×4, at 0, ±2/3 and ±3/2": (4, "0 2/3 -2/3 3/2 -3/2"),
}
SCALE = 16
Line = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def line(results: int, points: str) -> Line:
    """Return the 1D transforms of inputs [n, n], weights [n, 3] and outputs [results, n].

    Toom-Cook with n − 1 points and infinity; the input transform is solved from the other two.
    """
    at = [float(Fraction(point)) for point in points.split()]
    weights, inverse = torch.zeros(len(at) + 1, 3).double(), torch.zeros(results, len(at) + 1).double()
    for i, point in enumerate(at):
        rest = torch.tensor([point - other for other in at if other != point]).double().prod()
        weights[i] = torch.tensor([1, point, point**2]).double() / rest
        inverse[:, i] = torch.tensor([point**power for power in range(results)]).double()
    weights[-1, -1] = inverse[-1, -1] = 1
    convolved = torch.zeros(results, 3, len(at) + 1).double()
    for i in range(results):
        convolved[i, :, i : i + 3] = torch.eye(3)
    both = (inverse[:, None] * weights.T[None]).flatten(0, 1)
    return torch.linalg.lstsq(both, convolved.flatten(0, 1)).solution, weights, inverse


def half(x: torch.Tensor) -> torch.Tensor:
    return x.half().double()


def winograd_conv2d(x: torch.Tensor, weight: torch.Tensor, variant: Line) -> torch.Tensor:
    """Convolve [n, c, h, w] with 3×3 weights and padding 1 in Winograd form, rounding to float16 as the kernel does."""
    pixels, weights, inverse = variant
    results, tile = inverse.shape
    high, wide = x.shape[2:]
    padded = F.pad(x, (1, 1 + (-wide % results), 1, 1 + (-high % results)))
    tiles = padded.unfold(2, tile, results).unfold(3, tile, results)
    transformed_pixels = half(torch.einsum("ai,bj,nctsij->abntsc", pixels, pixels, tiles) / SCALE)
    transformed_weights = half(torch.einsum("ai,bj,ncij->abnc", weights, weights, weight))
    out = half(torch.einsum("abntsc,abkc->abntsk", transformed_pixels, transformed_weights)) * SCALE
    out = torch.einsum("ia,jb,abntsk->nktisj", inverse, inverse, out)
    return half(out.flatten(4, 5).flatten(2, 3)[:, :, :high, :wide])


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, default=EXAMPLE)
    parser.add_argument("--out", type=Path, required=True, help="JSON file for the results")
    args = parser.parse_args()
    pipeline = load("pocket", device="cpu", dtype="float32", engine="reference")
    variants = {name: line(*variant) for name, variant in VARIANTS.items()}
    errors: dict[str, list[float]] = {"direct convolution, result rounded": [], **{name: [] for name in variants}}

    def compare(module: Any, inputs: Any, _: Any) -> None:
        x, weight = half(inputs[0][:2]), half(module.weight)
        true = F.conv2d(x, weight, None, 1, 1)
        outputs = [half(true), *(winograd_conv2d(x, weight, variant) for variant in variants.values())]
        for results, each in zip(errors.values(), outputs, strict=True):
            results.append(float((each - true).norm() / true.norm()))

    for block in (*pipeline.unet.down_blocks, pipeline.unet.mid_block, *pipeline.unet.up_blocks):
        for resnet in block.resnets:
            for conv in (resnet.spatial_res_block.conv1, resnet.spatial_res_block.conv2):
                conv.register_forward_hook(compare)
    for _ in generate(pipeline, open_image(args.image), VideoRequest.checked(model="pocket", **PARAMETERS)):
        pass
    result = {
        "what": "errors of the pocket model's 3×3 convolutions in float16, relative to the output's norm",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": {"torch": torch.__version__},
        "parameters": PARAMETERS,
        "convolutions": len(errors["direct convolution, result rounded"]),
        "errors": {
            name: {"median": float(f"{statistics.median(each):.3g}"), "greatest": float(f"{max(each):.3g}")}
            for name, each in errors.items()
        },
    }
    args.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
