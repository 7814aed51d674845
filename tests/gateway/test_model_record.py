"""The record of model versions: append-only in the database, and what a person at the database changes is found."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from model_rig import NOW, ModelRig, model_rig
from sqlalchemy import Connection, delete, event, insert, select, text, update

from gateway.errors import StoreError
from gateway.lifecycle import Action
from gateway.model_record import (
    HEAD_FILE,
    WATCH_INTERVAL_S,
    RecordWatch,
    append,
    entries,
    keep_head,
    record_key,
    recording,
    verify,
)
from gateway.store import Store
from gateway.store.models import VersionState
from gateway.store.schema import model_record, model_version


@pytest.fixture
def rig(store: Store, tmp_path: Path) -> Iterator[ModelRig]:
    """Eight entries: two versions registered, one set up, the other promoted by two people."""
    with model_rig(store, tmp_path) as rig:
        rig.register(1)
        rig.register(2)
        rig.set_up(1)
        rig.promote(2, champion=1)
        assert len(rig.actions()) == 8
        yield rig


def as_administrator(store: Store, act: Callable[[Connection], object]) -> None:
    """With the triggers taken away first, as who owns the database can."""
    with store.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("DROP TRIGGER IF EXISTS model_record_append_only ON model_record"))
        else:
            names = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all()
            for name in names:
                connection.execute(text(f"DROP TRIGGER {name}"))
        act(connection)


def test_a_record_as_it_was_written(rig: ModelRig) -> None:
    assert verify(rig.store, rig.key) == []
    head = json.loads((rig.data_dir / HEAD_FILE).read_text())
    with rig.store.read() as connection:
        last = entries(connection)[-1]
    assert head == {"record_id": 8, "seal": last.seal}
    assert (rig.data_dir / HEAD_FILE).stat().st_mode & 0o777 == 0o600


def test_a_move_while_the_record_is_verified_is_no_tampering(rig: ModelRig) -> None:
    moved: list[str] = []

    def move_once(connection: Connection, _: object, statement: str, *__: object) -> None:
        if connection.engine is rig.store.engine and "FROM model_version" in statement and not moved:
            moved.append(statement)
            with ThreadPoolExecutor(1) as other:
                other.submit(rig.step, 1, Action.REOPEN).result(30)

    event.listen(rig.store.engine, "before_cursor_execute", move_once)
    try:
        assert verify(rig.store, rig.key) == []
    finally:
        event.remove(rig.store.engine, "before_cursor_execute", move_once)
    assert moved
    assert rig.states()[1] == "draft"
    assert verify(rig.store, rig.key) == []


def test_the_seals_are_what_the_page_says(rig: ModelRig) -> None:
    """Computed anew from the site key with hmac alone, so that another program can check a record."""
    site_key = (rig.data_dir / "secret.key").read_bytes()
    info = b"gateway model record seal"
    secret = HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(site_key)
    extracted = hmac.new(b"\0" * 32, site_key, hashlib.sha256).digest()  # RFC 5869 2.2 and 2.3, by hand
    assert secret == hmac.new(extracted, info + b"\x01", hashlib.sha256).digest()
    before = ""
    with rig.store.read() as connection:
        rows = connection.execute(select(model_record).order_by(model_record.c.record_id)).mappings().all()
    for row in rows:
        content = {name: value for name, value in row.items() if name != "seal"}
        content["at"] = row["at"].astimezone(UTC).isoformat(timespec="microseconds")
        content["before"] = before
        line = json.dumps(content, sort_keys=True, separators=(",", ":"))
        before = hmac.new(secret, line.encode(), hashlib.sha256).hexdigest()
        assert before == row["seal"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE model_record SET actor = 'eve' WHERE record_id = 3",
        "UPDATE model_record SET actor = actor",
        "DELETE FROM model_record WHERE record_id = 8",
        "DELETE FROM model_record",
    ],
)
def test_the_database_refuses_to_change_or_delete(rig: ModelRig, statement: str) -> None:
    with pytest.raises(StoreError), rig.store.write() as connection:
        connection.execute(text(statement))
    assert verify(rig.store, rig.key) == []


def test_the_database_refuses_to_replace_or_truncate(rig: ModelRig) -> None:
    replacing = {
        "sqlite": "INSERT OR REPLACE INTO model_record SELECT * FROM model_record WHERE record_id = 3",
        "postgresql": "TRUNCATE model_record",
    }[rig.store.engine.dialect.name]
    with pytest.raises(StoreError), rig.store.write() as connection:
        connection.execute(text(replacing))
    assert verify(rig.store, rig.key) == []


@pytest.mark.parametrize(
    "values",
    [
        {"actor": "mallory"},
        {"reason": "worse"},
        {"version": 3},
        {"to_state": "canary"},
        {"action": "refuse"},
        {"request_key": "f" * 32},
        {"detail": {"approved_by": ["bob"]}},
        {"at": NOW},
        {"seal": "0" * 64},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_changed_entry_is_found(rig: ModelRig, values: dict[str, object]) -> None:
    as_administrator(
        rig.store,
        lambda connection: connection.execute(update(model_record).where(model_record.c.record_id == 5).values(values)),
    )
    assert "entry 5 is not as it was sealed" in verify(rig.store, rig.key)


def test_deleted_entries_are_found(rig: ModelRig) -> None:
    as_administrator(
        rig.store,
        lambda connection: connection.execute(delete(model_record).where(model_record.c.record_id.in_((4, 5)))),
    )
    assert verify(rig.store, rig.key) == ["entries 4 to 5 are missing"]


def test_a_gap_that_was_closed_is_found(rig: ModelRig) -> None:
    """The entry deleted, and all after it numbered anew."""

    def act(connection: Connection) -> None:
        connection.execute(delete(model_record).where(model_record.c.record_id == 4))
        for number in range(5, 9):
            connection.execute(
                update(model_record).where(model_record.c.record_id == number).values(record_id=number - 1)
            )

    as_administrator(rig.store, act)
    assert [f"entry {number} is not as it was sealed" for number in range(4, 8)] == verify(rig.store, rig.key)[:4]


def test_swapped_entries_are_found(rig: ModelRig) -> None:
    def act(connection: Connection) -> None:
        for old, new in ((5, 100), (6, 5), (100, 6)):
            connection.execute(update(model_record).where(model_record.c.record_id == old).values(record_id=new))

    as_administrator(rig.store, act)
    found = verify(rig.store, rig.key)
    assert {"entry 5 is not as it was sealed", "entry 6 is not as it was sealed"} <= set(found)


def test_an_inserted_entry_is_found(rig: ModelRig) -> None:
    """By who does not hold the key: an approval that nobody gave."""
    with rig.store.read() as connection:
        row = dict(
            connection.execute(select(model_record).where(model_record.c.action == "approve")).mappings().first()
        )  # type: ignore[arg-type]
    with rig.store.write() as connection:
        connection.execute(insert(model_record).values(**(row | {"record_id": 9, "actor": "mallory"})))
    assert verify(rig.store, rig.key) == ["entry 9 is not as it was sealed"]


def test_an_end_that_was_cut_off_is_found_also_when_the_record_goes_on(rig: ModelRig) -> None:
    as_administrator(
        rig.store, lambda connection: connection.execute(delete(model_record).where(model_record.c.record_id > 6))
    )
    assert "entries 7 to 8 are missing at the end" in verify(rig.store, rig.key)
    for _ in range(3):
        with recording(rig.store, rig.key) as connection:
            append(connection, key=rig.key, at=NOW, actor="bob", action="void", model_name="tiny", version=2)
    assert f"entry 8 is another one than was written down in {HEAD_FILE}" in verify(rig.store, rig.key)


def test_an_emptied_record_is_found(rig: ModelRig) -> None:
    as_administrator(rig.store, lambda connection: connection.execute(delete(model_record)))
    assert "entries 1 to 8 are missing at the end" in verify(rig.store, rig.key)


def test_a_missing_head_is_said(rig: ModelRig) -> None:
    (rig.data_dir / HEAD_FILE).unlink()
    assert verify(rig.store, rig.key) == [f"{HEAD_FILE} is missing, so that a cut-off end would not be seen"]


def test_a_head_that_lags_catches_up(rig: ModelRig) -> None:
    """A process was killed between its transaction and the file."""
    with rig.store.write() as connection:
        append(connection, key=rig.key, at=NOW, actor="bob", action="void", model_name="tiny", version=2)
    assert verify(rig.store, rig.key) == []
    keep_head(rig.store, rig.key)
    assert json.loads((rig.data_dir / HEAD_FILE).read_text())["record_id"] == 9


def test_another_key_opens_nothing(rig: ModelRig, tmp_path: Path) -> None:
    other = record_key(hashlib.sha256(b"other").digest(), rig.data_dir)
    assert len(verify(rig.store, other)) == 8
    assert "secret" not in repr(rig.key)


def test_a_state_changed_behind_the_record_is_found(rig: ModelRig) -> None:
    with rig.store.write() as connection:
        connection.execute(update(model_version).where(model_version.c.version == 1).values(state="shadow"))
    assert verify(rig.store, rig.key) == ["tiny@1 is shadow in the store, and the record left it retired"]


def test_what_failed_is_not_recorded(rig: ModelRig) -> None:
    with pytest.raises(RuntimeError), recording(rig.store, rig.key) as connection:
        append(connection, key=rig.key, at=NOW, actor="bob", action="void", model_name="tiny", version=2)
        raise RuntimeError
    assert len(rig.actions()) == 8
    assert verify(rig.store, rig.key) == []


def test_entries_of_a_model_and_the_newest(rig: ModelRig) -> None:
    rig.name = "other"
    rig.register(1)
    with rig.store.read() as connection:
        assert [each.record_id for each in entries(connection, model_name="other")] == [9]
        assert [each.record_id for each in entries(connection, limit=2)] == [8, 9]
        assert {each.version for each in entries(connection, model_name="tiny", version=1)} == {1}
    assert rig.state(1) is VersionState.DRAFT


def test_each_seal_stands_in_the_log(rig: ModelRig, caplog: pytest.LogCaptureFixture) -> None:
    """Which may be kept where who owns the database cannot change it."""
    with caplog.at_level(logging.INFO, logger="gateway.model_record"), recording(rig.store, rig.key) as connection:
        append(connection, key=rig.key, at=NOW, actor="bob", action="void", model_name="tiny", version=2)
    with rig.store.read() as connection:
        assert entries(connection)[-1].seal in caplog.text


def test_a_folder_that_cannot_be_written_costs_no_step(
    rig: ModelRig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.model_record._write_head", full)
    rig.step(1, Action.REOPEN)
    assert rig.state(1) is VersionState.DRAFT
    assert "No space left" in caplog.text


def test_the_monitor_looks_by_itself_and_says_it_once(rig: ModelRig, caplog: pytest.LogCaptureFixture) -> None:
    watch = RecordWatch(rig.store, rig.key)
    watch.look(0.0)
    assert watch.detail() == {}
    as_administrator(
        rig.store,
        lambda connection: connection.execute(delete(model_record).where(model_record.c.record_id == 4)),
    )
    watch.look(WATCH_INTERVAL_S - 1)
    assert watch.detail() == {}, "not due yet"
    for place in (1, 2):
        watch.look(place * WATCH_INTERVAL_S)
        assert watch.detail() == {"model_record": {"problems": ["entry 4 is missing"]}}
    assert caplog.text.count("entry 4 is missing") == 1
