"""Errors of the room.

EvaluationError      the cases handed in cannot be evaluated; nothing to retry
"""

from __future__ import annotations


class EvaluationError(ValueError):
    """The cases are not what :class:`evaluation.cases.ScoredCases` asks for; the message names no case."""
