#!/usr/bin/env python3
"""Certificates and keys of a fleet: an own CA, the SuperLink's certificate, a key pair for each SuperNode.

    deploy/certificates.py make KEYS superlink.example 10.0.0.5   # once; every name and address that sites connect to
    deploy/certificates.py node KEYS clinic                       # once for each site
    deploy/certificates.py check KEYS                             # what expires when? exit code 2 if something is wrong

Nothing is ever overwritten. `ca.key` signs new certificates only and belongs off the server; `nodes/NAME` goes to its
site and nowhere else.
"""

from __future__ import annotations

import ipaddress
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA, SUPERLINK, NODES = "ca", "superlink", "nodes"
# The proxy, operators and Flower's own ServerApps connect to it on its own machine.
_ITS_OWN_MACHINE = "127.0.0.1"
_CLOCKS_DIFFER = timedelta(days=1)
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Folder = Annotated[Path, typer.Argument(help="Folder of the fleet's keys.")]


class KeyFileError(Exception):
    """A file is there already, is missing, or does not fit the others."""


@app.command()
def make(
    folder: Folder,
    names: Annotated[list[str], typer.Argument(help="Names and addresses of the SuperLink.")],
    days: Annotated[int, typer.Option(min=1, help="How long the SuperLink's certificate is valid.")] = 365,
) -> None:
    """Make the CA, valid for ten times as long, and the SuperLink's certificate, for 127.0.0.1 too."""
    ca_key, key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    issuer = _name("dlfd-fleet CA")
    authority = (
        _certificate(issuer, issuer, ca_key.public_key(), days * 10)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    server = (
        _certificate(_name(names[0]), issuer, key.public_key(), days)
        .add_extension(_alternative_names(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    pem, pkcs8 = Encoding.PEM, (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files = {
        f"{CA}.key": ca_key.private_bytes(*pkcs8),
        f"{CA}.crt": authority.public_bytes(pem),
        f"{SUPERLINK}.key": key.private_bytes(*pkcs8),
        f"{SUPERLINK}.crt": server.public_bytes(pem),
    }
    _write({folder / name: content for name, content in files.items()})
    check(folder)


@app.command()
def node(folder: Folder, name: Annotated[str, typer.Argument(help="Name of the site's SuperNode.")]) -> None:
    """Make the key pair of a SuperNode: NIST P-384, as Flower asks for."""
    if not name or set(name) & set("/\\") or name.startswith("."):
        raise KeyFileError(f"'{name}' is no name for a file; use letters, digits and '-'.")
    key = ec.generate_private_key(ec.SECP384R1())
    file = folder / NODES / name
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    _write({file: private, file.with_name(f"{name}.pub"): public})
    typer.echo(f"{file} goes to the site. On the SuperLink's side: flwr supernode register {file}.pub")


@app.command()
def check(folder: Folder) -> None:
    """Show when each certificate expires; exit code 2 if one has expired or was not made by this CA."""
    authority, server = (_read(folder / f"{name}.crt") for name in (CA, SUPERLINK))
    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise KeyFileError(f"{folder / SUPERLINK}.crt was not signed by {folder / CA}.crt; make both anew.") from error
    now = datetime.now(UTC)
    for name, certificate in ((CA, authority), (SUPERLINK, server)):
        file, until = folder / f"{name}.crt", certificate.not_valid_after_utc
        if until < now:
            raise KeyFileError(f"{file} expired on {until:%Y-%m-%d}; make new ones in another folder.")
        if certificate.not_valid_before_utc > now:
            raise KeyFileError(f"{file} is valid from {certificate.not_valid_before_utc}; set this machine's clock.")
        typer.echo(f"{file}: until {until:%Y-%m-%d}, {(until - now).days} days")
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    typer.echo(f"The SuperLink may be called {', '.join(str(name.value) for name in names)}.")


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative_names(names: list[str]) -> x509.SubjectAlternativeName:
    every = dict.fromkeys([*names, _ITS_OWN_MACHINE])
    return x509.SubjectAlternativeName([_general_name(name) for name in every])


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _read(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyFileError(f"{file} cannot be read as a certificate; make it with: certificates.py make.") from error


def _write(files: dict[Path, bytes]) -> None:
    """Write new files; private keys are for their owner alone."""
    for file in files:
        if file.exists():
            raise KeyFileError(f"{file} is there already and is not overwritten; name another folder or node.")
    for file, content in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o644 if file.suffix in (".crt", ".pub") else 0o600, exist_ok=False)
        file.write_bytes(content)


if __name__ == "__main__":
    try:
        app()
    except (KeyFileError, OSError) as problem:
        typer.echo(f"Error: {problem}", err=True)
        sys.exit(2)
