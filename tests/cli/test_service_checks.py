"""Checks of cluster, database and store by `kinema doctor`. tests/scale has that of a real cluster."""

import json
import re
import socket
import sqlite3

import pytest

from certificate_files import own_certificate
from kinema.cli.service_checks import check_services
from kinema.extras import install_command
from kinema.media.credentials.signing_keys import signing_keys
from kinema.settings import Settings

pytest.importorskip("sqlalchemy", reason="the extra 'server' is not installed")


def problem(**settings):
    """Return the problem of the only service that is set."""
    (facts,) = check_services(Settings(**{"credentials": "off", **settings})).values()
    return facts["problem"]


def test_nothing_is_checked_without_settings(tmp_path):
    assert check_services(Settings(data_dir=tmp_path)) == {}


def test_certificate_that_expires_soon_is_reported_with_file_date_and_remedy(tmp_path):
    settings = own_certificate(tmp_path / "own", days=20.5)
    facts = check_services(settings)["certificate"]
    assert facts["path"] == str(settings.c2pa_cert)
    assert re.search(r"cert\.pem expires on 20\d\d-\d\d-\d\d, in 20 days; .*: renew it \(a running", facts["problem"])
    assert check_services(own_certificate(tmp_path / "own", days=40))["certificate"]["problem"] is None
    assert "cert.pem expired on" in check_services(own_certificate(tmp_path / "own", days=-1))["certificate"]["problem"]
    assert check_services(settings.model_copy(update={"credentials": "off"})) == {}


def test_self_made_certificate_is_checked_and_not_created(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    assert check_services(settings) == {}
    assert not (tmp_path / "data").exists()
    signing_keys(settings)
    signer = tmp_path / "data" / "credentials" / "signer.pem"
    assert check_services(settings) == {"certificate": {"path": str(signer), "problem": None}}
    signer.write_text("junk")
    assert "signer.pem has no valid certificate in PEM; delete that file" in problem(
        credentials="on", data_dir=tmp_path / "data"
    )
    assert signer.read_text() == "junk"


def test_unreachable_cluster_is_reported_with_address_and_remedy():
    pytest.importorskip("ray", reason="ray is not installed")
    assert problem(ray_address="127.0.0.1:1") == (
        "the Ray cluster at 127.0.0.1:1 can't be reached (Connection refused); start its head, or correct "
        "KINEMA_RAY_ADDRESS"
    )


def test_missing_ray_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("kinema.jobs.cluster.find_spec", lambda _: None)
    assert install_command("scale") in problem(ray_address="127.0.0.1:1")


def test_unreachable_database_is_reported_without_its_password():
    url = "postgresql://me:secret@127.0.0.1:1/kinema?application_name=hidden"
    facts = check_services(Settings(database_url=url))["database"]
    assert facts["url"] == "postgresql://127.0.0.1:1/kinema"
    assert "the database postgresql://127.0.0.1:1/kinema (KINEMA_DATABASE_URL) can't be used: " in facts["problem"]
    assert "secret" not in json.dumps(facts)
    assert "hidden" not in json.dumps(facts)


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/kinema"])
def test_url_of_no_supported_database_is_reported(url):
    assert "KINEMA_DATABASE_URL" in problem(database_url=url)


def test_sqlite_file_is_read_and_not_created(tmp_path):
    file = tmp_path / "jobs.sqlite3"
    assert problem(database_url=f"sqlite:///{file}") is None
    assert not file.exists()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE a (b)")
    connection.close()
    assert problem(database_url=f"sqlite:///{file}") is None
    file.write_bytes(b"no database" * 100)
    assert "file is not a database" in problem(database_url=f"sqlite:///{file}")
    assert "is missing" in problem(database_url=f"sqlite:///{tmp_path / 'nowhere' / 'a'}")


def test_store_that_does_not_answer_is_reported_within_the_time_limit(monkeypatch):
    monkeypatch.setattr("kinema.cli.service_checks.ANSWER_SECONDS", 0.2)
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "no answer within 0.2 seconds" in problem(store="s3://bucket/videos")


def test_bucket_is_read(s3_store):
    assert problem(store=s3_store) is None
    assert "the bucket does not exist" in problem(store="s3://no-such-bucket/videos")


def test_doctor_shows_a_missing_folder_as_problem_and_in_the_table(kinema, monkeypatch, tmp_path):
    monkeypatch.setenv("KINEMA_STORE", f"file://{tmp_path}/nowhere")
    out = " ".join(kinema("doctor").out.split())
    assert f"problem: the store file://{tmp_path}/nowhere (KINEMA_STORE) can't be used: the folder is missing" in out
    assert f"store file://{tmp_path}/nowhere: can't be used, see above" in out
    assert not (tmp_path / "nowhere").exists()
