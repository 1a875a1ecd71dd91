"""Whatever a site sends in a field, its message is refused in one sentence that names it: every field has bounds."""

from __future__ import annotations

import json
import types
import typing
from datetime import date
from enum import EnumType

import numpy as np
import pytest
import torch
from annotated_types import Ge, Gt, Interval, Le, Lt, MaxLen
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel
from pydantic.fields import FieldInfo

from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.protocol import bounds, packing
from dlfd_fleet.federation.protocol.messages import (
    CalibrateResult,
    FileAuditResult,
    FitResult,
    PendingReply,
    SettleResult,
    SettleTask,
    UnlearnResult,
    UnseenResult,
)
from dlfd_fleet.federation.protocol.packing import (
    MODEL,
    FleetMessage,
    arrays_of,
    samples_of,
)
from dlfd_fleet.model_input import image_input
from dlfd_fleet.plain_text import visible

MESSAGES = sorted(FleetMessage.__subclasses__(), key=lambda kind: kind.__name__)
REPLY = {
    "site": "0a1b2c3d",
    "requests": ["r1"],
    "dates": {"r1": {"asked_at": "2026-01-02", "deadline": "2026-02-02"}},
    "people": {"ab" * 32: "2026-02-02"},
    "forget_images": 3,
    "class_images": [4, 5],
    "classes": ["no", "yes"],
    "input": image_input(32).model_dump(),
}


def limits(metadata):
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from limits(item.metadata)
        elif isinstance(item, Interval):
            yield from item
        else:
            yield item


def unbounded(annotation, metadata, path):
    """Yield where a type lets through what has no bounds."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        yield from unbounded(parts[0], [*metadata, *parts[1:]], path)
        return
    if origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from unbounded(part, metadata, path)
        return
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            yield from unbounded(field.annotation, field.metadata, f"{path}.{name}")
    elif origin is not typing.Literal and annotation not in (bool, type(None)) and not isinstance(annotation, EnumType):
        if not has_bounds(annotation, origin, parts, list(limits(metadata))):
            yield f"{path}: {annotation}"
        for part in parts if origin in (tuple, dict) else ():
            if part is not Ellipsis:
                yield from unbounded(part, [], f"{path}[]")


def has_bounds(annotation, origin, parts, found):
    """Numbers and dates have a least and a greatest value, texts and lists a length; of other types nobody knows."""
    lower, upper = (any(isinstance(item, kinds) for item in found) for kinds in ((Ge, Gt), (Le, Lt)))
    longest = any(isinstance(item, MaxLen) for item in found)
    if annotation in (int, float, AwareDatetime, date):
        return lower and upper
    if annotation is str:
        return longest or any(getattr(item, "pattern", None) for item in found)
    return longest if origin is dict or Ellipsis in parts else origin is tuple


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
def test_every_field_of_every_message_has_bounds(kind):
    assert not list(unbounded(kind, [], kind.__name__))


def test_a_field_without_bounds_would_be_found():
    class Loose(FleetMessage):
        number: int
        half: typing.Annotated[float, bounds.Field(ge=0)]
        text: str
        many: dict[bounds.RequestId, int | None]
        fine: bounds.Count

    found = "\n".join(unbounded(Loose, [], "Loose"))
    assert [name for name in Loose.model_fields if f"Loose.{name}" in found] == ["number", "half", "text", "many"]


def sent(text):
    return RecordDict({"body": ConfigRecord({"json": text})})


def refusal(kind, text):
    """Return the one sentence with which a message is refused."""
    with pytest.raises(MessageError, match=r"^site-a sent a") as caught:
        kind.from_records(sent(text), "site-a")
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert len(sentence) < 500
    return sentence


def changed(**changes):
    return json.dumps(REPLY | changes)


DAY = "2026-01-02"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (changed(class_images=[10**400, 1]), "class_images"),
        (changed(class_images=[2**63, 1]), "class_images.0"),
        (changed(class_images=["4", 5]), "class_images.0"),
        (changed(class_images=[True, 5]), "class_images.0"),
        (changed(class_images=[4.0, 5]), "class_images.0"),
        (changed(class_images=[-1, 5]), "class_images.0"),
        (changed(class_images=[1] * 20_000, classes=["a"] * 20_000), "class_images"),
        (changed(forget_images=10**18), "forget_images"),
        (changed(input={"shape": [3, 10**9, 10**9]}), "input"),
        (changed(requests=[f"r{number}" for number in range(1_000_000)]), ""),
        (changed(requests=[f"r{number}" for number in range(20_000)]), "requests"),
        (changed(requests=["r" * 1000]), "requests.0"),
        (changed(requests=["r1", "r1"]), "named twice"),
        (changed(requests=["r1\n"]), "requests.0"),
        (changed(requests=["../../etc"]), "requests.0"),
        (changed(classes=["no", "no"]), "named twice"),
        (changed(classes=["no", "\x1b[2J"]), "classes.1"),
        (changed(classes=["no", "\u202eyes"]), "classes.1"),
        (changed(classes=["no", ""]), "classes.1"),
        (changed(classes=["no", "y" * 10**6]), "classes.1"),
        (changed(dates={"r1": {"asked_at": "0001-01-01T00:00:00+14:00", "deadline": DAY}}), "asked_at"),
        (changed(dates={"r1": {"asked_at": "9999-12-31T23:59:59-14:00", "deadline": DAY}}), "asked_at"),
        (changed(dates={"r1": {"asked_at": "2026-01-01T10:00:00", "deadline": DAY}}), "asked_at"),
        (changed(dates={"r1": {"asked_at": 1e300, "deadline": DAY}}), "asked_at"),
        (changed(dates={}), "the dates are of other requests"),
        (changed(people={"ab" * 32: "0001-01-01T00:00:00+14:00"}), "people"),
        (changed(people={"nobody": DAY}), "people"),
        (changed(withdrawn={"ab" * 32: ["cd"]}), "withdrawn"),
        (changed(withdrawn={"ab" * 32: ["cd" * 32] * 20_000}), "withdrawn"),
        (changed(people={"ab" * 32: "1999-12-31"}), "people"),
        (changed(people={"ab" * 32: "2100-01-02"}), "people"),
        (changed(site="0a1b2c3d\n"), "site"),
        (changed(held="x"), "held"),
        (changed(**{"\x1b]0;owned\x07" + "k" * 10**5: 1}), r"\x1b]0;owned\x07"),
        (changed()[:-1], "whole message"),
        ("[" * 100_000 + "]" * 100_000, "whole message"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, ""),
        ('{"site": "\ud800"}', ""),
        ('{"site": "\\ud800"}', "whole message"),
        ("NaN", "whole message"),
        ("null", ""),
        ("", ""),
        (" " * 10**7, "above"),
        ('{"forget_images": 1' + "0" * 5000 + "}", ""),
    ],
)
def test_a_made_up_reply_is_one_sentence_that_names_the_site(text, key):
    assert key in refusal(PendingReply, text)


@pytest.mark.parametrize(
    ("kind", "fields", "key"),
    [
        (FitResult, {"epoch": 0, "examples": 1, "loss": 0.1, "seconds": 1e308}, "seconds"),
        (FitResult, {"epoch": 0, "examples": 1, "loss": 1e308, "seconds": 1}, "loss"),
        (FitResult, {"epoch": 0, "examples": 1, "loss": float("nan"), "seconds": 1}, "loss"),
        (FitResult, {"epoch": 0, "examples": 10**30, "loss": 0.1, "seconds": 1}, "examples"),
        (FitResult, {"epoch": 10**10, "examples": 1, "loss": 0.1, "seconds": 1}, "epoch"),
        (
            UnseenResult,
            {"unseen": {"people": 0, "model": 1, "references": 1, "too_poor": False}, "seconds": 1},
            "people",
        ),
        (
            UnseenResult,
            {"unseen": {"people": 1, "model": 2, "references": 1, "too_poor": False}, "seconds": 1},
            "model",
        ),
        (UnlearnResult, dict.fromkeys(("epoch", "forget_examples", "retain_examples", "steps"), 10**18), "epoch"),
        (FileAuditResult, {"shared": 0, "max_abs_difference": 1e300, "images": 1, "agreeing": 1, "seconds": 1}, "max_"),
        (CalibrateResult, {"ranges": {"a": [float("inf"), 1]}, "images": 1, "seconds": 1}, "ranges"),
        (CalibrateResult, {"ranges": {"a": [-1e300, 1e300]}, "images": 1, "seconds": 1}, "ranges"),
        (SettleResult, {"requests": 1, "purged_images": 10**400, "epoch": 1}, "purged_images"),
    ],
)
def test_numbers_that_would_overflow_a_sum_are_refused(kind, fields, key):
    assert key in refusal(kind, json.dumps(fields))


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from([10**400, -1, 2**63, 1e308, "0001-01-01T00:00:00+14:00", "ab" * 32, DAY, "\x1b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(MESSAGES), data=st.data())
def test_no_junk_in_any_field_is_more_than_a_message_error(kind, data):
    fields = {name: data.draw(JUNK) for name in kind.model_fields if data.draw(st.booleans())}
    if kind is PendingReply:
        fields = REPLY | fields
    sentence = ""
    try:
        kind.from_records(kind.from_records(sent(json.dumps(fields)), "site-a").to_records(), "site-a")
    except MessageError as error:
        sentence = str(error)
    assert visible(sentence) == sentence


def test_a_reply_within_bounds_is_read():
    reply = PendingReply.from_records(sent(changed(classes=["n\u200co", "yes"])), "site-a")
    assert reply.dates["r1"].asked_at == date(2026, 1, 2)


def test_a_reason_of_any_text_and_length_is_cut_and_travels():
    task = SettleTask(
        job="job-1", outcome="returned", reason="failed \x1b[2J\n\U000e0001" * 10_000, epoch=0, purge=False
    )
    back = SettleTask.from_records(task.to_records(), "the coordinator").reason
    assert back.startswith(r"failed \x1b[2J\n")
    assert back.isprintable()
    assert len(back) == bounds.LONGEST_REASON


def test_more_arrays_or_samples_than_any_site_has_are_refused(monkeypatch):
    zeros = ArrayRecord.from_torch_state_dict({f"w{number}": torch.zeros(1) for number in range(5)})
    monkeypatch.setattr(packing, "MOST_TENSORS", 4)
    with pytest.raises(MessageError, match="site-a sent 5 'model' arrays, above 4"):
        arrays_of(RecordDict({MODEL: zeros}), MODEL, "site-a")
    monkeypatch.undo()
    monkeypatch.setattr(packing, "MOST_SAMPLES", 2)
    columns = {
        "role": np.zeros(3, np.uint8),
        **{name: np.zeros(3, np.int64) for name in ("person", "label", "prediction")},
        "loss": np.zeros(3),
    }
    arrays = ArrayRecord.from_torch_state_dict({name: torch.from_numpy(column) for name, column in columns.items()})
    with pytest.raises(MessageError, match="site-a sent 3 samples, above 2"):
        samples_of(RecordDict({"samples": arrays}), 2, "site-a")
