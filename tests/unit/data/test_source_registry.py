"""The registry of data sources: those that other packages bring, and what is refused."""

import shutil
from pathlib import Path

import pytest

from dlfd_fleet.cli.bench import _source
from dlfd_fleet.configuration import load_settings
from dlfd_fleet.data import SOURCES, DataSource, Manifest, Row, open_source, read_manifest
from dlfd_fleet.exceptions import ConfigurationError, DataError
from dlfd_fleet.ledger import Site, site_folders
from dlfd_fleet.ledger.site_setup import deal_to_sites
from dlfd_fleet.settings import DataSettings


@pytest.fixture(autouse=True)
def fresh_registry():
    SOURCES.reload()
    yield
    SOURCES.reload()


def test_the_source_of_the_how_to_page_is_dealt_to_sites(install_how_to, synthetic_faces, tmp_path, silent):
    install_how_to("source.md")
    manifest = read_manifest(synthetic_faces)
    for row in manifest.rows:
        file = tmp_path / "folders" / row.label / row.identity / row.image.rpartition("/")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(manifest.file_of(row), file)
    wanted = {"data.source": "folders", "data.root": str(tmp_path / "folders"), "data.image_size": 32, "data.sites": 2}
    settings = load_settings(overrides=wanted | {"state_folder": str(tmp_path / "state")}).settings
    found = open_source(settings.data)
    assert found.identities == manifest.identities
    assert found.classes == manifest.classes
    assert SOURCES.find("folders").title(settings.data) == "folders"
    settings = settings.model_copy(
        update={"data": settings.data.model_copy(update={"validation_people": 2, "test_people": 2})}
    )
    assert len(deal_to_sites(settings, silent)) == 2
    with Site(site_folders(settings.state_folder)[0]) as site:
        assert site.manifest().classes == manifest.classes


def test_a_bench_takes_the_name_of_a_source_or_a_manifest(install_how_to):
    install_how_to("source.md")
    assert _source("orl") == {"data.source": "orl"}
    assert _source("folders") == {"data.source": "folders"}
    assert _source("faces.csv") == {"data.source": "manifest", "data.manifest": "faces.csv"}


def test_a_table_calls_the_faces_by_the_file_that_the_source_requires(tmp_path):
    settings = DataSettings(source="manifest", manifest=tmp_path / "ours.csv")
    assert SOURCES.find("manifest").title(settings) == "ours.csv"
    assert SOURCES.find("orl").title(settings) == "orl"


def test_an_unknown_source_is_refused_with_those_there_are(install_how_to):
    install_how_to("source.md")
    with pytest.raises(ConfigurationError) as failure:
        load_settings(overrides={"data.source": "lfw"}, environment={})
    known = "'orl', 'celeba', 'manifest', 'image-folders', 'parquet', 'npz', 'loader' or 'folders'"
    assert str(failure.value) == f"Setting 'data.source' (flag) is 'lfw': Input should be {known}."


def test_what_a_source_requires_is_asked_for_before_anything_is_read(install_how_to):
    install_how_to("source.md")
    with pytest.raises(ConfigurationError, match=r"data\.root must name a folder when data\.source is 'folders'"):
        load_settings(overrides={"data.source": "folders"}, environment={})
    with pytest.raises(DataError, match=r"^data\.manifest must name a file when data\.source is 'manifest'\.$"):
        open_source(DataSettings().model_copy(update={"source": "manifest"}))


@pytest.mark.parametrize("requires", ["root", ["root"], ("folder",)], ids=str)
def test_requirements_that_are_no_settings_are_refused_at_once(requires):
    with pytest.raises(ConfigurationError, match=r"'ours' requires .*; write a tuple of 'manifest', 'root'"):
        DataSource("ours", read_manifest, requires=requires)


def test_a_source_that_cannot_be_loaded_is_one_sentence(install_entry):
    install_entry("dlfd_fleet.sources", "broken = broken_source:SOURCE", "import no_such_module_anywhere")
    with pytest.raises(ConfigurationError, match="The data source 'broken' of broken_source:SOURCE cannot be loaded"):
        load_settings(overrides={"data.source": "broken"}, environment={})


def failing(settings):
    return {}["faces"]


def failing_below(settings):
    return list(Path("nowhere").iterdir())


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (failing, r"'ours' cannot be read: KeyError: 'faces' \(test_source_registry\.py, line \d+, in failing\)\.$"),
        (failing_below, r"'nowhere' \(test_source_registry\.py, line \d+, in failing_below\)\.$"),
        (lambda settings: [Row("a.png", "anna", "x")], "'ours' gives a list, and no Manifest"),
        (
            lambda settings: Manifest((Row(Path("a.png"), "x", "y"),), Path()),
            r"image 1, image: .*Path.* is no text; write",
        ),
    ],
    ids=["raises", "raises below", "no manifest", "no text"],
)
def test_a_source_that_goes_wrong_is_named_in_one_sentence(read, words):
    SOURCES.register(DataSource("ours", read))
    with pytest.raises(DataError, match=words):
        open_source(DataSettings(source="ours"))


def test_a_root_that_is_not_there_is_said_before_the_source_is_asked(tmp_path):
    SOURCES.register(DataSource("ours", failing, requires=("root",)))
    with pytest.raises(DataError, match=r"^data\.root: there is no folder .*nowhere; name the one"):
        open_source(DataSettings(source="ours", root=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((), "The data source 'ours' has no image"),
        (
            (Row("a.png", "anna", "x"), Row("b.png", "nan", "x")),
            "'ours', image 2, identity: 'nan' means an empty cell",
        ),
        ((Row("../a.png", "anna", "x"),), "'ours', image 1, image: '../a.png' leaves the image folder"),
    ],
    ids=["none", "nobody", "elsewhere"],
)
def test_what_a_source_gives_is_held_to_the_rules_of_tables(tmp_path, rows, words):
    SOURCES.register(DataSource("ours", lambda settings: Manifest(rows, tmp_path)))
    with pytest.raises(DataError, match=words):
        open_source(DataSettings(source="ours"))
