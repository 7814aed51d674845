"""What depends on how the web process is run: HTTPS, proxies, warnings, the first start of a whole gateway."""

from __future__ import annotations

import logging
import ssl
import stat
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from running import running_gateway, running_web, self_signed
from web_site import Site

from gateway.accounts import Accounts
from gateway.errors import SettingsError
from gateway.roles import Role
from gateway.settings import WebSettings, load_settings
from gateway.store.accounts import Doer
from gateway.store.audit import entries
from gateway.web.server import check_certificate

PASSWORD = "correct horse battery"


def add_account(site: Site) -> None:
    accounts = Accounts(site.store, site.data_dir)
    accounts.make("anna", PASSWORD, Role.VIEWER, now=datetime.now(UTC), by=Doer(actor="test"))


@pytest.mark.parametrize("believed", [True, False])
def test_what_a_proxy_says_is_believed_where_it_is_named(site: Site, believed: bool) -> None:
    overrides = {"web.proxies": ["127.0.0.1"] if believed else [], "web.names": ["gateway.hospital.example"]}
    site.settings = load_settings(environment={}, overrides=overrides)
    add_account(site)
    headers = {"Host": "gateway.hospital.example", "X-Forwarded-Proto": "https", "X-Forwarded-For": "9.9.9.9, 10.1.2.3"}
    with running_web(site) as address:
        form = {"name": "anna", "password": PASSWORD}
        answer = httpx.post(f"{address}/login", data=form, headers=headers, trust_env=False)
    assert answer.status_code == 303
    assert answer.headers["set-cookie"].startswith("__Host-gateway-session=" if believed else "gateway-session=")
    (row,) = entries(site.store, limit=1)
    assert (row["action"], row["address"]) == ("login", "10.1.2.3" if believed else "127.0.0.1")


def web_settings(**changes: object) -> WebSettings:
    overrides = {f"web.{name}": value for name, value in changes.items()}
    return load_settings(environment={}, overrides=overrides).web


def test_a_certificate_that_cannot_be_used_is_told_at_the_start(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, strange_key = self_signed(other)
    check_certificate(web_settings(certificate=str(certificate), key=str(key)))
    for wrong in (tmp_path / "absent", strange_key, certificate):
        with pytest.raises(SettingsError, match=r"web\.key"):
            check_certificate(web_settings(certificate=str(certificate), key=str(wrong)))


def test_https_is_tls_1_2_or_newer(site: Site, tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    site.settings = load_settings(environment={}, overrides={"web.certificate": str(certificate), "web.key": str(key)})
    with running_web(site) as address:
        secure = address.replace("http:", "https:")
        for version, accepted in ((ssl.TLSVersion.TLSv1_3, True), (ssl.TLSVersion.TLSv1_2, True)):
            context = ssl.create_default_context(cafile=str(certificate))
            context.minimum_version = context.maximum_version = version
            with httpx.Client(verify=context, trust_env=False) as client:
                assert (client.get(f"{secure}/login").status_code == 200) is accepted
        with httpx.Client(trust_env=False) as plain, pytest.raises(httpx.HTTPError):
            plain.get(f"{address}/login")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("DEFAULT:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version = ssl.TLSVersion.TLSv1
        with (
            httpx.Client(verify=old, trust_env=False) as client,
            pytest.raises(httpx.ConnectError),
        ):
            client.get(f"{secure}/login")


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_listening_beyond_loopback_without_https_is_warned_of(
    site: Site, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    site.settings = load_settings(environment={}, overrides={"web.host": host})
    with caplog.at_level(logging.WARNING, logger="gateway"), running_web(site):
        pass
    assert ("unencrypted" in caplog.text) == (host == "0.0.0.0")


def test_a_first_start_and_the_next(tmp_path: Path) -> None:
    """The supervisor says where the password is, never what it is; the next start finds the account again."""
    with running_gateway(tmp_path / "gateway", environment={"GATEWAY_WEB__AUTHENTICATION": "on"}) as gateway:
        path = Path(gateway.where["first_password_file"])
        assert path.parent == gateway.data_dir
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        password = path.read_text().strip()
        with httpx.Client(base_url=gateway.where["url"], trust_env=False, timeout=60) as client:
            assert client.get("/api/studies").status_code == 401
            assert client.get("/health").status_code in (200, 503)
            assert client.post("/login", data={"name": "admin", "password": "admin"}).status_code == 401
            assert client.post("/login", data={"name": "admin", "password": password}).status_code == 303
            assert client.get("/api/session").json()["role"] == "administrator"
            assert client.get("/api/studies").status_code == 403  # the password has to be changed first
        assert gateway.process is not None
        assert gateway.stop() == 0
        gateway.start()
        assert httpx.get(f"{gateway.where['url']}login", timeout=60, trust_env=False).status_code == 200
        assert gateway.where["first_password_file"] == str(path)
        assert path.read_text().strip() == password
        log = gateway.log()
        assert f"log in as admin; password in {path}" in log
        assert password not in log
