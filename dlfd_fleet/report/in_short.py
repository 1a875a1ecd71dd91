"""An erasure in three lines: what was done, what was measured, what remains open.

The terminal, the report and the certificate begin with them, and MLflow's description has them, in the same words.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from dlfd_fleet.audit import Evidence, Outcome, Verdict
from dlfd_fleet.report import words
from dlfd_fleet.report.contents import ErasureReport

_POLICY = "release.on_inconclusive"


class InShort(NamedTuple):
    """The three lines."""

    done: str
    measured: str
    open: str


def in_short(report: ErasureReport, acknowledged_later: Collection[str] = ()) -> InShort:
    """Say an erasure in three lines.

    Parameters
    ----------
    acknowledged_later
        Sites that have purged since the job settled.
    """
    return InShort(
        f"Done: {_done(report)}.",
        f"Measured: {_measured(report)}",
        f"May this case be closed? {_closed(report, acknowledged_later)}",
    )


def _done(report: ErasureReport) -> str:
    asked, purged = words.count(report.requests, "request"), words.count(report.purged_images, "image")
    if report.nothing_to_unlearn:
        return f"no model was trained on the people of {asked}; {purged} purged at the sites"
    how = f"unlearned by {words.method_title(report)}"
    if report.retrained:
        how = "trained anew without the people who asked"
    if not report.released:
        return f"no model was released for {asked}, and the one in use before stays"
    served = asked if len(report.served) == report.requests else f"{len(report.served)} of {asked}"
    return f"{served} served by a model {how}, released as epoch {report.epoch}; {purged} purged at the sites"


def _measured(report: ErasureReport) -> str:
    verdict = report.verdict
    if verdict is None:
        return "nothing, so nothing was judged."
    more = len(verdict.reasons) - 1
    others = f", and {words.count(more, 'other reason')} (see The evidence in the report)" if more > 0 else ""
    said = f"{verdict.outcome}: {verdict.reasons[0].rstrip('.')}{others}. "
    if report.judged_by_usefulness and verdict.outcome is Outcome.PASS:
        return f"{said}Only its usefulness was judged."
    return said + how_sure(verdict)


def how_sure(verdict: Verdict) -> str:
    """Say how often such a verdict is given where it should be, and where it should not."""
    if verdict.outcome is Outcome.FAIL:
        return f"That is worse than the rules allow (margin {words.margin(verdict)})."
    right = f"An audit like this passes a right erasure in {verdict.power:.0%} of cases"
    if verdict.outcome is Outcome.INCONCLUSIVE:
        return f"{right}."
    by_references = verdict.evidence is Evidence.REFERENCES
    wrong = "leaves half" if by_references else f"leaks by the margin, {words.margin(verdict)},"
    return f"{right}, and one that {wrong} in 5%."


def _closed(report: ErasureReport, acknowledged_later: Collection[str]) -> str:
    policy = f"{_POLICY} = {report.settings.get(_POLICY, 'release')}"
    if not report.released and not report.nothing_to_unlearn:
        return f"No: {_why_not(report, policy)}. The requests wait for the next job."
    closable = [request for request in report.asked if request.request in report.served]
    said = "Yes" if len(closable) == len(report.asked) else f"For {len(closable)} of {report.requests} requests yes"
    acknowledged = {*report.acknowledged, *acknowledged_later}
    conditions = sorted({f"{one.site} has confirmed its purge" for one in closable if one.site not in acknowledged})
    if report.released:
        conditions.append("no device runs an older model")
    said += f", as soon as {' and '.join(conditions)}" if conditions else ""
    said += f": {_allowed(report, policy)}."
    if waiting := report.requests - len(closable):
        said += f" {words.count(waiting, 'request')} {'wait' if waiting > 1 else 'waits'} for the next job."
    return said


def _allowed(report: ErasureReport, policy: str) -> str:
    """Say by what a case may be closed."""
    if report.nothing_to_unlearn:
        return f"no model was trained on them, so the policy ({policy}) is not asked"
    if report.verdict is None or report.verdict.outcome is not Outcome.INCONCLUSIVE:
        after = f"after {report.verdict.outcome}" if report.verdict else "after a release"
        return f"{after} it may under any policy (here {policy})"
    if report.settings.get(_POLICY) == "retrain":
        return f"the policy {policy} accepts an inconclusive audit of a model that was trained anew"
    return f"the policy {policy} accepts an inconclusive audit"


def _why_not(report: ErasureReport, policy: str) -> str:
    if report.state in ("failed", "cancelled"):
        return f"the job {'failed' if report.state == 'failed' else 'was cancelled'}, whatever the policy ({policy})"
    if report.state != "settled":
        return f"the job has not ended (policy: {policy})"
    if report.verdict is not None and report.verdict.outcome is Outcome.INCONCLUSIVE:
        return f"under the policy {policy} a person decides about the candidate (dlfd-fleet registry promote)"
    after = report.verdict.outcome if report.verdict else "no verdict"
    return f"after {after} nothing is released, whatever the policy ({policy})"
