"""``gateway models``: the whole life of a version by the command line, as an engineer types it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from model_rig import NAME, PASSWORD, ModelRig, model_rig
from sqlalchemy import text

from gateway.cli import main
from gateway.lifecycle import Action
from gateway.model_record import verify
from gateway.roles import Role
from gateway.store import open_store
from gateway.store.audit import entries
from gateway.store.models import VersionState

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ModelRig]:
    store = open_store("", data_dir=tmp_path, migrate=True)
    with model_rig(store, tmp_path) as rig:
        rig.register(1)
        rig.register(2)
        rig.set_up(1)
        yield rig
    store.close()


@pytest.fixture
def command(rig: ModelRig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs ``gateway models ...``; gives status, output, errors. `password` goes to standard input."""

    def run(*arguments: str, password: str = PASSWORD) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{password}\n"))
        status = main(["models", *arguments, "--data-dir", str(rig.data_dir)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def signed(name: str) -> list[str]:
    return ["--as", name, "--reason", "I read the report", "--password-stdin"]


def test_a_version_becomes_canary_champion_and_is_taken_back(rig: ModelRig, command: Command) -> None:
    report = rig.compare(2, champion=1)
    proposed = ["propose", "tiny@2", "--to", "canary", "--report", report, "--as", "ada", "--reason", "better"]
    status, said, _ = command(
        *proposed, "--fraction", "0.25", "--device", "KOWA*", "--limit", "error_fraction=0.02", "--limit", "drift=true"
    )
    assert status == 0
    key = said.split()[1].rstrip(":")
    assert "two people have to approve it" in said, "of whom ada may be one"
    assert command("approve", key, *signed("bob")) == (0, "approved by bob; one more person has to\n", "")
    status, listed, _ = command()
    assert status == 0
    assert f"request {key}: tiny@2 to canary" in listed
    assert "proposed by ada: better; approved by bob" in listed
    assert command("approve", key, *signed("eve"))[1] == "tiny@2 is canary, approved by bob and eve\n"
    status, listed, _ = command()
    assert "tiny 2  [canary]" in listed
    assert "gets 25.0% of the studies and those of KOWA*; limits: error_fraction 0.02, drift True" in listed
    assert "approved by bob and eve" in listed

    status, said, _ = command(
        "propose",
        "tiny@2",
        "--to",
        "champion",
        "--report",
        report,
        "--as",
        "bob",
        "--reason",
        "two quiet weeks",
        "--json",
    )
    key = json.loads(said)["request_key"]
    for name in ("ada", "eve"):
        status, said, _ = command("approve", key, *signed(name), "--json")
        assert status == 0
    assert json.loads(said) == {"carried_out": True, "approved_by": ["ada", "eve"]}
    assert rig.states() == {1: "retired", 2: "champion"}

    status, said, _ = command("rollback", NAME, "--reason", "it misses", "--as", "bob")
    assert said.startswith("tiny@1 is champion again, in place of tiny@2")
    assert rig.states() == {1: "champion", 2: "retired"}
    assert command("rollback", NAME, "--reason", "x", "--as", "bob")[::2] == (
        1,
        "gateway models: tiny has no former champion to go back to\n",
    )
    noted = {each["action"] for each in entries(rig.store, limit=50)}
    assert {"model proposed", "model approved", "model rolled back"} <= noted


def test_the_record_is_shown_and_verified(rig: ModelRig, command: Command) -> None:
    rig.promote(2, champion=1)
    status, said, errors = command("record", "--verify", "tiny@2")
    assert (status, errors) == (0, "the record is as it was written\n")
    lines = said.splitlines()
    assert any("tiny@2  promote  draft -> champion  by eve  request" in line for line in lines)
    assert not any("tiny@1" in line for line in lines)
    rows: list[dict[str, Any]] = json.loads(command("record", "--json", NAME)[1])
    assert [row["record_id"] for row in rows] == list(range(1, 9))
    assert command("record", "other")[1] == ""
    with rig.store.write() as connection:
        connection.execute(text("DROP TRIGGER model_record_no_update"))
        connection.execute(text("UPDATE model_record SET reason = 'worse' WHERE record_id = 5"))
    status, _, errors = command("record", "--verify")
    assert status == 1
    assert "entry 5 is not as it was sealed" in errors


def test_shadow_end_retire_and_reopen(rig: ModelRig, command: Command) -> None:
    why = ["--reason", "to look at it", "--as", "ada"]
    assert command("shadow", "tiny@2", *why)[1] == "tiny@2 is shadow\n"
    assert command("shadow", "tiny@2", "--stop", *why)[1] == "tiny@2 is draft\n"
    assert command("retire", "tiny@2", *why)[1] == "tiny@2 is retired\n"
    assert command("reopen", "tiny@2", *why)[1] == "tiny@2 is draft\n"
    status, _, errors = command("retire", "tiny@1", *why)
    assert (status, errors.split(";")[0]) == (1, "gateway models: tiny@1 is champion, where retire does not apply")
    rig.promote(2, champion=1, to_state=VersionState.CANARY)
    assert command("end-canary", "tiny@2", *why)[1] == "tiny@2 is shadow\n"
    assert rig.actions("action", "actor", "reason")[-1] == ("end canary", "ada", "to look at it")
    assert rig.actions("detail")[-1]["via"].startswith("command:")


def test_who_may(rig: ModelRig, command: Command) -> None:
    rig.person("vera", Role.VIEWER)
    why = ["--reason", "x"]
    for name, words in (("vera", "the role viewer of vera does not allow"), ("nobody-else", "there is no account")):
        for arguments in (["shadow", "tiny@2"], ["rollback", NAME], ["refuse", "0" * 32]):
            status, _, errors = command(*arguments, "--as", name, *why)
            assert status == 1
            assert words in errors
    assert rig.states() == {1: "champion", 2: "draft"}
    assert command("shadow", "tiny@2", *why)[0] == 0
    assert rig.actions("actor")[-1].startswith("command:"), "who may read the data folder, without an account"


def test_a_signature_needs_the_password_and_never_takes_it_as_an_argument(
    rig: ModelRig, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    request = rig.propose(2, VersionState.CHAMPION, champion=1)
    status, _, errors = command("approve", request.request_key, *signed("bob"), password="wrong horse battery")
    assert (status, "do not belong together" in errors) == (1, True)
    status, _, errors = command("approve", request.request_key, "--as", "bob", "--reason", "x")
    assert "nobody to ask for the password" in errors
    with pytest.raises(SystemExit):
        command("approve", request.request_key, "--as", "bob", "--reason", "x", "--password", PASSWORD)
    assert "approve" not in rig.actions()


def test_at_a_terminal_the_password_is_asked_for(
    rig: ModelRig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked: list[str] = []
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("gateway.model_commands.getpass.getpass", lambda prompt: asked.append(prompt) or PASSWORD)
    request = rig.propose(2, VersionState.CHAMPION, champion=1)
    where = ["--data-dir", str(rig.data_dir)]
    assert main(["models", "approve", request.request_key, "--as", "bob", "--reason", "x", *where]) == 0
    assert asked == ["Password of bob, as signature: "]
    assert "approved by bob" in capsys.readouterr().out


def test_refuse_and_withdraw(rig: ModelRig, command: Command) -> None:
    champion = VersionState.CHAMPION
    first = rig.propose(2, champion, champion=1)
    why = ["--reason", "too few cases"]
    assert command("withdraw", first.request_key, "--as", "bob", *why)[0] == 1
    assert (
        command("withdraw", first.request_key, "--as", "ada", *why)[1] == f"request {first.request_key} is withdrawn\n"
    )
    second = rig.propose(2, champion, champion=1)
    assert command("refuse", second.request_key, "--as", "bob", *why)[1] == f"request {second.request_key} is refused\n"
    assert command("approve", second.request_key, *signed("eve"))[2].endswith("is refused\n")


def test_what_is_not_met_is_said_by_the_command(rig: ModelRig, command: Command) -> None:
    report = rig.compare(2, champion=1, verdict="not met", verdicts=[])
    arguments = ["propose", "tiny@2", "--to", "champion", "--report", report, "--as", "ada", "--reason", "better"]
    status, _, errors = command(*arguments)
    assert (status, errors) == (
        1,
        f"gateway models: comparison {report}: the acceptance criteria are not met\n",
    )
    assert command(*arguments, "--limit", "drift")[0] == 1
    assert command(*["propose", "tiny", *arguments[2:]])[2].endswith("expected a name like retinopathy@2\n")


def test_the_data_folder_may_stand_before_or_behind_the_step(rig: ModelRig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--data-dir", str(rig.data_dir), "record"]) == 0
    before = capsys.readouterr().out
    assert main(["models", "record", "--data-dir", str(rig.data_dir)]) == 0
    assert before == capsys.readouterr().out != ""


def test_rollback_loads_neither_mlflow_nor_a_runtime(rig: ModelRig) -> None:
    """It must work while the registry is away, and at once."""
    rig.promote(2, champion=1)
    program = (
        "import sys; from gateway.cli import main; status = main(sys.argv[1:]); "
        "print([name for name in ('mlflow', 'torch', 'onnxruntime', 'sklearn', 'pandas') if name in sys.modules]); "
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "models", "rollback", NAME, "--reason", "x", "--data-dir", str(rig.data_dir)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert rig.states() == {1: "champion", 2: "retired"}
    assert verify(rig.store, rig.key) == []


def test_list_as_json(rig: ModelRig, command: Command) -> None:
    rig.step(2, Action.SHADOW)
    rows = {(row["name"], row["version"]): row for row in json.loads(command("--json")[1])}
    assert rows[NAME, 1]["state"] == "champion"
    assert rows[NAME, 1]["by"] == "set up by the gateway"
    assert rows[NAME, 2] == rows[NAME, 2] | {"state": "shadow", "aliases": ["shadow"], "by": "shadow by ada"}
    assert rows[NAME, 1]["metrics"][0]["name"] == "AUC (there)"
    assert any(not row["registered"] and row["state"] == "" for row in rows.values()), "those that ship, too"
