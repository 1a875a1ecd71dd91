"""One rule for names that become folders, files or arguments: sites, jobs, devices."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

LONGEST_NAME = 63
LONGEST_IN_BYTES = 192
"""Most bytes of a name in UTF-8: file systems take 255, and a file's suffixes need some of them."""
UNSEEN = frozenset(
    chr(code)
    for codes in (
        (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0),
        range(0x180B, 0x1810),
        range(0xFE00, 0xFE10),
        range(0xE0000, 0xE1000),
    )
    for code in codes
)
"""Characters that nobody sees though their category does not say so: fillers, joiners and variation selectors."""

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
    wrong = [ascii(sign) if sign in UNSEEN else repr(sign) for sign in name if not _may_hold(sign)]
    size = len(name.encode(errors="replace"))
    composed = unicodedata.normalize("NFC", name)
    checks = {
        "it is empty": not name,
        f"it has {len(name)} characters, more than {LONGEST_NAME}": len(name) > LONGEST_NAME,
        f"its letters take {size} bytes, more than {LONGEST_IN_BYTES}; shorten it": size > LONGEST_IN_BYTES,
        f"it holds {''.join(wrong[:1])}; use letters, digits, blanks, '-', '_' and '.'": bool(wrong),
        "it must begin with a letter or a digit": not _is_letter_or_digit(name[:1] or "-"),
        f"it ends with {name[-1:]!r}, which some systems drop": name.endswith((".", " ")),
        f"write its letters in one piece each (NFC): {composed!r}": name != composed,
        "Windows keeps it for a device": name.split(".", maxsplit=1)[0].strip().casefold() in _RESERVED,
    }
    return next((why for why, holds in checks.items() if holds), None)


def _may_hold(sign: str) -> bool:
    return sign in _SIGNS or (unicodedata.category(sign)[0] in "LNM" and sign not in UNSEEN)


def _is_letter_or_digit(sign: str) -> bool:
    return unicodedata.category(sign)[0] in "LN"
