"""deid, as its getting-started pages show: its own recipe, private attributes and sequences removed.

The recipe is the one that it ships, but for two rules: where that removes every UID, also those that say what an object
is, UIDs are replaced by its ``pydicom_uuid`` (stable, so that references hold), and patient ID and accession number are
replaced by hashes, which its pages leave to the user. Run by ``scripts/benchmark_deidentify.py``.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import deid
import pydicom
from deid.config import DeidRecipe
from deid.dicom import replace_identifiers
from stopwatch import run

UID_RULES = """REPLACE endswith:InstanceUID deid_func:pydicom_uuid
REPLACE contains:FrameOfReferenceUID deid_func:pydicom_uuid
REPLACE DeviceUID deid_func:pydicom_uuid
REPLACE InstanceCreatorUID deid_func:pydicom_uuid
REPLACE PatientID var:patient
REPLACE AccessionNumber var:accession
ADD PatientIdentityRemoved YES
"""


def recipe() -> DeidRecipe:
    """The shipped recipe with the rules above in place of those for UIDs and IDs."""
    text = (Path(deid.__file__).parent / "data" / "deid.dicom").read_text("utf-8")
    dropped = (
        "REMOVE contains:UID", "REMOVE PatientID", "REMOVE AccessionNumber", "REMOVE endswith:ID", "ADD ",
        "REMOVE jitter",
    )  # fmt: skip
    lines = [line for line in text.splitlines() if not line.startswith(dropped)]
    with tempfile.NamedTemporaryFile("w", suffix=".dicom", delete=False, encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n" + UID_RULES)
    return DeidRecipe(deid=file.name)


def main() -> None:
    """Set up and run."""
    rules = recipe()

    def pseudonym(value: str) -> str:
        return hashlib.sha256(f"a salt for this benchmark alone {value}".encode()).hexdigest()[:16]

    def deidentify(source: str, target: str) -> None:
        dataset = pydicom.dcmread(source)
        names = {
            "patient": pseudonym(str(dataset.get("PatientID"))),
            "accession": pseudonym(str(dataset.get("AccessionNumber"))),
        }
        made = replace_identifiers(
            [source], deid=rules, ids={source: names}, save=False, strip_sequences=True, remove_private=True
        )
        made[0].save_as(target)

    run(deidentify)


if __name__ == "__main__":
    main()
