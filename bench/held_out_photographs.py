"""What the benchmarks with held-out photographs share: their options, the photographs, and the record."""

import argparse
import datetime
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from kinema.benchmark.measure import machine

sys.path.append(str(Path(__file__).parents[1]))

from training.pocket.evaluate import read_photographs

SEED = 42


def read_options(description: str, more: Mapping[str, dict[str, Any]] = MappingProxyType({})) -> argparse.Namespace:
    """Parse the command line, with `more` options of a benchmark; creates the folder for contact sheets."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="photos.tar, written by training/pocket/collect.py")
    parser.add_argument("--set", default="report", choices=("choose", "report"))
    parser.add_argument("--count", type=int, default=6, help="number of photographs")
    parser.add_argument("--sheets", type=Path, help="folder for contact sheets")
    parser.add_argument("--out", type=Path, required=True)
    for name, properties in more.items():
        parser.add_argument(name, **properties)
    options = parser.parse_args()
    if options.sheets:
        options.sheets.mkdir(parents=True, exist_ok=True)
    return options


def photographs(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the first photographs of the set, uint8 [height, width, 3], by name."""
    return dict(list(read_photographs(options.photos, options.set).items())[: options.count])


def write_record(options: argparse.Namespace, what: str, rows: dict[str, object], **parameters: object) -> None:
    """Write the record of a measurement on this machine."""
    record = {
        "what": what,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(torch.device("cpu")),
        "set": options.set,
        "seed": SEED,
        **parameters,
        "rows": rows,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n")
