"""Keep keyed digests of purged images and rows.

Numbers and small pictures can be guessed. Without the site's key nobody can test a guess.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

_LABEL = b"\xffcontent "  # no UTF-8 text has this byte, so no person's keyed digest is one of a content


def content_digest(key: bytes, sha256: str) -> str:
    """Return the keyed digest of a content: HMAC-SHA-256 of its SHA-256 under the site's key."""
    return hmac.digest(key, _LABEL + sha256.encode(), "sha256").hex()


@dataclass(frozen=True)
class Tombstones:
    """The contents that were purged at a site or will be, tested by SHA-256.

    Attributes
    ----------
    requests
        The requests for which they were purged, by keyed digest.
    """

    requests: Mapping[str, str]
    _key: bytes = field(repr=False)

    def __len__(self) -> int:
        return len(self.requests)

    def __contains__(self, sha256: object) -> bool:
        return isinstance(sha256, str) and self.request_of(sha256) is not None

    def request_of(self, sha256: str | None) -> str | None:
        """Return the request that a content was purged for; None if it was not purged."""
        if sha256 is None or not self.requests:
            return None
        return self.requests.get(content_digest(self._key, sha256))

    def of_request(self, request: str) -> Tombstones:
        """Return the contents that were purged for one request."""
        return Tombstones({digest: one for digest, one in self.requests.items() if one == request}, self._key)
