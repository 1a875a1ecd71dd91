"""A small TUF repository that signs whatever a test wants, its HTTP server, and tiny models to put into it."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from dlfd_fleet.device.contract import CUSTOM_KEY, ROLLOUT_ROLE, ROLLOUT_TARGET, Release, Rollout, SelfTest
from dlfd_fleet.model_input import image_input

SIZE = 8
CLASSES = ("glasses", "none", "sun")


@cache
def tiny_model(version: str, epoch: int, seed: int = 0, classes: tuple[str, ...] = CLASSES) -> bytes:
    """Return an ONNX file with the signature and the metadata of an exported one; a linear classifier of pixels."""
    weights = np.random.default_rng(seed).normal(0, 2, (SIZE * SIZE * 3, len(classes))).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "white"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["rows"]),
        helper.make_node("MatMul", ["rows", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        helper.make_tensor("white", TensorProto.FLOAT, [], [255.0]),
        helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", SIZE, SIZE, 3])
    answers = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(classes)])
    graph = helper.make_graph(nodes, "tiny", [images], [answers], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = {
        "classes": json.dumps(classes),
        "input": image_input(SIZE).model_dump_json(),
        "multi_label": "false",
        "version": version,
        "epoch": str(epoch),
    }
    helper.set_model_props(model, {f"dlfd.{key}": value for key, value in metadata.items()})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


@cache
def tiny_model_in_two(version: str, epoch: int, seed: int, file_name: str) -> tuple[bytes, bytes]:
    """Return a tiny model as one of over 2 GB is exported: its graph, and its weights beside it."""
    model = onnx.load_from_string(tiny_model(version, epoch, seed))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / file_name
        onnx.save_model(model, file, save_as_external_data=True, location=f"{file_name}.data", size_threshold=100)
        weights = file.with_name(f"{file_name}.data").read_bytes()
        model = onnx.load(file, load_external_data=False)
    model.metadata_props.add(key="dlfd.data_sha256", value=sha256(weights))
    return model.SerializeToString(deterministic=True), weights


def random_images(count: int, seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def reference_answers(model: bytes, count: int = 4) -> bytes:
    """Return the self-test of a model: what it says now of random images."""
    import onnxruntime

    images = random_images(count)
    (found,) = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"images": images})
    buffer = io.BytesIO()
    np.savez(buffer, images=images, probabilities=found)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class TufRepository:
    """Signs what it is given: no rule of ours is checked here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=2)
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ("root", "targets", "snapshot", "timestamp")}
        self.rollout_signer = CryptoSigner.generate_ed25519()
        keys = {signer.public_key.keyid: signer.public_key for signer in self.signers.values()}
        roles = {role: Role([signer.public_key.keyid], 1) for role, signer in self.signers.items()}
        key = self.rollout_signer.public_key
        delegations = Delegations(
            {key.keyid: key}, {ROLLOUT_ROLE: DelegatedRole(ROLLOUT_ROLE, [key.keyid], 1, True, paths=[ROLLOUT_TARGET])}
        )
        self.root = Root(expires=expires, keys=keys, roles=roles, consistent_snapshot=True)
        self.targets = Targets(expires=expires, delegations=delegations)
        self.rollout = Targets(expires=expires)
        self.snapshot = Snapshot(expires=expires)
        self.timestamp = Timestamp(expires=expires)
        (folder / "metadata").mkdir(parents=True)
        self._write("1.root.json", self._signed(self.root, self.signers["root"]))
        self.root_file = folder / "metadata" / "1.root.json"
        self.publish()

    def add(self, name: str, content: bytes, custom: dict[str, Any] | None = None) -> str:
        """List a target, and put its bytes where a client looks for them."""
        self.targets.targets[name] = self._put(name, content, custom)
        return name

    def add_model(
        self,
        epoch: int,
        sequence: int,
        content: bytes | None = None,
        *,
        minimum_epoch: int | None = None,
        form: str = "fp32",
        self_test: bytes | None = None,
        version: str | None = None,
        weights: bytes | None = None,
    ) -> str:
        """List a release; its bytes are a tiny model of this epoch unless others are given."""
        version = version or str(sequence)
        content = tiny_model(version, epoch, seed=sequence) if content is None else content
        folder = f"models/{epoch}-{sequence}"
        file = f"{folder}/model-{form}.onnx"
        data = None if weights is None else self.add(f"{file}.data", weights)
        test = self.add(f"{folder}/{form}.npz", reference_answers(content) if self_test is None else self_test)
        release = Release(
            version=version,
            format=form,
            epoch=epoch,
            minimum_epoch=epoch if minimum_epoch is None else minimum_epoch,
            sequence=sequence,
            self_test=SelfTest(target=test, tolerance=1e-3),
            data=data,
        )
        return self.add(file, content, {CUSTOM_KEY: release.model_dump(mode="json")})

    def set_rollout(self, rollout: Rollout | None) -> None:
        if rollout is None:
            self.rollout.targets.clear()
        else:
            content = rollout.model_dump_json().encode()
            self.rollout.targets[ROLLOUT_TARGET] = self._put(ROLLOUT_TARGET, content, None)

    def publish(self, signers: dict[str, CryptoSigner] | None = None) -> None:
        """Sign everything anew, one version higher; with other keys than the root names, if they are given."""
        signers = self.signers | (signers or {})
        snapshot = self.snapshot
        for role, signed, signer in (
            ("targets", self.targets, signers["targets"]),
            ("rollout", self.rollout, self.rollout_signer),
        ):
            name = f"{ROLLOUT_ROLE if role == 'rollout' else role}.json"
            signed.version += 1
            self._write(f"{signed.version}.{name}", self._signed(signed, signer))
            snapshot.meta[name] = MetaFile(signed.version)
        snapshot.version += 1
        self._write(f"{snapshot.version}.snapshot.json", self._signed(snapshot, signers["snapshot"]))
        self.timestamp.snapshot_meta = MetaFile(snapshot.version)
        self.timestamp.version += 1
        self._write("timestamp.json", self._signed(self.timestamp, signers["timestamp"]))

    def recover_with_lower_versions(self) -> None:
        """Rotate the snapshot's and the timestamp's keys together, and count anew: fast-forward recovery."""
        for role in ("snapshot", "timestamp"):
            old, new = self.signers[role].public_key.keyid, CryptoSigner.generate_ed25519()
            self.signers[role] = new
            self.root.revoke_key(old, role)
            self.root.add_key(new.public_key, role)
        self.root.version += 1
        self._write(f"{self.root.version}.root.json", self._signed(self.root, self.signers["root"]))
        for signed in (self.targets, self.rollout, self.snapshot, self.timestamp):
            signed.version = 0

    def file_of(self, target: str) -> Path:
        """Return where a target's bytes lie."""
        info = self.targets.targets[target]
        path = Path(target)
        return self.folder / "targets" / path.parent / f"{info.hashes['sha256']}.{path.name}"

    def _put(self, name: str, content: bytes, custom: dict[str, Any] | None) -> TargetFile:
        target = TargetFile.from_data(name, content, ["sha256"])
        if custom is not None:
            target.unrecognized_fields["custom"] = custom
        path = Path(name)
        file = self.folder / "targets" / path.parent / f"{target.hashes['sha256']}.{path.name}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return target

    def _signed(self, signed: Any, signer: CryptoSigner) -> bytes:
        metadata = Metadata(signed)
        metadata.sign(signer)
        return metadata.to_bytes()

    def _write(self, name: str, content: bytes) -> None:
        (self.folder / "metadata" / name).write_bytes(content)


class Coordinator:
    """An HTTP server of a repository's folder; it keeps every report that it takes.

    Attributes
    ----------
    reports
        Bodies of the POSTs, in order.
    report_status
        What it answers to them.
    requests
        Paths of the GETs, in order.
    """

    def __init__(self, folder: Path) -> None:
        self.reports: list[bytes] = []
        self.report_status = 204
        self.requests: list[str] = []
        self._server = QuietServer(("127.0.0.1", 0), partial(_Handler, coordinator=self, directory=str(folder)))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator[Coordinator]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


class QuietServer(ThreadingHTTPServer):
    """A server that says nothing of a client that went away, for tests read what the standard streams say."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def __init__(self, *arguments: Any, coordinator: Coordinator, **named: Any) -> None:
        self._coordinator = coordinator
        super().__init__(*arguments, **named)

    def do_GET(self) -> None:
        self._coordinator.requests.append(self.path)
        super().do_GET()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self._coordinator.report_status
        if self.path == "/reports" and status < 300:
            self._coordinator.reports.append(body)
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass
