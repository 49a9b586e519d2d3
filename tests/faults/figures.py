"""Store measurements of the fault tests in a JSON file."""

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

FILE = Path(os.environ.get("KINEMA_FAULT_FIGURES", Path(__file__).parents[2] / "bench/results/faults-here.json"))


def record(name: str, value: float, *, bar: float, unit: str) -> None:
    """Print and store a measurement, then fail if it exceeds its limit.

    name: what was measured. A stored measurement with the same name is replaced. value, bar: measurement and limit, in
    `unit`.
    """
    stored = json.loads(FILE.read_text()) if FILE.exists() else {"figures": {}}
    stored["machine"] = {"system": platform.platform(), "cores": os.cpu_count(), "python": platform.python_version()}
    stored["figures"][name] = {
        "value": round(value, 3),
        "bar": bar,
        "unit": unit,
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    print(f"\n{name}: {value:.2f} {unit} (bar {bar:g})")  # noqa: T201 - shown by pytest -s
    assert value <= bar, f"{name}: {value:.2f} {unit}, expected at most {bar:g}"
