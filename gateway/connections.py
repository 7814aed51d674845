"""What a receiver knows of each connected peer, and how many it may have."""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass

from gateway.association import Association
from gateway.settings import DicomSettings
from gateway.spool import Peer


@dataclass(slots=True, eq=False)
class Connection:
    """One connected peer."""

    socket: socket.socket
    address: str
    key: str
    """The gateway's own name for it, for the log."""
    association: Association
    opened_at: float
    heard_at: float
    """When the last byte came or went."""
    handshaking: bool = False
    window_began_at: float = 0.0
    """Since when `window_bytes` of a message have come."""
    window_bytes: int = 0
    close_at: float | None = None
    """The association is over: when not to wait for the peer's end any longer."""
    events: int = select.EPOLLIN
    associated: bool = False

    @property
    def peer(self) -> Peer:
        """Who it says it is; the AE title as printable text."""
        request = self.association.request
        title = request.calling_ae_title if request is not None else ""
        printable = "".join(char if " " <= char <= "~" else "?" for char in title)[:16]
        return Peer(calling_ae_title=printable, address=self.address)


@dataclass(slots=True)
class Share:
    """A receiver's share of the limits, which hold over all receivers."""

    connections: int
    connections_an_address: int
    associations: int
    associations_an_address: int

    @classmethod
    def of(cls, dicom: DicomSettings) -> Share:
        def part(most: int) -> int:
            return -(-most // dicom.receivers)

        return cls(
            part(dicom.maximum_connections),
            part(dicom.maximum_connections_per_address),
            part(dicom.maximum_associations),
            part(dicom.maximum_associations_per_address),
        )
