import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from server_process import start, stop
from server_work import FAULTS

sys.path.append(str(Path(__file__).parents[1] / "media"))  # for image_attacks


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A server shared by all tests that need no settings of their own."""
    running = start(tmp_path_factory.mktemp("served") / "data", models=FAULTS)
    yield running
    stop(running)


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def png():
    data = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(data, "PNG")
    return data.getvalue()
