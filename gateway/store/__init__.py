"""The store: where the gateway's processes meet.

SQLAlchemy over SQLite in WAL mode by default, PostgreSQL by URL, one set of statements for both. Every function takes
the :class:`~gateway.store.engine.Store` first and is one transaction.
"""

from gateway.store.engine import Store, open_store

__all__ = ["Store", "open_store"]
