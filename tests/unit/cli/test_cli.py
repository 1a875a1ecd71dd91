"""The command as a person types it: one sentence and exit code 2 for a mistake, never a traceback."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from dlfd_fleet.cli import PAGES, main
from dlfd_fleet.configuration import descriptions
from dlfd_fleet.data import read_manifest, write_manifest
from dlfd_fleet.ledger import Site, site_folders
from tests.clinic import make_clinic
from tests.command import environment_of, run_command
from tests.unit.test_examples_in_help import COMMANDS
from tests.unit.test_repository_files import ROOT, anchors


def refused(result):
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("Error: ")
    return result.stderr


@pytest.fixture
def state(tmp_path, synthetic_faces):
    arguments = [f"data.manifest={synthetic_faces}", "data.source=manifest", "data.image_size=32", "data.sites=2"]
    arguments += ["data.validation_people=2", "data.test_people=2", f"state_folder={tmp_path / 'state'}"]
    done = run_command("data", "deal", *[part for argument in arguments for part in ("--set", argument)])
    assert done.returncode == 0, done.stderr
    return tmp_path / "state"


def test_help_names_every_command_and_loads_nothing_heavy():
    command = [sys.executable, "-m", "dlfd_fleet", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment_of({}), check=False)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("demo", "config", "data", "forget", "report", "certificate"))
    code = "import sys, dlfd_fleet.cli; print([n for n in ('torch', 'mlflow', 'flwr', 'sklearn') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_config_show_tells_where_each_value_came_from(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text("seed = 3\n[training]\nrounds = 9\n")
    shown = run_command("config", "show", "--config", file, "--set", "training.rounds=7", DLFD_FLEET_DATA__SITES=6)
    rows = {line.split("│")[1].strip(): line for line in shown.stdout.splitlines() if line.count("│") > 2}
    assert "3" in rows["seed"]
    assert "file" in rows["seed"]
    assert "7" in rows["training.rounds"]
    assert "flag" in rows["training.rounds"]
    assert "6" in rows["data.sites"]
    assert "environment" in rows["data.sites"]
    assert "default" in rows["training.momentum"]


@pytest.mark.parametrize(("coloured", "widest"), [({}, 160), ({"FORCE_COLOR": 1}, 80)], ids=["log", "terminal"])
def test_config_show_says_what_each_setting_is_and_cuts_no_name(coloured, widest):
    command = [sys.executable, "-m", "dlfd_fleet", "config", "show"]
    environment = environment_of({"COLUMNS": 80, **coloured})
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert set(descriptions()) <= {line.split("│")[1].strip() for line in plain.splitlines() if line.count("│") > 2}
    assert "Rounds of federated averaging." in plain
    assert "…" not in plain
    assert max(map(len, plain.splitlines())) <= widest


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--set", "training.round=7"], "Unknown setting 'training.round' (flag): did you mean 'training.rounds'"),
        (["--set", "training.rounds=many"], "Setting 'training.rounds' (flag) is 'many'"),
        (["--set", "seed"], "--set seed has no value"),
        (["--config", "none.toml"], "Cannot read the settings file none.toml"),
    ],
)
def test_a_wrong_setting_is_one_sentence(arguments, sentence):
    assert sentence in refused(run_command("config", "show", *arguments))


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (("config", "show", "--set", "seed"), "docs/how-to/operate.md#settings"),
        (("site", "status", "none"), "docs/how-to/site.md"),
        (("forget", "list", "--site", "none"), "docs/how-to/requests.md"),
        (("desk", "--site", "none"), "docs/how-to/desk.md"),
        (("data", "check", "none.csv"), "docs/reference/data.md"),
        (("bench", "methods", "--data", "none.csv"), "docs/reference/data.md"),  # what is wrong is the data
        (("bench", "margins", "--models", "2"), "docs/how-to/compare.md"),
        (("unlearn", "--model", "none", "--data", "a.csv", "--forget", "x", "--output", "y"), "docs/how-to/tensors.md"),
        (("demo", "--set", "data.source=none"), "docs/tutorials/demo.md"),
        (("certify", "--runs", "2"), "docs/how-to/certify.md"),
        (("job", "list"), "docs/how-to/operate.md"),
        (("report",), "docs/how-to/evidence.md"),
        (("certificate", "show", "none"), "docs/how-to/evidence.md"),
        (("registry", "list"), "docs/how-to/mlflow.md"),
        (("outbox", "list"), "docs/how-to/mlflow.md"),
        (("prune",), "docs/how-to/operate.md#disk-space"),
        (("publish", "champion"), "docs/how-to/delivery.md"),
        (("delivery", "status"), "docs/how-to/delivery.md"),
        (("rollout", "start"), "docs/how-to/delivery.md"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_an_error_names_the_page_that_explains_it(words, page, tmp_path):
    said = refused(run_command(*words, DLFD_FLEET_STATE_FOLDER=tmp_path / "none"))
    command = re.search(re.escape(f" See {page} (dlfd-fleet explain ") + r"([a-z]+)\)\.\n\Z", said)
    assert command, said
    path, _, anchor = page.partition("#")
    assert run_command("explain", command[1]).stdout == (ROOT / path).read_text(encoding="utf-8") + "\n"
    assert not anchor or anchor in anchors(ROOT / path)
    assert (ROOT / path).exists()


def test_every_command_is_explained_on_a_page():
    assert {words.split()[1] for words in COMMANDS if words.startswith("dlfd-fleet ")} == {*PAGES} - {"device"}


def test_a_page_that_is_not_there_is_one_sentence():
    assert "There is no page about 'sites'; name one of bench, " in refused(run_command("explain", "sites"))


def test_a_wrong_environment_variable_is_one_sentence():
    assert "'data.site' (environment)" in refused(run_command("config", "show", DLFD_FLEET_DATA__SITE=3))


def test_the_bench_measures_the_faces_that_the_settings_name_unless_told_otherwise(tmp_path):
    file = tmp_path / "fleet.toml"
    file.write_text(f'[data]\nsource = "manifest"\nmanifest = "{tmp_path / "ours.csv"}"\n')
    options = ("--config", file, "--set", f"state_folder={tmp_path}", "--set", "data.test_people=1000")
    assert "There is no manifest" in refused(run_command("bench", "methods", *options))
    assert "none.csv" in refused(run_command("bench", "methods", "--data", "none.csv", *options))
    assert "people" in refused(run_command("bench", "methods", "--data", "orl", *options))


def test_the_version_is_told_and_a_shell_completes_commands(monkeypatch):
    assert run_command("--version").stdout == f"dlfd-fleet {version('dlfd-fleet')}\n"
    asked = {"_DLFD_FLEET_COMPLETE": "complete_bash", "COMP_WORDS": "dlfd-fleet forg", "COMP_CWORD": "1"}
    assert run_command(**asked).stdout.split() == ["forget"]


@pytest.mark.parametrize("words", [("desk", "--by", "M. Ode", "--site"), ("delivery", "serve")])
def test_a_port_that_is_taken_is_told_and_no_address_before_it(words, tmp_path):
    state = ("--set", f"state_folder={tmp_path / 'state'}")
    if words[0] == "desk":
        words += (make_clinic(tmp_path / "clinic"),)
    else:
        assert run_command("delivery", "init", *state).returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refusal = run_command(*words, *state, "--port", port)
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use." in refused(refusal)
    assert "http" not in refusal.stdout


def test_a_job_is_not_simulated_because_nobody_has_named_a_superlink(tmp_path):
    said = refused(run_command("job", "start", "erase", FLWR_HOME=tmp_path / "none"))
    assert f"Flower has no configuration here ({tmp_path / 'none' / 'config.toml'})" in said
    assert not (tmp_path / "none").exists()


def test_a_root_that_holds_none_of_the_images_is_one_sentence(synthetic_faces, tmp_path):
    said = refused(run_command("data", "check", synthetic_faces, "--root", tmp_path))
    count = len(read_manifest(synthetic_faces).rows)
    assert f"None of the {count} images of {synthetic_faces} is in {tmp_path}; name their folder with --root." in said


def test_data_check_names_labels_where_a_cell_holds_several(synthetic_faces):
    rows = read_manifest(synthetic_faces).rows
    write_manifest(
        [replace(row, label="glasses;beard" if row.label == "class-0" else "hat") for row in rows], synthetic_faces
    )
    assert run_command("data", "check", synthetic_faces, "--multi-label").stdout.endswith(
        "; labels: beard, glasses, hat.\n"
    )


def test_data_check_lists_problems_and_ends_with_2(synthetic_faces):
    sound = run_command("data", "check", synthetic_faces)
    assert sound.returncode == 0
    manifest = read_manifest(synthetic_faces)
    counted = f"{len(manifest.rows)} images of {len(manifest.by_person())} people"
    assert sound.stdout.endswith(f"no problem found. {counted}; classes: {', '.join(manifest.classes)}.\n")
    rows = read_manifest(synthetic_faces).rows
    (synthetic_faces.parent / rows[3].image).unlink()
    write_manifest([*rows, rows[0]], synthetic_faces)
    broken = run_command("data", "check", synthetic_faces, "--classes", "class-0")
    assert broken.returncode == 2
    assert "there is no file" in broken.stdout
    assert "is listed in row 2 already" in broken.stdout
    assert "'class-1' is no class" in broken.stdout
    assert "Class 2 of 3 has no name" in refused(
        run_command("data", "check", synthetic_faces, "--classes", "class-0,,hat")
    )


def test_data_check_of_a_missing_manifest_is_one_sentence(tmp_path):
    assert "There is no manifest" in refused(run_command("data", "check", tmp_path / "none.csv"))


def test_synthesize_makes_a_face_set_that_checks(tmp_path):
    made = run_command("data", "synthesize", tmp_path / "faces", "--people", 3, "--images", 2, "--image-size", 32)
    assert made.returncode == 0
    assert run_command("data", "check", tmp_path / "faces" / "manifest.csv").returncode == 0
    assert "is not empty" in refused(run_command("data", "synthesize", tmp_path / "faces"))


def test_a_request_is_accepted_once_and_listed(state):
    site = site_folders(state)[0]
    with Site(site) as opened:
        person = next(row.identity for row in opened.manifest().rows if row.split == "train")
    accepted = run_command("forget", "request", person, "--site", site, "--set", "erasure.deadline_days=10")
    assert accepted.returncode == 0, accepted.stderr
    assert "Accepted as request" in accepted.stdout
    listed = run_command("forget", "list", "--site", site)
    assert person in listed.stdout
    assert "ACCEPTED" in listed.stdout
    assert "has asked already" in refused(run_command("forget", "request", person, "--site", site))
    assert "There is no person 'nobody'" in refused(run_command("forget", "request", "nobody", "--site", site))


def test_a_folder_that_is_no_site_and_a_damaged_ledger_are_one_sentence(state, tmp_path):
    assert "is no site's folder" in refused(run_command("forget", "list", "--site", tmp_path))
    site = site_folders(state)[0]
    (site / "ledger.db").write_bytes(b"scrambled" * 1000)
    assert "ledger.db cannot be used" in refused(run_command("forget", "list", "--site", site))


@pytest.mark.parametrize("command", [("job", "list"), ("delivery", "status")])
def test_a_folder_of_another_user_is_one_sentence(closed_folder, monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["dlfd-fleet", *command, "--set", f"state_folder={closed_folder}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"Error: You may not read or write {closed_folder}")
    assert said.endswith(": run the command as the user who owns it.\n")


def test_the_demo_leaves_a_fleet_alone_that_is_not_its_own(state):
    assert "was not made by the demo" in refused(run_command("demo", "--set", f"state_folder={state}"))
    assert len(site_folders(state)) == 2


def test_an_unreadable_state_folder_is_one_sentence(tmp_path):
    (tmp_path / "demo.json").write_text("{")
    assert "demo.json cannot be read" in refused(run_command("demo", "--set", f"state_folder={tmp_path}"))
    (tmp_path / "file").write_text("no folder")
    assert "cannot be" in refused(run_command("demo", "--set", f"state_folder={tmp_path / 'file'}"))


def test_a_site_is_made_looked_at_and_purged(tmp_path, synthetic_faces):
    site, arguments = tmp_path / "clinic", ["--name", "clinic", "--manifest", synthetic_faces, "--image-size", 32]
    made = run_command("site", "init", site, *arguments, "--test-people", 2, "--validation-people", 2)
    assert made.returncode == 0, made.stderr
    assert "flower-supernode" in made.stdout
    assert "Without a fleet secret" in made.stdout
    assert "is a site's folder already" in refused(run_command("site", "init", site, *arguments))
    with Site(site) as opened:
        person = next(row.identity for row in opened.manifest().rows if row.split == "train")
    request = run_command("forget", "request", person, "--site", site).stdout.split()[3].rstrip(";")
    shown = run_command("site", "status", site)
    assert "Requests: 1 ACCEPTED. Overdue: 0." in shown.stdout
    assert request in shown.stdout
    assert "asked to be forgotten" in run_command("forget", "show", request, "--site", site).stdout
    assert "Deleted 0 images" in run_command("site", "purge", site).stdout
    assert "is withdrawn" in run_command("forget", "withdraw", request, "--site", site).stdout
    assert "cannot be withdrawn: it is WITHDRAWN" in refused(run_command("forget", "withdraw", request, "--site", site))
    assert "There is no request nonsense" in refused(run_command("forget", "show", "nonsense", "--site", site))
    assert "is no site's folder" in refused(run_command("site", "status", tmp_path))


def test_a_certificate_is_verified_offline_by_a_named_key_and_a_changed_one_is_refused(tmp_path):
    kept = Path(__file__).parents[1] / "report" / "certificates"
    certificate, key = kept / "format-1.json", kept / "format-1.pub.pem"
    verified = run_command("certificate", "verify", certificate, "--key", key)
    assert verified.returncode == 0, verified.stderr
    assert "Verified." in verified.stdout
    changed = tmp_path / "certificate.json"
    changed.write_text(certificate.read_text().replace("a", "b", 1))
    assert "certificate.json" in refused(run_command("certificate", "verify", changed, "--key", key))
    assert "not a file that" in refused(run_command("certificate", "verify", certificate, "--key", key, "--model", key))
    assert run_command("certificate", "verify", certificate).returncode == 2  # there is no default for whom to trust
    code = (
        "import sys, dlfd_fleet.report; print([n for n in ('torch', 'mlflow', 'flwr', 'jinja2') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_state_folder_without_an_erasure_has_no_report(tmp_path):
    assert "holds no jobs" in refused(run_command("report", "--set", f"state_folder={tmp_path}"))


@pytest.mark.parametrize("command", [("job", "status"), ("demo",), ("outbox", "list"), ("delivery", "init")])
def test_a_path_that_no_disk_takes_is_one_sentence(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dlfd-fleet", *command, "--set", f"state_folder={tmp_path / ('a' * 300)}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert "File name too long" in said


@pytest.mark.parametrize("command", [("outbox", "list"), ("registry", "list"), ("registry", "list", "--history")])
def test_a_mistyped_state_folder_is_neither_empty_nor_made(command, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dlfd-fleet", *command, "--set", f"state_folder={tmp_path / 'mistyped'}"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "mistyped; name the coordinator's state folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
