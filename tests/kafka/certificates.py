"""Certificates for a test, made by `openssl`, valid for two days."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_authority(folder: Path) -> Path:
    """The certificate (PEM) of a new authority; its key lies beside it."""
    return _request(folder, "authority", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign")


def make_certificate(authority: Path, name: str) -> Path:
    """A certificate of `authority` for `name` on 127.0.0.1; its key is the same path with .key."""
    signed = ["-CA", str(authority), "-CAkey", str(authority.with_suffix(".key"))]
    extensions = "basicConstraints=critical,CA:FALSE", "subjectAltName=IP:127.0.0.1"
    return _request(authority.parent, name, *extensions, options=signed)


def _request(folder: Path, name: str, *extensions: str, options: list[str] | None = None) -> Path:
    certificate = folder / f"{name}.pem"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2", "-subj", f"/CN={name}", *(options or [])]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-keyout", str(certificate.with_suffix(".key")), "-out", str(certificate)]
    for extension in extensions:
        command += ["-addext", extension]
    subprocess.run(command, check=True, capture_output=True)
    return certificate
