"""Names of sites, jobs and devices become folders: each is one plain name, or refused with the reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from dlfd_fleet.data import check_manifest
from dlfd_fleet.delivery.devices import DeviceStore
from dlfd_fleet.exceptions import ConfigurationError, DataError, DeliveryError, JobError
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.ledger.site_setup import deal_to_sites, init_site
from dlfd_fleet.names import plain_name, refuse_alike
from dlfd_fleet.settings import Settings
from tests.unit.delivery.test_devices import NOW

PLAIN = [
    "clinic",
    "site-1",
    "Klinik Süd",
    "東京",
    "दिल्ली",
    "a",
    "9",
    "St. Mary",
    "x" * 63,
    "\u00fc" * 63,
    "\u6771" * 63,
    "console",
    "erase-20261127-125606-b4ec",
]
WRONG = [
    "",
    ".",
    "..",
    "../../../x",
    "/etc/x",
    "a/b",
    "a\\b",
    "C:x",
    "-rf",
    "--help",
    " a",
    "a ",
    "a.",
    ".hidden",
    "a\0b",
    "a\nb",
    "a\tb",
    "a\x1b[2Jb",
    "a\u202eb",
    "a\u200bb",
    "a\u00a0b",
    "a\ud800",
    "\u3164",
    "a\u034f",
    "a\u115f",
    "a\ufe0f",
    "\U00020000" * 63,
    "nul",
    "CON",
    "aux.txt",
    "Com1.log",
    "LPT³",
    "x" * 64,
    "zoe\u0308",
    "a*b",
    "a?b",
    "a|b",
    "a<b",
    'a"b',
    "a'b",
    "~root",
    "$HOME",
    "a;b",
    "a,b",
    "[/x]",
    "😀",
]
SHOWN_IN_A_TABLE = [name for name in WRONG if name.strip() == name != "" and "\ud800" not in name and "\0" not in name]


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_stays_as_it_is(name):
    assert plain_name(name) == name


@pytest.mark.parametrize("name", WRONG)
def test_any_other_name_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="is no plain name: ") as caught:
        plain_name(name)
    assert str(caught.value).isprintable()


@given(st.text(max_size=70))
def test_whatever_is_taken_is_one_folder_under_its_parent(tmp_path_factory, name):
    try:
        plain_name(name)
    except ValueError:
        return
    parent = tmp_path_factory.mktemp("names")
    (parent / name).mkdir()
    assert [each.name for each in parent.iterdir()] == [name]


def test_a_letter_that_nobody_sees_is_shown_by_its_code():
    with pytest.raises(ValueError, match=r"it holds '\\u3164'; use letters"):
        plain_name("a\u3164")


def test_two_names_that_differ_in_case_are_refused():
    refuse_alike(["site-1", "site-2", "site-1"])
    with pytest.raises(ValueError, match="'Clinic' and 'clinic' are one folder where case does not count"):
        refuse_alike(["Clinic", "clinic"])


def table(folder, site):
    file = folder / "manifest.csv"
    quoted = site.replace('"', '""')
    lines = [f'{person}.png,{person},{label},"{quoted}"' for person, label in zip("abcd", "nyny", strict=True)]
    file.write_text("\n".join(["image,identity,label,site", *lines]), encoding="utf-8", newline="")
    return file


@pytest.mark.parametrize("site", SHOWN_IN_A_TABLE)
def test_a_site_in_a_manifest_makes_no_folder_elsewhere(tmp_path, silent, site):
    (tmp_path / "here").mkdir()
    file = table(tmp_path / "here", site)
    state = tmp_path / "here" / "deep" / "state"
    settings = Settings(
        state_folder=state, data={"source": "manifest", "manifest": file, "test_people": 1, "validation_people": 1}
    )
    with pytest.raises(DataError, match=r"row 2, column 'site'"):
        deal_to_sites(settings, silent)
    found = check_manifest(file, None, None, silent)
    assert {problem.row for problem in found if problem.column == "site"} == {2, 3, 4, 5}
    assert not state.exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["here", "manifest.csv"]


@pytest.mark.parametrize("name", [name for name in WRONG if name != ""])
def test_a_site_is_not_made_under_another_name(tmp_path, synthetic_faces, name):
    with pytest.raises(ConfigurationError, match=r"The site's 'name': .* is no plain name"):
        init_site(tmp_path / "clinic", name=name, manifest=synthetic_faces)
    assert not (tmp_path / "clinic").exists()


@pytest.mark.parametrize("name", WRONG)
def test_a_job_has_no_folder_outside_the_state_folder(tmp_path, name):
    store = Store(tmp_path / "state")
    for folder_of in (store.folders.of, store.folders.model):
        with pytest.raises(JobError, match="is no plain name"):
            folder_of(name)
    store.close()


@pytest.mark.parametrize("name", WRONG)
def test_a_device_is_not_enrolled_under_another_name(tmp_path, name):
    with DeviceStore(tmp_path / "devices.db") as store:
        with pytest.raises(DeliveryError, match="is no plain name"):
            store.enroll(CryptoSigner.generate_ed25519().public_key, name, NOW)
        assert store.devices() == []
