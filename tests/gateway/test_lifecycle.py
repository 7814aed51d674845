"""The states of a model version: every state with every action, what each needs, and going back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from model_rig import ACCEPTANCE, NAME, NOW, PASSWORD, ModelRig, model_rig
from sqlalchemy import delete, update

from gateway import lifecycle, model_requests
from gateway.errors import LifecycleError
from gateway.lifecycle import TRANSITIONS, Action, Need, parse_version
from gateway.model_record import verify
from gateway.roles import Role
from gateway.store import Store
from gateway.store.accounts import Doer
from gateway.store.audit import entries
from gateway.store.models import RequestState, VersionState, find_request, known_versions, requests, served_versions
from gateway.store.schema import comparison, model_request, model_version

DRAFT, SHADOW, CANARY, CHAMPION, RETIRED = VersionState


@pytest.fixture
def rig(store: Store, tmp_path: Path) -> Iterator[ModelRig]:
    """On SQLite and on PostgreSQL; at the end the record and the states agree."""
    with model_rig(store, tmp_path) as rig:
        yield rig
        assert verify(store, rig.key) == []


@pytest.fixture
def pair(rig: ModelRig) -> ModelRig:
    """Version 1 is champion, version 2 a draft."""
    rig.register(1)
    rig.register(2)
    rig.set_up(1)
    return rig


# --- the table ---

# Written down here a second time, from the issue: what each state may become by which action.
EXPECTED = {
    DRAFT: {
        "shadow": SHADOW,
        "canary": CANARY,
        "promote": CHAMPION,
        "retire": RETIRED,
        "set up": CHAMPION,
        "roll back": CHAMPION,
    },
    SHADOW: {
        "stop shadow": DRAFT,
        "canary": CANARY,
        "promote": CHAMPION,
        "retire": RETIRED,
        "roll back": CHAMPION,
    },
    CANARY: {
        "canary": CANARY,
        "end canary": SHADOW,
        "stop canary": DRAFT,
        "promote": CHAMPION,
        "retire": RETIRED,
        "roll back": CHAMPION,
    },
    CHAMPION: {"replaced": RETIRED, "rolled back": RETIRED},
    RETIRED: {"reopen": DRAFT, "roll back": CHAMPION},
}
NEEDS = {
    "canary": Need.APPROVAL,
    "promote": Need.APPROVAL,
    "roll back": Need.FORMER_CHAMPION,
    "set up": Need.NO_CHAMPION_EVER,
    "replaced": Need.CONSEQUENCE,
    "rolled back": Need.CONSEQUENCE,
}


def test_the_table_is_what_the_issue_says() -> None:
    assert {
        state: {str(action): TRANSITIONS[state, action].to_state for action in Action if (state, action) in TRANSITIONS}
        for state in VersionState
    } == EXPECTED
    assert all(entry.need is NEEDS.get(str(action), Need.NOTHING) for (_, action), entry in TRANSITIONS.items())


def test_nothing_but_a_request_or_the_way_back_makes_a_version_judge_for_others() -> None:
    for (state, action), entry in TRANSITIONS.items():
        if entry.to_state in (CANARY, CHAMPION):
            assert entry.need in (Need.APPROVAL, Need.FORMER_CHAMPION, Need.NO_CHAMPION_EVER), (state, action)


def bring(rig: ModelRig, state: VersionState) -> None:
    """Version 2 into a state, by allowed steps alone."""
    if state is SHADOW:
        rig.step(2, Action.SHADOW)
    elif state is CANARY:
        rig.promote(2, champion=1, to_state=CANARY)
    elif state is CHAMPION:
        rig.promote(2, champion=1)
    elif state is RETIRED:
        rig.step(2, Action.RETIRE)


@pytest.mark.parametrize("state", VersionState)
def test_every_state_with_every_action(rig: ModelRig, state: VersionState) -> None:
    """Without a request, and version 2 never having been champion, only what needs nothing succeeds."""
    free = {action for action in EXPECTED[state] if action not in NEEDS}
    start(rig, "tiny", state)
    for action in [each for each in Action if each not in free]:
        before, recorded = rig.states(), rig.actions()
        with pytest.raises(LifecycleError, match="tiny") as raised:
            rig.step(2, action)
        assert (rig.states(), rig.actions()) == (before, recorded)
        if action not in EXPECTED[state]:
            assert f"is {state}, where {action} does not apply" in str(raised.value)
    for place, action in enumerate(sorted(free)):
        start(rig, f"tiny-{place}", state)
        to_state = EXPECTED[state][action]
        assert rig.step(2, Action(action)) is to_state
        assert rig.state(2) is to_state
        (told,) = rig.actions("action", "from_state", "to_state", "reason", "actor")[-1:]
        assert told == (action, str(state), str(to_state), "because", "ada")


def start(rig: ModelRig, name: str, state: VersionState) -> None:
    """A model whose version 1 is champion, and version 2 in `state`."""
    rig.name = name
    rig.register(1)
    rig.register(2)
    rig.set_up(1)
    bring(rig, state)


def test_there_is_one_of_each_that_runs(pair: ModelRig) -> None:
    pair.register(3)
    pair.step(2, Action.SHADOW)
    with pytest.raises(LifecycleError, match="tiny@2 is in shadow"):
        pair.step(3, Action.SHADOW)
    assert pair.states() == {1: "champion", 2: "shadow", 3: "draft"}
    assert {(each.version, each.state) for each in served_versions(pair.store)} == {(1, CHAMPION), (2, SHADOW)}


def test_a_step_needs_a_known_version_and_a_reason(pair: ModelRig) -> None:
    with pytest.raises(LifecycleError, match="no version tiny@9"):
        pair.step(9, Action.SHADOW)
    for reason in ("", "   ", "x" * 1001, "bell\x07"):
        with pytest.raises(LifecycleError, match="reason"):
            pair.step(2, Action.SHADOW, reason=reason)
    assert pair.state(2) is DRAFT


def test_the_first_champion_is_set_up_once(pair: ModelRig) -> None:
    with pytest.raises(LifecycleError, match="has or had a champion"):
        pair.set_up(2)


def test_a_version_never_changes(pair: ModelRig) -> None:
    bundle = pair.register(3)
    known = next(each for each in known_versions(pair.store) if each.version == 3)
    again = {"key": pair.key, "bundle": bundle, "by": "test", "now": NOW}
    assert not lifecycle.take_in(pair.store, bundle_sha256=known.bundle_sha256, **again)
    with pytest.raises(LifecycleError, match="other bytes"):
        lifecycle.take_in(pair.store, bundle_sha256="f" * 64, **again)


@pytest.mark.parametrize("text", ["tiny", "tiny@", "@1", "tiny@0", "tiny@-1", "tiny@1.0", "tiny@²", "tiny@1@2", ""])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(LifecycleError, match="retinopathy@2"):
        parse_version(text)


def test_a_name() -> None:
    assert parse_version("chest-film@12") == ("chest-film", 12)


# --- what a request needs ---


def refused(act: Callable[[], Any], *words: str) -> str:
    with pytest.raises(LifecycleError) as raised:
        act()
    for each in words:
        assert each in str(raised.value)
    return str(raised.value)


def test_a_promotion_from_the_proposal_to_the_record(pair: ModelRig) -> None:
    request = pair.propose(2, CHAMPION, champion=1)
    assert (request.state, request.proposed_by) == (RequestState.OPEN, "ada")
    first = pair.approve(request, "bob")
    assert (first.carried_out, first.approved_by) == (False, ("bob",))
    assert pair.states() == {1: "champion", 2: "draft"}
    second = pair.approve(request, "eve")
    assert (second.carried_out, second.approved_by) == (True, ("bob", "eve"))
    assert second.request.state is RequestState.CARRIED_OUT
    assert pair.states() == {1: "retired", 2: "champion"}
    told = pair.actions("action", "version", "actor", "from_state", "to_state")[-5:]
    assert told == [
        ("propose", 2, "ada", "", ""),
        ("approve", 2, "bob", "", ""),
        ("approve", 2, "eve", "", ""),
        ("replaced", 1, "eve", "champion", "retired"),
        ("promote", 2, "eve", "draft", "champion"),
    ]
    promoted = pair.actions("detail")[-1]
    assert promoted["approved_by"] == ["bob", "eve"]
    assert promoted["replaces"] == 1
    signature = pair.actions("detail")[-3]
    assert signature["report_sha256"] == request.report_sha256
    assert signature["signed"] == "password"


def test_a_canary_gets_its_share_and_another_one_by_another_request(pair: ModelRig) -> None:
    limits = {"error_fraction": 0.02, "drift": True, "least_studies": 50}
    request = pair.propose(2, CANARY, champion=1, devices=("KOWA/VX-10",), limits=limits)
    pair.approve(request, "bob")
    pair.approve(request, "eve")
    (canary,) = [each for each in served_versions(pair.store) if each.state is CANARY]
    assert canary.traffic == {"fraction": 0.1, "devices": ["KOWA/VX-10"], "limits": limits}
    wider = pair.propose(2, CANARY, champion=1, fraction=0.5)
    pair.approve(wider, "bob")
    pair.approve(wider, "eve")
    (canary,) = [each for each in served_versions(pair.store) if each.state is CANARY]
    assert canary.traffic == {"fraction": 0.5}
    pair.promote(2, champion=1)
    assert pair.states() == {1: "retired", 2: "champion"}
    assert all(each.traffic == {} for each in known_versions(pair.store))


def test_the_first_champion_of_a_new_model_is_held_against_the_truth(rig: ModelRig) -> None:
    rig.register(1)
    refused(lambda: rig.propose(1, CANARY, champion=None), "no champion that a canary could stand beside")
    rig.promote(1, champion=None)
    assert rig.states() == {1: "champion"}


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "verdict": (
        {"verdict": "not met", "verdicts": [{"criterion": {"name": "no worse"}, "passed": False}]},
        "the acceptance criteria are not met: no worse",
    ),
    "not judged": ({"verdict": "not judged"}, "the acceptance criteria are not judged"),
    "other bytes": ({"bundle_sha256": "e" * 64}, "was made with other bytes than those registered as tiny@2"),
    "other version": ({"version": 1}, "is about tiny@1, not tiny@2"),
    "other model": ({"model_name": "huge"}, "is about huge@2, not tiny@2"),
    "truth alone": (
        {"baseline_version": None, "baseline_name": ""},
        "against the truth alone, not against the champion",
    ),
    "other champion": ({"baseline_version": 3}, "holds it against tiny@3, and the champion is tiny@1"),
    "champion's bytes": ({"baseline_sha256": "e" * 64}, "other bytes than those of the champion tiny@1"),
    "before registration": ({"created_at": NOW - timedelta(days=1)}, "was made before tiny@2 was registered"),
    "few cases": ({"case_count": 9}, "has 9 cases, the card asks for 10"),
    "report changed": ({"report_sha256": "e" * 64}, "was changed after it was made (report.json)"),
    "report gone": ({"folder": "comparisons/none"}, "is gone (report.json)"),
    "report elsewhere": ({"folder": "../.."}, "does not lie in the data folder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_need_that_is_not_met_is_said(pair: ModelRig, case: str) -> None:
    values, words = BROKEN[case]
    report = pair.compare(2, champion=1, **values)
    for to_state in (CANARY, CHAMPION):
        said = refused(lambda to_state=to_state: pair.propose(2, to_state, champion=1, report=report), words)
        assert said.count(";") == 0, "one need is not met, and one sentence says so"
    with pair.store.read() as connection:
        assert requests(connection) == ()


def test_no_comparison_at_all(pair: ModelRig) -> None:
    refused(
        lambda: pair.propose(2, CHAMPION, champion=1, report="0" * 32),
        f"there is no comparison {'0' * 32}; a report that holds tiny@2 against the champion tiny@1 is needed",
    )


def test_criteria_stand_in_the_card_before(rig: ModelRig) -> None:
    rig.register(1)
    rig.set_up(1)
    rig.register(2, acceptance=None)
    refused(lambda: rig.propose(2, CHAMPION, champion=1), "the card of tiny@2 states no acceptance criteria")
    rig.register(3, acceptance=ACCEPTANCE | {"written_at": "2026-01-07"})
    refused(
        lambda: rig.propose(3, CHAMPION, champion=1),
        "were written on 2026-01-07, after it was registered on 2026-01-05",
    )


def test_a_bundle_that_was_changed(pair: ModelRig) -> None:
    """Even the card alone, which no hash in the card covers."""
    card = pair.data_dir / "bundles" / "tiny-2" / "card.yaml"
    card.write_text(card.read_text().replace("minimum: 0.7", "minimum: 0.1"))
    refused(lambda: pair.propose(2, CHAMPION, champion=1), "the bundle of tiny@2 is not the one that was registered")
    (card.parent / "model.onnx").write_bytes(b"")
    refused(lambda: pair.propose(2, CHAMPION, champion=1), "the bundle of tiny@2 cannot be read, or was changed")


def test_what_a_proposal_must_say(pair: ModelRig) -> None:
    report = pair.compare(2, champion=1)
    for arguments, words in (
        ({"fraction": None}, "needs a fraction"),
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": 1.5}, "at most 1"),
        ({"fraction": float("nan")}, "above 0"),
        ({"limits": {"mood": 1}}, "no limit mood"),
        ({"limits": {"drift": 1}}, "true or false"),
        ({"limits": {"latency_ratio": -1.0}}, "from 0 up"),
        ({"limits": {"latency_ratio": float("inf")}}, "from 0 up"),
        ({"reason": " "}, "reason"),
    ):
        refused(lambda given=arguments: pair.propose(2, CANARY, champion=1, report=report, **given), words)
    refused(lambda: pair.propose(2, CHAMPION, champion=1, report=report, fraction=0.5), "a champion gets all")
    refused(lambda: pair.propose(2, SHADOW, champion=1, report=report), "canary or champion")
    refused(lambda: pair.propose(1, CHAMPION, champion=1, report=report), "is champion, where promote does not apply")
    pair.propose(2, CHAMPION, champion=1, report=report)
    refused(lambda: pair.propose(2, CHAMPION, champion=1, report=report), "asks for that already")


# --- who signs ---


def test_two_different_people(pair: ModelRig) -> None:
    request = pair.propose(2, CHAMPION, champion=1)
    pair.approve(request, "bob")
    refused(lambda: pair.approve(request, "bob"), "bob has approved it already")
    refused(lambda: pair.approve(request, "BOB "), "bob has approved it already")
    assert pair.states() == {1: "champion", 2: "draft"}


def test_who_proposed_it_may_be_one_of_the_two(pair: ModelRig) -> None:
    request = pair.propose(2, CHAMPION, champion=1)
    assert not pair.approve(request, "ada").carried_out
    refused(lambda: pair.approve(request, "ada"), "ada has approved it already")
    assert pair.states() == {1: "champion", 2: "draft"}
    assert pair.approve(request, "eve").approved_by == ("ada", "eve")
    assert pair.states() == {1: "retired", 2: "champion"}


def test_who_may_not_sign(pair: ModelRig) -> None:
    request = pair.propose(2, CHAMPION, champion=1)
    refused(lambda: pair.approve(request, "bob", password="wrong horse battery"), "do not belong together")
    refused(lambda: pair.approve(request, "nobody"), "do not belong together")
    failed = entries(pair.store, limit=10, action="signature failed")
    assert [each["subject"] for each in failed] == [request.request_key] * 2
    for role in (Role.VIEWER, Role.RADIOLOGIST):
        pair.person(str(role), role)
        refused(lambda role=role: pair.approve(request, str(role)), f"the role {role}")
    pair.accounts.disable("bob", now=NOW, by=Doer(actor="test"))
    refused(lambda: pair.approve(request, "bob"), "disabled")
    pair.accounts.set_password("eve", PASSWORD + "2", now=NOW, by=Doer(actor="test"), must_change=True)
    refused(lambda: pair.approve(request, "eve", password=PASSWORD + "2"), "must change the password first")
    refused(lambda: pair.approve(request, "ada", reason=" "), "reason")
    assert "approve" not in pair.actions()


def test_a_refusal_ends_it_and_only_the_proposer_withdraws(pair: ModelRig) -> None:
    key = {"key": pair.key, "reason": "the report is thin", "now": NOW}
    first = pair.propose(2, CHAMPION, champion=1)
    pair.approve(first, "bob")
    refused_request = model_requests.refuse(pair.store, request_key=first.request_key, by="eve", **key)
    assert refused_request.state is RequestState.REFUSED
    refused(lambda: pair.approve(first, "eve"), "is refused")
    second = pair.propose(2, CHAMPION, champion=1)
    refused(
        lambda: model_requests.withdraw(pair.store, request_key=second.request_key, by="bob", **key),
        "ada has proposed it",
    )
    withdrawn = model_requests.withdraw(pair.store, request_key=second.request_key, by="ada", **key)
    assert withdrawn.state is RequestState.WITHDRAWN
    refused(lambda: pair.approve(second, "bob"), "is withdrawn")
    refused(lambda: model_requests.refuse(pair.store, request_key=second.request_key, by="bob", **key), "is withdrawn")
    assert pair.actions("action", "actor", "reason")[-1] == ("withdraw", "ada", "the report is thin")


def test_what_held_at_the_proposal_must_hold_at_each_signature(pair: ModelRig) -> None:
    request = pair.propose(2, CHAMPION, champion=1)
    pair.approve(request, "bob")
    report = pair.data_dir / "comparisons" / str(request.comparison_key) / "report.json"
    content = report.read_text()
    report.write_text(content + " ")
    refused(lambda: pair.approve(request, "eve"), "was changed after it was made")
    assert pair.states() == {1: "champion", 2: "draft"}
    report.write_text(content)
    assert pair.approve(request, "eve").carried_out


@pytest.mark.parametrize(
    "values", [{"traffic": {"fraction": 1.0}}, {"to_state": "champion", "traffic": {}}, {"proposed_by": "eve"}]
)
def test_a_request_that_was_changed_behind_the_record_is_not_carried_out(
    pair: ModelRig, values: dict[str, Any]
) -> None:
    request = pair.propose(2, CANARY, champion=1)
    pair.approve(request, "bob")
    with pair.store.write() as connection:
        connection.execute(update(model_request).values(**values))
    refused(lambda: pair.approve(request, "ada" if "proposed_by" in values else "eve"), "is not as it was recorded")
    assert pair.states() == {1: "champion", 2: "draft"}


def test_a_request_is_void_when_the_champion_changes(pair: ModelRig) -> None:
    pair.register(3)
    other = pair.propose(3, CHAMPION, champion=1)
    pair.approve(other, "bob")
    pair.promote(2, champion=1)
    with pair.store.read() as connection:
        assert find_request(connection, other.request_key).state is RequestState.VOID
    refused(lambda: pair.approve(other, "eve"), "is void")
    assert ("void", 3, "the champion changed") in pair.actions("action", "version", "reason")
    again = pair.compare(3, champion=1)
    refused(lambda: pair.propose(3, CHAMPION, champion=2, report=again), "and the champion is tiny@2")


def test_a_new_champion_ends_the_canary_that_was_held_against_the_old_one(pair: ModelRig) -> None:
    pair.register(3)
    pair.promote(3, champion=1, to_state=CANARY)
    pair.promote(2, champion=1)
    assert pair.states() == {1: "retired", 2: "champion", 3: "draft"}
    assert ("stop canary", 3, "canary", "draft") in pair.actions("action", "version", "from_state", "to_state")


def test_a_second_canary_waits(pair: ModelRig) -> None:
    pair.register(3)
    pair.promote(2, champion=1, to_state=CANARY)
    refused(lambda: pair.propose(3, CANARY, champion=1), "tiny@2 is the canary; end it first")


def test_the_guard_ends_a_canary(pair: ModelRig) -> None:
    pair.promote(2, champion=1, to_state=CANARY)
    wish = pair.propose(2, CHAMPION, champion=1)
    arguments: dict[str, Any] = {
        "key": pair.key,
        "model_name": NAME,
        "reason": "2 of 30 studies failed",
        "detail": {"error_fraction": 2 / 30},
        "now": NOW,
    }
    assert lifecycle.end_canary(pair.store, version=2, **arguments) is SHADOW
    assert pair.states() == {1: "champion", 2: "shadow"}
    row = pair.actions("action", "actor", "reason", "detail")
    assert row[-2][:3] == ("end canary", "guard", "2 of 30 studies failed")
    assert row[-2][3]["error_fraction"] == 2 / 30
    with pair.store.read() as connection:
        assert find_request(connection, wish.request_key).state is RequestState.VOID
    refused(lambda: lifecycle.end_canary(pair.store, version=2, **arguments), "is shadow")
    pair.step(2, Action.STOP_SHADOW)
    pair.register(3)
    pair.step(3, Action.SHADOW)
    pair.promote(2, champion=1, to_state=CANARY)
    assert lifecycle.end_canary(pair.store, version=2, **arguments) is DRAFT, "another version is shadow"
    pair.promote(2, champion=1, to_state=CANARY)
    assert lifecycle.end_canary(pair.store, version=2, **(arguments | {"to": DRAFT})) is DRAFT


# --- at once ---


def together(*acts: Callable[[], Any]) -> list[Any]:
    """What each gave or raised, all begun at the same moment."""
    begin = threading.Barrier(len(acts))
    found: list[Any] = [None] * len(acts)

    def run(place: int) -> None:
        begin.wait()
        try:
            found[place] = acts[place]()
        except LifecycleError as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(acts))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return found


def test_two_approvals_at_once_carry_it_out_once(pair: ModelRig) -> None:
    request = pair.propose(2, CHAMPION, champion=1)
    found = together(lambda: pair.approve(request, "bob"), lambda: pair.approve(request, "eve"))
    assert sorted(each.carried_out for each in found) == [False, True]
    assert pair.actions().count("promote") == 1
    assert pair.states() == {1: "retired", 2: "champion"}


def test_one_person_twice_at_once_is_one_approval(pair: ModelRig) -> None:
    request = pair.propose(2, CHAMPION, champion=1)
    found = together(*[lambda: pair.approve(request, "bob")] * 3)
    assert sum(isinstance(each, LifecycleError) for each in found) == 2
    assert pair.actions().count("approve") == 1
    assert pair.states() == {1: "champion", 2: "draft"}


def test_two_rivals_at_once_leave_one_champion(pair: ModelRig) -> None:
    pair.register(3)
    wishes = [pair.propose(version, CHAMPION, champion=1) for version in (2, 3)]
    for each in wishes:
        pair.approve(each, "bob")
    found = together(*[lambda each=each: pair.approve(each, "eve") for each in wishes])
    assert sum(isinstance(each, LifecycleError) for each in found) == 1
    assert sorted(pair.states().values()) == ["champion", "draft", "retired"]


# --- back ---


def back(rig: ModelRig) -> lifecycle.RolledBack:
    return lifecycle.roll_back(
        rig.store, model_name=NAME, reason="it misses", actor="bob", now=rig.later(), key=rig.key
    )


def test_back_is_one_step_of_one_person(pair: ModelRig) -> None:
    pair.promote(2, champion=1)
    pair.register(3)
    wish = pair.propose(3, CHAMPION, champion=2)
    assert back(pair) == lifecycle.RolledBack(from_version=2, to_version=1)
    assert pair.states() == {1: "champion", 2: "retired", 3: "draft"}
    told = pair.actions("action", "version", "actor", "reason")[-3:]
    assert told == [
        ("rolled back", 2, "bob", "it misses"),
        ("roll back", 1, "bob", "it misses"),
        ("void", 3, "gateway", "the champion changed"),
    ]
    with pair.store.read() as connection:
        assert find_request(connection, wish.request_key).state is RequestState.VOID
    refused(lambda: back(pair), "tiny has no former champion to go back to")


def test_back_goes_further_back_and_never_forth_again(pair: ModelRig) -> None:
    pair.register(3)
    pair.promote(2, champion=1)
    pair.promote(3, champion=2)
    assert back(pair).to_version == 2
    assert back(pair).to_version == 1
    refused(lambda: back(pair), "no former champion")
    pair.step(3, Action.REOPEN)
    pair.promote(3, champion=1)
    assert back(pair).to_version == 1


def test_back_although_the_former_champion_is_tried_anew(pair: ModelRig) -> None:
    """It was opened again and is shadow: the way back is open all the same."""
    pair.promote(2, champion=1)
    pair.step(1, Action.REOPEN)
    pair.step(1, Action.SHADOW)
    assert back(pair).to_version == 1
    assert pair.states() == {1: "champion", 2: "retired"}


def test_no_way_back_without_a_usable_bundle(pair: ModelRig) -> None:
    pair.promote(2, champion=1)
    (pair.data_dir / "bundles" / "tiny-1" / "model.onnx").write_bytes(b"")
    refused(lambda: back(pair), "the bundle of the former champion tiny@1 cannot be used")
    assert pair.states() == {1: "retired", 2: "champion"}
    refused(
        lambda: lifecycle.roll_back(pair.store, model_name="none", reason="x", actor="bob", now=NOW, key=pair.key),
        "none has no former champion",
    )


def test_a_state_changed_behind_the_record_is_found(store: Store, tmp_path: Path) -> None:
    with model_rig(store, tmp_path) as rig:
        rig.register(1)
        with store.write() as connection:
            connection.execute(update(model_version).values(state="champion"))
        assert verify(store, rig.key) == ["tiny@1 is champion in the store, and the record left it draft"]


def test_a_comparison_deleted_before_the_second_signature(pair: ModelRig) -> None:
    request = pair.propose(2, CHAMPION, champion=1)
    pair.approve(request, "bob")
    with pair.store.write() as connection:
        connection.execute(delete(comparison))
    refused(lambda: pair.approve(request, "eve"), "there is no comparison")


def test_a_request_without_a_proposer_is_no_request(pair: ModelRig) -> None:
    """A row put there by hand, which no entry of the record proposes."""
    request = pair.propose(2, CHAMPION, champion=1)
    with pair.store.write() as connection:
        connection.execute(update(model_request).values(request_key="f" * 32))
    refused(lambda: pair.approve(replace(request, request_key="f" * 32), "bob"), "is not as it was recorded")
