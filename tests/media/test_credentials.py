"""Content credentials: keys, signing and checking, with the real library."""

import datetime
import http.server
import io
import json
import shutil
import stat
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from certificate_files import CLAIM, DOCUMENT, EMAIL, own_certificate
from credential_files import png_of, signed_photo
from kinema.cli.credentials_option import keys_to_sign
from kinema.errors import CredentialsError, InvalidRequest
from kinema.media.credentials import certificates, signing_keys
from kinema.media.credentials.credential_check import check_credentials
from kinema.media.credentials.file_signer import FileSigner, check_signing, usable_keys
from kinema.media.credentials.signing_keys import credentials_folder, trust_anchors
from kinema.media.video import Video
from kinema.media.video_writer import encode_video, read_frames, read_recipe
from kinema.settings import Settings

FRAMES = np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), np.uint8)


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def keys(settings):
    return signing_keys.signing_keys(settings)


@pytest.fixture
def png():
    return png_of(FRAMES[0])


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif", ".webm"])
def test_signed_file_is_trusted_and_a_changed_byte_is_noticed(suffix, settings, keys, png, recipe, tmp_path):
    plain = encode_video(FRAMES, suffix, 7, recipe)
    signed = FileSigner(keys, [png]).sign(plain, recipe, f"a{suffix}")
    check = check_credentials(signed.content, signed.sidecar, trust_anchors(settings))
    assert (check.state, check.generated, check.title, check.problems) == ("trusted", True, f"a{suffix}", ())
    assert check.recipe == recipe.model_dump(mode="json")
    assert [image.credentials for image in check.ingredients] == ["none"]
    assert check_credentials(signed.content, signed.sidecar).state == "valid"
    assert check_credentials(plain).state == "none"
    assert (signed.content == plain) == (suffix == ".webm") == (signed.sidecar is not None)
    for place in (-1, len(signed.content) * 3 // 4, len(signed.content) // 2):
        changed = bytearray(signed.content)
        changed[place] ^= 1
        assert check_credentials(bytes(changed), signed.sidecar, trust_anchors(settings)).state == "tampered"
    files = [tmp_path / f"{name}{suffix}" for name in ("plain", "signed")]
    for path, content in zip(files, (plain, signed.content), strict=True):
        path.write_bytes(content)
    assert np.array_equal(read_frames(files[0])[0], read_frames(files[1])[0])
    assert read_recipe(files[1]) == recipe


def test_every_changed_byte_of_the_stored_mp4_is_noticed(settings, keys):
    plain = encode_video(FRAMES, ".mp4", 7)
    signed = FileSigner(keys).sign(plain, None, "a.mp4").content
    start = len(signed) - len(plain) + int.from_bytes(plain[:4], "big")  # after ftyp, which C2PA does not protect
    for place in range(start, len(signed), max(1, len(plain) // 60)):
        changed = bytearray(signed)
        changed[place] ^= 0x10
        assert check_credentials(bytes(changed), None, trust_anchors(settings)).state == "tampered", place


def test_credentials_of_the_input_image_are_kept(settings, keys, png):
    photo = signed_photo(keys, png)
    plain = encode_video(FRAMES, ".mp4", 7)
    changed = bytearray(photo)
    changed[-30] ^= 1
    images = [photo, bytes(changed), png, png[:70], b"no image"]
    check = check_credentials(FileSigner(keys, images).sign(plain, None, "a").content, None, trust_anchors(settings))
    assert check.state == "trusted"
    assert [image.credentials for image in check.ingredients] == ["valid", "invalid", "none", "none", "none"]


def test_no_address_in_a_file_is_opened(keys, png):
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        image = signed_photo(keys, png, f"http://127.0.0.1:{server.server_port}/a.c2pa")
        FileSigner(keys, [image]).sign(encode_video(FRAMES, ".mp4", 7), None, "a")
        assert check_credentials(image).state == "elsewhere"
        server.shutdown()
    assert asked == []


def test_keys_are_created_once_and_private(settings):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: signing_keys.signing_keys(settings), range(8)))
    assert len({keys.key for keys in found}) == 1
    folder = credentials_folder(settings)
    assert sorted(path.name for path in folder.iterdir()) == ["ca-key.pem", "ca.pem", "signer.pem"]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())] == [0o700, 0o600, 0o600, 0o600]
    assert [path.name for path in settings.data_dir.iterdir()] == ["credentials"]
    assert found[0].key not in repr(found[0])


def test_new_key_after_a_year_and_old_files_stay_trusted(settings, keys, monkeypatch):
    signed = FileSigner(keys).sign(encode_video(FRAMES, ".gif", 7), None, "a").content
    monkeypatch.setattr(signing_keys, "RENEW_AFTER", datetime.timedelta(0))
    renewed = signing_keys.signing_keys(settings)
    assert renewed.key != keys.key
    assert renewed.id == keys.id
    assert renewed.ca == keys.ca
    assert check_credentials(signed, None, trust_anchors(settings)).state == "trusted"


def test_earlier_certificate_authority_stays_trusted_as_ca_something(settings, keys):
    signed = FileSigner(keys).sign(encode_video(FRAMES, ".gif", 7), None, "a").content
    folder = credentials_folder(settings)
    shutil.move(folder, folder.with_name("old"))
    assert signing_keys.signing_keys(settings).id != keys.id  # so a server signs its videos again
    assert check_credentials(signed, None, trust_anchors(settings)).state == "valid"
    shutil.copy(folder.with_name("old") / "ca.pem", folder / "ca-2026.pem")
    assert check_credentials(signed, None, trust_anchors(settings)).state == "trusted"


@pytest.mark.parametrize("usage", [EMAIL, DOCUMENT, CLAIM])
def test_own_certificate_signs(tmp_path, usage):
    settings = own_certificate(tmp_path / "own", usage=usage)
    keys = signing_keys.signing_keys(settings)
    check_signing(keys)
    signed = FileSigner(keys).sign(encode_video(FRAMES, ".gif", 7), None, "a").content
    check = check_credentials(signed, None, trust_anchors(settings))
    assert (keys.algorithm, check.state, check.signer) == ("es384", "trusted", "Studio")
    (tmp_path / "others.pem").write_text(keys.ca)
    elsewhere = Settings(data_dir=tmp_path / "elsewhere", c2pa_trust=tmp_path / "others.pem")
    assert check_credentials(signed, None, trust_anchors(elsewhere)).state == "trusted"
    assert not (tmp_path / "own" / "data").exists()


def missing(folder):
    settings = own_certificate(folder)
    (folder / "key.pem").unlink()
    return settings


def unreadable(folder):
    settings = own_certificate(folder)
    (folder / "key.pem").unlink()
    (folder / "key.pem").mkdir()
    return settings


def of_another(folder):
    settings = own_certificate(folder)
    other = own_certificate(folder / "other")
    return settings.model_copy(update={"c2pa_key": other.c2pa_key})


def no_certificate(folder):
    settings = own_certificate(folder)
    (folder / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nabc")
    return settings


def exchanged(folder):
    settings = own_certificate(folder)
    return settings.model_copy(update={"c2pa_cert": settings.c2pa_key, "c2pa_key": settings.c2pa_cert})


def key_is_a_certificate(folder):
    settings = own_certificate(folder)
    return settings.model_copy(update={"c2pa_key": settings.c2pa_cert})


def in_der(folder):
    settings = own_certificate(folder)
    certificate = x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.DER))
    return settings


def authority_first(folder):
    settings = own_certificate(folder)
    parts = (folder / "cert.pem").read_text().split("-----BEGIN")
    (folder / "cert.pem").write_text("-----BEGIN" + "-----BEGIN".join([parts[2], parts[1]]))
    return settings


def only_one(folder):
    return own_certificate(folder).model_copy(update={"c2pa_key": None})


def folder_is_a_file(folder):
    folder.write_text("a file")
    return Settings(data_dir=folder)


def ca_is_gone(folder):
    settings = Settings(data_dir=folder)
    signing_keys.signing_keys(settings)
    (folder / "credentials" / "ca.pem").unlink()
    return settings


def signer_is_junk(folder):
    settings = Settings(data_dir=folder)
    signing_keys.signing_keys(settings)
    (folder / "credentials" / "signer.pem").write_text("junk")
    return settings


def ca_is_junk(folder):
    settings = Settings(data_dir=folder)
    signing_keys.signing_keys(settings)
    (folder / "credentials" / "ca.pem").write_text("junk")
    return settings


def signer_has_another_key(folder):
    settings, other = Settings(data_dir=folder), Settings(data_dir=folder / "other")
    keys, others = signing_keys.signing_keys(settings), signing_keys.signing_keys(other)
    (folder / "credentials" / "signer.pem").write_text(others.key + keys.chain)
    return settings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            signer_is_junk,
            "signer.pem has no valid certificate in PEM; delete that file: Kinema makes a new one",
        ),
        (signer_has_another_key, "signer.pem does not belong to its certificate; delete that file"),
        (ca_is_junk, "ca.pem has no valid certificate in PEM; restore its folder from a backup, or move the folder"),
        (missing, "key.pem can't be read (No such file or directory); check KINEMA_C2PA_KEY"),
        (unreadable, "key.pem can't be read (Is a directory)"),
        (of_another, "does not belong to the first certificate"),
        (authority_first, "cert.pem; use its own key, and put its certificate before those of the authorities"),
        (no_certificate, "cert.pem has no valid certificate in PEM; use a file of certificates for KINEMA_C2PA_CERT"),
        (exchanged, "key.pem has no valid certificate in PEM, but a private key; use a file of certificates for"),
        (
            key_is_a_certificate,
            "cert.pem has no valid private key in PEM, but a certificate; use a file of an EC,",
        ),
        (in_der, "cert.pem has no valid certificate in PEM, but may be in DER, which openssl x509 converts; use"),
        (only_one, "KINEMA_C2PA_CERT is set without KINEMA_C2PA_KEY; set both"),
        (lambda folder: own_certificate(folder, days=-1), "cert.pem expired on"),
        (lambda folder: own_certificate(folder, password=b"secret"), "key.pem is encrypted; store it without"),
        (folder_is_a_file, "can't be stored in"),
        (ca_is_gone, "ca.pem can't be read (No such file or directory); restore its folder from a backup"),
    ],
)
def test_keys_that_cannot_be_used_are_named(make, message, tmp_path):
    settings = make(tmp_path / "own")
    with pytest.raises((CredentialsError, InvalidRequest)) as raised:
        signing_keys.signing_keys(settings)
    assert message in str(raised.value)


def test_remedy_for_a_damaged_signer_works(settings, keys):
    signed = FileSigner(keys).sign(encode_video(FRAMES, ".gif", 7), None, "a").content
    (credentials_folder(settings) / "signer.pem").unlink()
    assert signing_keys.signing_keys(settings).key != keys.key
    assert check_credentials(signed, None, trust_anchors(settings)).state == "trusted"


def test_remedy_for_a_damaged_authority_works(settings, keys):
    signed = FileSigner(keys).sign(encode_video(FRAMES, ".gif", 7), None, "a").content
    shutil.move(credentials_folder(settings), settings.data_dir / "old")
    assert signing_keys.signing_keys(settings).ca != keys.ca
    assert check_credentials(signed, None, trust_anchors(settings)).state == "valid"


def test_own_certificate_is_warned_of_30_days_before_it_expires(tmp_path):
    assert signing_keys.certificate_warning(own_certificate(tmp_path / "own", days=31)) is None
    settings = own_certificate(tmp_path / "own", days=29.5)
    end = signing_keys.signing_keys(settings).certificate.not_valid_after_utc
    assert signing_keys.certificate_warning(settings) == (
        f"the certificate in {settings.c2pa_cert} expires on {end:%Y-%m-%d}, in 29 days; no video can be signed from "
        "then on: renew it (a running server needs no restart)"
    )
    with pytest.raises(CredentialsError, match="expired on"):
        signing_keys.certificate_warning(own_certificate(tmp_path / "own", days=-1))


def test_self_made_certificates_are_warned_of_and_none_is_created(settings, monkeypatch):
    assert signing_keys.certificate_warning(settings) is None
    assert not settings.data_dir.exists()
    signing_keys.signing_keys(settings)
    assert signing_keys.certificate_warning(settings) is None
    monkeypatch.setattr(certificates, "SIGNER_YEARS", 0.05)
    (credentials_folder(settings) / "signer.pem").unlink()
    signing_keys.signing_keys(settings)
    warning = signing_keys.certificate_warning(settings)
    assert "signer.pem expires on" in warning
    assert warning.endswith("in 18 days; no video can be signed from then on: " + signing_keys._NEW_SIGNER)
    monkeypatch.setattr(certificates, "CA_YEARS", 0.05)
    shutil.rmtree(credentials_folder(settings))
    signing_keys.signing_keys(settings)
    assert "ca.pem expires on" in signing_keys.certificate_warning(settings)


def test_certificate_that_c2pa_does_not_accept_is_found_at_the_start(tmp_path):
    keys = signing_keys.signing_keys(own_certificate(tmp_path / "own", usage="1.3.6.1.5.5.7.3.1"))
    with pytest.raises(
        CredentialsError, match=r"\(the certificate is invalid\); use a KINEMA_C2PA_CERT as C2PA demands"
    ):
        check_signing(keys)


def test_command_finds_such_a_certificate_before_any_work(tmp_path):
    settings = own_certificate(tmp_path / "own", usage="1.3.6.1.5.5.7.3.1")
    with pytest.raises(CredentialsError, match="as C2PA demands"):
        keys_to_sign(settings.model_copy(update={"credentials": "on"}))


def test_missing_library_is_named_with_a_remedy_for_signing_and_for_checking(settings, png, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(CredentialsError, match="set KINEMA_CREDENTIALS=off, or run in"):
        usable_keys(settings)
    with pytest.raises(CredentialsError, match=r"c2pa-python, which can't be used here \(.*\); run in") as caught:
        check_credentials(png)
    assert "KINEMA_CREDENTIALS" not in str(caught.value)  # turning off the signing does not help


def test_certificate_that_expires_under_a_running_server_is_to_be_renewed(tmp_path, png):
    path = tmp_path / "own" / "cert.pem"
    authority = certificates.make_ca()
    valid = signing_keys.signing_keys(own_certificate(tmp_path / "own", ca=authority))
    own_certificate(tmp_path / "own", ca=authority, days=-1)
    expired = replace(valid, chain=path.read_text(), key=(tmp_path / "own" / "key.pem").read_text())
    with pytest.raises(CredentialsError, match=r"^the certificate in .*cert\.pem expired on .*; renew it \(a running"):
        FileSigner(expired).sign(png, None, "a")


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("KINEMA_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def test_save_with_credentials(data_folder, png, recipe, tmp_path):
    video = Video(FRAMES, 7, recipe, image_files=(png,))
    anchors = lambda: trust_anchors(Settings(data_dir=data_folder))  # noqa: E731
    mp4 = video.save(tmp_path / "a.mp4", credentials=True).read_bytes()
    check = check_credentials(mp4, None, anchors())
    assert (check.state, check.title, len(check.ingredients)) == ("trusted", "a.mp4", 1)
    webm = video.save(tmp_path / "a.webm", credentials=True)
    assert check_credentials(webm.read_bytes(), (tmp_path / "a.c2pa").read_bytes(), anchors()).state == "trusted"
    with pytest.raises(InvalidRequest, match="folder of png frames, which can't have content credentials"):
        video.save(tmp_path / "frames", credentials=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.c2pa", "a.mp4", "a.webm", "data"]


def test_claim_names_model_and_generator(keys, recipe):
    signed = FileSigner(keys).sign(encode_video(FRAMES, ".mp4", 7), recipe, "a.mp4").content
    store = json.loads(c2pa.Reader("video/mp4", io.BytesIO(signed)).json())
    manifest = store["manifests"][store["active_manifest"]]
    facts = {item["label"]: item["data"] for item in manifest["assertions"]}
    assert facts["kinema.model"]["weights_sha256"] == "1" * 64
    assert manifest["claim_generator_info"][0]["name"] == "Kinema"
    [action] = facts["c2pa.actions.v2"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
