"""How to install the packages of an extra, for messages about a missing one."""

from __future__ import annotations


def install_command(extra: str) -> str:
    """Return the command that installs an extra, as in the README; it runs in a clone of Kinema's repository."""
    return f"pip install -e '.[{extra}]' -c constraints.txt"


def install_remedy(extra: str) -> str:
    """Return the end of a message about missing packages, such as "run in your clone of Kinema: pip install …"."""
    return f"run in your clone of Kinema: {install_command(extra)}"
