"""From a table to the store: the right study, whose word, once, and all or nothing."""

from __future__ import annotations

import csv
import io
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from known_versions import serve
from sqlalchemy import select, update
from tiny_bundles import write_tiny_bundle
from web_site import Site

from gateway.cli import main
from gateway.errors import TruthFileError
from gateway.objects import ObjectFolder
from gateway.settings import load_settings
from gateway.store import Store, open_store
from gateway.store.schema import audit, study, truth
from gateway.store.truth import Taken, Word, add_words, words
from gateway.truth import TruthOptions, read_truth_file
from gateway.truth_import import ImportReport, import_truth

NOW = datetime(2026, 2, 1, 9, tzinfo=UTC)
CODE = {"value": "1", "scheme": "99TEST", "meaning": "Test"}


def finding(name: str) -> dict[str, object]:
    return {"name": name, "title": name, "labels": ["there"], "operating_point": 0.4, "code": CODE}


@pytest.fixture
def site(store: Store, tmp_path: Path) -> Site:
    """A gateway that knows two models: retinopathy with one finding, chest with two."""
    write_tiny_bundle(tmp_path / "retinopathy", name="retinopathy", findings=[finding("referable")], acceptance=None)
    write_tiny_bundle(
        tmp_path / "chest", name="chest", findings=[finding("nodule"), finding("effusion")], acceptance=None
    )
    for name in ("retinopathy", "chest"):
        serve(store, name, 2, tmp_path / name, NOW)
    settings = load_settings(environment={}, overrides={"web.authentication": "off"})
    return Site(store=store, data_dir=tmp_path, objects=ObjectFolder.in_data_dir(tmp_path), settings=settings)


def take(
    site: Site, text: str, now: datetime = NOW, *, skip_unknown: bool = False, dry_run: bool = False
) -> ImportReport:
    path = site.data_dir / "reads.csv"
    path.write_text(text, encoding="utf-8")
    table = read_truth_file(path, TruthOptions())
    return import_truth(
        site.store, table, name=path.name, now=now, actor="test", skip_unknown=skip_unknown, dry_run=dry_run
    )


def counts(report: ImportReport) -> tuple[int, int, int, int]:
    return report.added, report.superseding, report.older, report.unchanged


def judged(site: Site) -> tuple[str, str]:
    key, image = site.receive()
    site.judge(key, {image: 0.9}, deliver=False)
    return key, image


def test_every_key_finds_its_study(site: Site) -> None:
    keys = [judged(site) for _ in range(5)]
    with site.store.read() as connection:
        rows = {row.study_key: row for row in connection.execute(select(study))}
    named = [rows[key] for key, _ in keys]
    take(
        site,
        "study_key,study_instance_uid,accession_number,sop_instance_uid,file,value\n"
        f"{keys[0][0]},,,,,1\n"
        f",{named[1].study_instance_uid},,,,0\n"
        f",,{named[2].accession_number},,,1\n"
        ",,,1.2.826.0.2.4,,0\n"
        f",,,,C:\\exports\\{keys[4][1]}.dcm,ungradable\n",
    )
    said = {(word.study_key, word.instance_key): word.value for word in words(site.store)}
    assert said == {
        (keys[0][0], ""): "present",
        (keys[1][0], ""): "absent",
        (keys[2][0], ""): "present",
        keys[3]: "absent",
        keys[4]: "ungradable",
    }


def test_no_identifier_is_kept(site: Site) -> None:
    key, _ = judged(site)
    with site.store.read() as connection:
        row = connection.execute(select(study)).one()
    take(site, f"accession_number,study_instance_uid,value\n{row.accession_number},{row.study_instance_uid},1\n")
    with site.store.read() as connection:
        kept = str([tuple(each) for table in (truth, audit) for each in connection.execute(select(table))])
    assert key in kept
    assert row.accession_number not in kept
    assert row.study_instance_uid not in kept


def test_the_finding_is_the_models_only_one_or_that_of_the_model_that_judged(site: Site) -> None:
    key, _ = judged(site)  # by retinopathy
    take(site, f"study_key,value\n{key},1\n")
    take(site, f"study_key,finding,value\n{key},nodule,0\n")
    assert [(word.model_name, word.finding_name, word.value) for word in words(site.store)] == [
        ("retinopathy", "referable", "present"),
        ("chest", "nodule", "absent"),
    ]
    with pytest.raises(TruthFileError) as caught:
        take(site, f"study_key,model,finding,value\n{key},chest,,1\n{key},,cough,1\n{key},lung,,1\n")
    known = "one of nodule (chest), effusion (chest), referable (retinopathy)"  # by the models' names
    assert [str(problem) for problem in caught.value.problems] == [
        "line 2, column finding: found nothing, expected which is meant: nodule (chest), effusion (chest)",
        f"line 3, column finding: found 'cough', expected {known}",
        f"line 4, column model: found 'lung', expected {known}",
    ]


def test_unknown_and_ambiguous_studies_are_all_said_and_nothing_is_half_taken_in(site: Site) -> None:
    keys = [judged(site)[0] for _ in range(3)]
    with site.store.write() as connection:
        connection.execute(update(study).where(study.c.study_key.in_(keys[:2])).values(accession_number="TWICE"))
    text = f"accession_number,study_key,value\n,{keys[2]},1\nTWICE,,1\nELSEWHERE,,0\n,{'9' * 32},0\nTWICE,{keys[2]},1\n"
    with pytest.raises(TruthFileError) as caught:
        take(site, text)
    said = [str(problem) for problem in caught.value.problems]
    assert [line.split(":")[0] for line in said] == [
        "line 3, column accession_number",
        "line 4, column accession_number",
        "line 5, column study_key",
        "line 6",
    ]
    assert "2 go by it" in said[0]
    assert "accession number of a study that is here" in said[1]
    assert "one and the same study" in said[3]
    assert "TWICE" not in str(caught.value)
    assert words(site.store) == []
    report = take(site, f"study_key,value\n{keys[2]},1\n{'9' * 32},0\n", skip_unknown=True)
    assert (report.added, report.unknown_lines) == (1, (3,))


def test_an_accession_number_of_two_studies_is_enough_with_the_study(site: Site) -> None:
    keys = [judged(site)[0] for _ in range(2)]
    with site.store.write() as connection:
        connection.execute(update(study).values(accession_number="TWICE"))
    take(site, f"accession_number,study_key,value\nTWICE,{keys[1]},1\n")
    assert [word.study_key for word in words(site.store)] == [keys[1]]


def test_a_second_import_changes_nothing_and_a_later_word_supersedes(site: Site) -> None:
    key, _ = judged(site)
    dated = f"study_key,value,reader,date\n{key},1,A,2026-01-10\n{key},0,B,\n"
    assert counts(take(site, dated)) == (2, 0, 0, 0)
    assert counts(take(site, dated, NOW + timedelta(days=1))) == (0, 0, 0, 2)
    later = f"study_key,value,reader,date\n{key},0,A,2026-01-12\n{key},1,B,\n"
    assert counts(take(site, later, NOW + timedelta(days=2))) == (0, 2, 0, 0)
    assert {word.reader: word.value for word in words(site.store)} == {"A": "absent", "B": "present"}
    older = f"study_key,value,reader,date\n{key},ungradable,A,2026-01-11\n"
    assert counts(take(site, older, NOW + timedelta(days=3))) == (0, 0, 1, 0)
    assert counts(take(site, dated.splitlines()[0] + "\n" + dated.splitlines()[1], NOW + timedelta(days=4))) == (
        0,
        0,
        0,
        1,
    )
    assert {word.reader: word.value for word in words(site.store)} == {"A": "absent", "B": "present"}
    history = [(word.reader, word.value) for word in words(site.store, superseded=True) if word.superseded_at]
    assert history == [("A", "present"), ("B", "absent"), ("A", "ungradable")]


def test_one_table_may_hold_several_words_of_one_reader(site: Site) -> None:
    key, _ = judged(site)
    text = f"study_key,value,reader,date\n{key},1,A,2026-01-12\n{key},0,A,2026-01-14\n{key},1,A,2026-01-13\n"
    assert counts(take(site, text)) == (1, 1, 1, 0)
    assert [word.value for word in words(site.store)] == ["absent"]
    assert counts(take(site, text)) == (0, 0, 0, 3)


def test_a_dry_run_says_and_changes_nothing(site: Site) -> None:
    key, _ = judged(site)
    report = take(site, f"study_key,value\n{key},1\n", dry_run=True)
    assert (report.added, report.dry_run) == (1, True)
    assert words(site.store) == []
    with site.store.read() as connection:
        assert connection.execute(select(audit).where(audit.c.action == "truth imported")).all() == []


def test_a_read_of_the_future_is_no_read(site: Site) -> None:
    key, _ = judged(site)
    with pytest.raises(TruthFileError, match="expected a date that has been"):
        take(site, f"study_key,value,date\n{key},1,2027-01-01\n")


def test_a_reader_on_the_screen_supersedes_the_same_readers_import(site: Site) -> None:
    key, _ = judged(site)
    take(site, f"study_key,value,reader,date\n{key},1,anna,2026-01-10\n")
    word = Word(
        study_key=key,
        model_name="retinopathy",
        finding_name="referable",
        value="absent",
        source="viewer",
        reader="anna",
        agrees=False,
        shown_version=2,
        read_at=NOW,
    )
    with site.store.write() as connection:
        assert add_words(connection, [word, word], NOW) == [Taken.SUPERSEDING, Taken.UNCHANGED]
    (kept,) = words(site.store)
    assert (kept.value, kept.agrees, kept.shown_version, kept.source) == ("absent", False, 2, "viewer")


# --- the command ---


def test_of_two_who_write_at_once_the_second_supersedes_the_first(site: Site) -> None:
    study_key, _ = judged(site)

    def word(value: str) -> Word:
        return Word(
            study_key=study_key,
            model_name="retinopathy",
            finding_name="referable",
            value=value,
            source="viewer",
            reader="ada",
            read_at=None,
        )

    def second() -> Taken:
        with site.store.write() as connection:
            (taken,) = add_words(connection, [word("absent")], NOW)
        return taken

    with ThreadPoolExecutor(1) as other:
        with site.store.write() as connection:
            assert add_words(connection, [word("present")], NOW) == [Taken.ADDED]
            later = other.submit(second)
            with pytest.raises(TimeoutError):
                later.result(0.3)  # it waits
        assert later.result(30) is Taken.SUPERSEDING
    assert [each.value for each in words(site.store, study_key=study_key)] == ["absent"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The data folder of a gateway on SQLite with one judged study."""
    store = open_store("", data_dir=tmp_path, migrate=True)
    settings = load_settings(environment={})
    site = Site(store=store, data_dir=tmp_path, objects=ObjectFolder.in_data_dir(tmp_path), settings=settings)
    write_tiny_bundle(tmp_path / "bundle", name="retinopathy", findings=[finding("referable")], acceptance=None)
    serve(store, "retinopathy", 2, tmp_path / "bundle", NOW)
    judged(site)
    store.close()
    return tmp_path


def test_the_command_imports_lists_and_exports_what_it_can_import(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "reads.csv"
    path.write_text('accession_number;icdr;comment;age\nACC-00001;3;"a; b";50\n')
    place = ["--data-dir", str(folder)]
    graded = ["--positive-from", "2", "--column", "value=icdr", "--reader", "panel"]
    assert main(["truth", "import", str(path), *graded, "--json", *place]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["added"], report["ignored_columns"]) == (1, 1, ["age"])
    assert main(["truth", "list", "--json", *place]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["value"], row["reader"], row["comment"], row["source"]) == ("present", "panel", "a; b", "import")
    assert main(["truth", "list", *place]) == 0
    assert "retinopathy referable present  panel" in capsys.readouterr().out
    assert main(["truth", "export", *place]) == 0
    exported = capsys.readouterr().out
    (line,) = csv.DictReader(io.StringIO(exported))
    assert (line["study_key"], line["value"]) == (row["study_key"], "present")
    path.write_text(exported)
    assert main(["truth", "import", str(path), *place]) == 0
    assert "0 added, 0 superseding" in capsys.readouterr().out


def test_the_command_says_what_is_wrong_and_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "reads.csv"
    path.write_text("accession_number,value\nNOWHERE,1\n")
    assert main(["truth", "import", str(path), "--data-dir", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "line 2, column accession_number: expected the accession number of a study that is here" in said
    assert "NOWHERE" not in said
    assert main(["truth", "import", str(path), "--json", "--data-dir", str(folder)]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["line"] == 2
    assert main(["truth", "import", str(path), "--column", "value", "--data-dir", str(folder)]) == 1
