"""Signing keys, of a coordinator or a site: ed25519, PEM, in a file that nobody else may read."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from dlfd_fleet.exceptions import EvidenceError

_OWNER_ONLY = 0o600


def load_signer(file: Path) -> CryptoSigner:
    """Return the key that signs certificates or records, made with its public half beside it when it is first needed.

    Raises
    ------
    EvidenceError
        If the file cannot be made or read, is no ed25519 key, or others may read it.
    """
    if not file.exists():
        _make(file)
    try:
        private = load_pem_private_key(file.read_bytes(), password=None)
        mode = file.stat().st_mode & 0o777
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"{file} cannot be read as an unencrypted private key ({type(error).__name__}).") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise EvidenceError(f"{file} is no ed25519 key; make one with `openssl genpkey -algorithm ed25519`.")
    if mode & 0o077:
        raise EvidenceError(f"Others may read {file} (mode {mode:o}), which signs; run `chmod 600` on it.")
    return CryptoSigner(private)


def public_key_file(file: Path) -> Path:
    """Return where a key's public half lies."""
    return file.with_name(f"{file.stem}.pub.pem")


def load_public_key(file: Path) -> SSlibKey:
    """Return the public key of somebody whose certificates or records are trusted.

    Raises
    ------
    EvidenceError
        If the file cannot be read, or is no ed25519 public key.
    """
    try:
        public = load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceError(f"{file} cannot be read as a public key in PEM ({type(error).__name__}).") from error
    if not isinstance(public, Ed25519PublicKey):
        raise EvidenceError(f"{file} is no ed25519 public key, which certificates and records are signed with.")
    return SSlibKey.from_crypto(public)


def _make(file: Path) -> None:
    """Write the public half first: a private key that is there has always got one."""
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        public_key_file(file).write_bytes(public)
        new = file.with_name(f".{file.name}.new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY), "wb") as stream:
            stream.write(CryptoSigner(key).private_bytes)
        new.replace(file)
    except OSError as error:
        raise EvidenceError(f"The signing key {file} cannot be written: {error.strerror}.") from error
