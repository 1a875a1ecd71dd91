"""Limit the number of images that a site counts by, by the other sites' numbers and its own past.

A site's count is its weight in averages, its share of the class weights, and the base of the limit on forget requests.
Nobody can count another site's images. So a count far above the others' is replaced by their median, and it must match
the images that the site answers for in an audit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from dlfd_fleet.audit import Role, SampleScores
from dlfd_fleet.federation.protocol.messages import PendingReply

_OFTEN, _SOME = 2, 20  # people ask and withdraw while a job runs: its counts are not exact
_MANY_UNSEEN = 10_000


@dataclass(frozen=True)
class Claim:
    """The numbers that a site reports, and the number that it counts by.

    Attributes
    ----------
    retain, forget
        Numbers of images that it trains on and asks to forget.
    weight
        Number of images that it counts by; less than :attr:`retain` if that is implausible.
    doubt
        Why it counts by less; empty if it does not.
    """

    retain: int
    forget: int
    weight: int
    doubt: str = ""

    @classmethod
    def of(cls, reply: PendingReply) -> Claim:
        """Return the claim of a site that counts by what it reports."""
        return cls(reply.retain_images, reply.forget_images, reply.retain_images)


def claims_of(
    replies: Mapping[int, PendingReply], ratio: float, growth: float, before: Mapping[str, int]
) -> dict[int, Claim]:
    """Return the claim of each node's site.

    Parameters
    ----------
    ratio
        Largest count, as a multiple of the other sites' median; a site with more counts by that median.
    growth
        Largest count, as a multiple of the site's count in its last job; a site with more counts by that.
    before
        Counts of sites in their last job, by site id.
    """
    claims = {}
    for node, reply in replies.items():
        others = [other.retain_images for key, other in replies.items() if key != node and other.retain_images]
        said = weight = reply.retain_images
        usual, known, doubt = int(median(others)) if others else 0, before.get(reply.site, 0), ""
        if usual and said > ratio * usual:
            weight = usual
            doubt = f"more than {ratio:g} times the median of the others', {usual} (fleet.largest_weight_ratio)"
        if known and weight > growth * known:
            weight = max(1, int(growth * known))
            doubt = f"more than {growth:g} times those of its last job, {known} (fleet.largest_growth)"
        if doubt:
            doubt = f"says that it trains on {said} images, {doubt}; it counts by {weight}"
        claims[node] = Claim(said, reply.forget_images, weight, doubt)
    return claims


@dataclass(frozen=True)
class PlausibleCounts:
    """Limits of counts, as in :func:`claims_of`."""

    ratio: float = math.inf
    growth: float = math.inf
    before: Mapping[str, int] = field(default_factory=dict)

    def claims(self, replies: Mapping[int, PendingReply]) -> dict[int, Claim]:
        """Return the claim of each node's site."""
        return claims_of(replies, self.ratio, self.growth, self.before)


def plausible_images(claims: Mapping[int, Claim]) -> int:
    """Return the most images of people never trained on that one site may report.

    It is the number that the whole fleet has trained on, or 10,000 if that is more.
    """
    return max(_MANY_UNSEEN, sum(claim.weight + claim.forget for claim in claims.values()))


def contradiction(
    claim: Claim, samples: SampleScores, roles: Collection[Role], most_retain: int | None, most_unseen: int
) -> str | None:
    """Return a sentence if a site's audit contradicts its reported numbers; None if not.

    Rows take memory and time, so a site must not invent them without limit.

    Parameters
    ----------
    samples
        The site's samples of the asked roles.
    most_retain
        Number of retain images that it was asked for; None for all.
    most_unseen
        As in :func:`plausible_images`.
    """
    answered = {role: int(samples.of_role(role).sum()) for role in Role}
    if other := [role.value for role, count in answered.items() if count and role not in roles]:
        return f"answers for {' and '.join(other)} images, which it was not asked for"
    for what, said, role in (("trains on", claim.retain, Role.RETAIN), ("forgets", claim.forget, Role.FORGET)):
        if role not in roles:
            continue
        asked = said if role is not Role.RETAIN or most_retain is None else min(said, most_retain)
        if asked > _OFTEN * answered[role] + _SOME or answered[role] > _OFTEN * asked + _SOME:
            return f"says that it {what} {said} images, and answers for {answered[role]} of them"
    unseen = answered[Role.VALIDATION] + answered[Role.TEST]
    if unseen > most_unseen:
        return f"answers for {unseen} images of people never trained on, above the {most_unseen} that are plausible"
    return None


def counted_rows(claim: Claim, samples: SampleScores) -> SampleScores:
    """Return the rows that count, with at most as many retain images as the site counts by."""
    if claim.weight >= claim.retain:
        return samples
    retain = samples.of_role(Role.RETAIN)
    return samples.rows(~retain | (np.cumsum(retain) <= claim.weight))
