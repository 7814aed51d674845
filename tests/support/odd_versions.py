"""Tiny versions that decide otherwise, fail on some pictures, or are slow; and a worker's site to run them in."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from arrived_images import arrive
from known_versions import serve
from onnx import TensorProto, helper, numpy_helper
from photographs import op_dataset
from PIL import Image
from pydicom import Dataset
from sqlalchemy import select, update
from tiny_bundles import CHANNELS, SIZE, tiny_card, tiny_graph, tiny_scores, write_tiny_bundle

from gateway.settings import Settings, load_settings
from gateway.store import Store, open_store
from gateway.store.models import VersionState
from gateway.store.schema import model_failure, model_version, prediction, study
from gateway.vault import prepare_vault
from gateway.worker import Worker
from models.card import CARD_FILE, GOLDEN_FILE, load_bundle

MODEL = "tiny"
LONG_AGO = datetime(2026, 1, 5, 12, tzinfo=UTC)
COLOUR = {
    "photometric_interpretation": "RGB",
    "channels": CHANNELS,
    "size": {"rows": SIZE, "columns": SIZE},
    "crop": "none",
    "intensity": "eight_bit",
    "mean": [0.5] * CHANNELS,
    "std": [0.5] * CHANNELS,
    "reason": "Photographs.",
}


def biased(there: float) -> onnx.ModelProto:
    """The tiny graph with another bias: the greater, the more often the finding is present."""
    model = tiny_graph()
    for entry in model.graph.initializer:
        if entry.name == "head.bias":
            entry.CopyFrom(numpy_helper.from_array(np.array([0.0, there], np.float32), "head.bias"))
    return model


def _with_addend(nodes: list[onnx.NodeProto], initializers: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """The tiny graph with ``addend`` of `nodes` added to its logits."""
    model = tiny_graph()
    model.graph.node[-1].output[0] = "sound"
    model.graph.node.extend([*nodes, helper.make_node("Add", ["sound", "addend"], ["logits"])])
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in initializers.items())
    return model


def failing_on_white() -> onnx.ModelProto:
    """Looks into a table beyond its end where a picture of the batch is white; all else as the tiny graph."""
    return _with_addend(
        [
            helper.make_node("ReduceMean", ["image"], ["levels"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("ReduceMax", ["levels"], ["brightest"], keepdims=0),
            helper.make_node("Greater", ["brightest", "bright"], ["is_white"]),
            helper.make_node("Cast", ["is_white"], ["place"], to=TensorProto.INT64),
            helper.make_node("Mul", ["place", "five"], ["beyond"]),
            helper.make_node("Gather", ["table", "beyond"], ["addend"]),
        ],
        {
            "bright": np.array(0.9, np.float32),
            "five": np.array(5, np.int64),
            "table": np.zeros(1, np.float32),
        },
    )


def slow() -> onnx.ModelProto:
    """Multiplies large matrices first, to no effect; a tenth of a second and more."""
    side = 1100
    return _with_addend(
        [
            helper.make_node("ReduceMean", ["image"], ["level"], keepdims=0),
            helper.make_node("Mul", ["large", "level"], ["first"]),
            helper.make_node("MatMul", ["first", "large"], ["second"]),
            helper.make_node("MatMul", ["second", "large"], ["third"]),
            helper.make_node("MatMul", ["third", "large"], ["fourth"]),
            helper.make_node("ReduceMean", ["fourth"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["addend"]),
        ],
        {"large": np.full((side, side), 1 / side, np.float32), "zero": np.array(0, np.float32)},
    )


def colour_golden(graph: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Arrays of ``golden.npz`` for :data:`COLOUR`, by ONNX Runtime and the arithmetic of the card."""
    pictures = np.random.default_rng(5).integers(0, 256, (3, SIZE, SIZE, CHANNELS), dtype=np.uint8)
    tensors = ((pictures.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.5).astype(np.float32)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    logits, embeddings = session.run(["logits", "embedding"], {"image": tensors})
    return {"pictures": pictures, "logits": logits, "scores": tiny_scores(logits), "embeddings": embeddings}


def photograph(level: int | None, seed: int = 1) -> Dataset:
    """A small colour photograph: of one level, or random where there is none."""
    shape = (96, 96, 3)
    pixels = (
        np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        if level is None
        else np.full(shape, level, np.uint8)
    )
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return op_dataset(stream.getvalue())


@dataclass
class House:
    """A data folder with tiny versions and one worker that is stepped by hand."""

    data_dir: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    store: Store = field(init=False)
    settings: Settings = field(init=False)
    worker: Worker = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        rules = [{"name": "photographs", "when": {"Modality": "OP"}, "models": [MODEL]}]
        destinations = [{"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 104}]
        self.settings = load_settings(
            environment={}, overrides={"rules": rules, "destinations": destinations, **self.overrides}
        )
        self.store = open_store("", data_dir=self.data_dir, migrate=True)
        prepare_vault(self.settings.vault, self.data_dir)

    def start(self) -> Worker:
        self.worker = Worker(self.settings, self.data_dir, name="worker-0", threads=1)
        return self.worker

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
        self.store.close()

    def version(self, number: int, state: VersionState, graph: onnx.ModelProto | None = None) -> Path:
        """A version in a state."""
        folder = self.data_dir / f"bundle-{number}"
        graph = graph or tiny_graph()
        write_tiny_bundle(folder, graph, version=number, name=MODEL)
        np.savez(folder / GOLDEN_FILE, **colour_golden(graph))
        card = tiny_card(folder, version=number, name=MODEL) | {"pixel_contract": COLOUR, "acquisition": {}}
        (folder / CARD_FILE).write_text(yaml.safe_dump(card), encoding="utf-8")
        sha256 = load_bundle(folder).model_sha256
        serve(self.store, MODEL, number, folder, LONG_AGO, model_sha256=sha256, state=state)
        return folder

    def move(self, number: int, state: VersionState, *, since: datetime = LONG_AGO, **traffic: Any) -> None:
        """As a transition would leave it."""
        with self.store.write() as connection:
            connection.execute(
                update(model_version)
                .where(model_version.c.model_name == MODEL, model_version.c.version == number)
                .values(state=state.value, traffic=traffic, state_since=since)
            )

    def receive(self, dataset: Dataset) -> str:
        """A study of one image arrives, complete; its key."""
        return arrive(self.store, self.data_dir, dataset, LONG_AGO)

    def work(self) -> None:
        """Until there is nothing to do, with every version loaded."""
        self.worker.versions.follow()
        self.worker.versions.settle()
        while self.worker.work_once():
            pass

    def state(self, study_key: str) -> tuple[str, str, int]:
        """State, reason, attempts."""
        with self.store.read() as connection:
            row = connection.execute(select(study).where(study.c.study_key == study_key)).one()
            return row.state, row.reason, row.attempts

    def said(self, study_key: str) -> dict[tuple[int, str], Any]:
        """(version, role) -> row of each prediction of a study."""
        with self.store.read() as connection:
            rows = connection.execute(select(prediction).where(prediction.c.study_key == study_key))
            return {(row.model_version, row.role): row for row in rows}

    def failures(self) -> list[tuple[str, int, str, str]]:
        """(study, version, role, reason), in order."""
        columns = [model_failure.c[name] for name in ("study_key", "version", "role", "reason")]
        with self.store.read() as connection:
            return [tuple(row) for row in connection.execute(select(*columns).order_by(model_failure.c.failure_id))]
