"""Measure what the text cleaner keeps of useful descriptors, and which planted identifiers pass it.

Useful descriptors are those of pydicom's own test files and of the list in ``tests/gateway/test_text_cleaner.py``.
Names are all those of the US Census (88,799 surnames, 5,163 given names), planted once each as a name that stands
nowhere else in the object (the hard case: a referring physician in a description), once as the patient's own. Numbers,
dates, telephones, addresses are generated. Prints counts; nothing here runs in the gateway.
"""

from __future__ import annotations

import argparse
import calendar
import random
import re
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pydicom
from make_imaging_vocabulary import NAMES, fetch
from pydicom.data import get_testdata_files

from gateway.deidentification.text import TextCleaner

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from descriptors import USEFUL_DESCRIPTORS

DESCRIPTORS = ("StudyDescription", "SeriesDescription", "ProtocolName", "RequestedProcedureDescription")
SENTENCES = (
    "CHEST PA {}",
    "{} CT HEAD W/O CONTRAST",
    "MR BRAIN, {}, T1 AXIAL",
    "XR HAND LEFT 2 VIEWS FOR {}",
    "{}",
)


def surnames(path: Path) -> list[tuple[str, float]]:
    """Names with their share of the population in percent."""
    with tarfile.open(path) as archive:
        opened = archive.extractfile(f"names-{NAMES.version}/names/dist.all.last")
        assert opened is not None
        lines = [line.split() for line in opened.read().decode("ascii").splitlines()]
    return [(line[0], float(line[1])) for line in lines]


def given_names(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        members = [archive.extractfile(f"names-{NAMES.version}/names/dist.{sex}.first") for sex in ("female", "male")]
        return sorted({line.split()[0].decode() for opened in members if opened for line in opened})


def _phone(rng: random.Random) -> str:
    a, b, c = rng.randint(200, 989), rng.randint(200, 999), rng.randint(1000, 9999)
    return rng.choice(
        [f"({a}) {b}-{c}", f"+1 {a} {b} {c}", f"{a}-{b}-{c}", f"{a}.{b}.{c}", f"+49 {a} {b}{c}", f"0{a}/{b}{c}"]
    )


def _date(rng: random.Random) -> str:
    year, month, day = rng.randint(1920, 2026), rng.randint(1, 12), rng.randint(1, 28)
    name = calendar.month_abbr[month].upper()
    return rng.choice(
        [
            *(f"{year}{month:02}{day:02}", f"{day:02}.{month:02}.{year}", f"{month}/{day}/{year % 100:02}"),
            *(f"{day} {name} {year}", f"{name} {day}, {year}", f"{day}-{name}-{year % 100:02}", f"{year}-{month:02}"),
            *(f"{day:02} {month:02} {year % 100:02}", f"{day}.{month}.", f"{day}{name}{year}"),
        ]
    )


def _identifier(rng: random.Random) -> str:
    digits = "".join(rng.choices("0123456789", k=rng.randint(5, 12)))
    return rng.choice(
        [
            *(digits, f"MRN{digits}", f"{digits[:3]}-{digits[3:5]}-{digits[5:]}", f"A{digits}", f"#{digits[:6]}"),
            *(f"{digits[:2]} {digits[2:4]} {digits[4:]}", f"1.2.840.{digits}.{digits}", f"US{digits}X"),
        ]
    )


def _address(rng: random.Random) -> str:
    number = rng.randint(1, 9999)
    street = rng.choice(["Oak", "Maple", "Main", "Hill", "Church", "Lake", "Linden", "High", "Station", "Long"])
    kind = rng.choice(["Street", "St", "Rd.", "Avenue", "Lane", "Drive", "Weg", "Road Apt 4"])
    return f"{number} {street} {kind}"


def tokens_of(text: str) -> set[str]:
    """What must not survive: the words and numbers of a planted text, of three characters or more or with digits."""
    return {token for token in re.findall(r"[A-Z0-9]+", text.upper()) if len(token) > 2 or token.isdigit()}


def survivors(cleaner: TextCleaner, planted: str) -> bool:
    """Whether a word of a planted text is in a cleaned sentence where the sentence itself does not have it."""
    for sentence in SENTENCES:
        left = tokens_of(cleaner.clean(sentence.format(planted))) - tokens_of(sentence)
        if left & tokens_of(planted):
            return True
    return False


def count(planted: Iterator[str], cleaner: Callable[[str], TextCleaner]) -> tuple[int, list[str]]:
    """How many were planted, and which passed."""
    passed, number = [], 0
    for text in planted:
        number += 1
        if survivors(cleaner(text), text):
            passed.append(text)
    return number, passed


def report_kept(title: str, descriptors: Sequence[str]) -> None:
    cleaner = TextCleaner([])
    start = time.perf_counter()
    cleaned = [cleaner.clean(text) for text in descriptors]
    elapsed = time.perf_counter() - start
    whole = sum(text == kept for text, kept in zip(descriptors, cleaned, strict=True))
    words = [(word, kept) for text, kept in zip(descriptors, cleaned, strict=True) for word in re.findall(r"\w+", text)]
    stay = sum(word in re.findall(r"\w+", kept) for word, kept in words)
    print(
        f"{title}: {whole} of {len(descriptors)} kept whole, {stay} of {len(words)} words, "
        f"{elapsed / max(len(descriptors), 1) * 1e6:.0f} us a text"
    )
    for text, kept in zip(descriptors, cleaned, strict=True):
        if text != kept:
            print(f"    {text!r} -> {kept!r}")


def descriptors_of_test_files() -> list[str]:
    """Descriptors in pydicom's test files, without those that say who the files are from."""
    found: set[str] = set()
    for name in get_testdata_files("*"):
        try:
            dataset = pydicom.dcmread(name, stop_before_pixels=True, specific_tags=list(DESCRIPTORS))
            found.update(str(dataset.get(keyword, "") or "").strip() for keyword in DESCRIPTORS)
        except (pydicom.errors.InvalidDicomError, AttributeError, ValueError, OSError):
            continue
    return sorted(found - {""})


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the text cleaner.")
    parser.add_argument("--packages", type=Path, help="folder with the packages of names, instead of downloading them")
    parser.add_argument("--quick", action="store_true", help="one surname in fifty")
    arguments = parser.parse_args()
    report_kept("useful descriptors", USEFUL_DESCRIPTORS)
    report_kept("pydicom's test files", descriptors_of_test_files())
    with tempfile.TemporaryDirectory() as temporary:
        path = fetch(NAMES, arguments.packages or Path(temporary))
        of_families, given = surnames(path), given_names(path)
    step = 50 if arguments.quick else 1
    stranger = TextCleaner(["DOE^JANE", "MRN0012345"])
    number, passed = count((name for name, _ in of_families[::step]), lambda _: stranger)
    share = sum(percent for name, percent in of_families[::step] if name in set(passed))
    print(f"surnames of others: {len(passed)} of {number} pass, {share:.4f} % of the population: {passed[:200]}")
    number, passed = count(iter(given[::step]), lambda _: stranger)
    print(f"given names of others: {len(passed)} of {number} pass: {passed[:100]}")
    number, passed = count((name for name, _ in of_families[::step]), lambda name: TextCleaner([f"{name}^JANE"]))
    print(f"surnames of the object's own: {len(passed)} of {number} pass")
    rng = random.Random(4)
    for title, make in (
        ("telephones", _phone),
        ("dates", _date),
        ("identifiers", _identifier),
        ("addresses", _address),
    ):
        number, passed = count((make(rng) for _ in range(20_000 // step)), lambda _: stranger)
        print(f"{title}: {len(passed)} of {number} pass: {passed[:10]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
