"""Find private keys of the repository in folders of PEM files. The root names the role of each key."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Root, Targets

from dlfd_fleet.device.download import sync_folder
from dlfd_fleet.exceptions import DeliveryError

_NAME = "x-dlfd-fleet-name"
"""Field of a public key that says which file its private half was written to."""


class KeyRing:
    """The available private keys.

    Parameters
    ----------
    folders
        Folders of ``*.pem`` files, unencrypted PKCS #8. Missing folders are ignored.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = tuple(folders)
        self._made: dict[str, CryptoSigner] = {}

    def signers(self, role: str, *delegators: Root | Targets) -> list[CryptoSigner]:
        """Return the signers of a role that each of these delegators accepts.

        Raises
        ------
        DeliveryError
            If fewer keys are available than must sign.
        """
        found: dict[str, CryptoSigner] = {}
        at_hand = self._signers()
        for delegator in delegators:
            wanted = delegator.get_delegated_role(role)
            here = {keyid: at_hand[keyid] for keyid in wanted.keyids if keyid in at_hand}
            if len(here) < wanted.threshold:
                missing = [_name(delegator.get_key(keyid)) for keyid in wanted.keyids if keyid not in here]
                raise DeliveryError(
                    f"To sign '{role}', {wanted.threshold} of its keys are needed, and {len(here)} were found in "
                    f"{', '.join(map(str, self.folders))}: name the folder of {' or '.join(missing)} with --keys."
                )
            found |= here
        return list(found.values())

    def count(self, role: str, delegator: Root | Targets) -> int:
        """Return the number of available keys of a role."""
        at_hand = self._signers()
        return sum(keyid in at_hand for keyid in delegator.get_delegated_role(role).keyids)

    def can_sign(self, role: str, *delegators: Root | Targets) -> bool:
        """Tell whether enough keys of a role are available."""
        return all(self.count(role, each) >= each.get_delegated_role(role).threshold for each in delegators)

    def make(self, role: str, folder: Path) -> CryptoSigner:
        """Make an Ed25519 key, in a file that only its owner reads."""
        signer = CryptoSigner.generate_ed25519()
        name = f"{role}-{signer.public_key.keyid[:8]}"
        signer.public_key.unrecognized_fields[_NAME] = name
        file = folder / f"{name}.pem"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(signer.private_bytes)
                opened.flush()
                os.fsync(opened.fileno())
            sync_folder(folder)
        except OSError as error:
            raise DeliveryError(f"The key {file} cannot be written: {error.strerror}.") from error
        self._made[signer.public_key.keyid] = signer
        return signer

    def _signers(self) -> dict[str, CryptoSigner]:
        """Search again each time, because media and rotations change the keys."""
        return self._made | {signer.public_key.keyid: signer for signer in self._read()}

    def _read(self) -> Iterator[CryptoSigner]:
        for file in sorted(file for folder in self.folders for file in folder.glob("*.pem")):
            try:
                yield CryptoSigner(load_pem_private_key(file.read_bytes(), None))
            except OSError as error:
                raise DeliveryError(f"The key {file} cannot be read: {error.strerror}.") from error
            except (ValueError, TypeError) as error:
                raise DeliveryError(
                    f"{file} is not an unencrypted private key in PEM: remove it from the folder."
                ) from error


def _name(key: Key) -> str:
    return str(key.unrecognized_fields.get(_NAME, key.keyid[:8])) + ".pem"


def read_public_key(file: Path) -> SSlibKey:
    """Read a device's public key, in PEM.

    Raises
    ------
    DeliveryError
        If the file is missing or no public key.
    """
    try:
        return SSlibKey.from_crypto(load_pem_public_key(file.read_bytes()))
    except OSError as error:
        raise DeliveryError(f"The public key {file} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeliveryError(f"{file} is no public key in PEM; `dlfd-fleet-device` shows a device's own.") from error
