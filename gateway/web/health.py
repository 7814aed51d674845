"""Is the gateway well? Every expected process has given a sign of life lately, and the store answers."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gateway.errors import StoreError
from gateway.settings import Settings
from gateway.store import Store
from gateway.store.monitoring import processes

PATIENCE_S = 15.0
"""Processes report every 5 s."""
LONG_PATIENCE_S = 60.0
"""Workers, monitor, housekeeper and saver report between two pieces of work, which may take longer."""


def expected_processes(settings: Settings) -> frozenset[str]:
    """Names of the processes that must run; workers as set, and at least one where the machine decides."""
    workers = max(1, settings.worker.count)
    return frozenset(
        {
            "housekeeper",
            "monitor",
            "sender",
            "web",
            *(("saver",) if settings.saving else ()),
            *(f"receiver-{number}" for number in range(settings.dicom.receivers)),
            *(f"worker-{number}" for number in range(workers)),
        }
    )


def is_up(name: str, seen_at: datetime, now: datetime) -> bool:
    """Whether a process that was last seen then is taken to be alive."""
    patience_s = LONG_PATIENCE_S if name.startswith(("worker", "monitor", "housekeeper", "saver")) else PATIENCE_S
    return (now - seen_at).total_seconds() <= patience_s


def judge_health(settings: Settings, store: Store, now: datetime | None = None) -> dict[str, Any]:
    """``status`` (``ok``, ``degraded`` or ``failing``), ``processes``, ``problems``; never raises.

    ``degraded``: all processes run, and a version that should judge is left alone by its circuit breaker or does not
    load.
    """
    now = now or datetime.now(UTC)
    try:
        known = {row["name"]: row for row in processes(store)}
    except StoreError as error:
        return {"status": "failing", "processes": [], "problems": [str(error)]}
    problems = [f"{name} has not reported yet" for name in sorted(expected_processes(settings) - known.keys())]
    for name, row in known.items():
        if not is_up(name, row["seen_at"], now):
            problems.append(f"{name} was last seen {(now - row['seen_at']).total_seconds():.0f} s ago")
    degraded = [
        problem for row in known.values() if is_up(row["name"], row["seen_at"], now) for problem in _unserved(row)
    ]
    return {
        "status": "failing" if problems else "degraded" if degraded else "ok",
        "processes": [
            {
                "name": name,
                "pid": row["pid"],
                "up": is_up(name, row["seen_at"], now),
                "started_at": row["started_at"].isoformat(),
                "seen_at": row["seen_at"].isoformat(),
                "detail": row["detail"],
            }
            for name, row in known.items()
        ],
        "problems": problems + degraded,
    }


def _unserved(row: Mapping[str, Any]) -> list[str]:
    """What a worker says of versions that should judge and do not; a shadow's troubles are no one else's."""
    broken = row["detail"].get("broken", {})
    found = []
    for each in row["detail"].get("breakers", ()):
        version = f"{each['model']} {each['version']}"
        if each["role"] == "shadow":
            continue
        if version in broken:
            found.append(f"{row['name']} cannot load {version}")
        elif each["state"] != "closed":
            found.append(f"{row['name']} leaves {version} alone after failures: circuit breaker {each['state']}")
    return found
