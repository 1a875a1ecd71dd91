"""The champion's lineage: every model that jobs made, which became the champion, and what became of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dlfd_fleet.federation.records.job_record import Champion, JobRecord, Promotion
from dlfd_fleet.tracking.registry import RegisteredVersion, why_not_promoted

Standing = Literal["champion", "passed", "aside", "gone"]
"""``passed``: it was the champion; ``aside``: it never was; ``gone``: it is revoked, or remembers and is purged."""


@dataclass(frozen=True)
class Ancestor:
    """One model of the fleet.

    Attributes
    ----------
    verdict
        PASS, FAIL or INCONCLUSIVE; empty where nothing was judged.
    moves
        When it became the champion, by whom and why.
    version, refusal
        In the registry, if it is there; and why it may not become the champion.
    """

    job: str
    kind: str
    at: datetime
    epoch: int
    requests: int
    verdict: str
    why: str
    standing: Standing
    revoked: str
    moves: tuple[Promotion, ...]
    version: str
    refusal: str


def lineage(
    records: Sequence[JobRecord],
    champion: Champion | None,
    history: Iterable[Promotion],
    versions: Mapping[str, RegisteredVersion],
) -> list[Ancestor]:
    """Return the fleet's models, newest first.

    Parameters
    ----------
    versions
        Of the registry, by job; none where MLflow does not answer.
    """
    moves = dict[str, list[Promotion]]()
    for move in history:
        moves.setdefault(move.job, []).append(move)
    epoch, found = champion.epoch if champion else 0, list[Ancestor]()
    for record in records:
        version = versions.get(record.job)
        if record.kind not in {"train", "erase", "import"}:
            continue
        if version is None and not record.released and record.verdict is None:
            continue
        revoked = version.revoked if version else ""
        if not revoked and record.released and record.epoch < epoch:
            revoked = f"it remembers people whom the fleet has forgotten since (epoch {epoch})"
        found.append(
            Ancestor(
                job=record.job,
                kind=record.kind,
                at=record.started_at,
                epoch=record.epoch,
                requests=record.requests,
                verdict=record.verdict.outcome.value if record.verdict else "",
                why=record.verdict.sentence() if record.verdict else record.note,
                standing=_standing(record, champion, revoked, record.job in moves),
                revoked=revoked,
                moves=tuple(moves.get(record.job, ())),
                version=version.version if version else "",
                refusal=(why_not_promoted(version, epoch) or "") if version else "",
            )
        )
    return found[::-1]


def _standing(record: JobRecord, champion: Champion | None, revoked: str, was_champion: bool) -> Standing:
    if champion is not None and champion.job == record.job:
        return "champion"
    if was_champion:
        return "passed"
    return "gone" if revoked else "aside"
