"""Bounds of what a message may hold: whatever one site sends, nothing overflows, fills the memory or moves a terminal.

Every field of every message is made of these types, or of others with bounds; a test walks through all of them.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import BeforeValidator, Field

from dlfd_fleet.ledger.site import MOST_MARKS
from dlfd_fleet.models import Name
from dlfd_fleet.plain_text import visible

MOST_REQUESTS = 10_000
"""Of one site in one job."""
MOST_REQUESTS_EVER = 1_000_000
"""Of all sites, in all jobs."""
MOST_JOBS = 10_000
"""Whose end one site does not know."""
MOST_REFERENCES = 64
"""Reference models of one job."""
MOST_CLASSES = 10_000
MOST_TENSORS = 10_000
LARGEST_REPLY, LARGEST_QUERY = 8 * 2**20, 128 * 2**20
"""Bytes of a message's fields; its arrays are not among them. A query names requests of all sites."""
MOST_SAMPLES = 5_000_000
"""Rows of one site in one audit."""
LONGEST_REASON = 2_000


def _sentence(value: object) -> object:
    return visible(visible(value), LONGEST_REASON) if isinstance(value, str) else value


Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
AtLeastOne = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(ge=-1e39, le=1e39, allow_inf_nan=False)]
"""Of single precision, whose largest number is 3.4e38; sums of a million of them are finite, too."""
Seconds = Annotated[float, Field(ge=0.0, le=1e9, allow_inf_nan=False)]
Difference = Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)]
"""Of two probabilities, which rounding can make a little more than 1."""
Pseudonym = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""Under a site's key."""
SiteId = Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
"""What a site calls itself: a random number that it keeps."""
Mark = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""Of one person and one earlier job, in this job: sites with the fleet's secret recognise it, and nobody else."""
Marks = Annotated[tuple[Mark, ...], Field(max_length=MOST_MARKS)]
"""Of one person at one site."""
MarksOfSites = Annotated[tuple[Mark, ...], Field(max_length=MOST_REQUESTS_EVER)]
"""Of one person at all sites: whatever these may say, together they are no more than this."""
RequestId = Annotated[str, Field(pattern="^[0-9A-Za-z_-]{1,64}$")]
JobName = Name
TensorName = Annotated[str, Field(min_length=1, max_length=1_000)]
Sentence = Annotated[str, BeforeValidator(_sentence), Field(max_length=LONGEST_REASON)]
"""A reason in words; what is too long is cut, and what a terminal would obey is written out."""
Day = Annotated[date, Field(ge=date(2000, 1, 1), le=date(2100, 1, 1))]
"""Of this century: at its ends a date can be reckoned with and changed into any other time zone."""
Weights = Annotated[
    tuple[Annotated[float, Field(gt=0.0, le=1e12, allow_inf_nan=False)], ...],
    Field(max_length=2 * MOST_CLASSES),
]
"""One a class; two a label, where it does not apply and where it does."""
