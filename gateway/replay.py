"""A prediction made again from its record: the same bundle on the same input, and what differs.

The input is the image as it was received, through the same stages as when it was judged; where that has expired, the
de-identified copy that was saved. The bundle is the registered one of that very version, whatever its state is now.

Floating-point sums come out a little otherwise with another batch size, number of threads or execution provider. So
"the same" means: every decision as it was, and no score off by more than :data:`SCORE_TOLERANCE`; whether it was bit
for bit is said beside it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from pydicom import Dataset

from gateway import __version__
from gateway.deidentify import Deidentifier
from gateway.errors import DeidentificationError, NotUnderstoodError, ReplayError, UnreadableError
from gateway.frames import least_side_for
from gateway.part10 import HeadReader
from gateway.saved.cases import read_deidentified
from gateway.settings import Settings
from gateway.site_key import load_site_key
from gateway.store import Store
from gateway.store.models import KnownVersion, known_versions
from gateway.store.records import Recorded, RecordedPrediction, find_recorded
from gateway.study import kept_instance
from models.card import load_bundle
from models.decoding import DecodingLimits, DecodingPool
from models.errors import BundleError, ModelError
from models.pixels import read_frame
from models.prediction import Prediction
from models.preprocess import prepare
from models.registry import bundle_sha256
from models.session import ModelSession

logger = logging.getLogger(__name__)

SCORE_TOLERANCE = 1e-4
"""Largest difference of a score that counts as the same. On CPUs the shipped models give the same bits whatever the
batch and the number of threads; the room is for other processors and providers, whose kernels add in another order."""
ORIGINAL = "the received image"
SAVED = "the saved copy"
_PIECE_BYTES = 1 << 20


class Outcome(StrEnum):
    """What a replay came to."""

    SAME = "same"
    DIFFERS = "differs"
    GONE = "cannot be made again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that is not as it was."""

    what: str
    then: str
    now: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One prediction, made again."""

    recorded: RecordedPrediction
    outcome: Outcome
    gone: str = ""
    """What is missing, where it cannot be made again."""
    source: str = ""
    """Which of the two inputs was read."""
    score_difference: float | None = None
    """The largest, absolute; ``None`` where nothing can be compared, as below."""
    logit_difference: float | None = None
    embedding_difference: float | None = None
    """``None``: the embedding is not kept."""
    identical: bool = False
    """Whether every logit is the same, bit for bit."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """As they came out now."""
    differences: tuple[Difference, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A study's predictions, made again."""

    study_key: str
    predictions: tuple[Replayed, ...]
    tolerance: float = SCORE_TOLERANCE

    @property
    def outcome(self) -> Outcome:
        """The worst of all: one that differs, then one that cannot be made again."""
        outcomes = {each.outcome for each in self.predictions}
        return next(each for each in (Outcome.DIFFERS, Outcome.GONE, Outcome.SAME) if each in outcomes)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "study_key": self.study_key,
            "outcome": self.outcome.value,
            "score_tolerance": self.tolerance,
            "predictions": [_as_json(each) for each in self.predictions],
        }


def _as_json(each: Replayed) -> dict[str, Any]:
    said = each.recorded
    return {
        "instance_key": said.instance_key,
        "frame_index": said.frame_index,
        "model_name": said.model_name,
        "model_version": said.model_version,
        "role": said.role,
        "judged_at": said.judged_at.isoformat(),
        "outcome": each.outcome.value,
        "gone": each.gone,
        "source": each.source,
        "identical": each.identical,
        "score_difference": each.score_difference,
        "logit_difference": each.logit_difference,
        "embedding_difference": each.embedding_difference,
        "scores_then": {finding["name"]: finding["score"] for finding in said.findings},
        "scores_now": dict(each.scores),
        "differences": [
            {"what": difference.what, "then": difference.then, "now": difference.now} for difference in each.differences
        ],
    }


def replay(key: str, *, settings: Settings, data_dir: Path, store: Store) -> Report:
    """Make the predictions of a study or result again.

    Parameters
    ----------
    key
        Of a study, a saved study or a result, or a result's SOP Instance UID.

    Raises
    ------
    ReplayError
        Nothing has that key, or nothing of it was judged.
    StoreError, DeidentificationError
        The store cannot be reached; the site key is missing.
    """
    recorded = find_recorded(store, key)
    if recorded is None:
        raise ReplayError(f"there is no study, saved study or result of the key {key}")
    if not recorded.predictions:
        raise ReplayError(f"study {recorded.study_key} has no predictions")
    player = Player(settings=settings, data_dir=data_dir, store=store, recorded=recorded)
    try:
        return Report(
            study_key=recorded.study_key, predictions=tuple(player.play(said) for said in recorded.predictions)
        )
    finally:
        player.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """An image to be run, with where it is from."""

    dataset: Dataset
    source: str
    differences: tuple[Difference, ...] = ()


@dataclass(slots=True, kw_only=True)
class Player:
    """Runs recorded predictions of one study again; bundles and images are loaded once."""

    settings: Settings
    data_dir: Path
    store: Store
    recorded: Recorded
    _decoder: DecodingPool = field(init=False)
    _sessions: dict[tuple[str, int], tuple[ModelSession, KnownVersion]] = field(init=False, default_factory=dict)
    _inputs: dict[str, Input] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._decoder = DecodingPool(DecodingLimits(**self.settings.decoding.model_dump()), size=1)

    def close(self) -> None:
        """End the decoding processes."""
        self._decoder.close()

    def play(self, said: RecordedPrediction) -> Replayed:
        """One prediction again; raises nothing that concerns it alone."""
        try:
            session, known = self._session(said)
            given = self._input(said.instance_key)
            least_side = int(said.provenance.get("least_side") or least_side_for([session]))
            frame = read_frame(
                given.dataset, frame_index=said.frame_index, least_side=least_side, decoder=self._decoder
            )
            tensor = prepare(frame, session.bundle.card.pixel_contract).tensor
            batch = max(1, int(said.provenance.get("batch") or 1))
            now = session.run(np.repeat(tensor[np.newaxis], batch, axis=0))[0]
        except (ReplayError, DeidentificationError, UnreadableError) as error:
            return Replayed(recorded=said, outcome=Outcome.GONE, gone=str(error))
        except ModelError as error:
            failed = Difference(what="the prediction", then="made", now=f"refused: {error}")
            return Replayed(recorded=said, outcome=Outcome.DIFFERS, differences=(failed,))
        found = {
            "tensor_sha256": hashlib.sha256(np.ascontiguousarray(tensor).data).hexdigest(),
            "decoder_scale": frame.pixels.shape[0] / frame.source_rows,
            "providers": list(session.providers_in_use),
            "onnxruntime": onnxruntime.__version__,
            "gateway_version": __version__,
        }
        if given.source == ORIGINAL:
            found["deidentification"] = self.settings.deidentification.profile_sha256
        differences = (
            *given.differences,
            *_bundle_differences(said, session, known),
            *_circumstances(said.provenance, found),
        )
        return _judge(said, now, given.source, differences)

    def _session(self, said: RecordedPrediction) -> tuple[ModelSession, KnownVersion]:
        key = (said.model_name, said.model_version)
        if key not in self._sessions:
            known = next((each for each in known_versions(self.store, key[0]) if each.version == key[1]), None)
            if known is None:
                raise ReplayError(f"the bundle is gone: {key[0]} version {key[1]} is not registered here")
            folder = Path(known.folder)
            if not folder.is_dir():
                raise ReplayError(
                    f"the bundle is gone: {key[0]} version {key[1]} is registered, its folder is not there"
                )
            try:
                session = ModelSession(
                    load_bundle(folder),
                    providers=self.settings.worker.providers or None,
                    cache_folder=self.data_dir / "engines",
                )
            except BundleError as error:
                raise ReplayError(f"the bundle of {key[0]} version {key[1]} cannot be used: {error}") from error
            self._sessions[key] = (session, known)
        return self._sessions[key]

    def _input(self, instance_key: str) -> Input:
        if instance_key not in self._inputs:
            self._inputs[instance_key] = self._read(instance_key)
        return self._inputs[instance_key]

    def _read(self, instance_key: str) -> Input:
        """The received image, de-identified as it was then; or the saved copy."""
        original = self.recorded.originals.get(instance_key)
        path = None if original is None else self.data_dir / "objects" / original.path
        if original is not None and path is not None and original.removed_at is None and path.is_file():
            sha256 = data_set_sha256(path)
            difference = Difference(what="the received image's sha256", then=original.sha256, now=sha256)
            site_key = load_site_key(self.settings.deidentification, self.data_dir)
            deidentifier = Deidentifier(site_key, self.settings.deidentification.profile)
            return Input(
                dataset=deidentifier.instance(kept_instance(instance_key, path)).dataset,
                source=ORIGINAL,
                differences=() if sha256 == original.sha256 else (difference,),
            )
        saved = self.recorded.saved
        for image in saved.images if saved is not None else ():
            if saved is not None and image.instance_key == instance_key:
                copy = read_deidentified(self.data_dir / saved.folder / image.file_name, image.sha256)
                return Input(dataset=copy, source=SAVED)
        when = "" if original is None or original.removed_at is None else f" on {original.removed_at:%Y-%m-%d}"
        expired = f"the received image has expired{when}" if when or original is None else "the received image is gone"
        raise ReplayError(f"the input is gone: {expired}, and no copy of it was saved")


def data_set_sha256(path: Path) -> str:
    """sha256 of the data set of a Part 10 file, without preamble and file meta, as an instance's row has it.

    Raises
    ------
    UnreadableError
        It is no Part 10 file any more.
    """
    digest, head = hashlib.sha256(), HeadReader()
    in_head = True
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE_BYTES):
                if not in_head:
                    digest.update(piece)
                    continue
                found = head.feed(memoryview(piece))
                if found is not None:
                    in_head = False
                    digest.update(found[1])
    except (OSError, NotUnderstoodError) as error:
        raise UnreadableError(f"image {path.stem} cannot be read: {type(error).__name__}") from error
    return digest.hexdigest()


def _bundle_differences(said: RecordedPrediction, session: ModelSession, known: KnownVersion) -> list[Difference]:
    found = []
    if session.bundle.model_sha256 != said.model_sha256:
        found.append(Difference(what="the model's sha256", then=said.model_sha256, now=session.bundle.model_sha256))
    sha256 = bundle_sha256(session.bundle.folder)
    if sha256 != known.bundle_sha256:
        found.append(Difference(what="the bundle's sha256", then=known.bundle_sha256, now=sha256))
    return found


_WORDS: Mapping[str, str] = {
    "tensor_sha256": "the model input's sha256",
    "decoder_scale": "the scale that the picture was decoded at",
    "deidentification": "the de-identification profile's sha256",
    "providers": "the execution providers",
    "onnxruntime": "ONNX Runtime",
    "gateway_version": "the gateway's version",
}


def _circumstances(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """What a prediction's record says of how it was made, and is otherwise now; what it does not say is not held."""
    return [
        Difference(what=words, then=_shown(then[name]), now=_shown(now[name]))
        for name, words in _WORDS.items()
        if name in now and then.get(name) not in (None, "") and then[name] != now[name]
    ]


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _judge(said: RecordedPrediction, now: Prediction, source: str, differences: tuple[Difference, ...]) -> Replayed:
    """Hold what came out against what was recorded."""
    then = {finding["name"]: finding for finding in said.findings}
    missing = sorted(set(then) ^ set(now.scores))
    changed = [
        Difference(what=f"the finding {name}", then=_verdict(each["present"]), now=_verdict(not each["present"]))
        for name, each in then.items()
        if name in now.scores and (now.scores[name] >= each["operating_point"]) != each["present"]
    ]
    if missing or len(said.logits) != len(now.logits):
        changed.append(Difference(what="the findings", then=", ".join(sorted(then)), now=", ".join(sorted(now.scores))))
    score = max((abs(now.scores[name] - each["score"]) for name, each in then.items() if name in now.scores), default=0)
    logits = np.asarray(said.logits, dtype=np.float32)
    comparable = logits.shape == now.logits.shape
    same = not changed and score <= SCORE_TOLERANCE
    return Replayed(
        recorded=said,
        outcome=Outcome.SAME if same else Outcome.DIFFERS,
        source=source,
        score_difference=float(score),
        logit_difference=float(np.abs(logits - now.logits).max()) if comparable else None,
        embedding_difference=_embedding_difference(said, now),
        identical=comparable and bool((logits == now.logits).all()),
        scores=dict(now.scores),
        differences=(*changed, *differences),
    )


def _verdict(present: bool) -> str:
    return "present" if present else "absent"


def _embedding_difference(said: RecordedPrediction, now: Prediction) -> float | None:
    if said.embedding is None or said.embedding.shape != now.embedding.shape:
        return None
    return float(np.abs(said.embedding - now.embedding).max())
