"""The scale bench: the coordinator alone, with sites that answer when they are asked."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

from dlfd_fleet.bench.load.memory import measure_site, memory_command
from dlfd_fleet.bench.load.sites import sites_command
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.settings import Settings


def test_each_number_of_sites_is_measured_and_drawn(tmp_path):
    settings = Settings(state_folder=tmp_path, model={"architecture": "mobilenet_v3_small"}, data={"image_size": 32})
    out = io.StringIO()
    sites_command(settings, "3,2", Console(file=out, width=100))
    with (tmp_path / "bench-scale" / "scale.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["sites"] for row in rows] == ["2", "3"]
    for row in rows:
        assert float(row["seconds"]) > 0.0
        # At least the running sum was there beside the model.
        assert float(row["peak_mebibytes"]) > float(row["model_mebibytes"])
    assert (tmp_path / "bench-scale" / "scale.png").stat().st_size > 1000
    assert "ms a site" in out.getvalue()


@pytest.mark.parametrize("text", ["", "ten", "0,10", "10,-1"])
def test_numbers_that_are_none_are_one_sentence(tmp_path, text):
    with pytest.raises(ConfigurationError, match="is not a list of numbers of sites; write 10,100,1000"):
        sites_command(Settings(state_folder=tmp_path), text, Console(file=io.StringIO()))


def test_the_memory_of_a_first_epoch_is_measured(tmp_path):
    settings = Settings(state_folder=tmp_path, model={"architecture": "mobilenet_v3_small"}, data={"image_size": 32})
    out = io.StringIO()
    memory_command(settings, "64", Console(file=out, width=100))
    with (tmp_path / "bench-memory" / "memory.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert (row["images"], float(row["data_mebibytes"])) == ("64", 64 * 3 * 32 * 32 / 2**20)
    assert float(row["peak_mebibytes"]) > float(row["data_mebibytes"])
    assert [file.name for file in (tmp_path / "bench-memory").iterdir()] == ["memory.csv"]
    assert "peak / data" in out.getvalue()


def test_a_memory_bench_of_numbers_or_of_no_images_is_one_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match="'1' is not a list of numbers of images; write 10,100,1000"):
        memory_command(Settings(state_folder=tmp_path), "1", Console(file=io.StringIO()))
    with pytest.raises(ConfigurationError, match=r"This bench draws images; do not set data\.numbers"):
        measure_site(Settings(data={"numbers": (30,)}), 10, tmp_path / "site")
    assert not list(tmp_path.iterdir())
