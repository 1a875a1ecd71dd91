"""Compose, Kubernetes and systemd files: valid by their schemas, and their programs take every flag in them."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from importlib.resources import files
from itertools import pairwise, takewhile
from pathlib import Path
from urllib.parse import urlsplit

import jsonschema
import kubernetes_validate
import pytest
import yaml
from flwr.cli.flower_config import read_superlink_connection
from sqlalchemy import make_url

from dlfd_fleet.configuration import load_settings
from dlfd_fleet.desk.access import is_loopback, rules_of
from dlfd_fleet.desk.logins import read_tokens
from dlfd_fleet.ledger import Site

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
BIN = Path(sys.executable).parent
README = (DEPLOY / "README.md").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
MANIFESTS = [
    document
    for file in sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    for document in yaml.safe_load_all(file.read_text())
]
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
# The program in this image has this file capability, and Linux does not start it without: execve(2), EPERM.
NEEDED_TO_START = {"caddy:2": ["NET_BIND_SERVICE"]}


def named(document):
    return f"{document['kind']}-{document['metadata']['name']}"


def pods():
    return [document for document in MANIFESTS if document["kind"] in ("StatefulSet", "Deployment")]


def timed():
    """The pods that a CronJob starts, as others are described."""
    return [
        {**document, "spec": document["spec"]["jobTemplate"]["spec"]}
        for document in MANIFESTS
        if document["kind"] == "CronJob"
    ]


def unit(file):
    parser = configparser.RawConfigParser(strict=False, delimiters="=")
    parser.optionxform = str
    parser.read_string(file.read_text().replace("\\\n", " "))
    return parser


def in_the_end(words):
    """The command that a shell ends with, if it is one."""
    return shlex.split(words[2].split("exec ")[-1]) if words[:2] == ["sh", "-c"] else words


def commands():
    """Every command line that these files run a program of ours with."""
    for name, service in COMPOSE["services"].items():
        if "command" in service:
            yield f"compose {name}", in_the_end(service["command"])
    for document in (*pods(), *timed()):
        for container in document["spec"]["template"]["spec"]["containers"]:
            if "command" in container:
                where = f"kubernetes {document['metadata']['name']} {container['name']}"
                yield where, in_the_end(container["command"])
    for file in UNITS:
        words = shlex.split(unit(file)["Service"]["ExecStart"])
        yield f"systemd {file.stem}", [Path(words[0]).name, *words[1:]]


@cache
def known_flags(*program):
    help_text = subprocess.run(
        [str(BIN / program[0]), *program[1:], "--help"], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"--[a-z][a-z-]+", help_text.stdout))


@pytest.mark.parametrize(("where", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_programs_take_the_flags_that_they_are_given(where, words):
    program = takewhile(lambda word: not word.startswith(("-", "/")), words)  # and its subcommands
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given
    assert given <= known_flags(*program), where


def test_nobody_waits_for_a_database_that_was_cut_off():
    """The kernel would send again for a quarter of an hour; in tests/containers the network is cut."""
    addresses = [re.search(r"postgresql\S+", word) for _, words in commands() for word in words]
    asked = [make_url(found[0]).query.keys() for found in addresses if found]
    assert asked == [{"connect_timeout", "tcp_user_timeout"}] * 2


def test_compose_is_valid():
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(COMPOSE, json.loads(schema.read_text()))


@pytest.mark.parametrize("document", MANIFESTS, ids=named)
def test_kubernetes_manifests_are_valid(document):
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def test_kustomization_names_every_manifest():
    listed = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
    assert set(listed["resources"]) == {f"kubernetes/{file.name}" for file in (DEPLOY / "kubernetes").glob("*.yaml")}
    made = {generator["name"] for generator in listed["configMapGenerator"]}
    for generator in listed["configMapGenerator"]:
        for entry in generator["files"]:
            file = (DEPLOY / entry.split("=")[-1]).resolve()
            assert file.is_file()
            assert file.is_relative_to(DEPLOY)  # kustomize reads nothing above its own folder
    specs = [document["spec"]["template"]["spec"] for document in (*pods(), *timed())]
    volumes = [volume for spec in specs for volume in spec.get("volumes", [])]
    assert {volume["configMap"]["name"] for volume in volumes if "configMap" in volume} == made


def test_in_compose_proxy_and_delivery_alone_are_published_and_the_superlink_is_reached_by_the_proxy_alone():
    services = COMPOSE["services"]
    published = {
        name: port for name, service in services.items() for port in service.get("ports", []) if "127.0.0.1" not in port
    }
    assert published == {"proxy": "9300:9300", "delivery": "8300:8300"}
    networks = {name: set(service["networks"]) for name, service in services.items()}
    assert {name for name in networks if networks[name] & networks["superlink"]} == {
        "superlink",
        "proxy",
        "mlflow",
        "desk",
    }
    assert networks["clinic-desk"].isdisjoint(
        set().union(*(networks[name] for name in networks if name != "clinic-desk"))
    )
    (between,) = networks["proxy"] & networks["superlink"]
    assert COMPOSE["networks"][between]["internal"]
    for site in ("clinic", "shop"):
        assert networks[site] < networks["proxy"]
        assert not networks[site] & (networks["superlink"] | networks["mlflow"] | networks["postgres"])
        assert "MLFLOW_TRACKING_URI" not in services[site].get("environment", {})
    for alone in ("delivery", "clinic-desk"):
        assert networks[alone].isdisjoint(set().union(*(networks[name] for name in networks if name != alone)))
    assert not set(services["delivery"]["secrets"]) & set(services["superlink"]["secrets"])


def test_in_kubernetes_the_proxy_alone_is_open_and_the_superlink_is_reached_by_it_alone():
    policies = {named(document): document["spec"] for document in MANIFESTS if document["kind"] == "NetworkPolicy"}
    assert policies["NetworkPolicy-nothing-but-names"]["podSelector"] == {}
    reached_by = {
        (policy["podSelector"]["matchLabels"]["app"], rule["ports"][0]["port"]): rule.get("from")
        for policy in policies.values()
        for rule in policy.get("ingress", [])
    }
    assert reached_by == {
        ("proxy", 9300): None,
        # The second is no site's: it starts erasures, as an operator does.
        ("superlink", 9299): [{"podSelector": {"matchLabels": {"app": name}}} for name in ("proxy", "erase")],
        ("mlflow", 5000): [{"podSelector": {"matchLabels": {"app": "superlink"}}}],
        ("postgres", 5432): [{"podSelector": {"matchLabels": {"app": "mlflow"}}}],
    }
    (sites_may,) = policies["NetworkPolicy-site-to-proxy"]["egress"]
    assert sites_may["to"] == [{"podSelector": {"matchLabels": {"app": "proxy"}}}]


def test_with_systemd_the_superlink_is_on_loopback_where_the_proxy_looks_for_it():
    words = shlex.split(unit(DEPLOY / "systemd" / "dlfd-fleet-superlink.service")["Service"]["ExecStart"])
    given = dict(pairwise(words))
    assert given["--host"] == "127.0.0.1"
    proxy = (DEPLOY / "systemd" / "dlfd-fleet-proxy.service").read_text()
    assert f"PROXY_SUPERLINK={given['--host']}:{given['--port']} " in proxy


def test_the_proxy_is_a_proxy_and_nothing_else():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PROXY_")}
    command = [str(BIN / "caddy"), "adapt", "--config", str(DEPLOY / "Caddyfile"), "--adapter", "caddyfile"]
    adapted = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    caddy = json.loads(adapted.stdout)
    assert caddy["admin"] == {"disabled": True, "config": {"persist": False}}
    (server,) = caddy["apps"]["http"]["servers"].values()
    assert server["listen"] == ["0.0.0.0:9300"]
    assert server["automatic_https"] == {"disable": True}
    assert server["protocols"] == ["h1", "h2"]
    assert "automation" not in caddy["apps"]["tls"]
    assert re.findall(r'"dial": ?"([^"]+)"', adapted.stdout) == ["superlink:9299"]


def test_kubernetes_sets_no_variable_that_the_proxy_reads():
    read = set(re.findall(r"\{\$(\w+)", (DEPLOY / "Caddyfile").read_text()))
    assert len(read) == 6
    for document in MANIFESTS:
        if document["kind"] == "Service":
            prefix = document["metadata"]["name"].upper()
            assert not [name for name in read if re.match(rf"{prefix}_(PORT|SERVICE)", name)]


def test_the_certificate_has_the_names_that_sites_and_the_proxy_connect_to():
    (made,) = re.findall(r"certificates.py make deploy/keys (.+)", README)
    upstream = re.search(r"PROXY_SUPERLINK:(\w+):", (DEPLOY / "Caddyfile").read_text()).group(1)
    for _, words in commands():
        for word in words:
            if word.startswith("--superlink=") and "$" not in word:
                assert word.partition("=")[2].partition(":")[0] in made.split()
    assert upstream in made.split()
    secrets = re.findall(r"--from-file=(?:[\w.]+=)?(\S+(?<!\.tokens))(?=\s)", README)
    assert {str(Path(file).parent) for file in secrets} == {"deploy/keys", "deploy/keys/nodes"}  # these very ones


@pytest.mark.parametrize("document", [*pods(), *timed()], ids=named)
def test_pods_run_without_privileges(document):
    pod = document["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["capabilities"].get("add") == NEEDED_TO_START.get(container["image"])
        assert container["resources"]["limits"]["memory"]


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_every_service_says_whether_it_is_well(name):
    assert COMPOSE["services"][name]["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("document", pods(), ids=named)
def test_every_pod_is_asked_whether_it_is_well(document):
    for container in document["spec"]["template"]["spec"]["containers"]:
        asked = container.get("livenessProbe") or container["readinessProbe"]
        (probe,) = set(asked) & {"httpGet", "grpc", "tcpSocket", "exec"}
        port = asked[probe].get("port")
        ports = [value for each in container.get("ports", []) for value in each.values()]
        assert probe == "exec" or port in ports
        # A probe's port is one that the program is told to listen on.
        for word in container.get("command", []):
            if word.startswith("--health-server-address="):
                assert (probe, word.rpartition(":")[2]) == ("grpc", str(port))


@pytest.mark.parametrize("name", sorted(set(COMPOSE["services"]) - {"postgres"}))
def test_containers_run_without_privileges(name):
    service = COMPOSE["services"][name]
    assert (service["user"], service["read_only"], service["cap_drop"]) == ("10001", True, ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("cap_add") == NEEDED_TO_START.get(service["image"])


def test_the_image_has_a_folder_of_its_users_wherever_a_named_volume_is_mounted():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    (made,) = re.findall(r"install -d -o (\d+ .+)", dockerfile)
    user, *folders = made.split()
    assert dockerfile.index(made) < dockerfile.index(f"\nUSER {user}\n")
    for service in (service for service in COMPOSE["services"].values() if "build" in service):
        mounts = {mount: source for source, mount, *_ in (each.split(":") for each in service.get("volumes", []))}
        named = {mount for mount, source in mounts.items() if source in COMPOSE["volumes"]}
        above = {str(parent) for mount in mounts for parent in Path(mount).parents if str(parent.parent) in named}
        assert named | above <= set(folders)  # Docker makes what is missing above a mount, as root's


def test_the_image_is_built_of_whatever_a_wheel_needs():
    wheel = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {path.partition("/")[0] for path in (*wheel["packages"], *wheel["force-include"])}
    copied = set(re.findall(r"^COPY (\S+) ", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    let_through = {line.removeprefix("!") for line in (DEPLOY.parent / ".dockerignore").read_text().splitlines()}
    assert needed <= copied & let_through


@pytest.mark.parametrize("document", [*pods(), *timed()], ids=named)
def test_a_file_is_mounted_into_a_folder_of_the_pods_user(document):
    for container in document["spec"]["template"]["spec"]["containers"]:
        mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
        for mount in container["volumeMounts"]:
            # What is missing above a mount is made by root.
            assert "subPath" not in mount or str(Path(mount["mountPath"]).parent) in mounts


@pytest.mark.parametrize("document", [*pods(), *timed()], ids=named)
def test_a_cluster_does_not_look_elsewhere_for_an_image_that_is_built_here(document):
    for container in document["spec"]["template"]["spec"]["containers"]:
        assert (":" in container["image"]) == ("imagePullPolicy" not in container)
        assert container.get("imagePullPolicy") in (None, "IfNotPresent")


def test_the_namespace_is_there_before_its_secrets_and_these_before_what_reads_them():
    read = {
        volume["secret"]["secretName"]
        for document in (*pods(), *timed())
        for volume in document["spec"]["template"]["spec"].get("volumes", [])
        if "secret" in volume
    }
    made = [match.start() for match in re.finditer(r"create secret generic ([\w-]+)", README)]
    assert read | {"postgres"} == set(re.findall(r"create secret generic ([\w-]+)", README))
    assert README.index("apply -f deploy/kubernetes/namespace.yaml") < min(made)
    assert max(made) < README.index("kubectl apply -k deploy")


def test_the_password_is_written_without_an_end_of_line(tmp_path):
    """Kubernetes gives a secret to a variable as it is, and libpq sends it so."""
    (command,) = re.findall(r"^openssl .+$", README, re.MULTILINE)
    openssl = tmp_path / "bin" / "openssl"
    openssl.parent.mkdir()
    openssl.write_text("#!/bin/sh\necho 0123abcd\n")
    openssl.chmod(0o755)
    (tmp_path / "deploy" / "keys").mkdir(parents=True)
    environment = os.environ | {"PATH": f"{openssl.parent}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "deploy" / "keys" / "postgres-password").read_bytes() == b"0123abcd"


@pytest.mark.parametrize("text", [README, (DEPLOY / "flower-config.toml").read_text()], ids=("README", "containers"))
def test_flower_takes_the_configuration_by_which_it_finds_the_superlink(text, tmp_path, monkeypatch):
    before, _, block = text.partition("[superlink]\n")
    assert "flwr supernode register keys" not in before  # needs it
    (tmp_path / "config.toml").write_text("[superlink]\n" + block.split("```")[0])
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert read_superlink_connection().address == "127.0.0.1:9299"


@pytest.mark.parametrize("name", ["clinic", "shop"])
def test_every_supernode_of_compose_is_registered(name):
    assert COMPOSE["services"][name]["command"][0] == "flower-supernode"
    (sites,) = re.findall(r"^for site in (.+); do$", README, re.MULTILINE)
    assert name in sites.split()
    assert f"certificates.py node deploy/keys {name}" in README


@pytest.mark.parametrize("faces", ["deploy/sites/clinic/faces", "clinic-0:/site/faces"], ids=["compose", "kubernetes"])
def test_a_site_that_is_made_as_told_finds_its_faces_in_its_container(faces, tmp_path):
    assert re.search(rf"cp (-r )?clinic-faces {faces}\s", README)
    folder = re.search(r"[^:]+$", faces)[0].removesuffix("/faces")
    (line,) = re.findall(rf"dlfd-fleet (site init {folder} .+)", README)
    options = shlex.split(line, comments=True)[3:]
    options[options.index("--manifest") + 1] = "clinic.csv"
    (tmp_path / "clinic.csv").write_text("image,identity,label\na/1.jpg,a,no\nb/1.jpg,b,yes\n")
    subprocess.run([BIN / "dlfd-fleet", "site", "init", "made", *options], cwd=tmp_path, check=True)
    with Site(tmp_path / "made") as site:
        assert site.image_root == Path("/site/faces")  # and not the place where the command ran


def test_the_delivery_is_made_where_its_unit_looks_for_it():
    (said,) = re.findall(r"DLFD_FLEET_STATE_FOLDER=(\S+) runuser -u (\S+) .+ delivery init", README)
    text = (DEPLOY / "systemd" / "dlfd-fleet-delivery.service").read_text()
    assert f"\nEnvironment=DLFD_FLEET_STATE_FOLDER={said[0]}\n" in text
    assert f"\nUser={said[1]}\n" in text


def test_every_secret_of_a_container_is_a_file_that_the_scripts_make():
    for service in COMPOSE["services"].values():
        for secret in service.get("secrets", []):
            assert COMPOSE["secrets"][secret]["file"].startswith("keys/")


@pytest.mark.parametrize("file", UNITS, ids=lambda file: file.stem)
def test_units_are_hardened(file):
    service = unit(file)["Service"]
    strict = {"NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "CapabilityBoundingSet": ""}
    assert {key: service[key] for key in strict} == strict
    assert service["User"] == "dlfd-fleet"


def test_every_night_somebody_asks_whether_an_erasure_is_due():
    (cron,) = timed()
    (container,) = cron["spec"]["template"]["spec"]["containers"]
    service = DEPLOY / "systemd" / "dlfd-fleet-erase.service"
    words = shlex.split(unit(service)["Service"]["ExecStart"])
    for command in (container["command"], words):
        assert command[1:5] == ["job", "start", "erase", "--if-due"]
    assert unit(service)["Service"]["Type"] == "oneshot"
    timer = unit(service.with_suffix(".timer"))
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert timer["Timer"]["Persistent"] == "true"
    assert timer["Timer"]["OnCalendar"] == "*-*-* 02:00:00"
    # It finds the SuperLink by the same file as the SuperLink's own container, under its name in the cluster.
    connections = tomllib.loads((DEPLOY / "flower-config.toml").read_text())["superlink"]
    (port,) = (each["spec"]["ports"][0]["port"] for each in MANIFESTS if named(each) == "Service-superlink")
    assert connections["superlink"]["address"] == f"superlink:{port}"
    assert "--superlink=superlink" in container["command"]


@pytest.mark.parametrize("file", [file for file in UNITS if "/flower-" in file.read_text()], ids=lambda file: file.stem)
def test_units_find_the_programs_that_flower_starts_by_name(file):
    program = Path(shlex.split(unit(file)["Service"]["ExecStart"])[0])
    paths = re.findall(r"^Environment=PATH=(\S+)$", file.read_text(), re.MULTILINE)
    assert [path.split(":")[0] for path in paths] == [str(program.parent)]
    assert (BIN / "flower-superexec").exists()


def desks():
    """Every desk of these files: where, its command, its variables, and what asks whether it is well."""
    for name, service in COMPOSE["services"].items():
        if service.get("command", [])[:2] == ["dlfd-fleet", "desk"]:
            yield f"compose {name}", service["command"], service["environment"], service["healthcheck"]["test"]
    for document in pods():
        for container in document["spec"]["template"]["spec"]["containers"]:
            if container["name"] == "desk":
                variables = {each["name"]: each["value"] for each in container["env"]}
                asked = container["livenessProbe"]["exec"]["command"]
                yield f"kubernetes {document['metadata']['name']}", container["command"], variables, asked


def test_the_coordinator_and_a_site_have_a_desk_in_containers():
    assert [where for where, *_ in desks()] == [
        "compose desk",
        "compose clinic-desk",
        "kubernetes clinic",
        "kubernetes superlink",
    ]


@pytest.mark.parametrize(("where", "command", "variables", "asked"), desks(), ids=lambda value: str(value)[:25])
def test_a_desk_takes_tokens_alone_and_is_reached_by_loopback(where, command, variables, asked, monkeypatch):
    for name in [name for name in os.environ if name.startswith("DLFD_FLEET_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options = dict(word.split("=", 1) for word in in_the_end(command) if word.startswith("--"))
    host, port = options.get("--host", "127.0.0.1"), options.get("--port", "8400")
    over_tls = {"--tls-certificate", "--tls-key"} <= set(options)
    rules = rules_of(load_settings().settings.desk, host, "", over_tls=over_tls)  # refuses what would be open
    assert rules.logins is not None
    assert str(rules.logins.file) == variables["DLFD_FLEET_DESK__TOKENS"]
    assert {"localhost", "127.0.0.1"} <= rules.hosts  # as browsers ask that have it on their own machine
    url = urlsplit(re.search(r"https?://[^']+", asked[-1])[0])
    assert (url.scheme, str(url.port), url.path) == ("https" if over_tls else "http", port, "/login")
    assert url.hostname in rules.hosts
    if where.startswith("compose"):
        service = COMPOSE["services"][where.split()[1]]
        assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
        assert f"https://localhost:{port}" in README
        for word in (variables["DLFD_FLEET_DESK__TOKENS"], options["--tls-certificate"], options["--tls-key"]):
            assert word.removeprefix("/run/secrets/") in service["secrets"]
    else:
        assert f"port-forward {where.split()[1]}-0 {port}" in README
        assert is_loopback(host)


def test_the_tokens_that_the_readme_makes_are_those_of_the_desks_and_let_in(tmp_path):
    (loop,) = re.findall(r"^for desk in .+?^done$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "deploy" / "keys" / "desk").mkdir(parents=True)
    subprocess.run(["bash", "-euc", loop], cwd=tmp_path, check=True)
    made = {file.name: list(read_tokens(file).values()) for file in (tmp_path / "deploy" / "keys" / "desk").iterdir()}
    assert made == {"coordinator.tokens": ["M. Ode"], "clinic.tokens": ["M. Ode"]}
    for name in made:
        assert COMPOSE["secrets"][name]["file"] == f"keys/desk/{name}"
        assert f"desk.tokens=deploy/keys/desk/{name}" in README


@pytest.mark.parametrize("document", pods(), ids=named)
def test_in_a_pod_a_desk_has_tokens_that_its_group_cannot_read(document, tmp_path):
    """What Kubernetes mounts for a group is readable to it, which the desk refuses."""
    for container in document["spec"]["template"]["spec"]["containers"]:
        if container["name"] == "desk":
            mounted = tmp_path / "mounted"
            mounted.write_text("M. Ode a-token-that-nobody-guesses\n")
            mounted.chmod(0o440)
            script = container["command"][2].split(" && trap ")[0].split(" && exec ")[0]
            script = script.replace("/run/tokens/desk.tokens", str(mounted)).replace("/tmp/desk", f"{tmp_path}/desk")
            subprocess.run(["sh", "-c", script], check=True)
            assert list(read_tokens(tmp_path / "desk.tokens").values()) == ["M. Ode"]
