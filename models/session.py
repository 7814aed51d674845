"""A resident ONNX Runtime session of one bundle: a batch of tensors in, predictions out.

The graph is held against the card when it is loaded, so that a bundle that does not fit fails before the first study
and not at it.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from models.card import Bundle, Card
from models.errors import BundleError, InferenceError
from models.prediction import Prediction

log = logging.getLogger(__name__)

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
_PREFERENCE = (TENSORRT, CUDA, CPU)
_OUTPUTS = ("logits", "embedding", "feature_map")
GRADIENTS = "logit_gradients"
"""Output of a graph whose head is not one linear layer: see :class:`models.prediction.Prediction`."""
_LOG_ERRORS_ONLY = 3
_AVERAGE_TOLERANCE = 1e-3
_HEAD_TOLERANCE = 2e-2
"""Weights may be held as float16, whose products with features of a few units are off by this much."""
LARGEST_PROFILE_BATCH = 64
"""Largest batch that a TensorRT engine is built for; a larger one is cut into pieces."""
CPU_BATCH = 4
"""Pieces on a CPU: activations of more images leave its caches (16 images of 384 x 384 took a quarter longer each, and
five times the memory)."""

_ORT_FAILED: tuple[type[Exception], ...] = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.EPFail,
    ort_errors.EngineError,
    ort_errors.RuntimeException,
    RuntimeError,
    ValueError,
)

Provider = tuple[str, dict[str, str]]
Floats = NDArray[np.float32]


def choose_providers(
    available: Sequence[str],
    requested: Sequence[str] | None,
    *,
    cache_folder: Path | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> list[Provider]:
    """Choose execution providers with their options, best first; the CPU always comes last.

    Parameters
    ----------
    available
        What is there, see :func:`usable_providers`.
    requested
        What a configuration asks for, in its order; None takes TensorRT, CUDA, CPU, as far as available.
    cache_folder
        Where TensorRT keeps its engines between starts; None builds them anew (minutes) at each.
    image_shape
        (channels, rows, columns) of the input, from which TensorRT's range of batch sizes is declared.

    Raises
    ------
    InferenceError
        `requested` names a provider that this gateway does not know.
    """
    unknown = set(requested or ()) - set(_PREFERENCE)
    if unknown:
        raise InferenceError(
            f"unknown execution provider {', '.join(sorted(unknown))}; known are {', '.join(_PREFERENCE)}"
        )
    wanted = list(dict.fromkeys(requested)) if requested else list(_PREFERENCE)
    for name in requested or ():
        if name not in available:
            log.warning("execution provider %s is asked for but not available", name)
    names = [name for name in wanted if name in available and name != CPU]
    return [(name, _provider_options(name, cache_folder, image_shape)) for name in [*names, CPU]]


def _provider_options(name: str, cache_folder: Path | None, image_shape: tuple[int, int, int] | None) -> dict[str, str]:
    """Options of one provider. Full precision everywhere: a score may not depend on the machine beyond rounding."""
    if name == CUDA:
        return {
            "arena_extend_strategy": "kSameAsRequested",
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
        }
    if name == TENSORRT:
        options = {"trt_fp16_enable": "False", "trt_int8_enable": "False"}
        if cache_folder is not None:
            options |= {
                "trt_engine_cache_enable": "True",
                "trt_engine_cache_path": str(cache_folder),
                "trt_timing_cache_enable": "True",
                "trt_timing_cache_path": str(cache_folder),
            }
        if image_shape is not None:
            shape = "x".join(str(side) for side in image_shape)
            for bound, batch in (("min", 1), ("opt", 8), ("max", LARGEST_PROFILE_BATCH)):
                options[f"trt_profile_{bound}_shapes"] = f"image:{batch}x{shape}"
        return options
    return {}


def usable_providers() -> list[str]:
    """Providers that ONNX Runtime was built with, without those of a GPU where the machine has none.

    The GPU build lists CUDA and TensorRT on every machine; asking for them without a device costs a second and a page
    of errors on stderr.
    """
    names: list[str] = onnxruntime.get_available_providers()
    return names if cuda_device_count() > 0 else [name for name in names if name not in {TENSORRT, CUDA}]


def cuda_device_count() -> int:
    """Count NVIDIA GPUs by asking the driver; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
            return 0
    except (OSError, AttributeError):
        return 0
    return count.value


class ModelSession:
    """One resident ONNX Runtime session, warm when constructed.

    Parameters
    ----------
    bundle
        The model version to run.
    providers
        Execution providers in order; None chooses from what the machine has.
    threads
        CPU threads that one run may use.
    cache_folder
        Where TensorRT keeps built engines.

    Raises
    ------
    BundleError
        The graph does not load, or does not fit the card.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        providers: Sequence[str] | None = None,
        threads: int = 1,
        cache_folder: Path | None = None,
    ) -> None:
        contract = bundle.card.pixel_contract
        self.bundle = bundle
        self._image_shape = (contract.channels, contract.size.rows, contract.size.columns)
        self._label_indices: Mapping[str, tuple[int, ...]] = {
            finding.name: bundle.card.label_indices(finding) for finding in bundle.card.findings
        }
        head = read_head(bundle)
        self.head_weight: Floats | None = None if head is None else head.weight
        """float32 [K, D]: the last linear layer; None for another head, whose predictions bring their gradients."""
        self._outputs = _OUTPUTS if head is not None else (*_OUTPUTS, GRADIENTS)
        self._session = self._load(
            choose_providers(usable_providers(), providers, cache_folder=cache_folder, image_shape=self._image_shape),
            threads,
            head,
        )
        self.providers_in_use: tuple[str, ...] = tuple(self._session.get_providers())
        """Providers that the session really runs on, best first."""

    def run(self, tensors: Floats) -> list[Prediction]:
        """Predict a batch.

        Parameters
        ----------
        tensors
            float32 [N, C, H, W], normalised by the card's pixel contract; any N, also 0.

        Raises
        ------
        InferenceError
            `tensors` has another shape or dtype, ONNX Runtime failed, or an output is not finite.
        """
        if tensors.dtype != np.float32 or tensors.ndim != 4 or tensors.shape[1:] != self._image_shape:
            raise InferenceError(
                f"a batch is float32 [N, {', '.join(map(str, self._image_shape))}], not {tensors.dtype} "
                f"{list(tensors.shape)}"
            )
        predictions: list[Prediction] = []
        step = CPU_BATCH if self.providers_in_use[0] == CPU else LARGEST_PROFILE_BATCH
        for start in range(0, len(tensors), step):
            piece = np.ascontiguousarray(tensors[start : start + step])
            try:
                outputs = _run(self._session, piece, self._outputs)
            except _ORT_FAILED as error:
                raise InferenceError(
                    f"ONNX Runtime failed on a batch of {len(piece)} ({type(error).__name__})"
                ) from error
            predictions.extend(self._predictions(outputs))
        return predictions

    def _predictions(self, outputs: Mapping[str, Floats]) -> list[Prediction]:
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise InferenceError(f"{name} has values that are not finite")
        card = self.bundle.card
        probabilities = activate(outputs["logits"], card.activation)
        return [
            Prediction(
                model_name=card.name,
                model_version=card.version,
                model_sha256=self.bundle.model_sha256,
                logits=outputs["logits"][index],
                probabilities=probabilities[index],
                scores=self._scores(probabilities[index]),
                embedding=outputs["embedding"][index],
                feature_map=outputs["feature_map"][index],
                logit_gradients=outputs[GRADIENTS][index] if GRADIENTS in outputs else None,
            )
            for index in range(len(probabilities))
        ]

    def _scores(self, probabilities: Floats) -> Mapping[str, float]:
        """Sum the probabilities of each finding's labels; rounding may not lift a sum above 1."""
        return MappingProxyType(
            {
                name: min(1.0, float(sum(float(probabilities[index]) for index in indices)))
                for name, indices in self._label_indices.items()
            }
        )

    def _load(self, candidates: list[Provider], threads: int, head: Head | None) -> onnxruntime.InferenceSession:
        """Make the session on the first provider that loads and survives a warm-up run."""
        card, failure = self.bundle.card, ""
        warm_up = np.random.default_rng(0).standard_normal((1, *self._image_shape), dtype=np.float32)
        for start, (name, _) in enumerate(candidates):
            try:
                session = onnxruntime.InferenceSession(
                    str(self.bundle.model_path),
                    sess_options=_session_options(threads),
                    providers=candidates[start:],
                    enable_fallback=0,
                )
                check_signature(session, card, self._outputs)
                outputs = _run(session, warm_up, self._outputs)
            except _ORT_FAILED as error:
                failure = type(error).__name__
                log.warning("model %s version %d does not load on %s (%s)", card.name, card.version, name, failure)
                continue
            check_outputs(outputs, card, head)
            in_use = session.get_providers()
            if in_use[0] != name:
                log.warning(
                    "model %s version %d was to run on %s and runs on %s", card.name, card.version, name, in_use[0]
                )
            log.info("model %s version %d runs on %s", card.name, card.version, ", ".join(in_use))
            return session
        raise BundleError(f"{card.name} version {card.version}: ONNX Runtime cannot run its graph ({failure})")


def _session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options for a session that shares a machine with other processes.

    Threads do not spin while they wait, since a worker's neighbours need the cores.
    """
    onnxruntime.set_default_logger_severity(_LOG_ERRORS_ONLY)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.enable_cpu_mem_arena = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _run(session: onnxruntime.InferenceSession, tensors: Floats, names: Sequence[str]) -> dict[str, Floats]:
    outputs: list[Floats] = session.run(list(names), {"image": tensors})
    return dict(zip(names, outputs, strict=True))


def activate(logits: Floats, activation: Literal["softmax", "sigmoid"]) -> Floats:
    """Turn logits [N, K] into probabilities [N, K], without overflow."""
    wide = logits.astype(np.float64)
    if activation == "softmax":
        powers = np.exp(wide - wide.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)
    powers = np.exp(-np.abs(wide))
    return np.asarray(np.where(wide >= 0, 1.0, powers) / (1.0 + powers), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The last linear layer: ``logits = weight @ embedding + bias``."""

    weight: Floats
    """float32 [K, D]"""
    bias: Floats
    """float32 [K]"""


def read_head(bundle: Bundle) -> Head | None:
    """Read the initializers ``head.weight`` and ``head.bias`` from a bundle's graph.

    Returns
    -------
    Head or None
        None where the graph has the output ``logit_gradients``: its head is something else than one linear layer on the
        average of the feature map.

    Raises
    ------
    BundleError
        The file is no ONNX model, keeps weights outside itself, has neither that output nor both initializers, or their
        shapes do not fit the card's labels.
    """
    import onnx  # 0.25 s
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    where = f"{bundle.card.name} version {bundle.card.version}"
    try:
        graph = onnx.load(bundle.model_path, load_external_data=False).graph
    except (DecodeError, OSError) as error:
        raise BundleError(f"{where}: the model file is not ONNX") from error
    found: dict[str, Any] = {}
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise BundleError(f"{where}: weights outside the model file are not allowed")
        if tensor.name in {"head.weight", "head.bias"}:
            found[tensor.name] = onnx.numpy_helper.to_array(tensor).astype(np.float32)
    if any(output.name == GRADIENTS for output in graph.output):
        return None
    missing = {"head.weight", "head.bias"} - found.keys()
    if missing:
        raise BundleError(
            f"{where}: the graph lacks the initializer {', '.join(sorted(missing))}, and has no output {GRADIENTS}"
        )
    weight, bias, count = found["head.weight"], found["head.bias"], len(bundle.card.labels)
    if weight.ndim != 2 or weight.shape[0] != count or bias.shape != (count,):
        raise BundleError(
            f"{where}: head.weight is {list(weight.shape)} and head.bias {list(bias.shape)}; [{count}, D] and "
            f"[{count}] are expected"
        )
    return Head(weight=weight, bias=bias)


def check_signature(session: onnxruntime.InferenceSession, card: Card, output_names: Sequence[str] = _OUTPUTS) -> None:
    """Hold a graph's inputs and outputs against its card.

    Raises
    ------
    BundleError
        They differ.
    """
    where, contract = f"{card.name} version {card.version}", card.pixel_contract
    expected = [contract.channels, contract.size.rows, contract.size.columns]
    inputs = session.get_inputs()
    if [(entry.name, entry.type) for entry in inputs] != [("image", "tensor(float)")]:
        raise BundleError(f"{where}: the graph's input is not one float32 tensor named image")
    shape = inputs[0].shape
    if len(shape) != 4 or isinstance(shape[0], int) or list(shape[1:]) != expected:
        raise BundleError(f"{where}: image is {shape}, [N, {', '.join(map(str, expected))}] with any N is expected")
    types = {entry.name: entry.type for entry in session.get_outputs()}
    for name in output_names:
        if types.get(name) != "tensor(float)":
            raise BundleError(f"{where}: the graph gives no float32 output {name}")


def check_outputs(outputs: Mapping[str, Floats], card: Card, head: Head | None) -> None:
    """Hold the outputs of a warm-up run against the card and against each other.

    Explanations rely on two identities: the embedding is the average of the feature map, and, where the head is one
    linear layer, the logits are the head applied to the embedding. The gradients of another head are held against
    finite differences when it is imported.

    Raises
    ------
    BundleError
        A shape differs, a value is not finite, or an identity does not hold.
    """
    where = f"{card.name} version {card.version}"
    logits, embedding, feature_map = (outputs[name] for name in _OUTPUTS)
    count, width = len(card.labels), embedding.shape[-1] if head is None else head.weight.shape[1]
    shapes = (logits.shape, embedding.shape, feature_map.shape[:2])
    if shapes != ((1, count), (1, width), (1, width)) or feature_map.ndim != 4:
        raise BundleError(
            f"{where}: logits {list(logits.shape)}, embedding {list(embedding.shape)}, feature_map "
            f"{list(feature_map.shape)}; [1, {count}], [1, {width}], [1, {width}, h, w] are expected"
        )
    if head is None and outputs[GRADIENTS].shape != (1, count, width):
        raise BundleError(
            f"{where}: {GRADIENTS} is {list(outputs[GRADIENTS].shape)}; [1, {count}, {width}] is expected"
        )
    if not all(np.isfinite(values).all() for values in outputs.values()):
        raise BundleError(f"{where}: noise gives values that are not finite")
    if not np.allclose(feature_map.mean(axis=(2, 3)), embedding, atol=_AVERAGE_TOLERANCE, rtol=_AVERAGE_TOLERANCE):
        raise BundleError(f"{where}: embedding is not the average of feature_map")
    if head is not None and not np.allclose(
        embedding @ head.weight.T + head.bias, logits, atol=_HEAD_TOLERANCE, rtol=_HEAD_TOLERANCE
    ):
        raise BundleError(f"{where}: logits are not head.weight applied to embedding")
