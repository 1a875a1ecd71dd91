"""An archive of records is what its signer wrote, and the same records are the same bytes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import zipfile
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.exceptions import EvidenceError
from dlfd_fleet.report import load_signer
from dlfd_fleet.report.archive import MANIFEST, Table, verify_archive, write_archive

BEGIN, END = date(2026, 1, 1), date(2026, 12, 31)
TABLES = {
    "requests": Table(
        ("request", "name", "days", "open", "job"),
        [
            {"request": "ab12", "name": '=HYPERLINK("http://evil"),Zoë\n"x"', "days": -3, "open": True, "job": None},
            {"request": "cd34", "name": "-1+1", "days": 4, "open": False, "job": "erase-1"},
        ],
    ),
    "jobs": Table(("job", "epoch"), []),
}


def write(file, signer, **changes):
    told = {"holder": "clinic", "begin": BEGIN, "end": END, "with_names": False, "signer": signer}
    return write_archive(file, TABLES, {"certificates/erase-1.json": b"{}\n"}, **{**told, **changes})


@pytest.fixture(scope="module")
def signed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed")
    signer = load_signer(folder / "records.pem")
    write(folder / "archive.zip", signer)
    return folder / "archive.zip", signer


def contents_of(file):
    with zipfile.ZipFile(file) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def rewritten(tmp_path, contents, compression=zipfile.ZIP_STORED):
    file = tmp_path / "other.zip"
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file


def test_an_archive_says_what_it_is_and_its_tables_say_the_same_twice(signed):
    file, signer = signed
    claims = verify_archive(file, signer.public_key).predicate
    assert (claims.holder, claims.begin, claims.end, claims.with_names) == ("clinic", BEGIN, END, False)
    assert claims.rows == {"jobs": 0, "requests": 2}
    contents = contents_of(file)
    names = ["certificates/erase-1.json", "jobs.csv", "jobs.json", "requests.csv", "requests.json"]
    assert list(contents) == [MANIFEST, *names]
    assert json.loads(contents["requests.json"]) == TABLES["requests"].rows
    first, second = csv.DictReader(io.StringIO(contents["requests.csv"].decode(), newline=""))
    assert first == {
        "request": "ab12",
        "name": "'" + TABLES["requests"].rows[0]["name"],  # no spreadsheet takes it for a formula
        "days": "-3",
        "open": "yes",
        "job": "",
    }
    assert (second["name"], second["open"]) == ("'-1+1", "no")
    assert contents["jobs.csv"] == b"job,epoch\r\n"


def test_the_same_records_are_the_same_bytes_with_the_dates_of_the_periods_end(signed, tmp_path):
    file, signer = signed
    write(tmp_path / "again.zip", signer)
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(2026, 12, 31, 0, 0, 0)}


@given(data=st.data(), bit=st.integers(0, 7))
def test_a_changed_byte_is_refused_or_changes_no_file(signed, tmp_path_factory, data, bit):
    """What is signed are names and contents; a ZIP has dates, too, which nobody reads."""
    file, signer = signed
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << bit
    changed = tmp_path_factory.mktemp("changed") / "archive.zip"
    changed.write_bytes(content)
    try:
        verify_archive(changed, signer.public_key)
    except EvidenceError:
        return
    assert contents_of(changed) == contents_of(file)


@pytest.mark.parametrize("name", [MANIFEST, "certificates/erase-1.json", "jobs.csv", "requests.csv", "requests.json"])
def test_no_file_can_be_changed_left_out_or_added(signed, tmp_path, name):
    file, signer = signed
    contents = contents_of(file)
    for other in (
        contents | {name: contents[name] + b"\n"},
        {each: content for each, content in contents.items() if each != name},
        contents | {"more.csv": b""},
    ):
        with pytest.raises(EvidenceError, match=r"manifest|was changed|as it was written"):
            verify_archive(rewritten(tmp_path, other), signer.public_key)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_of_another_make_is_refused(signed, tmp_path):
    file, signer = signed
    contents = contents_of(file)
    with pytest.raises(EvidenceError, match="was not written by dlfd-fleet"):
        verify_archive(rewritten(tmp_path, contents, zipfile.ZIP_DEFLATED), signer.public_key)
    twice = rewritten(tmp_path, contents)
    with zipfile.ZipFile(twice, "a") as archive:
        archive.writestr("jobs.csv", contents["jobs.csv"])
    with pytest.raises(EvidenceError, match="or there twice"):
        verify_archive(twice, signer.public_key)
    for content in (b"", b"no archive at all", file.read_bytes()[:200]):
        (tmp_path / "none.zip").write_bytes(content)
        with pytest.raises(EvidenceError, match="is no ZIP archive, or is damaged"):
            verify_archive(tmp_path / "none.zip", signer.public_key)
    with pytest.raises(EvidenceError, match=r"nowhere\.zip cannot be read: No such file"):
        verify_archive(tmp_path / "nowhere.zip", signer.public_key)


def test_another_key_verifies_nothing(signed, tmp_path):
    with pytest.raises(EvidenceError, match="does not bear a valid signature of the named key"):
        verify_archive(signed[0], load_signer(tmp_path / "other.pem").public_key)


def test_who_verifies_needs_no_more_than_for_a_certificate():
    """The extra of devices, which has neither of these."""
    code = (
        "import sys, dlfd_fleet.report.archive; "
        "print([n for n in ('torch', 'sqlalchemy', 'safetensors', 'jinja2') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("begin", "end", "sentence"),
    [
        (date(2026, 2, 1), date(2026, 1, 31), "ends before it begins"),
        (date(1979, 12, 31), date(2026, 1, 1), "name a day from 1980 on"),
    ],
)
def test_a_period_that_is_none_writes_nothing(signed, tmp_path, begin, end, sentence):
    with pytest.raises(EvidenceError, match=sentence):
        write(tmp_path / "archive.zip", signed[1], begin=begin, end=end)
    with pytest.raises(EvidenceError, match=r"Cannot write .*; check space and rights"):
        write(tmp_path / "nowhere" / "archive.zip", signed[1])
    assert list(tmp_path.iterdir()) == []
