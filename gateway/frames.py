"""One frame of an image, decoded once, as a tensor for every version that reads it and as a picture for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image

from gateway.acquisition import Value
from gateway.canary import Assignment
from gateway.judgement import Role
from gateway.stages import PreparedFrame, StudyJudgement
from gateway.study import DeidentifiedInstance
from models.card import PixelContract
from models.decoding import Decoder
from models.errors import ModelError
from models.pixels import read_frame
from models.preprocess import Frame, ModelInput, prepare
from models.session import ModelSession

PICTURE_LONG_SIDE = 1152
"""Of the key image's and the viewer's picture (pixels); 12 megapixels decoded at a quarter fit as they are."""


@dataclass(slots=True, kw_only=True)
class Decoding:
    """One frame of an instance, decoded once for each size that is asked for, and cut once for each pixel contract."""

    instance: DeidentifiedInstance
    frame_index: int
    decoder: Decoder
    _frames: dict[int, Frame] = field(default_factory=dict)
    _inputs: dict[tuple[int, PixelContract], ModelInput] = field(default_factory=dict)

    def frame(self, least_side: int) -> Frame:
        """The picture, at a scale that keeps both sides at least that long."""
        if least_side not in self._frames:
            self._frames[least_side] = read_frame(
                self.instance.dataset, frame_index=self.frame_index, least_side=least_side, decoder=self.decoder
            )
        return self._frames[least_side]

    def model_input(self, session: ModelSession, least_side: int) -> ModelInput:
        """What goes into a session."""
        wanted = (least_side, session.bundle.card.pixel_contract)
        if wanted not in self._inputs:
            self._inputs[wanted] = prepare(self.frame(least_side), wanted[1])
        return self._inputs[wanted]


def prepare_frame(
    decoding: Decoding,
    here: Mapping[str, Assignment],
    parameters: Mapping[str, Value],
    judgement: StudyJudgement,
    problems: list[str],
) -> list[PreparedFrame]:
    """Tensors of one frame for every version that judges it, and for those that run beside.

    A model that does not take the frame goes into `problems`, and costs the others nothing. What runs beside sees the
    picture as it would if it judged, and never changes how the judging versions see it.
    """
    judges = [each.judge for each in here.values()]
    least_side = least_side_for(judges)
    picture = display_picture(decoding.frame(least_side))
    made: list[PreparedFrame] = []

    def add(session: ModelSession, role: Role, side: int, *, stands_by: bool = False) -> None:
        rows, columns = decoding.frame(side).pixels.shape[:2]
        made.append(
            PreparedFrame(
                study_key=judgement.study.study_key,
                instance_key=decoding.instance.instance_key,
                frame_index=decoding.frame_index,
                session=session,
                role=role,
                model_input=decoding.model_input(session, side),
                picture=picture,
                parameters=parameters,
                least_side=side,
                decoded=(rows, columns),
                stands_by=stands_by,
            )
        )

    for name, each in here.items():
        refusal = ""
        try:
            add(each.judge, each.role, least_side)
        except ModelError as error:
            refusal = str(error)
        stood_in = False
        for session in each.companions:
            stands_by = each.role is Role.CANARY and session is each.companions[0]
            side = least_side_for([session if judge is each.judge else judge for judge in judges])
            try:
                add(session, Role.SHADOW, side, stands_by=stands_by)
                stood_in |= stands_by
            except ModelError as error:
                if not refusal:
                    judgement.add_failure(session, Role.SHADOW, str(error))
        if refusal and stood_in:
            judgement.add_failure(each.judge, Role.CANARY, refusal)
        elif refusal:
            problems.append(f"{name}: {refusal}")
    return made


def least_side_for(sessions: Iterable[ModelSession]) -> int:
    """Shortest side at which a picture may be decoded: enough for the tensor's crop and for the key image."""
    sizes = (session.bundle.card.pixel_contract.size for session in sessions)
    return max(640, *(max(size.rows, size.columns) * 3 // 2 for size in sizes))


def display_picture(frame: Frame) -> npt.NDArray[np.uint8]:
    """uint8 [rows, columns, 3], the frame as displayed, long side at most :data:`PICTURE_LONG_SIDE`."""
    if frame.is_colour and max(frame.pixels.shape) <= PICTURE_LONG_SIDE:
        return np.asarray(frame.pixels, dtype=np.uint8)
    if frame.is_colour:
        picture = Image.fromarray(np.asarray(frame.pixels, dtype=np.uint8))
    else:
        levels = np.asarray(frame.pixels, dtype=np.float32)
        picture = Image.fromarray((np.clip(levels, 0, 1) * 255 + 0.5).astype(np.uint8))
    scale = PICTURE_LONG_SIDE / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(picture.convert("RGB"))
