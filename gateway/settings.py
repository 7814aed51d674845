"""Every setting, read once: the shipped ``default.toml``, the site's file, ``GATEWAY_`` environment variables.

Unknown keys are refused. The tree is frozen; nothing reads the environment after start-up.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import tomllib
from collections.abc import Mapping
from importlib import resources
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydicom.datadict import tag_for_keyword

from gateway.deidentification.options import DeidentificationProfile, Option, profile_from
from gateway.errors import SettingsError
from gateway.key_sources import KeySource

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
    unencrypted: bool
    """Whether the port without TLS is open."""
    require_called_ae_title: bool
    unknown_peers: Literal["auto", "refuse", "accept"]
    echo_for_strangers: bool
    maximum_pdu_bytes: int = Field(ge=4096, le=1 << 20)
    maximum_connections: int = Field(ge=1, le=100_000)
    maximum_connections_per_address: int = Field(ge=1, le=100_000)
    maximum_associations: int = Field(ge=1, le=10_000)
    maximum_associations_per_address: int = Field(ge=1, le=10_000)
    association_timeout_s: float = Field(gt=0)
    network_timeout_s: float = Field(gt=0)
    minimum_bytes_per_s: float = Field(ge=0)
    minimum_rate_window_s: float = Field(gt=0)
    longest_queue: int = Field(ge=1)


class TlsSettings(_Section):
    """DICOM over TLS, received and sent."""

    enabled: bool
    host: str
    port: Port
    certificate: str
    key: str
    authorities: str
    client_certificates: Literal["required", "none"]
    minimum_version: Literal["1.2", "1.3"]

    @model_validator(mode="after")
    def _files_are_named(self) -> TlsSettings:
        needed = {"certificate": self.certificate, "key": self.key}
        if self.client_certificates == "required":
            needed["authorities"] = self.authorities
        missing = [name for name, value in needed.items() if not value]
        if self.enabled and missing:
            raise ValueError(f"TLS needs {' and '.join(missing)}: paths of PEM files")
        return self


class KnownPeer(_Section):
    """A node that may send: who it is, where from, and where answers of its own association go."""

    ae_title: AeTitle
    addresses: tuple[str, ...] = ()
    """Addresses or networks (``10.1.2.3``, ``10.1.0.0/16``, ``fd00::/8``) that it may connect from; empty: any."""
    certificate_sha256: tuple[str, ...] = ()
    """SHA-256 fingerprints of the certificates it may show; hexadecimal, colons allowed."""
    certificate_names: tuple[str, ...] = ()
    """DNS names or common names, one of which its certificate must hold."""
    host: str = ""
    port: int = Field(default=0, ge=0, le=65535)
    """Where it listens, for storage commitment answers; 0: it does not."""
    tls: bool = False
    """Whether it listens with TLS."""

    @field_validator("addresses")
    @classmethod
    def _are_addresses(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for address in addresses:
            ip_network(address, strict=False)
        return addresses

    @field_validator("certificate_sha256")
    @classmethod
    def _are_fingerprints(cls, fingerprints: tuple[str, ...]) -> tuple[str, ...]:
        plain = tuple(each.replace(":", "").lower() for each in fingerprints)
        for each in plain:
            if len(each) != 64 or set(each) - set("0123456789abcdef"):
                raise ValueError(f"{each!r} is not a SHA-256 fingerprint (64 hexadecimal digits)")
        return plain


class WebSettings(_Section):
    """Pages and API."""

    host: str
    port: Port
    names: tuple[str, ...]
    """Further host names by which a browser may call, such as a reverse proxy's."""
    proxies: tuple[str, ...]
    """Addresses or networks of reverse proxies: what they say of the browser's address and scheme is believed."""
    certificate: str
    key: str
    authentication: Literal["on", "off"]
    session_idle_minutes: float = Field(gt=0)
    session_hours: float = Field(gt=0)
    login_attempts_per_minute: int = Field(ge=1)
    requests_per_minute: int = Field(ge=10)
    maximum_upload_bytes: int = Field(ge=1 << 20)
    maximum_connections: int = Field(ge=10, le=100_000)
    maximum_connections_per_address: int = Field(ge=4, le=100_000)
    request_timeout_s: float = Field(gt=0)
    minimum_bytes_per_s: float = Field(ge=0)

    @field_validator("proxies")
    @classmethod
    def _are_addresses(cls, proxies: tuple[str, ...]) -> tuple[str, ...]:
        for proxy in proxies:
            ip_network(proxy, strict=False)
        return proxies

    @model_validator(mode="after")
    def _open_on_loopback_only(self) -> WebSettings:
        if self.authentication == "off" and self.host not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError(f"authentication may be off on loopback only, and host is {self.host!r}")
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key are needed both: paths of PEM files")
        return self


class DiskSettings(_Section):
    """The disk guard. A mark is the smaller of its two settings."""

    expire_below_fraction: float = Field(ge=0, lt=1)
    expire_below_bytes: int = Field(ge=0)
    refuse_below_fraction: float = Field(ge=0, lt=1)
    refuse_below_bytes: int = Field(ge=0)
    interval_s: float = Field(gt=0)
    quarantine_bytes: int = Field(ge=0)
    """Above it the oldest quarantined files go, however young."""

    @model_validator(mode="after")
    def _expires_first(self) -> DiskSettings:
        if self.refuse_below_fraction > self.expire_below_fraction or self.refuse_below_bytes > self.expire_below_bytes:
            raise ValueError("the refuse_below marks must not be above the expire_below marks")
        return self


class RetentionSettings(_Section):
    """How long things are kept, by kind; 0: for ever."""

    originals_days: float = Field(ge=0)
    results_days: float = Field(ge=0)
    quarantine_days: float = Field(ge=0)
    records_days: float = Field(ge=0)


class CommitmentSettings(_Section):
    """Storage commitment, as provider and as user."""

    first_delay_s: float = Field(gt=0)
    longest_delay_s: float = Field(gt=0)
    give_up_after_s: float = Field(gt=0)
    answer_within_s: float = Field(gt=0)


class DecodingSettings(_Section):
    """Limits of the processes that decode pixels."""

    maximum_frame_bytes: int = Field(ge=1 << 20)
    memory_bytes: int = Field(ge=1 << 28)
    time_s: float = Field(gt=0)


class SafePrivateAttribute(_Section):
    """A private attribute that the site declares free of PHI."""

    creator: str = Field(min_length=1, max_length=64)
    group: int
    element: int


class _KeyedSection(_Section):
    """A section with a key, and where that comes from."""

    key_file: str
    key_environment: str
    key_command: str

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if sum(map(bool, (self.key_file, self.key_environment, self.key_command))) > 1:
            raise ValueError("the key comes from one place: set one of key_file, key_environment, key_command")
        return self

    @property
    def key_source(self) -> KeySource:
        """Where the settings say that the key comes from; false where they say nothing."""
        return KeySource(file=self.key_file, environment=self.key_environment, command=self.key_command)


class DeidentificationSettings(_KeyedSection):
    """How objects are de-identified before a model or a monitor sees them, and the key of all pseudonyms."""

    options: tuple[Option, ...]
    safe_private: tuple[SafePrivateAttribute, ...] = ()
    further_sop_classes: tuple[str, ...]
    unknown_attributes: Literal["quarantine", "remove"]
    largest_date_shift_days: int

    @model_validator(mode="after")
    def _fits(self) -> DeidentificationSettings:
        if Option.CLEAN_PIXEL_DATA in self.options:
            raise ValueError(
                "clean_pixel_data is for copies that leave (gateway deidentify --profile); triage never waits for it"
            )
        _ = self.profile
        return self

    @property
    def profile_sha256(self) -> str:
        """sha256 over all settings of the profile, wherever the key comes from: the record of a prediction holds it."""
        chosen = self.model_dump_json(exclude={"key_file", "key_environment", "key_command"})
        return hashlib.sha256(chosen.encode()).hexdigest()

    @property
    def profile(self) -> DeidentificationProfile:
        """What the engine takes."""
        chosen = self.model_dump(exclude={"key_file", "key_environment", "key_command"}, mode="json")
        return profile_from(chosen)


class VaultSettings(_KeyedSection):
    """The way back from pseudonyms, and its key."""

    enabled: bool
    url: str
    former_key_files: tuple[str, ...]
    """Keys that were in use before, until a rotation has ended."""


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


class ShadowSettings(_Section):
    """Versions that run beside the judging ones, unseen."""

    memory_bytes: int = Field(ge=0)
    when_full: Literal["run", "skip"]
    """Whether studies wait for it, or it misses some, once so much waits for it."""


class CanarySettings(_Section):
    """When a canary is ended by itself, where its own limits say nothing else."""

    least_studies: int = Field(ge=1)
    error_fraction: float = Field(gt=0, lt=1)
    latency_ratio: float = Field(gt=0)
    disagreement_fraction: float = Field(gt=0, lt=1)
    drift: bool
    false_end_probability: float = Field(gt=0, lt=0.5)


class BreakerSettings(_Section):
    """When a version that fails or is slow is left alone for a while."""

    failures: int = Field(ge=1)
    slow_s: float = Field(gt=0)
    first_pause_s: float = Field(gt=0)
    longest_pause_s: float = Field(gt=0)
    policy: Literal["wait", "not judged"]


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
    keep_former: bool
    """Whether workers keep the former champion loaded, so that a rollback need not load it."""
    keep_former_free_bytes: int = Field(ge=0)
    """Not while less memory than this would be free."""


class MonitorSettings(_Section):
    """Drift tests."""

    backend: Literal["auto", "alibi", "builtin"]
    interval_s: float = Field(gt=0)
    window: int = Field(ge=10)
    least: int = Field(ge=10)
    p_value: float = Field(gt=0, lt=1)
    studies_between_false_alarms: int = Field(ge=500, le=50_000)

    @model_validator(mode="after")
    def _least_fits_window(self) -> MonitorSettings:
        if self.least > self.window:
            raise ValueError(f"least ({self.least}) is larger than window ({self.window})")
        return self


class TruthSettings(_Section):
    """What readers said, and what is computed from it."""

    rule: Literal["majority", "adjudicator", "latest"]
    """What holds where readers differ."""
    adjudicators: tuple[str, ...]
    """Readers whose word decides, under the rule ``adjudicator``."""
    interval_s: float = Field(ge=0)
    """How often performance is computed anew, where something has changed; 0: by the command alone."""
    least_cases: int = Field(ge=1)
    """A slice of fewer is marked small."""

    @model_validator(mode="after")
    def _somebody_adjudicates(self) -> TruthSettings:
        if self.rule == "adjudicator" and not self.adjudicators:
            raise ValueError("the rule 'adjudicator' needs adjudicators: names of readers")
        return self


class SavedSettings(_Section):
    """Studies that are kept de-identified for comparisons, all [[saving]] rules together."""

    maximum_bytes: int = Field(ge=0)
    when_full: Literal["stop", "remove oldest"]


class SavingRule(_Section):
    """Which judged studies are kept de-identified, with their predictions, for comparing versions later."""

    name: str = Field(min_length=1, max_length=128)
    models: tuple[str, ...] = ()
    """Names of models of which one must have judged the study; empty: any."""
    devices: Patterns = ()
    """Patterns of which one must match the device's name; empty: any."""
    findings: tuple[str, ...] = ()
    """``referable_dr:present``, of which one must hold; empty: any."""
    only: tuple[Literal["disagreement", "ungradable", "acquisition", "alarm"], ...] = ()
    """What must be the matter with the study, one of these; empty: nothing need be."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Of the studies for which all that holds; by a keyed hash of the study, so that it is the same ones each time."""
    at_most_a_day: int = Field(default=0, ge=0)
    """Studies, by UTC; 0: no limit."""

    @field_validator("findings")
    @classmethod
    def _are_verdicts(cls, findings: tuple[str, ...]) -> tuple[str, ...]:
        for finding in findings:
            name, _, verdict = finding.partition(":")
            if not name or verdict not in ("present", "absent"):
                raise ValueError(f"{finding!r} is not a finding with its verdict (referable_dr:present, ...:absent)")
        return findings


class Destination(_Section):
    """A PACS that takes results by C-STORE."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    ae_title: AeTitle
    host: str = Field(min_length=1)
    port: int = Field(ge=1, le=65535)
    tls: bool = False
    storage_commitment: bool = False
    """Whether it is asked to commit what was sent; the local copy stays until it has."""


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
    tls: TlsSettings
    web: WebSettings
    store: StoreSettings
    disk: DiskSettings
    retention: RetentionSettings
    commitment: CommitmentSettings
    completion: CompletionSettings
    decoding: DecodingSettings
    deidentification: DeidentificationSettings
    vault: VaultSettings
    worker: WorkerSettings
    shadow: ShadowSettings
    canary: CanarySettings
    breaker: BreakerSettings
    sender: SenderSettings
    models: ModelSettings
    monitor: MonitorSettings
    truth: TruthSettings
    saved: SavedSettings
    saving: tuple[SavingRule, ...] = ()
    peers: tuple[KnownPeer, ...] = ()
    destinations: tuple[Destination, ...] = ()
    rules: tuple[Rule, ...] = ()

    @model_validator(mode="after")
    def _names_fit(self) -> Settings:
        names = [destination.name for destination in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("two destinations share a name")
        if len({rule.name for rule in self.saving}) != len(self.saving):
            raise ValueError("two [[saving]] rules share a name")
        for rule in self.rules:
            unknown = set(rule.destinations) - set(names) - {"*"}
            if unknown:
                raise ValueError(
                    f"rule {rule.name!r} sends to {sorted(unknown)}, which is not among the destinations {names}"
                )
        if self.sends_by_tls and not self.tls.authorities:
            raise ValueError("sending by TLS needs tls.authorities: path of a PEM file that verifies the receivers")
        if not (self.dicom.unencrypted or self.tls.enabled):
            raise ValueError("nobody could send: dicom.unencrypted and tls.enabled are both false")
        return self

    @property
    def sends_by_tls(self) -> bool:
        """Whether a destination, or a peer that takes answers, is reached by TLS."""
        return any(each.tls for each in self.destinations) or any(each.tls for each in self.peers)

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
        elif part == "peers":
            model = KnownPeer
        elif part == "saving":
            model = SavingRule
        else:
            annotation = model.model_fields[part].annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                model = annotation
    return sorted(model.model_fields)
