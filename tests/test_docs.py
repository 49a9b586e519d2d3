"""Links in the documents resolve, and the site has every page and names every command, setting, route and error.

`make docs` builds the site from these pages and checks its HTML.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import typer
from docs.website import check, errors_page, http_api, markdown, notebook, pages, reference

import kinema
from kinema.cli import app
from kinema.jobs.job import QUEUE_FAILURE_CODES
from kinema.settings import Settings

# The OpenAPI document needs BentoML, whose dependencies warn when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "deploy/README.md",
        ROOT / "training/README.md",
    ]
    if path.name != "home.md"  # links to generated pages
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return the folder of the site's Markdown pages."""
    folder = tmp_path_factory.mktemp("site")
    pages.write(folder)
    return folder


def broken_links(path):
    """Return the relative links of a Markdown file that lead to no file, or to no heading."""
    broken = []
    for link in markdown.links(path.read_text("utf-8")):
        target = (path.parent / unquote(link.path)).resolve() if link.path else path
        is_page = target.suffix == ".md" and target.is_file()
        if not target.exists() or (
            link.fragment and is_page and unquote(link.fragment) not in markdown.anchors(target.read_text("utf-8"))
        ):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_of_a_document_resolve(document):
    assert broken_links(ROOT / document) == []


def test_links_of_the_site_resolve(site):
    assert {page.name: broken for page in site.rglob("*.md") if (broken := broken_links(page))} == {}


def test_navigation_has_every_page(site):
    listed = [page for section in pages.navigation(site).values() for page in section]
    assert len(listed) == len(set(listed))
    assert {path.removeprefix("docs/") for path in DOCUMENTS if path.startswith("docs/")} <= set(listed)


def test_page_outside_the_navigation_is_an_error(site, monkeypatch):
    monkeypatch.setitem(pages.NAVIGATION, "Start", ["index.md"])
    with pytest.raises(ValueError, match=r"quickstart\.md"):
        pages.navigation(site)


def test_missing_page_in_the_navigation_is_an_error(site, monkeypatch):
    monkeypatch.setitem(pages.NAVIGATION, "Start", ["absent.md"])
    with pytest.raises(ValueError, match=r"absent\.md"):
        pages.navigation(site)


def test_command_page_has_every_option():
    page = reference.command_page()
    for name, command in reference.commands(typer.main.get_command(app), "kinema"):
        assert f"## {name}\n" in page
        assert all(option in page for parameter in command.params for option in parameter.opts if option[0] == "-")
    assert "[dim]" not in page


def test_settings_page_and_server_manual_have_every_setting():
    for text in (reference.settings_page(), (ROOT / "docs" / "server.md").read_text("utf-8")):
        assert [name for name in Settings.model_fields if f"KINEMA_{name.upper()}`" not in text] == []


def test_python_page_has_every_public_name():
    page = reference.python_page()
    assert [name for name in kinema.__all__ if f"kinema.{name}\n" not in page and f"[`{name}`]" not in page] == []
    assert [name for name in kinema.VideoRequest.model_fields if f"| `{name}` |" not in page] == []


def test_errors_page_has_every_error():
    page = errors_page.errors_page()
    assert [kind for kind in errors_page.public_errors() if f"`{kind.code}` · HTTP" not in page] == []


def test_errors_page_has_every_code_without_a_class():
    sources = [path.read_text("utf-8") for path in (ROOT / "src" / "kinema" / "serving").glob("*.py")]
    sent = {code for source in sources for code in re.findall(r'error_body\(\s*\d+, "(\w+)"', source)}
    assert "unknown_key" in sent
    page = errors_page.errors_page()
    assert [code for code in sent | set(QUEUE_FAILURE_CODES) if f"| `{code}` |" not in page] == []


def test_outputs_of_a_notebook_are_on_its_page(tmp_path):
    video = '<video controls src="data:video/mp4;base64,AAAA"></video>'
    data = [{"image/png": "iVBORw0KGgo="}, {"text/html": video}]
    outputs = [nbformat.v4.new_output("stream", text=f"\rdenoise {step}/8") for step in (1, 2)]
    outputs += [nbformat.v4.new_output("display_data", output) for output in data]
    cells = [nbformat.v4.new_code_cell("make()", outputs=outputs)]
    lesson = nbformat.v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})
    nbformat.write(lesson, tmp_path / "lesson.ipynb")
    text = notebook.as_markdown(tmp_path / "lesson.ipynb", tmp_path / "page.md")
    assert "```python\nmake()\n```" in text
    assert re.findall(r"denoise ./8", text) == ["denoise 2/8"]
    assert video in text
    assert [(tmp_path / link.path).is_file() for link in markdown.links(text)] == [True]


def test_http_page_has_every_route_and_parameter():
    page = http_api.page()
    assert [path for path, method, _ in http_api.routes() if f"### {method.upper()} {path}\n" not in page] == []
    assert [name for name in kinema.VideoRequest.model_fields if f"| `{name}` |" not in page] == []


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js from another host"),
        ('<link rel="stylesheet" href="//fonts.example/css">', "loads //fonts.example/css from another host"),
        ('<p style="background: url(https://a.example/b.png)">', "loads https://a.example/b.png from another host"),
        ('<a href="absent.html">', "links to absent.html, which does not exist"),
        ('<img src="absent.png">', "links to absent.png, which does not exist"),
        ('<a href="#absent">', "the page has no such anchor"),
    ],
)
def test_problem_of_a_built_page_is_found(tmp_path, html, problem):
    (tmp_path / "index.html").write_text(html, "utf-8")
    assert [problem in line for line in check.problems(tmp_path)] == [True]


def test_good_page_has_no_problem(tmp_path):
    (tmp_path / "index.html").write_text('<a href="https://a.example">a</a><a href="#b">b</a><p id="b">', "utf-8")
    assert list(check.problems(tmp_path)) == []
