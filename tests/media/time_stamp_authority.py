"""A time-stamp authority (RFC 3161) on localhost: openssl answers behind a small HTTP server."""

import contextlib
import datetime
import http.server
import shutil
import subprocess
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from kinema.media.credentials import certificates

CONFIGURATION = """[tsa]
serial = serial
signer_cert = tsa.pem
certs = ca.pem
signer_key = tsa-key.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = {digests}
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


class TimeStampAuthority:
    """Answers queries; `reply` may be replaced by another function from a query to the body of a response.

    Attributes:
        url: Its address, with a password and a token that nobody may see.
        ca: The file with the certificate that has to be trusted by those who verify.
        queries: The bodies of all requests.
    """

    def __init__(self, folder):
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        self._folder, self.ca, self.queries, self.reply = folder, folder / "ca.pem", [], self.answer
        self.closed = threading.Event()
        ca, ca_key = certificates.make_ca()
        key = rsa.generate_private_key(65537, 2048)
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Clock")]))
            .issuer_name(ca.subject)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(True, *[False] * 8), critical=True)
            .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
            .sign(ca_key, hashes.SHA256())
        )
        for name, item in (("ca", ca), ("tsa", certificate), ("tsa-key", key)):
            (folder / f"{name}.pem").write_text(certificates.pem_of(item))
        (folder / "serial").write_text("01\n")
        authority = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                authority.queries.append(self.rfile.read(int(self.headers["Content-Length"])))
                with contextlib.suppress(ConnectionError):
                    authority.reply(self, authority.queries[-1])

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://user:hidden@127.0.0.1:{self._server.server_port}/tsa?token=hidden"

    def answer(self, handler, query, digests="sha256, sha384, sha512"):
        """Answer as an authority that accepts these digests."""
        (self._folder / "query").write_bytes(query)
        (self._folder / "tsa.cnf").write_text(CONFIGURATION.format(digests=digests))
        command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-section", "tsa", "-queryfile", "query"]
        subprocess.run([*command, "-out", "answer"], cwd=self._folder, check=True, capture_output=True)
        self.send(handler, (self._folder / "answer").read_bytes())

    def send(self, handler, body, status=200):
        """Send a body as an answer."""
        handler.send_response(status)
        handler.send_header("Content-Type", "application/timestamp-reply")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    def close(self):
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()
