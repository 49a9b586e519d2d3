"""Run the commands of docs/gallery.md, which write its pictures. Each command writes one picture.

python docs/gallery.py             # all of them
python docs/gallery.py motion fit  # those whose names start so
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from kinema.cli import main

ROOT = Path(__file__).parents[1]
MAX_BYTES = 3_000_000


def commands(text: str) -> dict[str, list[str]]:
    """Return the arguments of each `kinema generate` in the page's code blocks, by the path of its picture."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    parsed = [shlex.split(line)[1:] for line in lines if line.startswith("kinema generate ")]
    return {arguments[arguments.index("-o") + 1]: arguments for arguments in parsed}


def make_pictures(prefixes: list[str]) -> int:
    """Make the pictures whose names start with one of the prefixes; all without prefixes. Return the exit code."""
    os.chdir(ROOT)  # the commands have paths from the root
    found = commands((ROOT / "docs" / "gallery.md").read_text(encoding="utf-8"))
    for path, arguments in found.items():
        if not prefixes or Path(path).name.startswith(tuple(prefixes)):
            code = main([*arguments, "--force"])
            if code:
                return code
    total = sum(Path(path).stat().st_size for path in found)
    if total > MAX_BYTES:
        sys.exit(f"the pictures have {total} bytes, more than {MAX_BYTES}")
    return 0


if __name__ == "__main__":
    sys.exit(make_pictures(sys.argv[1:]))
