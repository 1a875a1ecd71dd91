"""A repository, a server before it and a device's view of both; and small models as the coordinator exports them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlfd_fleet.device.update import UpdateClient, UpdateLimits
from dlfd_fleet.model_input import image_input
from tests.tuf_simulator import Server, SimulatedRepository, serving


@dataclass
class World:
    simulator: SimulatedRepository
    server: Server
    folder: Path

    def device(self, name: str = "device", root: bytes | None = None, **limits: float) -> UpdateClient:
        bounds = UpdateLimits(**{"silence_seconds": 5.0, **limits})
        return UpdateClient(self.folder / name, self.server.url, root or self.simulator.root, limits=bounds)

    def metadata(self, role: str) -> Path:
        """The file that devices read now."""
        files = sorted(
            self.simulator.served.glob(f"metadata/*{role}.json"), key=lambda file: int(file.name.split(".")[0])
        )
        return files[-1]


@pytest.fixture
def world(tmp_path):
    simulator = SimulatedRepository(tmp_path / "delivery")
    with serving(simulator.served) as server:
        yield World(simulator, server, tmp_path / "devices")


def small_model(file: Path, *, version: str = "1-abc", epoch: int = 1, seed: int = 0, size: int = 8) -> Path:
    """Write an ONNX file that a device takes for an exported model: mean colour, linear, softmax."""
    weights = np.random.default_rng(seed).normal(0, 0.05, (3, 2)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    card = {
        "classes": json.dumps(["no", "yes"]),
        "input": image_input(size).model_dump_json(),
        "multi_label": "false",
        "version": version,
        "epoch": epoch,
    }
    helper.set_model_props(model, {f"dlfd.{key}": str(value) for key, value in card.items()})
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)
    return file
