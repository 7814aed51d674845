"""Golden inputs: the same numbers, or what differs and by how much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_bundles import tiny_golden, tiny_graph, with_doubled_logits, write_tiny_bundle

from models.card import CARD_FILE, GOLDEN_FILE, Bundle, file_sha256, load_bundle
from models.errors import BundleError
from models.golden import golden_arrays, read_golden, run_golden
from models.session import ModelSession


def with_golden(bundle: Bundle, **arrays: Any) -> Bundle:
    """The bundle with other arrays in ``golden.npz``, the card in step; None leaves one out."""
    stored = {name: array for name, array in (tiny_golden() | arrays).items() if array is not None}
    np.savez(bundle.golden_path, **stored)
    return with_hash_of_golden(bundle)


def with_hash_of_golden(bundle: Bundle) -> Bundle:
    card = yaml.safe_load((bundle.folder / CARD_FILE).read_text())
    card["files"][GOLDEN_FILE] = file_sha256(bundle.golden_path)
    (bundle.folder / CARD_FILE).write_text(yaml.safe_dump(card))
    return load_bundle(bundle.folder)


def test_a_run_agrees_with_onnx_runtime_and_the_arithmetic_of_the_card(tiny_bundle: Bundle) -> None:
    report = run_golden(ModelSession(tiny_bundle), tiny_bundle)
    assert report.passed
    assert report.reasons == ()
    assert report.count == 3
    assert report.largest_logit_difference < 1e-5
    assert report.largest_score_difference < 1e-5


def test_what_is_written_is_what_is_checked(tiny_bundle: Bundle) -> None:
    session = ModelSession(tiny_bundle)
    arrays = golden_arrays(session, list(tiny_golden()["pictures"]))
    assert run_golden(session, with_golden(tiny_bundle, **arrays)).passed


@pytest.mark.parametrize(("name", "offset"), [("scores", 0.002), ("logits", 0.02), ("embeddings", 0.02)])
def test_one_number_beyond_its_tolerance_fails_by_name(tiny_bundle: Bundle, name: str, offset: float) -> None:
    array = tiny_golden()[name].copy()
    array[1, 0] -= offset
    bundle = with_golden(tiny_bundle, **{name: array})
    report = run_golden(ModelSession(bundle), bundle)
    assert not report.passed
    assert [reason.split()[0] for reason in report.reasons] == [name]
    assert f"up to {offset:.3g}" in report.reasons[0]


def test_within_the_tolerance_it_passes(tiny_bundle: Bundle) -> None:
    logits = tiny_golden()["logits"] + np.float32(0.009)
    bundle = with_golden(tiny_bundle, logits=logits)
    report = run_golden(ModelSession(bundle), bundle)
    assert report.passed
    assert report.largest_logit_difference == pytest.approx(0.009, abs=1e-5)


def test_another_model_under_the_same_card_fails(tmp_path: Path) -> None:
    changed = tiny_graph()
    for entry in changed.graph.initializer:
        if entry.name == "head.bias":
            entry.raw_data = np.array([0.1, 0.2], dtype=np.float32).tobytes()
    bundle = write_tiny_bundle(tmp_path / "bundle", changed)
    report = run_golden(ModelSession(bundle), bundle)
    assert not report.passed
    assert report.largest_logit_difference == pytest.approx(0.4, abs=1e-5)


def test_other_preprocessing_under_the_same_weights_fails(make_bundle: Callable[..., Bundle]) -> None:
    contract = make_bundle().card.pixel_contract.model_dump() | {"std": [0.45] * 3}
    bundle = make_bundle(pixel_contract=contract)
    assert not run_golden(ModelSession(bundle), bundle).passed


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"scores": None}, "no archive of the arrays"),
        ({"logits": np.zeros((3, 2))}, "logits are float64"),
        ({"scores": np.zeros((3, 1), np.float32)}, "scores are float32 \\[3, 1\\]"),
        ({"embeddings": np.full((3, 4), np.nan, np.float32)}, "not finite"),
        ({"pictures": np.zeros((3, 16, 16, 3), np.uint8)}, "not uint8 of 3 axes"),
        ({"pictures": np.zeros((0, 16, 16), np.uint8)}, "0 pictures"),
        ({"pictures": np.zeros((65, 16, 16), np.uint8)}, "65 pictures"),
        ({"pictures": np.zeros((3, 16, 16), np.float32)}, "pictures are float32"),
        ({"pictures": np.array(["a"], dtype=object)}, "no archive of the arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_named(tiny_bundle: Bundle, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_golden(with_golden(tiny_bundle, **arrays))


def test_embeddings_of_another_width_are_named(tiny_bundle: Bundle) -> None:
    bundle = with_golden(tiny_bundle, embeddings=np.zeros((3, 5), np.float32))
    with pytest.raises(BundleError, match="golden embeddings are \\[3, 5\\], the model gives \\[3, 4\\]"):
        run_golden(ModelSession(bundle), bundle)


def test_a_file_that_is_no_archive_is_refused(tiny_bundle: Bundle) -> None:
    for content in (b"", b"PK\x03\x04broken", b"\x93NUMPY"):
        tiny_bundle.golden_path.write_bytes(content)
        with pytest.raises(BundleError, match="no archive"):
            read_golden(with_hash_of_golden(tiny_bundle))


def test_a_bundle_of_before_has_none(make_bundle: Callable[..., Bundle]) -> None:
    files = {name: digest for name, digest in make_bundle().card.files.items() if name != GOLDEN_FILE}
    with pytest.raises(BundleError, match="has no golden inputs"):
        read_golden(make_bundle(golden=None, files=files))


def test_pictures_that_give_one_answer_do_not_count_as_apart(tiny_bundle: Bundle) -> None:
    assert read_golden(tiny_bundle).tells_pictures_apart
    golden = tiny_golden()
    alike = {name: np.repeat(array[:1], 3, axis=0) for name, array in golden.items()}
    assert not read_golden(with_golden(tiny_bundle, **alike)).tells_pictures_apart
    one = {name: array[:1] for name, array in golden.items()}
    assert not read_golden(with_golden(tiny_bundle, **one)).tells_pictures_apart


def test_a_graph_that_breaks_the_head_never_gets_so_far(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path / "bundle", with_doubled_logits())
    with pytest.raises(BundleError):
        ModelSession(bundle)
