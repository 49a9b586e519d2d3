"""Change one implementation at a time, by values of `kinema.engine.fast.tuning`, and measure the step of SVD-XT:

    python bench/ablation.py --out bench/results/h100
    python bench/ablation.py --out /tmp/tiny --tiny --device cpu

Weights are random. ablation.json is written after each variant. Errors are relative to diffusers' step.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch

import forward as parts
from common import GEMM_TILES, Bench, run
from kinema.engine.fast.tuning import NEVER, tuned, tuning


def variants(bench: Bench) -> dict[str, tuple[AbstractContextManager[Any], bool]]:
    """Return each variant's context, and whether it affects the decoding too."""
    own_conv = {"hopper_temporal_channels": NEVER, "hopper_temporal_residual_channels": NEVER}
    own_order = {"hopper_attention_pixels": NEVER, "fused_head_channels": NEVER, "attention_backends": ()}
    tiles = {} if bench.device.type == "cpu" else GEMM_TILES
    return {
        "default": (tuned(), True),
        "3×3 convolutions without Winograd": (tuned(winograd_channels=NEVER), False),
        "3×3 convolutions by cuDNN": (tuned(hopper_conv_width=NEVER), True),
        "temporal convolutions by plain Triton": (tuned(**own_conv), True),
        "upsampling by interpolation": (tuned(transposed_upsample=False), True),
        "cudnn benchmark": (torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=False), True),
        **{
            f"fused gate GEMM, {tile}": (
                tuned(hopper_geglu_steps=NEVER, gemm_tiles={**tuning().gemm_tiles, 2: tile}),
                False,
            )
            for tile in tiles.get(2, ())
        },
        "no GEMM kernels of Kinema": (tuned(matmul_kernels=False), True),
        "attention by cuDNN": (tuned(hopper_attention_pixels=NEVER), False),
        "attention by torch's default": (tuned(**own_order), True),
        "temporal attention by torch": (tuned(plain=frozenset({"temporal_attention"})), False),
        "layer norm by torch": (
            tuned(plain=frozenset({"layer_norm", "add_layer_norm", "mix_layer_norm"})),
            False,
        ),
    }


def full(bench: Bench) -> dict[str, Any]:
    """Return ms of the step and, if affected, of the decoding, in float16."""
    bench.make_networks()
    true = bench.stock["step"]().cpu()
    result: dict[str, Any] = {}
    for name, (context, decodes) in variants(bench).items():
        if bench.seconds() > bench.args.seconds:
            break

        def one(context: AbstractContextManager[Any] = context, also: int = decodes) -> dict[str, Any]:
            with context:  # the networks store no choice, so the existing instances use these values
                row: dict[str, Any] = {"step_ms": bench.ms(bench.step, 3)}
                row["step_from_diffusers"] = parts.relative_error(bench.step().cpu(), true)
                if also:
                    row["decode_ms"] = bench.ms(bench.decode, 2)
            return row

        bench.guarded(name, one, result)
    return result


def fp8(bench: Bench) -> dict[str, Any]:
    """Return ms of the step in fp8 with other tile configurations of GEMMs."""
    bench.make_networks(fp8=True)
    result: dict[str, Any] = {"default": bench.ms(bench.step, 3)}
    for tile in GEMM_TILES[1] if bench.device.type == "cuda" else ():
        with tuned(gemm_tiles={**tuning().gemm_tiles, 1: tile}):
            bench.guarded(f"GEMM tiles {tile}, step_ms", lambda: bench.ms(bench.step, 3), result)
    return result


if __name__ == "__main__":
    run("ablation", __doc__, {"full": full, "fp8": fp8}, groups=("full",))
