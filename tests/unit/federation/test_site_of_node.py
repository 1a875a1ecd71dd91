from __future__ import annotations

import pytest
from flwr.app import Context, RecordDict

from dlfd_fleet.exceptions import ConfigurationError, DataError, JobError, MessageError
from dlfd_fleet.federation.site.site_of_node import site_of_node
from dlfd_fleet.ledger import Site, SiteCard, create_site
from dlfd_fleet.model_input import image_input


def context(**node_config):
    return Context(run_id=1, node_id=2, node_config=node_config, state=RecordDict(), run_config={})


@pytest.fixture
def state(tmp_path, monkeypatch):
    for name in ("site-1", "site-2"):
        create_site(tmp_path / "sites" / name, SiteCard(name=name, input=image_input(32), classes=("no", "yes")))
    monkeypatch.setenv("DLFD_FLEET_STATE_FOLDER", str(tmp_path))
    return tmp_path


def test_a_virtual_node_has_the_site_of_its_number(state):
    with site_of_node(context(**{"partition-id": 1})) as site:
        assert site.card.name == "site-2"


def test_a_supernode_has_the_site_that_its_own_configuration_names(state):
    with site_of_node(context(**{"site-folder": str(state / "sites" / "site-1"), "partition-id": 1})) as site:
        assert site.card.name == "site-1"


def named(state):
    """What errors of the first site begin with."""
    with Site(state / "sites" / "site-1") as site:
        return f"site-{site.card.id}: "


@pytest.mark.parametrize("number", [-1, 2])
def test_a_node_without_a_site_is_told_what_to_do(state, number):
    with (
        pytest.raises(ConfigurationError, match="holds 2; start as many"),
        site_of_node(context(**{"partition-id": number})),
    ):
        pass


def test_no_name_leaves_a_site_in_an_error(state):
    with pytest.raises(JobError) as caught, site_of_node(context(**{"partition-id": 0})):
        raise DataError("images/anna/1.png is truncated")
    assert str(caught.value) == f"{named(state)}DataError at this site; its site.log says more."
    assert caught.value.__cause__ is None
    assert "images/anna/1.png is truncated" in (state / "sites" / "site-1" / "site.log").read_text()


def test_an_error_about_counts_is_passed_on(state):
    with pytest.raises(JobError, match="fewer than two images"), site_of_node(context(**{"partition-id": 0})):
        raise JobError("This site has fewer than two images to train on.")


def test_an_error_of_the_disk_is_a_sentence_in_the_log_and_the_coordinator_learns_no_path(state):
    with pytest.raises(JobError) as caught, site_of_node(context(**{"partition-id": 0})):
        (state / "nowhere" / "file").read_bytes()
    assert str(caught.value) == f"{named(state)}FileNotFoundError at this site; its site.log says more."
    (line,) = (state / "sites" / "site-1" / "site.log").read_text().splitlines()
    assert line.endswith(f"No such file or directory: '{state / 'nowhere' / 'file'}'")


def test_a_log_that_cannot_be_written_hides_no_error(state):
    (state / "sites" / "site-1" / "site.log").mkdir()
    with pytest.raises(JobError) as caught, site_of_node(context(**{"partition-id": 0})):
        raise DataError("images/anna/1.png is truncated")
    assert str(caught.value).startswith(
        f"{named(state)}DataError at this site; its site.log cannot be written; check space and rights"
    )


def test_an_error_says_whose_it_is_unless_the_card_cannot_be_read(state):
    for error in (JobError, MessageError):
        with (
            pytest.raises(error, match=f"^{named(state)}two images are too few$"),
            site_of_node(context(**{"partition-id": 0})),
        ):
            raise error("two images are too few")
    name = named(state)
    (state / "sites" / "site-1" / "ledger.db").write_bytes(b"no ledger")
    with pytest.raises(JobError, match=f"^{name}LedgerError at this site"):
        opened()
    card = state / "sites" / "site-1" / "site.json"
    for content in (b"{}", b"\xff", card.read_bytes().replace(b'"id"', b'"ld"')):
        card.write_bytes(content)
        with pytest.raises(JobError, match=r"^ConfigurationError at this site"):
            opened()


def opened():
    with site_of_node(context(**{"partition-id": 0})):
        pass
