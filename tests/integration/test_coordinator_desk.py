"""Promoting and revoking from the desk, in the registry of a real MLflow: what is foreseen is what happens."""

from __future__ import annotations

import re

from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_registry
from tests.desk_client import Visitor, wrong
from tests.desk_fleet import desk_of
from tests.integration.registered_fleet import registered_fleet


def test_versions_are_promoted_and_revoked_with_a_reason_after_a_second_look(tmp_path):
    settings, store = registered_fleet(Settings(state_folder=tmp_path / "state"))
    visitor = Visitor(desk_of(settings))
    text = visitor.get("/lineage").text
    assert re.findall(r'href="/do/(\w+)/(\d)"', text) == [("revoke", "3"), ("promote", "2"), ("revoke", "2")]
    assert "The verdict on version 3 is FAIL" in wrong(visitor.get("/do/promote/3"))["form"]
    assert "Version 1 is the champion" in wrong(visitor.post("/do/revoke/1", reason="r", sure="yes"))["form"]
    assert "has no version 9" in wrong(visitor.get("/do/revoke/9"))["form"]
    second = visitor.post("/do/promote/2", reason="read it").text
    assert "Version 2 of erase-held, erasure epoch 1, becomes the champion." in second
    assert "is revoked, and their files are deleted: version 1, 3." in second
    assert store.champions.current().job == "train-1"
    assert visitor.post("/do/promote/2", reason="read it", sure="yes").headers["location"] == "/lineage"
    assert store.champions.current().job == "erase-held"
    with open_registry(settings.tracking, settings.state_folder) as registry:
        assert [version.version for version in registry.versions()] == ["2"]
    text = visitor.get("/lineage").text
    assert "by <bdi>M. Ode</bdi>: read it" in text
    assert "/do/" not in text
    store.close()


def test_a_version_is_revoked(tmp_path):
    settings, store = registered_fleet(Settings(state_folder=tmp_path / "state"), jobs=("train-1", "erase-failed"))
    visitor = Visitor(desk_of(settings))
    assert "Its files are deleted, here and in MLflow." in visitor.post("/do/revoke/2", reason="failed").text
    assert not store.decisions.all()
    visitor.post("/do/revoke/2", reason="failed", sure="yes")
    (decision,) = store.decisions.all()
    assert (decision.act, decision.about, decision.who) == ("revoke", "version 2 of erase-failed", "M. Ode")
    with open_registry(settings.tracking, settings.state_folder) as registry:
        assert [version.version for version in registry.versions()] == ["1"]
    store.close()
