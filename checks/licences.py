"""Check that each installed package has a licence that checks/licences.toml allows. Run by `make check`; offline.

pip-licenses reads the metadata of the packages: their SPDX expression, else their classifiers, else the text of the
field "License". --environment checks another virtual environment than that of this Python.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

RULES = Path(__file__).with_suffix(".toml")
UNKNOWN = "UNKNOWN"
REMEDY = "use another package, or allow it in checks/licences.toml, with a reason"
# In the order in which they count.
SOURCES = ("License-Expression", "License-Classifier", "License-Metadata")


def main() -> int:
    """Print every fault found; return 1 if there is one, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, metavar="FOLDER", help="the virtual environment to check")
    environment = parser.parse_args().environment
    packages = installed(sys.executable if environment is None else str(environment / "bin" / "python"))
    found = list(faults(packages, tomllib.loads(RULES.read_text("utf-8"))))
    for fault in found:
        print(fault)
    print(f"licences of {len(packages)} packages checked")
    return 1 if found else 0


def installed(python: str) -> list[dict[str, str]]:
    """Return name, version and licences of each package that an interpreter can import, as pip-licenses has them."""
    command = [
        sys.executable,
        "-m",
        "piplicenses",
        f"--python={python}",
        "--from=all",
        "--with-system",
        "--format=json",
    ]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 - our own interpreter
    packages: list[dict[str, str]] = json.loads(output)
    return packages


def faults(packages: list[dict[str, str]], rules: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each package whose licence is not allowed."""
    for package in packages:
        name, licence = _normalized(package["Name"]), licence_of(package)
        if all(part in rules["allowed"] for part in parts(licence, rules["names"])):
            continue
        exceptions = [rule for pattern, rule in rules["packages"].items() if fnmatchcase(name, pattern)]
        if not any(fnmatchcase(licence, rule["says"]) for rule in exceptions):
            yield f"{name} {package['Version']} has the licence {licence[:80]!r}, which is not allowed: {REMEDY}"


def licence_of(package: dict[str, str]) -> str:
    """Return what a package says about its licence, from the most precise source; "UNKNOWN" if it says nothing."""
    return next((value for source in SOURCES if (value := package.get(source, UNKNOWN)) != UNKNOWN), UNKNOWN)


def parts(licence: str, names: dict[str, str]) -> Iterator[str]:
    """Yield the single licences of an SPDX expression or of a list of classifiers, as SPDX identifiers where known."""
    for single in licence.split("; "):
        if single in names:
            yield names[single]
        else:
            yield from re.split(r" +(?:AND|OR) +", re.sub(r"[()]", "", single))


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.exit(main())
