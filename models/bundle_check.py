"""Is a bundle what it says, and does it say all that it should? Asked when a version is registered.

Each check has a name and says what was expected and what was found. Nothing here needs a network, a registry or a
store.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.card import CARD_FILE, Bundle, file_sha256
from models.errors import BundleError, InferenceError
from models.golden import golden_inputs, read_golden, run_golden
from models.session import ModelSession

LEAST_REFERENCE = 64
"""As drift's tests need (``drift.reference.LEAST_REFERENCE``)."""

WAIVABLE = ("acceptance criteria", "training data's DVC hash")
"""Checks that may fail with a stated reason: other people's models come without either. A version without acceptance
criteria can never be promoted."""

_NOTHING_SAID = frozenset({"", "-", "?", "n/a", "na", "none", "not stated", "tbd", "todo", "unknown"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """One check of a bundle."""

    name: str
    passed: bool
    detail: str
    """What was found; where it failed, what was expected too."""

    @property
    def waivable(self) -> bool:
        """Whether registration may go on with a reason given."""
        return self.name in WAIVABLE


def check_bundle(bundle: Bundle, *, run: bool = True) -> tuple[CheckResult, ...]:
    """Check a bundle whose card is valid and whose files are those of the card (see :func:`models.card.load_bundle`).

    Parameters
    ----------
    run
        Whether to load the model and run its golden inputs; without, only what is written is checked.
    """
    checks: list[tuple[str, Callable[[], str]]] = [
        ("files", lambda: _check_files(bundle)),
        ("card", lambda: _check_card(bundle)),
        ("licence", lambda: _check_licence(bundle)),
        ("training data", lambda: _check_training_data(bundle)),
        ("training data's DVC hash", lambda: _check_dvc_hash(bundle)),
        ("acceptance criteria", lambda: _check_acceptance(bundle)),
        ("ONNX graph", lambda: _check_graph(bundle)),
        ("opset", lambda: _check_opset(bundle)),
        ("reference set", lambda: _check_reference(bundle)),
        ("golden inputs", lambda: _check_golden(bundle)),
    ]
    results = [_result(name, check) for name, check in checks]
    if run:
        results.extend(_run_checks(bundle))
    return tuple(results)


class _FailedError(Exception):
    """A check failed; its text is the detail."""


def _result(name: str, check: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name=name, passed=True, detail=check())
    except (_FailedError, BundleError, InferenceError) as error:
        return CheckResult(name=name, passed=False, detail=str(error))


def _check_files(bundle: Bundle) -> str:
    found = {path.name: path for path in bundle.folder.iterdir()}
    stated = bundle.card.files
    unlisted = sorted(found.keys() - stated.keys() - {CARD_FILE})
    odd = sorted(name for name, path in found.items() if path.is_symlink() or not path.is_file())
    changed = sorted(name for name in stated.keys() & found.keys() if file_sha256(found[name]) != stated[name])
    missing = sorted(stated.keys() - found.keys())
    for words, names in (
        ("not in the card", unlisted),
        ("not plain files", odd),
        ("with another sha256 than the card's", changed),
        ("missing", missing),
    ):
        if names:
            raise _FailedError(f"exactly {CARD_FILE} and {', '.join(sorted(stated))} are expected; {words}: {names}")
    return f"{len(stated)} files beside the card, each with its sha256"


def _says_nothing(text: str) -> bool:
    return text.strip().strip(".").casefold() in _NOTHING_SAID


def _check_card(bundle: Bundle) -> str:
    card = bundle.card
    summed = {name for finding in card.findings for name in finding.labels}
    lacking = [label.name for label in card.labels if label.name in summed and label.code is None]
    empty = {
        "a title": _says_nothing(card.title),
        "an intended use": _says_nothing(card.intended_use),
        "limits": not card.limits or all(_says_nothing(limit) for limit in card.limits),
        "modalities": not card.modalities,
        "metrics": not card.metrics,
        "an acquisition range": not (card.acquisition.values or card.acquisition.ranges),
        "a reason for the pixel contract": _says_nothing(card.pixel_contract.reason),
        f"a code of the labels {', '.join(lacking)}": bool(lacking),
    }
    missing = [words for words, is_missing in empty.items() if is_missing]
    if missing:
        raise _FailedError(f"the card lacks {'; '.join(missing)}")
    return (
        f"{len(card.labels)} labels, codes of all findings ({len(card.findings)}), {len(card.metrics)} metrics, "
        f"{len(card.limits)} limits"
    )


def _check_licence(bundle: Bundle) -> str:
    licence = bundle.card.licence
    if _says_nothing(licence):
        raise _FailedError(f"a licence of the model is expected, the card says {licence!r}")
    return licence


def _check_training_data(bundle: Bundle) -> str:
    sources = bundle.card.training_data
    if not sources:
        raise _FailedError("the data that the model was trained on is expected, the card names none")
    for source in sources:
        if _says_nothing(source.licence) or _says_nothing(source.source):
            raise _FailedError(f"{source.name}: a source and a licence are expected, the card says neither or one")
    return ", ".join(f"{source.name} ({source.licence})" for source in sources)


def _check_dvc_hash(bundle: Bundle) -> str:
    lacking = [source.name for source in bundle.card.training_data if not source.dvc_hash]
    if lacking or not bundle.card.training_data:
        raise _FailedError(
            f"not stated for {', '.join(lacking) or 'any data'}; md5:<32 digits>.dir of a folder or md5:<32 digits> of "
            "a file, as `dvc add` writes it, is expected"
        )
    return ", ".join(f"{source.name} {source.dvc_hash}" for source in bundle.card.training_data)


def _check_acceptance(bundle: Bundle) -> str:
    acceptance = bundle.card.acceptance
    if acceptance is None:
        raise _FailedError("not stated; without criteria written down now, this version can never replace a champion")
    return f"{len(acceptance.criteria)}, written {acceptance.written_at} by {acceptance.written_by}"


def _load_model(bundle: Bundle) -> Any:
    import onnx  # 0.25 s
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        return onnx.load(bundle.model_path, load_external_data=False)
    except (DecodeError, OSError) as error:
        raise _FailedError("the model file is not ONNX") from error


def _check_graph(bundle: Bundle) -> str:
    import onnx

    model = _load_model(bundle)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise _FailedError("weights inside the model file are expected, some are outside")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise _FailedError(f"ONNX's checker refuses it: {first.strip()[:300]}") from error
    return f"{len(model.graph.node)} nodes, ONNX's checker finds nothing wrong"


def _check_opset(bundle: Bundle) -> str:
    found = {entry.domain or "ai.onnx": entry.version for entry in _load_model(bundle).opset_import}
    own = found.get("ai.onnx")
    if own != bundle.card.opset:
        raise _FailedError(f"the card says opset {bundle.card.opset}, the graph {own}")
    others = ", ".join(f"{domain} {version}" for domain, version in sorted(found.items()) if domain != "ai.onnx")
    return f"{own}" + (f"; {others}" if others else "")


def _check_golden(bundle: Bundle) -> str:
    golden = read_golden(bundle)
    golden_inputs(golden.pictures, bundle.card.pixel_contract)
    if not golden.tells_pictures_apart:
        raise _FailedError(
            "at least two pictures with different logits are expected: these would not notice a model "
            "that ignores its input"
        )
    return f"{len(golden.pictures)} pictures of {golden.pictures.shape[1]} x {golden.pictures.shape[2]}"


def _run_checks(bundle: Bundle) -> list[CheckResult]:
    """Load the model, compare its outputs with the card, the golden scores and the reference set."""
    try:
        session = ModelSession(bundle)
    except BundleError as error:
        failed = "the model does not load, see outputs"
        return [
            CheckResult(name="outputs", passed=False, detail=str(error)),
            CheckResult(name="golden run", passed=False, detail=failed),
            CheckResult(name="reference set fits the model", passed=False, detail=failed),
        ]
    return [
        CheckResult(
            name="outputs",
            passed=True,
            detail=f"names, types and shapes as agreed; ran on {session.providers_in_use[0]}",
        ),
        _result("golden run", lambda: _run_golden(session, bundle)),
        _result("reference set fits the model", lambda: _fit_reference(session, bundle)),
    ]


def _run_golden(session: ModelSession, bundle: Bundle) -> str:
    report = run_golden(session, bundle)
    if not report.passed:
        raise _FailedError("; ".join(report.reasons))
    return (
        f"{report.count} pictures: scores within {report.largest_score_difference:.1e}, logits within "
        f"{report.largest_logit_difference:.1e} of what is expected"
    )


def _fit_reference(session: ModelSession, bundle: Bundle) -> str:
    """Widths as the model gives them. Noise serves as the input, since a golden picture may be missing."""
    size = bundle.card.pixel_contract
    noise = np.random.default_rng(0).standard_normal((1, size.channels, size.size.rows, size.size.columns))
    (prediction,) = session.run(noise.astype(np.float32))
    stored = _reference_arrays(bundle)
    width, grid = len(prediction.embedding), prediction.feature_map.shape[1:]
    if stored["embeddings"].shape[1:] != (width,) or stored["mean_map"].shape != grid:
        raise _FailedError(
            f"embeddings of {width} and a mean map of {list(grid)} are expected, embeddings are "
            f"{list(stored['embeddings'].shape)} and the mean map {list(stored['mean_map'].shape)}"
        )
    return f"embeddings of {width}, a map of {grid[0]} x {grid[1]}"


_TABLES = (("scores", "finding_names"), ("explanations", "explanation_names"), ("statistics", "statistic_names"))


def _reference_arrays(bundle: Bundle) -> dict[str, NDArray[Any]]:
    names = ["embeddings", "mean_map", *(name for pair in _TABLES for name in pair)]
    try:
        with bundle.reference_path.open("rb") as stream:
            archive = np.load(stream, allow_pickle=False)
            missing = [name for name in names if name not in archive.files]
            if missing:
                raise _FailedError(f"the arrays {', '.join(names)} are expected; missing: {', '.join(missing)}")
            return {name: archive[name] for name in names}
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise _FailedError(f"an archive of plain arrays is expected ({type(error).__name__})") from error


def _check_reference(bundle: Bundle) -> str:
    stored = _reference_arrays(bundle)
    embeddings = stored["embeddings"]
    if embeddings.ndim != 2 or len(embeddings) < LEAST_REFERENCE:
        raise _FailedError(
            f"embeddings [N, D] of at least {LEAST_REFERENCE} pictures are expected, they are {list(embeddings.shape)}"
        )
    for table, name_array in _TABLES:
        expected = (len(embeddings), stored[name_array].size)
        if stored[table].shape != expected or 0 in expected:
            raise _FailedError(
                f"{table} are {list(stored[table].shape)}, {list(expected)} is expected, one column for each of "
                f"{name_array}"
            )
    for name in ("embeddings", "scores", "statistics", "mean_map"):
        if not np.issubdtype(stored[name].dtype, np.floating) or not np.isfinite(stored[name]).all():
            raise _FailedError(f"{name} are expected to be finite floating-point numbers")
    if (stored["scores"] < 0).any() or (stored["scores"] > 1 + 1e-6).any():
        raise _FailedError("scores from 0 to 1 are expected")
    known = [finding.name for finding in bundle.card.findings]
    unknown = sorted({str(name) for name in stored["finding_names"]} - set(known))
    if unknown:
        raise _FailedError(f"findings of the card ({', '.join(known)}) are expected, it has {', '.join(unknown)}")
    return f"{len(embeddings)} pictures, scores of {', '.join(str(name) for name in stored['finding_names'])}"


def unloadable(folder: Path, error: BundleError) -> CheckResult:
    """The one result of a folder that is no bundle: no card, an invalid one, or files that are not the card's."""
    return CheckResult(
        name="files", passed=False, detail=str(error).replace(f"{folder}/", "").replace(str(folder), ".")
    )
