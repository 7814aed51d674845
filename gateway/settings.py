"""Every setting, read once: the shipped ``default.toml``, the site's file, ``GATEWAY_`` environment variables.

Unknown keys are refused. The tree is frozen; nothing reads the environment after start-up.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydicom.datadict import tag_for_keyword

from gateway.errors import SettingsError

ENVIRONMENT_PREFIX = "GATEWAY_"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_patterns(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Patterns = Annotated[tuple[str, ...], BeforeValidator(_as_patterns)]
Condition = dict[str, Patterns]
"""DICOM keyword (or several, joined by ``|``) to patterns of which one must match."""

AeTitle = Annotated[
    str, Field(min_length=1, max_length=16, pattern=r"^[\x20-\x5b\x5d-\x7e]*[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]*$")
]
"""VR AE (PS3.5 section 6.2): at most 16 characters, no backslash or control character, not all spaces."""
Port = Annotated[int, Field(ge=0, le=65535)]


class DicomSettings(_Section):
    """The SCP."""

    ae_title: AeTitle
    host: str
    port: Port
    receivers: int = Field(ge=1, le=64)
    maximum_pdu_bytes: int = Field(ge=4096, le=1 << 20)
    maximum_associations: int = Field(ge=1, le=10_000)
    network_timeout_s: float = Field(gt=0)
    association_timeout_s: float = Field(gt=0)
    require_called_ae_title: bool


class WebSettings(_Section):
    """Pages and API."""

    host: str
    port: Port


class StoreSettings(_Section):
    """The store."""

    url: str


class CompletionSettings(_Section):
    """When a study is complete."""

    single_image_quiet_time_s: float = Field(ge=0)
    other_quiet_time_s: float = Field(ge=0)
    hard_cap_s: float = Field(gt=0)


class WorkerSettings(_Section):
    """Processes that judge studies."""

    count: int = Field(ge=0, le=64)
    threads: int = Field(ge=0, le=256)
    batch: int = Field(ge=1, le=256)
    lease_s: float = Field(ge=5)
    attempts: int = Field(ge=1)
    providers: tuple[str, ...]


class SenderSettings(_Section):
    """The process that delivers results."""

    ae_title: AeTitle
    quick_tries: int = Field(ge=1)
    first_delay_s: float = Field(gt=0)
    longest_delay_s: float = Field(gt=0)
    give_up_after_s: float = Field(gt=0)


class ModelSettings(_Section):
    """The model registry."""

    tracking_uri: str


class MonitorSettings(_Section):
    """Drift tests."""

    backend: Literal["auto", "alibi", "builtin"]
    interval_s: float = Field(gt=0)
    window: int = Field(ge=10)
    least: int = Field(ge=10)
    p_value: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _least_fits_window(self) -> MonitorSettings:
        if self.least > self.window:
            raise ValueError(f"least ({self.least}) is larger than window ({self.window})")
        return self


class Destination(_Section):
    """A PACS that takes results by C-STORE."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)


class Rule(_Section):
    """Which images go to which models, and where their results go."""

    name: str = Field(min_length=1)
    when: Condition = Field(default_factory=dict)
    unless: Condition = Field(default_factory=dict)
    models: tuple[str, ...] = ()
    destinations: tuple[str, ...] = ("*",)
    """Names of destinations; ``*`` means all."""
    quiet_time_s: float | None = Field(default=None, ge=0)
    """Replaces the quiet time of [completion] for images that this rule chooses."""

    @field_validator("when", "unless")
    @classmethod
    def _keywords_exist(cls, condition: Condition) -> Condition:
        for key in condition:
            for keyword in key.split("|"):
                if tag_for_keyword(keyword) is None:
                    raise ValueError(f"{keyword!r} is not a DICOM keyword (they look like Modality, BodyPartExamined)")
        return condition


class Settings(_Section):
    """All settings. Valid once constructed."""

    dicom: DicomSettings
    web: WebSettings
    store: StoreSettings
    completion: CompletionSettings
    worker: WorkerSettings
    sender: SenderSettings
    models: ModelSettings
    monitor: MonitorSettings
    destinations: tuple[Destination, ...] = ()
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> Settings:
        names = [destination.name for destination in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("two destinations share a name")
        for rule in self.rules:
            unknown = set(rule.destinations) - set(names) - {"*"}
            if unknown:
                raise ValueError(
                    f"rule {rule.name!r} sends to {sorted(unknown)}, which is not among the destinations {names}"
                )
        return self

    def destinations_of(self, rule: Rule) -> tuple[Destination, ...]:
        """The destinations that `rule` names."""
        if "*" in rule.destinations:
            return self.destinations
        return tuple(destination for destination in self.destinations if destination.name in rule.destinations)


def load_settings(
    path: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Read defaults, then the file at `path`, then `environment`, then `overrides` (``{"dicom.port": 0}``).

    Raises
    ------
    SettingsError
        A file that is not there or not TOML, an unknown key, or a value out of range; the message has one line for
        each, with where it stands, what was found and what was expected.
    """
    tree: dict[str, Any] = tomllib.loads(resources.files("gateway").joinpath("default.toml").read_text("utf-8"))
    if path is not None:
        _merge(tree, _read_toml(path))
    for name, text in (os.environ if environment is None else environment).items():
        if name.startswith(ENVIRONMENT_PREFIX):
            _set(tree, name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), _parse(text))
    for dotted, value in (overrides or {}).items():
        _set(tree, dotted, value)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        where = str(path) if path is not None else "the settings"
        lines = [f"  {_describe(detail)}" for detail in error.errors()]
        raise SettingsError("\n".join([f"{where}: {len(lines)} thing(s) wrong", *lines])) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: is not TOML: {error}") from error


def _merge(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            tree[key].update(value)
        else:
            tree[key] = value


def _set(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *sections, last = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[last] = value


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _describe(detail: Any) -> str:
    location = ".".join(str(part) for part in detail["loc"]) or "settings"
    if detail["type"] == "extra_forbidden":
        known = _known_keys(detail["loc"][:-1])
        close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
        return f"{location}: no such setting{hint}"
    message = detail["msg"].removeprefix("Value error, ")
    found = detail.get("input")
    if isinstance(found, (str, int, float, bool)):
        return f"{location}: {message}; found {found!r}"
    return f"{location}: {message}"


def _known_keys(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Settings
    for part in location:
        if isinstance(part, int):
            continue
        if part == "rules":
            model = Rule
        elif part == "destinations":
            model = Destination
        else:
            annotation = model.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
    return sorted(model.model_fields)
