"""Who does what, where several files are one instance: the same bytes are done once, other bytes each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gateway.bulk.manifest import DoneFile, DoneFiles, kib

_GO: Mapping[str, Any] = {"go": True}


class Claims:
    """What workers are at, and what is done.

    Parameters
    ----------
    done
        Of this run and of earlier ones.
    output
        The folder where outputs are looked for: what has gone is done again.
    """

    def __init__(self, done: DoneFiles, output: Path) -> None:
        self._done = done
        self._output = output
        self._sources: dict[str, int] = {}
        self._instances: dict[str, int] = {}

    def ask(self, who: int, sha256: str, instance: str | None) -> Mapping[str, Any] | None:
        """Whether `who` may do a source, and then an instance of it; ``None``: not known before another has ended.

        Whoever waits for an instance holds a source, and whoever holds an instance waits for nothing: no two wait for
        each other.
        """
        holders, name = (self._sources, sha256) if instance is None else (self._instances, instance)
        found = self._there(self._done.of_source(sha256) if instance is None else self._done.of_instance(instance))
        if found is not None:
            if found.sha256 == sha256:
                reason = "done in an earlier run" if found.earlier else "the same bytes as another file"
                return {"go": False, "state": "skipped", "reason": reason, "output": found.output}
            return {"go": True, "reason": "another file has the same SOP Instance UID and other content"}
        if holders.setdefault(name, who) != who:
            return None
        return _GO

    def end(self, who: int, row: Mapping[str, Any]) -> None:
        """`who` has ended with a file, well or not."""
        for holders in (self._sources, self._instances):
            for name in [name for name, holder in holders.items() if holder == who]:
                del holders[name]
        if row["state"] == "done":
            output = row["output"]
            self._done.add(
                DoneFile(
                    sha256=row["source_sha256"],
                    instance=output[-36:-4],
                    output=output,
                    output_kib=row["output_kib"],
                    earlier=False,
                )
            )

    def _there(self, file: DoneFile | None) -> DoneFile | None:
        """`file`, if its output is still as it was left."""
        if file is None:
            return None
        try:
            size_kib = kib((self._output / file.output).lstat().st_size)
        except OSError:
            size_kib = -1
        if size_kib == file.output_kib:
            return file
        self._done.forget(file)
        return None
