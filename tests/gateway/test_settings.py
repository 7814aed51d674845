"""Settings: three sources, one frozen tree, errors that say where and what."""

from __future__ import annotations

import json
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.settings import Destination, KnownPeer, Rule, SavingRule, Settings, load_settings

DOCS = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    return path


def test_a_file_changes_only_what_it_names(tmp_path: Path) -> None:
    defaults = load_settings(environment={})
    changed = load_settings(written(tmp_path, '[dicom]\nae_title = "OTHER"\n'), environment={})
    assert changed.dicom.ae_title == "OTHER"
    assert changed.dicom.port == defaults.dicom.port
    assert changed.rules == defaults.rules


def test_environment_wins_over_the_file_and_overrides_over_both(tmp_path: Path) -> None:
    path = written(tmp_path, "[dicom]\nport = 1\n[web]\nport = 1\n")
    settings = load_settings(
        path, environment={"GATEWAY_DICOM__PORT": "2", "GATEWAY_WEB__PORT": "2"}, overrides={"web.port": 3}
    )
    assert (settings.dicom.port, settings.web.port) == (2, 3)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
[dicom]
prot = 3
port = 99999

[[destinations]]
name = "pacs"
ae_title = "A TITLE OF MORE THAN SIXTEEN"
host = "127.0.0.1"
port = 104

[[rules]]
name = "x"
when = { Modalty = "OP" }
""",
    )
    with pytest.raises(SettingsError) as caught:
        load_settings(path, environment={})
    message = str(caught.value)
    assert "dicom.prot: no such setting; did you mean port?" in message
    assert "dicom.port: Input should be less than or equal to 65535; found 99999" in message
    assert "destinations.0.ae_title" in message
    assert "'Modalty' is not a DICOM keyword" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[dicom\n", "is not TOML"),
        ("[[rules]]\nname = 'a'\ndestinations = ['nowhere']\n", "sends to ['nowhere']"),
        ("[monitor]\nleast = 60\n", "least (60) is larger than window (50)"),
        ("destinations = 3\n", "destinations"),
        ("[nonsense]\n", "nonsense: no such setting"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        load_settings(written(tmp_path, text), environment={})


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        load_settings(tmp_path / "absent.toml", environment={})


def test_a_rule_names_its_destinations(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
[[destinations]]
name = "a"
ae_title = "A"
host = "127.0.0.1"
port = 1
[[destinations]]
name = "b"
ae_title = "B"
host = "127.0.0.1"
port = 2
[[rules]]
name = "one"
destinations = ["b"]
[[rules]]
name = "all"
""",
    )
    settings = load_settings(path, environment={})
    one, everything = settings.rules
    assert [each.name for each in settings.destinations_of(one)] == ["b"]
    assert [each.name for each in settings.destinations_of(everything)] == ["a", "b"]


def test_the_docs_name_every_setting_with_its_default() -> None:
    text = DOCS.read_text()
    defaults = tomllib.loads(resources.files("gateway").joinpath("default.toml").read_text("utf-8"))
    for section, field in Settings.model_fields.items():
        if section in ("rules", "destinations", "peers", "saving"):
            continue
        part = text.split(f"## [{section}]")[1].split("\n## ")[0]
        assert field.annotation is not None
        for key in field.annotation.model_fields:
            value = defaults[section][key]
            shown = json.dumps(value)
            assert f"| `{key}` | `{shown}` |" in part, f"docs/settings.md lacks {section}.{key} with default {shown}"
    tables = {"rules": Rule, "destinations": Destination, "peers": KnownPeer, "saving": SavingRule}
    for heading, model in ((f"[[{name}]]", model) for name, model in tables.items()):
        part = text.split(f"## {heading}")[1].split("\n## ")[0]
        for key in model.model_fields:
            assert f"`{key}`" in part
