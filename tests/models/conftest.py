"""Tiny bundles as fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from tiny_bundles import write_tiny_bundle

from models.card import Bundle


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    """Write a bundle around a graph, with any field of its card replaced."""

    def make(
        graph: onnx.ModelProto | bytes | None = None, *, version: int = 1, name: str = "tiny", **card: Any
    ) -> Bundle:
        folder = tmp_path / f"bundle-{len(list(tmp_path.iterdir()))}"
        return write_tiny_bundle(folder, graph, version=version, name=name, **card)

    return make


@pytest.fixture
def tiny_bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()
