"""Who may talk, by AE title, address and certificate."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from gateway.peers import Certificate, PeerRegister, Verdict, quoted
from gateway.settings import load_settings

CT_CERTIFICATE = Certificate(sha256="aa" * 32, names=("ct1.hospital.example", "CT1"))
MR_CERTIFICATE = Certificate(sha256="bb" * 32, names=("mr1.hospital.example",))
OTHER_CERTIFICATE = Certificate(sha256="cc" * 32, names=("other.hospital.example",))

ANYWHERE = {"ae_title": "ANYWHERE"}
CT = {"ae_title": "CT1", "addresses": ["10.1.2.3", "10.2.0.0/16", "fd00:1::/32"]}
BOUND_CT = {**CT, "certificate_sha256": [":".join(["AA"] * 32)]}
NAMED_CT = {"ae_title": "CT1", "certificate_names": ["CT1"]}
BOUND_MR = {"ae_title": "MR1", "certificate_names": ["MR1.hospital.example."]}


def register(peers: list[dict[str, Any]], **dicom: Any) -> PeerRegister:
    overrides = {"peers": peers, **{f"dicom.{key}": value for key, value in dicom.items()}}
    return PeerRegister(load_settings(environment={}, overrides=overrides))


def judge(peers: list[dict[str, Any]], title: str, address: str, **given: Any) -> Verdict:
    certificate = given.pop("certificate", None)
    called = given.pop("called", "GATEWAY")
    encrypted = given.pop("encrypted", certificate is not None)
    return register(peers, **given).judge(
        calling_ae_title=title,
        called_ae_title=called,
        address=address,
        encrypted=encrypted,
        certificate=certificate,
    )


@pytest.mark.parametrize(
    ("peers", "title", "address", "given", "may"),
    [
        # strangers
        ([], "X", "127.0.0.1", {}, "store"),
        ([], "X", "::1", {}, "store"),
        ([], "X", "::ffff:127.0.0.1", {}, "store"),
        ([], "X", "10.0.0.1", {}, "echo"),
        ([], "X", "no address", {}, "echo"),
        ([CT], "X", "127.0.0.1", {}, "echo"),
        ([CT], "X", "127.0.0.1", {"echo_for_strangers": False}, "nothing"),
        ([CT], "X", "10.0.0.1", {"unknown_peers": "accept"}, "store"),
        ([], "X", "127.0.0.1", {"unknown_peers": "refuse"}, "echo"),
        ([], "X", "127.0.0.1", {"unknown_peers": "refuse", "echo_for_strangers": False}, "nothing"),
        # called AE title
        ([ANYWHERE], "ANYWHERE", "10.0.0.1", {"called": "GATEWAY  "}, "store"),
        ([ANYWHERE], "ANYWHERE", "10.0.0.1", {"called": "gateway"}, "nothing"),
        ([ANYWHERE], "ANYWHERE", "10.0.0.1", {"called": ""}, "nothing"),
        ([ANYWHERE], "ANYWHERE", "10.0.0.1", {"called": "ELSE", "require_called_ae_title": False}, "store"),
        # addresses
        ([ANYWHERE], " ANYWHERE ", "203.0.113.9", {}, "store"),
        ([CT], "CT1", "10.1.2.3", {}, "store"),
        ([CT], "CT1", "::ffff:10.1.2.3", {}, "store"),
        ([CT], "CT1", "10.2.255.1", {}, "store"),
        ([CT], "CT1", "fd00:1::5%eth0", {}, "store"),
        ([CT], "CT1", "10.1.2.4", {}, "nothing"),
        ([CT], "CT1", "127.0.0.1", {}, "nothing"),
        ([CT], "CT1", "fd00:2::5", {}, "nothing"),
        ([CT], "CT1", "", {}, "nothing"),
        ([CT], "ct1", "10.1.2.3", {}, "echo"),
        ([CT], "CT1", "10.1.2.4", {"unknown_peers": "accept"}, "nothing"),
        ([{"ae_title": "M", "addresses": ["::ffff:10.1.0.0/112"]}], "M", "10.1.9.9", {}, "store"),
        ([CT, {"ae_title": "CT1", "addresses": ["10.9.9.9"]}], "CT1", "10.9.9.9", {}, "store"),
        # certificates
        ([BOUND_CT], "CT1", "10.1.2.3", {"certificate": CT_CERTIFICATE}, "store"),
        ([BOUND_CT], "CT1", "10.1.2.3", {}, "nothing"),
        ([BOUND_CT], "CT1", "10.1.2.3", {"encrypted": True}, "nothing"),
        ([BOUND_CT], "CT1", "10.1.2.3", {"certificate": OTHER_CERTIFICATE}, "nothing"),
        ([BOUND_CT], "CT1", "10.9.9.9", {"certificate": CT_CERTIFICATE}, "nothing"),
        ([BOUND_MR], "MR1", "10.9.9.9", {"certificate": MR_CERTIFICATE}, "store"),
        ([BOUND_MR], "MR1", "10.9.9.9", {"certificate": CT_CERTIFICATE}, "nothing"),
        ([CT], "CT1", "10.1.2.3", {"certificate": OTHER_CERTIFICATE}, "store"),
        ([CT, BOUND_MR], "CT1", "10.1.2.3", {"certificate": MR_CERTIFICATE}, "nothing"),
        ([BOUND_CT, BOUND_MR], "CT1", "10.1.2.3", {"certificate": MR_CERTIFICATE}, "nothing"),
        ([CT, BOUND_MR], "X", "10.1.2.3", {"certificate": MR_CERTIFICATE}, "nothing"),
        ([CT, BOUND_MR], "X", "10.1.2.3", {"certificate": MR_CERTIFICATE, "unknown_peers": "accept"}, "nothing"),
        ([BOUND_CT, NAMED_CT], "CT1", "9.9.9.9", {"certificate": CT_CERTIFICATE}, "store"),
    ],
)  # fmt: skip
def test_who_may_do_what(
    peers: list[dict[str, Any]], title: str, address: str, given: dict[str, Any], may: str
) -> None:
    verdict = judge(peers, title, address, **given)
    assert verdict.may == may, verdict.message
    assert (verdict.message == "") == (may == "store")
    # PS3.8 Table 9-21: rejected-permanent by the service-user; 7 called, 3 calling AE title not recognized
    foreign_call = given.get("called", "GATEWAY").strip() != "GATEWAY"
    rejected = (1, 1, 7) if foreign_call else (1, 1, 3)
    assert verdict.rejection == (rejected if may == "nothing" else (0, 0, 0))


@pytest.mark.parametrize("title", ["CT1", 'A"B', "#]=[", "'''", "X = 1", "TAB NO", "~!@%^&*"])
@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fe80::7%eth1"])
def test_lines_for_a_stranger_make_it_known(title: str, address: str) -> None:
    verdict = judge([CT], title.lower() + "x", address)
    lines = verdict.message.split("\n", 1)[1]
    peers = tomllib.loads(lines)["peers"]
    assert set(peers[0]) == {"ae_title", "addresses"}
    assert judge([CT, *peers], title.lower() + "x", address).may == "store"
    assert judge([CT, *peers], title.lower() + "x", "10.99.0.1").may == "nothing"


def test_lines_over_tls_bind_to_the_certificate() -> None:
    verdict = judge([], "X", "10.0.0.1", certificate=OTHER_CERTIFICATE)
    peers = tomllib.loads(verdict.message.split("\n", 1)[1])["peers"]
    assert judge(peers, "X", "10.0.0.1", certificate=OTHER_CERTIFICATE).may == "store"
    assert judge(peers, "X", "10.0.0.1").may == "nothing"


@pytest.mark.parametrize(
    ("entry", "address", "certificate"),
    [
        (CT, "10.7.7.7", None),
        (BOUND_CT, "10.7.7.7", CT_CERTIFICATE),
        (BOUND_CT, "10.1.2.3", OTHER_CERTIFICATE),
        ({**BOUND_MR, "ae_title": "CT1"}, "10.1.2.3", OTHER_CERTIFICATE),
    ],
)
def test_lines_for_a_known_peer_are_an_edit_of_its_entry(
    entry: dict[str, Any], address: str, certificate: Certificate | None
) -> None:
    verdict = judge([entry], "CT1", address, certificate=certificate)
    assert verdict.may == "nothing"
    assert address in verdict.message
    edit = tomllib.loads(verdict.message.split("\n", 1)[1])
    assert judge([{**entry, **edit}], "CT1", address, certificate=certificate).may == "store"


def test_shared_certificate_can_be_allowed_by_the_line_that_is_printed() -> None:
    verdict = judge([CT, BOUND_MR], "CT1", "10.1.2.3", certificate=MR_CERTIFICATE)
    assert '"MR1"' in verdict.message
    edit = tomllib.loads(verdict.message.split("\n", 1)[1])
    assert judge([{**CT, **edit}, BOUND_MR], "CT1", "10.1.2.3", certificate=MR_CERTIFICATE).may == "store"


HOSTILE = [
    'X"\n[[peers]]\nae_title = "EVIL',
    "X\r\n2026-01-01 INFO accepted",
    "\x1b[2J\x1b[31mX",
    "X\x00Y\x7f\x85\u2028\u2029",
    "\\",
    "\u202eX",
    "\U0001f600",
    '"' * 500,
]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("role", ["calling", "called", "address", "certificate"])
@pytest.mark.parametrize("entries", [[], [CT], [BOUND_CT]])
def test_nothing_that_a_peer_sends_forges_a_line(hostile: str, role: str, entries: list[dict[str, Any]]) -> None:
    verdict = register(entries).judge(
        calling_ae_title=hostile if role == "calling" else "CT1",
        called_ae_title=hostile if role == "called" else "GATEWAY",
        address=hostile if role == "address" else "10.9.9.9",
        encrypted=True,
        certificate=Certificate(sha256="dd" * 32, names=(hostile,)) if role == "certificate" else None,
    )
    first, *rest = verdict.message.split("\n")
    assert all(char.isascii() and char.isprintable() for line in (first, *rest) for char in line)
    assert all(line.startswith("    ") for line in rest)
    added = tomllib.loads("\n".join(rest))
    assert [peer["ae_title"] for peer in added.get("peers", [])] in ([], ["CT1"])
    assert set(added) <= {"peers", "addresses", "certificate_sha256"}
    assert len(verdict.message) < 2000


@pytest.mark.parametrize("text", ["", "CT1", 'a"b\\c', "\n\t\x00\x7f\xe9\u2028\U0001f600"])
def test_quoted_is_what_toml_reads_back(text: str) -> None:
    assert tomllib.loads(f"key = {quoted(text)}")["key"] == text


def test_find_prefers_the_entry_that_listens() -> None:
    listening = {"ae_title": "CT1 ", "host": "10.1.2.3", "port": 104}
    found = register([CT, listening]).find(" CT1")
    assert found is not None and found.port == 104
    silent = register([CT]).find("CT1")
    assert silent is not None and silent.port == 0
    assert register([CT]).find("CT2") is None
