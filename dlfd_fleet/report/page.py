"""Reports as one HTML file each: no script, nothing loaded from elsewhere, for screens and for paper."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import AwareDatetime, Field

from dlfd_fleet.audit import Estimate
from dlfd_fleet.report import words
from dlfd_fleet.report.contents import AskedRequest, ErasureReport, Part
from dlfd_fleet.report.in_short import in_short
from dlfd_fleet.report.plots import gate_plot, loss_plot
from dlfd_fleet.report.procedure import ProcedureCertificate
from dlfd_fleet.report.templates import BASE, ERASURE, PROCEDURE, SINGLE

if TYPE_CHECKING:
    from jinja2 import Environment

SCORE_TITLES = {
    "test_accuracy": "test accuracy",
    "balanced_accuracy": "balanced accuracy",
    "retain_accuracy": "retain accuracy",
    "forget_accuracy": "forget accuracy",
    "mia_accuracy": "MIA accuracy",
    "mia_auc": "MIA AUC",
    "forgetting_score": "forgetting score (0 is best)",
    "nomus": "NoMUS",
}
"""What scores are called where people read them."""


class DeliveryProgress(Part):
    """How far a released model has come to the devices, as the delivery knows it."""

    as_of: AwareDatetime
    published_at: AwareDatetime | None
    """None if the model was never published."""
    minimum_epoch: int
    """Least epoch that devices may run."""
    devices: int
    """That are known."""
    purged: int
    """Those that have said that they hold no model under the least epoch any more."""
    retired: int = 0
    """Those that were given up, with a reason, and can never answer."""
    excepted: dict[str, str] = Field(default_factory=dict)
    """Those that have not purged and may not answer any more, for their lease has run out: by name, in words."""
    waiting: dict[str, str] = Field(default_factory=dict)
    """Those that keep the erasure open: by name, in words."""

    @property
    def is_over(self) -> bool:
        """Whether no device keeps the erasure open: what sites are told, and close their requests by."""
        return not self.waiting

    def sentence(self) -> str:
        """Say how far it is, and what that means for the requests."""
        waiting = words.count(len(self.waiting), "device")
        if not self.devices:
            state = f"no device is enrolled. {_COMPLETE_WITHOUT_DEVICES}"
        elif self.published_at is None:
            state = f"the model is not published to devices. {waiting} may run an older one and keep the requests open."
        else:
            state = f"{self.purged} of {words.count(self.devices, 'device')} have purged every older model; "
            state += f"{waiting} still to come, and the requests stay open until then."
        if self.devices and self.is_over:
            state = (
                f"{self.purged} of {words.count(self.devices, 'device')} have purged every older model; no device is "
                "left to come. The sites close the requests when the next job tells them."
            )
        return f"As of {_moment(self.as_of)}, {state}"


_COMPLETE_WITHOUT_DEVICES = "A request is complete when its site has purged the images."


def without_moment(page: str) -> str:
    """Return a page without the time that it was drawn at, to see whether it says anything new."""
    return re.sub(r"As of \d{4}-\d\d-\d\d \d\d:\d\d UTC, ", "", page)


def render(
    content: bytes,
    delivery: DeliveryProgress | str | None = None,
    acknowledged_later: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Return the page of an erasure report.

    Parameters
    ----------
    content
        ``report.json``, from :meth:`ErasureReport.to_json`; the page tells its digest.
    delivery
        How far the model has come to devices when the page is made; why that is not known, as a text; None if this
        coordinator delivers to no devices.
    acknowledged_later
        Sites that were away when the job settled and have purged since then, and the job in which they said so.

    Raises
    ------
    EvidenceError
        If it is no report that this release can read.
    """
    report = ErasureReport.from_json(content)
    judged, tried = "retrained" if report.retrained else "unlearned", tuple(words.attacks(report))
    return (
        _environment()
        .get_template("erasure")
        .render(
            report=report,
            in_short=in_short(report, acknowledged_later),
            delivery=delivery,
            acknowledged_later=acknowledged_later,
            margin=report.verdict.margin if report.verdict else 0.0,
            tried=tried,
            measured="retrained" in report.models or any(scores.mia_auc for _, _, scores in tried),
            beside=not any(scores.mia_auc for _, _, scores in tried),
            judged=judged,
            control=report.models[judged].scores.control_auc if judged in report.models else None,
            # What a copy that is thrown away is good for tells nobody anything; its attack is among those tried.
            columns={name: model.scores for name, model in report.models.items() if name != "relearned"},
            compared=tuple(words.comparison(report)),
            gate_plot=gate_plot(report.readings) if report.readings else "",
            loss_plots=[loss_plot(name, groups) for name, groups in report.losses.items()],
            taking_part={site.site for site in report.sites},
            digest=hashlib.sha256(content).hexdigest(),
        )
    )


def render_single(**values: object) -> str:
    """Return the page of an unlearning without a fleet."""
    return _environment().get_template("single").render(values)


def render_procedure(certificate: ProcedureCertificate) -> str:
    """Return the page of a procedure certificate."""
    return _environment().get_template("procedure").render(certificate=certificate)


@cache
def _environment() -> Environment:
    # Late: who only verifies certificates, with the device's extra, has no Jinja.
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader({"base": BASE, "erasure": ERASURE, "procedure": PROCEDURE, "single": SINGLE}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": score_text, "moment": _moment, "result": _result, "purge": _purge}
    environment.globals |= {"words": words, "score_titles": SCORE_TITLES, "complete": _COMPLETE_WITHOUT_DEVICES}
    return environment


def score_text(value: Estimate | float | None) -> str:
    """Return a score as people read it, with its bounds; bounds that exclude nothing are none."""
    if isinstance(value, Estimate):
        return f"{value.value:.3f} [no bounds]" if value.says_nothing else str(value)
    return "-" if value is None else f"{value:.3f}"


def _moment(value: datetime | None) -> str:
    return "not known" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _result(request: AskedRequest, report: ErasureReport, later: Mapping[str, str]) -> str:
    if request.request not in report.served:
        return "waits for the next job"
    met = report.deadline_met(request)
    served = "served" if met is None else "served in time" if met else "served after the deadline"
    return (
        served if request.site in {*report.acknowledged, *later} else f"{served}; its site has yet to confirm the purge"
    )


def _purge(site: str, report: ErasureReport, later: Mapping[str, str]) -> str:
    if not report.released and not report.nothing_to_unlearn:
        return "none: nothing was released"
    if site in report.acknowledged:
        return f"acknowledged under epoch {report.acknowledged[site]}"
    return f"acknowledged later, in {later[site]}" if site in later else "not acknowledged; told by the next job"
