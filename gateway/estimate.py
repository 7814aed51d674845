"""How a version does where nobody has said yet what is true: NannyML's confidence-based estimate, with its own check.

The estimate (CBPE) calibrates scores on cases with truth, takes the calibrated score of a case for the probability that
the finding is there, and computes what the figures then have to be. That holds where studies of some score mean what
they meant before. It does not hold where the pictures have changed: under noise a model is confidently wrong, and so is
the estimate. Hence it is checked here on later cases whose truth is known, and not shown as good where that check
fails, could not be made, or a drift alarm is open.

NannyML is imported inside the function that needs it, in a process that ends: it brings hundreds of megabytes along.

References
----------
Kivimäki, Białek, Nurminen and Kuberski, "Confidence-based Estimators for Predictive Performance in Model Monitoring",
JAIR 82 (2025). NannyML 0.13, ``nannyml.performance_estimation.confidence_based.CBPE``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gateway.errors import TruthError
from gateway.performance_cases import Cases, Unit, make_cases, top_image, units_of, usual_kind

if TYPE_CHECKING:
    from gateway.performance import Basis

METRICS: Mapping[str, str] = {"auc_roc": "roc_auc", "sensitivity": "recall", "specificity": "specificity"}
"""Our names -> NannyML's."""
LEAST_REFERENCE = 100
LEAST_CHECK = 50
LEAST_OF_EACH = 10
"""Cases where the finding is present, and where it is absent, on each side of the check."""
LEAST_ESTIMATED = 30
LARGEST_ERROR = 0.1
"""Of a figure in the check, whatever its interval says."""
NEWEST = 2000
"""Cases without truth that are estimated on: the newest."""
NOT_INSTALLED = "NannyML is not installed (the extra estimate: scripts/setup, but not its lean modes)"

Floats = npt.NDArray[np.float64]
Truths = npt.NDArray[np.int8]


class EstimateState(StrEnum):
    """What an estimate is worth."""

    CHECKED = "checked"
    """Its check on cases with truth passed."""
    NOT_TO_BE_TRUSTED = "not to be trusted"
    NOT_ESTIMATED = "not estimated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimated figure with NannyML's bounds: three standard errors of sampling, calibration taken as exact."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFigure:
    """An estimate beside what came out."""

    estimated: Interval
    realised: float
    error: float
    """Estimated minus realised."""
    covered: bool
    """Whether the interval holds what came out."""
    passed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is estimated of one version, and what that is worth."""

    state: EstimateState
    reasons: tuple[str, ...] = ()
    """Why it is not estimated, or not to be trusted."""
    method: str = ""
    unit: str = ""
    reference: str = ""
    """What scores were calibrated on, in words."""
    reference_cases: int = 0
    check_cases: int = 0
    check: Mapping[str, CheckedFigure] | None = None
    cases: int = 0
    """Without truth, that the figures are of."""
    figures: Mapping[str, Interval] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """Scores with truth."""

    scores: Floats
    """[N]."""
    truth: Truths
    """[N]."""

    @property
    def fewest(self) -> int:
        """Cases of the rarer side."""
        return int(min(self.truth.sum(), self.truth.size - self.truth.sum()))


def estimate_version(
    basis: Basis, version: int, *, open_alarms: int, bundle_folder: Path | None = None
) -> dict[str, Any]:
    """Estimate one finding of one version on the newest cases without truth.

    Parameters
    ----------
    open_alarms
        Drift alarms of that version that nobody has closed.
    bundle_folder
        Of the version; its reference scores calibrate where they come with truth.
    """
    if not is_installed():
        return Estimate(state=EstimateState.NOT_ESTIMATED, reasons=(NOT_INSTALLED,)).to_json()
    scores = basis.scores[version]
    cases = make_cases(scores, basis.standards)
    kind = usual_kind(tuple(basis.standards))
    unknown = [
        (image.judged_at, image.score, image.operating_point)
        for unit in units_of(scores, kind)
        if not _has_truth(basis, unit) and not isinstance(image := top_image(scores, unit), str)
    ]
    newest = sorted(unknown)[-NEWEST:]
    operating_point = newest[-1][2] if newest else cases.operating_point if cases else 0.5
    reference, check, words = _split(cases, bundle_labels(bundle_folder, basis.finding_name))
    try:
        made = estimate(
            reference=reference,
            check=check,
            unknown=np.array([score for _, score, _ in newest], dtype=np.float64),
            operating_point=operating_point,
        )
    except TruthError as error:
        made = Estimate(state=EstimateState.NOT_ESTIMATED, reasons=(str(error),))
    made = replace(made, unit=kind, reference=words)
    if open_alarms and made.state is not EstimateState.NOT_ESTIMATED:
        alarms = f"{open_alarms} drift alarm{'s are' if open_alarms > 1 else ' is'} open for this version"
        made = replace(made, state=EstimateState.NOT_TO_BE_TRUSTED, reasons=(*made.reasons, alarms))
    return made.to_json()


def _has_truth(basis: Basis, unit: Unit) -> bool:
    """Whether somebody decided on `unit` or on a wider one."""
    study = Unit(study_key=unit.study_key)
    return any(each in basis.standards and basis.standards[each].value for each in (unit, study))


def _split(cases: Cases | None, bundled: Labelled | None) -> tuple[Labelled | None, Labelled | None, str]:
    """What calibrates (the bundle's, or else the earlier half of what came here), what checks, the first in words."""
    if cases is None:
        return bundled, None, "the bundle's reference set" if bundled else ""
    order = np.argsort(np.array([moment.timestamp() for moment in cases.judged_at]), kind="stable")
    live = Labelled(scores=cases.scores[order], truth=cases.truth[order])
    if bundled is not None:
        return bundled, live, "the bundle's reference set"
    half = len(order) // 2
    halves = [Labelled(scores=live.scores[part], truth=live.truth[part]) for part in (slice(half), slice(half, None))]
    return halves[0], halves[1], "the earlier half of the cases with truth"


def bundle_labels(folder: Path | None, finding_name: str) -> Labelled | None:
    """Reference scores of a bundle with their truth: ``truth`` int8 [N, F] in ``reference.npz``; ``None`` without."""
    if folder is None or not (folder / "reference.npz").is_file():
        return None
    with np.load(folder / "reference.npz", allow_pickle=False) as arrays:
        if "truth" not in arrays or finding_name not in (names := arrays["finding_names"].tolist()):
            return None
        place = names.index(finding_name)
        scores, truth = arrays["scores"][:, place].astype(np.float64), arrays["truth"][:, place].astype(np.int8)
    known = truth >= 0
    return Labelled(scores=scores[known], truth=truth[known])


def is_installed() -> bool:
    """Whether NannyML is there; it is not loaded for that."""
    return importlib.util.find_spec("nannyml") is not None


# --- the estimate and its check ---


def estimate(
    *, reference: Labelled | None, check: Labelled | None, unknown: Floats, operating_point: float
) -> Estimate:
    """Calibrate on `reference`, check on `check`, estimate on `unknown`: one estimator for all, so that what is shown
    is what was checked.
    """
    made = Estimate(
        state=EstimateState.NOT_ESTIMATED,
        method=f"NannyML {importlib.metadata.version('nannyml')}, CBPE",
        reference_cases=0 if reference is None else int(reference.truth.size),
        check_cases=0 if check is None else int(check.truth.size),
        cases=int(unknown.size),
    )
    if reference is None or reference.truth.size < LEAST_REFERENCE or reference.fewest < LEAST_OF_EACH:
        found = "none" if reference is None else f"{reference.truth.size}, {reference.fewest} of the rarer side"
        needed = (
            f"calibration needs {LEAST_REFERENCE} cases with truth, {LEAST_OF_EACH} of each side; there are {found}"
        )
        return replace(made, reasons=(needed,))
    estimator = _Cbpe(reference, operating_point)
    reasons = []
    checked: Mapping[str, CheckedFigure] | None = None
    if check is None or check.truth.size < LEAST_CHECK or check.fewest < LEAST_OF_EACH:
        found = "none" if check is None else f"{check.truth.size}, {check.fewest} of the rarer side"
        reasons.append(
            f"not checked: that needs {LEAST_CHECK} further cases with truth, {LEAST_OF_EACH} of each side; there are "
            f"{found}"
        )
    else:
        checked = check_estimate(estimator.figures(check.scores), check, operating_point)
        reasons += [_failure(name, figure) for name, figure in checked.items() if not figure.passed]
    if unknown.size < LEAST_ESTIMATED:
        few = f"{unknown.size} cases without truth; fewer than {LEAST_ESTIMATED} are not estimated on"
        return replace(made, check=checked, reasons=(*reasons, few))
    state = EstimateState.NOT_TO_BE_TRUSTED if reasons else EstimateState.CHECKED
    return replace(made, state=state, check=checked, reasons=tuple(reasons), figures=estimator.figures(unknown))


def check_estimate(
    estimated: Mapping[str, Interval], check: Labelled, operating_point: float
) -> dict[str, CheckedFigure]:
    """Estimates beside what came out, by scikit-learn."""
    from sklearn.metrics import recall_score, roc_auc_score

    decisions = (check.scores >= operating_point).astype(np.int8)
    realised = {
        "auc_roc": float(roc_auc_score(check.truth, check.scores)),
        "sensitivity": float(recall_score(check.truth, decisions, pos_label=1, zero_division=0)),
        "specificity": float(recall_score(check.truth, decisions, pos_label=0, zero_division=0)),
    }
    made = {}
    for name, interval in estimated.items():
        error = interval.value - realised[name]
        covered = interval.low <= realised[name] <= interval.high
        made[name] = CheckedFigure(
            estimated=interval,
            realised=realised[name],
            error=error,
            covered=covered,
            passed=covered and abs(error) <= LARGEST_ERROR,
        )
    return made


def _failure(name: str, figure: CheckedFigure) -> str:
    words = name.replace("auc_roc", "AUC")
    within = "outside of its interval" if not figure.covered else f"more than {LARGEST_ERROR:g} away"
    return f"its check failed: {words} was {figure.realised:.3f}, estimated {figure.estimated.value:.3f}, {within}"


class _Cbpe:
    """NannyML's estimator, fitted once."""

    def __init__(self, reference: Labelled, operating_point: float) -> None:
        # Before the import, which reads them: nothing is told to anybody.
        os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
        os.environ["DO_NOT_TRACK"] = "1"
        self._operating_point = operating_point
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on the number of chunks, which is one on purpose
            from nannyml.exceptions import NannyMLException
            from nannyml.performance_estimation.confidence_based import CBPE

            self._failure = NannyMLException
            self._estimator = CBPE(
                problem_type="classification_binary",
                y_pred_proba="score",
                y_pred="present",
                y_true="truth",
                metrics=list(METRICS.values()),
                chunk_number=1,
            )
            frame = self._frame(reference.scores)
            frame["truth"] = reference.truth.astype(int)
            try:
                self._estimator.fit(frame)
            except NannyMLException as error:
                raise TruthError(f"NannyML cannot calibrate: {error}") from error

    def _frame(self, scores: Floats) -> Any:
        import pandas

        return pandas.DataFrame({"score": scores, "present": (scores >= self._operating_point).astype(int)})

    def figures(self, scores: Floats) -> dict[str, Interval]:
        """The figures of these cases, whose truth is not looked at."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = self._estimator.estimate(self._frame(scores)).filter(period="analysis").to_df()
            except self._failure as error:
                raise TruthError(f"NannyML cannot estimate: {error}") from error
        return {
            ours: Interval(
                value=float(result[theirs, "value"].iloc[0]),
                low=float(result[theirs, "lower_confidence_boundary"].iloc[0]),
                high=float(result[theirs, "upper_confidence_boundary"].iloc[0]),
            )
            for ours, theirs in METRICS.items()
        }
