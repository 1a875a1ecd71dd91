"""Bring names of people and classes to the one form in which they are compared."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from dlfd_fleet.names import UNSEEN

_APOSTROPHES = frozenset("\u2018\u2019\u201b\u02bc\u2032\u00b4`'")
_UNSEEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs"})  # control and format characters, halves of pairs
# The capitals of the Turkish i with a dot and without one fold to different letters; here all of them are one letter.
_LETTERS = str.maketrans({"\N{LATIN SMALL LETTER DOTLESS I}": "i"})
_DOTTED_I = "i\N{COMBINING DOT ABOVE}"


@lru_cache(maxsize=1 << 17)
def canonical(name: str) -> str:
    """Return the form in which a name is compared; it is equal for two spellings of one name.

    It ignores Unicode form (composed or not, full-width letters), case, the dot of a Turkish i, extra blanks and
    invisible characters. Accents, punctuation and the order of words distinguish people.

    Examples
    --------
    >>> canonical("  Anna   SMITH ")
    'anna smith'
    """
    while True:
        folded = _folded(name)
        if folded == name:
            return folded
        name = folded


def without_typography(name: str) -> str:
    r"""Return the canonical form without accents, with plain dashes, apostrophes and digits.

    Names that have it in common are two people, and may be one whose name a word processor has changed.

    Examples
    --------
    >>> without_typography("Zo\u00eb O\u2019Brien\u2010Smith") == without_typography("Zoe O'Brien-Smith")
    True
    """
    letters = unicodedata.normalize("NFD", canonical(name))
    return "".join(_plain(letter) for letter in letters if not unicodedata.combining(letter))


def _plain(letter: str) -> str:
    if letter in _APOSTROPHES:
        return "'"
    if unicodedata.category(letter) == "Pd" or letter == "\N{MINUS SIGN}":
        return "-"
    return str(unicodedata.digit(letter, letter))


def told_apart(names: Sequence[str]) -> list[str]:
    r"""Return names in quotation marks, with codes of letters if two of them look alike.

    Examples
    --------
    >>> print(*told_apart(["Zo\u00eb", "Zoe\u0308"]))
    'Zo\xeb' 'Zoe\u0308'
    """
    looks = {unicodedata.normalize("NFC", name) for name in names}
    return [ascii(name) if len(looks) < len(names) else repr(name) for name in names]


def _folded(name: str) -> str:
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFD", name).casefold())
    seen = "".join(letter for letter in text if letter.isspace() or not _is_unseen(letter))
    plain = unicodedata.normalize("NFD", seen).translate(_LETTERS).replace(_DOTTED_I, "i")
    return " ".join(unicodedata.normalize("NFKC", plain).split())


def _is_unseen(letter: str) -> bool:
    return letter in UNSEEN or unicodedata.category(letter) in _UNSEEN_CATEGORIES
