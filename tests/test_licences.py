"""checks/licences.py finds packages whose licence is not allowed."""

import runpy
import tomllib
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "checks" / "licences.py"
RULES = tomllib.loads(SCRIPT.with_suffix(".toml").read_text("utf-8"))
faults = runpy.run_path(str(SCRIPT))["faults"]


def found(name="a-package", **licences):
    """Return the faults of a package, given what the sources of pip-licenses say about it."""
    says = {f"License-{source.title()}": text for source, text in licences.items()}
    return list(faults([{"Name": name, "Version": "1.0", **says}], RULES))


@pytest.mark.parametrize(
    "licences",
    [
        {"expression": "MIT", "classifier": "UNKNOWN", "metadata": "UNKNOWN"},
        {"expression": "MPL-2.0 AND (Apache-2.0 OR MIT)"},
        {"expression": "Apache-2.0 AND Apache-2.0 WITH LLVM-exception"},
        {"classifier": "Apache Software License; BSD License", "metadata": "Dual License"},
        {"classifier": "UNKNOWN", "metadata": "3-Clause BSD License"},
    ],
)
def test_allowed_licence_has_no_fault(licences):
    assert found(**licences) == []


@pytest.mark.parametrize(
    ("licences", "named"),
    [
        ({"expression": "GPL-3.0-or-later", "metadata": "MIT"}, "GPL-3.0-or-later"),
        ({"expression": "MIT AND AGPL-3.0-only"}, "AGPL-3.0-only"),
        ({"classifier": "MIT License; GNU General Public License v2 (GPLv2)"}, "GPLv2"),
        ({"classifier": "UNKNOWN", "metadata": "UNKNOWN"}, "UNKNOWN"),
        ({}, "UNKNOWN"),
    ],
)
def test_other_licence_is_named_with_the_remedy(licences, named):
    (fault,) = found(**licences)
    assert fault.startswith("a-package 1.0 has the licence")
    assert named in fault
    assert "checks/licences.toml" in fault


def test_exception_holds_for_its_package_and_licence_only():
    assert found("psycopg_binary", expression="LGPL-3.0-only") == []
    assert len(found("psycopg_binary", expression="AGPL-3.0-only")) == 1
    assert len(found("other", expression="LGPL-3.0-only")) == 1


def test_every_exception_has_a_reason():
    assert all(rule["reason"] and rule["says"] for rule in RULES["packages"].values())
