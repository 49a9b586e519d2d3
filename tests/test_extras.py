"""Messages about missing packages name an extra that exists, and the command of the documents."""

import re
import tomllib
from pathlib import Path

from kinema.extras import install_command

ROOT = Path(__file__).parents[1]
NAMED = {
    extra
    for path in (ROOT / "src").rglob("*.py")
    for extra in re.findall(r"""install_(?:command|remedy)\(["'](\w+)["']\)""", path.read_text("utf-8"))
}


def test_named_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {"server", "safety", "s3", "scale", "trust", "upscale"} <= NAMED <= extras.keys()


def test_command_is_that_of_the_readme():
    assert f"\n{install_command('server')}\n" in (ROOT / "README.md").read_text("utf-8")


def test_no_other_message_has_a_command_of_its_own():
    found = [path.name for path in (ROOT / "src").rglob("*.py") if "kinema[" in path.read_text("utf-8")]
    assert found == []
