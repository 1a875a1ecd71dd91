"""A SuperLink behind its proxy: a site gets through, an operator's requests do not, whatever they are written like."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from tests.e2e.processes import free_ports, kill_tree, wait_until

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
LIST_NODES = "/v1/control/list-nodes"
TRICKS = [
    LIST_NODES,
    "/v1/control/register-node",
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/",
    "/docs",
    "/openapi.json",
    "*",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleet/../control/list-nodes",
    "/v1/fleet/%2e%2e/control/list-nodes",
    "/v1/fleet/%2E%2E/control/list-nodes",
    "/v1/fleet/..%2fcontrol/list-nodes",
    "/v1/fleet/..%2Fcontrol%2Flist-nodes",
    "/v1/fleet/%252e%252e/control/list-nodes",
    "/v1/fleet/..\\control\\list-nodes",
    "/v1/fleet/..;/control/list-nodes",
    "/v1/fleet/./../control/list-nodes",
    "/v1/./control/list-nodes",
    "/v1//control/list-nodes",
    "//v1/control/list-nodes",
    "/v1/fleet//pull-messages",
    "//v1/fleet/pull-messages",
    "/V1/CONTROL/LIST-NODES",
    "/v1/Fleet/pull-messages",
    "/v1/fleet/%70ull-messages",
    "/v1/fleet/pull-messages/",
    "/v1/fleet/pull-messages/../../control/list-nodes",
    "/v1/fleet/pull-messages?/v1/control/list-nodes",
    "/v1/fleet/pull-messages#/v1/control/list-nodes",
    "/v1/fleetcontrol/list-nodes",
    "/health/../v1/control/list-nodes",
    "/health/v1/control/list-nodes",
    "/Health",
    "https://localhost/v1/control/list-nodes",
    "https://localhost/v1/fleet/../control/list-nodes",
]


class Proxy:
    """A SuperLink on loopback, Caddy in front of it with the file that is deployed, and what they are started with."""

    def __init__(self, folder):
        self.folder, self.keys, self.running = folder, folder / "keys", []
        self.superlink = free_ports(3)
        self.port, self.supernode = self.superlink + 1, self.superlink + 2
        self.environment = os.environ | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PROXY_LISTEN_HOST": "127.0.0.1",
            "PROXY_LISTEN_PORT": str(self.port),
            "PROXY_SUPERLINK": f"127.0.0.1:{self.superlink}",
            "PROXY_CA": str(self.keys / "ca.crt"),
            "PROXY_CERTIFICATE": str(self.keys / "superlink.crt"),
            "PROXY_KEY": str(self.keys / "superlink.key"),
        }
        for arguments in (("make", str(self.keys), "localhost"), ("node", str(self.keys), "clinic")):
            self.run("certificates.py", *arguments, folder=ROOT / "deploy").check_returncode()
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            "\n".join(
                f'[superlink.{name}]\naddress = "localhost:{port}"\nroot-certificates = "{self.keys}/ca.crt"\n'
                for name, port in (("inside", self.superlink), ("outside", self.port))
            )
        )
        self.trust = ssl.create_default_context(cafile=self.keys / "ca.crt")

    def run(self, program, *arguments, folder=BIN):
        return subprocess.run(
            [str(folder / program), *arguments], capture_output=True, text=True, env=self.environment, check=False
        )

    def start(self, program, *arguments):
        with (self.folder / f"{program}.log").open("w") as log:
            process = subprocess.Popen(
                [str(BIN / program), *arguments], stdout=log, stderr=log, env=self.environment, cwd=self.folder
            )
        self.running.append(process)

    def said(self, program):
        return (self.folder / f"{program}.log").read_text()

    def status(self, port, method, path, body=b""):
        """Ask by a path that nothing tidies on its way, under the name that a site uses."""
        with closing(http.client.HTTPSConnection("localhost", port, context=self.trust)) as connection:
            connection._validate_path = lambda url: None  # this test sends what a well-behaved client would not
            connection.putrequest(method, path)
            connection.putheader("Content-Type", "application/protobuf")
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def is_well(self):
        try:
            return self.status(self.port, "GET", "/health")[0] == 200
        except OSError:
            return False

    def nodes(self):
        listed = self.run("flwr", "supernode", "list", "inside", "--format", "json")
        return [node["status"] for node in json.loads(listed.stdout)["nodes"]]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    proxy = Proxy(tmp_path_factory.mktemp("proxy"))
    try:
        proxy.start("caddy", "run", "--config", str(ROOT / "deploy" / "Caddyfile"), "--adapter", "caddyfile")
        proxy.start(
            "flower-superlink",
            f"--ssl-ca-certfile={proxy.keys / 'ca.crt'}",
            f"--ssl-certfile={proxy.keys / 'superlink.crt'}",
            f"--ssl-keyfile={proxy.keys / 'superlink.key'}",
            "--enable-supernode-auth",
            "--database=:flwr-in-memory:",
            "--host=127.0.0.1",
            f"--port={proxy.superlink}",
        )
        wait_until(proxy.is_well, "health through the proxy")
        yield proxy
    finally:
        for process in proxy.running:
            kill_tree(process, signal.SIGTERM)


def test_a_registered_supernode_connects_through_the_proxy(proxy):
    registered = proxy.run("flwr", "supernode", "register", str(proxy.keys / "nodes" / "clinic.pub"), "inside")
    assert registered.returncode == 0, registered.stdout + registered.stderr
    proxy.start(
        "flower-supernode",
        f"--root-certificates={proxy.keys / 'ca.crt'}",
        f"--auth-supernode-private-key={proxy.keys / 'nodes' / 'clinic'}",
        f"--superlink=localhost:{proxy.port}",
        f"--port={proxy.supernode}",
    )
    wait_until(lambda: proxy.nodes() == ["online"], "a SuperNode that is known and online")


def test_an_operator_is_refused(proxy):
    proxy.run("certificates.py", "node", str(proxy.keys), "stranger", folder=ROOT / "deploy").check_returncode()
    before = known_nodes(proxy)
    for command in (("supernode", "register", str(proxy.keys / "nodes" / "stranger.pub")), ("list",)):
        refused = proxy.run("flwr", *command, "outside")
        assert refused.returncode != 0, refused.stdout
        assert "403" in refused.stdout + refused.stderr
    assert known_nodes(proxy) == before


def known_nodes(proxy):
    """Ask as anybody can who reaches the SuperLink itself: it wants no key for this."""
    status, answer = proxy.status(proxy.superlink, "POST", LIST_NODES)
    assert status == 200
    return {node.node_id for node in ListNodesResponse.FromString(answer).nodes_info}


@pytest.mark.parametrize("path", TRICKS)
def test_every_other_path_is_refused(proxy, path):
    for method in ("POST", "GET"):
        assert proxy.status(proxy.port, method, path) == (403, b""), method


def test_an_unknown_key_is_refused_by_flower_and_a_large_body_gets_that_far(proxy):
    with FleetHttpClient.from_server_address(
        f"localhost:{proxy.port}",
        insecure=False,
        root_certificates=str(proxy.keys / "ca.crt"),
        interceptors=[NodeAuthHttpInterceptor(*generate_key_pairs())],
    ) as client:
        node = Node(node_id=1)
        for ask, request in (
            (client.SendNodeHeartbeat, SendNodeHeartbeatRequest(node=node, heartbeat_interval=30)),
            (client.PushObject, PushObjectRequest(node=node, object_content=bytes(60_000_000))),
        ):
            with pytest.raises(httpx.HTTPStatusError) as refused:
                ask(request)
            assert refused.value.response.status_code == 401
            assert "Invalid SuperNode authentication" in refused.value.response.text


def test_plain_http_is_refused(proxy):
    for path in ("/health", "/v1/fleet/pull-messages", LIST_NODES):
        with closing(http.client.HTTPConnection("localhost", proxy.port)) as connection:
            connection.request("POST", path)
            assert connection.getresponse().status == 400


def test_the_proxy_logs_refusals_alone_and_writes_no_file(proxy):
    stranger = "/v1/control/no-such-request"
    assert proxy.status(proxy.port, "POST", stranger)[0] == 403
    wait_until(lambda: stranger in proxy.said("caddy"), "a line of the log")
    lines = [json.loads(line) for line in proxy.said("caddy").splitlines() if '"http.log.access"' in line]
    assert {line["status"] for line in lines} == {403}
    ours = {"keys", "flwr", "caddy.log", "flower-superlink.log", "flower-supernode.log"}
    assert {file.name for file in proxy.folder.iterdir()} <= ours
