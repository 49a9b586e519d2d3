"""The package's version and the URL of its documentation."""

from email.message import Message

from kinema import version


def test_documentation_url_is_that_of_the_package(monkeypatch):
    package = Message()
    monkeypatch.setattr(version, "metadata", lambda _: package)
    assert version.documentation_url() is None
    package["Project-URL"] = "Source, https://kinema.example/source"
    package["Project-URL"] = "Documentation, https://kinema.example/docs"
    assert version.documentation_url() == "https://kinema.example/docs"
