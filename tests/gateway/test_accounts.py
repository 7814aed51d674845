"""Passwords, sessions by a clock of our own, tokens, and a first start that may be killed at any step."""

from __future__ import annotations

import os
import stat
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from argon2 import PasswordHasher, Type, extract_parameters
from sqlalchemy import func, select

from gateway import accounts as accounts_module
from gateway.accounts import (
    FIRST_ACCOUNT,
    Accounts,
    Lifetimes,
    first_password_path,
    fitting_name,
    fitting_password,
    prepare_first_account,
)
from gateway.errors import AccountError, BusyError
from gateway.roles import PEOPLE, PERMISSIONS, Permission, Role
from gateway.store import Store, open_store
from gateway.store.accounts import SESSIONS_PER_ACCOUNT, Doer
from gateway.store.audit import entries
from gateway.store.schema import account, session, token

NOW = datetime(2026, 1, 5, 8, tzinfo=UTC)
BY = Doer(actor="test", address="10.0.0.1")
PASSWORD = "correct horse battery"
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store("", data_dir=tmp_path, migrate=True)
    yield store
    store.close()


@pytest.fixture
def accounts(store: Store, tmp_path: Path) -> Accounts:
    lifetimes = Lifetimes(idle=timedelta(minutes=60), longest=timedelta(hours=12))
    made = Accounts(store, tmp_path, lifetimes, CHEAP)
    made.make("anna", PASSWORD, Role.RADIOLOGIST, now=NOW, by=BY)
    return made


def column(store: Store, name: str) -> str:
    with store.read() as connection:
        return str(connection.execute(select(account.c[name]).where(account.c.name == "anna")).scalar_one())


# --- passwords ---


def test_a_password_is_kept_as_argon2id_with_the_parameters_of_rfc_9106(store: Store, tmp_path: Path) -> None:
    """RFC 9106 section 4, the second recommended option: t=3, p=4, 64 MiB, a 128-bit salt, a 256-bit tag."""
    Accounts(store, tmp_path).make("anna", PASSWORD, Role.VIEWER, now=NOW, by=BY)
    kept = column(store, "password_hash")
    found = extract_parameters(kept)
    assert (found.type, found.time_cost, found.parallelism, found.memory_cost) == (Type.ID, 3, 4, 64 * 1024)
    assert (found.salt_len, found.hash_len) == (16, 32)
    assert PASSWORD not in kept


def test_right_wrong_unknown_and_disabled(accounts: Accounts) -> None:
    assert accounts.verify("anna", PASSWORD) is not None
    assert accounts.verify("ANNA", PASSWORD) is not None
    assert accounts.verify("anna", PASSWORD + " ") is None
    assert accounts.verify("anna", "") is None
    assert accounts.verify("berta", PASSWORD) is None
    assert accounts.verify("' OR 1=1", PASSWORD) is None
    accounts.disable("anna", now=NOW, by=BY)
    assert accounts.verify("anna", PASSWORD) is None
    accounts.enable("anna", now=NOW, by=BY)
    assert accounts.verify("anna", PASSWORD) is not None


@pytest.mark.parametrize(
    "password", ["", "elevencharc", "annaannaannaanna", "ANNA-anna-anna", "aaaaaaaaaaaaaaaa", "abababababab", "x" * 257]
)
def test_weak_passwords(accounts: Accounts, password: str) -> None:
    with pytest.raises(AccountError):
        accounts.set_password("anna", password, now=NOW, by=BY)
    assert accounts.verify("anna", PASSWORD) is not None


@pytest.mark.parametrize(
    "password", ["twelve chars", "ünïcödé wörds", "只有十二个汉字的密码可以用", "x" * 250 + "abcdef"]
)
def test_no_rules_but_length(password: str) -> None:
    assert fitting_password(password, "anna") == password


def test_a_password_is_the_same_however_its_accents_are_typed(accounts: Accounts) -> None:
    accounts.set_password("anna", "Schlüssel für Anton", now=NOW, by=BY)
    assert accounts.verify("anna", "Schlu\u0308ssel fu\u0308r Anton") is not None


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "../x", "a" * 65, "command", "token:x", "a\nb", "é"])
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(AccountError):
        fitting_name(name)


def test_a_hash_of_older_parameters_is_replaced_at_the_next_log_in(store: Store, tmp_path: Path) -> None:
    Accounts(store, tmp_path, hasher=CHEAP).make("anna", PASSWORD, Role.VIEWER, now=NOW, by=BY)
    stronger = PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    later = Accounts(store, tmp_path, hasher=stronger)
    assert later.verify("anna", "wrong wrong wrong") is None
    assert extract_parameters(column(store, "password_hash")).time_cost == 1
    assert later.verify("anna", PASSWORD) is not None
    assert extract_parameters(column(store, "password_hash")).time_cost == 2
    assert later.verify("anna", PASSWORD) is not None


def test_an_unknown_name_takes_as_long_as_a_wrong_password(store: Store, tmp_path: Path) -> None:
    """A clock must not tell which names exist: the medians of 15 interleaved tries differ by less than a quarter."""
    slow = Accounts(store, tmp_path)
    slow.make("anna", PASSWORD, Role.VIEWER, now=NOW, by=BY)
    slow.verify("nobody-at-all", PASSWORD)

    def took_s(name: str) -> float:
        begun = time.perf_counter()
        assert slow.log_in(name, "wrong wrong wrong", now=NOW, address="") is None
        return time.perf_counter() - begun

    pairs = [(took_s("anna"), took_s("berta")) for _ in range(15)]
    known, unknown = (statistics.median(times) for times in zip(*pairs, strict=True))
    assert 0.75 < known / unknown < 1.33


def test_two_are_hashed_at_once_and_few_wait(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are told to come again at once, so that log-ins hold no more than six threads."""
    running, most, refused = 0, 0, 0
    lock, go_on, all_in = threading.Lock(), threading.Event(), threading.Semaphore(0)
    limited = Accounts(store, tmp_path, hasher=CHEAP)
    limited.make("anna", PASSWORD, Role.VIEWER, now=NOW, by=BY)
    limited.verify("anna", PASSWORD)

    class Slow(PasswordHasher):
        def verify(self, hash: str | bytes, password: str | bytes) -> bool:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            all_in.release()
            assert go_on.wait(20)
            with lock:
                running -= 1
            return CHEAP.verify(hash, password)

    monkeypatch.setattr(limited, "_hasher", Slow(time_cost=1, memory_cost=8, parallelism=1))

    def attempt() -> None:
        nonlocal refused
        try:
            assert limited.verify("anna", PASSWORD) is not None
        except BusyError:
            with lock:
                refused += 1
            all_in.release()

    threads = [threading.Thread(target=attempt) for _ in range(10)]
    for each in threads:
        each.start()
    for _ in range(2 + 4):  # two at work, four of ten refused; four wait
        assert all_in.acquire(timeout=20)
    go_on.set()
    for each in threads:
        each.join(20)
    assert (most, refused) == (2, 4)


# --- sessions ---


def begin(accounts: Accounts, now: datetime = NOW) -> str:
    cookie = accounts.log_in("anna", PASSWORD, now=now, address="10.0.0.1")
    assert cookie is not None
    return cookie


def test_the_store_holds_no_cookie(accounts: Accounts, store: Store) -> None:
    cookie = begin(accounts)
    assert len(cookie) == 43  # 256 bits in base 64
    with store.read() as connection:
        (row,) = connection.execute(select(session)).all()
    assert cookie not in str(row)
    holder = accounts.holder(cookie, now=NOW)
    assert holder is not None
    assert (holder.name, holder.role) == ("anna", Role.RADIOLOGIST)
    assert accounts.holder(holder.session_hash, now=NOW) is None
    assert accounts.holder("", now=NOW) is None


def test_a_session_ends_when_idle(accounts: Accounts) -> None:
    cookie = begin(accounts)
    for minutes in (59, 118, 177):
        assert accounts.holder(cookie, now=NOW + timedelta(minutes=minutes)) is not None
    assert accounts.holder(cookie, now=NOW + timedelta(minutes=177 + 60)) is None


def test_a_page_that_updates_itself_does_not_keep_it_from_ending(accounts: Accounts) -> None:
    cookie = begin(accounts)
    for minutes in range(1, 60, 5):
        assert accounts.holder(cookie, now=NOW + timedelta(minutes=minutes), active=False) is not None
    assert accounts.holder(cookie, now=NOW + timedelta(minutes=60)) is None


def test_a_session_ends_after_twelve_hours_whatever_is_done(accounts: Accounts) -> None:
    cookie = begin(accounts)
    for minutes in range(30, 12 * 60, 30):
        assert accounts.holder(cookie, now=NOW + timedelta(minutes=minutes)) is not None
    assert accounts.holder(cookie, now=NOW + timedelta(hours=12)) is None


def test_use_is_written_down_once_a_minute(accounts: Accounts, store: Store) -> None:
    def seen() -> datetime:
        with store.read() as connection:
            return datetime.fromisoformat(str(connection.execute(select(session.c.seen_at)).scalar_one()))

    cookie = begin(accounts)
    accounts.holder(cookie, now=NOW + timedelta(seconds=59))
    assert seen() == NOW
    accounts.holder(cookie, now=NOW + timedelta(seconds=60))
    assert seen() == NOW + timedelta(seconds=60)


def test_sessions_end_with_the_password_and_with_the_account(accounts: Accounts) -> None:
    first, second = begin(accounts), begin(accounts)
    holder = accounts.holder(first, now=NOW)
    assert holder is not None
    with pytest.raises(AccountError, match="old password"):
        accounts.change_own_password(holder, "wrong wrong wrong", "another battery staple", now=NOW, by=BY)
    with pytest.raises(AccountError, match="is the old one"):
        accounts.change_own_password(holder, PASSWORD, PASSWORD, now=NOW, by=BY)
    accounts.change_own_password(holder, PASSWORD, "another battery staple", now=NOW, by=BY)
    assert accounts.holder(first, now=NOW) is not None
    assert accounts.holder(second, now=NOW) is None
    accounts.disable("anna", now=NOW, by=BY)
    assert accounts.holder(first, now=NOW) is None
    accounts.enable("anna", now=NOW, by=BY)
    assert accounts.holder(first, now=NOW) is None


def test_another_role_holds_with_the_next_request(accounts: Accounts) -> None:
    cookie = begin(accounts)
    accounts.set_role("anna", Role.VIEWER, now=NOW, by=BY)
    holder = accounts.holder(cookie, now=NOW)
    assert holder is not None
    assert holder.role is Role.VIEWER


def test_sessions_are_bounded_and_ended_ones_are_forgotten(accounts: Accounts, store: Store) -> None:
    def count() -> int:
        with store.read() as connection:
            return int(connection.execute(select(func.count()).select_from(session)).scalar_one())

    cookies = [begin(accounts, NOW + timedelta(seconds=number)) for number in range(SESSIONS_PER_ACCOUNT + 5)]
    assert count() == SESSIONS_PER_ACCOUNT
    held = [accounts.holder(cookie, now=NOW + timedelta(minutes=1)) is not None for cookie in cookies]
    assert held == [False] * 5 + [True] * SESSIONS_PER_ACCOUNT
    begin(accounts, NOW + timedelta(days=1))
    assert count() == 1


# --- tokens ---


def test_a_token_until_it_expires_or_is_revoked(accounts: Accounts, store: Store) -> None:
    key, secret = accounts.make_token("CT 1", Role.SENDER, lifetime=timedelta(days=30), now=NOW, by=BY)
    assert secret.startswith("gw_")
    with store.read() as connection:
        assert secret not in str(connection.execute(select(token)).one())
    found = accounts.bearer(secret, now=NOW + timedelta(days=29))
    assert found is not None
    assert (found.purpose, found.role) == ("CT 1", Role.SENDER)
    assert accounts.tokens()[0].last_used_at == NOW + timedelta(days=29)
    assert accounts.bearer(secret, now=NOW + timedelta(days=30)) is None
    assert accounts.bearer(secret + "x", now=NOW) is None
    accounts.revoke_token(key, now=NOW, by=BY)
    assert accounts.bearer(secret, now=NOW) is None
    with pytest.raises(AccountError):
        accounts.revoke_token(key, now=NOW, by=BY)


@pytest.mark.parametrize("purpose", ["", "   ", "x" * 101, "a\x00b"])
def test_a_token_needs_a_purpose(accounts: Accounts, purpose: str) -> None:
    with pytest.raises(AccountError):
        accounts.make_token(purpose, Role.VIEWER, lifetime=None, now=NOW, by=BY)


# --- roles ---


def test_the_last_administrator_stays(accounts: Accounts) -> None:
    accounts.make("boss", PASSWORD, Role.ADMINISTRATOR, now=NOW, by=BY)
    for attempt in (
        lambda: accounts.disable("boss", now=NOW, by=BY),
        lambda: accounts.set_role("boss", Role.VIEWER, now=NOW, by=BY),
    ):
        with pytest.raises(AccountError, match="nobody would be left"):
            attempt()
    accounts.disable("anna", now=NOW, by=BY)
    accounts.make("second", PASSWORD, Role.ADMINISTRATOR, now=NOW, by=BY)
    accounts.set_role("boss", Role.VIEWER, now=NOW, by=BY)
    roles = {each.name: (each.role, each.disabled) for each in accounts.accounts()}
    assert roles["boss"] == (Role.VIEWER, False)
    assert roles["anna"] == (Role.RADIOLOGIST, True)


def test_a_sender_is_no_person(accounts: Accounts) -> None:
    with pytest.raises(AccountError, match="for tokens"):
        accounts.make("ct1", PASSWORD, Role.SENDER, now=NOW, by=BY)


def test_every_role_has_its_permissions_and_none_more_than_the_administrator() -> None:
    assert PERMISSIONS.keys() == {*Role}
    assert PERMISSIONS[Role.SENDER] == {Permission.STORE}
    for lesser, greater in pairwise(PEOPLE):
        assert PERMISSIONS[lesser] - {Permission.IDENTITY, Permission.READS} < PERMISSIONS[greater]
    # Who a pseudonym stands for is for those who treat and those who answer for it, not for who minds the models.
    may_identify = {role for role, held in PERMISSIONS.items() if Permission.IDENTITY in held}
    assert may_identify == {Role.RADIOLOGIST, Role.ADMINISTRATOR}
    assert all(Permission.OPEN not in held for held in PERMISSIONS.values())


def test_all_is_written_down_and_no_secret_is(accounts: Accounts, store: Store) -> None:
    cookie = begin(accounts)
    holder = accounts.holder(cookie, now=NOW)
    assert holder is not None
    assert accounts.log_in("anna", "wrong wrong wrong", now=NOW, address="10.0.0.9") is None
    assert accounts.log_in(PASSWORD, "anna", now=NOW, address="10.0.0.9") is None
    accounts.set_password("anna", "another battery staple", now=NOW, by=BY)
    key, secret = accounts.make_token("CT 1", Role.SENDER, lifetime=None, now=NOW, by=BY)
    accounts.revoke_token(key, now=NOW, by=BY)
    accounts.log_out(begin_again(accounts), now=NOW, by=Doer(actor="anna"))
    accounts.set_role("anna", Role.VIEWER, now=NOW, by=BY)
    accounts.disable("anna", now=NOW, by=BY)
    rows = entries(store, limit=100)
    assert [row["action"] for row in reversed(rows)] == [
        "account made",
        "login",
        "login failed",
        "login failed",
        "password changed",
        "token made",
        "token revoked",
        "login",
        "logout",
        "role changed",
        "account disabled",
    ]
    failed = [row for row in rows if row["action"] == "login failed"]
    assert [(row["subject"], row["address"]) for row in failed] == [
        ("(unknown name)", "10.0.0.9"),
        ("anna", "10.0.0.9"),
    ]
    for hidden in (PASSWORD, "another battery staple", cookie, secret):
        assert hidden not in str(rows)


def begin_again(accounts: Accounts) -> str:
    cookie = accounts.log_in("anna", "another battery staple", now=NOW, address="")
    assert cookie is not None
    holder = accounts.holder(cookie, now=NOW)
    assert holder is not None
    return holder.session_hash


# --- first start ---


def test_the_first_start_makes_one_administrator_whose_password_only_the_owner_may_read(
    store: Store, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        path = prepare_first_account(store, tmp_path, now=NOW)
    finally:
        os.umask(before)
    assert path == first_password_path(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    password = path.read_text().strip()
    assert len(password) == 24  # 144 bits in base 64
    accounts = Accounts(store, tmp_path)
    found = accounts.verify(FIRST_ACCOUNT, password)
    assert found is not None
    assert (found.role, found.must_change) == (Role.ADMINISTRATOR, True)
    assert prepare_first_account(store, tmp_path, now=NOW) == path
    assert path.read_text().strip() == password
    accounts.set_password(FIRST_ACCOUNT, PASSWORD, now=NOW, by=BY)
    assert not path.exists()
    assert prepare_first_account(store, tmp_path, now=NOW) is None
    assert not path.exists()


def test_two_gateways_have_two_passwords(tmp_path: Path) -> None:
    found = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        store = open_store("", data_dir=folder, migrate=True)
        path = prepare_first_account(store, folder, now=NOW)
        assert path is not None
        found.add(path.read_text())
        store.close()
    assert len(found) == 2


STEPS = ["unlink", "open", "write", "fsync", "rename", "fsync folder", "insert", "done"]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", STEPS)
def test_killed_between_any_two_steps(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whatever was done before, the next start ends with an account whose password the file holds."""
    with monkeypatch.context() as patch:
        _kill_at(patch, step)
        if step == "done":
            prepare_first_account(store, tmp_path, now=NOW)
        else:
            with pytest.raises(Killed):
                prepare_first_account(store, tmp_path, now=NOW)
    path = prepare_first_account(store, tmp_path, now=NOW)
    assert path is not None
    assert Accounts(store, tmp_path).verify(FIRST_ACCOUNT, path.read_text().strip()) is not None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(Accounts(store, tmp_path).accounts()) == 1


def _kill_at(patch: pytest.MonkeyPatch, step: str) -> None:
    def killed(*_: object, **__: object) -> None:
        raise Killed

    real_fsync, synced = os.fsync, 0

    def fsync(number: int) -> None:
        nonlocal synced
        synced += 1
        if synced == (1 if step == "fsync" else 2):
            raise Killed
        real_fsync(number)

    if step in ("fsync", "fsync folder"):
        patch.setattr(os, "fsync", fsync)
    elif step == "open":
        patch.setattr(os, "open", killed)
    elif step == "write":
        patch.setattr(os, "fdopen", killed)
    elif step in ("unlink", "rename"):
        patch.setattr(Path, step, killed)
    elif step == "insert":
        patch.setattr(accounts_module.account_store, "add_account", killed)


def test_killed_between_the_change_and_the_removal_of_the_file(store: Store, tmp_path: Path) -> None:
    path = prepare_first_account(store, tmp_path, now=NOW)
    assert path is not None
    text = path.read_text()
    Accounts(store, tmp_path).set_password(FIRST_ACCOUNT, PASSWORD, now=NOW, by=BY)
    path.write_text(text)
    assert prepare_first_account(store, tmp_path, now=NOW) is None
    assert not path.exists()


@pytest.mark.parametrize("planted", ["readable", "link"])
def test_a_file_that_others_could_have_read_or_placed_is_not_believed(
    store: Store, tmp_path: Path, planted: str
) -> None:
    path = first_password_path(tmp_path)
    known = "known to somebody else"
    if planted == "link":
        (tmp_path / "elsewhere").write_text(known)
        (tmp_path / "elsewhere").chmod(0o600)
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.write_text(known)
        path.chmod(0o644)
    prepare_first_account(store, tmp_path, now=NOW)
    assert not path.is_symlink()
    assert Accounts(store, tmp_path).verify(FIRST_ACCOUNT, known) is None
    assert Accounts(store, tmp_path).verify(FIRST_ACCOUNT, path.read_text().strip()) is not None
