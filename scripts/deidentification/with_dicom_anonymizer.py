"""dicom-anonymizer, as its README shows, with its newest table (2026c). Run by ``scripts/benchmark_deidentify.py``."""

from __future__ import annotations

from functools import partial

from dicomanonymizer.simpledicomanonymizer import anonymize_dicom_file, initialize_actions
from stopwatch import run


def main() -> None:
    """Set up and run."""
    rules = partial(initialize_actions, "dicomfields_2026c")
    run(lambda source, target: anonymize_dicom_file(source, target, delete_private_tags=True, base_rules_gen=rules))


if __name__ == "__main__":
    main()
