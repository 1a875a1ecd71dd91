"""Say what sites that are asked to forget can aim at."""

from __future__ import annotations

from collections.abc import Iterable

from dlfd_fleet.federation.protocol.messages import Aim, PendingReply
from dlfd_fleet.settings import ErasureSettings


def have_references(replies: Iterable[PendingReply]) -> bool:
    """Tell whether reference models have answered for all images that the sites are asked to forget."""
    asked = [reply for reply in replies if reply.can_unlearn]
    return bool(asked) and all(reply.has_references for reply in asked)


def aims_of(replies: Iterable[PendingReply], erasure: ErasureSettings, *, references: bool = True) -> tuple[Aim, ...]:
    """Return what all sites that unlearn can aim at, and so read a gate of their own by; the best comes first.

    It is empty if there is nothing for one of them.

    Parameters
    ----------
    references
        Whether reference models that have answered are good enough.
    """
    from dlfd_fleet.unlearning.methods import METHODS  # sites, which import this package too, seldom need them

    said = list(replies)
    asked = [reply for reply in said if reply.can_unlearn]
    at_references = (Aim.REFERENCES,) if references and have_references(said) else ()
    own = erasure.own_answers and bool(asked) and all(reply.can_aim_at_own for reply in asked)
    if own and METHODS.find(erasure.method).aims_at_references:
        return (*at_references, Aim.OWN_ANSWERS)
    return at_references
