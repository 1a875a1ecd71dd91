"""What MLflow answers, and names that somebody gave, are shown and logged without what a terminal obeys."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException

from dlfd_fleet.plugins.deployment import FleetDeploymentClient
from dlfd_fleet.tracking.registry import in_words


def test_an_answer_of_mlflow_is_shown_without_what_a_terminal_obeys():
    said = in_words(MlflowException("no run\x1b[2J\x1b]0;title\x07 \u202ehere\rforged\nmore"))
    assert said == r"no run\x1b[2J\x1b]0;title\x07 \u202ehere\rforged"


def test_a_long_answer_is_shortened():
    assert in_words(MlflowException("x" * 10_000)).endswith("x…")


def test_a_name_of_a_deployment_is_refused_without_what_a_terminal_obeys(tmp_path, monkeypatch):
    monkeypatch.setenv("DLFD_FLEET_STATE_FOLDER", str(tmp_path))
    with pytest.raises(MlflowException, match=r"'cam\\x1b\[2J' is no name for a deployment") as refused:
        FleetDeploymentClient("dlfd-fleet").get_deployment("cam\x1b[2J")
    assert str(refused.value).isprintable()
