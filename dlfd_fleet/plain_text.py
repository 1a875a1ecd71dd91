"""Text that is not ours (names, error texts of sites, file names, settings), shown as plain text and nothing else.

A terminal obeys what it is sent: ESC sequences clear it, change its title or its clipboard, bidirectional overrides
show a name in another order, and a line break forges a line of a log. Rich obeys ``[markup]``. So the commands print
through :class:`PlainConsole`, and what a site has sent goes through :func:`visible` before it is kept.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_UNSEEN = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"})  # controls, bidi, surrogates, separators of lines
_COLOURS = re.compile(r"\x1b\[[0-9;:]*m")
_JOINERS = "\u200c\u200d"  # Persian and many Indian scripts are spelt with them


def visible(text: str, most: int | None = None) -> str:
    r"""Return a text with each character that a terminal would obey written out, such as ``\x1b``.

    Parameters
    ----------
    most
        Characters to keep; a longer text ends in "…".

    Examples
    --------
    >>> visible("Anna\x1b[2J")
    'Anna\\x1b[2J'
    """
    if most is not None and len(text) > most:
        text = text[: most - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    return "".join(_written_out(character) for character in text)


def _written_out(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN and character not in _JOINERS:
        return character.encode("unicode_escape").decode()
    return character


def is_text(text: str) -> bool:
    """Tell whether a text can be kept: it has no null character, and is valid UTF-8."""
    return not any(sign == "\0" or "\ud800" <= sign <= "\udfff" for sign in text)


def printed(text: str) -> str:
    r"""Return what another program printed: its lines, without colours and without anything that a terminal obeys.

    Examples
    --------
    >>> printed("\x1b[92mINFO\x1b[0m:\tready\r\n")
    'INFO:   ready\n'
    """
    lines = re.split(r"\r\n|[\r\n]", _COLOURS.sub("", text))
    return "\n".join(visible(line.expandtabs()) for line in lines)


def last_line(*outputs: str) -> str:
    """Return the last line that another program printed, of the first of its outputs that has one."""
    return next((lines[-1] for each in outputs if (lines := printed(each).strip().split("\n"))[-1]), "no message")


def plain(text: str, style: str = "") -> Text:
    """Return a text for any console: no markup, nothing that a terminal obeys."""
    return Text(visible(text), style=style)


def narrow_table(*headings: str, folded: Collection[str]) -> Table:
    """Return a table without lines, which leaves 80 columns to its cells.

    Parameters
    ----------
    folded
        Columns of running text, which take what the others leave; names, which people copy, stay in one piece.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in folded)
    return table


class PlainConsole(Console):
    """A console that shows every string as it is: no markup, no emoji codes, nothing that a terminal obeys.

    Nor does it cut a word off that is wider than its column of a table.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **settings})

    def render_str(self, text: str, **settings: Any) -> Text:
        """Turn a string into text, before its width is measured."""
        return super().render_str(visible(text), **{**settings, "markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render anything else, such as a :class:`~rich.text.Text`; its line breaks are its own."""
        for column in renderable.columns if isinstance(renderable, Table) else ():
            column.overflow = column.overflow if column.no_wrap else "fold"
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                shown = "\n".join(map(visible, segment.text.split("\n")))
                yield Segment(shown, segment.style)
