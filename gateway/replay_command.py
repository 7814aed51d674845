"""``gateway studies replay``: make a prediction again from its record, and say whether it is the same."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.replay import Report
    from gateway.settings import Settings
    from gateway.store import Store

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]
SAME, DIFFERS, GONE = 0, 1, 3
_EPILOG = """exit status: 0 every prediction came out the same; 1 one did not, or nothing has that key; 3 one could
not be made again, since its input or its bundle is gone"""


def add_replay_step(steps: Any, open_site: OpenSite) -> None:
    """Add ``replay`` to the steps of ``studies``."""
    replay = steps.add_parser(
        "replay", help="run the same bundle on the same input again; say whether it gives the same", epilog=_EPILOG
    )
    replay.add_argument(
        "key", metavar="KEY", help="of a study, a result or a saved study, or a result's SOP Instance UID"
    )
    replay.add_argument("--json", action="store_true", help="for machines", default=argparse.SUPPRESS)
    # Without defaults, which would undo what was given before the step.
    replay.add_argument("--data-dir", type=Path, metavar="DIR", default=argparse.SUPPRESS)
    replay.add_argument("--config", type=Path, metavar="FILE", default=argparse.SUPPRESS)
    replay.set_defaults(run=lambda options: _replay(options, open_site))


def _replay(options: argparse.Namespace, open_site: OpenSite) -> int:
    from gateway.replay import Outcome, replay

    settings, data_dir, store = open_site(options)
    try:
        report = replay(options.key, settings=settings, data_dir=data_dir, store=store)
    finally:
        store.close()
    print(json.dumps(report.as_json(), indent=2) if options.json else "\n".join(_lines(report)))
    return {Outcome.SAME: SAME, Outcome.DIFFERS: DIFFERS, Outcome.GONE: GONE}[report.outcome]


def _lines(report: Report) -> list[str]:
    """For a person."""
    lines = [f"study {report.study_key}: {report.outcome}"]
    for each in report.predictions:
        said = each.recorded
        lines.append(
            f"  image {said.instance_key} frame {said.frame_index}, {said.model_name} {said.model_version} "
            f"({said.role}, {said.judged_at:%Y-%m-%d %H:%M:%S} UTC): {each.outcome}"
        )
        if each.gone:
            lines.append(f"    {each.gone}")
            continue
        if each.score_difference is not None:
            lines.append(
                f"    from {each.source}; largest difference of a score {each.score_difference:.2g}"
                f"{', bit for bit the same' if each.identical else ''}"
            )
        lines += [
            f"    {difference.what} was {difference.then}, is {difference.now}" for difference in each.differences
        ]
    lines.append(f"the same: every decision as it was, and no score off by more than {report.tolerance:g}")
    return lines
