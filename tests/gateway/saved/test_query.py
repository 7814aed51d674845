"""Queries for saved studies: what each condition means, what is said about wrong ones, and pages."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from known_versions import serve
from saved_rows import FIRST, keep, said
from sqlalchemy import insert

from gateway.errors import QueryError
from gateway.saved.query import DATES, FIELDS, parse_query, select_saved
from gateway.store import Store, open_store
from gateway.store.intake import new_key
from gateway.store.models import VersionState
from gateway.store.saved import add_predictions, find_saved, mark_removed
from gateway.store.schema import saved_image, saved_study


@pytest.fixture
def shelf(tmp_path: Path) -> Store:
    return open_store("", data_dir=tmp_path, migrate=True)


@pytest.fixture
def known(store: Store) -> dict[str, str]:
    """Six studies, one a way of being different; name -> saved key."""
    rows = {
        "plain": keep(store, said(), number=0),
        "absent": keep(store, said(score=0.1, laterality="L"), number=1, characteristics={"sex": "M"}),
        "shadowed": keep(store, said(score=0.45), said(version=2, role="shadow", score=0.55), number=2),
        "dark": keep(store, said(ungradable=True, score=0.9, device="TOPCON [NW8] · 2"), number=3, rule="poor ones"),
        "chest": keep(
            store,
            said(model="chest-triage", finding="abnormal", device="SIEMENS YSIO", laterality=""),
            number=4,
            modality="DX",
            characteristics={"age_group": "90+", "sex": "F", "site": "FFFF0000"},
            person="FFFFFFFFFFFFFFFF",
        ),
        "canary": keep(store, said(version=3, role="canary", score=0.5), number=5),
    }
    serve(store, "retinopathy", 1, Path("x"), FIRST)
    serve(store, "retinopathy", 3, Path("x"), FIRST, state=VersionState.RETIRED)
    return {name: row.saved_key for name, row in rows.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "plain absent shadowed dark chest canary"),
        ("model=retinopathy", "plain absent shadowed dark canary"),
        ("model=retinopathy@2", "shadowed"),
        ("model=retinopathy version=2,3", "shadowed canary"),
        ("model=retin*@3", "canary"),
        ("model!=retinopathy", "chest"),
        ("model=chest-triage,retinopathy@3", "chest canary"),
        ("model=chest-triage model=retinopathy@3", "chest canary"),
        ("device=kowa*", "plain absent shadowed canary"),
        ("device=topcon?[nw8]*", "dark"),
        ('device="KOWA VX-10 · 1.0 · 1F2E"', "plain absent shadowed canary"),
        ("device!=KOWA*", "dark chest"),
        ("from=2026-01-12", "shadowed dark chest canary"),
        ("to=2026-01-12", "plain absent shadowed"),
        ("from=2026-01-12 to=2026-01-12", "shadowed"),
        ("from=2026-01-12T08:00:01Z to=2026-01-14T09:00+01:00", "dark"),
        ("finding=referable_dr:present", "plain shadowed canary"),
        ("finding=referable_dr:absent", "absent shadowed"),
        ("finding=referable_dr:present state=champion", "plain"),
        ("score=referable_dr:0.4..0.6", "shadowed canary"),
        ("score=referable_dr:..0.1", "absent"),
        ("score=referable_dr:0.9..", "dark"),
        ("state=shadow", "shadowed"),
        ("now=champion", "plain absent shadowed dark"),
        ("now=retired", "canary"),
        ("rule=poor*", "dark"),
        ("age_group=90+", "chest"),
        ("sex=M", "absent"),
        ("sex!=F", "absent"),
        ("site=ffff0000", "chest"),
        ("laterality=L", "absent"),
        ("person=0123456789abcdef", "plain absent shadowed dark canary"),
        ("quality=ungradable", "dark"),
        ("modality=DX,CR", "chest"),
        ("model=retinopathy finding=abnormal:present", ""),
    ],
)
def test_what_a_condition_means(store: Store, known: dict[str, str], text: str, expected: str) -> None:
    names = {key: name for name, key in known.items()}
    found = [names[row.saved_key] for row in select_saved(store, parse_query(text), page=2)]
    assert found == expected.split(), "in order of arrival"


def test_one_prediction_has_to_meet_all_conditions(store: Store) -> None:
    keep(store, said(score=0.1), said(version=2, role="shadow", score=0.9))
    assert not list(select_saved(store, parse_query("model=retinopathy@1 finding=referable_dr:present")))
    (row,) = select_saved(store, parse_query("model=retinopathy@2 finding=referable_dr:present"))
    assert [each.model_version for each in row.images[0].predictions] == [1, 2], "all that was said comes with it"


def test_a_key_names_one_study(store: Store, known: dict[str, str]) -> None:
    wanted = find_saved(store, known["dark"])
    assert wanted is not None
    for key in (wanted.saved_key, wanted.study_key):
        (found,) = select_saved(store, parse_query(f"key={key}"))
        assert found.saved_key == wanted.saved_key


@pytest.mark.parametrize(
    ("text", "at", "found", "expected"),
    [
        ("modl=retinopathy", 1, "'modl=retinopathy'", "one of model, version, state"),
        ("model=retinopathy  devise=KOWA", 20, "'devise=KOWA'", "one of model"),
        ("model", 1, "'model'", "a condition as"),
        ("model=", 7, "the query ends", "a model's name"),
        ("version=two", 9, "'two'", "a version's number"),
        ("finding=referable_dr", 9, "'referable_dr'", "finding:present or finding:absent"),
        ("finding=referable_dr:maybe", 9, "'referable_dr:maybe'", "finding:present"),
        ("score=referable_dr:0.9..0.1", 7, "'referable_dr:0.9..0.1'", "finding:low..high"),
        ("score=referable_dr:nan..1", 7, "'referable_dr:nan..1'", "finding:low..high"),
        ("from=yesterday", 6, "'yesterday'", "a day as 2026-01-31"),
        ("from=2026-02-30", 6, "'2026-02-30'", "a day as"),
        ("from=2026-01-01 from=2026-01-02", 17, "'from=2026-01-02'", "from= once"),
        ("to!=2026-01-01", 1, "'to!=2026-01-01'", "to= once"),
        ("state=draft", 7, "'draft'", "champion, canary, shadow"),
        ("now=live", 5, "'live'", "draft, shadow, canary, champion, retired"),
        ("sex=F,X", 7, "'X'", "F, M or O"),
        ("sex=F,", 7, "the query ends", "F, M or O"),
        ('device="KOWA', 8, "'\"KOWA'", "a condition as"),
        ("quality=good", 9, "'good'", "gradable or ungradable"),
    ],
)
def test_a_wrong_query_says_where_and_what_was_expected(text: str, at: int, found: str, expected: str) -> None:
    with pytest.raises(QueryError) as caught:
        parse_query(text)
    message = str(caught.value)
    assert message.startswith(f"query, character {at}: ")
    assert found in message
    assert expected in message.split("expected ", 1)[1]


def test_the_docs_explain_every_field() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "saved-studies.md").read_text("utf-8")
    for name in (*FIELDS, *DATES):
        assert f"| `{name}`" in text


def test_what_was_removed_is_not_found(store: Store, known: dict[str, str]) -> None:
    with store.write() as connection:
        assert mark_removed(connection, [known["plain"], known["plain"]], FIRST) == (
            f"saved/{known['plain'][:2]}/{known['plain']}",
        )
    assert known["plain"] not in {row.saved_key for row in select_saved(store, parse_query(""))}
    assert find_saved(store, known["plain"]) is None


def test_predictions_of_a_later_version_are_added_once(store: Store, known: dict[str, str]) -> None:
    from gateway.store.saved import NewPrediction

    row = find_saved(store, known["plain"])
    assert row is not None
    image = row.images[0]
    for score in (0.2, 0.3):
        new = NewPrediction(
            instance_key=image.instance_key,
            frame_index=0,
            file_name=image.file_name,
            sha256=image.sha256,
            prediction=said(version=7, role="shadow", score=score),
        )
        add_predictions(store, row.saved_key, [new])
    (found,) = select_saved(store, parse_query("model=retinopathy@7"))
    scores = {each.model_version: each.findings[0]["score"] for each in found.images[0].predictions}
    assert scores == {1: 0.7, 7: 0.3}


STUDIES = 100_000


def _fill(store: Store) -> None:
    """As many studies as a busy site saves in a year, two predictions each, many received at the same moment."""
    content = dict(said().content)
    for start in range(0, STUDIES, 5000):
        keys = [(new_key(), new_key(), number) for number in range(start, start + 5000)]
        with store.write() as connection:
            connection.execute(
                insert(saved_study),
                [
                    {
                        "saved_key": key,
                        "study_key": new_key(),
                        "rule": "all",
                        "reason": "",
                        "person": "",
                        "folder": f"saved/{key}",
                        "instance_count": 1,
                        "size_bytes": 1,
                        "received_at": FIRST + timedelta(minutes=number // 7),
                        "saved_at": FIRST,
                        "modality": "OP",
                        "characteristics": {},
                    }
                    for key, _, number in keys
                ],
            )
            connection.execute(
                insert(saved_image),
                [
                    {
                        "saved_key": key,
                        "instance_key": image,
                        "frame_index": 0,
                        "file_name": "x.dcm",
                        "sha256": "0" * 64,
                        "model_name": "retinopathy",
                        "model_version": version,
                        "role": "champion",
                        "device_key": "KOWA",
                        "prediction": content,
                        "judged_at": FIRST,
                    }
                    for key, image, _ in keys
                    for version in (1, 2)
                ],
            )


def _resident_bytes() -> int:
    """What this process holds in memory: /proc/self/statm, second field, in pages (proc(5))."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_a_walk_over_a_hundred_thousand_studies_takes_no_more_memory_than_over_five_thousand(shelf: Store) -> None:
    _fill(shelf)
    query = parse_query("model=retinopathy@2 device=KOWA* finding=referable_dr:present")
    seen: set[int] = set()
    held: list[int] = []
    last = datetime.min.replace(tzinfo=UTC)
    for count, row in enumerate(select_saved(shelf, query), start=1):
        assert row.received_at >= last
        last = row.received_at
        seen.add(hash(row.saved_key))
        if count % 5000 == 0:
            held.append(_resident_bytes())
    assert len(seen) == STUDIES, "each once, though many came at the same moment"
    # What this test itself holds is the set of hashes, some 100 bytes each: 10 MB.
    assert max(held) - held[0] < 24 << 20, "ninety-five thousand rows in memory would be some 300 MB"
