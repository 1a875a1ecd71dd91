"""Texts on a command line: what is typed in another encoding than UTF-8 is none, whatever command is given it."""

from __future__ import annotations

from typing import Any

import click

from dlfd_fleet.exceptions import ConfigurationError


class _Text(click.types.StringParamType):
    """A text that can be kept and shown; the path of a file may have any bytes, and is none of these."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        text = super().convert(value, param, ctx)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            own = (
                param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name if param else "A text"
            )
            raise ConfigurationError(f"{own}: '{text}' is no text in UTF-8; write it in UTF-8.") from error
        return text


def take_texts_alone(command: click.Command) -> None:
    """Let a command, and those under it, refuse in one sentence whatever is no text where one is asked for."""
    for param in command.params:
        if isinstance(param.type, click.types.StringParamType):
            param.type = _Text()
    for each in command.commands.values() if isinstance(command, click.Group) else ():
        take_texts_alone(each)
