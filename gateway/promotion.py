"""What a version must have shown before people may let it judge: each need that is not met, in one sentence."""

from __future__ import annotations

import hmac
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, RowMapping, select

from gateway.errors import LifecycleError
from gateway.store.models import KnownVersion, VersionState, find_version, version_in
from gateway.store.schema import comparison
from models.card import Acceptance, file_sha256, load_bundle
from models.errors import BundleError
from models.registry import bundle_sha256

REPORT_FILE = "report.json"
NUMBER_LIMITS = ("error_fraction", "latency_ratio", "disagreement_fraction")
"""Limits of a canary that are numbers; ``drift`` is yes or no, ``least_studies`` a count."""
LONGEST_DEVICES = 100


def fitting_traffic(
    *, fraction: float | None, devices: Sequence[str] = (), limits: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Which studies a canary gets, and when it ends by itself, as the store keeps it.

    Raises
    ------
    LifecycleError
        It gets none, the fraction is not above 0 and at most 1, or a limit is unknown or does not fit.
    """
    chosen = [device.strip() for device in devices if device.strip()]
    if fraction is None and not chosen:
        raise LifecycleError("a canary needs a fraction of the studies, or devices")
    if fraction is not None and not 0 < fraction <= 1:
        raise LifecycleError(f"a canary's fraction is above 0 and at most 1, not {fraction:g}")
    if len(chosen) > LONGEST_DEVICES:
        raise LifecycleError(f"a canary names at most {LONGEST_DEVICES} devices")
    traffic: dict[str, Any] = {} if fraction is None else {"fraction": fraction}
    if chosen:
        traffic["devices"] = list(dict.fromkeys(chosen))
    fitting = {name: _fitting_limit(name, value) for name, value in (limits or {}).items()}
    return traffic | ({"limits": fitting} if fitting else {})


def _fitting_limit(name: str, value: object) -> float | int | bool:
    if name == "drift":
        if isinstance(value, bool):
            return value
        raise LifecycleError("the limit drift is true or false")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise LifecycleError(f"the limit {name} is a number from 0 up")
    if name == "least_studies":
        return int(value)
    if name not in NUMBER_LIMITS:
        known = ", ".join((*NUMBER_LIMITS, "drift", "least_studies"))
        raise LifecycleError(f"a canary has no limit {name}; there are {known}")
    return float(value)


def unmet_needs(
    connection: Connection,
    *,
    data_dir: Path,
    model_name: str,
    version: int,
    to_state: VersionState,
    comparison_key: str | None,
    files: bool = True,
) -> tuple[str, ...]:
    """What `version` lacks to become canary or champion, one sentence each; none where it may.

    Parameters
    ----------
    files
        Also look at the bundle and the report on disk, which takes a moment: not while others wait for the store.

    Raises
    ------
    LifecycleError
        There is no such version.
    """
    known = find_version(connection, model_name, version)
    champion = version_in(connection, model_name, VersionState.CHAMPION)
    unmet = [*_of_seats(connection, known, champion, to_state)]
    acceptance: Acceptance | None = None
    if files:
        found = _acceptance(known)
        if isinstance(found, str):
            unmet.append(found)
        else:
            acceptance = found
            unmet.extend(_of_writing(known, acceptance))
    row = None
    if comparison_key:
        statement = select(comparison).where(comparison.c.comparison_key == comparison_key)
        row = connection.execute(statement).mappings().one_or_none()
    if row is None:
        champion_name = "the truth" if champion is None else f"the champion {_name(champion)}"
        named = f"there is no comparison {comparison_key}" if comparison_key else "it names no comparison"
        unmet.append(f"{named}; a report that holds {_name(known)} against {champion_name} is needed")
        return tuple(unmet)
    unmet.extend(_of_comparison(row, known, champion, acceptance))
    if files:
        unmet.extend(_of_report(row, data_dir))
    return tuple(unmet)


def _name(known: KnownVersion) -> str:
    return f"{known.model_name}@{known.version}"


def _of_seats(
    connection: Connection, known: KnownVersion, champion: KnownVersion | None, to_state: VersionState
) -> Iterator[str]:
    if to_state is VersionState.CANARY:
        if champion is None:
            yield f"{known.model_name} has no champion that a canary could stand beside"
        sitting = version_in(connection, known.model_name, VersionState.CANARY)
        if sitting is not None and sitting.version != known.version:
            yield f"{_name(sitting)} is the canary; end it first"


def _acceptance(known: KnownVersion) -> Acceptance | str:
    """The card's acceptance criteria, from a bundle that is the registered one; or why there are none."""
    folder = Path(known.folder)
    try:
        card = load_bundle(folder).card
        found = bundle_sha256(folder)
    except (BundleError, OSError):
        return f"the bundle of {_name(known)} cannot be read, or was changed"
    if found != known.bundle_sha256:
        return f"the bundle of {_name(known)} is not the one that was registered"
    return card.acceptance or f"the card of {_name(known)} states no acceptance criteria"


def _of_writing(known: KnownVersion, acceptance: Acceptance) -> Iterator[str]:
    # A date has no time zone: where the card was written, it may have been tomorrow already.
    if acceptance.written_at > known.registered_at.astimezone(UTC).date() + timedelta(days=1):
        yield (
            f"the card says that its acceptance criteria were written on {acceptance.written_at}, after it was "
            f"registered on {known.registered_at:%Y-%m-%d}"
        )


def _of_comparison(
    row: RowMapping, known: KnownVersion, champion: KnownVersion | None, acceptance: Acceptance | None
) -> Iterator[str]:
    key = row["comparison_key"]
    if (row["model_name"], row["version"]) != (known.model_name, known.version):
        yield f"comparison {key} is about {row['model_name']}@{row['version']}, not {_name(known)}"
        return
    if row["bundle_sha256"] != known.bundle_sha256:
        yield f"comparison {key} was made with other bytes than those registered as {_name(known)}"
    if row["created_at"] < known.registered_at:
        yield f"comparison {key} was made before {_name(known)} was registered with its criteria"
    if acceptance is not None and row["case_count"] < acceptance.least_cases:
        yield f"comparison {key} has {row['case_count']} cases, the card asks for {acceptance.least_cases}"
    yield from _of_baseline(row, champion)
    if row["verdict"] != "met":
        failed = _failed(row["verdicts"])
        yield f"comparison {key}: the acceptance criteria are {row['verdict']}{': ' + failed if failed else ''}"


def _of_baseline(row: RowMapping, champion: KnownVersion | None) -> Iterator[str]:
    key, version = row["comparison_key"], row["baseline_version"]
    if champion is None:
        return
    if version is None:
        yield f"comparison {key} holds it against the truth alone, not against the champion {_name(champion)}"
        return
    baseline = f"{row['baseline_name']}@{version}"
    if baseline != _name(champion):
        yield f"comparison {key} holds it against {baseline}, and the champion is {_name(champion)}"
    elif row["baseline_sha256"] != champion.bundle_sha256:
        yield f"comparison {key} was made with other bytes than those of the champion {_name(champion)}"


def _failed(verdicts: object) -> str:
    """Names of the criteria that were not passed, as far as the comparison says."""
    if not isinstance(verdicts, list):
        return ""
    names: list[str] = []
    for each in verdicts:
        if isinstance(each, dict) and each.get("passed") is not True:
            criterion = each.get("criterion")
            found = criterion.get("name") if isinstance(criterion, dict) else criterion or each.get("name")
            names.append(str(found))
    return ", ".join(names)


def _of_report(row: RowMapping, data_dir: Path) -> Iterator[str]:
    key = row["comparison_key"]
    path = (data_dir / row["folder"] / REPORT_FILE).resolve()
    if not path.is_relative_to(data_dir.resolve()):
        yield f"the report of comparison {key} does not lie in the data folder"
        return
    try:
        found = file_sha256(path)
    except OSError:
        yield f"the report of comparison {key} is gone ({REPORT_FILE})"
        return
    if not hmac.compare_digest(found, row["report_sha256"]):
        yield f"the report of comparison {key} was changed after it was made ({REPORT_FILE})"
