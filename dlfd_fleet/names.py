"""One rule for names that become folders, files or arguments: sites, jobs, devices."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

LONGEST_NAME = 63
_SIGNS = "-_. "
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³")}
"""Devices on Windows, whatever suffix follows."""


def plain_name(name: str) -> str:
    """Return a name that is the same one folder on every system.

    It begins with a letter or a digit, of any script, and holds only those, blanks, ``-``, ``_`` and ``.``.

    Raises
    ------
    ValueError
        If it is none; the text says why.
    """
    why = _why_not(name)
    if why:
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"
        raise ValueError(f"{shown!r} is no plain name: {why}")
    return name


def refuse_alike(names: Iterable[str]) -> None:
    """Raise a :class:`ValueError` if two names are one folder where case does not count."""
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            raise ValueError(f"'{other}' and '{name}' are one folder where case does not count; rename one of them")


def _why_not(name: str) -> str | None:
    wrong = [sign for sign in name if not (_is_letter_or_digit(sign) or _is_mark(sign) or sign in _SIGNS)]
    composed = unicodedata.normalize("NFC", name)
    checks = {
        "it is empty": not name,
        f"it has {len(name)} characters, more than {LONGEST_NAME}": len(name) > LONGEST_NAME,
        f"it holds {''.join(wrong[:1])!r}; use letters, digits, blanks, '-', '_' and '.'": bool(wrong),
        "it must begin with a letter or a digit": not _is_letter_or_digit(name[:1] or "-"),
        f"it ends with {name[-1:]!r}, which some systems drop": name.endswith((".", " ")),
        f"write its letters in one piece each (NFC): {composed!r}": name != composed,
        "Windows keeps it for a device": name.split(".", maxsplit=1)[0].strip().casefold() in _RESERVED,
    }
    return next((why for why, holds in checks.items() if holds), None)


def _is_letter_or_digit(sign: str) -> bool:
    return unicodedata.category(sign)[0] in "LN"


def _is_mark(sign: str) -> bool:
    return unicodedata.category(sign)[0] == "M"
