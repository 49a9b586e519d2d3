"""The code of the README, the how-tos and the other guides runs as written, in a folder with the files that it names.

Each fenced block of bash, python, javascript or html runs, unless a comment `<!-- not run: reason -->` precedes it. The
blocks of a page run in order in one folder. The pocket model makes four frames of 96×64 in two steps; the server's work
is a stub. A text block after "You see:" must be in the output of the block before it.
"""

import ast
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from kinema import errors
from kinema.cli import main
from kinema.jobs.job import QUEUE_FAILURE_CODES, Failure
from kinema.models.catalog import CATALOG, IMAGE_MODELS, request_for
from kinema.models.memory_plan import GIB, plan_memory
from kinema.serving.schemas import failure_response

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "serving"))
from server_process import free_port, start, stop  # noqa: E402
from webhook_receiver import SECRET  # noqa: E402

PAGES = ["README.md", "docs/tutorial.md", "docs/troubleshooting.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "how-to").glob("*.md"))
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?(?P<fence>```+)(?P<language>\w*)\n(?P<code>.*?)^(?P=fence)$",
    re.MULTILINE | re.DOTALL,
)
MANY_VIDEOS = [
    f"docs/how-to/{name}.md"
    for name in (
        "8gb-gpu",
        "batches",
        "extend-a-video",
        "folder-of-photos",
        "own-fine-tune",
        "portrait-photos",
        "several-seeds",
    )
]
SLOW = pytest.mark.slow
OWN_MODEL = "docs/how-to/own-fine-tune.md"
RUN = ("bash", "python", "javascript", "html")
SHOWN = ("text", "json", "nginx")
NOT_RUN = {
    "downloads a model": 3,
    "installs packages": 5,
    "needs a GPU": 2,
    "needs a completed video": 1,
    "needs a notebook": 1,
    "needs the extra upscale": 2,
    "needs a server with API keys": 1,
    "needs the proxy": 1,
    "reads stdin": 1,
    "starts a cluster": 2,
    "starts a server": 10,
}
SERVER = "http://localhost:3000"
HOOK_PORT = "8087"
SMALL = {"width": 96, "height": 64, "num_frames": 4, "num_inference_steps": 2}


class Block(NamedTuple):
    """A fenced block; `expected` is the output that the page shows for it."""

    language: str
    code: str
    reason: str | None
    expected: str


def blocks(page):
    text = (ROOT / page).read_text("utf-8")
    matches = list(FENCE.finditer(text))
    found = []
    for match, following in zip(matches, [*matches[1:], None], strict=True):
        between = text[match.end() : following.start()].strip() if following else ""
        expected = following["code"] if following and between == "You see:" else ""
        found.append(Block(match["language"], match["code"], match["reason"], expected))
    return found


class QuietHandler(SimpleHTTPRequestHandler):
    """Logs nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a web page of another origin."""
    return tmp_path_factory.mktemp("site")


@pytest.fixture(scope="module")
def origin(site):
    """The origin of that page."""
    with ThreadingHTTPServer(("localhost", 0), partial(QuietHandler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://localhost:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def hook_port():
    """A port that is free, unlike perhaps that of the page."""
    return str(free_port())


@pytest.fixture(scope="module")
def url(origin, hook_port, tmp_path_factory):
    """The URL of a server with stub work, which accepts the page, the model and the receiver that the how-tos name."""
    data = tmp_path_factory.mktemp("how-to-server") / "data"
    running = start(
        data, cors_origins=origin, models="owner/name@v2", webhook_hosts=f"localhost:{hook_port}", webhook_secret=SECRET
    )
    yield running.url
    stop(running)


@pytest.fixture
def folder(tmp_path, tiny_svd, monkeypatch):
    """The current folder, with the files that the pages name; the environment selects the pocket model on the CPU."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "photos").mkdir()
    for image, name in {"rocket.jpg": "rocket.jpg", "cat.png": "cat.jpg"}.items():
        shutil.copy(ROOT / "examples" / image, tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("Not an image.")
    shutil.copytree(tiny_svd, tmp_path / "my-svd")
    defaults = next(block.code for block in blocks(OWN_MODEL) if block.language == "json")
    (tmp_path / "my-svd" / "kinema.json").write_text(defaults)
    for name in [name for name in os.environ if name.startswith("KINEMA_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("KINEMA_MODEL", "pocket")
    monkeypatch.setenv("KINEMA_DEVICE", "cpu")
    monkeypatch.setenv("KINEMA_WEBHOOK_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    for name, value in SMALL.items():
        monkeypatch.setitem(CATALOG["pocket"].defaults, name, value)
    monkeypatch.setitem(IMAGE_MODELS["pocket-t2i"].defaults, "image_num_inference_steps", 2)
    return tmp_path


def run(block, url, capfd):
    """Run a block and return its output."""
    code = block.code.replace(SERVER, url)
    capfd.readouterr()
    match block.language:
        case "python":
            Path("example.py").write_text(code)
            if "import kinema" in code:  # here, as importing torch takes seconds
                runpy.run_path("example.py", run_name="__main__")
            else:
                subprocess.run([sys.executable, "example.py"], check=True)
        case "bash":
            commands = [shlex.split(line, comments=True) for line in code.splitlines()]
            if all(words[:1] == ["kinema"] for words in commands):  # likewise
                for words in commands:
                    files = [sorted(map(str, Path().glob(word))) or [word] for word in words[1:]]
                    assert main([file for found in files for file in found]) == 0
            else:
                code = code.replace("curl ", "curl -sS --fail ")
                subprocess.run(["bash", "-euo", "pipefail", "-c", code], check=True)
        case "javascript":
            Path("example.mjs").write_text(code)
            subprocess.run(["node", "example.mjs"], check=True)
    return capfd.readouterr().out


@pytest.mark.filterwarnings("ignore:.* was trained on:UserWarning")  # of the size
@pytest.mark.parametrize("page", [pytest.param(page, marks=SLOW) if page in MANY_VIDEOS else page for page in PAGES])
def test_code_of_page_runs(page, folder, hook_port, capfd, request):
    runnable = [block for block in blocks(page) if block.language in RUN[:3] and block.reason is None]
    if any(block.language == "javascript" for block in runnable) and shutil.which("node") is None:
        pytest.skip("node is not installed")
    url = request.getfixturevalue("url") if any(SERVER in block.code for block in runnable) else ""
    for block in runnable:
        output = run(block._replace(code=block.code.replace(HOOK_PORT, hook_port)), url, capfd)
        assert block.expected in output


def test_blocks_are_run_or_say_why_not():
    found = [block for page in PAGES for block in blocks(page)]
    assert {block.language for block in found if block.reason is None} <= {*RUN, *SHOWN}
    assert {block.language for block in found if block.reason} <= {*RUN}
    assert Counter(block.reason for block in found if block.reason) == NOT_RUN


@pytest.mark.browser
def test_page_of_another_origin_makes_a_video(chromium, folder, url, site, origin):
    (html,) = [block.code for block in blocks("docs/how-to/from-javascript.md") if block.language == "html"]
    (site / "index.html").write_text(html.replace(SERVER, url))
    page = chromium.new_page()
    page.goto(origin)
    page.set_input_files("#image", "examples/rocket.jpg")
    page.wait_for_function("document.querySelector('#video').readyState >= 2")
    assert page.inner_text("#status") == "completed, 100%"
    page.close()


def error_classes(base=errors.KinemaError):
    return [base, *(found for kind in base.__subclasses__() for found in error_classes(kind))]


def test_page_about_errors_has_every_error_with_its_status():
    text = (ROOT / "docs" / "how-to" / "handle-errors.md").read_text("utf-8")
    kinds = [kind for kind in error_classes()[1:] if kind.__module__ == "kinema.errors"]
    missing = [kind.__name__ for kind in kinds if f"`{kind.__name__}`" not in text and f"`{kind.code}`" not in text]
    assert missing == []
    assert [code for code in QUEUE_FAILURE_CODES if f"`{code}`" not in text] == []
    statuses = {kind.code: failure_response(Failure(kind.code, ""))[0] for kind in kinds}
    for row in re.findall(r"^\| (\d{3} .+?) \|", text, re.MULTILINE):
        status = int(row[:3])
        assert {statuses.get(code, status) for code in re.findall(r"`(\w+)`", row)} == {status}


def templates():
    """Return a pattern for each long string of the package that could be a message."""
    patterns = []
    for path in sorted((ROOT / "src" / "kinema").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.JoinedStr(values=values):
                    parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in values]
                case ast.Constant(value=str(text)):
                    parts = [re.sub(r"\{\w+(![ar])?(:[^}]*)?\}|%s", "\0", text)]
                case _:
                    continue
            if len("".join(parts).replace("\0", "")) >= 14:
                patterns.append(re.escape("".join(parts)).replace("\0", ".*"))
    return re.compile("|".join(patterns))


def test_quoted_messages_are_those_of_the_program():
    known = templates()
    shown = [block.code for block in blocks("docs/troubleshooting.md") if block.language == "text"]
    lines = "".join(shown).splitlines()
    assert len(lines) > 15
    assert [line for line in lines if not known.fullmatch(line)] == []


def test_memory_plans_of_the_page_are_those_of_the_planner():
    weights, request = CATALOG["svd-xt"].weights_bytes, request_for(model="svd-xt")
    text = (ROOT / "docs" / "how-to" / "8gb-gpu.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) GiB \| `(\w+)`, (\d+) \| `(\w+)`, (\d+) \|$", text, re.MULTILINE)
    assert len(rows) == 4
    for gigabytes, *shown in rows:
        for fast, name, chunk in [(True, *shown[:2]), (False, *shown[2:])]:
            plan = plan_memory(
                weights, width=request.width, height=request.height, num_frames=request.num_frames, guided=True,
                dtype_bytes=2, free_bytes=int(gigabytes) * GIB, fast=fast,
            )  # fmt: skip
            assert (plan.name, plan.decode_chunk_size) == (name, int(chunk))
