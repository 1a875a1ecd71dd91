"""Passwords in texts: settings go into records, parameters and messages, and nothing secret may go with them.

One rule for every setting, every site's card and every database URL: a text that holds a password is refused, and is
not repeated in the error. Servers and databases have variables of their own for it.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

WHY_REFUSED = (
    "it holds a password, which would be in records and messages; leave it out, and set PGPASSFILE or PGPASSWORD for a "
    "database, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD for an MLflow server"
)
"""Why a text is refused, and what to do."""

# As SQLAlchemy reads a URL: whatever lies between the first colon after the scheme and an @, slashes included.
_IN_USER = re.compile(r"[a-z][a-z0-9+.-]{0,30}:[/\\]+[^/@:]*:[^@]*@", re.IGNORECASE)
# The same without a scheme, or without its slashes: a URL that was mistyped holds the password all the same.
_IN_HALF_A_URL = re.compile(r"(?:^|[\s='\"\[({,;])(?://)?[^/@:\s\\]*:[^/@\s\\]+@")
# A web server's user alone may be a token.
_WEB_USER = re.compile(r"https?:/+[^/@?#]*@", re.IGNORECASE)
_WEB_KEY = re.compile(r"https?:/\S*[?&;#](?:key|code)=[^\s&;#]", re.IGNORECASE)
_NAMED = re.compile(
    r"(?:^|[?&;,#{(\s'\"])"  # where a name begins: in a URL's query, in a driver's list of options
    r"(?:[\w.-]*(?:password|passwd|passphrase|passcode|pwd|secret|token|credentials?|signature|private[-_]?key|"
    r"api[-_]?key|access[-_]?key)|(?:[\w.-]*[_.-])?(?:pass|pw|sig|sas|jwt|auth|authorization|cookie|session(?:_?id)?))"
    r"\s*=\s*['\"{]?[^\s&;'\"}]",
    re.IGNORECASE,
)
_PATTERNS = (_IN_USER, _IN_HALF_A_URL, _WEB_USER, _WEB_KEY, _NAMED)
_MOST_DECODINGS = 5


def holds_password(text: str) -> bool:
    """Tell whether a text holds a password, a token or a key: in a URL, also percent-encoded, or as ``name=value``.

    Examples
    --------
    >>> holds_password("postgresql://ada:geheim@host/fleet"), holds_password("postgresql://ada@host/fleet")
    (True, False)
    """
    for _ in range(_MOST_DECODINGS):
        if any(pattern.search(text) for pattern in _PATTERNS):
            return True
        decoded = unquote(text)
        if decoded == text:
            return False
        text = decoded
    return True  # nothing honest is encoded so often


def without_passwords(text: str) -> str:
    """Return a text for a message: three stars in place of one that holds a password."""
    return "***" if holds_password(text) else text
