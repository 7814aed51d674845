"""The card that comes with an imported network: read with everything that is missing said at once, or a template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from models.card import GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE, Card
from models.errors import ImportRefusedError

TO_DO = "TODO"
"""What a template says where somebody has to decide."""

_GOLDEN = {"score_tolerance": 0.002, "logit_tolerance": 0.02, "embedding_tolerance": 0.01}


def read_card(path: Path) -> Card:
    """A card that lacks only what the import adds: ``files``, ``opset``, and ``golden`` where it is not stated.

    Raises
    ------
    ImportRefusedError
        Names every field that is missing, invalid or still says TODO.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ImportRefusedError(f"{path}: no such card; --card-template FILE writes one to fill in") from error
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ImportRefusedError(f"{path} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(values, dict):
        raise ImportRefusedError(f"{path} is no card: a mapping of fields is expected")
    undecided = list(_undecided(values, ""))
    values["files"] = dict.fromkeys((MODEL_FILE, REFERENCE_FILE, GOLDEN_FILE), "")
    values["opset"] = 17
    values["golden"] = values.get("golden") or dict(_GOLDEN)
    problems = [f"{where}: still {TO_DO}" for where in undecided]
    card: Card | None = None
    try:
        card = Card.model_validate(values)
    except ValidationError as error:
        for entry in error.errors():
            where = ".".join(str(part) for part in entry["loc"]) or "card"
            if not any(each == where or each.startswith(f"{where}.") for each in undecided):
                problems.append(f"{where}: {'missing' if entry['type'] == 'missing' else entry['msg']}")
    if problems or card is None:
        lines = "\n  ".join(problems)
        raise ImportRefusedError(f"{path} lacks {len(problems)} things:\n  {lines}")
    return card


def _undecided(value: Any, where: str) -> list[str]:
    if isinstance(value, str):
        return [where] if TO_DO in value else []
    entries: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    return [found for key, each in entries for found in _undecided(each, f"{where}.{key}" if where else str(key))]


def template(*, label_count: int, activation: str, channels: int, rows: int, columns: int) -> str:
    """A card to fill in, with what the network itself says filled in already."""
    photometric = "RGB" if channels == 3 else "MONOCHROME2"
    labels = "\n".join(
        f"  - name: label_{place}\n    title: {TO_DO}\n"
        f"    code: {{value: {TO_DO}, scheme: SCT, meaning: {TO_DO}}}  # null where no finding sums it"
        for place in range(label_count)
    )
    todo_each = ", ".join([TO_DO] * channels)
    return f"""\
# Card of an imported model. Every TODO has to be decided; `gateway models import` lists what is left.
# docs/models.md says what each field means. files, opset and golden are filled in by the import.
name: {TO_DO}                  # lower case letters, digits, hyphens
version: 1
title: {TO_DO}
demonstration: true         # false only with a clinical validation
intended_use: {TO_DO}
limits:
  - {TO_DO}
modalities: [{TO_DO}]          # as in (0008,0060) Modality
labels:                     # in the order of the network's outputs
{labels}
activation: {activation}         # softmax, or sigmoid where labels do not exclude each other
findings:                   # a finding's score is the sum of the probabilities of its labels
  - name: {TO_DO}
    title: {TO_DO}
    labels: [label_{label_count - 1}]
    operating_point: {TO_DO}   # between 0 and 1, chosen on data that the network was not fitted on
    high_priority_from: null
    code: {{value: {TO_DO}, scheme: SCT, meaning: {TO_DO}}}
pixel_contract:             # has to be what the network was trained with
  photometric_interpretation: {photometric}
  channels: {channels}
  size: {{rows: {rows}, columns: {columns}}}
  crop: none                # or field_of_view: the bright disc of a fundus photograph
  intensity: eight_bit      # value / 255; or percentile
  mean: [{todo_each}]
  std: [{todo_each}]
  reason: {TO_DO}
quality: null               # limits of image statistics outside which a picture is ungradable
acquisition:                # what it was validated on; what is stated in neither is not judged
  values:
    manufacturer: []        # empty: none was validated
  ranges: {{}}
  severity: {{}}
training_data:
  - name: {TO_DO}
    source: {TO_DO}
    licence: {TO_DO}
    count: {TO_DO}
    split: {TO_DO}
    sha256: {TO_DO}
    dvc_hash: ""            # md5:<32 digits>.dir, see docs/models.md
metrics:
  - {{name: {TO_DO}, dataset: {TO_DO}, value: {TO_DO}, low: null, high: null, method: {TO_DO}}}
licence: {TO_DO}
algorithm_family: {{value: "123110", scheme: DCM, meaning: Artificial Intelligence}}
acceptance: null            # criteria, written before a comparison; without them it can never replace a champion
"""
