"""Debian's chromium, and the arguments with which the tests start it."""

import shutil

CHROMIUM = shutil.which("chromium")
# All open pages of a site share a process, which compiles the scripts once; no process is started in advance.
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--process-per-site", "--disable-features=SpareRendererForSitePerProcess",
]  # fmt: skip
