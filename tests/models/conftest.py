"""Tiny bundles as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from tiny_bundles import WIDTH, tiny_card, tiny_graph

from models.card import CARD_FILE, MODEL_FILE, REFERENCE_FILE, Bundle, load_bundle


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Write a bundle around a graph, with any field of its card replaced."""

    def make(
        graph: onnx.ModelProto | bytes | None = None, *, version: int = 1, name: str = "tiny", **card: Any
    ) -> Bundle:
        folder = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        content = graph if isinstance(graph, bytes) else (graph or tiny_graph()).SerializeToString()
        (folder / MODEL_FILE).write_bytes(content)
        np.savez(folder / REFERENCE_FILE, embeddings=np.zeros((2, WIDTH), dtype=np.float16))
        content_of_card = tiny_card(folder, version=version, name=name) | card
        (folder / CARD_FILE).write_text(yaml.safe_dump(content_of_card), encoding="utf-8")
        return load_bundle(folder)

    return make


@pytest.fixture
def tiny_bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()
