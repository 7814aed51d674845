"""Errors of the xai room.

::

    XaiError
    └── ExplanationError     no explanation can be worked out for this prediction   (shown as "not judged")
"""


class XaiError(Exception):
    """Base of all errors that this room raises."""


class ExplanationError(XaiError):
    """A prediction whose arrays do not fit together, or whose gradient does not exist."""
