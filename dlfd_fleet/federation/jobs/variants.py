"""Smaller and faster files of a model that is about to be released: each is made, attacked and judged by itself."""

from __future__ import annotations

from pathlib import Path

import torch

from dlfd_fleet.audit import Verdict
from dlfd_fleet.exceptions import ExportError
from dlfd_fleet.export import Variant, content_of, export_variant, file_of, prepare
from dlfd_fleet.federation.jobs.coordinator import Coordinator
from dlfd_fleet.federation.protocol.packing import Arrays
from dlfd_fleet.federation.release.release_rule import may_release
from dlfd_fleet.models import ModelCard, build
from dlfd_fleet.settings import Format


def publish_variants(job: Coordinator, card: ModelCard, arrays: Arrays, source: Path) -> None:
    """Make the formats of ``export.formats`` beside the fp32 file, and keep those that are good.

    A file that is too far from torch, or that leaks again what the model has forgotten, is deleted and named; the model
    and its other files are released without it.

    Parameters
    ----------
    source
        The fp32 file, which may be released.
    """
    kept: list[Format] = ["fp32"]
    for form in job.settings.export.formats:
        if form == "fp32":
            continue
        try:
            verdict = _publish(job, card, arrays, source, form)
        except ExportError as error:
            reason: str | None = str(error)
        else:
            if verdict is not None:
                verdicts = job.record.file_verdicts | {form: verdict}
                job.record = job.record.model_copy(update={"file_verdicts": verdicts})
            reason = verdict.sentence() if verdict and not may_release(verdict, job.settings) else None
        if reason is None:
            kept.append(form)
        else:
            file_of(form, source).unlink(missing_ok=True)
            job.note(refused_files=job.record.proceedings.refused_files | {form: reason})
            job.progress.say(f"No {form} file is released: {reason}")
    job.advance("exported", formats=tuple(kept))


def _publish(job: Coordinator, card: ModelCard, arrays: Arrays, source: Path, form: Variant) -> Verdict | None:
    """Make one file, unless it was made before the job was interrupted, and attack it at the sites."""
    strategy, file = job.strategy(card), file_of(form, source)
    if not file.exists():
        ranges = strategy.ranges(job.fleet, prepare(content_of(source))) if form == "int8" else None
        model = build(card)
        model.load_state_dict(arrays)
        # The coordinator has no images: that a file is near to torch on those that matter shows at the sites.
        nothing = torch.zeros((0, 3, card.image_size, card.image_size), dtype=torch.uint8)
        export_variant(model, card, source, form=form, settings=job.settings.export, images=nothing, ranges=ranges)
    return job.judge_file(strategy, arrays, file, form)
