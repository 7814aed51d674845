"""``gateway models register``: check a bundle, register it in MLflow, and let the store know it as a draft."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import LifecycleError
from gateway.system_account import command_actor

if TYPE_CHECKING:  # every command imports this file, and ONNX Runtime is large
    from gateway.settings import Settings
    from gateway.store import Store
    from models.bundle_check import CheckResult
    from models.card import Acceptance, Bundle

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]

DRIFT_CHECK = "reference set as drift reads it"
DVC_CHECK = "training data in the DVC repository"
CRITERIA_CHECK = "criteria as comparisons judge them"
_WAIVABLE_HERE = (DVC_CHECK,)
_DRAWS = 500
"""The fewest that an evaluation takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What the checks found in a folder."""

    bundle: Bundle | None
    """``None`` where the folder is no bundle."""
    results: tuple[CheckResult, ...]
    allow_missing: str
    """The reason given for what is missing; empty: nothing may be."""

    @property
    def waived(self) -> tuple[CheckResult, ...]:
        """Checks that failed and are let pass for the reason given."""
        return tuple(result for result in self.results if self._is_waived(result))

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """Checks that failed and are not waived."""
        return tuple(result for result in self.results if not result.passed and not self._is_waived(result))

    def _is_waived(self, result: CheckResult) -> bool:
        may_be = result.waivable or result.name in _WAIVABLE_HERE
        return not result.passed and may_be and bool(self.allow_missing.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A registered version."""

    model_name: str
    version: int
    bundle_sha256: str
    is_new: bool
    """Whether it was not known before."""


def add_register_step(steps: Any, add_place: Callable[[argparse.ArgumentParser], None], open_site: OpenSite) -> None:
    """Add ``register`` to the steps of ``gateway models``."""
    parser = steps.add_parser("register", help="check a bundle and register it, as a draft (docs/models.md)")
    add_place(parser)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder with card.yaml and its files")
    parser.add_argument("--check-only", action="store_true", help="only check; needs no gateway")
    parser.add_argument(
        "--allow-missing",
        default="",
        metavar="REASON",
        help="register although the DVC hash of training data or acceptance criteria are missing; the reason is "
        "recorded (a version without criteria can never be promoted)",
    )
    parser.add_argument(
        "--dvc-repository",
        type=Path,
        metavar="DIR",
        help="also require that this DVC repository tracks the training data",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=lambda options: _register(options, open_site))


def _register(options: argparse.Namespace, open_site: OpenSite) -> int:
    examination = examine(options.bundle, allow_missing=options.allow_missing, dvc_repository=options.dvc_repository)
    registration = None
    if not options.check_only and not examination.failed:
        settings, data_dir, store = open_site(options)
        try:
            registration = register(
                settings, data_dir, store, examination, actor=command_actor(), now=datetime.now(UTC)
            )
        finally:
            store.close()
    if options.json:
        print(json.dumps(_as_json(examination, registration), indent=2))
    else:
        print("\n".join(_lines(examination, registration)))
    return 1 if examination.failed else 0


def examine(folder: Path, *, allow_missing: str = "", dvc_repository: Path | None = None) -> Examination:
    """Check the bundle in `folder`.

    Parameters
    ----------
    allow_missing
        Why the DVC hash or acceptance criteria may be missing; empty where they may not.
    dvc_repository
        Where the training data has to be tracked.
    """
    from models.bundle_check import CheckResult, check_bundle, unloadable
    from models.card import load_bundle
    from models.errors import BundleError

    try:
        bundle = load_bundle(folder)
    except BundleError as error:
        return Examination(bundle=None, results=(unloadable(folder, error),), allow_missing=allow_missing)
    except OSError as error:
        result = CheckResult(name="files", passed=False, detail=f"the folder cannot be read ({type(error).__name__})")
        return Examination(bundle=None, results=(result,), allow_missing=allow_missing)
    results = [*check_bundle(bundle), _as_drift_reads_it(bundle)]
    if bundle.card.acceptance is not None:
        results.append(_can_be_judged(bundle.card.acceptance))
    if dvc_repository is not None:
        results.append(_tracked_by_dvc(bundle, dvc_repository))
    return Examination(bundle=bundle, results=tuple(results), allow_missing=allow_missing)


def _as_drift_reads_it(bundle: Bundle) -> CheckResult:
    from drift.errors import DriftError
    from drift.reference import load_reference
    from models.bundle_check import CheckResult

    try:
        reference = load_reference(bundle.reference_path)
    except DriftError as error:
        return CheckResult(name=DRIFT_CHECK, passed=False, detail=str(error))
    return CheckResult(name=DRIFT_CHECK, passed=True, detail=f"{len(reference.embeddings)} embeddings")


def _can_be_judged(acceptance: Acceptance) -> CheckResult:
    """Whether comparisons give every figure that the criteria ask for, slices included.

    A version never changes: one whose criterion names no figure could never be promoted. The names are taken from an
    evaluation of made-up cases.
    """
    import numpy as np

    from evaluation.cases import ScoredCases
    from evaluation.evaluate import evaluate
    from evaluation.fairness import METRICS
    from gateway.comparison.units import SLICES
    from models.bundle_check import CheckResult

    count = 64
    scores = np.random.default_rng(0).random(count)
    keys = np.array([str(number) for number in range(count)])
    cases = ScoredCases(
        case_keys=keys,
        scores=scores,
        baseline_scores=scores[::-1].copy(),
        truth=(np.arange(count) % 2).astype(np.int8),
        groups=keys,
        operating_point=0.5,
        baseline_operating_point=0.5,
    )
    overall = evaluate(cases, finding_name="any", draws=_DRAWS).overall
    of_one, paired = set(overall.candidate.figures), overall.paired
    of_two = set() if paired is None else set(paired.figures)
    differences = set() if paired is None else set(paired.differences)
    wrong = []
    for criterion in acceptance.criteria:
        is_difference = criterion.statistic.startswith("difference")
        known = (differences if is_difference else of_one | of_two) | METRICS.keys()
        name = criterion.slice.removeprefix("each:").partition("=")[0]
        if criterion.metric not in known:
            wrong.append(f"{criterion.name}: {criterion.metric} is none of {', '.join(sorted(known))}")
        elif name and name not in SLICES:
            wrong.append(f"{criterion.name}: {name} is none of {', '.join(SLICES)}")
        elif criterion.metric in METRICS and criterion.slice and not criterion.slice.startswith("each:"):
            wrong.append(f"{criterion.name}: a gap lies between slices; each:{name} is expected")
    detail = "; ".join(wrong) or f"each of the {len(acceptance.criteria)} names a figure that comparisons give"
    return CheckResult(name=CRITERIA_CHECK, passed=not wrong, detail=detail)


def _tracked_by_dvc(bundle: Bundle, repository: Path) -> CheckResult:
    from models.bundle_check import CheckResult
    from models.dvc import find_tracked
    from models.errors import BundleError

    found, missing = [], []
    try:
        for source in bundle.card.training_data:
            tracked = find_tracked(repository, source.dvc_hash) if source.dvc_hash else None
            if tracked is None:
                missing.append(f"{source.name} ({source.dvc_hash or 'no hash stated'})")
            else:
                found.append(f"{source.name} is {tracked.path}, by {tracked.stated_in}")
    except BundleError as error:
        return CheckResult(name=DVC_CHECK, passed=False, detail=str(error))
    if missing:
        detail = f"not tracked there now: {', '.join(missing)}" + (f"; {'; '.join(found)}" if found else "")
        return CheckResult(name=DVC_CHECK, passed=False, detail=detail)
    return CheckResult(name=DVC_CHECK, passed=True, detail="; ".join(found))


def register(
    settings: Settings, data_dir: Path, store: Store, examination: Examination, *, actor: str, now: datetime
) -> Registration:
    """Register a bundle that has passed: in MLflow, in the store as a draft, and in the sealed record.

    The same bytes again change nothing.

    Raises
    ------
    LifecycleError
        The bundle has not passed, or the store knows the version with other bytes.
    RegistryError
        The registry knows the version with other bytes, or cannot be reached.
    """
    from gateway.catalogue import embedded_registry_uri
    from gateway.lifecycle import take_in
    from gateway.model_record import append, load_record_key, recording
    from models.registry import ModelRegistry, bundle_sha256

    bundle = examination.bundle
    if bundle is None or examination.failed:
        raise LifecycleError("a bundle that has not passed its checks is not registered")
    card = bundle.card
    key = load_record_key(settings.deidentification, data_dir)
    registry = ModelRegistry(
        settings.models.tracking_uri or embedded_registry_uri(data_dir), data_dir / "mlflow-artifacts"
    )
    was_known = any(entry.card_version == card.version for entry in registry.versions(card.name))
    registry.register(bundle)
    entry = next(entry for entry in registry.versions(card.name) if entry.card_version == card.version)
    sha256 = bundle_sha256(bundle.folder)
    detail = {
        "checks": [result.name for result in examination.results if result.passed],
        "waived": {result.name: result.detail for result in examination.waived},
        "allow_missing": examination.allow_missing if examination.waived else "",
    }
    is_new = take_in(
        store, key=key, bundle=registry.bundle(entry), bundle_sha256=sha256, by=actor, now=now, detail=detail
    )
    if not is_new and not was_known:
        # The monitor saw the new version in the registry first; who brought it, and how it fared, is still recorded.
        with recording(store, key) as connection:
            append(
                connection,
                key=key,
                at=now,
                actor=actor,
                action="register",
                model_name=card.name,
                version=card.version,
                detail=detail | {"bundle_sha256": sha256},
            )
    return Registration(
        model_name=card.name, version=card.version, bundle_sha256=sha256, is_new=is_new or not was_known
    )


def _lines(examination: Examination, registration: Registration | None) -> Sequence[str]:
    waived = {result.name for result in examination.waived}
    lines = []
    for result in examination.results:
        verdict = "ok     " if result.passed else "waived " if result.name in waived else "FAILED "
        lines.append(f"{verdict} {result.name}: {result.detail}")
    name = "the bundle"
    if examination.bundle is not None:
        name = f"{examination.bundle.card.name}@{examination.bundle.card.version}"
    if examination.failed:
        lines.append(f"{name} is not registered: {len(examination.failed)} of {len(examination.results)} checks failed")
    elif registration is None:
        lines.append(f"{name} could be registered")
    elif registration.is_new:
        lines.append(f"{name} is registered, as a draft; sha256 of the bundle {registration.bundle_sha256}")
    else:
        lines.append(f"{name} was registered before, with these very bytes")
    return lines


def _as_json(examination: Examination, registration: Registration | None) -> dict[str, Any]:
    waived = {result.name for result in examination.waived}
    card = None if examination.bundle is None else examination.bundle.card
    return {
        "model": None if card is None else card.name,
        "version": None if card is None else card.version,
        "passed": not examination.failed,
        "registered": registration is not None,
        "new": registration is not None and registration.is_new,
        "bundle_sha256": None if registration is None else registration.bundle_sha256,
        "checks": [
            {
                "name": result.name,
                "passed": result.passed,
                "waived": result.name in waived,
                "detail": result.detail,
            }
            for result in examination.results
        ],
    }
