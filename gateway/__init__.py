"""The DICOM gateway: everything that has a peer, a disk or a clock; assembles ``models``, ``drift`` and ``xai``."""

__version__ = "0.1.0"

IMPLEMENTATION_CLASS_UID = "2.25.283184735406212937162446164733276938745"
"""(0002,0012) of files that the gateway writes, and what it says of itself in associations (PS3.7 Annex D.3.3.2)."""
IMPLEMENTATION_VERSION_NAME = "GATEWAY"
