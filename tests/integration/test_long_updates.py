"""A site with many images takes more steps than the others: its longer updates are shortened, and it stays."""

from __future__ import annotations

import io

import pytest
from flwr.app import ArrayRecord, Message
from rich.console import Console

from dlfd_fleet.data import synthesize, write_manifest
from dlfd_fleet.federation.protocol.messages import FitTask
from dlfd_fleet.federation.protocol.packing import MODEL, arrays_of
from dlfd_fleet.ledger import Site, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.progress import ConsoleProgress
from tests.integration.fleet_in_process import InProcessGrid, run_job, small_settings

ROUNDS, SITES, RATIO = 2, 4, 1.2


@pytest.fixture
def fleet(tmp_path):
    """Four sites, the first of which has several times the images of each other one."""
    silent = ConsoleProgress(Console(file=io.StringIO()))
    manifest = synthesize(
        tmp_path / "faces", people=48, images_per_person=2, image_size=32, classes=2, seed=0, progress=silent
    )
    settings = small_settings(tmp_path / "state", manifest, sites=SITES)
    deal_to_sites(settings, silent)
    for folder in site_folders(settings.state_folder)[1:]:
        with Site(folder) as site:
            rows = site.manifest().rows
            train = [row for row in rows if row.split == "train"]
            write_manifest([row for row in rows if row not in train[4:]], site.manifest_file)
    limited = settings.fleet.model_copy(update={"update_ratio": RATIO})
    training = settings.training.model_copy(update={"rounds": ROUNDS})
    return settings.model_copy(update={"fleet": limited, "training": training})


class Lengthening(InProcessGrid):
    """The updates of one node are this many times as long as they were."""

    def __init__(self, settings, node, times):
        super().__init__(settings)
        self.node, self.times = node, times

    def answer(self, message, context):
        reply = super().answer(message, context)
        if message.metadata.message_type != FitTask.TYPE or message.metadata.dst_node_id != self.node:
            return reply
        records = reply.content
        sent, made = (arrays_of(each, MODEL, "test") for each in (message.content, records))
        longer = {
            name: sent[name] + self.times * (array - sent[name]) if name.endswith(("weight", "bias")) else array
            for name, array in made.items()
        }
        records[MODEL] = ArrayRecord.from_torch_state_dict(longer)
        return Message(records, reply_to=message)


def trained_with(grid, settings):
    out = io.StringIO()
    record = run_job(settings, "train", grid, out)
    tasks = [each for each in grid.seen if each.metadata.message_type == FitTask.TYPE]
    return record, out.getvalue(), [each for each in tasks if not each.metadata.reply_to_message_id]


def test_a_site_with_many_images_stays_though_its_updates_are_long(fleet):
    record, said, tasks = trained_with(InProcessGrid(fleet), fleet)
    assert record.released
    assert record.absent == {}
    assert "it is shortened to 1.2 times" in " ".join(said.split())
    # The round in which it shows is done twice, and no later one of that kind.
    assert len(tasks) == (ROUNDS + 1) * SITES


def test_an_update_that_its_images_do_not_explain_ends_its_sites_part_in_the_job(fleet):
    record, _, _ = trained_with(Lengthening(fleet, 1, 1000.0), fleet)
    ((_, reason),) = record.absent.items()
    assert "times as large as the median of the others'" in reason


def test_a_long_update_of_a_site_with_few_images_is_explained_by_nothing(fleet):
    fleet = fleet.model_copy(update={"fleet": fleet.fleet.model_copy(update={"update_ratio": 5.0})})
    record, _, _ = trained_with(Lengthening(fleet, 2, 1000.0), fleet)
    ((_, reason),) = record.absent.items()
    assert "times as large as the median of the others'" in reason
