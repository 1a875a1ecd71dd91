"""Show progress: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from dlfd_fleet.plain_text import plain, visible

Advance = Callable[[], None]
_SECONDS_BETWEEN_LINES = 10.0


class ProgressDisplay(Protocol):
    """Shows named phases; entering a phase gives a function that advances it by one."""

    def phase(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """Show a phase of ``total`` steps until the context is left."""

    def say(self, line: str) -> None:
        """Show one line above the bars."""


class ConsoleProgress:
    """Bars on a terminal; elsewhere one line when a phase starts, one now and then, and one when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """Show a phase of ``total`` steps until the context is left."""
        if self._console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
            )
            with Progress(*columns, console=self._console) as bars:
                task = bars.add_task(visible(name), total=total)
                yield lambda: bars.advance(task)
        else:
            yield from self._lines(name, total)

    def say(self, line: str) -> None:
        """Show one line."""
        self._console.print(plain(line))

    def _lines(self, name: str, total: int) -> Iterator[Advance]:
        started = said = time.monotonic()
        done = 0

        def advance() -> None:
            nonlocal done, said
            done, now = done + 1, time.monotonic()
            if done < total and now - said >= _SECONDS_BETWEEN_LINES:
                said = now
                self._console.print(plain(f"{name}: {done}/{total}, {now - started:.0f} s"), soft_wrap=True)

        self._console.print(plain(f"{name} ..."), soft_wrap=True)
        yield advance
        self._console.print(plain(f"{name}: done, {time.monotonic() - started:.1f} s"), soft_wrap=True)
