"""The estimate where no truth is known: against NannyML itself, under shifts that it survives, and one it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from gateway import estimate as estimates
from gateway.estimate import EstimateState, Labelled, bundle_labels, check_estimate, estimate

pytest.importorskip("nannyml", reason="NannyML is not installed (extra: estimate)")

OPERATING_POINT = 0.4


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def drawn(seed: int, count: int, *, positive_share: float = 0.3, noise: float = 0.0) -> Labelled:
    """Cases of a model whose score says how likely the finding is.

    A score is drawn from one of two shapes, and the truth by the score: `positive_share` changes how many pictures look
    suspicious and not what a look means. `noise` then blurs the picture: the score moves, and the truth stays.
    """
    random = np.random.default_rng(seed)
    suspicious = random.random(count) < positive_share
    likely = np.where(suspicious, random.beta(6, 2, count), random.beta(1.5, 8, count))
    truth = (random.random(count) < likely).astype(np.int8)
    logits = np.log(likely / (1 - likely)) + noise * random.normal(size=count)
    return Labelled(scores=sigmoid(logits), truth=truth)


def test_figures_are_nannymls() -> None:
    reference, later = drawn(1, 600), drawn(2, 400)
    made = estimate(reference=reference, check=later, unknown=later.scores, operating_point=OPERATING_POINT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nannyml
        import pandas

        estimator = nannyml.CBPE(
            problem_type="classification_binary",
            y_pred_proba="p",
            y_pred="d",
            y_true="y",
            metrics=["specificity", "roc_auc", "recall"],
            chunk_number=1,
        )
        table = pandas.DataFrame(
            {"p": reference.scores, "d": reference.scores >= OPERATING_POINT, "y": reference.truth}
        )
        estimator.fit(table.astype({"d": int, "y": int}))
        table = pandas.DataFrame({"p": later.scores, "d": (later.scores >= OPERATING_POINT).astype(int)})
        wanted = estimator.estimate(table).filter(period="analysis").to_df().iloc[0]
    assert made.figures is not None
    for ours, theirs in (("auc_roc", "roc_auc"), ("sensitivity", "recall"), ("specificity", "specificity")):
        found = made.figures[ours]
        assert found.value == pytest.approx(wanted[theirs, "value"], abs=1e-12)
        assert found.low == pytest.approx(wanted[theirs, "lower_confidence_boundary"], abs=1e-12)
        assert found.high == pytest.approx(wanted[theirs, "upper_confidence_boundary"], abs=1e-12)
        assert found.low < found.value < found.high


@pytest.mark.parametrize("positive_share", [0.3, 0.1, 0.7])
def test_it_is_near_where_the_mix_of_cases_changes(positive_share: float) -> None:
    today = drawn(4, 2000, positive_share=positive_share)
    made = estimate(
        reference=drawn(3, 1500), check=drawn(5, 500), unknown=today.scores, operating_point=OPERATING_POINT
    )
    assert made.state is EstimateState.CHECKED, made.reasons
    assert made.figures is not None
    decisions = today.scores >= OPERATING_POINT
    assert made.figures["auc_roc"].value == pytest.approx(roc_auc_score(today.truth, today.scores), abs=0.03)
    assert made.figures["sensitivity"].value == pytest.approx(recall_score(today.truth, decisions), abs=0.05)
    specificity = recall_score(today.truth, decisions, pos_label=0)
    assert made.figures["specificity"].value == pytest.approx(specificity, abs=0.05)


def test_it_is_confidently_wrong_under_noise_and_its_check_says_so() -> None:
    noisy = drawn(7, 1000, noise=3)
    realised = roc_auc_score(noisy.truth, noisy.scores)
    made = estimate(reference=drawn(6, 1500), check=noisy, unknown=noisy.scores, operating_point=OPERATING_POINT)
    assert made.state is EstimateState.NOT_TO_BE_TRUSTED
    assert made.figures is not None and made.check is not None
    assert made.figures["auc_roc"].low > realised + 0.05  # confident, and wrong
    checked = made.check["auc_roc"]
    assert checked.realised == pytest.approx(realised)
    assert checked.error == pytest.approx(made.figures["auc_roc"].value - realised)
    assert not checked.covered and not checked.passed
    assert any(reason.startswith("its check failed: AUC was") for reason in made.reasons)


def test_the_check_holds_estimates_against_scikit_learn() -> None:
    check = drawn(8, 300)
    made = estimate(reference=drawn(9, 300), check=check, unknown=check.scores[:100], operating_point=OPERATING_POINT)
    assert made.check is not None
    decisions = check.scores >= OPERATING_POINT
    assert made.check["auc_roc"].realised == roc_auc_score(check.truth, check.scores)
    assert made.check["sensitivity"].realised == recall_score(check.truth, decisions)
    assert made.check["specificity"].realised == recall_score(check.truth, decisions, pos_label=0)
    far = {name: estimates.Interval(value=0.2, low=0.0, high=1.0) for name in estimates.METRICS}
    assert not any(figure.passed for figure in check_estimate(far, check, OPERATING_POINT).values())


@pytest.mark.parametrize(
    ("reference", "check", "unknown", "state", "said"),
    [
        (None, None, 100, "not estimated", "calibration needs 100 cases with truth"),
        (99, 100, 100, "not estimated", "there are 99"),
        (400, 49, 100, "not to be trusted", "not checked"),
        (400, None, 100, "not to be trusted", "there are none"),
        (400, 200, 29, "not estimated", "29 cases without truth"),
    ],
)
def test_too_little_is_said(reference: int | None, check: int | None, unknown: int, state: str, said: str) -> None:
    made = estimate(
        reference=None if reference is None else drawn(10, reference),
        check=None if check is None else drawn(11, check),
        unknown=drawn(12, unknown).scores,
        operating_point=OPERATING_POINT,
    )
    assert made.state == state
    assert said in " ".join(made.reasons)


def test_one_side_alone_is_too_little() -> None:
    scores = drawn(13, 400).scores
    nobody = Labelled(scores=scores, truth=np.zeros(400, dtype=np.int8))
    made = estimate(reference=nobody, check=nobody, unknown=scores, operating_point=OPERATING_POINT)
    assert made.state is EstimateState.NOT_ESTIMATED
    assert "0 of the rarer side" in made.reasons[0]


def test_a_bundles_reference_set_with_truth_calibrates(tmp_path: Path) -> None:
    scores = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=np.float32)
    names = np.array(["other", "referable"])
    np.savez(tmp_path / "reference.npz", scores=scores, finding_names=names)
    assert bundle_labels(tmp_path, "referable") is None
    truth = np.array([[0, 1], [0, -1], [1, 0]], dtype=np.int8)
    np.savez(tmp_path / "reference.npz", scores=scores, finding_names=names, truth=truth)
    found = bundle_labels(tmp_path, "referable")
    assert found is not None
    assert found.scores == pytest.approx([0.2, 0.6])
    assert found.truth.tolist() == [1, 0]
    assert bundle_labels(tmp_path, "absent") is None
    assert bundle_labels(None, "referable") is None


def test_nothing_is_told_to_anybody() -> None:
    """Every connection is refused and counted, in a process of its own with NannyML's logging not switched off."""
    program = """
import socket
tried = []
def refuse(self, address):
    tried.append(address)
    raise OSError("refused")
socket.socket.connect = refuse
import numpy as np
from gateway.estimate import Labelled, estimate
random = np.random.default_rng(0)
scores = random.random(300)
cases = Labelled(scores=scores, truth=(random.random(300) < scores).astype(np.int8))
made = estimate(reference=cases, check=cases, unknown=scores, operating_point=0.5)
assert made.figures, made
print(tried)
"""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NML_DISABLE_USAGE_LOGGING", "DO_NOT_TRACK")
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
