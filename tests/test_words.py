"""Plain words: nothing of checks/deny_list.toml is in the help, messages, docstrings, names or documents."""

import io
import json
import re
import tokenize
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kinema.cli import app

ROOT = Path(__file__).parents[1]
DENIED = tomllib.loads((ROOT / "checks" / "deny_list.toml").read_text("utf-8"))
# Captions are training data; the changelog names what was renamed; the others name what they look for.
EXEMPT = {"training/t2i/words.py", "training/t2i/scenes.py", "CHANGELOG.md", "docs/glossary.md", "tests/test_words.py"}
# Names of other libraries, and of the JPEG standard.
OTHERS_NAMES = {"ArithmeticError", "_SOF_ARITHMETIC", "tell"}
FOLDERS = ["src", "tests", "bench", "checks", "deploy", "docs", "examples", "notebooks", "training"]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*"))]
    if path.suffix in {".py", ".md", ".ipynb"} and not path.is_relative_to(ROOT / "training" / "data")
)
FILES = [path for path in FILES if path not in EXEMPT and ".ipynb_checkpoints" not in path]
NAMED = [path for path in FILES if path.startswith("src/") and path.endswith(".py")]
PATTERNS = [re.escape(phrase).replace(r"\*", r"\w*").replace(r"\ ", r"\s+") for phrase in DENIED["phrases"]]
PHRASES = re.compile(rf"\b(?:{'|'.join(PATTERNS)})\b", re.IGNORECASE)


def tokens(text: str) -> list[tokenize.TokenInfo]:
    return list(tokenize.generate_tokens(io.StringIO(text).readline))


def prose(path: str) -> str:
    """What a file says in sentences: of code its strings and comments, of a notebook its cells, else all of it."""
    text = (ROOT / path).read_text("utf-8")
    if path.endswith(".py"):
        return "\n".join(t.string for t in tokens(text) if t.type in (tokenize.STRING, tokenize.COMMENT))
    if path.endswith(".ipynb"):
        return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])
    return text


def denied_in(text: str) -> list[str]:
    return sorted({re.sub(r"\s+", " ", found[0].lower()) for found in PHRASES.finditer(text)})


def parts(name: str) -> list[str]:
    """["image", "pipeline"] of `_image_pipeline` and of `ImagePipeline`."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


@pytest.mark.parametrize("path", FILES)
def test_no_denied_phrase_is_in_a_file(path):
    assert denied_in(prose(path)) == [], "checks/deny_list.toml has the plain words"


@pytest.mark.parametrize("path", NAMED)
def test_no_denied_word_is_part_of_a_name(path):
    names = {t.string for t in tokens((ROOT / path).read_text("utf-8")) if t.type == tokenize.NAME}
    denied = {name for name in names - OTHERS_NAMES if DENIED["identifiers"].keys() & set(parts(name))}
    assert denied == set(), "checks/deny_list.toml has the plain words"


COMMANDS = [
    [],
    ["generate"],
    ["batch"],
    ["inspect"],
    ["remake"],
    ["models"],
    ["models", "pull"],
    ["serve"],
    ["bench"],
    ["doctor"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_denied_phrase_is_in_the_help(command):
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert denied_in(re.sub(r"[│╭╮╰╯─]", " ", result.output)) == []


def test_denied_words_are_found():
    assert denied_in("The painter paints\na  Still; it can be\n had.") == ["a still", "can be had", "painter"]
    assert parts("_PainterPart_v2") == ["painter", "part", "v"]
