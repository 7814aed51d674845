"""Versions of a tiny model with acceptance criteria, a comparison that meets them, and people who may decide."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from argon2 import PasswordHasher
from sqlalchemy import insert
from tiny_bundles import tiny_card, tiny_golden, tiny_graph, tiny_reference

from gateway import lifecycle, model_requests
from gateway.accounts import Accounts
from gateway.lifecycle import Action
from gateway.model_record import RecordKey, load_record_key, recording
from gateway.roles import Role
from gateway.settings import load_settings
from gateway.store import Store
from gateway.store.accounts import Doer
from gateway.store.intake import new_key
from gateway.store.models import Request, VersionState, known_versions
from gateway.store.schema import comparison, model_record
from models.card import CARD_FILE, GOLDEN_FILE, MODEL_FILE, REFERENCE_FILE, Bundle, file_sha256, load_bundle
from models.registry import bundle_sha256

NOW = datetime(2026, 1, 5, 12, tzinfo=UTC)
NAME = "tiny"
PASSWORD = "correct horse battery"
BY = Doer(actor="test")
ACCEPTANCE = {
    "written_at": "2026-01-04",
    "written_by": "Ada",
    "studies": "the test images",
    "least_cases": 10,
    "criteria": [{"name": "no worse", "finding": "there", "metric": "auc_roc", "minimum": 0.7}],
}


def write_bundle(folder: Path, version: int, *, name: str = NAME, acceptance: Mapping[str, Any] | None) -> Bundle:
    """A whole bundle on disk."""
    folder.mkdir(parents=True)
    (folder / MODEL_FILE).write_bytes(tiny_graph().SerializeToString())
    np.savez(folder / REFERENCE_FILE, **tiny_reference())
    np.savez(folder / GOLDEN_FILE, **tiny_golden())
    card = tiny_card(folder, version=version, name=name)
    card["acceptance"] = None if acceptance is None else dict(acceptance)
    (folder / CARD_FILE).write_text(yaml.safe_dump(card))
    return load_bundle(folder)


@dataclass
class ModelRig:
    """A store, a data folder and what they hold."""

    store: Store
    data_dir: Path
    key: RecordKey
    accounts: Accounts
    now: datetime = NOW
    name: str = NAME

    def later(self, seconds: float = 60) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now

    def register(self, version: int, *, acceptance: Mapping[str, Any] | None = ACCEPTANCE) -> Bundle:
        name = self.name
        bundle = write_bundle(
            self.data_dir / "bundles" / f"{name}-{version}", version, name=name, acceptance=acceptance
        )
        sha256 = bundle_sha256(bundle.folder)
        assert lifecycle.take_in(
            self.store, key=self.key, bundle=bundle, bundle_sha256=sha256, by="test", now=self.later()
        )
        return bundle

    def set_up(self, version: int) -> None:
        """The gateway's first champion."""
        self.move(version, Action.SET_UP)

    def move(self, version: int, action: Action, **arguments: Any) -> VersionState:
        with recording(self.store, self.key) as connection:
            return lifecycle.move_version(
                connection,
                key=self.key,
                model_name=self.name,
                version=version,
                action=action,
                actor="test",
                now=self.later(),
                **arguments,
            )

    def step(self, version: int, action: Action, *, reason: str = "because") -> VersionState:
        return lifecycle.take_step(
            self.store,
            key=self.key,
            model_name=self.name,
            version=version,
            action=action,
            actor="ada",
            reason=reason,
            now=self.later(),
        )

    def state(self, version: int) -> VersionState:
        return next(each.state for each in known_versions(self.store, self.name) if each.version == version)

    def states(self) -> dict[int, str]:
        return {each.version: each.state.value for each in known_versions(self.store, self.name)}

    def person(self, name: str, role: Role = Role.ENGINEER) -> str:
        return self.accounts.make(name, PASSWORD, role, now=self.now, by=BY)

    def compare(self, candidate: int, /, *, champion: int | None = None, **values: Any) -> str:
        """A comparison as ``gateway compare`` leaves it, met; gives its key."""
        key = new_key()
        known = {each.version: each for each in known_versions(self.store, self.name)}
        folder = self.data_dir / "comparisons" / key
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps({"key": key}))
        row = {
            "comparison_key": key,
            "model_name": self.name,
            "version": candidate,
            "baseline_name": "" if champion is None else self.name,
            "baseline_version": champion,
            "studies": "folder",
            "case_count": 40,
            "truth_count": 40,
            "verdict": "met",
            "verdicts": [{"criterion": {"name": "no worse"}, "passed": True}],
            "bundle_sha256": known[candidate].bundle_sha256,
            "baseline_sha256": "" if champion is None else known[champion].bundle_sha256,
            "folder": f"comparisons/{key}",
            "report_sha256": file_sha256(folder / "report.json"),
            "created_at": self.later(),
            "created_by": "ada",
        }
        with self.store.write() as connection:
            connection.execute(insert(comparison).values(**(row | values)))
        return key

    def propose(
        self, version: int, to_state: VersionState, *, champion: int | None, by: str = "ada", **arguments: Any
    ) -> Request:
        given = {"comparison_key": arguments.pop("report", None) or self.compare(version, champion=champion)}
        if to_state is VersionState.CANARY:
            given |= {"fraction": 0.1}
        return model_requests.propose(
            self.store,
            key=self.key,
            data_dir=self.data_dir,
            model_name=self.name,
            version=version,
            to_state=to_state,
            by=by,
            now=self.later(),
            **({"reason": "better"} | given | arguments),
        )

    def approve(
        self, request: Request, name: str, *, password: str = PASSWORD, reason: str = "I read the report"
    ) -> model_requests.Approved:
        return model_requests.approve(
            self.store,
            key=self.key,
            data_dir=self.data_dir,
            accounts=self.accounts,
            request_key=request.request_key,
            name=name,
            password=password,
            reason=reason,
            now=self.later(),
        )

    def promote(self, version: int, *, champion: int | None, to_state: VersionState = VersionState.CHAMPION) -> Request:
        """By the whole way; needs bob and eve."""
        request = self.propose(version, to_state, champion=champion)
        assert not self.approve(request, "bob").carried_out
        approved = self.approve(request, "eve")
        assert approved.carried_out
        return approved.request

    def actions(self, *columns: str) -> list[Any]:
        names = columns or ("action",)
        with self.store.read() as connection:
            rows = connection.execute(model_record.select().order_by(model_record.c.record_id)).mappings().all()
        return [row[names[0]] if len(names) == 1 else tuple(row[name] for name in names) for row in rows]


@contextmanager
def model_rig(store: Store, data_dir: Path) -> Iterator[ModelRig]:
    """A rig over `store`; people: ada, bob and eve, who are engineers."""
    hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    key = load_record_key(load_settings(environment={}).deidentification, data_dir)
    rig = ModelRig(store=store, data_dir=data_dir, key=key, accounts=Accounts(store, data_dir, hasher=hasher))
    for name in ("ada", "bob", "eve"):
        rig.person(name)
    yield rig
