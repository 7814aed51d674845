"""``gateway saved``: what is kept for comparisons, taken elsewhere, removed. For who may read the data folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.errors import SavedError
from gateway.system_account import command_actor

if TYPE_CHECKING:
    from gateway.settings import Settings
    from gateway.store import Store
    from gateway.store.saved import SavedStudyRow

OpenSite = Callable[[argparse.Namespace], "tuple[Settings, Path, Store]"]
Run = Callable[[argparse.Namespace, "Settings", Path, "Store"], None]
_EPILOG = """QUERY is one argument, as 'model=retinopathy@2 device=KOWA* finding=referable_dr:present'. Its fields:
model, version, state, now, device, finding, score, quality, laterality, rule, modality, age_group, sex, site, person,
key, from, to; docs/saved-studies.md says what each takes."""
_REMOVED_A_STEP = 200


def add_saved_commands(
    commands: Any, add_place: Callable[[argparse.ArgumentParser], None], open_site: OpenSite
) -> None:
    """Add ``saved`` to the parsers of the commands."""
    saved = commands.add_parser("saved", help="studies that were kept de-identified: list, export, remove")
    steps = saved.add_subparsers(dest="step", required=True, metavar="STEP")

    def step(name: str, words: str, run: Run) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = steps.add_parser(name, help=words, epilog=_EPILOG)
        add_place(parser)
        parser.set_defaults(run=lambda options: _run(run, options, open_site))
        return parser

    listing = step("list", "what is saved, in order of arrival", _list)
    listing.add_argument("query", nargs="?", default="", metavar="QUERY", help="default: all")
    listing.add_argument("--json", action="store_true", help="for machines: one object a line")

    export = step("export", "write images, manifest and predictions to a new folder", _export)
    export.add_argument("query", metavar="QUERY", help="'' for all")
    export.add_argument("out", type=Path, metavar="OUT", help="a new folder; the same command goes on after a stop")
    export.add_argument("--dvc", action="store_true", help="let DVC track OUT, and print its hash for a card")
    export.add_argument("--dvc-command", default="dvc", metavar="PATH", help="default: the dvc on PATH")
    export.add_argument("--json", action="store_true", help="for machines")

    remove = step("remove", "delete saved studies; they are not saved again", _remove)
    remove.add_argument("query", metavar="QUERY", help="'' for all")
    remove.add_argument("--reason", required=True, help="why; no patient's name, it is recorded")
    remove.add_argument("--yes", action="store_true", help="do not ask again")


def _run(run: Run, options: argparse.Namespace, open_site: OpenSite) -> int:
    settings, data_dir, store = open_site(options)
    try:
        run(options, settings, data_dir, store)
    finally:
        store.close()
    return 0


def _list(options: argparse.Namespace, settings: Settings, data_dir: Path, store: Store) -> None:
    from gateway.saved.query import parse_query, select_saved
    from gateway.store.saved import holdings

    count = size_bytes = 0
    for study in select_saved(store, parse_query(options.query)):
        count += 1
        size_bytes += study.size_bytes
        print(json.dumps(_as_json(study)) if options.json else "\n".join(_lines(study)))
    if not options.json:
        held = holdings(store)
        print(f"{count} of {held.studies} saved studies, {size_bytes} of {held.size_bytes} bytes", end="; ")
        print(f"at most {settings.saved.maximum_bytes} bytes are saved")
        if not settings.saving:
            print("no [[saving]] rule is set: no further study is saved")


def _as_json(study: SavedStudyRow) -> dict[str, Any]:
    return {
        "saved_key": study.saved_key,
        "study_key": study.study_key,
        "rule": study.rule,
        "reason": study.reason,
        "received_at": study.received_at.isoformat(),
        "saved_at": study.saved_at.isoformat(),
        "modality": study.modality,
        "person": study.person,
        "characteristics": dict(study.characteristics),
        "folder": study.folder,
        "size_bytes": study.size_bytes,
        "images": [
            {
                "instance_key": image.instance_key,
                "frame_index": image.frame_index,
                "file_name": image.file_name,
                "sha256": image.sha256,
                "predictions": [
                    {
                        "model_name": said.model_name,
                        "model_version": said.model_version,
                        "role": said.role,
                        "device_key": said.device_key,
                        "laterality": said.laterality,
                        "findings": said.findings,
                        "ungradable_reasons": said.content["ungradable_reasons"],
                    }
                    for said in image.predictions
                ],
            }
            for image in study.images
        ],
    }


def _lines(study: SavedStudyRow) -> list[str]:
    told = ", ".join(study.characteristics[name] for name in ("age_group", "sex") if name in study.characteristics)
    lines = [
        f"{study.saved_key}  {study.received_at:%Y-%m-%d}  {study.modality}  {len(study.images)} frames"
        f"{f'  {told}' if told else ''}  [{study.rule}: {study.reason}]"
    ]
    for image in study.images:
        for said in image.predictions:
            verdict = (
                "ungradable"
                if said.is_ungradable
                else ", ".join(
                    f"{finding['name']} {'present' if finding['present'] else 'absent'} {finding['score']:.3f}"
                    for finding in said.findings
                )
            )
            lines.append(f"    {said.model_name} {said.model_version} ({said.role}): {verdict}")
    return lines


def _export(options: argparse.Namespace, settings: Settings, data_dir: Path, store: Store) -> None:
    from tqdm import tqdm

    from gateway import __version__
    from gateway.saved.dvc_export import find_dvc, find_repository, track
    from gateway.saved.export import export_saved, is_export_of
    from gateway.saved.query import parse_query
    from gateway.store.audit import record

    query, out = parse_query(options.query), options.out.absolute()
    command = find_dvc(options.dvc_command) if options.dvc else None
    if command is not None:
        find_repository(out)
    report: dict[str, Any] = {"folder": str(out)}
    now = datetime.now(UTC)
    if not (command is not None and is_export_of(out, query)):  # else an earlier command came as far as this
        with tqdm(unit="study", disable=options.json or not sys.stderr.isatty()) as bar:

            def count(_: SavedStudyRow) -> None:
                bar.update()

            try:
                done = export_saved(store, data_dir, query, out, now=now, gateway_version=__version__, progress=count)
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise SavedError(f"{out}: {reason}; the same command goes on where it stopped") from error
        names = ("studies", "cases", "files", "size_bytes", "gone")
        report |= {name: getattr(done, name) for name in names}
        detail = f"{done.studies} studies, query {query.text!r}"
        record(store, now=now, actor=command_actor(), action="saved studies exported", detail=detail)
    if command is not None:
        report["dvc_hash"] = track(out, command)
    if options.json:
        print(json.dumps(report))
        return
    if "studies" in report:
        print(f"{out}: {report['studies']} studies, {report['cases']} frames, {report['size_bytes']} bytes")
        if report["gone"]:
            print(f"{report['gone']} studies were removed meanwhile and are not in it")
    if "dvc_hash" in report:
        print(f"tracked by DVC: {out}.dvc")
        print(f"dvc_hash: {report['dvc_hash']}")


def _remove(options: argparse.Namespace, settings: Settings, data_dir: Path, store: Store) -> None:
    from gateway.saved.folders import remove_saved
    from gateway.saved.query import parse_query, select_saved

    reason = options.reason.strip()
    if not reason:
        raise SavedError("a reason is needed: why these studies are removed")
    query, now = parse_query(options.query), datetime.now(UTC)
    count = sum(1 for _ in select_saved(store, query, saved_before=now))
    if not count:
        raise SavedError(f"no saved study fits {query.text!r}")
    if not options.yes:
        _ask(count)
    removed, going = 0, []
    for study in select_saved(store, query, saved_before=now):
        going.append(study.saved_key)
        if len(going) == _REMOVED_A_STEP:
            removed += remove_saved(store, data_dir, going, actor=command_actor(), reason=reason, now=now)
            going = []
    removed += remove_saved(store, data_dir, going, actor=command_actor(), reason=reason, now=now)
    print(f"{removed} saved studies were removed")


def _ask(count: int) -> None:
    if not sys.stdin.isatty():
        raise SavedError("nobody to ask; --yes removes without")
    if input(f"{count} saved studies are deleted for good. Type their number to go on: ").strip() != str(count):
        raise SavedError("nothing was removed")
