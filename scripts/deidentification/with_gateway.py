"""This engine, in the profile that the third argument names. Run by ``scripts/benchmark_deidentify.py``."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from pydicom import dcmread, dcmwrite
from stopwatch import run

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from gateway.deidentification.options import DeidentificationProfile, Option
from gateway.deidentify import Deidentifier

PROFILES = {
    "default": DeidentificationProfile(),
    "midi": DeidentificationProfile(
        options=frozenset(
            [
                Option.RETAIN_DEVICE_IDENTITY,
                Option.RETAIN_PATIENT_CHARACTERISTICS,
                Option.RETAIN_LONGITUDINAL_MODIFIED_DATES,
                Option.CLEAN_DESCRIPTORS,
                Option.CLEAN_STRUCTURED_CONTENT,
                Option.CLEAN_PIXEL_DATA,
            ]
        )
    ),
}


def main() -> None:
    """Set up and run."""
    profile = PROFILES[sys.argv[3]]
    finder = None
    if Option.CLEAN_PIXEL_DATA in profile.options:
        from gateway.deidentification.burned_in_text import NetworkTextFinder

        finder = NetworkTextFinder()
    engine = Deidentifier(hashlib.sha256(b"a key for this benchmark alone").digest(), profile, text_finder=finder)

    def deidentify(source: str, target: str) -> None:
        dcmwrite(target, engine.dataset(dcmread(source)), enforce_file_format=True)

    run(deidentify)


if __name__ == "__main__":
    main()
