"""Studies of any age and state, with their files, for tests of retention; and the housekeeper as a process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from intake_rig import stop_on_sigterm
from sqlalchemy import insert, select

from gateway import housekeeping
from gateway.objects import ObjectFolder, heat_map_path, picture_path, result_path
from gateway.settings import Settings, load_settings
from gateway.store import Store
from gateway.store.intake import new_key, put_in_quarantine
from gateway.store.schema import delivery, instance, prediction, quarantine, result, study
from gateway.study import StudyState

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
DAY = timedelta(days=1)
IMAGE_BYTES, RESULT_BYTES, SHOWN_BYTES = 1000, 200, 50


def keep_house(settings: Settings, data_dir: Path) -> None:
    """The real housekeeper process, as a process of the tests."""
    housekeeping.run(settings, data_dir, stop_on_sigterm())


def house_settings(**overrides: Any) -> Settings:
    """Settings in which each kind has an age of its own, and the disk is never short."""
    values: dict[str, Any] = {
        "retention.originals_days": 30,
        "retention.results_days": 90,
        "retention.quarantine_days": 10,
        "retention.records_days": 365,
        "disk.expire_below_bytes": 0,
        "disk.refuse_below_bytes": 0,
        "destinations": [
            {"name": "plain", "ae_title": "PLAIN", "host": "127.0.0.1", "port": 104},
            {"name": "commits", "ae_title": "COMMITS", "host": "127.0.0.1", "port": 104, "storage_commitment": True},
        ],
    }
    return load_settings(environment={}, overrides={**values, **overrides})


@dataclass(frozen=True, kw_only=True)
class Sending:
    """One delivery of a study's result."""

    destination: str = "plain"
    state: str = "delivered"
    delivered_at: datetime | None = None
    committed_at: datetime | None = None


@dataclass(frozen=True)
class Shelf:
    """A store and its object folder."""

    store: Store
    data_dir: Path

    @property
    def objects(self) -> ObjectFolder:
        return ObjectFolder.in_data_dir(self.data_dir)

    def write(self, relative: str, size: int) -> str:
        """A file that looks as old as things are in these tests."""
        path = self.objects.path(relative)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(size))
        os.utime(path, (NOW.timestamp(), (NOW - DAY).timestamp()))
        return relative

    def add(
        self,
        *,
        received_at: datetime,
        state: StudyState = StudyState.JUDGED,
        judged_at: datetime | None = None,
        sendings: Sequence[Sending] = (),
        on_hold: bool = False,
        images: int = 1,
        judged: bool = True,
    ) -> str:
        """A study with `images` images and, where `judged`, one result, one prediction each and their files."""
        key = new_key()
        with self.store.write() as connection:
            connection.execute(
                insert(study).values(
                    study_key=key,
                    study_instance_uid=f"1.2.{int(key, 16)}",
                    state=state,
                    instance_count=images,
                    first_received_at=received_at,
                    last_received_at=received_at,
                    complete_at=received_at,
                    judged_at=judged_at or received_at,
                    hold_reason="asked for by the court" if on_hold else None,
                )
            )
            for _ in range(images):
                self._add_image(connection, key, received_at, judged=judged)
            if judged:
                self._add_result(connection, key, judged_at or received_at, sendings)
        return key

    def _add_image(self, connection: Any, study_key: str, received_at: datetime, *, judged: bool) -> None:
        key = new_key()
        connection.execute(
            insert(instance).values(
                instance_key=key,
                study_key=study_key,
                sop_instance_uid=f"1.3.{int(key, 16)}",
                sop_class_uid="1.2.840.10008.5.1.4.1.1.1",
                series_instance_uid="1.5",
                transfer_syntax_uid="1.2.840.10008.1.2.1",
                sha256="a" * 64,
                size_bytes=IMAGE_BYTES,
                path=self.write(f"instances/{key[:2]}/{key}.dcm", IMAGE_BYTES),
                calling_ae_title="PEER",
                peer_address="127.0.0.1",
                received_at=received_at,
            )
        )
        if not judged:
            return
        self.write(picture_path(key, 0), SHOWN_BYTES)
        connection.execute(
            insert(prediction).values(
                study_key=study_key,
                instance_key=key,
                frame_index=0,
                model_name="retinopathy",
                model_version=1,
                model_sha256="b" * 64,
                demonstration=True,
                logits=[0.0],
                probabilities={},
                findings=[],
                ungradable_reasons=[],
                explanation={"finding_name": "referable"},
                heat_map_path=self.write(heat_map_path(key, 0, "retinopathy", 1), SHOWN_BYTES),
                acquisition_findings=[],
                parameters={},
                statistics={},
                device_key="device",
                embedding=b"",
                judged_at=received_at,
            )
        )

    def _add_result(self, connection: Any, study_key: str, at: datetime, sendings: Sequence[Sending]) -> None:
        key = new_key()
        connection.execute(
            insert(result).values(
                result_key=key,
                study_key=study_key,
                kind="SR",
                sop_class_uid="1.2.840.10008.5.1.4.1.1.88.34",
                sop_instance_uid=f"1.4.{int(key, 16)}",
                path=self.write(result_path(key), RESULT_BYTES),
                created_at=at,
            )
        )
        for sending in sendings:
            connection.execute(
                insert(delivery).values(
                    result_key=key,
                    study_key=study_key,
                    destination=sending.destination,
                    state=sending.state,
                    next_attempt_at=at,
                    created_at=at,
                    delivered_at=sending.delivered_at or (at if sending.state == "delivered" else None),
                    committed_at=sending.committed_at,
                )
            )

    def refuse(self, *, received_at: datetime, size: int = 100) -> str:
        """An object in quarantine."""
        key = new_key()
        put_in_quarantine(
            self.store,
            key=key,
            reason="garbage",
            path=self.write(f"quarantine/{key}.dcm", size),
            size_bytes=size,
            calling_ae_title="PEER",
            peer_address="127.0.0.1",
            received_at=received_at,
        )
        return key

    def files(self, folder: str) -> set[str]:
        """Relative paths of all files under a folder of the objects."""
        root = self.objects.root
        return {str(path.relative_to(root)) for path in (root / folder).rglob("*") if path.is_file()}

    def studies_with(self, folder: str) -> set[str]:
        """Keys of the studies that still have a file there."""
        table = {"instances": instance, "results": result}[folder]
        there = self.files(folder)
        with self.store.read() as connection:
            return {row[0] for row in connection.execute(select(table.c.study_key, table.c.path)) if row[1] in there}

    def studies(self) -> set[str]:
        with self.store.read() as connection:
            return set(connection.execute(select(study.c.study_key)).scalars())

    def promised(self) -> set[str]:
        """Files that rows say are there."""
        with self.store.read() as connection:
            return {
                path
                for table in (instance, result, quarantine)
                for path in connection.execute(select(table.c.path).where(table.c.removed_at.is_(None))).scalars()
            } | set(
                connection.execute(
                    select(prediction.c.heat_map_path).where(prediction.c.heat_map_path.is_not(None))
                ).scalars()
            )
