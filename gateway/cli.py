"""The command ``gateway``. Each subcommand imports what it needs, so that none waits for what another loads."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import __version__
from gateway.account_commands import add_account_commands
from gateway.compare_command import add_compare_command
from gateway.deidentify_command import add_deidentify_commands
from gateway.errors import GatewayError
from gateway.model_commands import add_model_commands
from gateway.performance_commands import add_performance_commands
from gateway.replay_command import add_replay_step
from gateway.retention_commands import add_retention_commands
from gateway.saved_commands import add_saved_commands
from gateway.settings import Settings, load_settings
from gateway.truth_commands import add_truth_commands
from gateway.vault_commands import add_vault_commands
from models.errors import ModelError

if TYPE_CHECKING:
    from gateway.accounts import Accounts
    from gateway.store import Store

DEFAULT_DATA_DIR = Path("data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; returns the exit status: 0 well, 1 it did not work, 2 the arguments are wrong."""
    options = _parser().parse_args(arguments)
    _set_up_logging(verbose=getattr(options, "verbose", False))
    try:
        status: int = options.run(options)
    except (GatewayError, ModelError) as error:
        print(f"gateway {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _set_up_logging(*, verbose: bool) -> None:
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(asctime)s %(levelname)-7s %(processName)-11s %(message)s",
        stream=sys.stderr,
    )
    # Libraries say what happened to every PDU, file and request; we say what matters once.
    for name in ("pynetdicom", "pydicom", "alembic", "mlflow", "uvicorn", "urllib3", "git", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gateway",
        description="DICOM gateway between PACS and imaging AI. The shipped models are demonstrations: for triage, "
        "not for diagnosis, with no clinical validation.",
    )
    parser.add_argument("--version", action="version", version=f"gateway {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run the gateway")
    _add_serving(serve)
    serve.set_defaults(run=_serve)

    demo = commands.add_parser("demo", help="run it, send sample studies, print what came back, stay up")
    _add_serving(demo, data_dir=Path("demo-data"))
    demo.add_argument("--exit", action="store_true", help="end when the last result has come back")
    demo.set_defaults(run=_demo)

    check = commands.add_parser("check", help="validate a configuration; say which rule chooses an image, and why")
    check.add_argument("--config", type=Path, metavar="FILE", help="configuration to check; the defaults without")
    check.add_argument(
        "--study", type=Path, nargs="+", metavar="FILE", help="DICOM files or folders to try the rules on"
    )
    check.add_argument("--json", action="store_true", help="for machines")
    check.set_defaults(run=_check)

    send = commands.add_parser("send", help="send DICOM files by C-STORE")
    send.add_argument("files", type=Path, nargs="+", metavar="PATH", help="files or folders")
    send.add_argument("--host", default="127.0.0.1")
    send.add_argument("--port", type=int, default=11112)
    send.add_argument("--called", default="GATEWAY", metavar="AE", help="AE title of the receiver")
    send.add_argument("--calling", default="GATEWAY-SEND", metavar="AE", help="AE title to send as")
    send.add_argument("--associations", type=int, default=1, metavar="N", help="how many at once")
    send.add_argument("--tls", action="store_true", help="by TLS; needs --authorities")
    send.add_argument("--authorities", default="", metavar="PEM", help="who may sign the receiver's certificate")
    send.add_argument("--certificate", default="", metavar="PEM", help="certificate to show, chain included")
    send.add_argument("--key", default="", metavar="PEM", help="its private key")
    send.add_argument("--json", action="store_true", help="for machines")
    send.set_defaults(run=_send)

    add_model_commands(commands, _add_place, _open_site)

    studies = commands.add_parser("studies", help="list studies with their predictions, findings, alarms, deliveries")
    _add_data_dir(studies)
    studies.add_argument("--config", type=Path, metavar="FILE")
    studies.add_argument("--json", action="store_true", help="for machines")
    studies.add_argument("--complete", metavar="KEY", help="judge a study now, without waiting for its quiet time")
    studies.set_defaults(run=_studies)
    steps = add_retention_commands(commands, studies, _add_place, _open_site)
    add_replay_step(steps, _open_site)

    add_account_commands(commands, _add_place, _open_accounts)
    add_vault_commands(commands, _add_place, _open_site)
    add_deidentify_commands(commands)
    add_compare_command(commands, _add_place, _open_site)
    add_saved_commands(commands, _add_place, _open_site)
    add_truth_commands(commands, _add_place, _open_site)
    add_performance_commands(commands, _add_place, _open_site)
    return parser


def _add_data_dir(parser: argparse.ArgumentParser, default: Path = DEFAULT_DATA_DIR) -> None:
    parser.add_argument(
        "--data-dir", type=Path, default=default, metavar="DIR", help=f"data folder (default: {default})"
    )


def _add_place(parser: argparse.ArgumentParser) -> None:
    _add_data_dir(parser)
    parser.add_argument("--config", type=Path, metavar="FILE")


def _add_serving(parser: argparse.ArgumentParser, data_dir: Path = DEFAULT_DATA_DIR) -> None:
    _add_data_dir(parser, data_dir)
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML; what it does not say stays at its default")
    parser.add_argument("--dicom-port", type=int, metavar="N", help="port of the SCP; 0 picks a free one")
    parser.add_argument("--http-port", type=int, metavar="N", help="port of pages and API; 0 picks a free one")
    parser.add_argument(
        "--announce", action="store_true", help="print the ports as one line of JSON on standard output"
    )
    parser.add_argument("--verbose", action="store_true", help="log more")


def _settings(options: argparse.Namespace) -> Settings:
    ports = {"dicom.port": getattr(options, "dicom_port", None), "web.port": getattr(options, "http_port", None)}
    return load_settings(options.config, overrides={name: port for name, port in ports.items() if port is not None})


def _serve(options: argparse.Namespace) -> int:
    from gateway.service import serve

    serve(_settings(options), options.data_dir.resolve(), announce=sys.stdout if options.announce else None)
    return 0


def _demo(options: argparse.Namespace) -> int:
    from gateway.demo import run_demo

    return run_demo(
        config=options.config,
        data_dir=options.data_dir.resolve(),
        dicom_port=options.dicom_port,
        http_port=options.http_port,
        announce=options.announce,
        stay=not options.exit,
    )


def _check(options: argparse.Namespace) -> int:
    from gateway.check import check, report_lines

    report = check(options.config, options.study or ())
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(report_lines(report)))
    return 0 if report["ok"] else 1


def _send(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from gateway.send import SentFile, find_files, send_files
    from gateway.tls import client_settings

    tls = None
    if options.tls:
        tls = client_settings(authorities=options.authorities, certificate=options.certificate, key=options.key)
    files = find_files(options.files)
    with tqdm(total=len(files), unit="file", disable=options.json or not sys.stderr.isatty()) as bar:

        def count(_: SentFile) -> None:
            bar.update()

        report = send_files(
            files,
            host=options.host,
            port=options.port,
            called_ae_title=options.called,
            calling_ae_title=options.calling,
            associations=options.associations,
            tls=tls,
            progress=count,
        )
    if options.json:
        rows = [{"path": str(each.path), "status": each.status, "error": each.error} for each in report.files]
        print(json.dumps({"files": rows, "accepted": report.accepted, "duration_s": report.duration_s}))
    else:
        for sent in report.files:
            if not sent.accepted:
                print(f"{sent.path}: {sent.error}")
        print(f"{report.accepted} of {len(report.files)} accepted in {report.duration_s:.1f} s")
    return 0 if report.files and report.accepted == len(report.files) else 1


def _studies(options: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from gateway.store.audit import record
    from gateway.store.studies import complete_now
    from gateway.studies_view import every_study

    store = _open_store(options)
    if options.complete:
        now = datetime.now(UTC)
        complete_now(store, options.complete, now)
        record(store, now=now, actor="command", action="judge now", subject=options.complete)
        return 0
    studies = every_study(store)
    if options.json:
        print(json.dumps(studies, indent=2, default=str))
        return 0
    for study in studies:
        print("\n".join(_study_lines(study)))
    return 0


def _open_store(options: argparse.Namespace) -> Store:
    """The store of a gateway that has run."""
    from gateway.store import open_store

    data_dir = options.data_dir.resolve()
    settings = _settings(options)
    if not settings.store.url and not (data_dir / "gateway.db").is_file():
        raise GatewayError(f"no gateway has run on {data_dir}; expected gateway.db in it (--data-dir)")
    return open_store(settings.store.url, data_dir=data_dir)


def _open_site(options: argparse.Namespace) -> tuple[Settings, Path, Store]:
    return _settings(options), options.data_dir.resolve(), _open_store(options)


def _open_accounts(options: argparse.Namespace) -> Accounts:
    from gateway.accounts import Accounts

    return Accounts(_open_store(options), options.data_dir.resolve())


def _study_lines(study: dict[str, Any]) -> list[str]:
    """One study for a person."""
    lines = [f"{study['study_key']}  {study['state']}  {study['modality']}  {study['instance_count']} images"]
    if study["reason"]:
        lines.append(f"    {study['reason']}")
    if study["hold"]:
        lines.append(f"    on hold by {study['hold']['by']}: {study['hold']['reason']}")
    for prediction in study["predictions"]:
        model = f"{prediction['model_name']} {prediction['model_version']}"
        if prediction["ungradable_reasons"]:
            lines.append(f"    {model}: ungradable, {'; '.join(prediction['ungradable_reasons'])}")
            continue
        for finding in prediction["findings"]:
            verdict = "present" if finding["present"] else "absent"
            lines.append(f"    {model}: {finding['title']} {verdict}, score {finding['score']:.3f}")
    delivered = sum(delivery["state"] == "delivered" for delivery in study["deliveries"])
    if study["deliveries"]:
        lines.append(f"    {delivered} of {len(study['deliveries'])} results delivered")
    return lines


if __name__ == "__main__":
    sys.exit(main())
