"""Errors of the models room.

::

    ModelError
    ├── BundleError          a bundle is incomplete, altered or does not fit its card   (fail)
    ├── ImportRefusedError   a network cannot be made into a bundle, and why             (reject)
    ├── RegistryError        the model registry cannot be reached or has no such alias  (retry)
    ├── PixelError           the pixels cannot be decoded or are not what a card takes  (reject)
    │   └── UnsafePixelError      they bomb or crash the decoder                        (reject, and quarantine)
    ├── DecoderUnavailableError   no decoding process can be started                    (retry)
    └── InferenceError       ONNX Runtime failed on this batch                          (retry)
"""


class ModelError(Exception):
    """Base of all errors that this room raises."""


class BundleError(ModelError):
    """A bundle is incomplete, altered, or its graph does not fit its card."""


class ImportRefusedError(ModelError):
    """A network made elsewhere cannot be made into a bundle; says what about it stands in the way."""


class RegistryError(ModelError):
    """The model registry cannot be reached, or lacks the name, version or alias asked for."""


class PixelError(ModelError):
    """Pixel data that cannot be decoded, or that a card's pixel contract does not take."""


class UnsafePixelError(PixelError):
    """Pixel data that went over a limit, claim more than they can hold, or crashed the decoder."""


class DecoderUnavailableError(ModelError):
    """No decoding process can be started at present: the machine is short of something."""


class InferenceError(ModelError):
    """ONNX Runtime could not run a batch."""
