"""A job is handed to Flower as a person would do it, and how its run ended is what Flower says of it."""

from __future__ import annotations

import pytest
from flwr.common.config import parse_config_args

from dlfd_fleet.exceptions import GoesOnError, JobError, VerdictError
from dlfd_fleet.federation.jobs import submission

# What a person would see of `flwr run`: its log is on stderr, in colours.
FLWR = """#!/bin/sh
echo "$FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION $*" >> {folder}/asked
case $1 in
    run) printf '\\033[92mINFO \\033[0m:  Starting logstream\\033]0;owned\\007\\n' >&2
         echo "Successfully started run 42"; exit $(cat {folder}/code) ;;
    list) echo '{{"success": true, "runs": [{{"run-id": "42", "status": "'$(head -n 1 {folder}/status)'",
               "status-details": "'$(cat {folder}/details)'"}}]}}'
          [ $(wc -l < {folder}/status) = 1 ] || sed -i 1d {folder}/status ;;
esac
"""


@pytest.fixture
def flower(monkeypatch, tmp_path):
    """Let a stand-in for `flwr` end with a code; it says these states of the run, one at each question."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "flwr").write_text(FLWR.format(folder=tmp_path))
    (tmp_path / "flwr").chmod(0o755)
    monkeypatch.setattr(submission.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(submission.time, "sleep", lambda _: None)
    (tmp_path / "pyproject.toml").write_text("")

    def flower(code, *states, details=""):
        (tmp_path / "details").write_text(details)
        (tmp_path / "code").write_text(str(code))
        (tmp_path / "status").write_text("\n".join(states) + "\n")

    return flower


def submit(kind, app, superlink=None, federation_config=None, **more):
    submission.submit(kind, app, superlink, federation_config, **{"patience": 0.0} | more)


def test_a_job_goes_to_flower_and_its_failure_is_one_sentence(flower, tmp_path, capfd):
    flower(0, "finished:completed")
    submit("train", tmp_path, "fleet", "num-supernodes=2")
    assert (tmp_path / "asked").read_text().splitlines() == [
        f'1 run {tmp_path} fleet --stream --run-config job="train" --federation-config num-supernodes=2',
        "1 list fleet --run-id 42 --format json",
    ]
    assert "started run 42" in capfd.readouterr().out
    for status, details, said in (
        ("finished:failed", "ServerApp failed: no site.", r"run 42: ServerApp failed: no site\. .*resume. goes on"),
        ("finished:failed", "N/A", "the run 42: finished:failed"),
        ("finished:stopped", "", "the run 42: finished:stopped"),
    ):
        flower(0, status, details=details)
        with pytest.raises(JobError, match=said) as refused:
            submit("erase", tmp_path)
        assert refused.value.exit_code == 2
    for runtime in ("ServerApp", "Simulation"):
        flower(0, "finished:failed", details=f"{runtime} failed with exception: The verdict is FAIL: it leaks.")
        with pytest.raises(VerdictError, match=r"^The verdict is FAIL: it leaks\.$") as failed:
            submit("erase", tmp_path)
        assert failed.value.exit_code == 1
    with pytest.raises(JobError, match="There is no Flower app"):
        submit("erase", tmp_path / "nowhere")


def test_who_interrupts_it_is_told_that_the_run_goes_on(flower, tmp_path, monkeypatch):
    """But not before the run has started."""

    def interrupt(*_):
        raise KeyboardInterrupt

    flower(0, "running", "running")
    with monkeypatch.context() as patch:
        patch.setattr(submission.time, "sleep", interrupt)
        with pytest.raises(GoesOnError, match=r"^Interrupted, and the run 42 goes on without this command:"):
            submit("erase", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(submission, "printed", interrupt)  # of the first line, before the run has started
        with pytest.raises(KeyboardInterrupt):
            submit("erase", tmp_path)


def test_what_flower_prints_is_shown_as_plain_text_wherever_it_prints_it(flower, tmp_path, capfd):
    flower(0, "finished:completed")
    submit("train", tmp_path)
    shown = capfd.readouterr()
    assert shown.out.splitlines()[0] == r"INFO :  Starting logstream\x1b]0;owned\x07"
    assert not shown.err


def test_a_run_that_nobody_started_ends_with_the_code_of_flower(flower, tmp_path):
    flower(1)
    (tmp_path / "flwr").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(JobError, match="exit code 1"):
        submit("erase", tmp_path)


@pytest.mark.parametrize("code", [0, 1])
def test_a_log_that_ends_early_is_no_end_of_the_job(flower, tmp_path, capfd, code):
    """Flower's log may break off under load, whatever code `flwr run` then ends with."""
    goes_on = ("pending", "starting", "running", "\\", "running")
    flower(code, *goes_on, "finished:completed")
    submit("erase", tmp_path, patience=3600.0)
    assert (tmp_path / "asked").read_text().count("list --run-id 42") == len(goes_on) + 1
    flower(code, *goes_on, "finished:failed", details="ServerApp failed: no site.")
    with pytest.raises(JobError, match="no site"):
        submit("erase", tmp_path, patience=3600.0)
    capfd.readouterr()
    flower(code, "running", "finished:failed", details="ServerApp failed with exception: The verdict is FAIL: x.")
    with pytest.raises(VerdictError):
        submit("erase", tmp_path)
    assert "The log has ended, and the run 42 goes on" in capfd.readouterr().out


@pytest.mark.parametrize(("state", "said"), [("\\", "unknown"), ("pending", "pending")])
def test_who_waits_for_a_superlink_that_says_nothing_of_the_run_waits_as_long_as_the_settings_say(
    flower, tmp_path, state, said
):
    flower(0, "running", state)
    with pytest.raises(
        JobError, match=rf"for 0 s Flower has not said .* its status is {said}\. On the coord"
    ) as refused:
        submit("erase", tmp_path)
    assert refused.value.exit_code == 2


HARD = ["M. Ode", 'a "b" \\', "fresh=true if_due=true", "Zoë's", "x" * 200]


@pytest.mark.parametrize("text", HARD)
def test_who_starts_a_job_and_why_is_told_to_an_app_that_asks_for_it(flower, tmp_path, text):
    """As Flower itself reads it; an app without that key would be refused by Flower."""
    flower(0, "finished:completed")
    (tmp_path / "pyproject.toml").write_text('[tool.flwr.app.config]\nby = ""\nreason = ""\n')
    submit("erase", tmp_path, by=text, reason=f"{text}\nand more")
    asked = (tmp_path / "asked").read_text().splitlines()[0].partition("--run-config ")[2]
    assert parse_config_args([asked]) == {"job": "erase", "by": text, "reason": f"{text}\nand more"}


def test_an_app_that_does_not_ask_who_starts_a_job_is_not_told_and_that_is_said(flower, tmp_path, capfd):
    flower(0, "finished:completed")
    for text in ("", "[tool.flwr.app.config]", "no toml", "[tool]\nflwr = 1"):
        (tmp_path / "pyproject.toml").write_text(text)
        submit("erase", tmp_path, by="ode", reason="it is time")
        said = capfd.readouterr().out
        assert "will not say that ode started it" in said
        assert "will not say why it was started" in said
    assert "by=" not in (tmp_path / "asked").read_text()
    assert "reason=" not in (tmp_path / "asked").read_text()
    for name in ("a\nb", "x" * 201, "\udc80"):
        with pytest.raises(JobError, match="--by is no name"):
            submit("erase", tmp_path, "local", by=name)
    for reason in ("x" * 2001, "\udc80"):
        with pytest.raises(JobError, match="The reason"):
            submit("erase", tmp_path, "local", reason=reason)
