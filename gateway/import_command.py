"""``gateway models import``: other people's networks as bundles, checked against what they were.

See docs/importing-models.md. The only command that loads torch. It reads no store and needs no gateway.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # every command imports this file, and ONNX Runtime is large
    from models.card import Card, PixelContract
    from models.importing.network import ImportedNetwork, LoadedNetwork
    from models.session import ModelSession

LARGEST_GRADCAM_DIFFERENCE = 1e-4
"""Of a heat map against torch's, relative to its maximum."""
_DEFAULT_SIDE = 224


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What was made, for people and machines."""

    source: str
    words: str
    folder: str
    linear_head: bool
    head_operators: tuple[str, ...]
    feature_map: tuple[int, int, int]
    label_count: int
    opset: int
    remarks: tuple[str, ...]
    checks: tuple[tuple[str, float, float], ...]
    """Name, what was found, what is allowed."""
    reference: str
    waivable: tuple[str, ...]
    """Checks of registration that need ``--allow-missing``."""

    def lines(self) -> list[str]:
        """For people."""
        lines = _found_lines(
            words=self.words,
            linear_head=self.linear_head,
            head_operators=self.head_operators,
            feature_map=self.feature_map,
            label_count=self.label_count,
            opset=self.opset,
            remarks=self.remarks,
            checks=self.checks,
        )
        lines += [f"reference set: {self.reference}", f"the bundle is in {self.folder}"]
        command = f"gateway models register {self.folder}"
        if self.waivable:
            lines.append(f"missing in the card: {', '.join(self.waivable)}")
            command += " --allow-missing REASON"
        return [*lines, f"next: {command}"]


def _found(loaded: LoadedNetwork, imported: ImportedNetwork) -> dict[str, Any]:
    """What was found in a network."""
    return {
        "words": loaded.words,
        "linear_head": imported.assembled.linear_head,
        "head_operators": imported.assembled.head_operators,
        "feature_map": imported.anatomy.map_shape,
        "label_count": imported.anatomy.label_count,
        "opset": imported.opset,
        "remarks": imported.remarks,
    }


def _found_lines(
    *,
    words: str,
    linear_head: bool,
    head_operators: tuple[str, ...],
    feature_map: tuple[int, int, int],
    label_count: int,
    opset: int,
    remarks: tuple[str, ...],
    checks: tuple[tuple[str, float, float], ...],
) -> list[str]:
    head = (
        "one linear layer on the average of the feature map"
        if linear_head
        else "general, its gradient is in the graph as logit_gradients"
    )
    channels, rows, columns = feature_map
    return [
        f"source: {words}",
        f"feature map: {channels} channels, {rows} x {columns}; {label_count} labels; opset {opset}",
        f"head: {head} ({', '.join(head_operators)})",
        *(f"note: {remark}" for remark in remarks),
        *(f"ok  {name}: {found:.1e}, {limit:g} is allowed" for name, found, limit in checks),
    ]


def add_import_step(steps: Any) -> None:
    """Add ``import`` to the steps of ``gateway models``."""
    parser = steps.add_parser(
        "import",
        help="make a bundle of an ONNX file or a torch network (docs/importing-models.md)",
        description="SOURCE is an ONNX file, a torch.export program (.pt2), a TorchScript file, torchvision:NAME, "
        "timm:NAME[,OPTION=VALUE], or module:callable, which runs that Python code.",
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--card", type=Path, metavar="CARD.yaml", help="labels, findings, pixel contract and the rest")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write the bundle to; has to be new or empty")
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="64 or more pictures for the reference set: DICOM, JPEG or PNG",
    )
    parser.add_argument("--reference-most", type=int, default=2000, metavar="N", help="pictures taken at most (2000)")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="state_dict of a torch network, given by name")
    parser.add_argument("--output", metavar="NAME", help="the graph's output to take, where there are several")
    parser.add_argument(
        "--card-template", type=Path, metavar="FILE", help="write a card to fill in, say what was found, and end"
    )
    parser.add_argument("--look", action="store_true", help="say what can be made of it, checked, and write nothing")
    without = "of the input, for --card-template and --look"
    parser.add_argument("--size", default="", metavar="ROWSxCOLUMNS", help=f"{without} (224x224)")
    parser.add_argument("--channels", type=int, choices=(1, 3), default=3, help=without)
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from models.errors import ModelError

    try:
        if options.card_template is not None or options.look:
            return _look(options)
        report = import_model(
            options.source,
            card_path=options.card,
            out=options.out,
            reference=options.reference,
            reference_most=options.reference_most,
            weights=options.weights,
            output=options.output,
        )
    except ModelError as error:
        print(f"gateway models import: {error}", file=sys.stderr)
        return 1
    if options.json:
        values = {name: getattr(report, name) for name in ImportReport.__dataclass_fields__}
        print(json.dumps(values, indent=2))
    else:
        print("\n".join(report.lines()))
    return 0


def import_model(
    source: str,
    *,
    card_path: Path | None,
    out: Path | None,
    reference: Path | None,
    reference_most: int = 2000,
    weights: Path | None = None,
    output: str | None = None,
) -> ImportReport:
    """Make a bundle, whole or not at all.

    Raises
    ------
    ImportRefusedError
        Everything that is missing, what about the network stands in the way, or a check that was not passed.
    """
    from models.importing.network import check_card, load_network, make_graph

    card = _complete(card_path, out, reference, weights)
    _say_what_runs(source)
    contract = card.pixel_contract
    loaded = load_network(source, contract=contract, label_count=len(card.labels), weights=weights)
    imported = make_graph(loaded, contract=contract, activation=card.activation, output=output)
    check_card(imported, card)
    assert out is not None and reference is not None
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as name:
        folder = Path(name) / "bundle"
        folder.mkdir()
        more, words, waivable = _write_bundle(folder, card, imported, reference, reference_most)
        if out.exists():
            out.rmdir()
        shutil.move(folder, out)
    return ImportReport(
        source=source,
        folder=str(out),
        **_found(loaded, imported),
        checks=(*((check.name, check.found, check.limit) for check in imported.checks), more),
        reference=words,
        waivable=waivable,
    )


def _complete(card_path: Path | None, out: Path | None, reference: Path | None, weights: Path | None) -> Card:
    """The card, once everything that is needed is there; all that is not is said at once."""
    from gateway.import_card import read_card
    from models.errors import ImportRefusedError

    problems = []
    if card_path is None:
        problems.append("no --card; --card-template FILE writes one to fill in")
    if out is None:
        problems.append("no --out, the folder to write the bundle to")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"{out} is not empty; a bundle never changes, so that a new folder is needed")
    if reference is None:
        problems.append("no --reference: drift is judged against pictures, 64 or more, like those that will come")
    elif not reference.is_dir():
        problems.append(f"{reference} is no folder")
    if weights is not None and not weights.is_file():
        problems.append(f"{weights} is no file")
    card = None
    if card_path is not None:
        try:
            card = read_card(card_path)
        except ImportRefusedError as error:
            problems.append(str(error))
    if problems or card is None:
        raise ImportRefusedError("\n".join(problems))
    return card


def _say_what_runs(source: str) -> None:
    library = source.partition(":")[0]
    if ":" in source and not Path(source).is_file() and library not in {"torchvision", "timm"}:
        print(f"gateway models import: this runs the Python code of {source}", file=sys.stderr)


def _write_bundle(
    folder: Path, card: Card, imported: ImportedNetwork, reference: Path, most: int
) -> tuple[tuple[str, float, float], str, tuple[str, ...]]:
    """Write all files of a bundle; returns the Grad-CAM check, words on the reference set, what needs a reason."""
    import numpy as np
    import onnx
    import yaml

    from gateway.golden_pictures import golden_pictures
    from models.bundle_check import check_bundle
    from models.card import CARD_FILE, GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE, Bundle, Card, file_sha256, load_bundle
    from models.errors import ImportRefusedError
    from models.golden import golden_arrays
    from models.session import CPU, ModelSession

    onnx.save(imported.assembled.model, folder / MODEL_FILE)
    card = Card.model_validate(card.model_dump() | {"opset": imported.opset})
    session = ModelSession(Bundle(folder=folder, card=card), providers=[CPU])
    pictures = golden_pictures(colour=card.pixel_contract.photometric_interpretation == "RGB")
    gradcam_check = _check_gradcam(session, imported, pictures)
    words = _write_reference(folder / REFERENCE_FILE, session, reference, most)
    np.savez_compressed(folder / GOLDEN_FILE, **golden_arrays(session, pictures))
    hashes = {name: file_sha256(folder / name) for name in (MODEL_FILE, REFERENCE_FILE, GOLDEN_FILE)}
    card = card.model_copy(update={"files": hashes})
    text = yaml.safe_dump(card.model_dump(mode="json"), sort_keys=False, width=110, allow_unicode=True)
    (folder / CARD_FILE).write_text(text, encoding="utf-8")
    failed = [result for result in check_bundle(load_bundle(folder)) if not result.passed]
    fatal = [f"{result.name}: {result.detail}" for result in failed if not result.waivable]
    if fatal:
        raise ImportRefusedError("the bundle could not be registered:\n  " + "\n  ".join(fatal))
    return gradcam_check, words, tuple(result.name for result in failed)


def _write_reference(path: Path, session: ModelSession, folder: Path, most: int) -> str:
    import numpy as np
    from tqdm import tqdm

    from drift.reference import LEAST_REFERENCE
    from gateway.reference_set import ReferenceCount, picture_files, reference_arrays
    from models.errors import ImportRefusedError

    files, count = picture_files(folder, most), ReferenceCount()
    with tqdm(total=len(files), unit="picture", desc="reference set", disable=not sys.stderr.isatty()) as bar:
        arrays = reference_arrays(session, files, count, bar.update)
    if count.taken < LEAST_REFERENCE:
        raise ImportRefusedError(
            f"the reference set needs at least {LEAST_REFERENCE} gradable pictures; {folder} gives {count.words}"
        )
    np.savez_compressed(path, **arrays)
    return count.words


def _check_gradcam(session: ModelSession, imported: ImportedNetwork, pictures: Any) -> tuple[str, float, float]:
    """Heat maps of all findings on the golden pictures, against torch's own of the source's head.

    Raises
    ------
    ImportRefusedError
        They differ.
    """
    import numpy as np

    from gateway.pipeline import head_gradients
    from models.errors import ImportRefusedError
    from models.golden import golden_inputs
    from models.importing.head_in_torch import TorchHead
    from xai.errors import XaiError
    from xai.gradcam import gradcam

    card, head, largest = session.bundle.card, TorchHead(imported.assembled.head), 0.0
    tensors = np.stack([each.tensor for each in golden_inputs(np.stack(pictures), card.pixel_contract)])
    for prediction in session.run(tensors):
        for finding in card.findings:
            indices = card.label_indices(finding)
            try:
                found = gradcam(
                    prediction.feature_map,
                    prediction.probabilities,
                    head_gradients(prediction, session),
                    indices,
                    card.activation,
                )
            except XaiError:
                continue  # a score over all labels has no gradient, there as here
            expected = head.gradcam(prediction.feature_map, list(indices), card.activation)
            scale = max(float(expected.max()), 1e-12)
            largest = max(largest, float(np.abs(found - expected).max()) / scale)
    if not largest <= LARGEST_GRADCAM_DIFFERENCE:
        raise ImportRefusedError(
            f"Grad-CAM differs from torch's by {largest:.2g} of its maximum, {LARGEST_GRADCAM_DIFFERENCE:g} is allowed"
        )
    return "Grad-CAM against torch's", largest, LARGEST_GRADCAM_DIFFERENCE


# --- without a card ---


def _look(options: argparse.Namespace) -> int:
    """Say what was found and checked; write a card to fill in, where one is asked for."""
    from gateway.import_card import template
    from models.errors import ImportRefusedError
    from models.importing.network import load_network, make_graph

    path: Path | None = options.card_template
    if path is not None and path.exists():
        raise ImportRefusedError(f"{path} exists; a template overwrites nothing")
    _say_what_runs(options.source)
    contract = _guessed_contract(options)
    loaded = load_network(options.source, contract=contract, weights=options.weights)
    imported = make_graph(loaded, contract=contract, activation=None, output=options.output)
    checks = tuple((check.name, check.found, check.limit) for check in imported.checks)
    if options.json:
        print(json.dumps(_found(loaded, imported) | {"checks": checks}, indent=2))
    else:
        print("\n".join(_found_lines(**_found(loaded, imported), checks=checks)))
    if path is None:
        return 0
    anatomy = imported.anatomy
    text = template(
        label_count=anatomy.label_count,
        activation="softmax" if anatomy.single_output else anatomy.final_activation or "softmax",
        channels=contract.channels,
        rows=contract.size.rows,
        columns=contract.size.columns,
    )
    path.write_text(text, encoding="utf-8")
    print(f"{path} is a card: fill in what says TODO, then import with --card {path}", file=sys.stderr)
    return 0


def _guessed_contract(options: argparse.Namespace) -> PixelContract:
    """A pixel contract of the right shape; what it says of intensities does not matter to the graph."""
    from models.card import PixelContract, Size
    from models.errors import ImportRefusedError
    from models.importing.onnx_source import read_onnx, stated_shape

    channels, rows, columns = options.channels, _DEFAULT_SIDE, _DEFAULT_SIDE
    path = Path(options.source)
    if path.suffix == ".onnx" and path.is_file():
        channels, rows, columns = stated_shape(read_onnx(path), (channels, rows, columns))
    if options.size:
        sides = options.size.lower().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise ImportRefusedError(f"--size {options.size}: ROWSxCOLUMNS is expected, as 224x224")
        rows, columns = int(sides[0]), int(sides[1])
    return PixelContract(
        photometric_interpretation="RGB" if channels == 3 else "MONOCHROME2",
        channels=3 if channels == 3 else 1,
        size=Size(rows=rows, columns=columns),
        crop="none",
        intensity="eight_bit",
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        reason="template",
    )
