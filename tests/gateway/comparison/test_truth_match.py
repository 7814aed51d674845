"""Which word is about which case, and what holds where readers differ. No images, no models."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydicom import Dataset

from gateway.comparison.truth_match import Kind, TruthBook, TruthWord
from gateway.errors import TruthError
from gateway.saved.cases import Case

PRESENT, ABSENT, UNKNOWN = 1, 0, -1


def case(key: str, study: str = "s1", laterality: str = "", **identifiers: str) -> Case:
    return Case(
        case_key=f"{key}-0",
        study_key=study,
        group_key=study,
        frame_index=0,
        slices={"laterality": laterality},
        identifiers={"study_key": study, **identifiers},
        reader=Dataset,
    )


def word(value: str = "present", *, kind: Kind = "image", line: int = 2, **said: object) -> TruthWord:
    values: dict[str, object] = {"laterality": "", "reader": "ada", "read_at": None, "finding_name": "dr"} | said
    return TruthWord(line=line, kind=kind, value=value, **values)  # type: ignore[arg-type]


def book(*words: TruthWord) -> TruthBook:
    return TruthBook(name="reads.csv", sha256="", words=words)


def met(truth: TruthBook, *cases: Case) -> TruthBook:
    for each in cases:
        truth.meet(each)
    return truth


@pytest.mark.parametrize("file", ["a/one.dcm", "one.dcm"])
def test_a_file_goes_by_its_path_and_by_its_name(file: str) -> None:
    truth = met(book(word(keys={"file": file})), case("k1", file="a/one.dcm"), case("k2", file="a/two.dcm"))
    assert truth.matched == 1
    assert truth.truth("image", "k1-0", "dr") == (PRESENT, "")
    assert truth.truth("image", "k2-0", "dr")[0] == UNKNOWN


def test_a_file_name_that_fits_two_files_is_refused() -> None:
    truth = met(book(word(keys={"file": "one.dcm"}, line=7)), case("k1", file="a/one.dcm"))
    with pytest.raises(TruthError, match=r"reads.csv, line 7: the file name fits several files"):
        truth.meet(case("k2", file="b/one.dcm"))


def test_the_gateways_own_file_name_is_known() -> None:
    truth = met(book(word(keys={"file": "abc.dcm"})), case("abc", file="saved/0001.dcm", instance_key="abc"))
    assert truth.truth("image", "abc-0", "dr")[0] == PRESENT


def test_all_that_identifies_must_fit() -> None:
    keys = {"accession_number": "A1", "study_instance_uid": "1.2"}
    truth = book(word(keys=keys, kind="study"))
    met(truth, case("k1", "s1", accession_number="A1", study_instance_uid="1.2"))
    met(truth, case("k2", "s2", accession_number="A1", study_instance_uid="1.3"))
    assert truth.truth("study", "s1", "dr")[0] == PRESENT
    assert truth.truth("study", "s2", "dr")[0] == UNKNOWN


def test_a_word_about_one_side_is_not_about_the_other() -> None:
    truth = book(word(keys={"study_key": "s1"}, kind="side", laterality="R"))
    met(truth, case("k1", laterality="R"), case("k2", laterality="L"))
    assert truth.kind == "side"
    assert truth.truth("side", "s1-R", "dr")[0] == PRESENT
    assert truth.truth("side", "s1-L", "dr")[0] == UNKNOWN


def test_the_unit_is_what_most_words_are_about() -> None:
    truth = book(
        word(keys={"study_key": "s1"}, kind="study"),
        word(keys={"study_key": "s2"}, kind="study"),
        word(keys={"file": "one.dcm"}),
    )
    assert truth.kind == "image"  # nothing was met yet
    met(truth, case("k1", "s1", file="one.dcm"), case("k2", "s2", file="two.dcm"))
    assert truth.kind == "study"


def test_the_majority_of_readers_counts_and_of_each_the_newest_word() -> None:
    early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    said = [
        word("present", keys={"file": "f"}, reader="ada", read_at=late),
        word("absent", keys={"file": "f"}, reader="ada", read_at=early),
        word("present", keys={"file": "f"}, reader="bob"),
        word("absent", keys={"file": "f"}, reader="eve"),
    ]
    assert met(book(*said), case("k", file="f")).truth("image", "k-0", "dr") == (PRESENT, "")
    assert met(book(*said[1:]), case("k", file="f")).truth("image", "k-0", "dr") == (ABSENT, "")
    assert met(book(*said[2:]), case("k", file="f")).truth("image", "k-0", "dr") == (UNKNOWN, "readers differ")


def test_the_rule_of_the_site_decides_where_readers_differ() -> None:
    early, late = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC)
    said = [
        word("present", keys={"file": "f"}, reader="ada", read_at=early),
        word("present", keys={"file": "f"}, reader="bob", read_at=early),
        word("absent", keys={"file": "f"}, reader="eve", read_at=late),
    ]
    truth = met(book(*said), case("k", file="f"))
    expected = [("majority", (), PRESENT), ("latest", (), ABSENT), ("adjudicator", ("eve",), ABSENT)]
    for rule, adjudicators, value in expected:
        truth.rule, truth.adjudicators = rule, frozenset(adjudicators)  # type: ignore[assignment]
        assert truth.truth("image", "k-0", "dr") == (value, "")
    truth.rule, truth.adjudicators = "adjudicator", frozenset({"kim"})
    assert truth.truth("image", "k-0", "dr") == (UNKNOWN, "readers differ")


def test_what_readers_could_not_tell_is_unknown() -> None:
    truth = met(book(word("ungradable", keys={"file": "f"})), case("k", file="f"))
    assert truth.truth("image", "k-0", "dr") == (UNKNOWN, "ungradable to the readers")
    assert truth.truth("image", "k-0", "another")[1] == "nobody has read it"
