import io
import sys
from pathlib import Path

import pytest
from PIL import Image
from server_process import start, stop
from server_work import FAULTS
from webhook_receiver import SECRET, receiving

sys.path.append(str(Path(__file__).parents[1] / "media"))  # for image_attacks


@pytest.fixture(scope="session")
def shared_receiver():
    """The receiver to which the shared server may send webhooks."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def server(tmp_path_factory, shared_receiver):
    """A server shared by all tests that need no settings of their own."""
    data = tmp_path_factory.mktemp("served") / "data"
    running = start(data, models=FAULTS, webhook_hosts=shared_receiver.host, webhook_secret=SECRET)
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
