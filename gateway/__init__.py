"""The DICOM gateway: everything that has a peer, a disk or a clock; assembles ``models``, ``drift`` and ``xai``."""

__version__ = "0.1.0"
