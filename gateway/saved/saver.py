"""The saver: keeps de-identified copies of judged studies, with their predictions, by a site's rules.

A process of its own, so that no study waits for it and what makes it stumble stops saving alone. It follows the
predictions in the order in which they were written, a minute behind; so it sees those that a shadow makes later, too.
Each study is saved once: its key follows from the study's, its folder is renamed into place before its row is written,
and after a kill the same study is taken up again. Saving is the first thing that stops when the disk is short.
"""

from __future__ import annotations

import fcntl
import logging
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydicom import Dataset

from gateway.deidentification.keys import KeyedHash
from gateway.deidentify import Deidentifier
from gateway.disk import DiskGuard
from gateway.errors import DeidentificationError, GatewayError, UnreadableError
from gateway.objects import ObjectFolder
from gateway.saved.characteristics import characteristics
from gateway.saved.choosing import Alarms, why_saved
from gateway.saved.folders import ROOT, NewFolder, delete_folder, first_folder, next_folder, remove_saved, sweep
from gateway.settings import SavingRule, Settings
from gateway.site_key import load_site_key
from gateway.store import Store
from gateway.store.monitoring import highest_prediction_id
from gateway.store.saved import (
    Holdings,
    JudgedStudy,
    NewPrediction,
    SavedStudyRow,
    add_predictions,
    add_saved_study,
    age_and_sex,
    alarmed,
    find_saved,
    holdings,
    judged_after,
    judged_study,
    oldest_saved,
    read_place,
    saved_since,
    was_removed,
    write_place,
)
from gateway.study import kept_instance
from models.card import file_sha256

logger = logging.getLogger(__name__)

SETTLED = timedelta(seconds=60)
"""How far the saver is behind: predictions of one study come in several steps, and a store may be slow to show them."""
ROWS_A_STEP = 500
ACTOR = "saving"
LOCK_NAME = "lock"
_KEY_DIGITS = 32
_SHARE_BYTES = 8
_UNWRITABLE = (ValueError, TypeError, KeyError, AttributeError, NotImplementedError, OverflowError, struct.error)
"""What pydicom raises for values that it cannot write."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteKeys:
    """What follows from the site key."""

    site_key: bytes
    deidentifier: Deidentifier

    def saved_key(self, study_key: str) -> str:
        """The key of a study's saved copy: always the same, and none that leads back without the site key."""
        return KeyedHash(self.site_key, "saved study").hexadecimal(study_key, _KEY_DIGITS).lower()

    def share(self, study_key: str) -> float:
        """Where a study lies among all, evenly spread from 0 to 1."""
        digest = KeyedHash(self.site_key, "saving").digest(study_key)
        return float(int.from_bytes(digest[:_SHARE_BYTES], "big") / 2 ** (8 * _SHARE_BYTES))


@dataclass(slots=True, kw_only=True)
class Saver:
    """Saves what the rules choose, step by step."""

    settings: Settings
    data_dir: Path
    store: Store
    disk: DiskGuard
    clock: Callable[[], datetime] = _now
    settled: timedelta = SETTLED
    alive: Callable[[], None] = lambda: None
    """Called between two files."""
    waiting: str = ""
    """Why nothing is saved at present; empty where nothing is wrong."""
    _keys: SiteKeys | None = field(init=False, default=None)
    _swept: bool = field(init=False, default=False)

    def look(self, *, budget_s: float = 1.0) -> int:
        """Save what was judged since the last look, for about `budget_s`; returns how many studies were saved.

        Nothing that concerns a single study is raised, nor a disk or store that fails: it is logged, and tried again.
        """
        try:
            if self.disk.is_short():
                self.note("the disk is short of room: no studies are saved")
                return 0
            with _alone(self.data_dir) as alone:
                return self._follow(time.monotonic() + budget_s) if alone else 0
        except GatewayError as error:
            self.note(str(error))
        except OSError as error:
            self.note(f"studies cannot be saved: {error.strerror or type(error).__name__}")
        return 0

    def holdings(self) -> Holdings:
        """How much is saved now."""
        return holdings(self.store)

    def note(self, reason: str) -> None:
        """Log what is wrong, once as long as it stays so."""
        if reason and reason != self.waiting:
            logger.error("%s", reason)
        self.waiting = reason

    def _follow(self, until_s: float) -> int:
        if not self._swept:
            count = sweep(self.store, self.data_dir)
            if count:
                logger.info("removed %d folders of studies whose saving did not end", count)
            self._swept = True
        place = read_place(self.store)
        if place is None:  # rules are new: they are for what comes from now on
            place = highest_prediction_id(self.store)
            write_place(self.store, place)
        rows = judged_after(self.store, place, settled_before=self.clock() - self.settled, limit=ROWS_A_STEP)
        alarms = alarmed(self.store) if rows else frozenset()
        count, passed = 0, place
        seen: set[str] = set()  # of this step; a study that comes again in the next one is only looked at again
        for number, study_key in rows:
            if study_key not in seen:
                seen.add(study_key)
                count += self._take_up(study_key, alarms)
            passed = number
            if time.monotonic() > until_s or self.disk.is_short():
                break
        if passed != place:
            write_place(self.store, passed)
        self.note(self._full() if self.settings.saved.when_full == "stop" else "")
        return count

    def _take_up(self, study_key: str, alarms: Alarms) -> bool:
        """Save one study, or what is new about it; whether it was saved now."""
        study = judged_study(self.store, study_key)
        if study is None or was_removed(self.store, study_key):
            return False
        known = find_saved(self.store, study_key)
        if known is not None:
            return self._add(known, study)
        for rule in self.settings.saving:
            reason = why_saved(rule, study, alarms, self.site().share(study_key))
            if reason is not None:
                return self._save(study, rule, reason)
        return False

    def site(self) -> SiteKeys:
        if self._keys is None:
            site_key = load_site_key(self.settings.deidentification, self.data_dir)
            deidentifier = Deidentifier(site_key, self.settings.deidentification.profile)
            self._keys = SiteKeys(site_key=site_key, deidentifier=deidentifier)
        return self._keys

    def _save(self, study: JudgedStudy, rule: SavingRule, reason: str) -> bool:
        now = self.clock()
        day = now.replace(hour=0, minute=0, second=0, microsecond=0)
        if rule.at_most_a_day and saved_since(self.store, rule.name, day) >= rule.at_most_a_day:
            return False
        if not study.files or not self._make_room(study.size_bytes, now):
            return False
        saved_key = self.site().saved_key(study.study_key)
        row = SavedStudyRow(
            saved_key=saved_key,
            study_key=study.study_key,
            rule=rule.name,
            reason=reason,
            person="",
            folder=first_folder(saved_key),
            instance_count=0,
            size_bytes=0,
            received_at=study.received_at,
            saved_at=now,
            modality=study.modality,
            characteristics={},
        )
        return self._write(study, row)

    def _add(self, known: SavedStudyRow, study: JudgedStudy) -> bool:
        """What is new about a saved study: an image that came late, or what a further version says."""
        files = {image.instance_key: (image.file_name, image.sha256) for image in known.images}
        late = set(study.files) - set(files)
        if late and self._make_room(study.size_bytes, self.clock(), but=known.saved_key):
            grown = replace(known, folder=next_folder(known.folder), images=())
            if self._write(study, grown, known):
                return False
        there = {
            (image.instance_key, image.frame_index, said.model_name, said.model_version): said.judged_at
            for image in known.images
            for said in image.predictions
        }
        new = [each for each in _predictions(study, files) if there.get(_key_of(each)) != each.prediction.judged_at]
        if new:
            add_predictions(self.store, known.saved_key, new)
        return False

    def _write(self, study: JudgedStudy, row: SavedStudyRow, known: SavedStudyRow | None = None) -> bool:
        """Write the folder, rename it into place, then write the rows; false where there is nothing to be written."""
        folder = NewFolder(self.data_dir, row.folder)
        try:
            files, first = self._write_files(study, folder, known)
            if first is None:
                folder.abandon()
                return False
            if known is None:
                row = self._described(row, study, *first)
            folder.finish()
        except UnreadableError as error:  # of this study alone: it must not hold up those after it
            folder.abandon()
            logger.warning("study %s is not saved as it is now: %s", study.study_key, error)
            return False
        except OSError:
            folder.abandon()
            raise
        size_bytes = sum(size for _, _, size in files.values())
        row = replace(row, instance_count=len(files), size_bytes=size_bytes)
        named = {key: (name, sha256) for key, (name, sha256, _) in files.items()}
        unneeded = add_saved_study(self.store, row, _predictions(study, named))
        if unneeded is not None:
            delete_folder(self.data_dir, unneeded)
        logger.info("study %s was saved: %s", study.study_key, row.reason)
        return True

    def _write_files(
        self, study: JudgedStudy, folder: NewFolder, known: SavedStudyRow | None
    ) -> tuple[dict[str, tuple[str, str, int]], tuple[str, Dataset] | None]:
        """Instance key -> name, sha256 and size of each file; and one of the copies made now with its key, if any.

        What was saved before is taken over: it does not change, and its original may have expired.

        Raises
        ------
        UnreadableError
            What was saved before is gone.
        """
        files: dict[str, tuple[str, str, int]] = {}
        for image in known.images if known is not None else ():
            if known is not None and image.instance_key not in files:
                try:
                    path = folder.take_over(self.data_dir / known.folder / image.file_name)
                except FileNotFoundError as error:
                    raise UnreadableError(f"saved image {image.instance_key} is gone") from error
                files[image.instance_key] = (path.name, image.sha256, path.stat().st_size)
        made: tuple[str, Dataset] | None = None
        for key, relative in study.files.items():
            self.alive()
            if key in files:
                continue
            try:
                copy = self._copy(key, relative)
                path = folder.write(f"{key}.dcm", copy)
            except (DeidentificationError, UnreadableError, *_UNWRITABLE) as error:
                logger.warning("image %s is not saved: %s", key, type(error).__name__)
                folder.drop(f"{key}.dcm")
                continue
            files[key] = (path.name, file_sha256(path), path.stat().st_size)
            made = made or (key, copy)
        return files, made

    def _copy(self, instance_key: str, relative: str) -> Dataset:
        received = kept_instance(instance_key, ObjectFolder(self.data_dir / "objects").path(relative))
        return self.site().deidentifier.instance(received).dataset

    def _described(self, row: SavedStudyRow, study: JudgedStudy, key: str, copy: Dataset) -> SavedStudyRow:
        """With the patient's pseudonym, and what is kept of the patient, by an image that could be copied."""
        original = kept_instance(key, ObjectFolder(self.data_dir / "objects").path(study.files[key])).read(pixels=False)
        calling_ae_title, modality = study.sources[key]
        told = characteristics(
            age_and_sex(self.store, study.study_key), original, calling_ae_title, self.site().site_key
        )
        return replace(row, person=str(copy.PatientID), characteristics=told, modality=row.modality or modality)

    def _full(self) -> str:
        held, limit = self.holdings().size_bytes, self.settings.saved.maximum_bytes
        return f"saved studies take {held} bytes, {limit} are the most: no more are saved" if held >= limit else ""

    def _make_room(self, size_bytes: int, now: datetime, but: str = "") -> bool:
        """Whether a study of that size may be saved, after the oldest were removed where the settings say so."""
        limit = self.settings.saved.maximum_bytes
        held = self.holdings().size_bytes
        if held + size_bytes <= limit:
            return True
        if self.settings.saved.when_full == "stop" or size_bytes > limit:
            return False
        while held + size_bytes > limit:
            going: list[str] = []
            for key, size in oldest_saved(self.store, limit=100):
                if held + size_bytes <= limit:
                    break
                if key != but:
                    going.append(key)
                    held -= size
            if not going:
                return False
            remove_saved(self.store, self.data_dir, going, actor=ACTOR, reason="room for newer ones", now=now)
        return True


def _predictions(study: JudgedStudy, files: dict[str, tuple[str, str]]) -> list[NewPrediction]:
    """What was said about the images that are saved."""
    return [
        NewPrediction(
            instance_key=frame.instance_key,
            frame_index=frame.frame_index,
            file_name=files[frame.instance_key][0],
            sha256=files[frame.instance_key][1],
            prediction=frame.prediction,
        )
        for frame in study.frames
        if frame.instance_key in files
    ]


def _key_of(new: NewPrediction) -> tuple[str, int, str, int]:
    said = new.prediction
    return new.instance_key, new.frame_index, said.model_name, said.model_version


@contextmanager
def _alone(data_dir: Path) -> Iterator[bool]:
    """Whether nobody else saves in this data folder, as the saver of a gateway that was killed might for a while."""
    root = data_dir / ROOT
    root.mkdir(mode=0o700, exist_ok=True)
    with (root / LOCK_NAME).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
