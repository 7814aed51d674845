"""``gateway models``: which versions there are, and the steps of their life. For who may read the data folder."""

from __future__ import annotations

import argparse
import getpass
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import GatewayError, LifecycleError
from gateway.import_command import add_import_step
from gateway.register_command import add_register_step
from gateway.system_account import command_actor

if TYPE_CHECKING:
    from gateway.model_record import RecordEntry, RecordKey
    from gateway.settings import Settings
    from gateway.store import Store

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]
AddPlace = Callable[[argparse.ArgumentParser], None]
VERSION = "a version, as retinopathy@2"


class Site:
    """A data folder with its store, and the key of the record."""

    def __init__(self, options: argparse.Namespace, open_site: OpenSite) -> None:
        from gateway.model_record import load_record_key

        self.settings, self.data_dir, self.store = open_site(options)
        self.key: RecordKey = load_record_key(self.settings.deidentification, self.data_dir)

    def note(self, actor: str, action: str, subject: str, detail: str) -> None:
        """Into the list of who did what."""
        from gateway.store.audit import record

        record(self.store, now=datetime.now(UTC), actor=actor, action=action, subject=subject, detail=detail)

    def person(self, options: argparse.Namespace) -> str:
        """Who does it: the account named, or the operating system's where none is."""
        from gateway.signatures import fitting_reason, may_decide

        if not options.as_name:
            return command_actor()
        if self.settings.web.authentication == "off":
            return fitting_reason(options.as_name)
        return may_decide(self.store, options.as_name)


Run = Callable[[argparse.Namespace, Site], None]


def add_model_commands(commands: Any, add_place: AddPlace, open_site: OpenSite) -> None:
    """Add ``models`` to the parsers of the commands."""
    models = commands.add_parser("models", help="model versions: which there are, and the steps of their life")
    add_place(models)
    models.add_argument("--json", action="store_true", help="for machines")
    models.set_defaults(run=lambda options: _list(options, open_site))
    steps = models.add_subparsers(dest="step", metavar="STEP")

    def step(name: str, words: str, run: Run) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = steps.add_parser(name, help=words, description=words)
        _add_place(parser)
        parser.set_defaults(run=lambda options: _run(run, options, open_site))
        return parser

    add_register_step(steps, _add_place, open_site)
    add_import_step(steps)
    _add_requests(step)
    _add_moves(step)
    record = step("record", "who did what with which version, and why", _record)
    record.add_argument("model", nargs="?", default="", metavar="MODEL", help="of one model, or of one version")
    record.add_argument("--verify", action="store_true", help="find entries changed, deleted, inserted or cut off")
    record.add_argument("--json", action="store_true", help="for machines")


def _add_place(parser: argparse.ArgumentParser) -> None:
    """As before the step: what stands behind it holds, and what does not stand there does not undo what did."""
    parser.add_argument("--data-dir", type=Path, default=argparse.SUPPRESS, metavar="DIR", help="data folder")
    parser.add_argument("--config", type=Path, default=argparse.SUPPRESS, metavar="FILE")


def _add_requests(step: Callable[[str, str, Run], argparse.ArgumentParser]) -> None:
    propose = step("propose", "ask that a version become canary or champion", _propose)
    propose.add_argument("version", metavar="MODEL@V", help=VERSION)
    propose.add_argument("--to", required=True, choices=["canary", "champion"])
    propose.add_argument("--report", required=True, metavar="KEY", help="the comparison that meets the card's criteria")
    propose.add_argument("--fraction", type=float, metavar="F", help="of a canary: share of the studies, 0 to 1")
    propose.add_argument("--device", action="append", default=[], metavar="D", help="of a canary: a device; repeatable")
    propose.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of a canary: error_fraction, latency_ratio, disagreement_fraction, drift (true or false), least_studies",
    )
    approve = step("approve", "sign a request; the second signature carries it out", _approve)
    approve.add_argument("--password-stdin", action="store_true", help="read it from standard input, do not ask")
    for parser in (
        approve,
        step("refuse", "end a request: one refusal is enough", _refuse),
        step("withdraw", "take one's own request back", _withdraw),
    ):
        parser.add_argument("request", metavar="REQUEST", help="its key, as `gateway models` shows it")
        _add_who(parser, needed=True)
    _add_who(propose, needed=True)
    for parser in (propose, approve):
        parser.add_argument("--json", action="store_true", help="for machines")


def _add_moves(step: Callable[[str, str, Run], argparse.ArgumentParser]) -> None:
    shadow = step("shadow", "run a version beside the champion, unseen; recorded, needs no approval", _shadow)
    shadow.add_argument("--stop", action="store_true", help="end it: the version is a draft again")
    canary = step("end-canary", "take a canary's studies away; it goes on as shadow", _end_canary)
    retire = step("retire", "let a version that is not champion run no more", _retire)
    reopen = step("reopen", "make a retired version a draft, to be compared and approved anew", _reopen)
    for parser in (shadow, canary, retire, reopen):
        parser.add_argument("version", metavar="MODEL@V", help=VERSION)
        _add_who(parser)
    back = step("rollback", "let the last former champion judge again, at once", _rollback)
    back.add_argument("model", metavar="MODEL", help="the model's name, without a version")
    back.add_argument("--json", action="store_true", help="for machines")
    _add_who(back)


def _add_who(parser: argparse.ArgumentParser, *, needed: bool = False) -> None:
    parser.add_argument("--reason", required=True, help="why; it is recorded")
    parser.add_argument(
        "--as", dest="as_name", required=needed, default="", metavar="NAME", help="the account that does it"
    )


def _run(run: Run, options: argparse.Namespace, open_site: OpenSite) -> int:
    site = Site(options, open_site)
    try:
        run(options, site)
    finally:
        site.store.close()
    return 0


# --- list ---


def _list(options: argparse.Namespace, open_site: OpenSite) -> int:
    from gateway.catalogue import list_models

    try:
        _, _, store = open_site(options)
    except GatewayError:
        # No gateway has run here yet: what ships is shown.
        if (options.data_dir / "gateway.db").is_file():
            raise
        return _print_models(list_models(None), None, as_json=options.json)
    try:
        return _print_models(list_models(store), store, as_json=options.json)
    finally:
        store.close()


def _print_models(rows: list[dict[str, Any]], store: Store | None, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        state = f"  [{row['state']}]" if row["state"] else ""
        print(f"{row['name']} {row['version']}{state}  {row['title']}")
        if row["state"]:
            print(f"    {row['state']} since {row['state_since'][:16].replace('T', ' ')} UTC, {row['by']}")
        if row.get("traffic"):
            print(f"    gets {traffic_words(row['traffic'])}")
        print(f"    sha256 of the model {row['model_sha256']}")
        for metric in row["metrics"]:
            bounds = f" ({metric['low']:.3f} to {metric['high']:.3f})" if metric["low"] is not None else ""
            print(f"    {metric['name']} {metric['value']:.3f}{bounds}, {metric['dataset']}: {metric['method']}")
    if store is not None:
        _print_open_requests(store)
    return 0


def _print_open_requests(store: Store) -> None:
    from gateway.models_view import models_view, monitor_report

    for model in models_view(store):
        for each in model["requests"]:
            signed = ", ".join(approval["by"] for approval in each["approvals"]) or "nobody yet"
            print(f"request {each['request_key']}: {each['model_name']}@{each['version']} to {each['to_state']}")
            print(f"    proposed by {each['proposed_by']}: {each['reason']}; approved by {signed}")
    for sentence in monitor_report(store).sentences:
        print(sentence, file=sys.stderr)


def traffic_words(traffic: dict[str, Any]) -> str:
    """A canary's share in words."""
    parts = []
    if "fraction" in traffic:
        parts.append(f"{traffic['fraction']:.1%} of the studies")
    if traffic.get("devices"):
        parts.append(f"those of {', '.join(traffic['devices'])}")
    limits = ", ".join(f"{name} {value}" for name, value in traffic.get("limits", {}).items())
    return " and ".join(parts) + (f"; limits: {limits}" if limits else "")


# --- requests ---


def _propose(options: argparse.Namespace, site: Site) -> None:
    from gateway.lifecycle import parse_version
    from gateway.model_requests import propose
    from gateway.models_view import request_view
    from gateway.signatures import may_decide
    from gateway.store.models import VersionState

    name, version = parse_version(options.version)
    by = may_decide(site.store, options.as_name)
    request = propose(
        site.store,
        key=site.key,
        data_dir=site.data_dir,
        model_name=name,
        version=version,
        to_state=VersionState(options.to),
        comparison_key=options.report,
        reason=options.reason,
        by=by,
        now=datetime.now(UTC),
        fraction=options.fraction,
        devices=tuple(options.device),
        limits=dict(_limit(text) for text in options.limit),
        detail={"via": command_actor()},
    )
    site.note(by, "model proposed", request.request_key, f"{options.version} to {options.to}")
    if options.json:
        print(json.dumps(request_view(request, ()), indent=2, default=str))
        return
    print(f"request {request.request_key}: two people have to approve it")


def _limit(text: str) -> tuple[str, float | bool]:
    name, _, value = text.partition("=")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, float(value)
    except ValueError:
        raise LifecycleError(f"--limit {text}: expected NAME=NUMBER, or drift=true or drift=false") from None


def _approve(options: argparse.Namespace, site: Site) -> None:
    from gateway.accounts import Accounts
    from gateway.model_requests import approve

    approved = approve(
        site.store,
        key=site.key,
        data_dir=site.data_dir,
        accounts=Accounts(site.store, site.data_dir),
        request_key=options.request,
        name=options.as_name,
        password=_password(options),
        reason=options.reason,
        now=datetime.now(UTC),
        detail={"via": command_actor()},
    )
    request = approved.request
    site.note(approved.approved_by[-1], "model approved", request.request_key, options.reason)
    if options.json:
        print(json.dumps({"carried_out": approved.carried_out, "approved_by": approved.approved_by}))
    elif approved.carried_out:
        print(
            f"{request.model_name}@{request.version} is {request.to_state}, approved by "
            f"{' and '.join(approved.approved_by)}"
        )
    else:
        print(f"approved by {', '.join(approved.approved_by)}; one more person has to")


def _password(options: argparse.Namespace) -> str:
    """Never an argument, which other users of the machine could see."""
    if options.password_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise LifecycleError("nobody to ask for the password; give it on standard input with --password-stdin")
    return getpass.getpass(f"Password of {options.as_name}, as signature: ")


def _refuse(options: argparse.Namespace, site: Site) -> None:
    _end_request(options, site, "refused")


def _withdraw(options: argparse.Namespace, site: Site) -> None:
    _end_request(options, site, "withdrawn")


def _end_request(options: argparse.Namespace, site: Site, how: str) -> None:
    from gateway.model_requests import refuse, withdraw
    from gateway.signatures import may_decide

    by = may_decide(site.store, options.as_name)
    (refuse if how == "refused" else withdraw)(
        site.store,
        key=site.key,
        request_key=options.request,
        by=by,
        reason=options.reason,
        now=datetime.now(UTC),
        detail={"via": command_actor()},
    )
    site.note(by, f"model request {how}", options.request, options.reason)
    print(f"request {options.request} is {how}")


# --- steps of one person ---


def _shadow(options: argparse.Namespace, site: Site) -> None:
    _step(options, site, "stop shadow" if options.stop else "shadow")


def _end_canary(options: argparse.Namespace, site: Site) -> None:
    from gateway.lifecycle import end_canary, parse_version

    name, version = parse_version(options.version)
    actor = site.person(options)
    state = end_canary(
        site.store,
        key=site.key,
        model_name=name,
        version=version,
        reason=options.reason,
        detail={"via": command_actor()},
        now=datetime.now(UTC),
        actor=actor,
    )
    site.note(actor, "model end canary", options.version, options.reason)
    print(f"{options.version} is {state}")


def _retire(options: argparse.Namespace, site: Site) -> None:
    _step(options, site, "retire")


def _reopen(options: argparse.Namespace, site: Site) -> None:
    _step(options, site, "reopen")


def _step(options: argparse.Namespace, site: Site, action: str) -> None:
    from gateway.lifecycle import Action, parse_version, take_step

    name, version = parse_version(options.version)
    actor = site.person(options)
    state = take_step(
        site.store,
        key=site.key,
        model_name=name,
        version=version,
        action=Action(action),
        actor=actor,
        reason=options.reason,
        now=datetime.now(UTC),
        detail={"via": command_actor()},
    )
    site.note(actor, f"model {action}", options.version, options.reason)
    print(f"{options.version} is {state}")


def _rollback(options: argparse.Namespace, site: Site) -> None:
    from gateway.lifecycle import roll_back

    actor = site.person(options)
    done = roll_back(
        site.store,
        model_name=options.model,
        reason=options.reason,
        actor=actor,
        now=datetime.now(UTC),
        key=site.key,
    )
    site.note(actor, "model rolled back", f"{options.model}@{done.to_version}", options.reason)
    if options.json:
        print(json.dumps({"model": options.model, "from": done.from_version, "to": done.to_version}))
        return
    print(
        f"{options.model}@{done.to_version} is champion again, in place of {options.model}@{done.from_version}; "
        "workers take it up within seconds"
    )


# --- record ---


def _record(options: argparse.Namespace, site: Site) -> None:
    from gateway.lifecycle import parse_version
    from gateway.model_record import entries, verify

    if options.verify:
        problems = verify(site.store, site.key)
        if problems:
            raise LifecycleError("the record is not as it was written:\n  " + "\n  ".join(problems))
        print("the record is as it was written", file=sys.stderr)
    name, version = options.model or None, None
    if name is not None and "@" in name:
        name, version = parse_version(name)
    with site.store.read() as connection:
        found = entries(connection, model_name=name, version=version)
    if options.json:
        print(json.dumps([_entry(each) for each in found], indent=2))
        return
    for each in found:
        moved = f"  {each.from_state or 'new'} -> {each.to_state}" if each.to_state else ""
        asked = f"  request {each.request_key}" if each.request_key else ""
        print(
            f"{each.record_id:6} {each.at:%Y-%m-%d %H:%M:%S} UTC  {each.model_name}@{each.version}  {each.action}"
            f"{moved}  by {each.actor}{asked}"
        )
        if each.reason:
            print(f"       {each.reason}")


def _entry(entry: RecordEntry) -> dict[str, Any]:
    from gateway.models_view import entry_view

    return entry_view(entry) | {"at": entry.at.isoformat()}
