"""`dlfd-fleet unlearn`: one model in, one model out, with its report; and every mistake one sentence."""

import io
import json
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from dlfd_fleet.data import TrainedOn, assign_people, read_manifest, write_manifest
from dlfd_fleet.exceptions import ConfigurationError, DataError, UnlearningError
from dlfd_fleet.model_input import image_input
from dlfd_fleet.models import NETWORKS, ModelCard, build, load_model, permit, save_model
from dlfd_fleet.progress import ConsoleProgress
from dlfd_fleet.settings import Settings
from dlfd_fleet.single import unlearn_people
from dlfd_fleet.unlearning import METHODS, Candidate, Method
from dlfd_fleet.unlearning.session import Session
from tests.command import run_command
from tests.small_networks import small_networks

QUICK = (
    "--set",
    "unlearning.distancing_steps=2",
    "--set",
    "unlearning.repair_epochs=0.3",
    "--set",
    "audit.resamples=200",
)


@pytest.fixture(scope="module", autouse=True)
def networks():
    with small_networks():
        yield


def unlearn(*arguments):
    return run_command("unlearn", *arguments, *QUICK)


@pytest.fixture
def world(tmp_path, synthetic_faces):
    manifest = assign_people(read_manifest(synthetic_faces), validation_people=2, test_people=3, sites=1, seed=0)
    faces = synthetic_faces.with_name("dealt.csv")
    write_manifest(manifest.rows, faces)
    torch.manual_seed(0)
    card = ModelCard(architecture="mobilenet_v3_small", classes=manifest.classes, input=image_input(32))
    save_model(build(card), card, tmp_path / "model")
    person = next(row.identity for row in manifest.rows if row.split == "train")
    return tmp_path, faces, person


def test_a_model_comes_out_with_its_lineage_and_a_report(world):
    folder, faces, person = world
    done = unlearn("--model", folder / "model", "--data", faces, "--forget", person, "--output", folder / "out")
    assert done.returncode in (0, 1), done.stderr  # an untrained model has nothing to forget: no success is expected
    assert "Model and report" in done.stdout
    model, card = load_model(folder / "out")
    report = json.loads((folder / "out" / "report.json").read_text())
    assert card.kind == "unlearned"
    assert card.parent == report["parent"]
    assert report["forgotten_people"] == 1
    assert report["verdict"]["outcome"] in ("PASS", "FAIL", "INCONCLUSIVE")
    assert 0.0 <= report["relearned"]["mia_auc"]["value"] <= 1.0
    assert "MIA AUC after further training" in done.stdout
    assert done.returncode == (0 if report["success"] else 1)
    page = (folder / "out" / "report.html").read_text()
    assert "was trained on as any later training would, and attacked again: AUC" in page
    assert person not in page
    assert person not in (folder / "out" / "report.json").read_text()
    assert "not with" in " ".join(page.split()) or "Nothing here proves" in page
    assert model is not None


def test_another_registered_method_does_it_and_the_report_names_it(world):
    folder, faces, person = world
    given = ("--model", folder / "model", "--data", faces, "--forget", person, "--output", folder / "out")
    done = unlearn(*given, "--method", "not", "--set", "erasure.relearning_rounds=0", "--set", "unlearning.epochs=1")
    assert done.returncode in (0, 1), done.stderr
    report = json.loads((folder / "out" / "report.json").read_text())
    assert (report["method"], report["method_title"], report["rounds"]) == ("not", "NoT", 0)
    assert report["method_package"].startswith("dlfd-fleet ")
    assert report["method_settings"] == {"layers": [0]}
    used = report["settings"]
    assert (used["unlearning.epochs"], used["unlearning.learning_rate"]) == (1.0, 0.01)
    assert used["erasure.relearning_rounds"] == 0
    page = (folder / "out" / "report.html").read_text()
    assert f" by NoT (not, {report['method_package']}; layers = [0])," in page
    assert "<code>unlearning.learning_rate</code>" in page


def test_a_network_of_ones_own_is_built_once_the_settings_name_it(world):
    folder, faces, person = world
    _, known = load_model(folder / "model")
    own = "torchvision.models:mobilenet_v3_small"
    card = ModelCard(architecture=own, arguments={"num_classes": 2}, classes=known.classes, input=known.input)
    permit(own)
    save_model(build(card), card, folder / "own")
    NETWORKS.reload()
    given = ("--model", folder / "own", "--data", faces, "--forget", person, "--output", folder / "out")
    refused = unlearn(*given)
    assert (refused.returncode, (folder / "out").exists()) == (2, False)
    assert "name it in model.architecture of the settings" in refused.stderr
    done = unlearn(*given, "--set", f"model.architecture={own}", "--set", "erasure.relearning_rounds=0")
    NETWORKS.reload()
    assert done.returncode in (0, 1), done.stderr
    assert json.loads((folder / "out" / "card.json").read_text())["architecture"] == own


def in_this_process(folder, faces, person, silent, **options):
    settings = Settings(
        unlearning={"max_rounds": 1, "distancing_steps": 2, "repair_epochs": 0.3},
        erasure={"relearning_rounds": 0},
        audit={"resamples": 200},
    )
    return unlearn_people(folder / "model", faces, None, [person], folder / "out", settings, silent, **options)


@pytest.mark.parametrize(("own", "aims", "aimed"), [(True, True, True), (True, False, False), (False, True, False)])
def test_a_method_aims_at_what_the_model_itself_says_if_it_can_and_images_change_as_in_training(
    world, silent, own, aims, aimed
):
    """With targets, changes that training did not make would only cost retained people."""
    folder, faces, person = world
    seen = []

    def noted(problem):
        seen.append((problem.targets, problem.augment is not None, len(problem.forget)))
        return Session(problem).outcome()

    METHODS.reload()
    METHODS.register(Method("ours", "Ours", "none", (Candidate(noted),), aims_at_references=aims))
    settings = Settings(erasure={"relearning_rounds": 0, "own_answers": own}, audit={"resamples": 200})
    result = unlearn_people(folder / "model", faces, None, [person], folder / "out", settings, silent, method="ours")
    METHODS.reload()
    ((targets, changed, images),) = seen
    assert (targets is not None) is result.own_answers is aimed
    assert changed is not aimed
    if aimed:
        assert targets.shape == (images, 2)
        assert torch.allclose(targets.sum(dim=1), torch.ones(images))
    page = " ".join((folder / "out" / "report.html").read_text().split())
    assert ("aimed at what the model itself said of changed copies of the images" in page) is aimed
    assert result.settings["erasure.own_answers"] is own


def test_whom_a_list_does_not_name_is_unseen_and_is_dealt_to_gate_and_evidence(world, silent):
    folder, faces, person = world
    plain = faces.with_name("manifest.csv")  # of twelve people without a split
    trained = sorted(read_manifest(plain).identities)[:6]
    (folder / "trained.txt").write_text("\n".join(name.upper() for name in [*trained, person]))
    result = in_this_process(folder, plain, person, silent, trained_on=TrainedOn.read(str(folder / "trained.txt")))
    others = len(set(read_manifest(plain).identities) - {*trained, person})
    assert result.original.unseen_images == 4 * (others - others // 2)
    assert result.unlearned.mia_auc is not None
    assert result.unlearned.control_auc is not None


def test_where_everybody_was_trained_on_the_verdict_says_that_nothing_was_measured(world, silent):
    folder, faces, person = world
    everybody = TrainedOn.read("all")
    plain = faces.with_name("manifest.csv")
    with pytest.raises(ConfigurationError, match="'dlfd-released' has a gate of its own, which needs validation"):
        in_this_process(folder, plain, person, silent, method="dlfd-released", trained_on=everybody)
    with pytest.raises(DataError, match=r"--trained-on all: '.*' was trained on, and .*dealt.csv has"):
        in_this_process(folder, faces, person, silent, trained_on=everybody)
    result = in_this_process(folder, plain, person, silent, trained_on=everybody)
    assert result.original.unseen_images == 0
    assert result.verdict.outcome in ("INCONCLUSIVE", "FAIL")  # of an untrained model what it knows of others is chance
    assert "no unseen people were audited" in result.verdict.sentence()
    assert "with people never" not in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ("copied under another name", "in the split 'test' here and in 'train' there; remove one of the two"),
        ("listed again under another name", "in the split 'test' here and in 'train' there; remove one of the two"),
        ("listed again in another spelling", "use one split a person"),
    ],
)
def test_files_of_who_is_to_be_forgotten_are_not_unseen_whatever_they_are_called(world, silent, changed, sentence):
    folder, faces, person = world
    rows = list(read_manifest(faces).rows)
    own = next(row for row in rows if row.identity == person)
    again = {
        "copied under another name": replace(own, image="copy.png", identity="somebody", split="test"),
        "listed again under another name": replace(own, image=f"./{own.image}", identity="somebody", split="test"),
        "listed again in another spelling": replace(own, image="copy.png", identity=f"{person.title()} ", split="test"),
    }[changed]
    if again.image == "copy.png":
        shutil.copyfile(faces.parent / own.image, faces.parent / "copy.png")
    write_manifest([*rows, again], faces)
    with pytest.raises(DataError, match=sentence):
        in_this_process(folder, faces, person, silent)
    assert not (folder / "out").exists()


def test_copies_of_who_is_to_be_forgotten_are_not_kept_and_any_spelling_of_the_name_will_do(world):
    folder, faces, person = world
    rows = list(read_manifest(faces).rows)
    own = [row for row in rows if row.identity == person]
    other = next(row.identity for row in rows if row.split == "train" and row.identity != person)
    shutil.copyfile(faces.parent / own[0].image, faces.parent / "copy.png")
    unsaid = {own[1].image} | {next(row.image for row in rows if row.split == "test")}
    rows = [replace(row, split="") if row.image in unsaid else row for row in rows]
    write_manifest([*rows, replace(own[0], image="copy.png", identity=other)], faces)
    said = io.StringIO()
    result = in_this_process(folder, faces, f" {person.upper()}", ConsoleProgress(Console(file=said, width=200)))
    assert (result.forgotten_people, result.forgotten_images, result.original.unseen_images) == (1, 4, 12)
    assert "1 images of other people have the same bytes as images to forget, and are left out" in said.getvalue()


def no_layer(problem):
    raise RuntimeError("no such layer")


def gives_the_original_back(problem):
    return Session(problem).outcome((), 0, ("no round was useful enough, so the original is returned",))


def test_the_original_is_not_written_as_a_model_that_has_forgotten(world, silent, monkeypatch):
    folder, faces, person = world
    METHODS.reload()
    METHODS.register(Method("ours", "Ours", "none", (Candidate(gives_the_original_back),)))
    result = in_this_process(folder, faces, person, silent, method="ours")
    METHODS.reload()
    assert (result.success, result.verdict.outcome) == (False, "FAIL")
    assert result.verdict.reasons == ("the model is the original, to the bit: nothing was forgotten",)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["report.html", "report.json"]
    assert "nothing was forgotten" in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("unlearner", "words"),
    [
        (no_layer, r"'ours' failed: RuntimeError: no such layer \(test_single\.py, line \d+, in no_layer\)\.$"),
        (lambda problem: problem.model, "'ours' gives a FaceClassifier, and no UnlearnOutcome; return session.outcome"),
    ],
    ids=["raises", "no outcome"],
)
def test_a_method_that_goes_wrong_is_named_in_one_sentence_and_leaves_nothing(world, silent, unlearner, words):
    folder, faces, person = world
    METHODS.reload()
    METHODS.register(Method("ours", "Ours", "none", (Candidate(unlearner),)))
    with pytest.raises(UnlearningError, match=words):
        in_this_process(folder, faces, person, silent, method="ours")
    METHODS.reload()
    assert sorted(path.name for path in folder.iterdir()) == ["faces", "model"]


def test_mistakes_end_with_2_and_leave_nothing(world):
    folder, faces, person = world
    out = folder / "out"
    unseen = next(row.identity for row in read_manifest(faces).rows if row.split == "test")
    given = ("--model", folder / "model", "--output", out)
    for arguments, words in (
        ((*given, "--data", faces, "--forget", "nobody"), "no training images of 'nobody'"),
        ((*given, "--data", faces, "--forget", unseen), f"'{unseen}' is of the test people"),
        ((*given, "--data", faces.with_name("manifest.csv"), "--forget", person), "names no validation people"),
        (("--model", folder, "--output", out, "--data", faces, "--forget", person), "Cannot read the model"),
        (("--model", folder / "model", "--output", folder, "--data", faces, "--forget", person), "is not empty"),
        ((*given, "--data", faces, "--forget", person, "--method", "dlfdd"), "no method 'dlfdd'; there are dlfd,"),
    ):
        done = unlearn(*arguments)
        assert done.returncode == 2, done.stdout
        assert words in " ".join(done.stderr.split())
        assert not out.exists()
