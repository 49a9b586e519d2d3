"""A batch on two nodes of a Ray cluster, with the pocket model and one image that can't be read."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray", reason="ray is not installed")

from ray.cluster_utils import Cluster

SMALL = ["--width", "96", "--height", "64", "--num-frames", "4", "--num-inference-steps", "2"]


@pytest.fixture
def address(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")  # the GPUs of these nodes are numbers only
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1)
        yield cluster.address
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_batch_of_50_with_a_bad_image_makes_49_videos_and_names_the_failure(address, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "videos"
    photos.mkdir()
    noise = np.random.default_rng(0)
    for number in range(49):
        Image.fromarray(noise.integers(0, 255, (64, 96, 3), dtype=np.uint8)).save(photos / f"photo-{number:02}.png")
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    command = [sys.executable, "-m", "kinema", "batch", photos, "--out", out, "--model", "pocket", *SMALL]
    completed = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | {"KINEMA_RAY_ADDRESS": address}
    )
    assert completed.returncode == 6, completed.stderr[-3000:]
    assert len(completed.stdout.splitlines()) == len(list(out.glob("*.mp4"))) == 49
    items = json.loads((out / "summary.json").read_text())["items"]
    (failed,) = [item for item in items if item["status"] != "completed"]
    assert "broken.png" in failed["source"]
    assert "broken.png" in completed.stderr
