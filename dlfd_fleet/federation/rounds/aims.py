"""Say what sites that are asked to forget can aim at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from dlfd_fleet.federation.protocol.messages import Aim, PendingReply
from dlfd_fleet.report.contents import AimedAt
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


def aimed_at(aims: Iterable[Aim]) -> AimedAt:
    """Return what the first attempt of an erasure aims at whose sites can aim at these, the best first."""
    for aim in aims:
        return "own-answers" if aim.at_own else "references"
    return "fleet-gate"


def why_not_better(
    aim: AimedAt,
    replies: Iterable[PendingReply],
    erasure: ErasureSettings,
    *,
    too_poor: bool = False,
    able: bool = True,
    have: Literal["had", "have"] = "had",
) -> str:
    """Say why the first attempt aims at nothing better, as what follows the word because.

    Parameters
    ----------
    too_poor
        Whether a site has said that its reference models are too poor.
    able
        Whether the round that forgets trains images towards targets.
    have
        Of what was, or of what will be.

    Returns
    -------
    str
        Empty of reference models, than which there is nothing better.
    """
    from dlfd_fleet.unlearning.methods import METHODS  # as above

    if aim == "references":
        return ""
    asked = [reply for reply in replies if reply.can_unlearn]
    if too_poor:
        why = "the reference models are too poor to aim at"
    elif any(reply.answered_images for reply in asked):
        why = f"reference models {have} not answered for all people who asked"
    else:
        why = f"no reference models {have} answered"
    if aim == "own-answers":
        return why
    if not asked:
        nor = "no site that was asked can unlearn"
    elif not erasure.own_answers:
        nor = "the settings rule out the model's own answers (erasure.own_answers)"
    elif not able or not METHODS.find(erasure.method).aims_at_references:
        nor = "the way of forgetting aims at nothing"
    elif not all(reply.input.is_image for reply in asked):
        nor = "the model's inputs are no images that could be changed"
    else:
        nor = "a site that was asked has nobody on whom no model was trained"
    return f"{why}, and {nor}"
