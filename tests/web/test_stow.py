"""STOW-RS over a real socket: dicomweb-client as an independent peer, and bodies that no good peer would send."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from dicomweb_client import DICOMwebClient
from intake_rig import data_set_bytes, memory_bytes, small_dataset
from photographs import drawn_jpeg, op_dataset
from pydicom import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import generate_uid
from running import Gateway, running_gateway, wait_until
from sqlalchemy import select

from gateway.store import open_store
from gateway.store.schema import instance, quarantine

CONFIG = """
[dicom]
network_timeout_s = 3
[web]
maximum_upload_bytes = 400000000
"""
BOUNDARY = "boundary-of-the-test"
RELATED = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running_gateway(tmp_path_factory.mktemp("stow"), CONFIG) as running:
        wait_until(running.is_healthy, "the gateway")
        yield running


@pytest.fixture
def client(gateway: Gateway) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.where["url"], timeout=60) as made:
        yield made


def part10(dataset: Dataset) -> bytes:
    stream = BytesIO()
    dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def related(*parts: bytes, content_type: str = "application/dicom") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Type: {content_type}\r\n\r\n".encode()
    return b"".join(head + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()


def rows(gateway: Gateway, table: Any = instance) -> list[Any]:
    store = open_store("", data_dir=gateway.data_dir)
    try:
        with store.read() as connection:
            return list(connection.execute(select(table)).all())
    finally:
        store.close()


def post(client: httpx.Client, body: Any, path: str = "/dicom-web/studies", **headers: str) -> httpx.Response:
    return client.post(path, content=body, headers={"Content-Type": RELATED, **headers})


def module(answer: httpx.Response) -> Dataset:
    """The Store Instances Response Module, read by pydicom."""
    return Dataset.from_json(answer.text)


def test_dicomweb_client_stores_and_the_bytes_are_kept(gateway: Gateway) -> None:
    datasets = [small_dataset(), small_dataset(), small_dataset()]
    for dataset in datasets:
        dataset.preamble = bytes(128)  # as of a file that was read; dicomweb-client writes what it is given
    answer = DICOMwebClient(gateway.where["url"] + "dicom-web").store_instances(datasets)
    stored = {item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence}
    assert stored == {each.SOPInstanceUID for each in datasets}
    assert "FailedSOPSequence" not in answer
    kept = {row.sop_instance_uid: row for row in rows(gateway)}
    for dataset in datasets:
        row = kept[dataset.SOPInstanceUID]
        sent = data_set_bytes(BytesIO(part10(dataset)))
        assert row.sha256 == hashlib.sha256(sent).hexdigest()
        assert data_set_bytes(gateway.data_dir / "objects" / row.path) == sent
        assert row.calling_ae_title == "STOW-RS"


def test_the_same_bytes_again_are_stored_once_and_other_bytes_are_not(gateway: Gateway, client: httpx.Client) -> None:
    dataset = small_dataset()
    assert post(client, related(part10(dataset))).status_code == 200
    assert post(client, related(part10(dataset))).status_code == 200
    assert [row.sop_instance_uid for row in rows(gateway)].count(dataset.SOPInstanceUID) == 1
    dataset.PatientName = "Other^Person"
    answer = post(client, related(part10(dataset)))
    assert answer.status_code == 409
    (failed,) = module(answer).FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (dataset.SOPInstanceUID, 0xC001)


def test_some_stored_and_some_not(gateway: Gateway, client: httpx.Client) -> None:
    good, cut = small_dataset(), part10(small_dataset())[:-20]
    answer = post(client, related(part10(good), cut, b"no DICOM at all" * 20))
    assert answer.status_code == 202
    found = module(answer)
    assert [each.ReferencedSOPInstanceUID for each in found.ReferencedSOPSequence] == [good.SOPInstanceUID]
    assert [each.FailureReason for each in found.FailedSOPSequence] == [0xC000]
    assert [each.FailureReason for each in found.OtherFailuresSequence] == [0xC000]
    assert any("truncated" in row.reason for row in rows(gateway, quarantine))


def test_a_part_that_is_cut_short_is_among_the_failures(client: httpx.Client) -> None:
    good, cut = small_dataset(), small_dataset(PixelData=bytes(60_000))
    answer = post(client, related(part10(good), part10(cut))[:-5_000])
    assert answer.status_code == 202
    found = module(answer)
    assert [each.ReferencedSOPInstanceUID for each in found.ReferencedSOPSequence] == [good.SOPInstanceUID]
    failed = [(each.ReferencedSOPInstanceUID, each.FailureReason) for each in found.FailedSOPSequence]
    assert failed == [(cut.SOPInstanceUID, 0xC000)]


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("MediaStorageSOPClassUID", "1.2.840.10008.1.1", 0x0122),  # Verification
        ("TransferSyntaxUID", "1.2.840.10008.1.2.77", 0xC122),
    ],
)
def test_what_no_association_would_accept(client: httpx.Client, attribute: str, value: str, reason: int) -> None:
    dataset = small_dataset()
    content = part10(dataset)
    was = str(dataset.file_meta[attribute].value)
    # In place, at the same length, so that nothing else of the file changes: the UIDs are padded with NUL.
    length = len(was) + len(was) % 2
    assert len(value) <= length
    changed = content.replace(was.encode().ljust(length, b"\0"), value.encode().ljust(length, b"\0"), 1)
    assert changed != content
    answer = post(client, related(changed))
    assert answer.status_code == 409
    (failed,) = module(answer).FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (dataset.SOPInstanceUID, reason)


def test_the_study_of_the_path_must_be_the_instances(client: httpx.Client) -> None:
    dataset = small_dataset()
    path = f"/dicom-web/studies/{dataset.StudyInstanceUID}"
    assert post(client, related(part10(dataset)), path).status_code == 200
    answer = post(client, related(part10(small_dataset())), path)
    assert answer.status_code == 409
    assert module(answer).FailedSOPSequence[0].FailureReason == 0xA900
    assert post(client, related(part10(dataset)), "/dicom-web/studies/..%2f..").status_code in (400, 404)


def test_a_single_part_and_xml(client: httpx.Client) -> None:
    dataset = small_dataset()
    answer = client.post(
        "/dicom-web/studies",
        content=part10(dataset),
        headers={"Content-Type": "application/dicom", "Accept": "application/dicom+xml"},
    )
    assert answer.status_code == 200
    root = ElementTree.fromstring(answer.text)
    assert dataset.SOPInstanceUID in {each.text for each in root.iter() if each.tag.endswith("Value")}


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"Content-Type": "text/plain"}, b"x", 415),
        ({"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=x'}, b"x", 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, b"x", 400),
        ({"Content-Type": RELATED}, b"", 400),
        ({"Content-Type": RELATED}, b"x" * 100_000, 400),
        ({"Content-Type": RELATED}, related(b"DICM")[:-30], 400),
        ({"Content-Type": RELATED}, f"--{BOUNDARY}\r\nX: {'y' * 9000}\r\n\r\n".encode(), 400),
        ({"Content-Type": RELATED, "Accept": "text/html"}, related(b""), 406),
        ({"Content-Type": RELATED}, related(b"x" * 300, content_type="image/jpeg"), 409),
        ({"Content-Type": "application/dicom"}, b"", 409),
    ],
)
def test_what_is_refused_as_a_whole(
    gateway: Gateway, client: httpx.Client, headers: dict[str, str], body: bytes, status: int
) -> None:
    before = len(rows(gateway))
    answer = client.post("/dicom-web/studies", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert len(rows(gateway)) == before


def test_many_tiny_parts_are_counted_not_gathered(client: httpx.Client) -> None:
    answer = post(client, related(*[b""] * 10_001))
    assert answer.status_code == 413


def test_too_large_is_said_before_anything_is_read(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.where["http_port"]), timeout=20) as connection:
        connection.sendall(
            b"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/dicom\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_large_object_costs_no_memory(gateway: Gateway, client: httpx.Client) -> None:
    dataset = small_dataset(Rows=10_000, Columns=10_000, PixelData=bytes(200_000_000))
    content = part10(dataset)
    web = gateway.pids()["web"]
    before = memory_bytes(web, "VmHWM")

    def pieces() -> Iterator[bytes]:
        body = related(content)
        for start in range(0, len(body), 1 << 20):
            yield body[start : start + (1 << 20)]

    assert post(client, pieces()).status_code == 200
    assert memory_bytes(web, "VmHWM") - before < 40 << 20
    assert max(row.size_bytes for row in rows(gateway)) > 200_000_000


def incoming(gateway: Gateway) -> list[Path]:
    return list((gateway.data_dir / "objects" / "incoming").iterdir())


def begin_upload(gateway: Gateway, source: str = "127.0.0.1") -> socket.socket:
    where = ("127.0.0.1", gateway.where["http_port"])
    connection = socket.create_connection(where, timeout=30, source_address=(source, 0))
    head = (
        f"POST /dicom-web/studies HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {RELATED}\r\nContent-Length: 999999\r\n"
    )
    connection.sendall(head.encode() + b"\r\n" + related(part10(small_dataset(PixelData=bytes(60_000))))[:50_000])
    wait_until(lambda: incoming(gateway), "the spool")
    return connection


def test_a_lost_connection_leaves_no_file(gateway: Gateway) -> None:
    begin_upload(gateway).close()
    wait_until(lambda: not incoming(gateway), "the spool to go")


def test_a_client_that_stalls_is_let_go(gateway: Gateway) -> None:
    with begin_upload(gateway) as connection:
        began = time.monotonic()
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - began < 20
        while connection.recv(4096):  # and then the connection ends
            pass
    wait_until(lambda: not incoming(gateway), "the spool to go")


def test_who_stalls_in_all_places_leaves_some_to_others(gateway: Gateway, client: httpx.Client) -> None:
    stalled = [begin_upload(gateway, "127.0.0.2") for _ in range(8)]
    try:
        wait_until(lambda: len(incoming(gateway)) == 8, "eight spools")
        with begin_connection_of(gateway, "127.0.0.2") as one_more:
            answer = post(one_more, related(part10(small_dataset())))
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
        assert post(client, related(part10(small_dataset()))).status_code == 200
    finally:
        for connection in stalled:
            connection.close()
    wait_until(lambda: not incoming(gateway), "the spools to go")


def begin_connection_of(gateway: Gateway, source: str) -> httpx.Client:
    return httpx.Client(base_url=gateway.where["url"], timeout=30, transport=httpx.HTTPTransport(local_address=source))


def test_a_killed_process_leaves_nothing_half_written(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "killed", CONFIG) as gateway:
        wait_until(gateway.is_healthy, "the gateway")
        with begin_upload(gateway):
            os.kill(gateway.pids()["web"], signal.SIGKILL)
        assert gateway.stop() == 0
        assert not rows(gateway) and not rows(gateway, quarantine)
        gateway.start()
        assert not incoming(gateway)
        assert not [path for path in (gateway.data_dir / "objects" / "instances").rglob("*") if path.is_file()]


def test_a_fundus_photograph_is_judged(gateway: Gateway, client: httpx.Client) -> None:
    dataset = op_dataset(drawn_jpeg())
    answer = client.post(
        f"/dicom-web/studies/{dataset.StudyInstanceUID}",
        content=part10(dataset),
        headers={"Content-Type": "application/dicom"},
    )
    assert answer.status_code == 200, answer.text

    def finished() -> dict[str, Any] | None:
        for study in gateway.studies():
            under_way = study["state"] in ("receiving", "queued", "processing")
            if study["study_instance_uid"] == dataset.StudyInstanceUID and not under_way:
                return study
        return None

    study = wait_until(finished, "the photograph to be judged")
    assert study["state"] == "judged", study["reason"]
    assert [each["model_name"] for each in study["predictions"]] == ["retinopathy"]


def test_who_may_store(tmp_path: Path) -> None:
    """A token of role sender stores and does nothing else; nobody and a viewer do not store."""
    with running_gateway(tmp_path, environment={"GATEWAY_WEB__AUTHENTICATION": "on"}) as gateway:
        url = gateway.where["url"]
        wait_until(gateway.is_healthy, "the gateway")
        secrets = {}
        for role in ("sender", "viewer"):
            done = gateway.command(
                "tokens", "make", "--purpose", role, "--role", role, "--data-dir", str(gateway.data_dir)
            )
            assert done.returncode == 0, done.stderr
            secrets[role] = next(word for word in done.stdout.split() if word.startswith("gw_"))
        body = related(part10(small_dataset(StudyInstanceUID=generate_uid())))
        statuses = {}
        for role, secret in {**secrets, "nobody": ""}.items():
            headers = {"Content-Type": RELATED, **({"Authorization": f"Bearer {secret}"} if secret else {})}
            statuses[role] = httpx.post(
                url + "dicom-web/studies", content=body, headers=headers, timeout=30
            ).status_code
        assert statuses == {"sender": 200, "viewer": 403, "nobody": 401}
        seen = httpx.get(url + "api/studies", headers={"Authorization": f"Bearer {secrets['sender']}"}, timeout=30)
        assert seen.status_code == 403
