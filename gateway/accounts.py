"""People's accounts and machines' tokens: passwords, sessions, first start.

Of a password the store holds its argon2id hash; of a session's cookie and of a token, which are 256 random bits and
need no slow hash, the SHA-256.

References
----------
NIST SP 800-63B section 5.1.1.2: length instead of composition rules. RFC 9106: argon2.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import stat
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from gateway.errors import AccountError, BusyError, StoreError
from gateway.roles import PEOPLE, Role
from gateway.store import Store
from gateway.store import accounts as account_store
from gateway.store.accounts import Account, Doer, Token
from gateway.store.audit import record
from gateway.store.intake import new_key

logger = logging.getLogger(__name__)

FIRST_ACCOUNT = "admin"
FIRST_PASSWORD_FILE = "first-password"
LEAST_PASSWORD_LENGTH = 12
LONGEST_PASSWORD_LENGTH = 256
TOKEN_PREFIX = "gw_"
TOUCH_EVERY = timedelta(minutes=1)
HASHERS = 2
"""Passwords hashed at once; each takes 64 MiB."""
HASHERS_WAITING = 4
"""Further ones that may wait for their turn; more are refused, so that log-ins never hold all threads."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_RESERVED = frozenset({"command", "anyone", "nobody", "token"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """How long a session lasts."""

    idle: timedelta
    longest: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionHolder:
    """Whose session a cookie is."""

    name: str
    role: Role
    must_change: bool
    session_hash: str


class Accounts:
    """Accounts, sessions and tokens of one gateway. May be called from many threads."""

    def __init__(
        self, store: Store, data_dir: Path, lifetimes: Lifetimes | None = None, hasher: PasswordHasher | None = None
    ) -> None:
        self._store = store
        self._data_dir = data_dir
        self._lifetimes = lifetimes or Lifetimes(idle=timedelta(hours=1), longest=timedelta(hours=12))
        self._hasher = hasher or PasswordHasher()
        self._turn = threading.BoundedSemaphore(HASHERS)
        self._places = threading.BoundedSemaphore(HASHERS + HASHERS_WAITING)
        self._nobody_hash = ""
        self._nobody_lock = threading.Lock()

    # --- accounts ---

    def make(self, name: str, password: str, role: Role, *, now: datetime, by: Doer, must_change: bool = False) -> str:
        """A new account.

        Raises
        ------
        AccountError
            The name does not fit or is taken, the role is not a person's, or the password is too weak.
        """
        name = fitting_name(name)
        _check_role(role)
        password_hash = self._hash(fitting_password(password, name))
        account_store.add_account(
            self._store, name=name, password_hash=password_hash, role=role, must_change=must_change, now=now, by=by
        )
        return name

    def set_password(
        self, name: str, password: str, *, now: datetime, by: Doer, must_change: bool = False, keep: str = ""
    ) -> None:
        """A new password; every session of the account ends but the one whose hash is `keep`.

        Raises
        ------
        AccountError
            There is no such account, or the password is too weak.
        """
        password_hash = self._hash(fitting_password(password, name))
        account_store.change_password(
            self._store, name, password_hash, must_change=must_change, now=now, by=by, keep=keep
        )
        if name == FIRST_ACCOUNT:
            first_password_path(self._data_dir).unlink(missing_ok=True)

    def change_own_password(self, holder: SessionHolder, old: str, new: str, *, now: datetime, by: Doer) -> None:
        """As :meth:`set_password`, by who knows the old one. Raises :class:`AccountError` where `old` is wrong."""
        if _normal(old) == _normal(new):
            raise AccountError("the new password is the old one")
        if self.verify(holder.name, old) is None:
            raise AccountError("the old password is not right")
        self.set_password(holder.name, new, now=now, by=by, keep=holder.session_hash)

    def set_role(self, name: str, role: Role, *, now: datetime, by: Doer) -> None:
        """Another role. Raises :class:`AccountError` where nobody would be left to administer."""
        _check_role(role)
        account_store.set_role(self._store, name, role, now=now, by=by)

    def disable(self, name: str, *, now: datetime, by: Doer) -> None:
        """End the account's sessions and let it in no more. Raises :class:`AccountError` as :meth:`set_role`."""
        account_store.set_disabled(self._store, name, True, now=now, by=by)

    def enable(self, name: str, *, now: datetime, by: Doer) -> None:
        """Let a disabled account in again."""
        account_store.set_disabled(self._store, name, False, now=now, by=by)

    def accounts(self) -> list[Account]:
        """All accounts, by name."""
        return account_store.accounts(self._store)

    def verify(self, name: str, password: str) -> Account | None:
        """The account, where the password is right and the account is not disabled.

        Takes the same steps whether or not there is such an account: what differs must not be seen by a clock.
        """
        found = account_store.find_account(self._store, name.lower()) if _NAME.fullmatch(name.lower()) else None
        password = _normal(password)[: LONGEST_PASSWORD_LENGTH + 1]
        nobody = self._hash_of_nobody()
        right = self._is_right(nobody if found is None else found.password_hash, password)
        if found is None or found.disabled or not right:
            return None
        if self._hasher.check_needs_rehash(found.password_hash):
            account_store.replace_hash(self._store, found.name, found.password_hash, self._hash(password))
        return found

    def _is_right(self, password_hash: str, password: str) -> bool:
        try:
            with self._hashing():
                return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False

    def _hash(self, password: str) -> str:
        with self._hashing():
            return self._hasher.hash(password)

    def _hash_of_nobody(self) -> str:
        with self._nobody_lock:
            if not self._nobody_hash:
                self._nobody_hash = self._hasher.hash(secrets.token_urlsafe(32))
            return self._nobody_hash

    @contextmanager
    def _hashing(self) -> Iterator[None]:
        if not self._places.acquire(blocking=False):
            raise BusyError("too many log-ins at once; try again")
        try:
            with self._turn:
                yield
        finally:
            self._places.release()

    # --- sessions ---

    def log_in(self, name: str, password: str, *, now: datetime, address: str) -> str | None:
        """The value of a new session's cookie; ``None`` where name or password are wrong, or the account disabled."""
        found = self.verify(name, password)
        if found is None:
            # The name only where there is such an account: people type their password there by mistake.
            known = _NAME.fullmatch(name.lower()) and account_store.find_account(self._store, name.lower())
            subject = name.lower() if known else "(unknown name)"
            record(self._store, now=now, actor="nobody", action="login failed", subject=subject, address=address)
            return None
        value = secrets.token_urlsafe(32)
        account_store.add_session(
            self._store,
            session_hash=sha256(value),
            name=found.name,
            now=now,
            idle=self._lifetimes.idle,
            longest=self._lifetimes.longest,
            by=Doer(actor=found.name, address=address),
        )
        return value

    def holder(self, cookie: str, *, now: datetime, active: bool = True) -> SessionHolder | None:
        """Whose session `cookie` is, where it has not ended.

        Parameters
        ----------
        active
            Whether a person asks, and not a page that keeps itself up to date: only that keeps a session from ending.
        """
        session_hash = sha256(cookie)
        found = account_store.find_session(self._store, session_hash)
        if found is None or found.disabled:
            return None
        if now >= found.created_at + self._lifetimes.longest or now >= found.seen_at + self._lifetimes.idle:
            return None
        if active and now - found.seen_at >= TOUCH_EVERY:
            try:
                account_store.touch_session(self._store, session_hash, now)
            except StoreError as error:
                logger.warning("%s", error)
        return SessionHolder(name=found.name, role=found.role, must_change=found.must_change, session_hash=session_hash)

    def log_out(self, session_hash: str, *, now: datetime, by: Doer) -> None:
        """End a session."""
        account_store.end_session(self._store, session_hash, now=now, by=by)

    # --- tokens ---

    def make_token(
        self, purpose: str, role: Role, *, lifetime: timedelta | None, now: datetime, by: Doer
    ) -> tuple[str, str]:
        """A new token: its key and its secret, which is shown once and never stored.

        Raises
        ------
        AccountError
            There is no purpose, or the lifetime is not positive.
        """
        purpose = " ".join(purpose.split())
        if not 0 < len(purpose) <= 100 or not purpose.isprintable():
            raise AccountError("a token needs a purpose of 1 to 100 characters: which machine, what for")
        if lifetime is not None and lifetime <= timedelta():
            raise AccountError("a token must be valid for longer than nothing")
        secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
        key = new_key()
        account_store.add_token(
            self._store,
            token_key=key,
            token_hash=sha256(secret),
            purpose=purpose,
            role=role,
            expires_at=None if lifetime is None else now + lifetime,
            now=now,
            by=by,
        )
        return key, secret

    def bearer(self, secret: str, *, now: datetime) -> Token | None:
        """The token of that secret, where it is neither revoked nor expired."""
        found = account_store.find_token(self._store, sha256(secret))
        if found is None or found.revoked_at is not None:
            return None
        if found.expires_at is not None and now >= found.expires_at:
            return None
        if found.last_used_at is None or now - found.last_used_at >= TOUCH_EVERY:
            try:
                account_store.touch_token(self._store, found.token_key, now)
            except StoreError as error:
                logger.warning("%s", error)
        return found

    def revoke_token(self, token_key: str, *, now: datetime, by: Doer) -> None:
        """End a token for good. Raises :class:`AccountError` where there is none."""
        account_store.revoke_token(self._store, token_key, now=now, by=by)

    def tokens(self) -> list[Token]:
        """All tokens, newest first."""
        return account_store.tokens(self._store)


def random_password() -> str:
    """144 random bits."""
    return secrets.token_urlsafe(18)


def sha256(secret: str) -> str:
    """What the store holds of a cookie or token."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def fitting_name(name: str) -> str:
    """`name` in lower case. Raises :class:`AccountError` where it cannot be an account's."""
    name = name.strip().lower()
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise AccountError("a name has 1 to 64 letters a-z, digits or . _ @ -, and begins with a letter or digit")
    return name


def fitting_password(password: str, name: str) -> str:
    """`password` in its normal form. Raises :class:`AccountError` where it is too weak for that account."""
    password = _normal(password)
    if len(password) < LEAST_PASSWORD_LENGTH:
        raise AccountError(f"a password has at least {LEAST_PASSWORD_LENGTH} characters")
    if len(password) > LONGEST_PASSWORD_LENGTH:
        raise AccountError(f"a password has at most {LONGEST_PASSWORD_LENGTH} characters")
    if len(set(password)) < 4 or (len(name) > 2 and len(password.lower().replace(name, "")) < LEAST_PASSWORD_LENGTH):
        raise AccountError("that password is the account's name or a few characters over again; choose another")
    return password


def _normal(password: str) -> str:
    """The same characters however a keyboard composes them (NIST SP 800-63B section 5.1.1.2)."""
    return unicodedata.normalize("NFKC", password)


def _check_role(role: Role) -> None:
    if role not in PEOPLE:
        raise AccountError(f"an account's role is one of {', '.join(PEOPLE)}; {role} is for tokens")


# --- first start ---


def first_password_path(data_dir: Path) -> Path:
    """Where the password of the first account stands until it is changed."""
    return data_dir / FIRST_PASSWORD_FILE


def prepare_first_account(store: Store, data_dir: Path, *, now: datetime) -> Path | None:
    """Make the account ``admin`` where there is no account at all; gives the file that holds its password, if any.

    For the process that holds the data folder's lock. The file is whole and on disk before the account is made, so
    that a kill at any moment leaves no account whose password nobody knows; a file without an account is used again.
    """
    path = first_password_path(data_dir)
    known = account_store.accounts(store)
    if known:
        waiting = any(each.name == FIRST_ACCOUNT and each.must_change for each in known)
        if not waiting:
            path.unlink(missing_ok=True)  # killed between the change and the removal
        return path if waiting and path.is_file() else None
    password = _read_first_password(path) or _write_first_password(path)
    Accounts(store, data_dir).make(
        FIRST_ACCOUNT, password, Role.ADMINISTRATOR, now=now, by=Doer(actor="first start"), must_change=True
    )
    return path


def _read_first_password(path: Path) -> str:
    """The password of a file that a start before this one left; empty where there is none of our own."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)) as file:
            status = os.fstat(file.fileno())
            private = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077 and status.st_uid == os.geteuid()
            return file.read(1000).strip() if private else ""
    except (OSError, UnicodeDecodeError):
        return ""


def _write_first_password(path: Path) -> str:
    """A new password in a file of its own, which only this user may read."""
    password = random_password()
    new = path.with_name(path.name + ".new")
    try:
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(password + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise AccountError(f"{path}: the first password cannot be written: {error.strerror}") from error
    return password
