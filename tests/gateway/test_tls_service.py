"""``gateway serve`` with TLS and known peers, against DCMTK and openssl."""

from __future__ import annotations

import hashlib
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority, Pem
from intake_rig import dcmtk, small_dataset
from running import Gateway, running_gateway, wait_until

IDLE = 50


class Site:
    """A gateway with two known peers: CT1, bound to its certificate, and US1, bound to nothing."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "ours")
        self.certificate, self.key = folder / "gateway.pem", folder / "gateway.key"
        self.put_in_place(self.authority.issue("gateway", dns=("localhost",), addresses=("127.0.0.1",)))
        self.ct = self.authority.issue("CT1", dns=("ct1.example",))
        self.us = self.authority.issue("US1")
        self.foreign = Authority(folder / "theirs", "another authority").issue("CT1", dns=("ct1.example",))
        self.image = folder / "image.dcm"
        small_dataset().save_as(self.image, enforce_file_format=True)
        self.config = (
            f'[tls]\nenabled = true\nport = 0\ncertificate = "{self.certificate}"\nkey = "{self.key}"\n'
            f'authorities = "{self.authority.pem}"\n'
            '[worker]\ncount = 1\n[monitor]\nbackend = "builtin"\n'
            '[[peers]]\nae_title = "CT1"\naddresses = ["127.0.0.0/8"]\n'
            f'certificate_sha256 = ["{self.ct.sha256}"]\n'
            '[[peers]]\nae_title = "US1"\n'
        )
        self.gateway: Gateway

    def put_in_place(self, pem: Pem) -> None:
        shutil.copy(pem.certificate, self.certificate)
        shutil.copy(pem.key, self.key)

    @property
    def port(self) -> int:
        return int(self.gateway.where["dicom_tls_port"])

    def dcmtk(
        self, program: str, title: str, pem: Pem | None, *more: str, port: int | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run echoscu or storescu by TLS with a certificate, or anonymously."""
        keys = ["+tls", str(pem.key), str(pem.certificate)] if pem else ["+tla"]
        command = [dcmtk(program), "-v", *keys, "+cf", str(self.authority.pem), "-aet", title, "-aec", "GATEWAY"]
        command += ["127.0.0.1", str(port or self.port), *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def openssl(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run openssl s_client."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{self.port}", "-CAfile", str(self.authority.pem)]
        return subprocess.run([*command, *options], input="", capture_output=True, text=True, timeout=60, check=False)

    def logged(self, text: str, since: int) -> bool:
        return text in self.gateway.log()[since:]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = Site(tmp_path_factory.mktemp("site"))
    with running_gateway(tmp_path_factory.mktemp("gateway"), made.config) as made.gateway:
        yield made


def test_dcmtk_echoes_and_stores_by_tls(site: Site) -> None:
    assert site.dcmtk("echoscu", "CT1", site.ct).returncode == 0
    done = site.dcmtk("storescu", "CT1", site.ct, str(site.image))
    assert done.returncode == 0, done.stderr
    assert "Received Store Response (Success)" in done.stdout + done.stderr
    assert site.dcmtk("storescu", "US1", site.us, str(site.image)).returncode == 0


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_shakes_hands(site: Site, version: str) -> None:
    done = site.openssl(version, "-cert", str(site.ct.certificate), "-key", str(site.ct.key), "-verify_return_error")
    assert "Verification: OK" in done.stdout, done.stderr
    assert "Compression: NONE" in done.stdout


def test_tls_1_1_is_refused(site: Site) -> None:
    since = len(site.gateway.log())
    pem = ["-cert", str(site.ct.certificate), "-key", str(site.ct.key)]
    done = site.openssl("-tls1_1", "-cipher", "ALL:@SECLEVEL=0", *pem)
    assert done.returncode != 0
    assert "alert protocol version" in done.stderr
    wait_until(lambda: site.logged("TLS handshake failed: UNSUPPORTED_PROTOCOL", since), "the log", 5)


def test_without_a_certificate_is_refused(site: Site) -> None:
    since = len(site.gateway.log())
    assert site.dcmtk("echoscu", "US1", None).returncode != 0
    wait_until(lambda: site.logged("PEER_DID_NOT_RETURN_A_CERTIFICATE", since), "the log", 5)


def test_unknown_certificate_is_refused(site: Site) -> None:
    since = len(site.gateway.log())
    assert site.dcmtk("echoscu", "CT1", site.foreign).returncode != 0
    wait_until(lambda: site.logged("CERTIFICATE_VERIFY_FAILED", since), "the log", 5)


@pytest.mark.parametrize("title", ["CT1", "US1", "STRANGER"])
def test_certificate_of_another_ae_title_is_refused(site: Site, title: str) -> None:
    since = len(site.gateway.log())
    pem = site.us if title == "CT1" else site.ct
    done = site.dcmtk("echoscu", title, pem)
    assert done.returncode != 0
    assert "Calling AE Title Not Recognized" in done.stdout + done.stderr
    why = "that its [[peers]] entry does not name" if title == "CT1" else 'it showed the certificate of "CT1"'
    wait_until(lambda: site.logged(f'refused "{title}" from 127.0.0.1: it showed', since), "the log", 5)
    assert site.logged(why, since)


def test_bound_peer_without_tls_is_refused(site: Site) -> None:
    since = len(site.gateway.log())
    command = [dcmtk("echoscu"), "-v", "-aet", "CT1", "-aec", "GATEWAY", "127.0.0.1", str(site.gateway.dicom_port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "Calling AE Title Not Recognized" in done.stdout + done.stderr
    wait_until(lambda: site.logged("so it must come by TLS", since), "the log", 5)


def test_plain_dicom_on_the_tls_port_is_refused(site: Site) -> None:
    since = len(site.gateway.log())
    command = [dcmtk("echoscu"), "-aet", "US1", "-aec", "GATEWAY", "127.0.0.1", str(site.port)]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode != 0
    wait_until(lambda: site.logged("TLS handshake failed", since), "the log", 5)


def test_replaced_certificate_is_served_without_a_restart(site: Site) -> None:
    def shown() -> str:
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(_shown_pem(site))).hexdigest()

    before = shown()
    renewed = site.authority.issue("gateway", dns=("localhost",), addresses=("127.0.0.1",), file="renewed")
    site.put_in_place(renewed)
    # Each receiver looks for itself, once a second at most: all of them have when it is seen many times in a row.
    wait_until(lambda: all(shown() == renewed.sha256 for _ in range(10)), "the new certificate", 20)
    assert before != renewed.sha256
    assert site.dcmtk("echoscu", "CT1", site.ct).returncode == 0


def _shown_pem(site: Site) -> str:
    context = ssl.create_default_context(cafile=str(site.authority.pem))
    context.load_cert_chain(site.ct.certificate, site.ct.key)
    with (
        socket.create_connection(("127.0.0.1", site.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as encrypted,
    ):
        encoded = encrypted.getpeercert(binary_form=True)
    assert encoded is not None
    return ssl.DER_cert_to_PEM_cert(encoded)


def test_idle_tls_clients_hold_nobody(site: Site) -> None:
    """Half have sent nothing, half the first bytes of a ClientHello, and as many sit after the handshake."""
    context = ssl.create_default_context(cafile=str(site.authority.pem))
    context.load_cert_chain(site.us.certificate, site.us.key)
    idle: list[socket.socket] = []
    try:
        for number in range(IDLE):
            connected = socket.create_connection(("127.0.0.1", site.port), timeout=10)
            if number % 2:
                connected.sendall(b"\x16\x03\x01\x02\x00\x01")
            idle.append(connected)
            shaken = socket.create_connection(("127.0.0.1", site.port), timeout=10)
            idle.append(context.wrap_socket(shaken, server_hostname="localhost"))
        for _ in range(3):
            began = time.monotonic()
            assert site.dcmtk("echoscu", "CT1", site.ct).returncode == 0
            assert time.monotonic() - began < 1
        assert site.dcmtk("storescu", "CT1", site.ct, str(site.image)).returncode == 0
    finally:
        for connected in idle:
            connected.close()


@pytest.mark.slow
def test_lines_from_the_log_let_a_stranger_store(tmp_path: Path) -> None:
    """An operator takes the lines out of the log, adds them to the settings, and restarts."""
    image = tmp_path / "image.dcm"
    small_dataset().save_as(image, enforce_file_format=True)
    config = '[worker]\ncount = 1\n[dicom]\nunknown_peers = "refuse"\necho_for_strangers = false\n'

    def send(gateway: Gateway) -> subprocess.CompletedProcess[str]:
        command = [dcmtk("storescu"), "-v", "-aet", 'MR "2"', "-aec", "GATEWAY", "127.0.0.1", str(gateway.dicom_port)]
        return subprocess.run([*command, str(image)], capture_output=True, text=True, timeout=60, check=False)

    with running_gateway(tmp_path / "gateway", config) as gateway:
        refused = send(gateway)
        assert refused.returncode != 0
        assert "Calling AE Title Not Recognized" in refused.stdout + refused.stderr
        wait_until(lambda: "[[peers]]" in gateway.log(), "the log", 5)
        lines = gateway.log().split("add to the settings and restart:\n", 1)[1].splitlines()[:3]
        assert gateway.stop() == 0
        gateway.config += "\n".join(lines) + "\n"
        gateway.start()
        assert gateway.studies() == []
        accepted = send(gateway)
        assert accepted.returncode == 0, accepted.stderr
        assert len(gateway.studies()) == 1
