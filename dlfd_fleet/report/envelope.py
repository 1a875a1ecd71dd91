"""Signed statements: an in-toto Statement v1 in a DSSE envelope, with an ed25519 key.

What is verified is bytes: an envelope that differs in one of them from how it was written is refused, and so is one
whose signer is not the one that the verifier names.
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from dlfd_fleet.exceptions import EvidenceError

PAYLOAD_TYPE = "application/vnd.in-toto+json"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Claims(BaseModel):
    """A part of a statement: fixed, so that a later release still reads what this one has signed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Digests(Claims):
    """How a subject is known."""

    sha256: Sha256


class Subject(Claims):
    """A file that a statement is about."""

    name: str
    digest: Digests


class InTotoStatement(Claims):
    """What is the same in every statement; the kinds add ``predicate_type`` and ``predicate``."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field("https://in-toto.io/Statement/v1", alias="_type")
    subject: Annotated[tuple[Subject, ...], Field(min_length=1)]


Kind = TypeVar("Kind", bound=InTotoStatement)


def sign(statement: InTotoStatement, signer: CryptoSigner) -> bytes:
    """Return a statement in its envelope, signed."""
    envelope = Envelope(statement.model_dump_json(by_alias=True).encode(), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return _written(envelope)


def read_signed(content: bytes, kind: type[Kind], file: object, what: str) -> tuple[Envelope, Kind]:
    """Return the envelope and the statement of a kind that some bytes are, without asking who signed it.

    Parameters
    ----------
    file, what
        What the bytes are called, and what they should be; for errors.

    Raises
    ------
    EvidenceError
        If they are none, or differ in any byte from how such envelopes are written.
    """
    try:
        envelope = Envelope.from_dict(json.loads(content))
        statement = kind.model_validate_json(envelope.payload)
        whole = _written(envelope) == content and envelope.payload_type == PAYLOAD_TYPE
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its JSON"
        raise EvidenceError(f"{file} is no {what} that this release can read: '{key}' is wrong.") from error
    # The library answers to malformed JSON with whatever its types make of it.
    except Exception as error:
        raise EvidenceError(f"{file} is no {what}, or is damaged.") from error
    if not whole:
        raise EvidenceError(f"{file} is not as it was written: some of its bytes were changed.")
    return envelope, statement


def verify_signature(envelope: Envelope, key: SSlibKey, file: object) -> None:
    """Check who signed an envelope.

    Raises
    ------
    EvidenceError
        If it was not the holder of this key.
    """
    try:
        envelope.verify([key], 1)
    except VerificationError as error:
        raise EvidenceError(
            f"{file} does not bear a valid signature of the named key: it was changed, or somebody else signed it."
        ) from error


def _written(envelope: Envelope) -> bytes:
    return (json.dumps(envelope.to_dict(), indent=2) + "\n").encode()
