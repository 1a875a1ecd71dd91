"""The scale bench: the coordinator alone, with sites that answer when they are asked."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console

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
    with pytest.raises(ConfigurationError, match="is no list of numbers of sites; write 10,100,1000"):
        sites_command(Settings(state_folder=tmp_path), text, Console(file=io.StringIO()))
