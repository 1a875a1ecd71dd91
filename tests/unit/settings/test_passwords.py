"""No setting can hold a secret: whatever holds one is refused by one rule, and is neither shown nor written."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from dlfd_fleet.cli import main
from dlfd_fleet.configuration import flatten, load_settings
from dlfd_fleet.database import shared_engine
from dlfd_fleet.exceptions import ConfigurationError, LedgerError
from dlfd_fleet.passwords import holds_password
from dlfd_fleet.settings import Settings

SECRET = "geheim"
HOLDING = [
    f"postgresql+psycopg://ada:{SECRET}@host/fleet",
    f"postgresql://ada:p/{SECRET}?@host/fleet",
    f"postgresql://:{SECRET}@host/fleet",
    f"postgresql://ada%3A{SECRET}@host/fleet",
    f"postgresql://host/fleet?user=ada&password={SECRET}",
    f"postgresql://host/fleet?sslkey=k&sslpassword={SECRET}",
    f"postgresql://host/fleet?pass%77ord={SECRET}",
    f"postgresql://host/fleet?PASSWORD%3D{SECRET}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Dada%3BPWD%3D{SECRET}",
    f"host=h user=ada password='{SECRET}' dbname=fleet",
    f"https://ada:{SECRET}@mlflow.example",
    f"HTTPS://{SECRET}@mlflow.example/path",
    f"https://mlflow.example/?access_token={SECRET}",
    f"https://store.example/x?sv=2&sig={SECRET}",
    f"https://mlflow.example/#token={SECRET}",
    f"wasbs://box@account/x?{{'account_key': 1}}&secret={SECRET}",
    f"ada:{SECRET}@host/fleet",
    f"//ada:{SECRET}@host/fleet",
    f"postgresql:ada:{SECRET}@host/fleet",
    f"postgresql:\\\\ada:{SECRET}@host/fleet",
    f"https://mlflow.example/?key={SECRET}",
    f"https://mlflow.example/?a=1&jwt={SECRET}",
    f"https://store.example/x?sas={SECRET}",
    f"DefaultEndpointsProtocol=https;AccountName=faces;AccountKey={SECRET};EndpointSuffix=core.windows.net",
    f"databricks://{SECRET}@host",
    f"wss://{SECRET}@host/socket",
    f"Authorization: Basic {SECRET}",
    f"authorization: Bearer {SECRET}",
    f"password: {SECRET}",
    f'{{"password": "{SECRET}"}}',
    f'{{"user": "ada", "api_key":"{SECRET}"}}',
    f"psql --password {SECRET} fleet",
    f"--api-key {SECRET}",
    f"Bearer {SECRET}123",
    f"jdbc:oracle:thin:scott/{SECRET}@host:1521/fleet",
    f"https://mlflow.example/?subscription-key={SECRET}",
    f"postgresql://host/fleet?options=password%3D{SECRET}",
    f"oracle://scott/{SECRET}@host/fleet",
]
FREE = [
    "postgresql+psycopg://ada@host:5432/fleet",
    "postgresql://host/fleet?passfile=/etc/pgpass&sslmode=verify-full&sslkey=/etc/k.pem",
    "postgresql://[::1]:5432/fleet",
    "http://mlflow.example:5000/path",
    "sqlite:////srv/a:b@c/mlflow.db",
    "/srv/faces/config=5/compass=3/manifest.csv",
    "/home/ada@host/passwords/manifest.csv",
    "a-name with words: and signs",
    "100 % of it",
    "C:/faces/ada@host/manifest.csv",
    "erasure of 2026: ada@host",
    "ssh://git@host/faces.git",
    "git+ssh://git@host/faces.git",
    "sftp://ada@host/faces",
    "mysql+pymysql://ada@host/fleet",
    "postgresql://host/ada@home",
    "abfss://faces@account.dfs.core.windows.net/mlflow",
    "sqlite:////srv/ada@host/mlflow.db",
    "file:///srv/ada@host/mlruns",
    "s3://faces/ada@host/mlruns",
    "password",
    "a basic authorization of bearer tokens",
    "--password",
    "/srv/faces/primary-key=5/manifest.csv",
    "my_passwords.metrics:load",
    "secret: ",
    "my.auth:load",
    "session: 5",
    "my.token:load",
]


def texts(model: type[BaseModel], prefix: str = ""):
    """The dotted keys of every setting that can hold a text or a path."""
    for name, field in model.model_fields.items():
        kinds = {field.annotation, *typing.get_args(field.annotation)}
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from texts(field.annotation, f"{prefix}{name}.")
        elif kinds & {str, Path}:
            yield prefix + name


def test_the_walk_finds_every_setting_that_can_hold_a_text():
    found = set(texts(Settings))
    assert {"state_folder", "delivery.database", "tracking.uri", "release.certificate_key", "data.root"} <= found
    for key, value in flatten(Settings().model_dump()).items():
        assert not isinstance(value, Path | str) or key in found or typing.get_args(annotation(key)), key


def annotation(key):
    model = Settings
    *parents, leaf = key.split(".")
    for parent in parents:
        model = model.model_fields[parent].annotation
    return model.model_fields[leaf].annotation


@pytest.mark.parametrize("text", HOLDING)
def test_a_text_with_a_secret_is_known(text):
    assert holds_password(text)


@pytest.mark.parametrize("text", FREE)
def test_a_text_without_one_is_left_alone(text):
    assert not holds_password(text)


@pytest.mark.parametrize("key", [*texts(Settings), "data.source", "training.rounds", "delivery.shares"])
def test_a_secret_is_refused_in_every_setting_from_every_source_and_not_shown(key, tmp_path):
    file = tmp_path / "fleet.json"
    for text in HOLDING:
        file.write_text(json.dumps({key: text}))
        variable = "DLFD_FLEET_" + key.upper().replace(".", "__")
        for arguments in ((file, None, {}), (None, None, {variable: text}), (None, {key: text}, {})):
            with pytest.raises(ConfigurationError, match=r"holds a password.* PGPASS.*MLFLOW_TRACKING_PASS") as no:
                load_settings(*arguments)
            assert SECRET not in str(no.value)
            assert key in str(no.value)
            assert no.value.__cause__ is None


def test_the_command_shows_no_secret_and_writes_no_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text in HOLDING:
        for given in (f"delivery.database={text}", text, f"{text}=1", f"tracking.experiment=['{text}']"):
            monkeypatch.setattr("sys.argv", ["dlfd-fleet", "config", "show", "--set", given])
            with pytest.raises(SystemExit) as end:
                main()
            assert end.value.code == 2
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    assert not list(tmp_path.iterdir())


def test_mlflows_own_variable_is_held_to_the_same_rule():
    with pytest.raises(ConfigurationError, match=r"'tracking\.uri' \(environment\) is '\*\*\*': it holds a password"):
        load_settings(environment={"MLFLOW_TRACKING_URI": HOLDING[4]})


def test_an_error_of_the_library_shows_no_secret_either(tmp_path):
    with pytest.raises(ValidationError) as refused:
        Settings(tracking={"uri": HOLDING[0]}, data={"manifest": Path(HOLDING[1])})
    assert SECRET not in str(refused.value)
    with pytest.raises(LedgerError, match="holds a password") as refused:
        shared_engine(HOLDING[4], "The ledger's URL", LedgerError)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "table",
    [
        {"password": "hunter2"},
        {"url": "postgresql://ada:hunter2@h/db"},
        {"source": {"headers": [{"api_key": "hunter2"}]}},
    ],
)
@pytest.mark.parametrize("key", ["data.loader_arguments", "model.arguments"])
def test_a_password_in_a_table_of_arguments_is_refused_without_being_said(tmp_path, table, key):
    section, name = key.split(".")
    file = tmp_path / "fleet.json"
    file.write_text(json.dumps({section: {name: table}}))
    for arguments in ((file, None, {}), (None, {key: json.dumps(table)}, {})):
        with pytest.raises(ConfigurationError) as refused:
            load_settings(*arguments)
        assert "hunter2" not in str(refused.value)
        assert key in str(refused.value)
    file.write_text(json.dumps({section: {name: {"width": 32, "tokens": 5, "columns": ["a", "b"]}}}))
    load_settings(file, None, {})
