"""Which versions are compared: names with a version or a role, or folders of bundles."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import ComparisonError
from gateway.store.engine import Store
from gateway.store.models import SERVING, KnownVersion, known_versions
from models import bundled_folders
from models.card import CARD_FILE, Bundle, Finding, load_bundle
from models.errors import BundleError
from models.registry import bundle_sha256

_NAMED = re.compile(r"(?P<name>[a-z][a-z0-9-]*)@(?P<which>[0-9]+|[a-z]+)")
_EXPECTED = "MODEL@VERSION, MODEL@champion, MODEL@canary, MODEL@shadow, or the folder of a bundle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version that is compared."""

    bundle: Bundle
    bundle_sha256: str

    @property
    def name(self) -> str:
        """``retinopathy@2``."""
        return f"{self.bundle.card.name}@{self.bundle.card.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The version that is asked about, and what it is held against."""

    candidate: Version
    baseline: Version | None
    """``None``: the truth alone."""

    def __post_init__(self) -> None:
        if self.baseline is None:
            return
        if self.baseline.bundle_sha256 == self.candidate.bundle_sha256:
            raise ComparisonError(f"{self.candidate.name} would be compared with itself; expected two versions")
        if not self.findings:
            raise ComparisonError(f"{self.baseline.name} and {self.candidate.name} have no finding in common")

    @property
    def versions(self) -> tuple[Version, ...]:
        """Candidate first."""
        return (self.candidate,) if self.baseline is None else (self.candidate, self.baseline)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The candidate's findings that both versions have."""
        found = self.candidate.bundle.card.findings
        if self.baseline is None:
            return found
        known = {finding.name for finding in self.baseline.bundle.card.findings}
        return tuple(finding for finding in found if finding.name in known)

    @property
    def modalities(self) -> frozenset[str]:
        """What any of them reads."""
        return frozenset(modality for each in self.versions for modality in each.bundle.card.modalities)


def find_version(text: str, store: Store | None) -> Version:
    """The version that `text` names, every file of its bundle verified.

    A folder is taken as it is. A name is looked up in the store; without a store, and for a model that the store does
    not know, among the bundles that ship with the gateway.

    Raises
    ------
    ComparisonError
        There is no such version, or its bundle is not what was registered.
    """
    named = _NAMED.fullmatch(text)
    folder = Path(text)
    if named is None and not (folder / CARD_FILE).is_file():
        what = "holds no bundle" if folder.is_dir() else "is neither a version nor a folder"
        raise ComparisonError(f"{text} {what}; expected {_EXPECTED}")
    if named is None:
        return _loaded(folder.resolve(), text)
    known = () if store is None else known_versions(store, named["name"])
    if known:
        found = _in_store(known, named["which"], text)
        version = _loaded(Path(found.folder), text)
        if version.bundle_sha256 != found.bundle_sha256:
            raise ComparisonError(f"the bundle of {text} is not the one that was registered")
        return version
    return _shipped(named["name"], named["which"], text)


def _in_store(known: tuple[KnownVersion, ...], which: str, text: str) -> KnownVersion:
    listed = ", ".join(f"{each.version} ({each.state})" for each in known)
    if which.isdecimal():
        found = next((each for each in known if each.version == int(which)), None)
    elif which in {state.value for state in SERVING}:
        found = next((each for each in known if each.state.value == which), None)
    else:
        raise ComparisonError(f"{text}: {which!r} is no version; expected {_EXPECTED}")
    if found is None:
        raise ComparisonError(f"there is no {text}; versions of {known[0].model_name} are {listed}")
    return found


def _shipped(name: str, which: str, text: str) -> Version:
    folders = {(folder.parent.name, folder.name): folder for folder in bundled_folders() if folder.parent.name == name}
    if (name, which) in folders:
        return _loaded(folders[name, which], text)
    listed = ", ".join(version for _, version in sorted(folders))
    known = f"; versions that ship are {listed}" if listed else ""
    raise ComparisonError(f"there is no {text} in this data folder or among the shipped bundles{known}")


def _loaded(folder: Path, text: str) -> Version:
    try:
        return Version(bundle=load_bundle(folder), bundle_sha256=bundle_sha256(folder))
    except (BundleError, OSError) as error:
        raise ComparisonError(f"{text}: {error}") from error
