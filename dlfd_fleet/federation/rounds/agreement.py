"""Combine the sites' answers for their own people with the majority's answers for people whom all hold."""

from __future__ import annotations

from collections.abc import Mapping

from dlfd_fleet.audit import SampleScores, agreed
from dlfd_fleet.exceptions import DataError, JobError, MessageError
from dlfd_fleet.federation.protocol.messages import AuditResult, FileAuditResult
from dlfd_fleet.federation.records.journal import Answers
from dlfd_fleet.federation.rounds.fleet import Fleet


def together(
    fleet: Fleet,
    heard: Mapping[int, tuple[AuditResult | FileAuditResult, SampleScores]],
) -> Answers:
    """Join each site's answers for its own people, and the majority's answers for people whom all hold."""
    nodes = {fleet.name(node): node for node in sorted(heard)}
    own, shared, withholding = {}, {}, set[str]()
    for name, node in nodes.items():
        result, samples = heard[node]
        if result.withheld:
            withholding.add(name)
        first = max(0, len(samples) - result.shared)
        own[name], shared[name] = samples.rows(slice(first)), samples.rows(slice(first, None))
    try:
        everybody, liars = agreed(shared, withholding)
    except DataError as error:
        raise JobError(str(error)) from error
    for name in liars:
        fleet.refuse(nodes[name], MessageError("it says other things of the people whom all sites hold than most do"))
        del own[name]
    rows = {name: len(samples) for name, samples in own.items()}
    sums = {name: said for name in own if (said := heard[nodes[name]][0].references) is not None}
    return Answers(SampleScores.concatenate([*own.values(), everybody]), rows=rows, references=sums)
