"""A simulated fleet is the one that it was given, whatever this shell has exported for another."""

from __future__ import annotations

import io
import logging
import os

from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dlfd_fleet.configuration import CONFIG_VARIABLE, load_settings
from dlfd_fleet.federation.rounds.fleet import Fleet
from dlfd_fleet.federation.site.site_of_node import site_folder, site_of_node
from dlfd_fleet.ledger import SiteCard, create_site
from dlfd_fleet.model_input import image_input
from dlfd_fleet.settings import Settings
from dlfd_fleet.simulation import simulate


def make_site(state_folder):
    create_site(
        state_folder / "sites" / "site-1", SiteCard(name="site-1", input=image_input(32), classes=("no", "yes"))
    )


def test_nodes_work_on_their_own_sites_though_a_variable_names_another_fleet(tmp_path, monkeypatch):
    own, real, seen = tmp_path / "own", tmp_path / "real", []
    make_site(own)
    make_site(real)
    exported = {CONFIG_VARIABLE: str(tmp_path / "real.toml"), "DLFD_FLEET_STATE_FOLDER": str(real)}
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    client_app = ClientApp()

    @client_app.query()
    def is_own(message, context):
        answer = MetricRecord({"own": int(site_folder(context).is_relative_to(own))})
        return Message(RecordDict({"answer": answer}), reply_to=message)

    def ask(grid):
        (node,) = Fleet(grid, timeout=120.0).wait_for_nodes()
        question = Message(RecordDict(), dst_node_id=node, message_type="query")
        seen.extend(reply.content["answer"]["own"] for reply in grid.send_and_receive([question], timeout=120.0))
        seen.append(load_settings().settings.state_folder)

    simulate(Settings(state_folder=own), ask, client_app)
    assert seen == [1, own]
    assert {name: os.environ.get(name) for name in exported} == exported


def test_an_error_at_a_site_is_told_in_words_and_its_traceback_is_in_the_sites_log(tmp_path, monkeypatch):
    make_site(tmp_path)
    logged = io.StringIO()
    monkeypatch.setattr(logging.getLogger("flwr"), "handlers", [logging.StreamHandler(logged)])
    client_app, absent, counts = ClientApp(), [], []

    @client_app.train()
    def fail(message, context):
        with site_of_node(context):
            raise RuntimeError("no such layer")

    @client_app.query()
    def fail_elsewhere(message, context):
        raise RuntimeError("no such column")

    def ask(grid):
        fleet = Fleet(grid, timeout=120.0)
        (node,) = fleet.wait_for_nodes()
        for kind in ("train", "query"):
            assert not list(fleet.exchange(kind, {node: RecordDict()}, "1"))
            absent.extend(fleet.absent.values())
            counts.append(logged.getvalue().count("Traceback"))

    simulate(Settings(state_folder=tmp_path), ask, client_app)
    assert absent == [
        "failed at train: RuntimeError at this site; its site.log says more.",
        "failed at query: no such column",
    ]
    assert counts[0] == 0 < counts[1]  # what no site has noted is seen
    assert "RuntimeError: no such layer" in (tmp_path / "sites" / "site-1" / "site.log").read_text()
