"""Types with bounds for all fields of messages.

So no site can overflow numbers, fill memory or control a terminal.

Every field of every message has one of these types, or another with bounds; a test checks this.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import BeforeValidator, Field

from dlfd_fleet.ledger.site import MOST_MARKS
from dlfd_fleet.models import Name
from dlfd_fleet.plain_text import visible

MOST_REQUESTS = 10_000
"""Most requests of one site in one job."""
MOST_REQUESTS_EVER = 1_000_000
"""Most requests of all sites in all jobs."""
MOST_JOBS = 10_000
"""Most jobs of whose end a site was not told."""
MOST_REFERENCES = 64
"""Most reference models of one job."""
MOST_CLASSES = 10_000
MOST_TENSORS = 10_000
LARGEST_REPLY, LARGEST_QUERY = 8 * 2**20, 128 * 2**20
"""Largest fields of a message in bytes, without arrays. A query names requests of all sites."""
MOST_SAMPLES = 5_000_000
"""Most rows of one site in one audit."""
LONGEST_REASON = 2_000


def _sentence(value: object) -> object:
    return visible(visible(value), LONGEST_REASON) if isinstance(value, str) else value


Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
AtLeastOne = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(ge=-1e39, le=1e39, allow_inf_nan=False)]
"""A number in the range of single precision, so that sums of a million are finite."""
Seconds = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]
Difference = Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)]
"""A difference of two probabilities; rounding can make it slightly more than 1."""
Pseudonym = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""Under a site's key."""
SiteId = Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
"""A site's random id."""
Mark = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A mark of one person and one earlier job, valid in this job. Only sites with the fleet's secret recognise it."""
Marks = Annotated[tuple[Mark, ...], Field(max_length=MOST_MARKS)]
"""Marks of one person at one site."""
MarksOfSites = Annotated[tuple[Mark, ...], Field(max_length=MOST_REQUESTS_EVER)]
"""Marks of one person at all sites."""
RequestId = Annotated[str, Field(pattern="^[0-9A-Za-z_-]{1,64}$")]
JobName = Name
TensorName = Annotated[str, Field(min_length=1, max_length=1_000)]
Sentence = Annotated[str, BeforeValidator(_sentence), Field(max_length=LONGEST_REASON)]
"""A reason in words. Long texts are cut, and control characters are shown as text."""
Day = Annotated[date, Field(ge=date(2000, 1, 1), le=date(2100, 1, 1))]
"""A day of this century, so that date arithmetic never overflows."""
Weights = Annotated[
    tuple[Annotated[float, Field(gt=0.0, le=1e12, allow_inf_nan=False)], ...],
    Field(max_length=2 * MOST_CLASSES),
]
"""One weight for each class, or two for each label (0 and 1)."""
