"""checks/structure.py finds what it is there to find."""

import runpy
from pathlib import Path

import pytest

main = runpy.run_path(str(Path(__file__).parents[1] / "checks" / "structure.py"))["main"]


def write(folder, files):
    for name, text in files.items():
        path = folder / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"a/same.py": "", "b/same.py": ""}, "module same in package.a.same and package.b.same"),
        ({"a.py": "class Same: ...", "b.py": "class Same: ..."}, "class Same in package.a and package.b"),
        ({"a.py": "import package.b", "b.py": "def f():\n    from package import a"}, "import cycle: "),
    ],
    ids=["two modules of one name", "two classes of one name", "cycle through a function"],
)
def test_fault_is_printed_and_returns_1(tmp_path, capsys, files, fault):
    write(tmp_path, {"__init__.py": "", **files})
    assert main(tmp_path) == 1
    assert fault in capsys.readouterr().out


def test_import_for_types_only_is_no_cycle(tmp_path):
    checking = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import package.b\n"
    write(tmp_path, {"__init__.py": "", "a.py": checking, "b.py": "import package.a"})
    assert main(tmp_path) == 0
