"""A session runs what its card says, on what the machine has."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from tiny_bundles import (
    tiny_graph,
    with_doubled_logits,
    with_external_kernel,
    with_fixed_batch,
    with_renamed_initializer,
    without_output,
)

from models import session as session_module
from models.card import Bundle
from models.errors import BundleError, InferenceError
from models.session import CPU, CUDA, TENSORRT, ModelSession, activate, choose_providers

ALL = [TENSORRT, CUDA, CPU]
ROOT = Path(__file__).resolve().parents[2]


def initializer(bundle: Bundle, name: str) -> np.ndarray:
    graph = onnx.load(bundle.model_path).graph
    return numpy_helper.to_array(next(entry for entry in graph.initializer if entry.name == name)).astype(np.float32)


def batch(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(0, 1, (count, 3, 16, 16)).astype(np.float32)


class TestChooseProviders:
    def test_takes_the_best_that_is_there(self) -> None:
        assert [name for name, _ in choose_providers(ALL, None)] == ALL
        assert [name for name, _ in choose_providers([CUDA, CPU], None)] == [CUDA, CPU]
        assert [name for name, _ in choose_providers([CPU], None)] == [CPU]

    def test_keeps_the_order_asked_for_and_ends_on_the_cpu(self) -> None:
        assert [name for name, _ in choose_providers(ALL, [CUDA])] == [CUDA, CPU]
        assert [name for name, _ in choose_providers(ALL, [CPU])] == [CPU]
        assert [name for name, _ in choose_providers(ALL, [CUDA, TENSORRT])] == [CUDA, TENSORRT, CPU]

    def test_says_what_is_asked_for_and_absent(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            assert [name for name, _ in choose_providers([CPU], [CUDA])] == [CPU]
        assert CUDA in caplog.text

    def test_refuses_an_unknown_name(self) -> None:
        with pytest.raises(InferenceError, match="NoSuchProvider"):
            choose_providers(ALL, ["NoSuchProvider"])

    def test_tensorrt_keeps_its_engines_and_knows_its_batches(self, tmp_path: Path) -> None:
        options = dict(choose_providers(ALL, None, cache_folder=tmp_path, image_shape=(3, 224, 200)))[TENSORRT]
        assert options["trt_engine_cache_path"] == str(tmp_path)
        assert options["trt_engine_cache_enable"] == "True"
        assert options["trt_profile_min_shapes"] == "image:1x3x224x200"
        assert options["trt_profile_max_shapes"] == "image:64x3x224x200"
        assert options["trt_fp16_enable"] == "False"

    def test_no_cache_folder_no_cache(self) -> None:
        assert "trt_engine_cache_enable" not in dict(choose_providers(ALL, None))[TENSORRT]


class TestRun:
    @pytest.mark.parametrize("count", [0, 1, 2, 7, 64, 65, 130])
    def test_any_batch_gives_the_same_as_torch(self, tiny_bundle: Bundle, count: int) -> None:
        tensors = batch(count)
        predictions = ModelSession(tiny_bundle).run(tensors)
        assert len(predictions) == count
        kernel, weight, bias = (
            torch.from_numpy(initializer(tiny_bundle, name)) for name in ("kernel", "head.weight", "head.bias")
        )
        feature_map = torch.relu(torch.nn.functional.conv2d(torch.from_numpy(tensors), kernel, stride=4))
        embedding = feature_map.mean(dim=(2, 3))
        logits = embedding @ weight.T + bias
        probabilities = torch.softmax(logits, dim=1)
        for index, prediction in enumerate(predictions):
            np.testing.assert_allclose(prediction.feature_map, feature_map[index], atol=1e-5)
            np.testing.assert_allclose(prediction.embedding, embedding[index], atol=1e-5)
            np.testing.assert_allclose(prediction.logits, logits[index], atol=1e-5)
            np.testing.assert_allclose(prediction.probabilities, probabilities[index], atol=1e-6)
            assert prediction.scores["there"] == pytest.approx(float(probabilities[index, 1]), abs=1e-6)
            assert prediction.scores["either"] == pytest.approx(1.0, abs=1e-6)
            assert prediction.scores["either"] <= 1.0
            assert (prediction.model_name, prediction.model_version) == ("tiny", 1)
            assert prediction.model_sha256 == tiny_bundle.model_sha256

    def test_head_weight_is_the_graph_s(self, tiny_bundle: Bundle) -> None:
        weight = ModelSession(tiny_bundle).head_weight
        assert weight.dtype == np.float32
        np.testing.assert_array_equal(weight, initializer(tiny_bundle, "head.weight"))

    def test_half_precision_weights(self, make_bundle: Callable[..., Bundle]) -> None:
        bundle = make_bundle(tiny_graph(weight_type=np.float16))
        session = ModelSession(bundle)
        assert session.head_weight.dtype == np.float32
        assert len(session.run(batch(3))) == 3

    @pytest.mark.parametrize(
        "tensors",
        [batch(2).astype(np.float64), batch(2)[:, :1], batch(2)[0], batch(2)[..., :15]],
        ids=["dtype", "channels", "axes", "columns"],
    )
    def test_refuses_another_shape(self, tiny_bundle: Bundle, tensors: np.ndarray) -> None:
        with pytest.raises(InferenceError, match="a batch is float32"):
            ModelSession(tiny_bundle).run(tensors)

    def test_refuses_what_is_not_finite(self, tiny_bundle: Bundle) -> None:
        tensors = batch(2)
        tensors[1, 0, 0, 0] = np.nan
        with pytest.raises(InferenceError, match="not finite"):
            ModelSession(tiny_bundle).run(tensors)

    def test_maps_what_onnx_runtime_raises(self, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        session = ModelSession(tiny_bundle)

        def fail(*_: object) -> None:
            raise session_module.ort_errors.RuntimeException("out of memory")

        monkeypatch.setattr(session_module, "_run", fail)
        with pytest.raises(InferenceError, match="batch of 2"):
            session.run(batch(2))

    def test_sigmoid_is_torch_s(self) -> None:
        logits = np.array([[-800.0, -3.0, 0.0], [1e-3, 5.0, 800.0]], dtype=np.float32)
        np.testing.assert_allclose(activate(logits, "sigmoid"), torch.sigmoid(torch.from_numpy(logits)), atol=1e-7)
        np.testing.assert_allclose(activate(logits, "softmax"), torch.softmax(torch.from_numpy(logits), 1), atol=1e-7)


class TestProviders:
    def test_runs_on_the_cpu_here(self, tiny_bundle: Bundle) -> None:
        assert ModelSession(tiny_bundle, providers=[CPU]).providers_in_use == (CPU,)

    def test_falls_back_when_a_provider_does_not_load(
        self, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        real, tried = onnxruntime.InferenceSession, []

        def flaky(*arguments: object, **options: object) -> onnxruntime.InferenceSession:
            tried.append([name for name, _ in options["providers"]])
            if options["providers"][0][0] != CPU:
                raise RuntimeError("no such library")
            return real(*arguments, **options)

        monkeypatch.setattr(session_module, "usable_providers", lambda: ALL)
        monkeypatch.setattr(session_module.onnxruntime, "InferenceSession", flaky)
        with caplog.at_level(logging.WARNING):
            session = ModelSession(tiny_bundle)
        assert tried == [ALL, [CUDA, CPU], [CPU]]
        assert session.providers_in_use == (CPU,)
        assert f"does not load on {TENSORRT}" in caplog.text
        assert f"does not load on {CUDA}" in caplog.text
        assert len(session.run(batch(2))) == 2

    def test_nothing_is_printed_on_a_machine_without_gpu(self, tiny_bundle: Bundle) -> None:
        code = (
            "import pathlib, sys\nfrom models.card import load_bundle\nfrom models.session import ModelSession\n"
            "ModelSession(load_bundle(pathlib.Path(sys.argv[1])))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tiny_bundle.folder)], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout == ""
        assert done.stderr == ""


class TestLoading:
    def test_refuses_a_file_that_is_not_onnx(self, make_bundle: Callable[..., Bundle]) -> None:
        with pytest.raises(BundleError):
            ModelSession(make_bundle(b"no model at all"))

    @pytest.mark.parametrize("name", ["head.weight", "head.bias"])
    def test_refuses_a_graph_without_head(self, make_bundle: Callable[..., Bundle], name: str) -> None:
        with pytest.raises(BundleError, match=name):
            ModelSession(make_bundle(with_renamed_initializer(name, "elsewhere")))

    def test_refuses_other_labels(self, make_bundle: Callable[..., Bundle]) -> None:
        labels = [{"name": name, "title": name} for name in ("absent", "there", "third")]
        with pytest.raises(BundleError, match=r"\[3, D\]"):
            ModelSession(make_bundle(labels=labels))

    def test_refuses_another_input_size(self, make_bundle: Callable[..., Bundle], tiny_bundle: Bundle) -> None:
        contract = tiny_bundle.card.pixel_contract.model_dump() | {"size": {"rows": 32, "columns": 16}}
        with pytest.raises(BundleError, match="32, 16"):
            ModelSession(make_bundle(pixel_contract={**contract, "mean": [0.5] * 3, "std": [0.5] * 3}))

    def test_refuses_a_missing_output(self, make_bundle: Callable[..., Bundle]) -> None:
        with pytest.raises(BundleError, match="feature_map"):
            ModelSession(make_bundle(without_output("feature_map")))

    def test_refuses_a_fixed_batch(self, make_bundle: Callable[..., Bundle]) -> None:
        with pytest.raises(BundleError, match="any N"):
            ModelSession(make_bundle(with_fixed_batch(1)))

    def test_refuses_an_embedding_that_is_no_average(self, make_bundle: Callable[..., Bundle]) -> None:
        with pytest.raises(BundleError, match="not the average"):
            ModelSession(make_bundle(tiny_graph(pool="GlobalMaxPool")))

    def test_refuses_a_head_that_is_not_used(self, make_bundle: Callable[..., Bundle]) -> None:
        with pytest.raises(BundleError, match=r"not head\.weight"):
            ModelSession(make_bundle(with_doubled_logits()))

    def test_refuses_weights_outside_the_file(self, make_bundle: Callable[..., Bundle]) -> None:
        with pytest.raises(BundleError, match="outside"):
            ModelSession(make_bundle(with_external_kernel()))
