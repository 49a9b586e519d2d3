"""The actor on a node and the bridge, without a cluster."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("ray", reason="ray is not installed")

from ray._private.services import get_node_to_connect_for_driver

from kinema.scale.bridge import settings_for_nodes
from kinema.scale.cluster_check import explain
from kinema.scale.scratch_folder import ScratchFolder
from kinema.settings import SECRETS, Settings

ABANDONED = """
import time
from kinema.scale import actor
actor.ABANDONED_SECONDS = 1
worker = actor.WorkerActor("version", {})
for _ in range(8):
    time.sleep(0.25)
    worker.ping()
print("pinged", flush=True)
time.sleep(100)
"""
# Ray sets the variable in an actor's process unless the node has it.
THREADS = """
import os
os.environ.setdefault("OMP_NUM_THREADS", "1")
from kinema.scale.actor import WorkerActor
WorkerActor("version", {})
print(os.environ.get("OMP_NUM_THREADS"))
"""
KILLED = """
import os, signal
from kinema.scale.scratch_folder import ScratchFolder
ScratchFolder("kinema-test-")
os.kill(os.getpid(), signal.SIGKILL)
"""


def run(code, folder):
    environment = os.environ | {"TMPDIR": str(folder)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_actor_without_pings_of_the_bridge_ends_and_deletes_its_files(tmp_path):
    ended = run(ABANDONED, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "pinged\n", "")
    assert list(tmp_path.glob("kinema-worker-*")) == []


@pytest.mark.parametrize("of_node", [None, "1", "3"])
def test_worker_process_has_the_number_of_threads_of_its_node(of_node, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if of_node is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", of_node)
    ended = run(THREADS, tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{of_node}\n", "")


def test_folder_of_a_killed_process_is_deleted_and_one_in_use_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    used = ScratchFolder("kinema-test-")
    run(KILLED, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    new = ScratchFolder("kinema-test-")
    assert set(tmp_path.iterdir()) == {used.path, new.path}
    for folder in (used, new):
        folder.delete()
    assert list(tmp_path.iterdir()) == []


def test_server_on_a_machine_that_is_no_node_is_told_how_to_make_it_one(monkeypatch):
    monkeypatch.setattr("ray._private.services.find_node_ids", set)
    with pytest.raises(RuntimeError) as raised:
        get_node_to_connect_for_driver(None, timeout_seconds=0)
    problem = "this machine is no node of the Ray cluster at head:6379; run on it: ray start --address head:6379"
    assert explain(raised.value, "head:6379") == f"{problem} --num-cpus 0 --num-gpus 0"


def test_nodes_get_settings_but_no_secrets(monkeypatch):
    for name in Settings.model_fields:
        monkeypatch.setenv(f"KINEMA_{name.upper()}", "a value")
    names = settings_for_nodes().keys()
    assert "KINEMA_DTYPE" in names
    assert {f"KINEMA_{name.upper()}" for name in SECRETS} & names == set()
