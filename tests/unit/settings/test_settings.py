"""Settings: one tree, four sources in order, and one clear sentence for a mistake."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlfd_fleet.configuration import descriptions, flatten, load_settings, write_settings
from dlfd_fleet.exceptions import ConfigurationError
from dlfd_fleet.settings import Settings


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text("seed = 7\n[training]\nrounds = 3\nlearning_rate = 0.5\n")
    return path


def test_later_sources_win_and_each_value_says_where_it_came_from(file):
    environment = {"DLFD_FLEET_TRAINING__ROUNDS": "4", "DLFD_FLEET_TRAINING__BATCH_SIZE": "16"}
    loaded = load_settings(file, {"training.batch_size": "8"}, environment)
    training = loaded.settings.training
    assert (training.learning_rate, training.rounds, training.batch_size) == (0.5, 4, 8)
    origins = {key: origin for key, _, origin in loaded.rows()}
    assert origins["training.learning_rate"] == f"file {file}"
    assert origins["training.rounds"] == "environment"
    assert origins["training.batch_size"] == "flag"
    assert origins["training.momentum"] == "default"


def test_every_setting_is_listed():
    keys = [key for key, _, _ in load_settings(environment={}).rows()]
    assert sorted(keys) == sorted(flatten(Settings().model_dump(mode="json")))


def test_every_setting_has_a_description():
    said = descriptions()
    assert sorted(said) == sorted(flatten(Settings().model_dump(mode="json")))
    assert [key for key, words in said.items() if not words] == []


def test_the_environment_names_the_file_and_mlflows_own_variable_counts(file):
    loaded = load_settings(environment={"DLFD_FLEET_CONFIG": str(file), "MLFLOW_TRACKING_URI": "http://tracking:5000"})
    assert loaded.settings.seed == 7
    assert loaded.settings.tracking.uri == "http://tracking:5000"


def test_unrelated_variables_and_files_are_never_read_by_accident(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("SEED=5\n")
    monkeypatch.setenv("SEED", "6")
    assert load_settings().settings.seed == 0


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"training.round": 3}, "'training.round' (flag): did you mean 'training.rounds'"),
        ({"training.rounds": "many"}, "'training.rounds' (flag) is 'many'"),
        ({"training.rounds": 0}, "greater than or equal to 1"),
        ({"training.learning_rate": "nan"}, "'training.learning_rate' (flag)"),
        ({"data.source": "manifest"}, "data.manifest must name a file"),
        ({"release.on_inconclusive": "maybe"}, "'release', 'hold' or 'retrain'"),
        ({"erasure.method": "shak"}, "'erasure.method' (flag) is 'shak': Input should be 'dlfd', "),
        ({"erasure.method": "shak"}, "; the package of another method must be installed here."),
        ({"erasure.method": "dlfd-released"}, "the method 'dlfd-released' has a gate of its own, for which a site has"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence_that_names_it(overrides, words):
    with pytest.raises(ConfigurationError) as failure:
        load_settings(overrides=overrides, environment={})
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)


def test_a_wrong_variable_is_named():
    with pytest.raises(ConfigurationError, match=r"'trainng\.rounds' \(environment\)"):
        load_settings(environment={"DLFD_FLEET_TRAINNG__ROUNDS": "3"})


@pytest.mark.parametrize("text", ["seed = ", "[training\n", "\x00"])
def test_a_file_that_cannot_be_parsed_is_one_sentence(tmp_path, text):
    path = tmp_path / "broken.toml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"broken\.toml"):
        load_settings(path, environment={})


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigurationError, match="Cannot read the settings file"):
        load_settings(tmp_path / "none.toml", environment={})


@given(st.integers(0, 2**31 - 1), st.floats(1e-6, 10), st.booleans())
def test_written_settings_read_back_equal(tmp_path_factory, seed, rate, compare):
    overrides = {"seed": seed, "training.learning_rate": rate, "erasure.compare_retrain": compare}
    settings = load_settings(overrides=overrides, environment={}).settings
    file = tmp_path_factory.mktemp("settings") / "effective.json"
    write_settings(settings, file)
    assert load_settings(file, environment={}).settings == settings
    assert json.loads(file.read_text())["seed"] == seed


def test_a_password_in_a_uri_is_refused_and_not_shown():
    environment = {"MLFLOW_TRACKING_URI": "https://ada:secret@mlflow.example"}
    with pytest.raises(ConfigurationError, match="MLFLOW_TRACKING_PASSWORD") as refused:
        load_settings(environment=environment)
    assert "secret" not in str(refused.value)


def test_a_path_means_the_same_file_to_a_server_in_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load_settings(None, {"release.certificate_key": "keys/sign.pem", "state_folder": "state"}, {})
    assert loaded.settings.release.certificate_key == tmp_path / "keys" / "sign.pem"
    assert loaded.settings.state_folder == tmp_path / "state"


@pytest.mark.parametrize("levels", [9, 900, 100_000])
@pytest.mark.parametrize(
    ("name", "opening", "middle", "closing"),
    [
        ("deep.json", '{"seed":', "1", "}"),
        ("list.json", '{"seed":', "[]", "}"),
        ("deep.toml", "{a=", "1", "}"),
        ("list.toml", "[", "", "]"),
    ],
)
def test_tables_and_lists_nested_without_end_are_one_sentence(tmp_path, levels, name, opening, middle, closing):
    path = tmp_path / name
    text = opening * levels + middle + closing * levels
    path.write_text(f"seed = {text}" if path.suffix == ".toml" else text)
    with pytest.raises(ConfigurationError, match=r"more than 8 tables or lists in each other") as refused:
        load_settings(path, environment={})
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_dotted_key_without_end_is_one_short_sentence(tmp_path):
    key = "seed" + ".a" * 2_000
    path = tmp_path / "deep.toml"
    path.write_text(f"{key} = 1")
    with pytest.raises(ConfigurationError, match="more than 8 tables"):
        load_settings(path, environment={})
    for arguments in ({"overrides": {key: 1}}, {"environment": {"DLFD_FLEET_" + key.replace(".", "__"): "1"}}):
        with pytest.raises(ConfigurationError, match=r"Unknown setting 'seed\.a\.a") as refused:
            load_settings(**{"environment": {}} | arguments)
        assert len(str(refused.value)) < 300


@pytest.mark.parametrize("key", ["data.loader_arguments", "model.arguments"])
def test_a_table_in_json_nested_without_end_is_one_short_sentence(key):
    text = '{"a":' + "[" * 50_000 + "]" * 50_000 + "}"
    with pytest.raises(ConfigurationError, match="it is no table in JSON") as refused:
        load_settings(overrides={key: text}, environment={})
    assert len(str(refused.value)) < 400


def test_a_value_nested_without_end_is_one_sentence_from_a_program_too():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigurationError, match=r"'seed' \(flag\) holds more than 8"):
        load_settings(overrides={"seed": deep}, environment={})


def test_a_number_without_end_is_one_short_sentence():
    with pytest.raises(ConfigurationError, match="'seed'") as refused:
        load_settings(environment={"DLFD_FLEET_SEED": "9" * 5_000})
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "no empty name"),
        (" ", "no empty name"),
        ("fleet ", "no blank at an end"),
        ("..", "no empty name"),
        ("x" * 251, "it has 251 characters"),
        ("anna's", 'it holds "\'", which MLflow misreads'),
        ('a"b', "it holds '\"'"),
        ("a`b", "it holds '`'"),
        ("a\\b", "it holds"),
        ("a\nb", "it holds"),
        ("a\0b", "it holds"),
    ],
)
@pytest.mark.parametrize("key", ["tracking.registered_model", "tracking.experiment"])
def test_a_name_that_mlflow_would_misread_is_refused_with_the_reason(key, name, why):
    with pytest.raises(ConfigurationError) as refused:
        load_settings(overrides={key: name}, environment={})
    assert why in str(refused.value)
    assert f"'{key}' (flag)" in str(refused.value)


@pytest.mark.parametrize("sign", "/:@?#")
def test_a_model_name_that_breaks_mlflows_addresses_is_refused(sign):
    with pytest.raises(ConfigurationError, match="misreads in its filters and addresses"):
        load_settings(overrides={"tracking.registered_model": f"team{sign}model"}, environment={})


@pytest.mark.parametrize("name", ["dlfd-fleet", "Team 7_model.v2", "Gesichter-Ü", "100%"])
def test_other_names_are_taken(name):
    loaded = load_settings(overrides={"tracking.registered_model": name, "tracking.experiment": f"/Users/{name}"})
    assert loaded.settings.tracking.registered_model == name


@pytest.mark.parametrize("sign", ["\\u0000", "\\ud800"])
@pytest.mark.parametrize("key", ["state_folder", "data.manifest", "release.certificate_key"])
def test_a_sign_that_no_path_can_hold_is_one_sentence(tmp_path, key, sign):
    file = tmp_path / "settings.json"
    file.write_text(f'{{"{key}": "a{sign}b"}}')
    with pytest.raises(
        ConfigurationError, match=rf"Setting '{re.escape(key)}' \(file .*: it holds '\\.*; leave it out"
    ):
        load_settings(file)


@pytest.mark.parametrize("value", ["nonsense", "mysql://host/devices", "host/database", "sqlite:///devices.db"])
def test_a_database_of_devices_that_is_none_is_refused_before_anything_uses_it(value):
    with pytest.raises(ConfigurationError, match=r"'delivery\.database' .*write postgresql\+psycopg://host/database"):
        load_settings(overrides={"delivery.database": value})


@pytest.mark.parametrize("value", ["http://host/?a=b", "https://host/mlflow#x", "http://host/a b"])
def test_an_mlflow_address_that_no_request_fits_behind_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"'tracking\.uri' .*no '\?', no '#' and no blank"):
        load_settings(overrides={"tracking.uri": value})
