"""The whole import of a network, from its source to a checked graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from models.card import Card, PixelContract
from models.errors import ImportRefusedError
from models.importing.anatomy import Anatomy, find_anatomy
from models.importing.assembly import Assembled, assemble
from models.importing.graph import ORT_FAILED, open_session, opset_of
from models.importing.onnx_source import InputForm, normalise, read_onnx

Floats = NDArray[np.float32]
Activation = Literal["softmax", "sigmoid"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedNetwork:
    """A source as an ONNX graph, unchanged, and how to run the source itself."""

    words: str
    model: onnx.ModelProto
    run_source: Callable[[Floats], Floats] | None
    """By torch; None: the graph itself is the source."""
    torch_run: Callable[[Any], Any] | None
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedNetwork:
    """A graph that fits a bundle, and what was found and checked on the way."""

    assembled: Assembled
    anatomy: Anatomy
    form: InputForm
    opset: int
    checks: tuple[Any, ...]
    """:class:`models.importing.verification.Check`"""
    remarks: tuple[str, ...]


def load_network(
    source: str, *, contract: PixelContract, label_count: int | None = None, weights: Path | None = None
) -> LoadedNetwork:
    """Read a source: a file (ONNX, torch.export, TorchScript) or ``torchvision:``, ``timm:``, ``module:callable``.

    Raises
    ------
    ImportRefusedError
        Says why it cannot be read or exported.
    """
    from models.importing import torch_source

    path = Path(source)
    if path.is_file():
        with path.open("rb") as stream:
            start = stream.read(8)
        if start.startswith(b"PK"):
            torch_source.require_torch()
            loaded = torch_source.read_torch_file(path)
        elif start[:1] == b"\x80":
            raise ImportRefusedError(
                f"{path.name} is a pickle, and opening a pickled module would run whatever code it holds. Save the "
                "program by torch.export.save, or name the network and give this file as --weights"
            )
        elif start.startswith(b"\x89HDF"):
            raise ImportRefusedError(f"{path.name} is HDF5 (Keras); convert it to ONNX by tf2onnx first")
        else:
            model = read_onnx(path)
            return LoadedNetwork(words="ONNX file", model=model, run_source=None, torch_run=None, remarks=())
    elif ":" in source:
        torch_source.require_torch()
        loaded = torch_source.build_network(source, weights, label_count)
    else:
        raise ImportRefusedError(
            f"{source}: no such file, and no network as torchvision:NAME, timm:NAME, module:callable"
        )
    model, remarks = torch_source.export(loaded, contract)
    return LoadedNetwork(
        words=loaded.words,
        model=model,
        run_source=lambda pictures: _run_torch(loaded.run, pictures),
        torch_run=loaded.run,
        remarks=remarks,
    )


def _run_torch(run: Callable[[Any], Any], pictures: Floats) -> Floats:
    import torch

    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            output = run(torch.from_numpy(pictures))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ImportRefusedError(f"the source does not run on {len(pictures)} pictures") from error
    if isinstance(output, dict):
        output = next(iter(output.values()))
    if isinstance(output, (tuple, list)):
        output = output[0]
    return np.asarray(output.numpy(), dtype=np.float32)


def make_graph(
    loaded: LoadedNetwork, *, contract: PixelContract, activation: Activation | None, output: str | None = None
) -> ImportedNetwork:
    """Make a bundle's graph of a loaded network, and check it.

    Parameters
    ----------
    activation
        The card's; None takes the source's own, or softmax.
    output
        Name of the output that gives the logits, where there are several.

    Raises
    ------
    ImportRefusedError
        Says what about the network stands in the way, or which check was not passed.
    """
    from models.importing import torch_source

    torch_source.require_torch()
    from models.importing.verification import TorchNetwork, verify

    shape = (contract.channels, contract.size.rows, contract.size.columns)
    normal, form = normalise(loaded.model, contract)
    try:
        anatomy = find_anatomy(normal, shape, output)
    except ImportRefusedError as error:
        if form.batch is not None:
            raise ImportRefusedError(
                f"{error}. The source has a fixed batch of {form.batch}, which may be why: export it with a dynamic one"
            ) from error
        raise
    chosen = _agreed_activation(anatomy, activation)
    assembled = assemble(normal, anatomy)
    batch = form.batch
    original = loaded.run_source or _run_original(loaded.model, form, output)
    checks = verify(
        assembled,
        anatomy,
        picture_shape=shape,
        activation=chosen,
        original=original,
        batch=batch,
        half=form.half,
        network=None if loaded.torch_run is None else TorchNetwork(run=loaded.torch_run),
    )
    return ImportedNetwork(
        assembled=assembled,
        anatomy=anatomy,
        form=form,
        opset=opset_of(assembled.model),
        checks=checks,
        remarks=(*loaded.remarks, *anatomy.remarks, *_remarks(anatomy, form)),
    )


def _agreed_activation(anatomy: Anatomy, stated: Activation | None) -> Activation:
    """The card's activation, which may not contradict what the source does itself."""
    of_source: Activation | None = anatomy.final_activation
    if anatomy.single_output:
        if stated == "sigmoid":
            raise ImportRefusedError(
                "the network has one output, which becomes the two labels absent and present: the card's activation "
                "has to be softmax, which gives the same probability"
            )
        return "softmax"
    if of_source is not None and stated not in (None, of_source):
        raise ImportRefusedError(f"the source ends in {of_source}, the card says {stated}")
    return stated or of_source or "softmax"


def _remarks(anatomy: Anatomy, form: InputForm) -> list[str]:
    remarks = []
    if anatomy.final_activation is not None:
        remarks.append(f"the source ends in {anatomy.final_activation}; the logits before it are taken")
    if anatomy.single_output:
        remarks.append("the source has one output z; the two logits are 0 and z, so that softmax gives sigmoid(z)")
    if form.batch is not None:
        remarks.append(f"the source had a fixed batch of {form.batch}; it takes any now")
    if form.half:
        remarks.append("the source computes in float16, the bundle in float32")
    if form.channels_last:
        remarks.append("the source takes channels last; the graph turns the picture for it")
    return remarks


def _run_original(model: onnx.ModelProto, form: InputForm, output: str | None) -> Callable[[Floats], Floats]:
    """The ONNX source as it is, without any optimisation."""
    try:
        session = open_session(model, optimise=False)
    except ORT_FAILED as error:
        raise ImportRefusedError("ONNX Runtime does not load the source") from error
    names = [output] if output is not None else None

    def run(pictures: Floats) -> Floats:
        values = np.ascontiguousarray(pictures.transpose(0, 2, 3, 1)) if form.channels_last else pictures
        typed = values.astype(np.float16) if form.half else values
        return np.asarray(session.run(names, {form.name: typed})[0], dtype=np.float32)

    return run


def check_card(imported: ImportedNetwork, card: Card) -> None:
    """Hold what was found against the card.

    Raises
    ------
    ImportRefusedError
        The number of labels differs.
    """
    found, stated = imported.anatomy.label_count, len(card.labels)
    if found != stated:
        raise ImportRefusedError(f"the network has {found} outputs, the card names {stated} labels")
