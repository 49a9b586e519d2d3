"""Names of partial files. Every file is written under such a name and renamed when it is complete.

A partial file is left only if its writer dies; whoever owns the folder deletes it by its name.
"""

import re
import secrets
from pathlib import Path

PREFIX = ".part-"
PATTERN = re.compile(r"\.part-[0-9a-f]{8}(-.+)?")


def partial_path(path: Path, suffix: str = "") -> Path:
    """Return a new hidden path beside `path`, ending in `suffix`."""
    return path.with_name(f"{PREFIX}{secrets.token_hex(4)}{suffix}")
