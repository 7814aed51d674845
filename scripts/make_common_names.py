"""Make the list of common names that the PHI audit knows: ``gateway/common_names.txt``.

The most frequent names of the US Census of 1990 (package `names`, MIT; the census is public domain), without words that
also stand in the standard's dictionaries in lower case or in ``imaging_terms.py``, so that HEAD or GRAY raise no alarm.

Run ``scripts/make_common_names.py`` to write, ``--check`` to compare, ``--packages FOLDER`` for what is there.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
import tempfile
from pathlib import Path

from imaging_terms import TERMS
from make_imaging_vocabulary import NAMES, fetch, word_set
from pydicom.datadict import DicomDictionary
from pydicom.sr._concepts_dict import concepts

TARGET = Path(__file__).resolve().parents[1] / "gateway" / "common_names.txt"
FREQUENT = {"dist.all.last": 1500, "dist.female.first": 700, "dist.male.first": 500}
SHORTEST = 3
VENDORS = word_set(
    "abbott acuson carl marconi francis king rainbow siemens zeiss art guy van de la del das pat may will"
)
"""Names that stand in names of manufacturers and models, or are words too common to be told from names."""


def dictionary_words() -> set[str]:
    meanings = [meaning for codes in concepts.values() for group in codes.values() for meaning, _ in group.values()]
    lower = {word for meaning in meanings for word in re.findall(r"\b[a-z]+\b", meaning)}
    attributes = {word.lower() for entry in DicomDictionary.values() for word in re.findall(r"[A-Za-z]+", entry[2])}
    return lower | attributes | {word for group in TERMS.values() for word in group.split()}


def make(folder: Path) -> str:
    """The content of the file: one name a line, sorted, in lower case."""
    names: set[str] = set()
    with tarfile.open(fetch(NAMES, folder)) as archive:
        for member, frequent in FREQUENT.items():
            opened = archive.extractfile(f"names-{NAMES.version}/names/{member}")
            assert opened is not None
            names.update(line.split()[0].decode("ascii").lower() for line in opened.read().splitlines()[:frequent])
    kept = sorted(name for name in names - dictionary_words() - VENDORS if len(name) >= SHORTEST)
    return "\n".join(["# Made by scripts/make_common_names.py from US Census names (public domain).", *kept, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the list of common names for the PHI audit.")
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    parser.add_argument("--packages", type=Path, help="folder with the package, instead of downloading it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = make(arguments.packages or Path(temporary))
    if arguments.check:
        same = TARGET.exists() and TARGET.read_text(encoding="utf-8") == made
        print("up to date" if same else f"{TARGET.name} differs from what would be written")
        return 0 if same else 1
    TARGET.write_text(made, encoding="utf-8")
    print(f"wrote {TARGET.name}: {made.count(chr(10)) - 1} names")
    return 0


if __name__ == "__main__":
    sys.exit(main())
