"""dentdeid, as its README shows: ``DeIdentifier(profile).run``; the third argument is the profile, or ``attributes``.

``attributes`` is its exported ``deidentify_dataset`` in the profile "research", without its look at pixels. No previews
are drawn. What it puts into quarantine counts as not written. Run by ``scripts/benchmark_deidentify.py``.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

import dentdeid
import pydicom
from dentdeid.dicom.meta import replace_file_meta
from stopwatch import run

KEY = hashlib.sha256(b"a key for this benchmark alone").digest()


def main() -> None:
    """Set up and run."""
    profile = sys.argv[3]
    if profile == "attributes":
        meta, pseudonyms = dentdeid.get_profile("research").meta, dentdeid.Pseudonymizer(KEY)

        def deidentify(source: str, target: str) -> None:
            dataset = pydicom.dcmread(source)
            dentdeid.deidentify_dataset(dataset, meta, pseudonyms, dentdeid.KnownIdentifiers())
            replace_file_meta(dataset, str(dataset.file_meta.TransferSyntaxUID))
            pydicom.dcmwrite(target, dataset, enforce_file_format=True)

        run(deidentify)
        return
    engine = dentdeid.DeIdentifier(dentdeid.get_profile(profile).with_(previews=False), key=KEY)

    def deidentify_file(source: str, target: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            engine.run([source], folder)
            for made in (Path(folder) / "clean").glob("*.dcm"):
                shutil.move(made, target)

    run(deidentify_file)


if __name__ == "__main__":
    main()
