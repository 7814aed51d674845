"""Finds text that is burned into pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBox:
    """Where text lies in a picture: whole pixels, within it, its edges included."""

    row: int
    column: int
    rows: int
    columns: int
    confidence: float


class TextFinder(Protocol):
    """Looks for text in a picture."""

    def find(self, picture: npt.NDArray[np.uint8]) -> tuple[TextBox, ...]:
        """Find where there is text; `picture` is uint8 [rows, columns] or RGB [rows, columns, 3]."""
        ...
