"""Accounts, sessions and tokens. Passwords, cookies and tokens come here as hashes only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from gateway.errors import AccountError
from gateway.roles import Role
from gateway.store.audit import add_entry
from gateway.store.engine import Store
from gateway.store.schema import account, session, token

SESSIONS_PER_ACCOUNT = 20
"""The oldest gives way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Doer:
    """Who does it, for the record."""

    actor: str
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person's account."""

    name: str
    password_hash: str
    role: Role
    must_change: bool
    disabled: bool
    created_at: datetime
    changed_at: datetime
    last_seen_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenSession:
    """A session with what its account may do now."""

    name: str
    role: Role
    must_change: bool
    disabled: bool
    created_at: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A machine's token, without its secret."""

    token_key: str
    purpose: str
    role: Role
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


_TOKEN_COLUMNS = [token.c[name] for name in Token.__dataclass_fields__]


def find_account(store: Store, name: str) -> Account | None:
    """The account of that name."""
    with store.read() as connection:
        row = connection.execute(select(account).where(account.c.name == name)).mappings().one_or_none()
    return None if row is None else _account(row)


def accounts(store: Store) -> list[Account]:
    """All accounts, by name."""
    with store.read() as connection:
        return [_account(row) for row in connection.execute(select(account).order_by(account.c.name)).mappings()]


def _account(row: Mapping[Any, Any]) -> Account:
    return Account(**{**row, "role": Role(row["role"])})


def add_account(
    store: Store, *, name: str, password_hash: str, role: Role, must_change: bool, now: datetime, by: Doer
) -> None:
    """A new account. Raises :class:`AccountError` where the name is taken."""
    with store.write() as connection:
        if connection.execute(select(account.c.name).where(account.c.name == name)).first() is not None:
            raise AccountError(f"there is an account {name} already")
        connection.execute(
            insert(account).values(
                name=name,
                password_hash=password_hash,
                role=role,
                must_change=must_change,
                disabled=False,
                created_at=now,
                changed_at=now,
            )
        )
        _record(connection, by, now, "account made", name, f"role {role}")


def change_password(
    store: Store, name: str, password_hash: str, *, must_change: bool, now: datetime, by: Doer, keep: str = ""
) -> None:
    """A new password; all sessions end but the one whose hash is `keep`."""
    with store.write() as connection:
        values = {"password_hash": password_hash, "must_change": must_change, "changed_at": now}
        _update_account(connection, name, **values)
        _end_sessions(connection, name, keep=keep)
        _record(connection, by, now, "password changed", name)


def replace_hash(store: Store, name: str, old_hash: str, new_hash: str) -> None:
    """The same password under newer parameters of argon2; nothing where it was changed meanwhile."""
    with store.write() as connection:
        same = (account.c.name == name) & (account.c.password_hash == old_hash)
        connection.execute(update(account).where(same).values(password_hash=new_hash))


def set_disabled(store: Store, name: str, disabled: bool, *, now: datetime, by: Doer) -> None:
    """Lock an account out, or let it in again. Raises :class:`AccountError` for the last administrator."""
    with store.write() as connection:
        _update_account(connection, name, disabled=disabled, changed_at=now)
        if disabled:
            _end_sessions(connection, name)
            _keep_an_administrator(connection, name)
        _record(connection, by, now, "account disabled" if disabled else "account enabled", name)


def set_role(store: Store, name: str, role: Role, *, now: datetime, by: Doer) -> None:
    """Another role, in force with the next request. Raises :class:`AccountError` for the last administrator."""
    with store.write() as connection:
        if role != Role.ADMINISTRATOR:
            _keep_an_administrator(connection, name)
        _update_account(connection, name, role=role, changed_at=now)
        _record(connection, by, now, "role changed", name, f"role {role}")


def _update_account(connection: Connection, name: str, **values: object) -> None:
    if connection.execute(update(account).where(account.c.name == name).values(**values)).rowcount == 0:
        raise AccountError(f"no account {name}")


def _keep_an_administrator(connection: Connection, name: str) -> None:
    """Refuse to lose `name` as an administrator where there is no other."""
    role = connection.execute(select(account.c.role).where(account.c.name == name)).scalar()
    others = (account.c.role == Role.ADMINISTRATOR) & account.c.disabled.is_(False) & (account.c.name != name)
    if role == Role.ADMINISTRATOR and connection.execute(select(account.c.name).where(others)).first() is None:
        raise AccountError("nobody would be left to administer the gateway")


def _end_sessions(connection: Connection, name: str, keep: str = "") -> None:
    connection.execute(delete(session).where(session.c.name == name, session.c.session_hash != keep))


# --- sessions ---


def add_session(
    store: Store, *, session_hash: str, name: str, now: datetime, idle: timedelta, longest: timedelta, by: Doer
) -> None:
    """Begin a session; those that have ended are forgotten, and the account's oldest beyond the limit."""
    with store.write() as connection:
        ended = (session.c.created_at <= now - longest) | (session.c.seen_at <= now - idle)
        connection.execute(delete(session).where(ended))
        held = select(session.c.session_hash).where(session.c.name == name).order_by(session.c.created_at.desc())
        surplus = connection.execute(held.offset(SESSIONS_PER_ACCOUNT - 1)).scalars().all()
        connection.execute(delete(session).where(session.c.session_hash.in_(surplus)))
        connection.execute(
            insert(session).values(
                session_hash=session_hash, name=name, address=by.address[:64], created_at=now, seen_at=now
            )
        )
        connection.execute(update(account).where(account.c.name == name).values(last_seen_at=now))
        _record(connection, by, now, "login", name)


def find_session(store: Store, session_hash: str) -> OpenSession | None:
    """One read by primary keys, at every request."""
    columns = (account.c.name, account.c.role, account.c.must_change, account.c.disabled)
    statement = select(*columns, session.c.created_at, session.c.seen_at).join(
        account, account.c.name == session.c.name
    )
    with store.read() as connection:
        row = connection.execute(statement.where(session.c.session_hash == session_hash)).mappings().one_or_none()
    return None if row is None else OpenSession(**{**row, "role": Role(row["role"])})


def touch_session(store: Store, session_hash: str, now: datetime) -> None:
    """The session is in use."""
    with store.write() as connection:
        connection.execute(update(session).where(session.c.session_hash == session_hash).values(seen_at=now))


def end_session(store: Store, session_hash: str, *, now: datetime, by: Doer) -> None:
    """Log out."""
    with store.write() as connection:
        if connection.execute(delete(session).where(session.c.session_hash == session_hash)).rowcount:
            _record(connection, by, now, "logout", by.actor)


# --- tokens ---


def add_token(
    store: Store,
    *,
    token_key: str,
    token_hash: str,
    purpose: str,
    role: Role,
    expires_at: datetime | None,
    now: datetime,
    by: Doer,
) -> None:
    """A new token."""
    with store.write() as connection:
        connection.execute(
            insert(token).values(
                token_key=token_key,
                token_hash=token_hash,
                purpose=purpose,
                role=role,
                created_by=by.actor[:64],
                created_at=now,
                expires_at=expires_at,
            )
        )
        until = "without end" if expires_at is None else f"until {expires_at:%Y-%m-%d %H:%M} UTC"
        _record(connection, by, now, "token made", token_key, f"{purpose}; role {role}; {until}")


def find_token(store: Store, token_hash: str) -> Token | None:
    """The token whose secret has that hash, whatever its state."""
    with store.read() as connection:
        statement = select(*_TOKEN_COLUMNS).where(token.c.token_hash == token_hash)
        row = connection.execute(statement).mappings().one_or_none()
    return None if row is None else _token(row)


def tokens(store: Store) -> list[Token]:
    """All tokens, newest first."""
    with store.read() as connection:
        statement = select(*_TOKEN_COLUMNS).order_by(token.c.created_at.desc(), token.c.token_key)
        return [_token(row) for row in connection.execute(statement).mappings()]


def _token(row: Mapping[Any, Any]) -> Token:
    return Token(**{**row, "role": Role(row["role"])})


def touch_token(store: Store, token_key: str, now: datetime) -> None:
    """The token was used."""
    with store.write() as connection:
        connection.execute(update(token).where(token.c.token_key == token_key).values(last_used_at=now))


def revoke_token(store: Store, token_key: str, *, now: datetime, by: Doer) -> None:
    """End a token for good. Raises :class:`AccountError` where there is none, or it was revoked before."""
    with store.write() as connection:
        live = (token.c.token_key == token_key) & token.c.revoked_at.is_(None)
        if connection.execute(update(token).where(live).values(revoked_at=now)).rowcount == 0:
            raise AccountError(f"no token {token_key} that could be revoked")
        _record(connection, by, now, "token revoked", token_key)


def _record(connection: Connection, by: Doer, now: datetime, action: str, subject: str, detail: str = "") -> None:
    add_entry(connection, now=now, actor=by.actor, address=by.address, action=action, subject=subject, detail=detail)
