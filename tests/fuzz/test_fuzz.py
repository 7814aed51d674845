"""A short run of each fuzz target from the seeds and the kept cases; ``scripts/fuzz.py`` makes the long ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import (
    CORPUS,
    OPEN,
    OPERATIONS,
    TARGETS,
    TOKENS,
    TooSlow,
    case_folder,
    changed,
    random_case,
    run_case,
    seeds,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SEED = 20261124
CASES = {"inspect": 4000, "flow": 700, "codestream": 5000, "association": 3000}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with case_folder() as made:
        yield made


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_whole(target: str, folder: Path) -> None:
    """Else their changes would reach no further than the first check."""
    outcomes = [run_case(target, case, folder) for case in seeds(target)]
    wanted = {"inspect": "taken", "flow": "de-identified", "codestream": "read", "association": "released"}[target]
    assert sum(wanted in outcome for outcome in outcomes) >= (2 if target == "codestream" else 4), outcomes


def _kept_cases() -> list[Any]:
    return [
        pytest.param(
            path,
            id=f"{path.parent.name}-{path.stem}",
            marks=[pytest.mark.xfail(strict=True, raises=TooSlow, reason=OPEN[path.stem])] if path.stem in OPEN else [],
        )
        for path in sorted(CORPUS.rglob("*.bin"))
    ]


@pytest.mark.parametrize("path", _kept_cases())
def test_kept_cases(path: Path, folder: Path) -> None:
    """What was a finding once is none any more."""
    targets = ("inspect", "flow") if path.parent.name == "data_sets" else (path.parent.name,)
    for target in targets:
        assert run_case(target, path.read_bytes(), folder)


@pytest.mark.parametrize("target", TARGETS)
def test_a_short_run(target: str, folder: Path) -> None:
    """The same cases each time, so that a failure says which: no exception, and several outcomes."""
    start = seeds(target)
    outcomes = set()
    for number in range(CASES[target]):
        case, other, changes = random_case(target, number, SEED, start)
        outcomes.add(run_case(target, changed(case, changes, other), folder))
    assert len(outcomes) >= 10, outcomes


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.data())
def test_changes_that_shrink(target: str, folder: Path, drawn: st.DataObject) -> None:
    """Other cases each time; hypothesis shrinks what fails to the fewest changes."""
    start = seeds(target)
    token = st.sampled_from(list(TOKENS[target])) | st.binary(min_size=1, max_size=8)
    change = st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 65535), token)
    case, other = drawn.draw(st.sampled_from(start)), drawn.draw(st.sampled_from(start))
    run_case(target, changed(case, drawn.draw(st.lists(change, max_size=5)), other), folder)
