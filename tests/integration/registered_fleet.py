"""A coordinator's state folder with three registered models: the champion, one that was held, one that failed."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlfd_fleet.federation.records.job_record import Champion
from dlfd_fleet.federation.records.store import Store
from dlfd_fleet.model_input import ModelInput, image_input
from dlfd_fleet.settings import Settings
from dlfd_fleet.tracking import open_tracker

PATIENCE = 300.0
SIZE = 8
IMAGES = image_input(SIZE)
MODELS = {  # by job: kind, epoch, verdict, alias
    "train-1": ("original", 0, "", "champion"),
    "erase-held": ("unlearned", 1, "INCONCLUSIVE", "candidate"),
    "erase-failed": ("unlearned", 1, "FAIL", None),
}


def save_model_of(store: Store, job: str, epoch: int, model_input: ModelInput = IMAGES) -> None:
    """Write the files of a job's model: a tiny classifier that a device can run, with weights of its own."""
    folder = store.folders.model(job)
    folder.mkdir(parents=True)
    weights = np.random.default_rng(list(MODELS).index(job)).normal(size=(3, 2)).astype(np.float32)
    name, kind = model_input.tensor_name, TensorProto.UINT8 if model_input.is_image else TensorProto.FLOAT
    given = helper.make_tensor_value_info(name, kind, ["batch", *model_input.device_shape])
    answer = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 2])
    means = [
        helper.make_node("Cast", [name], ["x"], to=1),
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
    ]
    nodes = [
        *(means if model_input.is_image else [helper.make_node("Identity", [name], ["mean"])]),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    constants = [numpy_helper.from_array(weights, "w")]
    constants += [numpy_helper.from_array(np.array([1, 2]), "axes")] if model_input.is_image else []
    graph = helper.make_graph(nodes, "g", [given], [answer], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    card = {
        "classes": json.dumps(["none", "glasses"]),
        "input": model_input.model_dump_json(),
        "multi_label": "false",
        "version": f"{epoch}-{job}",
        "epoch": epoch,
    }
    helper.set_model_props(model, {f"dlfd.{name}": str(value) for name, value in card.items()})
    onnx.save(model, folder / "model.onnx")
    (folder / "model.safetensors").write_bytes(weights.tobytes() * 50)
    (folder / "card.json").write_text("{}")


def _note_job(store: Store, settings: Settings, job: str, *, released: bool) -> None:
    """Put a job's record into the store, under a name of ours."""
    made = store.new_job("erase" if job.startswith("erase") else "train", settings)
    record = made.model_copy(update={"job": job, "step": "settled", "released": released})
    with closing(sqlite3.connect(store.file)) as database, database:
        database.execute("UPDATE job SET job = ?, record = ? WHERE job = ?", (job, record.model_dump_json(), made.job))


def registered_fleet(
    settings: Settings, jobs: tuple[str, ...] = tuple(MODELS), model_input: ModelInput = IMAGES
) -> tuple[Settings, Store]:
    store = Store(settings.state_folder)
    store.champions.move(Champion(job="train-1", epoch=0), "job train-1", "a training job")
    with open_tracker(settings.tracking, settings.state_folder) as tracker:
        for job in jobs:
            kind, epoch, verdict, alias = MODELS[job]
            save_model_of(store, job, epoch, model_input)
            _note_job(store, settings, job, released=alias == "champion")
            folder = store.folders.model(job)
            tracker.log_model(
                job,
                folder / "model.onnx",
                input_example=model_input.random(2),
                outputs=2,
                tags={"dlfd.job": job, "dlfd.kind": kind, "dlfd.epoch": str(epoch), "dlfd.verdict": verdict},
                extra_files={name: folder / name for name in ("model.safetensors", "card.json")},
                alias=alias,
            )
        deadline = time.monotonic() + PATIENCE
        while tracker.flush(PATIENCE) and time.monotonic() < deadline:
            pass  # a server's first answers can take longer than a request may
        assert tracker.waiting == 0
        assert tracker.refused == 0
    return settings, store
