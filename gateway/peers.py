"""Who may talk: a peer is its calling AE title, bound to addresses and, under TLS, to a certificate.

An AE title alone is no proof of anything: whoever connects writes it. So a peer that is known by its AE title must come
from one of its addresses and, where its entry names certificates, show one of them. A certificate that is bound to
another peer is never taken for this one.

Everything that a peer sent stands in messages as a TOML string of printable ASCII, so that it can neither end a line of
the log nor move the cursor of the terminal that shows it.

References
----------
PS3.8 Table 9-21 (result, source and reason of A-ASSOCIATE-RJ); PS3.5 section 6.2 (VR AE: leading and trailing spaces
are not significant).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from gateway.settings import AeTitle, KnownPeer, Settings

_Network = IPv4Network | IPv6Network
_MAPPED = 96
"""Bits of ``::ffff:0:0/96``, before the IPv4 address (RFC 4291 section 2.5.5.2)."""

# PS3.8 Table 9-21: result 1 rejected-permanent, source 1 DICOM UL service-user
CALLED_AE_TITLE_NOT_RECOGNIZED = (1, 1, 7)
CALLING_AE_TITLE_NOT_RECOGNIZED = (1, 1, 3)

_SHOWN_CHARACTERS = 64
_ae_title: TypeAdapter[str] = TypeAdapter(AeTitle)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What a peer showed in the TLS handshake, already verified against the authorities."""

    sha256: str
    """Hexadecimal, of the DER encoding."""
    names: tuple[str, ...]
    """DNS names of SubjectAltName, and the common name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a peer may do on its association."""

    may: Literal["store", "echo", "nothing"]
    rejection: tuple[int, int, int] = (0, 0, 0)
    """Result, source and reason of A-ASSOCIATE-RJ (PS3.8 Table 9-21), when it may do nothing."""
    message: str = ""
    """For the log, unless it may store: who, why, and the lines to add to the settings. They follow on lines of their
    own, indented, and can be pasted as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One ``[[peers]]`` entry, ready to compare with."""

    peer: KnownPeer
    ae_title: str
    networks: tuple[_Network, ...]
    names: frozenset[str]

    @classmethod
    def of(cls, peer: KnownPeer) -> _Entry:
        return cls(
            peer=peer,
            ae_title=peer.ae_title.strip(),
            networks=tuple(_plain_network(each) for each in peer.addresses),
            names=frozenset(_plain_name(each) for each in peer.certificate_names),
        )

    @property
    def is_bound(self) -> bool:
        """Whether it names certificates."""
        return bool(self.peer.certificate_sha256 or self.names)

    def is_at(self, address: IPv4Address | IPv6Address | None) -> bool:
        return not self.networks or (address is not None and any(address in network for network in self.networks))

    def owns(self, certificate: Certificate) -> bool:
        """Whether `certificate` is one that it names; no wildcards."""
        if certificate.sha256.lower() in self.peer.certificate_sha256:
            return True
        return any(_plain_name(name) in self.names for name in certificate.names)


class PeerRegister:
    """Judges by the settings who may do what."""

    def __init__(self, settings: Settings) -> None:
        self._dicom = settings.dicom
        self._entries = tuple(_Entry.of(peer) for peer in settings.peers)

    def find(self, ae_title: str) -> KnownPeer | None:
        """The peer of that AE title; of several entries the first that says where it listens."""
        entries = self._entries_of(ae_title)
        listening = [each.peer for each in entries if each.peer.host and each.peer.port]
        return next(iter([*listening, *(each.peer for each in entries)]), None)

    def judge(
        self,
        *,
        calling_ae_title: str,
        called_ae_title: str,
        address: str,
        encrypted: bool,
        certificate: Certificate | None,
    ) -> Verdict:
        """What a peer may do that asks for an association.

        Parameters
        ----------
        calling_ae_title, called_ae_title
            As received; surrounding spaces are not significant. Any characters.
        address
            Where it connects from, IPv4 or IPv6; an IPv4-mapped IPv6 address is taken as the IPv4 address.
        encrypted
            Whether it came by TLS.
        certificate
            What it showed, verified; ``None`` without TLS, or where no client certificates are asked for.
        """
        calling = calling_ae_title.strip(" ")
        where = _plain_address(address)
        who = f"{quoted(calling)} from {_shown_address(where, address)}"
        if self._dicom.require_called_ae_title and called_ae_title.strip(" ") != self._dicom.ae_title.strip(" "):
            message = (
                f"refused {who}: it calls {quoted(called_ae_title.strip(' '))}, and this is "
                f"{quoted(self._dicom.ae_title)}; correct it there, or set dicom.require_called_ae_title = false"
            )
            return Verdict(may="nothing", rejection=CALLED_AE_TITLE_NOT_RECOGNIZED, message=message)
        entries = self._entries_of(calling)
        if certificate is not None and not any(each.owns(certificate) for each in entries):
            owner = next((each for each in self._entries if each.owns(certificate)), None)
            if owner is not None:
                return self._foreign(who, certificate, owner, entries)
        if not entries:
            return self._stranger(who, calling, where, certificate)
        return self._known(who, entries, where, encrypted=encrypted, certificate=certificate)

    def _entries_of(self, ae_title: str) -> tuple[_Entry, ...]:
        return tuple(each for each in self._entries if each.ae_title == ae_title.strip(" "))

    def _stranger(
        self, who: str, calling: str, where: IPv4Address | IPv6Address | None, certificate: Certificate | None
    ) -> Verdict:
        policy = self._dicom.unknown_peers
        local = policy == "auto" and not self._entries and where is not None and where.is_loopback
        if policy == "accept" or local:
            return Verdict(may="store")
        lines = []
        try:
            _ae_title.validate_python(calling)
        except ValidationError:
            advice = "that is no AE title (PS3.5 section 6.2), so no [[peers]] entry can name it"
        else:
            advice = "to let it store, add to the settings and restart:"
            lines = ["[[peers]]", f"ae_title = {quoted(calling)}"]
            if where is not None:
                lines.append(f"addresses = [{quoted(str(where))}]")
            if certificate is not None:
                lines.append(f'certificate_sha256 = ["{certificate.sha256}"]')
        if self._dicom.echo_for_strangers:
            return Verdict(may="echo", message=_message(f"{who} is unknown and may only echo; {advice}", lines))
        message = _message(f"refused {who}: it is unknown; {advice}", lines)
        return Verdict(may="nothing", rejection=CALLING_AE_TITLE_NOT_RECOGNIZED, message=message)

    def _known(
        self,
        who: str,
        entries: Sequence[_Entry],
        where: IPv4Address | IPv6Address | None,
        *,
        encrypted: bool,
        certificate: Certificate | None,
    ) -> Verdict:
        here = [each for each in entries if each.is_at(where)]
        for each in here:
            if not each.is_bound or (encrypted and certificate is not None and each.owns(certificate)):
                return Verdict(may="store")
        lines = []
        if not here:
            nearest = entries[0]
            reason = f"it is known, but not at that address; if it is there now, its [[peers]] entry needs {_EDIT}"
            if where is not None:
                lines = [_toml_list("addresses", [*nearest.peer.addresses, str(where)])]
            else:
                reason = "it is known, but not at that address"
        elif not encrypted:
            reason = "its [[peers]] entry names certificates, so it must come by TLS"
        elif certificate is None:
            reason = (
                "its [[peers]] entry names certificates, and it showed none; peers are asked for theirs with "
                'tls.client_certificates = "required"'
            )
        else:
            shown = ", ".join(quoted(name) for name in certificate.names[:4]) or "no name"
            reason = (
                f"it showed a certificate of {shown} that its [[peers]] entry does not name; if it has a new one, that "
                f"entry needs {_EDIT}"
            )
            lines = [_toml_list("certificate_sha256", [*here[0].peer.certificate_sha256, certificate.sha256])]
        return Verdict(
            may="nothing",
            rejection=CALLING_AE_TITLE_NOT_RECOGNIZED,
            message=_message(f"refused {who}: {reason}", lines),
        )

    def _foreign(self, who: str, certificate: Certificate, owner: _Entry, entries: Sequence[_Entry]) -> Verdict:
        reason = f"it showed the certificate of {quoted(owner.ae_title)}"
        lines = []
        if entries:
            reason += f"; if both share it, the [[peers]] entry of this one needs {_EDIT}"
            lines = [_toml_list("certificate_sha256", [*entries[0].peer.certificate_sha256, certificate.sha256])]
        return Verdict(
            may="nothing",
            rejection=CALLING_AE_TITLE_NOT_RECOGNIZED,
            message=_message(f"refused {who}: {reason}", lines),
        )


_EDIT = "this line in place of the one it has:"


def quoted(text: str) -> str:
    """`text` as a TOML basic string of printable ASCII, cut after 64 characters.

    References
    ----------
    TOML 1.0, section "String": quotes and backslashes are escaped, everything else that is not printable as \\uXXXX.
    """
    shown = text[:_SHOWN_CHARACTERS]
    parts = []
    for char in shown:
        code = ord(char)
        if char in '"\\':
            parts.append(f"\\{char}")
        elif 0x20 <= code < 0x7F:
            parts.append(char)
        elif code > 0xFFFF:
            parts.append(f"\\U{code:08X}")
        else:
            parts.append(f"\\u{code:04X}")
    return f'"{"".join(parts)}"' + ("..." if len(text) > len(shown) else "")


def _message(text: str, lines: Sequence[str]) -> str:
    return "\n    ".join([text, *lines])


def _toml_list(key: str, values: Sequence[str]) -> str:
    return f"{key} = [{', '.join(quoted(value) for value in values)}]"


def _plain_name(name: str) -> str:
    return name.lower().removesuffix(".")


def _plain_address(address: str) -> IPv4Address | IPv6Address | None:
    """`address` without its scope, as IPv4 where it is mapped; ``None``: it is no address."""
    try:
        plain = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    mapped = plain.ipv4_mapped if isinstance(plain, IPv6Address) else None
    return mapped or plain


def _plain_network(address: str) -> _Network:
    network = ip_network(address, strict=False)
    if isinstance(network, IPv6Network) and network.prefixlen >= _MAPPED:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - _MAPPED))
    return network


def _shown_address(where: IPv4Address | IPv6Address | None, address: str) -> str:
    return str(where) if where is not None else quoted(address)
