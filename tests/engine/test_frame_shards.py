"""A UNet whose frames are divided between processes predicts what one process does; here they are threads."""

from pathlib import Path
from threading import Thread

import pytest
import torch

from kinema.engine.fast import FastUNet
from kinema.engine.fast.frame_shards import FrameShards, ShardConnection, split_evenly
from kinema.engine.fast.tuning import tuned
from kinema.models.loading import load

CPU = torch.device("cpu")


def in_threads(count: int, work) -> list:
    """Return the results of work(rank) for each rank."""
    results = [None] * count

    def run(rank: int) -> None:
        results[rank] = work(rank)

    threads = [Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("frames", [(3, 2), (2, 2, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_exchange_and_exchange_back_keep_the_video(tmp_path: Path, frames: tuple[int, ...], dtype: torch.dtype) -> None:
    video = torch.arange(5 * 3 * 5 * 2).view(1, 5, 3, 5, 2).to(torch.float32).to(dtype)

    def work(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        shards = FrameShards(ShardConnection(str(tmp_path / "store"), "a", rank, len(frames), CPU, 30), frames)
        own = video[:, shards.own].contiguous()
        pixels = shards.to_pixels(own)
        return pixels, shards.to_frames(pixels, torch.empty_like(own))

    results = in_threads(len(frames), work)
    pixels = torch.cat([each.float() for each, _ in results], 3)
    assert torch.equal(pixels, video.view(1, 5, 1, 15, 2).float())
    assert torch.equal(torch.cat([each.float() for _, each in results], 1), video.float())


def test_gather_concatenates_in_order(tmp_path: Path) -> None:
    def work(rank: int) -> torch.Tensor:
        shards = FrameShards(ShardConnection(str(tmp_path / "store"), "a", rank, 3, CPU, 30), (2, 1, 1))
        return shards.gather(torch.full((shards.frames[rank], 2), float(rank)), shards.frames)

    for gathered in in_threads(3, work):
        assert gathered.tolist() == [[0, 0], [0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("gpu_blocks", [False, True], ids=["order of a CPU", "order of a GPU"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_divided_unet_predicts_what_one_process_does(
    tiny_svd_4_levels: Path, tmp_path: Path, count: int, gpu_blocks: bool, dtype: torch.dtype
) -> None:
    frames, channels, height, width = 7, 8, 9, 11
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    def predictions(dtype: torch.dtype, count: int) -> torch.Tensor:
        with tuned(gpu_blocks=gpu_blocks):
            unet = FastUNet(load(tiny_svd_4_levels, device="cpu", dtype=str(dtype).removeprefix("torch.")).unet)

        def work(rank: int) -> torch.Tensor:
            sizes = tuple(split_evenly(frames, count))
            shards, own = None, slice(None)
            if count > 1:
                shards = FrameShards(ShardConnection(str(tmp_path / "store"), str(dtype), rank, count, CPU, 30), sizes)
                own = shards.own
            with torch.no_grad(), tuned(gpu_blocks=gpu_blocks):
                constants = unet.constants(embedding.to(dtype), ids, image.to(dtype), frames, shards)
                return unet(sample[:, own].to(dtype), torch.tensor(0.3), constants)

        return torch.cat(in_threads(count, work), 1).float()

    embedding, image = noise(1, 1, 16), noise(1, channels, height, width)
    sample, ids = noise(1, frames, channels, height, width), torch.tensor([[6.0, 127.0, 0.02]])
    whole = predictions(torch.float32, 1)
    error = (predictions(dtype, count) - whole).norm() / whole.norm()
    own_error = (predictions(dtype, 1) - whole).norm() / whole.norm()
    assert error <= (1e-5 if dtype == torch.float32 else 1.2 * own_error)
