"""From kept scores to arrays: units of several images, what is left out, and how scores are kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset
from tiny_bundles import write_tiny_bundle

from gateway.comparison.report import count_cases
from gateway.comparison.scores import ScoreBook, ScoredCase, VersionScore
from gateway.comparison.truth_match import TruthBook, TruthWord
from gateway.comparison.units import gather
from gateway.comparison.versions import Pair, find_version
from gateway.saved.cases import Case


def scored(
    key: str,
    study: str,
    candidate: float | VersionScore,
    baseline: float | VersionScore,
    **slices: str,
) -> ScoredCase:
    def said(value: float | VersionScore) -> VersionScore:
        return value if isinstance(value, VersionScore) else VersionScore(scores={"there": value, "either": 1.0})

    return ScoredCase(
        case_key=key,
        case_sha256="0",
        study_key=study,
        group_key=study,
        frame_index=0,
        slices=slices,
        candidate=said(candidate),
        baseline=said(baseline),
    )


POOR = VersionScore(scores={"there": 0.99, "either": 1.0}, ungradable=("level 0.01 is below 0.05",))
FAILED = VersionScore(scores={}, failure="no pixels")
CASES = [
    scored("a", "s1", 0.2, 0.7, device="A", sex="F"),
    scored("b", "s1", 0.6, 0.1, device="B", sex="F"),
    scored("c", "s1", 0.1, POOR, device="A", sex="F"),
    scored("d", "s2", POOR, 0.4, device="A"),
    scored("e", "s3", FAILED, FAILED, device="A"),
    scored("f", "s4", 0.3, 0.3, device="A"),
]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    for version in (1, 2):
        write_tiny_bundle(tmp_path / str(version), version=version, limits=[f"{version}"])
    candidate, baseline = (find_version(str(tmp_path / name), None) for name in "21")
    return Pair(candidate=candidate, baseline=baseline)


@pytest.fixture
def book(tmp_path: Path) -> Iterator[ScoreBook]:
    book = ScoreBook(tmp_path / "work")
    book.write(0, 0, [(each.case_key, "0") for each in CASES], CASES)
    yield book
    book.close()


def words(kind: str, **values: str) -> TruthBook:
    truth = TruthBook(
        name="t",
        sha256="",
        words=tuple(
            TruthWord(
                line=2,
                keys={"study_key": study},
                kind=kind,  # type: ignore[arg-type]
                finding_name="there",
                value=value,
                laterality="",
                reader="",
                read_at=None,
            )
            for study, value in values.items()
        ),
    )
    for each in CASES:
        truth.meet(
            Case(
                case_key=each.case_key,
                study_key=each.study_key,
                group_key=each.group_key,
                frame_index=0,
                slices=each.slices,
                identifiers={"study_key": each.study_key},
                reader=Dataset,
            )
        )
    return truth


def test_without_truth_each_image_is_a_unit(book: ScoreBook, pair: Pair) -> None:
    found = gather(book, pair, pair.findings[0], None)
    assert found.cases is not None and found.cases.baseline_scores is not None
    assert found.cases.case_keys.tolist() == ["a", "b", "f"]
    assert found.cases.scores.tolist() == [0.2, 0.6, 0.3]
    assert found.cases.baseline_scores.tolist() == [0.7, 0.1, 0.3]
    assert found.left_out == {
        "no score of either version": {"unknown": 1},
        "ungradable to the baseline": {"unknown": 1},
        "ungradable to the candidate": {"unknown": 1},
    }
    assert found.unknown == {"no truth was given": 3}


def test_a_study_counts_with_its_highest_gradable_score(book: ScoreBook, pair: Pair) -> None:
    found = gather(book, pair, pair.findings[0], words("study", s1="present", s2="absent", s4="absent"))
    assert found.kind == "study"
    assert found.cases is not None and found.cases.baseline_scores is not None
    assert found.cases.case_keys.tolist() == ["s1", "s4"]
    assert found.cases.scores.tolist() == [0.6, 0.3]
    assert found.cases.baseline_scores.tolist() == [0.7, 0.3]
    assert found.cases.truth.tolist() == [1, 0]
    assert found.cases.slices["device"].tolist() == ["several", "A"]
    assert found.cases.slices["sex"].tolist() == ["F", ""]
    assert found.top_case["s1"] == "b"
    assert found.left_out == {
        "no score of either version": {"unknown": 1},
        "ungradable to the candidate": {"absent": 1},
    }


def test_what_failed_and_was_too_poor_is_counted_by_version(book: ScoreBook, pair: Pair) -> None:
    counts = count_cases(book, pair)
    assert (counts.cases, counts.studies, counts.persons) == (6, 4, 4)
    assert counts.failed == {"candidate": {"no pixels": 1}, "baseline": {"no pixels": 1}}
    assert counts.ungradable == {"candidate": {"level is below 0.05": 1}, "baseline": {"level is below 0.05": 1}}


def test_a_chunk_is_done_for_the_same_files_alone(book: ScoreBook) -> None:
    same = [(each.case_key, "0") for each in CASES]
    assert book.is_done(0, same)
    assert not book.is_done(0, [("a", "1"), *same[1:]])
    assert not book.is_done(0, same[:-1])
    assert not book.is_done(1, same)
    assert [each for _, each in book.rows()] == CASES
    book.end(0)
    assert list(book.rows()) == []
