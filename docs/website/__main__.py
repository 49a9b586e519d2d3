"""Build the documentation site.

python -m docs.website out/site
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from docs.website import check, pages


def main() -> int:
    """Write the pages, build the site from them and check it; return 1 if there is a problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="folder of the site; it is replaced")
    site = parser.parse_args().site.resolve()
    with tempfile.TemporaryDirectory() as folder:
        write_project(Path(folder))
        zensical = Path(sys.executable).with_name("zensical")
        if code := subprocess.run([zensical, "build", "--strict"], check=False, cwd=folder).returncode:
            return code
        if site.exists():
            shutil.rmtree(site)
        shutil.copytree(Path(folder) / "site", site)
    found = list(check.problems(site))
    for line in found:
        print(line, file=sys.stderr)
    if not found:
        print(f"open {site / 'index.html'}")
    return 1 if found else 0


def write_project(folder: Path) -> None:
    """Write a Zensical project into an empty folder: pages in docs/, and zensical.toml with the navigation."""
    docs = folder / "docs"
    docs.mkdir()
    pages.write(docs)
    here = Path(__file__).parent
    for name in ("style.css", "file_worker.js"):
        shutil.copyfile(here / name, docs / name)
    shutil.copytree(here / "theme", folder / "theme")
    sections = ", ".join(
        _entry(section, f"[{', '.join(_entry(pages.TITLES.get(page), json.dumps(page)) for page in entries)}]")
        for section, entries in pages.navigation(docs).items()
    )
    config = (here / "zensical.toml").read_text("utf-8").replace("nav = []", f"nav = [{sections}]")
    source = json.dumps(str(pages.ROOT / "src"))
    (folder / "zensical.toml").write_text(config.replace('paths = ["src"]', f"paths = [{source}]"), encoding="utf-8")


def _entry(title: str | None, value: str) -> str:
    """Return an entry of the navigation in TOML; without a title, the page's heading is its title."""
    return value if title is None else f"{{ {json.dumps(title, ensure_ascii=False)} = {value} }}"


if __name__ == "__main__":
    sys.exit(main())
