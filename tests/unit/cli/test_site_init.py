"""``site init`` with what sites have: the loader of the docs, NPZ files, folders; and what it refuses."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from dlfd_fleet.cli import main
from dlfd_fleet.cli.bench import _source
from dlfd_fleet.data import image_digests
from dlfd_fleet.data.dataset import stored_dataset
from dlfd_fleet.data.loaders import write_npz
from dlfd_fleet.ledger import RequestState, Site, purge_request, request_forgetting

DATA_PAGE = Path(__file__).parents[3] / "docs" / "reference" / "data.md"
VISITS = """patient,pulse,pressure,diagnosis
anna,62,121,well
anna,64,118,well
bert,91,160,ill
cleo,70,125,well
dora,99,171,ill
"""


def run(*command):
    with mock.patch.object(sys, "argv", ["dlfd-fleet", *map(str, command)]), pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.fixture
def clinic(tmp_path, monkeypatch):
    """The example of the page, and the command below it."""
    text = DATA_PAGE.read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "clinic_loader.py" in block)
    command = next(block for block in text.split("```") if block.startswith("\ndlfd-fleet site init clinic"))
    (tmp_path / "clinic_loader.py").write_text(code)
    (tmp_path / "visits.csv").write_text(VISITS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "clinic_loader", raising=False)
    return shlex.split(command.replace("\\\n", " "))[1:]


def test_the_loader_of_the_docs_makes_a_site_and_forgets(clinic, tmp_path, capsys):
    assert run(*clinic) == 0
    assert "2 numbers from 0 to 250; well, ill" in " ".join(capsys.readouterr().out.split())
    with Site(tmp_path / "clinic") as site:
        manifest = site.manifest()
        stored = stored_dataset(manifest, image_digests(manifest), site.decoded, site.card.classes)
        assert np.allclose(stored.images[:].numpy()[0] * 250, [62, 121], atol=1e-4)
        assert stored.labels.tolist() == [0, 0, 1, 0, 1]
        request = request_forgetting(site, "anna", deadline_days=30)
        for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
            site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=1)
        purge_request(site, site.ledger.get(request.id))
        assert site.ledger.get(request.id).state is RequestState.ROLLING_OUT
    assert (tmp_path / "visits.csv").read_text() == VISITS.replace("anna,62,121,well\nanna,64,118,well\n", "")


def test_a_storage_that_still_holds_rows_is_shown(clinic, tmp_path, capsys):
    file = tmp_path / "clinic_loader.py"
    file.write_text(file.read_text().replace("delete=delete", "delete=None"))
    assert run(*clinic) == 0
    with Site(tmp_path / "clinic") as site:
        request = request_forgetting(site, "anna", deadline_days=30)
        for state in (RequestState.UNLEARNING, RequestState.EVALUATING, RequestState.RELEASED):
            site.ledger.move(request.id, state, "as a job does", job="job-1", epoch=1)
    capsys.readouterr()
    assert run("site", "purge", tmp_path / "clinic") == 1
    assert "Deleted 2 images of released requests" in capsys.readouterr().out
    assert run("site", "status", tmp_path / "clinic") == 0
    assert (
        f"Still there, of request {request.id}: the loader clinic_loader:visits: its own storage still holds 2 rows, "
        "and it has no delete: delete them there by hand." in capsys.readouterr().out
    )
    (tmp_path / "visits.csv").write_text(VISITS.replace("anna,62,121,well\nanna,64,118,well\n", ""))
    assert run("site", "purge", tmp_path / "clinic") == 0
    with (tmp_path / "visits.csv").open("a") as table:
        table.write("ella,70,120,well\n")
    capsys.readouterr()
    assert run("site", "refresh", tmp_path / "clinic") == 0
    assert "1 new rows, and 0 rows are gone." in capsys.readouterr().out


def test_files_of_images_and_folders_make_sites(synthetic_faces, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    write_npz(tmp_path / "a.npz", {"inputs": images, "labels": np.arange(6) % 2, "people": np.array(list("aabbcc"))})
    size = ("--image-size", "8", "--channels", "1")
    assert run("site", "init", tmp_path / "npz", "--name", "n", "--npz", tmp_path / "a.npz", *size) == 0
    folders = tmp_path / "folders"
    for number, file in enumerate(sorted(synthetic_faces.parent.rglob("*.png"))[:6]):
        target = folders / ("yes" if number % 2 else "no") / f"person {number // 2}" / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    order = ("--image-folders", folders, "--folders", "label/person")
    assert run("site", "init", tmp_path / "folder", "--name", "f", *order) == 0
    with Site(tmp_path / "folder") as site:
        assert site.manifest().identities == ("person 0", "person 1", "person 2")
        assert site.card.classes == ("no", "yes")
        assert all(site.manifest().file_of(row).exists() for row in site.manifest().rows)
    assert run("site", "refresh", tmp_path / "folder") == 2
    assert "folder lists image files; edit" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "Name the site's rows in exactly one way: --manifest, --image-folders, --parquet, --npz or --loader"),
        (("--npz", "a.npz", "--manifest", "a.csv"), "Name the site's rows in exactly one way"),
        (("--loader", "nowhere"), "'nowhere', name: String should match"),
        (("--loader", "no_such_package:load"), "The loader 'no_such_package:load' cannot be imported"),
        (("--loader", "a:b", "--loader-arguments", "{"), "{ is not a JSON table"),
        (
            ("--loader", "a:b", "--loader-arguments", f'{{"a":{"[" * 20_000}{"]" * 20_000}}}'),
            "The arguments of 'a:b' nest lists or tables too deeply",
        ),
        (
            ("--image-folders", ".", "--folders", "class/person"),
            "--folders class/person is not valid; write person/label",
        ),
        (("--image-folders", "nothing"), "There is no image in folders of the form nothing/PERSON/LABEL"),
        (("--npz", "none.npz"), "none.npz: No such file or directory."),
        (("--npz", "none.npz", "--numbers", "3,4"), "--numbers 3,4 is not a shape; write 30, or 8x8"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_leaves_no_folder(tmp_path, capsys, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    assert run("site", "init", tmp_path / "new", "--name", "clinic", *options) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "new").exists()


def test_a_bench_takes_files_and_folders(tmp_path):
    assert _source("rows.npz") == {"data.source": "npz", "data.manifest": "rows.npz"}
    assert _source(str(tmp_path)) == {"data.source": "image-folders", "data.root": str(tmp_path)}
    assert _source("none.parquet") == {"data.source": "manifest", "data.manifest": "none.parquet"}
