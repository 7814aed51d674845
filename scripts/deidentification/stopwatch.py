"""Runs one de-identifier over a list of files and times each: the same for every tool. Standard library only.

Timed is one call for one file: read it from disk, de-identify, write the result to disk, all in this process; not timed
are imports and set-up, and one call that warms up. Each file is done `repeats` times and its least time counts, by the
clock and in processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable


def run(deidentify: Callable[[str, str], None]) -> None:
    """Do the job in the JSON file that is the first argument; the answer goes to the file that is the second.

    `deidentify` takes the path of an original and of the result, which it leaves away where it refuses.
    """
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123
        job = json.load(file)
    times: dict[str, float] = {}
    processor_times: dict[str, float] = {}
    failures: dict[str, str] = {}
    warnings.simplefilter("ignore")
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
        for number, (source, target) in enumerate(job["files"]):
            for repeat in range(job["repeats"] + (number == 0)):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(target)  # noqa: PTH108
                started, started_cpu = time.perf_counter(), time.process_time()
                try:
                    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                        deidentify(source, target)
                except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is a failure of the tool
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    failures[source] = f"{type(error).__name__} in {where.name}"
                    break
                spent = (time.perf_counter() - started) * 1000
                spent_cpu = (time.process_time() - started_cpu) * 1000
                if not os.path.exists(target):  # noqa: PTH110
                    failures[source] = "nothing written"
                    break
                if number or repeat:
                    times[source] = min(spent, times.get(source, spent))
                    processor_times[source] = min(spent_cpu, processor_times.get(source, spent_cpu))
    with open(sys.argv[2], "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump({"times_ms": times, "processor_ms": processor_times, "failures": failures}, file)
