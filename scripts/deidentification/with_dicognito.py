"""dicognito, as its README shows: one ``Anonymizer`` for all objects. Run by ``scripts/benchmark_deidentify.py``."""

from __future__ import annotations

import pydicom
from dicognito.anonymizer import Anonymizer
from stopwatch import run


def main() -> None:
    """Set up and run."""
    anonymizer = Anonymizer(seed="a seed for this benchmark alone")

    def deidentify(source: str, target: str) -> None:
        with pydicom.dcmread(source) as dataset:
            anonymizer.anonymize(dataset)
            dataset.save_as(target)

    run(deidentify)


if __name__ == "__main__":
    main()
