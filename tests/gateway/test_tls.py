"""TLS contexts on real sockets: what is refused, what is negotiated, and that changed files come into use."""

from __future__ import annotations

import logging
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, Pem
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from intake_rig import dcmtk, small_dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from running import free_port, listens, wait_until

from gateway import tls as tls_module
from gateway.cli import main
from gateway.errors import DeliveryError, SettingsError
from gateway.peers import Certificate
from gateway.send import Address, association_with, contexts_for, send_files, send_one
from gateway.settings import TlsSettings
from gateway.tls import ReceiverTls, client_settings, judge_files, sender_context, shown_certificate

PATIENCE_S = 10


class Ring:
    """An authority, a server of its own, clients, and strangers' certificates."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ours")
        self.server = self.authority.issue("server", dns=("localhost", "gateway.example"), addresses=("127.0.0.1",))
        self.client = self.authority.issue("CT1", dns=("ct1.example",))
        self.expired = self.authority.issue("expired", dns=("localhost",), days=(-30, -1))
        self.foreign = Authority(folder / "theirs", "another authority").issue("CT1", dns=("ct1.example",))

    def settings(self, **changes: Any) -> TlsSettings:
        given = {
            "enabled": True,
            "host": "127.0.0.1",
            "port": 0,
            "certificate": str(self.server.certificate),
            "key": str(self.server.key),
            "authorities": str(self.authority.pem),
            "client_certificates": "required",
            "minimum_version": "1.2",
        }
        return TlsSettings.model_validate({**given, **changes})

    def client_context(self, pem: Pem | None, *, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """Of a client that would do anything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=self.authority.pem)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        if version is not None:
            context.maximum_version = version
        if pem is not None:
            context.load_cert_chain(pem.certificate, pem.key)
        return context


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Ring:
    return Ring(tmp_path_factory.mktemp("ring"))


def shake_hands(receiver: ssl.SSLContext, client: ssl.SSLContext) -> tuple[Certificate | None, str, str]:
    """Connect `client`; what the server saw of it, the version and the cipher suite. SSLError: the server's refusal."""
    failure: list[BaseException] = []
    seen: list[tuple[Certificate | None, str, str]] = []
    client_failed: OSError | None = None

    def serve(listener: socket.socket) -> None:
        connected, _ = listener.accept()
        connected.settimeout(PATIENCE_S)
        with receiver.wrap_socket(connected, server_side=True, do_handshake_on_connect=False) as encrypted:
            try:
                encrypted.do_handshake()
                suite = encrypted.cipher()
                assert suite is not None
                seen.append((shown_certificate(encrypted), str(encrypted.version()), suite[0]))
                encrypted.sendall(b"x")
            except OSError as error:
                failure.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, args=(listener,))
        server.start()
        try:
            with (
                socket.create_connection(listener.getsockname(), timeout=PATIENCE_S) as plain,
                client.wrap_socket(plain, server_hostname="localhost") as encrypted,
            ):
                encrypted.recv(1)
        except OSError as error:
            client_failed = error
        finally:
            server.join()
    if failure:
        raise failure[0]
    assert client_failed is None
    return seen[0]


@pytest.mark.parametrize(
    ("version", "name"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
def test_tls_1_2_and_1_3_with_a_certificate(ring: Ring, version: ssl.TLSVersion, name: str) -> None:
    certificate, negotiated, suite = shake_hands(
        ReceiverTls(ring.settings()).context(), ring.client_context(ring.client, version=version)
    )
    assert negotiated == name
    assert certificate == Certificate(sha256=ring.client.sha256, names=("ct1.example", "CT1"))
    # RFC 9325 section 4.2: ephemeral keys and authenticated encryption
    assert name == "TLSv1.3" or (suite.startswith("ECDHE-") and "GCM" in suite)


def test_without_client_certificates_none_is_seen(ring: Ring) -> None:
    receiver = ReceiverTls(ring.settings(client_certificates="none", authorities="")).context()
    assert shake_hands(receiver, ring.client_context(None))[0] is None
    assert shake_hands(receiver, ring.client_context(ring.client))[0] is None


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1:DeprecationWarning")
@pytest.mark.parametrize("minimum", ["1.2", "1.3"])
def test_older_versions_are_refused(ring: Ring, minimum: str) -> None:
    receiver = ReceiverTls(ring.settings(minimum_version=minimum)).context()
    versions = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1]
    for version in [*versions, *([ssl.TLSVersion.TLSv1_2] if minimum == "1.3" else [])]:
        with pytest.raises(ssl.SSLError) as refusal:
            shake_hands(receiver, ring.client_context(ring.client, version=version))
        assert refusal.value.reason == "UNSUPPORTED_PROTOCOL"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_certificates_that_are_refused(ring: Ring, version: ssl.TLSVersion) -> None:
    receiver = ReceiverTls(ring.settings()).context()
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(receiver, ring.client_context(None, version=version))
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake_hands(receiver, ring.client_context(ring.foreign, version=version))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        shake_hands(receiver, ring.client_context(ring.expired, version=version))


@pytest.mark.parametrize("suites", ["AES128-GCM-SHA256", "AES256-SHA", "ECDHE-ECDSA-AES256-SHA384", "aNULL", "DHE"])
def test_weak_cipher_suites_are_refused(ring: Ring, suites: str) -> None:
    client = ring.client_context(ring.client, version=ssl.TLSVersion.TLSv1_2)
    client.set_ciphers(f"{suites}:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match="NO_SHARED_CIPHER"):
        shake_hands(ReceiverTls(ring.settings()).context(), client)


def test_self_signed_certificate_is_trusted_where_it_is_listed(ring: Ring, tmp_path: Path) -> None:
    pinned = tmp_path / "authorities.pem"
    pinned.write_bytes(ring.foreign.certificate.read_bytes())
    receiver = ReceiverTls(ring.settings(authorities=str(pinned))).context()
    certificate, _, _ = shake_hands(receiver, ring.client_context(ring.foreign))
    assert certificate is not None and certificate.sha256 == ring.foreign.sha256


@contextmanager
def looks_at_once() -> Iterator[None]:
    """Files are looked at with each call, not once a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls_module, "_LOOK_S", 0.0)
        yield


def served(receiver: ReceiverTls, ring: Ring, client: Pem) -> bytes:
    """The certificate that the server shows now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connected, _ = listener.accept()
            with receiver.context().wrap_socket(connected, server_side=True) as encrypted:
                encrypted.recv(1)

        server = threading.Thread(target=serve)
        server.start()
        with (
            socket.create_connection(listener.getsockname(), timeout=PATIENCE_S) as plain,
            ring.client_context(client).wrap_socket(plain, server_hostname="localhost") as encrypted,
        ):
            shown = encrypted.getpeercert(binary_form=True)
            encrypted.sendall(b"x")
        server.join()
    assert shown is not None
    return shown


def test_changed_files_come_into_use_and_broken_ones_do_not(
    ring: Ring, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    shutil.copy(ring.server.certificate, certificate)
    shutil.copy(ring.server.key, key)
    receiver = ReceiverTls(ring.settings(certificate=str(certificate), key=str(key)))
    first = served(receiver, ring, ring.client)
    renewed = ring.authority.issue("server", dns=("localhost",), file="renewed")
    with looks_at_once(), caplog.at_level(logging.INFO, "gateway.tls"):
        assert receiver.context() is receiver.context()
        shutil.copy(renewed.certificate, certificate)  # the key is still the old one
        assert served(receiver, ring, ring.client) == first
        assert [each.levelname for each in caplog.records] == ["ERROR"]
        assert "not the private key" in caplog.text
        certificate.write_text("no certificate")
        assert served(receiver, ring, ring.client) == first
        certificate.unlink()
        assert served(receiver, ring, ring.client) == first
        assert served(receiver, ring, ring.client) == first
        assert [each.levelname for each in caplog.records] == ["ERROR"] * 3
        shutil.copy(renewed.certificate, certificate)
        shutil.copy(renewed.key, key)
        second = served(receiver, ring, ring.client)
        assert second != first
        assert second == ssl.PEM_cert_to_DER_cert(renewed.certificate.read_text())
        assert [each.levelname for each in caplog.records] == ["ERROR"] * 3 + ["INFO"]


def test_settings_errors_say_which_file_and_why(ring: Ring, tmp_path: Path, subtests: pytest.Subtests) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("garbage")
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key(ring.server.key.read_bytes(), None)
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"pass phrase"),
        )
    )
    weak = ring.authority.issue("weak", key=rsa.generate_private_key(65537, 1024))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"certificate": str(tmp_path / "none.pem")}, r"tls\.certificate: .*none\.pem cannot be read: No such file"),
        ({"key": str(tmp_path / "none.key")}, r"tls\.key: .*none\.key cannot be read: No such file"),
        ({"authorities": str(tmp_path)}, r"tls\.authorities: .* cannot be read: Is a directory"),
        ({"certificate": str(garbage)}, r"tls\.certificate and tls\.key: .*garbage\.pem"),
        ({"key": str(garbage)}, r"tls\.certificate and tls\.key: .*garbage\.pem"),
        ({"authorities": str(garbage)}, r"tls\.authorities: .*garbage\.pem holds no PEM certificates"),
        ({"key": str(ring.client.key)}, r"tls\.key: .*CT1\.key is not the private key"),
        ({"key": str(locked)}, r"without a pass phrase"),
        ({"certificate": str(weak.certificate), "key": str(weak.key)}, r"too weak for BCP 195"),
    ]
    for changes, message in wrong:
        with subtests.test(changes=changes):
            with pytest.raises(SettingsError, match=message):
                ReceiverTls(ring.settings(**changes))
            with pytest.raises(SettingsError, match=message):
                sender_context(ring.settings(**changes))
            errors, _ = judge_files(ring.settings(**changes), sends=True, now=datetime.now(UTC))
            assert len(errors) == 1


def test_check_warns_before_certificates_expire(ring: Ring, tmp_path: Path) -> None:
    def warnings(pem: Pem, *, sends: bool = False) -> list[str]:
        settings = ring.settings(certificate=str(pem.certificate), key=str(pem.key))
        errors, found = judge_files(settings, sends=sends, now=datetime.now(UTC))
        assert errors == []
        return found

    assert warnings(ring.server, sends=True) == []
    assert [each.split(" on ")[0] for each in warnings(ring.expired)] == ["tls.certificate: CN=expired expired"]
    soon = ring.authority.issue("soon", days=(-1, 20))
    assert [each.split(" on ")[0] for each in warnings(soon)] == ["tls.certificate: CN=soon expires"]
    later = ring.authority.issue("later", days=(2, 90))
    assert "is not valid before" in warnings(later)[0]
    serves_only = ring.authority.issue("serves", usages=(ExtendedKeyUsageOID.SERVER_AUTH,))
    assert warnings(serves_only) == []
    assert "lacks clientAuth" in warnings(serves_only, sends=True)[0]


def test_check_command_reports_tls(ring: Ring, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(
        f'[tls]\nenabled = true\ncertificate = "{ring.server.certificate}"\nkey = "{ring.client.key}"\n'
        f'authorities = "{ring.authority.pem}"\n'
    )
    assert main(["check", "--config", str(config)]) == 1
    assert "is not the private key" in capsys.readouterr().out
    config.write_text('[[peers]]\nae_title = "CT1"\ncertificate_names = ["ct1"]\n')
    assert main(["check", "--config", str(config)]) == 0
    assert "'CT1' is bound to a certificate, and peers are not asked for one" in capsys.readouterr().out
    config.write_text('[[destinations]]\nname = "p"\nae_title = "P"\nhost = "p.example"\nport = 2762\ntls = true\n')
    assert main(["check", "--config", str(config)]) == 1
    assert "sending by TLS needs tls.authorities" in capsys.readouterr().out


# --- sending, to DCMTK --------------------------------------------------------------------------------------------


@pytest.fixture
def pacs(ring: Ring, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Start storescp with TLS, asking for certificates; gives its port. Its inbox is ``inbox``."""
    started: list[subprocess.Popen[bytes]] = []

    def start(server: Pem | None = None) -> int:
        server = server or ring.server
        port = free_port()
        inbox = tmp_path / "inbox"
        inbox.mkdir(exist_ok=True)
        command = [dcmtk("storescp"), "+tls", str(server.key), str(server.certificate), "+cf", str(ring.authority.pem)]
        command += ["-aet", "PACS", "--accept-all", "-od", str(inbox), str(port)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        wait_until(lambda: listens(port), "storescp")
        return port

    yield start
    for each in started:
        each.terminate()
        each.wait()


def sends_to(port: int, tls: TlsSettings | None, host: str = "localhost") -> int:
    dataset = small_dataset()
    address = Address(host=host, port=port, called_ae_title="PACS", calling_ae_title="GATEWAY", tls=tls)
    contexts = contexts_for([(CTImageStorage, ExplicitVRLittleEndian)], convertible=False)
    with association_with(address, contexts) as association:
        return send_one(association, dataset)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_sends_to_dcmtk_by_tls(ring: Ring, pacs: Callable[..., int], tmp_path: Path, host: str) -> None:
    port = pacs()
    assert sends_to(port, ring.settings(), host) == 0
    assert len(list((tmp_path / "inbox").iterdir())) == 1


def test_sender_says_why_tls_failed(ring: Ring, pacs: Callable[..., int], tmp_path: Path) -> None:
    port = pacs()
    with pytest.raises(DeliveryError, match=r"PACS at localhost:\d+: TLS failed: .*unknown ca"):
        sends_to(port, ring.settings(certificate=str(ring.foreign.certificate), key=str(ring.foreign.key)))
    # DCMTK 3.6.7 takes a TLS 1.3 client without a certificate as far as an alert after the handshake.
    with pytest.raises(DeliveryError, match=r"TLS failed: .*certificate required"):
        sends_to(port, client_settings(authorities=str(ring.authority.pem)))
    elsewhere = pacs(ring.authority.issue("elsewhere", dns=("elsewhere.example",)))
    with pytest.raises(DeliveryError, match=r"TLS failed: the certificate does not verify: Hostname mismatch"):
        sends_to(elsewhere, ring.settings())
    with pytest.raises(DeliveryError, match=r"TLS failed: the certificate does not verify: .*local issuer"):
        sends_to(pacs(ring.foreign), ring.settings())
    with pytest.raises(DeliveryError, match=r"TLS failed: the certificate does not verify: certificate has expired"):
        sends_to(pacs(ring.expired), ring.settings())
    with pytest.raises(DeliveryError, match=r"tls\.certificate: .*gone\.pem cannot be read"):
        sends_to(port, ring.settings(certificate=str(tmp_path / "gone.pem")))
    assert list((tmp_path / "inbox").iterdir()) == []


def test_gateway_send_by_tls(
    ring: Ring, pacs: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = pacs()
    image = tmp_path / "image.dcm"
    small_dataset().save_as(image, enforce_file_format=True)
    command = ["send", str(image), "--host", "localhost", "--port", str(port), "--called", "PACS"]
    options = ["--tls", "--authorities", str(ring.authority.pem)]
    options += ["--certificate", str(ring.client.certificate), "--key", str(ring.client.key)]
    assert main([*command, *options]) == 0
    assert "1 of 1 accepted" in capsys.readouterr().out
    assert main([*command, "--tls"]) == 1
    assert "TLS needs authorities" in capsys.readouterr().err
    report = send_files([image], host="localhost", port=port, called_ae_title="PACS", tls=None)
    assert report.accepted == 0
