"""The vault's keys: the one in use, and former ones that still open what a rotation has not reached.

Where the settings name no key, they are files of the data folder: ``vault.key``, made at the first start, and
``vault.key.ID`` for former ones. What encrypts is derived from a key, and never the key itself.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.deidentification.keys import load_or_create_key
from gateway.errors import DeidentificationError, VaultError
from gateway.key_sources import KeySource
from gateway.objects import fsync_folder
from gateway.settings import VaultSettings

FILE_NAME = "vault.key"
_NEW = f"{FILE_NAME}.new"


class Keyring:
    """Keys by their IDs; may be used by many threads. Never shows their bytes.

    Parameters
    ----------
    make
        Make the key of the data folder, should there be none.

    Raises
    ------
    VaultError
        A key is missing or weak; says where it should have come from.
    """

    def __init__(self, settings: VaultSettings, data_dir: Path, *, make: bool = False) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._loading = threading.Lock()
        self._keys: dict[str, bytes] = {}
        self.key_id = ""
        """Of the key that the settings name: 16 hexadecimal digits, from which the key cannot be told."""
        if make and is_in_data_dir(settings):
            load_or_create_key(data_dir / FILE_NAME)
        self.reload()

    def __repr__(self) -> str:
        return f"<Keyring in use {self.key_id}, {len(self._keys)} keys>"

    @property
    def key_ids(self) -> frozenset[str]:
        """Of all keys at hand."""
        return frozenset(self._keys)

    def key(self, key_id: str) -> bytes:
        """The 32 bytes that wrap, of one of :attr:`key_ids`."""
        return self._keys[key_id]

    def reload(self) -> None:
        """Read the keys again, after a rotation."""
        with self._loading:
            try:
                active, *former = _loaded(self._settings, self._data_dir)
            except (DeidentificationError, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                raise VaultError(f"the vault's key: {reason}") from None
            keys = {key_id_of(key): derived(key, "key encryption") for key in (active, *former)}
            self._keys, self.key_id = keys, key_id_of(active)


def key_id_of(key: bytes) -> str:
    """16 hexadecimal digits that tell keys apart."""
    return derived(key, "key ID").hex()[:16]


def derived(key: bytes, purpose: str) -> bytes:
    """32 bytes that follow from `key` and serve one purpose (RFC 5869)."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=f"gateway vault {purpose}".encode()).derive(key)


def is_in_data_dir(settings: VaultSettings) -> bool:
    """Whether the settings name no key, so that it lies in the data folder."""
    return not settings.key_source


def is_missing(settings: VaultSettings, data_dir: Path) -> bool:
    """Whether the data folder should hold the key, and holds none."""
    return is_in_data_dir(settings) and not any(data_dir.glob(f"{FILE_NAME}*"))


def make_next_key(data_dir: Path) -> None:
    """Put a new key in the place of ``vault.key``, which becomes a former one; at each moment both are at hand.

    Raises
    ------
    DeidentificationError
        The key in use cannot be read.
    """
    new, current = data_dir / _NEW, data_dir / FILE_NAME
    former = data_dir / f"{FILE_NAME}.{key_id_of(KeySource(file=str(current)).load())}"
    load_or_create_key(new)
    if not former.exists():
        former.hardlink_to(current)
    fsync_folder(data_dir)
    new.replace(current)
    fsync_folder(data_dir)


def former_keys(data_dir: Path) -> list[Path]:
    """Files of former keys in the data folder; not a second name of the current, which a kill may have left."""
    current = data_dir / FILE_NAME
    named = sorted(path for path in data_dir.glob(f"{FILE_NAME}.*") if path.name != _NEW)
    return [path for path in named if not (current.exists() and path.samefile(current))]


def remove_former_keys(data_dir: Path) -> int:
    """Overwrite and delete the former keys in the data folder, once nothing is wrapped by them; gives how many."""
    former = former_keys(data_dir)
    for path in former:
        with path.open("r+b") as stream:
            stream.write(os.urandom(path.stat().st_size))
            stream.flush()
            os.fsync(stream.fileno())
        path.unlink()
    fsync_folder(data_dir)
    return len(former)


def _loaded(settings: VaultSettings, data_dir: Path) -> list[bytes]:
    """The key in use, then former ones."""
    former = [KeySource(file=name).load() for name in settings.former_key_files]
    source = settings.key_source
    if source:
        return [source.load(), *former]
    others = [KeySource(file=str(path)).load() for path in former_keys(data_dir)]
    return [KeySource(file=str(data_dir / FILE_NAME)).load(), *others, *former]
