"""``gateway users`` and ``gateway tokens``: for who may read and write the data folder, without a log-in."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from gateway.errors import AccountError
from gateway.roles import PEOPLE, Role

if TYPE_CHECKING:
    from gateway.accounts import Accounts

OpenAccounts = Callable[[argparse.Namespace], "Accounts"]
Run = Callable[[argparse.Namespace, "Accounts"], None]


def add_account_commands(
    commands: Any, add_data_dir: Callable[[argparse.ArgumentParser], None], open_accounts: OpenAccounts
) -> None:
    """Add ``users`` and ``tokens`` to the parsers of the commands."""
    users = commands.add_parser("users", help="make, change, disable and list the accounts of people")
    steps = users.add_subparsers(dest="step", required=True, metavar="STEP")

    def step(name: str, words: str, run: Run) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = steps.add_parser(name, help=words)
        add_data_dir(parser)
        parser.set_defaults(run=lambda options: _run(run, options, open_accounts))
        return parser

    roles = [str(role) for role in PEOPLE]
    add = step("add", "a new account", _add)
    add.add_argument("name")
    add.add_argument("--role", required=True, choices=roles)
    password = step("password", "a new password; ends the account's sessions", _password)
    password.add_argument("name")
    for parser in (add, password):
        parser.add_argument("--password-stdin", action="store_true", help="read it from standard input, do not ask")
        parser.add_argument("--must-change", action="store_true", help="it has to be changed at the next log-in")
    step("disable", "end its sessions and let it in no more", _disable).add_argument("name")
    step("enable", "let it in again", _enable).add_argument("name")
    role = step("role", "another role", _role)
    role.add_argument("name")
    role.add_argument("role", choices=roles)
    step("list", "all accounts", _list).add_argument("--json", action="store_true", help="for machines")

    tokens = commands.add_parser("tokens", help="make, revoke and list the tokens of machines")
    steps = tokens.add_subparsers(dest="step", required=True, metavar="STEP")
    make = step("make", "a new token, printed once", _make_token)
    make.add_argument("--purpose", required=True, help="which machine, what for")
    make.add_argument("--role", required=True, choices=[str(role) for role in Role])
    make.add_argument("--days", type=float, default=365, help="valid for so long; 0: without end (default: 365)")
    step("revoke", "end a token for good", _revoke_token).add_argument("key", help="as `gateway tokens list` shows it")
    step("list", "all tokens", _list_tokens).add_argument("--json", action="store_true", help="for machines")


def _run(run: Run, options: argparse.Namespace, open_accounts: OpenAccounts) -> int:
    run(options, open_accounts(options))
    return 0


def _who() -> dict[str, Any]:
    from gateway.store.accounts import Doer

    return {"now": datetime.now(UTC), "by": Doer(actor="command")}


def _ask(options: argparse.Namespace) -> str:
    """A password: never an argument, which other users of the machine could see."""
    if options.password_stdin:
        return sys.stdin.readline().rstrip("\n")
    if not sys.stdin.isatty():
        raise AccountError("nobody to ask for the password; give it on standard input with --password-stdin")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != password:
        raise AccountError("the two passwords differ")
    return password


def _add(options: argparse.Namespace, accounts: Accounts) -> None:
    password = _ask(options)
    name = accounts.make(options.name, password, Role(options.role), must_change=options.must_change, **_who())
    print(f"{name} may log in, as {options.role}")


def _password(options: argparse.Namespace, accounts: Accounts) -> None:
    accounts.set_password(options.name, _ask(options), must_change=options.must_change, **_who())
    print(f"the password of {options.name} is changed")


def _disable(options: argparse.Namespace, accounts: Accounts) -> None:
    accounts.disable(options.name, **_who())
    print(f"{options.name} is disabled")


def _enable(options: argparse.Namespace, accounts: Accounts) -> None:
    accounts.enable(options.name, **_who())
    print(f"{options.name} is enabled")


def _role(options: argparse.Namespace, accounts: Accounts) -> None:
    accounts.set_role(options.name, Role(options.role), **_who())
    print(f"{options.name} is {options.role}")


def _list(options: argparse.Namespace, accounts: Accounts) -> None:
    names = ("name", "role", "disabled", "must_change", "created_at", "changed_at", "last_seen_at")
    rows = [{name: getattr(each, name) for name in names} for each in accounts.accounts()]
    if options.json:
        print(json.dumps(rows, indent=2, default=lambda at: at.isoformat()))
        return
    for row in rows:
        seen = f"last log-in {row['last_seen_at']:%Y-%m-%d %H:%M} UTC" if row["last_seen_at"] else "never logged in"
        state = "disabled, " if row["disabled"] else "must change the password, " if row["must_change"] else ""
        print(f"{row['name']:24} {row['role']:14} {state}{seen}")


def _make_token(options: argparse.Namespace, accounts: Accounts) -> None:
    lifetime = timedelta(days=options.days) if options.days else None
    key, secret = accounts.make_token(options.purpose, Role(options.role), lifetime=lifetime, **_who())
    print(f"token {key}, shown once:", file=sys.stderr, flush=True)
    print(secret)


def _revoke_token(options: argparse.Namespace, accounts: Accounts) -> None:
    accounts.revoke_token(options.key, **_who())
    print(f"token {options.key} is revoked")


def _list_tokens(options: argparse.Namespace, accounts: Accounts) -> None:
    names = ("token_key", "purpose", "role", "created_by", "created_at", "expires_at", "revoked_at", "last_used_at")
    rows = [{name: getattr(each, name) for name in names} for each in accounts.tokens()]
    if options.json:
        print(json.dumps(rows, indent=2, default=lambda at: at.isoformat()))
        return
    for row in rows:
        ends = f"until {row['expires_at']:%Y-%m-%d}" if row["expires_at"] else "without end"
        state = "revoked" if row["revoked_at"] else ends
        print(f"{row['token_key']}  {row['role']:14} {state:18} {row['purpose']}")
