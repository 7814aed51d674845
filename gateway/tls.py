"""TLS contexts, received and sent.

What is negotiated follows BCP 195 (RFC 8996, RFC 9325), which is the profile of PS3.15 section B.12: TLS 1.2 and 1.3;
under 1.2 only ephemeral elliptic-curve key exchange with authenticated encryption; keys of at least 112 bits of
strength (RSA 2048) and no SHA-1 signatures, which is OpenSSL's security level 2; no compression (RFC 9325 section 3.3),
no renegotiation (3.5), and no session tickets, whose keys would outlive the sessions (3.4). The modified profile of
section B.13 asks for CCM, Camellia and finite-field Diffie-Hellman suites as well, and is not claimed.

Peers' certificates are verified against the authorities in the settings alone, never the system's. Each certificate in
that file is trusted as it is, an intermediate authority or a device's self-signed one included.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gateway.errors import SettingsError
from gateway.peers import Certificate
from gateway.settings import TlsSettings

logger = logging.getLogger(__name__)

CIPHERS = ":".join(
    [
        "@SECLEVEL=2",
        # RFC 9325 section 4.2
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        # RFC 7905; not among the recommended ones of RFC 9325, and of their kind
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
    ]
)
"""For TLS 1.2; those of TLS 1.3 are all fit (RFC 9325 section 4.3)."""
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_LOOK_S = 1.0
EXPIRES_SOON = timedelta(days=30)

_State = tuple[tuple[int, int, int], ...]


class ReceiverTls:
    """The server's side: gives the context for a new connection, and reads the files again when they change."""

    def __init__(self, settings: TlsSettings) -> None:
        """Read the files.

        Raises
        ------
        SettingsError
            A file is missing or not PEM, or the key is not the certificate's.
        """
        self._settings = settings
        self._lock = threading.Lock()
        self._state = _state(settings)
        self._context = _receiver_context(settings)
        self._looked_at = time.monotonic()

    def context(self) -> ssl.SSLContext:
        """The context for a connection that begins now; from any thread.

        The files are looked at once a second at most. New ones that do not fit together are logged, once, and the old
        ones stay in use; so a certificate and its key may be replaced one after the other.
        """
        with self._lock:
            now = time.monotonic()
            if now - self._looked_at < _LOOK_S:
                return self._context
            self._looked_at = now
            state = _state(self._settings)
            if state == self._state:
                return self._context
            self._state = state
            try:
                self._context = _receiver_context(self._settings)
            except SettingsError as error:
                logger.error("TLS files have changed and cannot be used, the old ones stay in use: %s", error)
            else:
                logger.info("TLS files have changed and are in use")
            return self._context


def _state(settings: TlsSettings) -> _State:
    """What tells a changed file: of each its modification time in ns, inode, and size; zeros where there is none."""
    seen = []
    for name in (settings.certificate, settings.key, settings.authorities):
        try:
            status = Path(name).stat() if name else None
        except OSError:
            status = None
        seen.append((status.st_mtime_ns, status.st_ino, status.st_size) if status else (0, 0, 0))
    return tuple(seen)


def _receiver_context(settings: TlsSettings) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _limit(context, settings)
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_TICKET
    context.num_tickets = 0
    _load_own(context, settings)
    if settings.client_certificates == "required":
        _load_authorities(context, settings)
        context.verify_mode = ssl.CERT_REQUIRED
    else:
        context.verify_mode = ssl.CERT_NONE
    return context


class _Session(ssl.SSLSocket):
    """A sender's socket that remembers why TLS failed; pynetdicom would only say that there is no connection."""

    context: SenderContext

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except ssl.SSLError as error:
            self.context.failure = explain(error)
            raise

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        # Under TLS 1.3 a server refuses a client's certificate after the client's handshake is over.
        try:
            return super().read(len, buffer)
        except ssl.SSLError as error:
            self.context.failure = explain(error)
            raise


class SenderContext(ssl.SSLContext):
    """The client's side of one association."""

    sslsocket_class = _Session
    failure: str = ""
    """Why TLS failed, if it did."""


def sender_context(settings: TlsSettings) -> SenderContext:
    """The client's side, for one association: shows the gateway's certificate, where it has one, and verifies the
    peer's by the authorities and by the host's name or address.

    Raises
    ------
    SettingsError
        A file is missing or not PEM, the key is not the certificate's, or no authorities are set.
    """
    context = SenderContext(ssl.PROTOCOL_TLS_CLIENT)
    _limit(context, settings)
    if settings.certificate:
        _load_own(context, settings)
    _load_authorities(context, settings)
    return context


def client_settings(*, authorities: str, certificate: str = "", key: str = "") -> TlsSettings:
    """Settings for :func:`sender_context` from the paths of three PEM files.

    Raises
    ------
    SettingsError
        No authorities are named, or one of certificate and key without the other.
    """
    if not authorities:
        raise SettingsError("TLS needs authorities: path of a PEM file that verifies the receiver")
    if bool(certificate) != bool(key):
        raise SettingsError("certificate and key are needed both: paths of PEM files")
    return TlsSettings(
        enabled=False,
        host="127.0.0.1",
        port=0,
        certificate=certificate,
        key=key,
        authorities=authorities,
        client_certificates="required",
        minimum_version="1.2",
    )


def _limit(context: ssl.SSLContext, settings: TlsSettings) -> None:
    context.minimum_version = _VERSIONS[settings.minimum_version]
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN


def _load_own(context: ssl.SSLContext, settings: TlsSettings) -> None:
    for setting, name in (("certificate", settings.certificate), ("key", settings.key)):
        _readable(setting, name)
    try:
        # An empty pass phrase, so that OpenSSL does not ask the terminal for one.
        context.load_cert_chain(settings.certificate, settings.key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            message = f"tls.key: {settings.key} is not the private key of the certificate in {settings.certificate}"
        elif error.reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
            message = f"tls.certificate: {settings.certificate} is too weak for BCP 195: {explain(error)}"
        else:
            message = (
                f"tls.certificate and tls.key: {settings.certificate} and {settings.key} are not a PEM certificate "
                f"and its private key without a pass phrase: {explain(error)}"
            )
        raise SettingsError(message) from error
    except OSError as error:
        raise SettingsError(f"tls.certificate and tls.key: cannot be read: {error.strerror}") from error


def _load_authorities(context: ssl.SSLContext, settings: TlsSettings) -> None:
    if not settings.authorities:
        raise SettingsError("tls.authorities: needed to verify a peer's certificate: path of a PEM file")
    _readable("authorities", settings.authorities)
    try:
        context.load_verify_locations(cafile=settings.authorities)
    except ssl.SSLError as error:
        raise SettingsError(
            f"tls.authorities: {settings.authorities} holds no PEM certificates: {explain(error)}"
        ) from error
    except OSError as error:
        raise SettingsError(f"tls.authorities: {settings.authorities} cannot be read: {error.strerror}") from error


def _readable(setting: str, name: str) -> None:
    try:
        with Path(name).open("rb"):
            return
    except OSError as error:
        raise SettingsError(f"tls.{setting}: {name} cannot be read: {error.strerror}") from error


def explain(error: ssl.SSLError) -> str:
    """Why TLS failed, in OpenSSL's words, without its line numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate does not verify: {error.verify_message}"
    return (error.reason or str(error)).replace("_", " ").lower()


def shown_certificate(connection: ssl.SSLSocket) -> Certificate | None:
    """What the peer of a finished handshake showed; ``None``: nothing, or nothing was asked for."""
    encoded = connection.getpeercert(binary_form=True)
    described = connection.getpeercert()
    if not encoded or not described:  # the second is empty where it was not verified
        return None
    alternatives: Sequence[Any] = described.get("subjectAltName", ())
    names = [value for kind, value in alternatives if kind == "DNS"]
    subject: Sequence[Any] = described.get("subject", ())
    names += [value for part in subject for key, value in part if key == "commonName"]
    return Certificate(sha256=hashlib.sha256(encoded).hexdigest(), names=tuple(dict.fromkeys(names)))


def judge_files(settings: TlsSettings, *, sends: bool, now: datetime) -> tuple[list[str], list[str]]:
    """Errors and warnings about the files, for ``gateway check``.

    Parameters
    ----------
    sends
        Whether any destination or peer is sent to by TLS.
    """
    errors: list[str] = []
    for needed, make in ((settings.enabled, _receiver_context), (sends, sender_context)):
        if needed:
            try:
                make(settings)
            except SettingsError as error:
                if str(error) not in errors:
                    errors.append(str(error))
    if errors or not (settings.enabled or sends):
        return errors, []
    return [], _certificate_warnings(settings, sends=sends, now=now)


def _certificate_warnings(settings: TlsSettings, *, sends: bool, now: datetime) -> list[str]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    warnings = []
    for setting, name in (("certificate", settings.certificate), ("authorities", settings.authorities)):
        for each in x509.load_pem_x509_certificates(Path(name).read_bytes()) if name else ():
            subject = each.subject.rfc4514_string()
            if each.not_valid_after_utc <= now:
                warnings.append(f"tls.{setting}: {subject} expired on {each.not_valid_after_utc:%Y-%m-%d}")
            elif each.not_valid_after_utc <= now + EXPIRES_SOON:
                warnings.append(f"tls.{setting}: {subject} expires on {each.not_valid_after_utc:%Y-%m-%d}")
            elif each.not_valid_before_utc > now:
                warnings.append(f"tls.{setting}: {subject} is not valid before {each.not_valid_before_utc:%Y-%m-%d}")
    if settings.certificate:
        own = x509.load_pem_x509_certificates(Path(settings.certificate).read_bytes())[0]
        try:
            usages = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        except x509.ExtensionNotFound:
            return warnings
        for needed, usage, name in (
            (settings.enabled, ExtendedKeyUsageOID.SERVER_AUTH, "serverAuth"),
            (sends, ExtendedKeyUsageOID.CLIENT_AUTH, "clientAuth"),
        ):
            if needed and usage not in usages:
                warnings.append(f"tls.certificate: its extended key usage lacks {name}, so peers may refuse it")
    return warnings
