"""The site key at start-up: where it comes from, and whether it is the one that this store's pseudonyms follow from.

A store whose pseudonyms and UIDs come from two keys takes one patient for two, and results for strangers'. So a gateway
does not start with another key than the first, nor makes a new one where there was one.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from sqlalchemy import insert, select

from gateway.deidentification.keys import fingerprint_of, load_or_create_key
from gateway.errors import DeidentificationError
from gateway.settings import DeidentificationSettings
from gateway.store import Store
from gateway.store.schema import instance, site_key

FILE_NAME = "secret.key"
_PURPOSE = "site"


def load_site_key(settings: DeidentificationSettings, data_dir: Path) -> bytes:
    """The key from where the settings say; without a word there, from the data folder, made if it is not there.

    Raises
    ------
    DeidentificationError
        The key is missing where the settings say, or weak, or others may read or write its file.
    """
    source = settings.key_source
    return source.load() if source else load_or_create_key(data_dir / FILE_NAME)


def prepare_site_key(store: Store, settings: DeidentificationSettings, data_dir: Path, *, now: datetime) -> None:
    """Make sure that the key can be had and is the one of this store; at the first start, remember which it is.

    For the process that holds the data folder's lock, before any other is started.

    Raises
    ------
    DeidentificationError
        As :func:`load_site_key`; or the key has gone although objects were received, or is another one.
    """
    with store.read() as connection:
        known = connection.execute(select(site_key.c.fingerprint).where(site_key.c.purpose == _PURPOSE)).scalar()
        used = known is not None or connection.execute(select(instance.c.instance_key).limit(1)).first() is not None
    path = data_dir / FILE_NAME
    if not settings.key_source and used and not path.exists():
        raise DeidentificationError(
            f"{path} is missing, and this store's pseudonyms were made with it: put it back from its backup"
        )
    fingerprint = fingerprint_of(load_site_key(settings, data_dir))
    if known is None:
        with store.write() as connection:
            connection.execute(insert(site_key).values(purpose=_PURPOSE, fingerprint=fingerprint, recorded_at=now))
    elif known != fingerprint:
        raise DeidentificationError(
            f"the site key is another one (fingerprint {fingerprint[:16]}) than the one that this store's pseudonyms "
            f"were made with ({known[:16]}): give back the first, or start on a new data folder and database"
        )
