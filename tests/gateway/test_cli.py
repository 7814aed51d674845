"""The command line, as a user meets it: exit status and words."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from photographs import drawn_jpeg, op_dataset, pydicom_data, write
from running import free_port, running_gateway

from gateway.cli import main
from models import bundled_folders


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


def test_check_says_all_that_is_wrong_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "site.toml"
    path.write_text("[dicom]\nprot = 1\n[web]\nport = -1\n")
    assert main(["check", "--config", str(path)]) == 1
    printed = capsys.readouterr().out
    assert "dicom.prot: no such setting; did you mean port?" in printed
    assert "web.port" in printed


def test_check_says_which_rule_chooses_an_image_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["check", "--json", "--study", str(pydicom_data("RG1_UNCI.dcm")), str(pydicom_data("693_UNCI.dcm"))]) == 0
    )
    chest, ct = json.loads(capsys.readouterr().out)["images"]
    assert chest["rule"] == "frontal chest radiographs"
    assert chest["models"] == ["chest-triage"]
    assert ct["rule"] is None
    assert any("Modality" in line and "CT" in line for line in ct["lines"])


def test_check_warns_of_a_licence_a_missing_destination_and_open_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "site.toml"
    path.write_text('[monitor]\nbackend = "alibi"\n[web]\nhost = "0.0.0.0"\n')
    assert main(["check", "--config", str(path)]) == 0
    printed = capsys.readouterr().out
    for words in ("Business Source License", "no destinations", "unencrypted"):
        assert words in printed


def test_check_refuses_a_file_that_is_no_dicom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "note.txt"
    path.write_text("hello")
    assert main(["check", "--study", str(path)]) == 1
    assert "cannot be read" in capsys.readouterr().out


def test_models_lists_what_ships(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json", "--data-dir", str(tmp_path)]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    shipped = {(folder.parent.name, int(folder.name)) for folder in bundled_folders()}
    assert {(row["name"], row["version"]) for row in rows} == shipped
    assert all(row["demonstration"] for row in rows)
    assert all(len(row["model_sha256"]) == 64 for row in rows)


def test_studies_without_a_gateway_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studies", "--data-dir", str(tmp_path)]) == 1
    assert "no gateway has run on" in capsys.readouterr().err


# pynetdicom 3.0.4 forgets a socket that could not connect instead of closing it; collecting it warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_sending_to_nobody_fails_with_the_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(op_dataset(drawn_jpeg()), tmp_path / "a.dcm")
    assert main(["send", str(path), "--port", str(free_port())]) == 1
    printed = capsys.readouterr().out
    assert str(path) in printed
    assert "0 of 1 accepted" in printed


def test_a_taken_port_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.service.TAKE_OVER_PATIENCE_S", 0.1)
    from gateway.errors import SettingsError
    from gateway.service import serve
    from gateway.settings import load_settings

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            serve(load_settings(environment={}, overrides={"dicom.port": port}), tmp_path)


def test_a_second_gateway_on_the_same_folder_is_refused_and_send_reaches_the_first(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "gateway") as gateway:
        second = run("serve", "--data-dir", str(gateway.data_dir), "--dicom-port", "0", "--http-port", "0")
        assert second.returncode == 1
        assert "another gateway runs on it" in second.stderr
        path = write(op_dataset(drawn_jpeg()), tmp_path / "a.dcm")
        sent = run("send", str(path), str(tmp_path / "gateway" / "gateway.toml"), "--port", str(gateway.dicom_port))
        assert "1 of 2 accepted" in sent.stdout
        (study,) = gateway.studies()
        assert study["state"] == "receiving"
        assert study["instance_count"] == 1


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    for command in ("serve", "check", "demo", "send", "models", "studies"):
        assert command in printed


def test_processes_do_not_load_what_they_must_not() -> None:
    """torch, alibi-detect and MLflow are the monitor's and training's alone; the parent forks everything."""
    code = (
        "import sys, gateway.service, gateway.worker, gateway.scp, gateway.sender, gateway.web.server\n"
        "print([name for name in ('torch', 'alibi_detect', 'mlflow', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
