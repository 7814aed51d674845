"""Write a migration from the difference between the migrations so far and ``gateway/store/schema.py``.

Usage: ``python scripts/make_migration.py MESSAGE REVISION``, for example ``"add holds" 0002``. Read what it wrote.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from alembic import command
from alembic.config import Config

from gateway.store import open_store


def main() -> None:
    message, revision = sys.argv[1:3]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store("", data_dir=Path(folder), migrate=True)
        configuration = Config()
        configuration.set_main_option("script_location", str(Path("gateway/store/migrations")))
        with store.engine.connect() as connection:
            configuration.attributes["connection"] = connection
            command.revision(configuration, message, rev_id=revision, autogenerate=True)


if __name__ == "__main__":
    main()
