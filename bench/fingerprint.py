"""Print hashes and times of the fast engine's step and decoding, to compare two checkouts on one machine:

    python bench/fingerprint.py PATH/TO/OLD/CHECKOUT svd-xt cuda
    python bench/fingerprint.py . svd-xt cuda

The networks have random weights from a fixed seed. A change that does not affect results gives the same hashes. To
compare times, alternate between the checkouts.
"""

import hashlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROUNDS = 6


def main() -> None:
    root, model, device = Path(sys.argv[1]).resolve(), sys.argv[2], torch.device(sys.argv[3])
    sys.path[:0] = [str(root / folder) for folder in ("src", "bench", "")]
    import forward
    import kinema
    from kinema.engine.fast import FastDecoder, FastUNet

    assert kinema.__file__.startswith(str(root)), f"{kinema.__file__} is not of the checkout {root}"
    on_gpu = device.type == "cuda"
    width, height, frames = forward.SIZES[model]

    def measure(name: str, work: Callable[[], torch.Tensor]) -> None:
        digest = hashlib.sha256(work().float().cpu().numpy().tobytes()).hexdigest()[:24]
        times = []
        for _ in range(ROUNDS if on_gpu else 1):
            started = time.perf_counter()
            work().flatten()[:1].cpu()  # waits for the device
            times.append(1000 * (time.perf_counter() - started))
        print(f"{name}: {digest}, {statistics.median(times):.2f} ms", flush=True)

    with torch.inference_mode():
        unet, vae = forward.networks(model, device, torch.float16 if on_gpu else torch.float32)
        generator = torch.Generator().manual_seed(3)
        for network in (unet.to(device), vae.to(device)):
            for parameter in network.parameters():
                if parameter.dim() < 2:  # norms and biases start as 1 and 0, which hides errors
                    parameter.add_((0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter))
        given = forward.inputs(unet, frames=frames, width=width, height=height, guided=True)
        sigma = torch.tensor(1.0, device=device)
        parameters = FastUNet.__init__.__kwdefaults__
        low_precision = "fp8" if "fp8" in parameters else "in_bytes"  # its name in earlier checkouts
        for enabled in (False, True) if on_gpu else (False,):
            network = FastUNet(unet, **{low_precision: enabled})
            constants = network.constants(given["embedding"], given["time_ids"], given["image_latents"], frames)
            measure(
                "fp8 step" if enabled else "step",
                lambda network=network, constants=constants: network(given["sample"], sigma, constants),
            )
        decoder = FastDecoder(vae)
        measure("decoding", lambda: decoder(given["latents"]))


if __name__ == "__main__":
    main()
