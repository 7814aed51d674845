"""``gateway vault``: look up, rotate keys, shred a patient, say what there is. For who may read the data folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import IdentityError
from gateway.system_account import command_actor

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.store import Store
    from gateway.store.accounts import Doer
    from gateway.vault import Vault

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]
Run = Callable[[argparse.Namespace, "Settings", Path, "Store"], None]


def add_vault_commands(
    commands: Any, add_place: Callable[[argparse.ArgumentParser], None], open_site: OpenSite
) -> None:
    """Add ``vault`` to the parsers of the commands."""
    vault = commands.add_parser("vault", help="from pseudonyms back to patients: look up, rotate keys, shred")
    steps = vault.add_subparsers(dest="step", required=True, metavar="STEP")

    def step(name: str, words: str, run: Run) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = steps.add_parser(name, help=words)
        add_place(parser)
        parser.set_defaults(run=lambda options: _run(run, options, open_site))
        return parser

    find = step("find", "whom a pseudonym stands for; recorded with the reason", _find)
    shred = step("shred", "make a patient's identity unreadable for good", _shred)
    for parser in (find, shred):
        parser.add_argument("pseudonym", help="Patient ID of a de-identified object")
        parser.add_argument("--reason", required=True, help="why; no patient's name, it is recorded")
    find.add_argument("--json", action="store_true", help="for machines")
    shred.add_argument("--yes", action="store_true", help="do not ask again")
    step("rotate", "change the key; may be stopped and run again, while the gateway runs", _rotate)
    step("status", "how much there is, and under which keys", _status).add_argument(
        "--json", action="store_true", help="for machines"
    )


def _run(run: Run, options: argparse.Namespace, open_site: OpenSite) -> int:
    settings, data_dir, store = open_site(options)
    try:
        run(options, settings, data_dir, store)
    finally:
        store.close()
    return 0


def _who() -> Doer:
    """The command line, and whose: the operating system's account."""
    from gateway.store.accounts import Doer

    return Doer(actor=command_actor())


def _opened(settings: Settings, data_dir: Path) -> Vault:
    from gateway.vault import open_vault

    if settings.vault.enabled and not settings.vault.url and not (data_dir / "vault.db").is_file():
        raise IdentityError(f"no gateway has kept a vault in {data_dir}; expected vault.db in it (--data-dir)")
    vault = open_vault(settings.vault, data_dir)
    if vault is None:
        raise IdentityError("this gateway keeps no vault (vault.enabled)")
    return vault


def _find(options: argparse.Namespace, settings: Settings, data_dir: Path, store: Store) -> None:
    from gateway.look_up import look_up, shown

    _opened(settings, data_dir).close()  # says so where there is none, before anything is recorded
    found = look_up(
        settings.vault,
        data_dir,
        store,
        options.pseudonym,
        reason=options.reason,
        by=_who(),
        now=datetime.now(UTC),
    )
    studies = [shown(each) for each in found]
    if not studies:
        raise IdentityError("the vault holds nobody of that pseudonym")
    if options.json:
        print(json.dumps(studies, indent=2, default=str, ensure_ascii=False))
        return
    for study in studies:
        print(f"{study['patient_name']}  ID {study['patient_id']}  born {study['patient_birth_date'] or 'unknown'}")
        print(f"    accession number {study['accession_number']}, study {study['study_instance_uid']}")


def _shred(options: argparse.Namespace, settings: Settings, data_dir: Path, store: Store) -> None:
    from gateway.look_up import LONGEST_REASON, plain_pseudonym
    from gateway.store.audit import record

    pseudonym, reason = plain_pseudonym(options.pseudonym), options.reason.strip()
    if pseudonym is None:
        raise IdentityError("a patient's pseudonym has 16 hexadecimal digits, as Patient ID of a de-identified object")
    if not reason or len(reason) > LONGEST_REASON:
        raise IdentityError(f"a reason is needed, of at most {LONGEST_REASON} characters")
    vault = _opened(settings, data_dir)
    try:
        studies = vault.studies(pseudonym)
        if not options.yes:
            _ask(pseudonym, len(studies))
        by, now = _who(), datetime.now(UTC)
        record(store, now=now, actor=by.actor, action="identity shredded", subject=pseudonym, detail=reason)
        vault.shred(pseudonym)
    finally:
        vault.close()
    print(f"{pseudonym}: the identity of {len(studies)} studies cannot be read any more")
    left = _still_here(store, studies)
    if left:
        print("Images, results and rows of these studies are still here, until retention deletes them:")
        for key in left:
            print(f"    {key}")


def _ask(pseudonym: str, studies: int) -> None:
    if not sys.stdin.isatty():
        raise IdentityError("nobody to ask; --yes shreds without")
    typed = input(f"The way back to this patient ({studies} studies) is lost for good. Type the pseudonym to go on: ")
    if typed.strip().upper() != pseudonym:
        raise IdentityError("not shredded")


def _still_here(store: Store, study_keys: tuple[str, ...]) -> list[str]:
    from sqlalchemy import select

    from gateway.store.schema import study

    with store.read() as connection:
        here = set(connection.execute(select(study.c.study_key).where(study.c.study_key.in_(study_keys))).scalars())
    return [key for key in study_keys if key in here]


def _rotate(options: argparse.Namespace, settings: Settings, data_dir: Path, store: Store) -> None:
    from tqdm import tqdm

    from gateway.store.audit import record
    from gateway.vault_keys import former_keys, is_in_data_dir, make_next_key, remove_former_keys

    _opened(settings, data_dir).close()
    ours = is_in_data_dir(settings.vault)
    if ours and not former_keys(data_dir):  # else one was begun that has not ended
        make_next_key(data_dir)
    vault = _opened(settings, data_dir)
    try:
        vault.prepare()  # every key that is needed is at hand
        total = vault.status().patients
        with tqdm(total=total, unit="patient", disable=not sys.stderr.isatty()) as bar:
            for done in vault.rotate():
                bar.update(done - bar.n)
        status = vault.status()
    finally:
        vault.close()
    record(store, now=datetime.now(UTC), actor=_who().actor, action="vault key changed", subject=status.key_id)
    print(f"{status.patients} patients are under key {status.key_id}")
    if ours:
        print(f"{remove_former_keys(data_dir)} former keys deleted")
    elif settings.vault.former_key_files:
        print("vault.former_key_files is needed no more: take it from the settings, then destroy those keys")


def _status(options: argparse.Namespace, settings: Settings, data_dir: Path, store: Store) -> None:
    vault = _opened(settings, data_dir)
    try:
        status = vault.status()
    finally:
        vault.close()
    if options.json:
        counts = {"patients": status.patients, "studies": status.studies}
        print(json.dumps(counts | {"key_id": status.key_id, "patients_by_key_id": dict(status.patients_by_key_id)}))
        return
    print(f"{status.patients} patients, {status.studies} studies; key in use {status.key_id}")
    for key_id, count in sorted(status.patients_by_key_id.items()):
        if key_id != status.key_id:
            print(f"    {count} patients still under key {key_id}: run gateway vault rotate")
