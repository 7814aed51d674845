"""Pictures over a real socket; pixel values against the arrays that pydicom reads from the same files."""

from __future__ import annotations

import io
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pydicom import dcmread
from web_site import FIXTURES, MODEL, Site

from gateway.store.intake import new_key

FULL_SCALE = 65535


def base(instance_key: str, frame: int = 0) -> str:
    return f"/api/instances/{instance_key}/frames/{frame}"


def opened(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return Image.open(io.BytesIO(answer.content))


@pytest.fixture
def judged_image(site: Site) -> str:
    study_key, instance_key = site.receive()
    site.judge(study_key, {instance_key: 0.9})
    return instance_key


def test_the_display_picture_is_the_stored_one(client: httpx.Client, judged_image: str) -> None:
    picture = opened(client.get(f"{base(judged_image)}/picture.jpg"))
    assert (picture.format, picture.size) == ("JPEG", (400, 300))


def test_heat_is_clear_where_there_is_none_and_brightest_where_most(client: httpx.Client, judged_image: str) -> None:
    """The colour of most heat is viridis's last, FDE725 (matplotlib, ``_cm_listed.py``)."""
    heat = opened(client.get(f"{base(judged_image)}/heat.png", params={"model": MODEL, "version": 2}))
    assert (heat.format, heat.mode, heat.size) == ("PNG", "RGBA", (100, 75))
    assert heat.getpixel((10, 40))[3] == 0  # type: ignore[index]
    assert heat.getpixel((90, 40)) == (0xFD, 0xE7, 0x25, 255)


def test_a_thumbnail_carries_the_heat_of_the_model_that_is_named(client: httpx.Client, judged_image: str) -> None:
    address = f"{base(judged_image)}/thumbnail.jpg"
    plain, heated = (
        np.asarray(opened(client.get(address, params=query)).convert("RGB"), dtype=np.int16)
        for query in ({}, {"model": MODEL, "version": 2})
    )
    assert plain.shape == (72, 96, 3)
    difference = np.abs(plain - heated).max(axis=2)
    assert difference[:, :40].max() < 12
    assert difference[:, 56:].min() > 60


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"{base('0' * 32)}/picture.jpg", 404),
        (f"{base('0' * 32)}/thumbnail.jpg", 404),
        (f"{base('0' * 32)}/pixels", 404),
        (f"{base('0' * 32)}/heat.png?model={MODEL}&version=2", 404),
        (f"{base('..%2F..%2Fgateway.db')}/picture.jpg", 404),
        (f"{base('ABC')}/picture.jpg", 422),
        (f"{base('0' * 32)}/heat.png?model=../../x&version=2", 422),
        (f"{base('0' * 32)}/heat.png?model={MODEL}", 422),
        (f"{base('0' * 32, -1)}/picture.jpg", 422),
        (f"{base('0' * 32)}/pixels?long_side=100000", 422),
    ],
)
def test_what_is_not_there_and_what_does_not_fit(client: httpx.Client, path: str, status: int) -> None:
    assert client.get(path).status_code == status


def test_pixels_that_cannot_be_read(site: Site, client: httpx.Client) -> None:
    _, whole = site.receive()
    assert client.get(f"{base(whole, 7)}/pixels").status_code == 422
    _, broken = site.receive()
    path = next(site.objects.path("instances").rglob(f"{broken}.dcm"))
    path.write_bytes(b"no DICOM at all")
    answer = client.get(f"{base(broken)}/pixels")
    assert answer.status_code == 422
    assert str(site.data_dir) not in answer.text
    path.unlink()
    assert client.get(f"{base(broken)}/pixels").status_code == 422
    assert client.get(f"{base(new_key())}/pixels").status_code == 404


def modality_values(file: str, frame: int) -> npt.NDArray[np.float64]:
    """Stored values by pydicom, rescaled as PS3.3 C.11.1.1.2 says."""
    dataset = dcmread(FIXTURES / file)
    stored = dataset.pixel_array
    stored = stored[frame] if stored.ndim == 3 else stored
    values: npt.NDArray[np.float64] = stored * float(dataset.get("RescaleSlope", 1)) + float(
        dataset.get("RescaleIntercept", 0)
    )
    return values


def grey(answer: httpx.Response) -> tuple[npt.NDArray[np.float64], dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    headers = answer.headers
    assert headers["x-colour"] == "0"
    levels = np.frombuffer(answer.content, dtype="<u2").reshape(int(headers["x-rows"]), int(headers["x-columns"]))
    return levels / FULL_SCALE, dict(headers)


@pytest.mark.parametrize(
    ("file", "frame"),
    [
        ("grey_explicit_little_endian.dcm", 0),
        ("grey_jpeg_ls_lossless.dcm", 0),
        ("grey_monochrome1.dcm", 0),
        ("grey_signed_rescaled.dcm", 0),
        ("grey_multi_frame.dcm", 0),
        ("grey_multi_frame.dcm", 1),
    ],
)
def test_greyscale_keeps_its_modality_values(site: Site, client: httpx.Client, file: str, frame: int) -> None:
    _, key = site.receive(file=file)
    fractions, headers = grey(client.get(f"{base(key, frame)}/pixels"))
    low, high = float(headers["x-value-low"]), float(headers["x-value-high"])
    expected = modality_values(file, frame)
    assert fractions.shape == expected.shape
    step = abs(high - low) / FULL_SCALE
    np.testing.assert_allclose(low + fractions * (high - low), expected, atol=step)
    assert (high < low) == (file == "grey_monochrome1.dcm")


def test_the_window_to_start_with_is_the_images(site: Site, client: httpx.Client, tmp_path: Any) -> None:
    """A window within the range: values outside it are still sent."""
    dataset = dcmread(FIXTURES / "grey_explicit_little_endian.dcm")
    values = dataset.pixel_array.astype(float)
    dataset.WindowCenter, dataset.WindowWidth = 1000, 400
    if "VOILUTFunction" in dataset:
        del dataset.VOILUTFunction
    _, key = site.receive(file="grey_explicit_little_endian.dcm")
    dataset.save_as(next(site.objects.path("instances").rglob(f"{key}.dcm")))
    fractions, headers = grey(client.get(f"{base(key)}/pixels"))
    low, high = float(headers["x-value-low"]), float(headers["x-value-high"])
    black, white = (low + float(headers[f"x-window-{end}"]) * (high - low) for end in ("low", "high"))
    assert (black, white) == pytest.approx((800, 1200), abs=0.1)
    assert (low + fractions * (high - low)).max() == pytest.approx(values.max(), abs=0.1)
    assert values.max() > 1200


def test_eight_bits_without_a_window_start_as_the_model_saw_them(site: Site, client: httpx.Client) -> None:
    dataset = dcmread(FIXTURES / "grey_explicit_little_endian.dcm")
    stored = (dataset.pixel_array // 64 + 40).astype(np.uint8)  # 40 to 103: a dim picture
    for keyword in ("WindowCenter", "WindowWidth", "VOILUTFunction"):
        if keyword in dataset:
            del dataset[keyword]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit = 7
    dataset.PixelData = stored.tobytes()
    _, key = site.receive(file="grey_explicit_little_endian.dcm")
    dataset.save_as(next(site.objects.path("instances").rglob(f"{key}.dcm")))
    fractions, headers = grey(client.get(f"{base(key)}/pixels"))
    assert (float(headers["x-window-low"]), float(headers["x-window-high"])) == (0.0, 1.0)
    np.testing.assert_allclose(fractions * 255, stored, atol=0.01)


def test_a_large_greyscale_is_averaged_down(site: Site, client: httpx.Client) -> None:
    _, key = site.receive(file="grey_explicit_little_endian.dcm")
    whole, _ = grey(client.get(f"{base(key)}/pixels"))
    small, headers = grey(client.get(f"{base(key)}/pixels", params={"long_side": 64}))
    assert max(small.shape) == 64
    assert (headers["x-source-rows"], headers["x-source-columns"]) == tuple(map(str, whole.shape))
    assert small.mean() == pytest.approx(whole.mean(), abs=0.005)


@pytest.mark.parametrize("file", ["colour_jpeg_ybr_jfif.dcm", "colour_explicit_little_endian.dcm", "colour_rle.dcm"])
def test_colour_comes_as_a_jpeg_of_the_picture(site: Site, client: httpx.Client, file: str) -> None:
    _, key = site.receive(file=file)
    answer = client.get(f"{base(key)}/pixels")
    assert answer.headers["x-colour"] == "1"
    shown = np.asarray(opened(answer).convert("RGB"), dtype=float)
    expected = dcmread(FIXTURES / "colour_explicit_little_endian.dcm").pixel_array.astype(float)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).mean() < 6
