"""Whether a judged study is worth keeping, by a site's rules. Values in, a reason out."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate

from gateway.settings import SavingRule
from gateway.store.saved import JudgedFrame, JudgedStudy

Alarms = frozenset[tuple[str, int, str]]
"""Model, version and scope of alarms that are open."""
ALL_DEVICES = "all"
"""As ``drift.monitors.ALL_DEVICES``."""


def why_saved(rule: SavingRule, study: JudgedStudy, alarms: Alarms, share: float) -> str | None:
    """Why a rule keeps a study, in words; ``None`` where it does not.

    Parameters
    ----------
    share
        Where the study lies among all, 0 to 1, by a keyed hash: those below the rule's fraction are kept.
    """
    frames = [frame for frame in study.frames if _concerns(rule, frame)]
    if not frames or share >= rule.fraction:
        return None
    found = [name for name in rule.only if _MATTERS[name](frames, study, alarms)]
    if rule.only and not found:
        return None
    return ", ".join(found) or (f"{rule.fraction:g} of all" if rule.fraction < 1 else "all")


def _concerns(rule: SavingRule, frame: JudgedFrame) -> bool:
    said = frame.prediction
    if rule.models and said.model_name not in rule.models:
        return False
    if rule.devices and not any(_fits(pattern, said.device_key) for pattern in rule.devices):
        return False
    verdicts = frame.verdicts
    return not rule.findings or any(
        verdicts.get(name) == verdict for name, _, verdict in (each.partition(":") for each in rule.findings)
    )


def _fits(pattern: str, text: str) -> bool:
    """Only * and ? are patterns: device names hold brackets."""
    return re.match(translate(pattern.replace("[", "[[]").casefold()), text.casefold()) is not None


def _disagree(frames: Sequence[JudgedFrame], study: JudgedStudy, _: Alarms) -> bool:
    """Two versions of one model decide otherwise on one frame; one of them is among `frames`."""
    wanted = {(frame.instance_key, frame.frame_index, frame.prediction.model_name) for frame in frames}
    verdicts: dict[tuple[str, int, str, str], set[str]] = defaultdict(set)
    for frame in study.frames:
        place = (frame.instance_key, frame.frame_index, frame.prediction.model_name)
        if place in wanted:
            for name, verdict in frame.verdicts.items():
                verdicts[(*place, name)].add(verdict)
    return any(len(said) > 1 for said in verdicts.values())


def _is_ungradable(frames: Sequence[JudgedFrame], _: JudgedStudy, __: Alarms) -> bool:
    return any(frame.prediction.is_ungradable for frame in frames)


def _has_acquisition_findings(frames: Sequence[JudgedFrame], _: JudgedStudy, __: Alarms) -> bool:
    return any(frame.prediction.content["acquisition_findings"] for frame in frames)


def _is_alarmed(frames: Sequence[JudgedFrame], _: JudgedStudy, alarms: Alarms) -> bool:
    said = {(each.prediction.model_name, each.prediction.model_version, each.prediction.device_key) for each in frames}
    return any((name, version, scope) in alarms for name, version, key in said for scope in (ALL_DEVICES, key))


_MATTERS: Mapping[str, Callable[[Sequence[JudgedFrame], JudgedStudy, Alarms], bool]] = {
    "disagreement": _disagree,
    "ungradable": _is_ungradable,
    "acquisition": _has_acquisition_findings,
    "alarm": _is_alarmed,
}
