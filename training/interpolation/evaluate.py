r"""Evaluate the network that makes frames between frames, on films that training never saw, and report what is met:

    python -m training.interpolation.evaluate --clips FOLDER --out bench/results/interpolation.json
    python -m training.interpolation.evaluate --size 1024x576 --frames 25 --device cuda --out speed.json

Every second frame of each film is left out and made again, from its neighbours: by the network, by blending, and by
warping along the optical flow of OpenCV (DIS, in both directions), sampled bilinearly and bicubically. `clips.py` names
the films.
Without `--clips`, only the speed is measured. Exit code 1 means that a threshold is not met.
"""

import argparse
import datetime
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from kinema.benchmark.measure import machine
from kinema.engine.interpolation import Interpolation
from kinema.models.frame_interpolator import WEIGHTS_FILE, FrameInterpolator
from training.interpolation.clips import CLIPS, read_triplets
from training.interpolation.dis_flow import warped_by_flow

ABOVE_BLENDING, ABOVE_FLOW = 2.0, 0.5  # dB
MOST_MIB = 2.0


def psnr(frame: np.ndarray, target: np.ndarray) -> float:
    """Return the PSNR in dB of a frame rounded to uint8, at most 60."""
    error = (np.clip(np.rint(frame), 0, 255).astype(np.float64) - target) ** 2
    return float(-10 * np.log10(max(1e-6, error.mean() / 255**2)))


@torch.inference_mode()
def restored(network: FrameInterpolator, first: np.ndarray, second: np.ndarray, device: str) -> np.ndarray:
    """Return the frame between two, float in 0…255."""
    pair = [torch.from_numpy(f).to(device).permute(2, 0, 1)[None].float() / 255 for f in (first, second)]
    frame = network(*pair, torch.tensor([0.5], device=device))
    return (frame[0].permute(1, 2, 0) * 255).cpu().numpy()


def evaluate_clip(network: FrameInterpolator, path: Path, most: int, device: str) -> dict[str, float]:
    """Return the mean PSNR of the restored frames by each method."""
    rows = []
    for first, between, second in read_triplets(path, most):
        blended = (first.astype(np.float32) + second) / 2
        bilinear, bicubic = warped_by_flow(first, second)
        rows.append(
            {
                "network": psnr(restored(network, first, second, device), between),
                "blending": psnr(blended, between),
                "dis_flow": psnr(bilinear, between),
                "dis_flow_bicubic": psnr(bicubic, between),
            }
        )
    means = {name: round(statistics.mean(row[name] for row in rows), 2) for name in rows[0]}
    return {"frames": len(rows), **means}


def measure_speed(width: int, height: int, frames: int, device: str) -> dict[str, object]:
    """Return the seconds of one stage that doubles the frames, the median of five after one that is not counted.

    `cpu_seconds` does not count what other programs of the machine do.
    """
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (frames, height, width, 3), np.uint8)
    stage = Interpolation(2, torch.device(device))
    seconds, cpu = [], []
    for _ in range(6):
        began, cpu_began = time.perf_counter(), time.process_time()
        made = sum(len(chunk) for chunk in stage.run(iter([video])))
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": name, "width": width, "height": height, "frames": frames, "made": made,
        "first_seconds": round(seconds[0], 3), "seconds": round(statistics.median(seconds[1:]), 3),
        "all_seconds": [round(s, 3) for s in seconds[1:]], "cpu_seconds": round(statistics.median(cpu[1:]), 3),
        "load_average": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="folder with the films of clips.py")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_FILE)
    parser.add_argument("--most", type=int, default=60, help="restored frames of each film, evenly spread")
    parser.add_argument("--size", default="288x160", help="of the frames whose speed is measured")
    parser.add_argument("--frames", type=int, default=14, help="number of the frames whose speed is measured")
    parser.add_argument("--most-seconds", type=float, help="threshold of the speed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    mib = args.weights.stat().st_size / 2**20
    record: dict[str, object] = {
        "what": "every second frame of real films restored, PSNR in dB; and the speed of doubling the frames",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(torch.device(args.device)),
        "weights_mib": round(mib, 2),
    }
    met = {"weights": mib <= MOST_MIB}
    if args.clips:
        network = FrameInterpolator()
        network.load_state_dict({name: value.float() for name, value in load_file(args.weights).items()})
        network.to(args.device).eval()
        rows = {}
        for name in CLIPS:
            rows[name] = evaluate_clip(network, args.clips / name, args.most, args.device)
            print(name, rows[name], flush=True)
        mean = {key: round(statistics.mean(row[key] for row in rows.values()), 2) for key in next(iter(rows.values()))}
        record |= {"rows": rows, "mean": mean}
        met["blending"] = mean["network"] >= mean["blending"] + ABOVE_BLENDING
        for name in ("dis_flow", "dis_flow_bicubic"):
            met[name] = mean["network"] >= mean[name] + ABOVE_FLOW
    width, height = (int(side) for side in args.size.split("x"))
    speed = measure_speed(width, height, args.frames, args.device)
    if args.most_seconds:
        met["speed"] = speed["seconds"] <= args.most_seconds
    record |= {"speed": speed, "met": met}
    print(json.dumps(record, indent=1))
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(not all(met.values()))


if __name__ == "__main__":
    main()
