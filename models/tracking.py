"""Runs in MLflow: trainings and comparisons, beside the registered bundles. With :mod:`models.registry` the only file
that imports MLflow.

``mlflow ui`` shows three experiments: ``bundles`` (what is registered), ``training`` and ``comparisons``.

Embedded by default: a SQLite file and a folder beside it. A tracking server is used by giving its URL.

Importing MLflow takes about two and a half seconds, so it happens when a run is written and not with this module.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from models.errors import RegistryError

TRAINING, COMPARISONS = "training", "comparisons"

SQLITE = "sqlite:///"
LONGEST_PARAMETER = 500
_AT_A_TIME = 100
"""Parameters, metrics or tags in one call: a tracking server takes no more parameters and tags."""
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Read by MLflow when it is imported or asked; a value that is already set in the environment is kept."""


def log_comparison(
    tracking_uri: str,
    artifact_root: Path,
    *,
    name: str,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    artifacts: Path,
) -> str:
    """Write a finished comparison of two versions as one run of the experiment ``comparisons``.

    Parameters
    ----------
    tracking_uri, artifact_root
        As of :class:`models.registry.ModelRegistry`.
    name
        What the run is called in lists.
    params, metrics, tags
        Names are brought into MLflow's alphabet; a metric that is not finite is left out, a parameter longer than 500
        characters is cut.
    artifacts
        A folder whose files go with the run (the report).

    Returns
    -------
    str
        MLflow's run id.

    Raises
    ------
    RegistryError
        The tracking store cannot be opened or reached.
    """
    return log_run(
        tracking_uri,
        artifact_root,
        experiment=COMPARISONS,
        name=name,
        params=params,
        metrics=metrics,
        tags=tags,
        artifacts=artifacts,
    )


def log_run(
    tracking_uri: str,
    artifact_root: Path,
    *,
    experiment: str,
    name: str,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    artifacts: Path | None = None,
    artifact_folder: str | None = None,
) -> str:
    """Write one finished run. As :func:`log_comparison`, for any experiment.

    Raises
    ------
    RegistryError
        The tracking store cannot be opened or reached; what was written of the run is marked as failed.
    """
    tracking = Tracking(tracking_uri, artifact_root)
    with mapped(f"could not write the run {name}"):
        with tracking.lock():
            run_id = tracking.create_run(experiment, name, tags)
        written = False
        try:
            tracking.log(run_id, params=params, metrics=metrics)
            if artifacts is not None:
                if not artifacts.is_dir():  # MLflow would write nothing and say nothing
                    raise NotADirectoryError(artifacts)
                tracking.client.log_artifacts(run_id, str(artifacts), artifact_folder)
            written = True
        finally:
            tracking.client.set_terminated(run_id, status="FINISHED" if written else "FAILED")
    return run_id


class Tracking:
    """An opened tracking store: MLflow's client, its experiments, and a lock between processes of this machine.

    Raises
    ------
    RegistryError
        It cannot be opened or reached.
    """

    def __init__(self, tracking_uri: str, artifact_root: Path) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.artifact_root = artifact_root.resolve()
        self.is_served = tracking_uri.startswith(("http://", "https://", "databricks"))
        self._experiments: dict[str, str] = {}
        with mapped("cannot be opened"):
            self.artifact_root.mkdir(parents=True, exist_ok=True)
            if tracking_uri.startswith(SQLITE):
                database = Path(tracking_uri.removeprefix(SQLITE))
                with self.lock():
                    _create_database(database, self.artifact_root)
            self.client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def create_run(self, experiment: str, name: str, tags: Mapping[str, str]) -> str:
        """Begin a run, and give its id. Called within :meth:`lock`, since the experiment is made at its first run."""
        run = self.client.create_run(
            self._experiment(experiment), run_name=name, tags={mlflow_key(key): value for key, value in tags.items()}
        )
        return str(run.info.run_id)

    def log(self, run_id: str, *, params: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Write parameters and finite metrics of a run."""
        from mlflow.entities import Metric, Param

        now_ms = int(self.client.get_run(run_id).info.start_time)
        entries: list[Any] = [
            Param(mlflow_key(name), str(value)[:LONGEST_PARAMETER]) for name, value in params.items() if str(value)
        ]
        entries += [
            Metric(mlflow_key(name), float(value), now_ms, 0) for name, value in metrics.items() if math.isfinite(value)
        ]
        for start in range(0, len(entries), _AT_A_TIME):
            part = entries[start : start + _AT_A_TIME]
            self.client.log_batch(
                run_id,
                params=[entry for entry in part if isinstance(entry, Param)],
                metrics=[entry for entry in part if isinstance(entry, Metric)],
            )

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            known = self.client.get_experiment_by_name(name)
            if known is not None:
                self._experiments[name] = str(known.experiment_id)
            else:
                location = None if self.is_served else self.artifact_root.as_uri()
                self._experiments[name] = str(self.client.create_experiment(name, artifact_location=location))
        return self._experiments[name]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep two processes of this machine from creating or registering the same thing at once. Not re-entrant."""
        with (self.artifact_root / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def mlflow_key(name: str) -> str:
    """A name in MLflow's alphabet."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)[:240].strip("/ .") or "_"


@contextlib.contextmanager
def mapped(what: str) -> Iterator[None]:
    """Map what MLflow, its database and the disk raise. Messages are left out: they may hold a server's credentials."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except MlflowException as error:
        raise RegistryError(f"the model registry {what} ({error.error_code})") from error
    except (SQLAlchemyError, OSError) as error:
        raise RegistryError(f"the model registry {what} ({type(error).__name__})") from error


def _create_database(database: Path, artifact_root: Path) -> None:
    """Make MLflow's database where there is none yet.

    MLflow runs a hundred migrations with hundreds of commits, each of which waits for the disk. They are run on a file
    beside the final one without waiting, then that file is written through and renamed: quicker by seconds, and a kill
    leaves either no database or a whole one.
    """
    if database.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def without_waiting(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")

    database.parent.mkdir(parents=True, exist_ok=True)
    unfinished = database.with_name(f"{database.name}.{os.getpid()}.new")
    event.listen(Engine, "connect", without_waiting)
    try:
        SqlAlchemyStore(f"{SQLITE}{unfinished}", artifact_root.as_uri()).engine.dispose()
    finally:
        event.remove(Engine, "connect", without_waiting)
    with unfinished.open("rb") as stream:
        os.fsync(stream.fileno())
    unfinished.replace(database)
