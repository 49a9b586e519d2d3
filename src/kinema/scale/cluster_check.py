"""Connect to a Ray cluster once, and print what was found as JSON: `python -m kinema.scale.cluster_check ADDRESS`.

`kinema doctor` runs it as a process of its own, which it can end: Ray may wait for minutes.
"""

from __future__ import annotations

import json
import logging
import platform
import re
import sys
from typing import Any

import ray


def main() -> None:
    """Print Ray's version here and on the cluster, the nodes that are alive, and why there is no connection."""
    address = sys.argv[1]
    facts: dict[str, Any] = {"ray": ray.__version__, "cluster_ray": None, "nodes": [], "problem": None}
    try:
        ray.init(address, namespace="kinema", log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # noqa: BLE001 - Ray raises errors of many kinds
        facts["cluster_ray"] = next(iter(re.findall(r"\bRay: (\S+)", str(error))), None)
        facts["problem"] = explain(error, address)
    else:
        facts["cluster_ray"] = ray.__version__  # else ray.init raises
        facts["nodes"] = sorted(_nodes(), key=lambda node: (node["name"], node["node_id"]))
    print(json.dumps(facts))  # noqa: T201 - the result


def explain(error: Exception, address: str) -> str:
    """Return why there is no connection, and what to do."""
    text = str(error)
    if isinstance(error, OSError):
        return f"the Ray cluster at {address} can't be reached ({error})"
    if versions := re.findall(r"\bRay: (\S+)\s+Python: (\S+)", text):
        theirs, ours = versions[0], (ray.__version__, platform.python_version())
        return (
            f"the Ray cluster at {address} has Ray {theirs[0]} with Python {theirs[1]}, and this machine Ray {ours[0]} "
            f"with Python {ours[1]}; install the same versions on all machines"
        )
    if "node to connect to" in text:
        command = f"ray start --address {address} --num-cpus 0 --num-gpus 0"
        return f"this machine is no node of the Ray cluster at {address}; run on it: {command}"
    reason = text.strip().partition("\n")[0] or type(error).__name__
    return f"the Ray cluster at {address} can't be used ({reason}); check KINEMA_RAY_ADDRESS and RAY_AUTH_TOKEN"


def _nodes() -> list[dict[str, Any]]:
    return [
        {
            "name": str(node["NodeManagerHostname"]),
            "node_id": str(node["NodeID"]),
            "gpus": int(node["Resources"].get("GPU", 0)),
        }
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


if __name__ == "__main__":
    main()
