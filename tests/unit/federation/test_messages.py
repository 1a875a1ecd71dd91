from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from dlfd_fleet.audit import SampleScores
from dlfd_fleet.exceptions import MessageError
from dlfd_fleet.federation.protocol.messages import AuditResult, FitResult, PendingReply
from dlfd_fleet.federation.protocol.packing import (
    MODEL,
    arrays_of,
    bytes_of,
    file_arrays,
    samples_of,
)
from dlfd_fleet.model_input import image_input

REPLY = PendingReply(
    site="0a1b2c3d",
    requests=(),
    dates={},
    forget_images=0,
    class_images=(3, 4),
    classes=("a", "b"),
    input=image_input(64),
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
    for column, value in vars(samples_of(records, 2, "site-a")).items():
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
        samples_of(records, 2, "site-a")
    records["samples"] = ArrayRecord.from_torch_state_dict(
        columns | {"loss": torch.tensor([0.1, float("nan"), 1.0]).double()}
    )
    with pytest.raises(MessageError, match="not finite"):
        samples_of(records, 2, "site-a")


def array_of(data):
    return Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04 is no archive",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4', ",
        b"\x93NUMPY\x01\x00\x46\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }\n",
        b"nonsense",
    ],
    ids=["nothing", "archive", "half a header", "more than there is memory", "nonsense"],
)
def test_made_up_bytes_are_one_sentence_whatever_numpy_makes_of_them(data):
    records = RecordDict({MODEL: ArrayRecord({"w": array_of(data)})})
    with pytest.raises(MessageError, match=r"^site-a sent 'model' arrays that cannot be read \(\w+\)\.$"):
        arrays_of(records, MODEL, "site-a")


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("loss", torch.tensor(0.1, dtype=torch.float64), r"'loss' is float64 \(\)"),
        ("label", torch.zeros(3, 1, dtype=torch.int64), r"'label' is int64 \(3, 1\)"),
        ("label", torch.zeros(3), "'label' is float32"),
        ("loss", torch.zeros(3), "'loss' is float32"),
        ("label", torch.tensor([0, -1, 0]), "'label' is not from 0 to under 2"),
        ("label", torch.tensor([0, 2**40, 0]), "'label' is not from 0 to under 2"),
        ("prediction", torch.tensor([2, 0, 0]), "'prediction' is not from 0 to under 2"),
        ("person", torch.tensor([2**63 - 1, 1, 0]), "'person' is not from 0"),
        ("role", torch.tensor([0, 4, 0], dtype=torch.uint8), "'role' is not from 0 to under 4"),
        ("loss", torch.tensor([0.1, 1e300, 0.1], dtype=torch.float64), "'loss' is not from 0"),
        ("loss", torch.tensor([0.1, 0.2], dtype=torch.float64), "differ in length"),
    ],
)
def test_samples_that_no_site_can_have_measured_are_refused(samples, column, values, sentence):
    columns = {name: torch.from_numpy(value) for name, value in vars(samples).items()}
    records = AuditResult(shared=0, seconds=0.0).to_records()
    records["samples"] = ArrayRecord.from_torch_state_dict(columns | {column: values})
    with pytest.raises(MessageError, match=f"site-a.*{sentence}"):
        samples_of(records, 2, "site-a")


def test_a_reply_counts_the_images_of_every_class():
    records = REPLY.model_copy(update={"class_images": (3,)}).to_records()
    with pytest.raises(MessageError, match=r"site-a sent a wrong PendingReply: .*1 counts of images for 2 classes"):
        PendingReply.from_records(records, "site-a")


def test_images_to_train_on_are_counted_by_class():
    assert REPLY.retain_images == 7


def test_images_of_several_labels_are_counted_by_themselves():
    reply = REPLY.model_copy(update={"labelled_images": 5})
    assert PendingReply.from_records(reply.to_records(), "site-a").retain_images == 5
    few = REPLY.model_copy(update={"labelled_images": 3})
    with pytest.raises(MessageError, match="a label applies to more images than there are"):
        PendingReply.from_records(few.to_records(), "site-a")


@pytest.mark.parametrize("labels", [1, 62, 63, 1000])
def test_samples_of_any_number_of_labels_travel_within_bounds(labels):
    truth = np.random.default_rng(0).integers(0, 2, (5, labels))
    zeros = np.zeros(5, np.int64)
    sent = SampleScores.from_probabilities(np.where(truth == 1, 0.9, 0.0), truth, zeros, zeros.astype(np.uint8))
    records = AuditResult(shared=0, seconds=0.0).to_records(sent)
    found = samples_of(records, labels, "site-a", multi_label=True)
    assert np.array_equal(found.applying(labels)[0], truth == 1)
    assert found.right.all()
    with pytest.raises(MessageError, match="site-a sent samples whose 'label' is"):
        samples_of(records, labels + 62, "site-a", multi_label=True)
    wide = sent.label.reshape(5, -1).copy()
    wide[0, -1] = 2 ** ((labels - 1) % 62 + 1)  # a label that the model does not have
    columns = {**vars(sent), "label": wide if labels > 62 else wide[:, 0]}
    made_up = {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}
    records["samples"] = ArrayRecord.from_torch_state_dict(made_up)
    with pytest.raises(MessageError, match="site-a sent samples whose 'label' is not from 0"):
        samples_of(records, labels, "site-a", multi_label=True)


def test_a_thousand_classes_of_long_names_travel():
    names = tuple(f"{number:03d} " + "n" * 196 for number in range(1000))
    reply = REPLY.model_copy(update={"classes": names, "class_images": (1,) * 1000})
    assert PendingReply.from_records(reply.to_records(), "site-a").classes == names
