"""Errors of the drift room.

::

    DriftError
    ├── ReferenceFileError   reference.npz is missing, incomplete or does not fit itself          (fail)
    ├── WindowError          the window cannot be held against this reference: shape, not finite  (reject)
    ├── BackendError         the backend asked for is unknown, not installed, or broke            (fail)
    ├── AlarmError           an alarm was asked to take a step that its state does not allow      (reject)
    └── ChartStateError      the stored state of a chart is unreadable, or of another reference   (fail)

A monitor that fails is shown as *not judged*, which differs from *no drift*.
"""


class DriftError(Exception):
    """Base of all errors that this room raises."""


class ReferenceFileError(DriftError):
    """``reference.npz`` cannot be read, lacks an array, or its arrays do not fit each other."""


class WindowError(DriftError):
    """A window of values has the wrong shape for its reference, or holds a value that is not finite."""


class BackendError(DriftError):
    """The backend of a test is unknown, is not installed, or failed."""


class AlarmError(DriftError):
    """A change of an alarm that its state, or the result at hand, does not allow."""


class ChartStateError(DriftError):
    """The stored state of a chart cannot be read, or belongs to another reference."""


class CalibrationError(DriftError):
    """The heights of the charts are not known: their simulation was stopped, was too short, or cannot be kept."""
