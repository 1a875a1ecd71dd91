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
# The same without a scheme, or without its slashes: a URL that was mistyped holds the password all the same. No sign
# that a user may follow is in a user's name, so that a long text of such signs is read once, and not from each.
_IN_HALF_A_URL = re.compile(r"(?:^|[\s='\"\[({,;])(?://)?[^/@:\s\\='\"\[({,;]*:[^/@\s\\]+@")
# Oracle's own way to write them: user/password@host.
_IN_ORACLES_USER = re.compile(r"\boracle[\w+:]{0,40}:/*[^/@:\s]{1,200}/[^/@\s]+@", re.IGNORECASE)
# A user alone may be a token, but where people have names or the part before the @ names a container.
_USER_ALONE = re.compile(
    r"(?<![\w+.-])(?!(?:ssh|sftp|scp|ftps?|git|rsync|smb|hdfs|abfss?|wasbs?|postgres(?:ql)?|cockroachdb|redshift|mysql|"
    r"mariadb|mssql|oracle|trino|presto|hive|(?:git|svn|hg|bzr)\+ssh)(?:\+\w+)?:)"
    r"[a-z][a-z0-9+.-]{0,30}://[^/@?#\s]+@",
    re.IGNORECASE,
)
_WEB_USER = re.compile(r"https?:/+[^/@?#]*@", re.IGNORECASE)
_KEY = re.compile(r"[?&;#](?:key|code)=[^\s&;#]", re.IGNORECASE)
_WEB_KEY = re.compile(rf"https?:/\S*{_KEY.pattern}", re.IGNORECASE)
_LONG = (
    r"[\w.-]*(?:password|passwd|passphrase|passcode|pwd|secret|token|credentials?|signature|"
    r"(?:private|api|access|account|shared|storage|subscription|functions?)[-_]?key)"
)
_SHORT = r"(?:[\w.-]*[_.-])?(?:pass|pw|sig|sas|jwt|auth|authorization|cookie|session(?:_?id)?)"
_BEGINS = r"(?:^|[?&;,#{(\s='\"])"  # where a name begins: in a URL's query, in a driver's list of options
_NAMED = re.compile(rf"{_BEGINS}(?:{_LONG}|{_SHORT})\s*=\s*['\"{{]?[^\s&;'\"}}]", re.IGNORECASE)
# In JSON, and in YAML or a header of HTTP. Without the quotation marks or the blank, module:callable is a name.
_NAMED_IN_JSON = re.compile(rf"['\"](?:{_LONG}|{_SHORT})['\"]\s*:\s*['\"][^'\"]", re.IGNORECASE)
_NAMED_IN_A_LINE = re.compile(
    rf"{_BEGINS}(?:{_LONG}|(?:proxy-)?authorization|(?:set-)?cookie):\s+['\"]?[^\s'\"]", re.IGNORECASE
)
_OPTION = re.compile(rf"(?<![\w-])--?{_LONG}\s+[^\s-]", re.IGNORECASE)
_LOGIN = re.compile(r"\b(?:basic|bearer)\s+(?=[^\s\d]*\d)[\w+/.~=-]{8,}", re.IGNORECASE)
_AT = re.compile("@")
# By what a text must hold: without it a long text would be read from each place where a pattern may begin.
_PATTERNS = (
    *((_AT, pattern) for pattern in (_IN_USER, _IN_HALF_A_URL, _IN_ORACLES_USER, _USER_ALONE, _WEB_USER)),
    (_KEY, _WEB_KEY),
    *((pattern, pattern) for pattern in (_NAMED, _NAMED_IN_JSON, _NAMED_IN_A_LINE, _OPTION, _LOGIN)),
)
_MOST_DECODINGS = 5


def holds_password(text: str) -> bool:
    """Tell whether a text holds a password, a token or a key: in a URL, also percent-encoded, or beside its name.

    Examples
    --------
    >>> holds_password("postgresql://ada:geheim@host/fleet"), holds_password("postgresql://ada@host/fleet")
    (True, False)
    """
    for _ in range(_MOST_DECODINGS):
        if any(needed.search(text) and pattern.search(text) for needed, pattern in _PATTERNS):
            return True
        decoded = unquote(text)
        if decoded == text:
            return False
        text = decoded
    return True  # nothing honest is encoded so often


def without_passwords(text: str) -> str:
    """Return a text for a message: three stars in place of one that holds a password."""
    return "***" if holds_password(text) else text
