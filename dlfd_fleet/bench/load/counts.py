"""Lists of numbers that a bench is run for."""

from __future__ import annotations

from dlfd_fleet.exceptions import ConfigurationError


def parse_counts(text: str, what: str, *, least: int = 1) -> list[int]:
    """Return the numbers in ``10,100,1000``, each once, in order.

    Parameters
    ----------
    what
        Of what they are the numbers, for an error.
    least
        Least number that is taken.

    Raises
    ------
    ConfigurationError
        If it is no list of numbers.
    """
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < least:
        raise ConfigurationError(f"'{text}' is not a list of numbers of {what}; write 10,100,1000.")
    return counts
