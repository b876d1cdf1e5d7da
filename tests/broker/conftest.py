"""A throw-away certificate authority for the tests of TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a throw-away authority and a certificate for 127.0.0.1 that it signed."""
    place = tmp_path_factory.mktemp("tls")
    ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    (place / "san").write_text("subjectAltName=IP:127.0.0.1")
    for command in (
        ["req", "-x509", *ec, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", *ec, "-subj", "/CN=broker", "-keyout", "key.pem", "-out", "csr.pem"],
        ["x509", "-req", "-in", "csr.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-extfile", "san", "-out", "cert.pem"],
    ):
        subprocess.run(["openssl", *command], cwd=place, check=True, capture_output=True)
    return place
