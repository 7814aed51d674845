"""Networks of torch: saved programs, torchvision, timm, and Python callables, exported to ONNX.

What is read, and what of it may run code:

- ``.pt2`` (``torch.export.save``) and TorchScript files hold programs in a closed language. Pickles inside a ``.pt2``
  are read with ``weights_only=True``; where that does not do, the file is refused.
- ``--weights`` files are read with ``weights_only=True``, or as safetensors.
- ``module:callable`` imports and calls Python code of the user's. The command says so.
- A pickled module (``torch.save(network)``) runs whatever it holds when it is opened, and is refused.

Imports torch, in functions only.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import onnx

from models.card import PixelContract
from models.errors import ImportRefusedError

LARGEST_ARCHIVE_BYTES = 2_000_000_000
LARGEST_RATIO = 20
"""Of unpacked to packed size. torch stores tensors as they are; only a bomb unpacks to much more."""
_CONTROL_FLOW = ("data-dependent", "data dependent", "control flow", "GuardOnDataDependent", "Could not guard")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchSource:
    """A network ready to be exported and run."""

    kind: Literal["program", "torchscript", "module"]
    words: str
    """What it is, for the report."""
    network: Any
    """What is exported: an ExportedProgram, ScriptModule or Module."""
    run: Callable[[Any], Any]
    """Forward pass on a tensor."""


def require_torch() -> None:
    """Say how to get torch where it is missing.

    Raises
    ------
    ImportRefusedError
        There is no torch.
    """
    if importlib.util.find_spec("torch") is None:
        raise ImportRefusedError(
            "importing needs torch, against which every network is checked: python -m pip install -e '.[training]'"
        )


def check_archive(path: Path) -> set[str]:
    """Names inside a torch file, which are zip archives, after its sizes were looked at.

    Raises
    ------
    ImportRefusedError
        It claims to unpack to far more than it holds, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ImportRefusedError(f"{path.name} is damaged: not a readable archive") from error
    total = sum(entry.file_size for entry in entries)
    packed = max(1, sum(entry.compress_size for entry in entries))
    if total > LARGEST_ARCHIVE_BYTES or (total > 1_000_000 and total / packed > LARGEST_RATIO):
        raise ImportRefusedError(
            f"{path.name} unpacks to {total} bytes from {packed}; at most {LARGEST_ARCHIVE_BYTES}, and at most "
            f"{LARGEST_RATIO} times its packed size, are taken"
        )
    return {entry.filename.split("/", 1)[-1] for entry in entries} | {entry.filename for entry in entries}


def read_torch_file(path: Path) -> TorchSource:
    """Read a ``.pt2`` or TorchScript file, told apart by what it holds.

    Raises
    ------
    ImportRefusedError
        It is neither, for instance a pickled module or bare weights.
    """
    names = check_archive(path)
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return _read_program(path)
    if any(name.startswith("code/") for name in names) and "constants.pkl" in names:
        return _read_torchscript(path)
    raise ImportRefusedError(
        f"{path.name} is a pickle of torch.save: opening a pickled module would run whatever code it holds, and bare "
        "weights say nothing of their network. Save the program by torch.export.save, or name the network "
        f"(torchvision:NAME, timm:NAME, module:callable) and give this file as --weights, if it is a state_dict"
    )


def _read_program(path: Path) -> TorchSource:
    import torch

    try:
        with _no_pickles():
            program = torch.export.load(path)
    except _PickleRefusedError as error:
        raise ImportRefusedError(
            f"{path.name} holds pickled objects that are not tensors; they could run code"
        ) from error
    except _LOAD_FAILED as error:
        raise ImportRefusedError(f"{path.name} is no readable torch.export program ({_first_line(error)})") from error
    return TorchSource(kind="program", words="torch.export program", network=program, run=program.module())


_LOAD_FAILED = (
    RuntimeError,
    AssertionError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    OSError,
    LookupError,
)


class _PickleRefusedError(Exception):
    """A file holds pickled objects other than tensors."""


@contextlib.contextmanager
def _no_pickles() -> Iterator[None]:
    """While a program is loaded, read its pickles with ``weights_only=True``, whatever torch would do."""
    import pickle

    import torch
    from torch.export.pt2_archive import _package

    plain_load = torch.load

    def load(*arguments: Any, **options: Any) -> Any:
        try:
            return plain_load(*arguments, **(options | {"weights_only": True}))
        except pickle.UnpicklingError as error:
            raise _PickleRefusedError from error

    def refuse(*_: Any, **__: Any) -> Any:
        raise _PickleRefusedError

    with (
        mock.patch.object(torch, "load", load),
        mock.patch.object(_package.pickle, "loads", refuse),
        mock.patch.object(torch._C, "_pickle_load_obj", refuse, create=True),
    ):
        yield


def _read_torchscript(path: Path) -> TorchSource:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = torch.jit.load(str(path), map_location="cpu").eval()
    except _LOAD_FAILED as error:
        raise ImportRefusedError(f"{path.name} is no readable TorchScript file ({_first_line(error)})") from error
    return TorchSource(kind="torchscript", words="TorchScript", network=module, run=module)


def read_weights(path: Path) -> dict[str, Any]:
    """A state_dict, read so that nothing in it can run.

    Raises
    ------
    ImportRefusedError
        It holds other things than tensors.
    """
    import pickle

    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ImportRefusedError(f"{path.name} is no readable safetensors file") from error
    if zipfile.is_zipfile(path):
        check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ImportRefusedError(
            f"{path.name} holds other things than tensors; opening it could run code. Save network.state_dict() instead"
        ) from error
    except _LOAD_FAILED as error:
        raise ImportRefusedError(f"{path.name} is no readable file of weights ({_first_line(error)})") from error
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(torch.is_tensor(each) for each in content.values()):
        raise ImportRefusedError(f"{path.name} is no state_dict: a mapping of names to tensors is expected")
    prefix = "module."
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}


def build_network(source: str, weights: Path | None, label_count: int | None) -> TorchSource:
    """A network of torchvision, timm or a Python callable, with its weights, in evaluation mode.

    Raises
    ------
    ImportRefusedError
        No such network, no weights, or weights that do not fit.
    """
    library, _, rest = source.partition(":")
    state = None if weights is None else read_weights(weights)
    if library in {"torchvision", "timm"}:
        if state is None:
            raise ImportRefusedError(
                f"{source} has no weights: give those that were trained as --weights FILE; nothing is downloaded"
            )
        counts = [label_count, 1] if label_count == 2 else [label_count or _last_length(state)]
        build = _torchvision if library == "torchvision" else _timm
        networks = [build(rest, count) for count in counts]
    else:
        networks = [_call(library, rest)]
    if state is not None:
        networks = [_fitting(networks, state, source)]
    network = networks[0].eval()
    return TorchSource(kind="module", words=source, network=network, run=network)


def _last_length(state: dict[str, Any]) -> int:
    """Outputs of the last layer, by the last bias."""
    vectors = [tensor for tensor in state.values() if tensor.ndim == 1 and tensor.is_floating_point()]
    return int(vectors[-1].shape[0]) if vectors else 1000


def _torchvision(name: str, count: int | None) -> Any:
    try:
        networks: Any = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise ImportRefusedError("torchvision is not installed: python -m pip install -e '.[training]'") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return networks.get_model(name, weights=None, num_classes=count)
    except (ValueError, TypeError) as error:
        raise ImportRefusedError(f"torchvision has no classification network {name!r}") from error


def _timm(text: str, count: int | None) -> Any:
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise ImportRefusedError("timm is not installed: python -m pip install -e '.[training]'") from error
    name, *pairs = text.split(",")
    options: dict[str, Any] = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    try:
        return timm.create_model(name, pretrained=False, num_classes=count, **options)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise ImportRefusedError(f"timm does not make {text!r}: {_first_line(error)}") from error


def _call(module: str, name: str) -> Any:
    import torch

    sys.path.insert(0, str(Path.cwd()))
    try:
        make = getattr(importlib.import_module(module), name)
        network = make()
    except (ImportError, AttributeError, TypeError) as error:
        raise ImportRefusedError(f"{module}:{name} cannot be called without arguments: {_first_line(error)}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(network, torch.nn.Module):
        raise ImportRefusedError(f"{module}:{name} gives a {type(network).__name__}, not a torch.nn.Module")
    return network


def _fitting(networks: list[Any], state: dict[str, Any], source: str) -> Any:
    """The first of some networks that the weights fit."""
    reasons = []
    for network in networks:
        try:
            network.load_state_dict(state, strict=True)
        except RuntimeError as error:
            reasons.append(" ".join(str(error).split())[:400])
        else:
            return network
    raise ImportRefusedError(f"the weights do not fit {source}: {reasons[0]}")


# Export ---------------------------------------------------------------------------------------------------------------
def export(source: TorchSource, contract: PixelContract) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The network as ONNX, with remarks on how that was done.

    Raises
    ------
    ImportRefusedError
        Control flow that depends on the pixels, or something that has no form in ONNX.
    """
    import torch

    shape = (2, contract.channels, contract.size.rows, contract.size.columns)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with _quiet():
        if source.kind == "torchscript":
            return _export_traced(source.network, example, "")
        try:
            return _export_program(source, example), ()
        except ImportError as error:
            if source.kind == "program":
                raise ImportRefusedError(
                    "exporting a program needs onnxscript: python -m pip install -e '.[training]'"
                ) from error
            reason = "onnxscript is not installed"
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError, AssertionError) as error:
            text = " ".join(str(each) for each in _chain(error))
            if any(word in text for word in _CONTROL_FLOW):
                raise ImportRefusedError(
                    "dynamic control flow: what the network does depends on the values of the picture, which a graph "
                    f"cannot say ({_control_flow_line(text)})"
                ) from error
            if source.kind == "program":
                raise ImportRefusedError(f"the program has no form in ONNX: {_first_line(error)}") from error
            reason = _first_line(error)
        return _export_traced(source.network, example, reason)


def _export_program(source: TorchSource, example: Any) -> onnx.ModelProto:
    import torch

    if source.kind == "program":
        program = torch.onnx.export(source.network, dynamo=True, verbose=False)
    else:
        shapes = ({0: torch.export.Dim.DYNAMIC},)
        program = torch.onnx.export(source.network, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    model: onnx.ModelProto = program.model_proto
    return model


def _export_traced(network: Any, example: Any, reason: str) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    import io

    import torch

    stream = io.BytesIO()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            torch.onnx.export(
                network,
                (example,),
                stream,
                dynamo=False,
                opset_version=17,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
            )
        except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
            raise ImportRefusedError(f"the network has no form in ONNX: {_first_line(error)}") from error
    if any(issubclass(each.category, torch.jit.TracerWarning) for each in seen):
        raise ImportRefusedError(
            "dynamic control flow: the network decides in Python on values of the picture, which tracing would freeze"
        )
    remark = f"exported by tracing, since torch.export did not do: {reason}" if reason else "exported by tracing"
    return onnx.load_model_from_string(stream.getvalue()), (remark,)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters say on every channel what they do; their errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _control_flow_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if any(word in line for word in _CONTROL_FLOW)]
    return lines[0][:200] if lines else "see torch.export"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
