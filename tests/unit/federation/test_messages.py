from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from dlfd_fleet.audit import SampleScores
from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.messages import (
    MODEL,
    AuditResult,
    FitResult,
    PendingReply,
    arrays_of,
    bytes_of,
    file_arrays,
    samples_of,
)


@pytest.fixture
def samples():
    return SampleScores(
        role=np.array([0, 1, 3], np.uint8),
        person=np.array([5, 6, 7]),
        label=np.array([0, 1, 0]),
        prediction=np.array([0, 0, 0]),
        loss=np.array([0.1, 2.0, 0.3]),
    )


def test_a_message_survives_the_journey(samples):
    model = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    result = FitResult(epoch=0, examples=7, loss=0.5, seconds=1.0)
    records = result.to_records(samples, model=model)
    assert FitResult.from_records(records, "site-a") == result
    back = arrays_of(records, MODEL, "site-a")
    assert all(torch.equal(back[name], model[name]) for name in model)
    for column, value in vars(samples_of(records, "site-a")).items():
        assert np.array_equal(value, getattr(samples, column))


def test_channels_last_weights_arrive_in_their_order():
    weight = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    records = AuditResult(shared=0, seconds=0.0).to_records(model={"w": weight.to(memory_format=torch.channels_last)})
    assert torch.equal(arrays_of(records, MODEL, "site-a")["w"], weight)


def test_a_file_arrives_byte_by_byte():
    content = bytes(range(256)) * 3
    assert (
        bytes_of(AuditResult(shared=0, seconds=0.0).to_records(file=file_arrays(content)), "the coordinator") == content
    )


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('{"epoch": 0, "examples": 3, "loss": 0.1}', "site-a sent a wrong FitResult: 'seconds': Field required"),
        ('{"epoch": 0, "examples": 3, "loss": 0.1, "seconds": 1, "name": "anna"}', "'name': Extra inputs"),
        ('{"epoch": 0, "examples": 0, "loss": 0.1, "seconds": 1}', "'examples'"),
        ('{"epoch": 0, "examples": 3, "loss": NaN, "seconds": 1}', "site-a sent a wrong FitResult"),
        ("not json", "site-a sent a wrong FitResult: 'the whole message'"),
    ],
)
def test_a_wrong_field_is_named_with_its_sender(body, sentence):
    records = RecordDict({"body": ConfigRecord({"json": body})})
    with pytest.raises(MessageError, match=sentence):
        FitResult.from_records(records, "site-a")


def test_missing_parts_are_named_with_their_sender(samples):
    records = AuditResult(shared=0, seconds=0.0).to_records()
    with pytest.raises(MessageError, match="site-a sent no 'model' arrays"):
        arrays_of(records, MODEL, "site-a")
    with pytest.raises(MessageError, match="site-a sent no FitResult"):
        FitResult.from_records(RecordDict({}), "site-a")
    columns = {name: torch.from_numpy(value) for name, value in vars(samples).items()}
    records["samples"] = ArrayRecord.from_torch_state_dict({"loss": columns["loss"]})
    with pytest.raises(MessageError, match="site-a sent samples with the columns"):
        samples_of(records, "site-a")
    records["samples"] = ArrayRecord.from_torch_state_dict(columns | {"loss": torch.tensor([0.1, float("nan"), 1.0])})
    with pytest.raises(MessageError, match="not finite"):
        samples_of(records, "site-a")


def test_images_to_train_on_are_counted_by_class():
    reply = PendingReply(
        site="0a1b2c3d", requests=(), forget_images=0, class_images=(3, 4), classes=("a", "b"), image_size=64
    )
    assert reply.retain_images == 7
