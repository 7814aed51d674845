"""Which version judges a study, and which run beside it.

A canary gets the studies of chosen devices, and a fraction of the others: by a keyed hash of the study's key, so that
every worker decides alike, also at a second judgement, and nobody who sends can choose.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from gateway.breaker import Breakers
from gateway.judgement import Role
from models.session import ModelSession

_BITS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """The versions of one model that run beside its champion."""

    canary: ModelSession | None = None
    traffic: Mapping[str, Any] = field(default_factory=dict)
    """Of the canary: ``fraction`` of studies, ``devices`` (keys; ``*`` and ``?`` stand for any characters)."""
    shadow: ModelSession | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """Who judges one study for one model, and who runs beside, unseen."""

    judge: ModelSession
    role: Role
    companions: tuple[ModelSession, ...]
    skipped: str = ""
    """Why the canary that should have judged does not."""

    @property
    def model_name(self) -> str:
        """Of all of them."""
        return self.judge.bundle.card.name


def study_share(key: bytes, *, model_name: str, version: int, study_key: str) -> float:
    """A number in 0 to 1 that looks drawn at random, and is the same for the same study and version.

    Parameters
    ----------
    key
        The site's; what is used is derived from it for this purpose alone.
    """
    own = hmac.digest(key, b"gateway canary", "sha256")
    drawn = hmac.digest(own, f"{model_name}\0{version}\0{study_key}".encode(), "sha256")
    return int.from_bytes(drawn[: _BITS // 8], "big") / 2.0**_BITS


def gets_canary(
    traffic: Mapping[str, Any], key: bytes, *, model_name: str, version: int, study_key: str, devices: Iterable[str]
) -> bool:
    """Whether the canary judges that study; `devices` are the keys of those that made its images."""
    chosen: list[str] = list(traffic.get("devices") or ())
    patterns = [pattern.replace("[", "[[]") for pattern in chosen]  # only * and ? are: names of devices hold brackets
    if any(fnmatchcase(device, pattern) for device in devices for pattern in patterns):
        return True
    share = study_share(key, model_name=model_name, version=version, study_key=study_key)
    return share < float(traffic.get("fraction") or 0.0)


def assign(
    champion: ModelSession,
    beside: Beside | None,
    breakers: Breakers,
    key: bytes,
    *,
    study_key: str,
    devices: Iterable[str],
) -> Assignment:
    """Who judges a study; in a canary's study the champion runs as its shadow, so that the two can be compared."""
    if beside is None:
        return Assignment(judge=champion, role=Role.CHAMPION, companions=())
    shadows = () if beside.shadow is None else (beside.shadow,)
    by_champion = Assignment(judge=champion, role=Role.CHAMPION, companions=shadows)
    if beside.canary is None:
        return by_champion
    card = beside.canary.bundle.card
    name, version = card.name, card.version
    if not gets_canary(beside.traffic, key, model_name=name, version=version, study_key=study_key, devices=devices):
        return by_champion
    breaker = breakers.of(name, version)
    if not breaker.is_closed:
        reason = paused_words(breaker.reason)
        return Assignment(judge=champion, role=Role.CHAMPION, companions=shadows, skipped=reason)
    return Assignment(judge=beside.canary, role=Role.CANARY, companions=(champion, *shadows))


def paused_words(reason: str) -> str:
    """Why a version is not asked."""
    return f"circuit breaker open ({reason})" if reason else "circuit breaker open"
