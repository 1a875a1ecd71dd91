"""A site's images are in a file of its own folder, which a purge overwrites."""

import gc
import weakref

import pytest

from dlfd_fleet.data.inputs import StoredInputs
from dlfd_fleet.federation.site.images import labelled, used_images
from dlfd_fleet.ledger import RequestState, Site, init_site, purge_request, request_forgetting
from dlfd_fleet.model_input import image_input


@pytest.fixture
def site(synthetic_faces, tmp_path):
    with init_site(
        tmp_path / "clinic", name="clinic", manifest=synthetic_faces, model_input=image_input(32), test_people=2
    ) as site:
        yield site


def test_images_to_train_on_stay_in_the_file(site):
    retain = used_images(site).retain()
    assert isinstance(labelled(retain).images, StoredInputs)
    assert len(retain) == 40


def test_the_pixels_of_a_forgotten_person_are_nowhere_in_the_sites_folder(site):
    person = next(row.identity for row in site.manifest().rows if row.split == "train")
    images = used_images(site).images
    pixels = [image.numpy().tobytes() for image in images.of_people([person]).images[:]]
    others = images.without_people([person]).images[:]
    request = request_forgetting(site, person, deadline_days=30)
    for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
        site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=1)
    content = {file: file.read_bytes() for file in site.folder.iterdir()}
    assert sum(any(one in held for held in content.values()) for one in pixels) == 4
    purge_request(site, site.ledger.get(request.id))
    content = {file: file.read_bytes() for file in site.folder.iterdir()}
    assert not any(one in held for one in pixels for held in content.values())
    with Site(site.folder) as again:
        left = used_images(again).images
    assert (left.images[:] == others).all()


def test_a_process_that_goes_on_holds_no_rows_of_a_manifest_that_has_changed(site):
    """A site's process may live on, as in a simulation: whom a purge has deleted does not stay in its memory."""
    held = weakref.ref(used_images(site).images.images)
    person = next(row.identity for row in site.manifest().rows if row.split == "train")
    request = request_forgetting(site, person, deadline_days=30)
    for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
        site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=1)
    purge_request(site, site.ledger.get(request.id))
    kept = weakref.ref(used_images(site).images.images)
    gc.collect()
    assert held() is None
    assert kept() is used_images(site).images.images  # and is not read again for each message
