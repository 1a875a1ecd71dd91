"""From a model's files to what devices may run, through the whole of a delivery."""

from __future__ import annotations

import hashlib
import io
from datetime import timedelta

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner

from dlfd_fleet.delivery import releases
from dlfd_fleet.delivery import rollout as rules
from dlfd_fleet.delivery.delivery import opened
from dlfd_fleet.delivery.publish import ReleasedModel, publish, reference_inputs
from dlfd_fleet.device.inference import DeviceModel
from dlfd_fleet.exceptions import DeliveryError, DeviceError
from dlfd_fleet.model_input import image_input
from dlfd_fleet.settings import Settings
from tests.tuf_simulator import Clock, serving
from tests.unit.delivery.conftest import small_model
from tests.unit.delivery.test_devices import signed_report

FAST = {"root_keys": 1, "root_threshold": 1, "targets_keys": 1, "targets_threshold": 1}


@pytest.fixture
def delivery(tmp_path):
    settings = Settings(state_folder=tmp_path / "state", delivery=FAST)
    with opened(settings, clock=Clock(), create=True) as delivery:
        delivery.repository.create(delivery.repository.folder / "keys")
        yield delivery


@pytest.fixture
def model(tmp_path):
    def make(epoch, number=0, formats=("fp32",)):
        version = f"{epoch}-{number:012x}"
        folder = tmp_path / "jobs" / version
        files = {
            form: small_model(folder / f"model.{form}.onnx", version=version, epoch=epoch, seed=number + place)
            for place, form in enumerate(formats)
        }
        return ReleasedModel(version, epoch, files)

    return make


def put(delivery, model, **options):
    return publish(delivery.repository, delivery.devices, model, **options)


def listed(delivery):
    return releases.listed(delivery.repository.read())


def served(delivery):
    return {file.name.split(".", 1)[1] for file in delivery.repository.served.glob("targets/models/*/*")}


def test_a_device_gets_each_file_with_answers_that_this_very_file_gives(delivery, model, tmp_path):
    from dlfd_fleet.device.update import UpdateClient

    made = model(2, formats=("fp32", "int8"))
    done = put(delivery, made)
    assert done.targets == ("models/2-1/model.fp32.onnx", "models/2-1/model.int8.onnx")
    with serving(delivery.repository.served) as server:
        client = UpdateClient(tmp_path / "tuf", server.url, (delivery.repository.folder / "root.json").read_bytes())
        client.refresh()
        assert client.floor() == 2
        assert client.rollout().state == "complete"
        for name, release in client.releases():
            assert (release.version, release.epoch, release.sequence) == (made.version, 2, 1)
            slot = tmp_path / "slot" / release.format
            client.download(name, slot / "model.onnx")
            client.download(release.self_test.target, slot / "reference.npz")
            with np.load(slot / "reference.npz") as expected:
                answers = DeviceModel(slot / "model.onnx").predict(expected["images"])
                np.testing.assert_allclose(answers, expected["probabilities"], atol=1e-6)
                assert expected["images"].dtype == np.uint8
                assert expected["probabilities"].std() > 0.01
    assert client.releases()[0][1].self_test.tolerance < client.releases()[1][1].self_test.tolerance


def test_reference_images_are_the_same_everywhere_and_of_nobody():
    images = reference_inputs(image_input(30))
    assert images.shape == (8, 30, 30, 3)
    np.testing.assert_array_equal(images, reference_inputs(image_input(30)))
    assert len({image.tobytes() for image in images}) == 8


def test_a_large_models_weights_go_with_it(delivery, model, monkeypatch):
    made = model(0)
    (file,) = made.files.values()
    file.with_name(file.name + ".data").write_bytes(b"weights")
    monkeypatch.setattr("dlfd_fleet.delivery.publish.DeviceModel", _WithoutWeights)
    put(delivery, made)
    (release,) = listed(delivery).values()
    assert release.data == "models/0-1/model.fp32.onnx.data"
    assert "model.fp32.onnx.data" in served(delivery)


class _WithoutWeights(DeviceModel):
    """A small model beside which a weights file lies: ONNX Runtime would refuse what the graph does not name."""

    def __init__(self, file):
        alone = file.parent / "alone" / file.name
        alone.parent.mkdir(exist_ok=True)
        alone.write_bytes(file.read_bytes())
        super().__init__(alone)


def test_an_erasure_deletes_what_remembers(delivery, model):
    put(delivery, model(1))
    put(delivery, model(2, 5))
    assert [release.epoch for release in listed(delivery).values()] == [2]
    assert releases.floor(delivery.repository.read()) == 2
    assert served(delivery) == {"model.fp32.onnx", "model.fp32.onnx.selftest.npz"}
    assert len(list(delivery.repository.served.glob("targets/models/*"))) == 1


def test_a_model_of_the_same_epoch_forbids_nothing(delivery, model):
    put(delivery, model(1))
    put(delivery, model(1, 1))
    assert [release.sequence for release in listed(delivery).values()] == [2, 1]


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_model_under_the_floor_is_not_published(delivery, model, epoch):
    put(delivery, model(2))
    with pytest.raises(DeliveryError, match="devices run nothing under 2"):
        put(delivery, model(epoch, 9))


def test_the_floor_is_known_also_when_the_repository_was_set_back(delivery, model, tmp_path):
    import shutil

    put(delivery, model(1))
    shutil.copytree(delivery.repository.served, tmp_path / "then")
    put(delivery, model(2, 1))
    shutil.rmtree(delivery.repository.served)
    shutil.copytree(tmp_path / "then", delivery.repository.served)
    with pytest.raises(DeliveryError, match="devices run nothing under 2"):
        put(delivery, model(1, 9))


def test_a_version_is_published_once(delivery, model):
    put(delivery, model(1))
    with pytest.raises(DeliveryError, match="published already, as publication 1"):
        put(delivery, model(1))


def test_a_file_of_another_version_is_not_published(delivery, model):
    made = model(1)
    with pytest.raises(DeliveryError, match="not of 1-other"):
        put(delivery, ReleasedModel("1-other", 1, made.files))
    with pytest.raises(DeliveryError, match="epoch 2"):
        put(delivery, ReleasedModel(made.version, 2, made.files))
    (file,) = made.files.values()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DeviceError, match="damaged"):
        put(delivery, made)
    assert listed(delivery) == {}
    assert served(delivery) == set()


def test_a_file_that_was_exchanged_after_its_audit_is_not_published(delivery, model):
    """What somebody put in its place says the same of itself, and was attacked by nobody."""
    made = model(1, formats=("fp32", "int8"))
    attacked = {form: hashlib.sha256(file.read_bytes()).hexdigest() for form, file in made.files.items()}
    small_model(made.files["int8"], version=made.version, epoch=1, seed=99)
    with pytest.raises(DeliveryError, match="not the file that was audited"):
        put(delivery, ReleasedModel(made.version, 1, made.files, attacked))
    assert served(delivery) == set()
    put(delivery, ReleasedModel(made.version, 1, {"fp32": made.files["fp32"]}, attacked))
    assert [release.format for release in listed(delivery).values()] == ["fp32"]


def test_without_the_releases_keys_nothing_is_copied(delivery, model, tmp_path):
    (key,) = (delivery.repository.folder / "keys").glob("targets-*")
    key.unlink()
    with (
        opened(Settings(state_folder=tmp_path / "state", delivery=FAST)) as another,
        pytest.raises(DeliveryError, match=f"name the folder of {key.name}"),
    ):
        put(another, model(1))
    assert served(delivery) == set()
    assert delivery.devices.files() == []


# ---------------------------------------------------------------------- rings


def test_the_floor_waits_for_the_rollout(delivery, model):
    put(delivery, model(1))
    put(delivery, model(2, 1), rings=True)
    contents = delivery.repository.read()
    assert releases.floor(contents) == 1
    assert [release.epoch for release in listed(delivery).values()] == [2, 1]
    assert rules.read(delivery.repository, contents).state == "paused"
    with pytest.raises(DeliveryError, match="complete or abort it before the next"):
        put(delivery, model(2, 2))
    for step in ("start", "widen", "widen", "complete"):
        done = delivery.change_rollout(step)
    assert (done.state, done.sequence) == ("complete", 2)
    assert [(release.epoch, release.minimum_epoch) for release in listed(delivery).values()] == [(2, 2)]
    assert delivery.devices.floor() == 2
    assert len(list(delivery.repository.served.glob("targets/models/*/*.onnx"))) == 1


def test_what_was_aborted_is_withdrawn_by_the_next_publication(delivery, model):
    """Else it would be before the next one's rollout, and so for everybody."""
    put(delivery, model(1))
    put(delivery, model(2, 1), rings=True)
    delivery.change_rollout("start")
    delivery.change_rollout("abort")
    put(delivery, model(2, 2), rings=True)
    assert [release.sequence for release in listed(delivery).values()] == [3, 1]


def test_an_aborted_version_may_be_tried_again(delivery, model):
    put(delivery, model(1))
    put(delivery, model(2, 1), rings=True)
    delivery.change_rollout("start")
    delivery.change_rollout("abort")
    assert put(delivery, model(2, 1)).sequence == 3
    assert [release.sequence for release in listed(delivery).values()] == [3]


def test_a_killed_publication_leaves_no_number_behind_that_is_used_twice(delivery, model, monkeypatch):
    monkeypatch.setattr(delivery.repository, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        put(delivery, model(1))
    monkeypatch.undo()
    assert put(delivery, model(1)).sequence == 2


def test_there_is_no_rollout_before_the_first_publication(delivery):
    with pytest.raises(DeliveryError, match="There is no rollout"):
        delivery.change_rollout("start")


def test_a_rollout_aborts_by_itself_when_canaries_fail(delivery, model):
    canaries = [CryptoSigner.generate_ed25519() for _ in range(2)]
    now = delivery.clock()
    for number, canary in enumerate(canaries):
        delivery.devices.enroll(canary.public_key, f"canary-{number}", now, canary=True)
        delivery.receive(signed_report(canary, now, sequence=1, healthy=False))  # before: of no release
    put(delivery, model(1))
    put(delivery, model(2, 1), rings=True)
    delivery.clock.move(hours=1)
    assert set(delivery.change_rollout("start").canaries) == {canary.public_key.keyid for canary in canaries}
    assert delivery.keep_up() == []
    delivery.receive(signed_report(canaries[0], delivery.clock(), sequence=2, healthy=True))
    assert delivery.keep_up() == []
    delivery.receive(signed_report(canaries[1], delivery.clock(), sequence=1, healthy=False, failed=(2,)))
    (said,) = delivery.keep_up()
    assert "was aborted: 1 of 2 devices that tried it failed" in said
    assert rules.read(delivery.repository, delivery.repository.read()).state == "aborted"
    assert delivery.keep_up() == []


def test_a_retired_device_aborts_nothing(delivery, model):
    sick = CryptoSigner.generate_ed25519()
    delivery.devices.enroll(sick.public_key, "sick", delivery.clock(), canary=True)
    put(delivery, model(1), rings=True)
    delivery.change_rollout("start")
    delivery.clock.move(minutes=1)
    now = delivery.clock() + timedelta(seconds=1)
    delivery.receive(signed_report(sick, now, sequence=0, healthy=False, failed=(1,)))
    delivery.retire("sick", "dropped into the harbour")
    assert delivery.keep_up() == []


def test_the_self_test_is_an_archive_without_pickles(delivery, model):
    put(delivery, model(1))
    (file,) = delivery.repository.served.glob("targets/models/*/*.npz")
    with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
        assert set(archive.files) == {"images", "probabilities"}
