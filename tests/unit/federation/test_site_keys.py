"""A site's id belongs to the SuperNode key that it came with."""

from __future__ import annotations

import pytest

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.federation.rounds.site_keys import SITE_KEYS_FILE, SiteKeys

SITE, OTHER = "0a1b2c3d", "11111111"
KEY, ANOTHER, THIRD = "ab" * 32, "cd" * 32, "ef" * 32


@pytest.fixture
def file(tmp_path):
    return tmp_path / SITE_KEYS_FILE


def test_a_site_is_known_by_its_key_in_later_jobs_whoever_is_heard_first(file):
    assert SiteKeys(file).refused({1: SITE, 2: OTHER}, {1: KEY, 2: ANOTHER}, {}) == {}
    refused = SiteKeys(file).refused({3: SITE, 4: SITE, 5: OTHER}, {3: THIRD, 4: KEY, 5: ANOTHER}, {})
    assert refused == {
        3: f"says that it is site-{SITE}, whose key is SHA256:{KEY[:16]}, and has the key SHA256:{THIRD[:16]}; if that "
        f"is right, delete the line of {SITE} from {SITE_KEYS_FILE} in the coordinator's folder, or set "
        "fleet.registered_keys to false if the fleet's SuperNodes have no registered keys"
    }


def test_a_known_site_that_is_away_cannot_be_stood_in_for(file):
    SiteKeys(file).refused({1: SITE}, {1: KEY}, {})
    assert list(SiteKeys(file).refused({2: SITE}, {2: ANOTHER}, {})) == [2]
    assert "has no key" in SiteKeys(file).refused({2: SITE}, {}, {})[2]


def test_one_key_is_one_site(file):
    """Else a site could take up the ids of sites that have yet to come."""
    SiteKeys(file).refused({1: SITE}, {1: KEY}, {})
    assert f"has the key of site-{SITE}" in SiteKeys(file).refused({1: OTHER}, {1: KEY}, {})[1]
    assert OTHER not in file.read_text()


def test_a_deleted_line_lets_a_site_come_back_with_a_new_key(file):
    SiteKeys(file).refused({1: SITE}, {1: KEY}, {})
    file.write_text("".join(line for line in file.read_text().splitlines(keepends=True) if SITE not in line))
    assert SiteKeys(file).refused({1: SITE}, {1: ANOTHER}, {}) == {}
    assert f"{SITE} {ANOTHER}\n" in file.read_text()


@pytest.mark.parametrize("keys", [{}, {1: KEY, 2: ANOTHER}])
def test_of_two_nodes_that_say_they_are_a_new_site_neither_is_believed(file, keys):
    refused = SiteKeys(file).refused({1: SITE, 2: SITE}, keys, {})
    assert refused.keys() == {1, 2}
    assert all("as another node does, and nobody can tell which one is" in reason for reason in refused.values())
    assert not file.exists()


def test_without_keys_a_node_stays_the_site_that_it_was_in_this_job(file):
    refused = SiteKeys(file).refused({1: SITE, 2: SITE}, {}, {SITE: 2})
    assert refused == {1: f"says that it is site-{SITE}, which another node is in this job"}


def test_keys_that_are_of_one_process_are_not_kept(file):
    keys = SiteKeys(file, bound=False)
    assert keys.refused({1: SITE}, {1: KEY}, {}) == {}
    assert keys.refused({2: SITE}, {2: ANOTHER}, {}) == {}
    assert not file.exists()


@pytest.mark.parametrize("content", ["0a1b2c3d\n", "0a1b2c3d one two\n", "\x00\x01\x02"])
def test_a_damaged_file_is_one_sentence(file, content):
    file.write_text(content)
    with pytest.raises(JobError, match=r"site-keys\.txt cannot be read: line 1 is .* Correct the line, or delete it"):
        SiteKeys(file).refused({1: SITE}, {1: KEY}, {})
