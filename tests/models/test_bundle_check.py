"""Each check of registration: a sound bundle passes, and each defect fails under its own name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper
from tiny_bundles import (
    tiny_card,
    tiny_golden,
    tiny_graph,
    tiny_reference,
    with_doubled_logits,
    with_external_kernel,
    without_output,
)

from models import bundled_folders
from models.bundle_check import WAIVABLE, CheckResult, check_bundle, unloadable
from models.card import CARD_FILE, GOLDEN_FILE, REFERENCE_FILE, Bundle, file_sha256, load_bundle
from models.errors import BundleError

NAMES = (
    "files",
    "card",
    "licence",
    "training data",
    "training data's DVC hash",
    "acceptance criteria",
    "ONNX graph",
    "opset",
    "reference set",
    "golden inputs",
    "outputs",
    "golden run",
    "reference set fits the model",
)
SOURCE = {"name": "set", "source": "drawn", "licence": "CC0", "count": 1, "split": "none", "sha256": "0" * 64}

MakeBundle = Callable[..., Bundle]


def failures(bundle: Bundle) -> dict[str, str]:
    return {result.name: result.detail for result in check_bundle(bundle) if not result.passed}


def with_arrays(bundle: Bundle, name: str, arrays: dict[str, Any]) -> Bundle:
    """The bundle with another archive under `name`, the card in step."""
    np.savez(bundle.folder / name, **{key: value for key, value in arrays.items() if value is not None})
    card = yaml.safe_load((bundle.folder / CARD_FILE).read_text())
    card["files"][name] = file_sha256(bundle.folder / name)
    (bundle.folder / CARD_FILE).write_text(yaml.safe_dump(card))
    return load_bundle(bundle.folder)


def test_a_whole_bundle_passes_every_check(tiny_bundle: Bundle) -> None:
    results = check_bundle(tiny_bundle)
    assert tuple(result.name for result in results) == NAMES
    assert [result for result in results if not result.passed] == []
    assert all(result.detail for result in results)
    assert set(WAIVABLE) < set(NAMES)


@pytest.mark.parametrize("folder", bundled_folders(), ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def test_what_ships_passes_every_check(folder: Path) -> None:
    assert failures(load_bundle(folder)) == {}


def test_without_a_run_only_what_is_written_is_checked(make_bundle: MakeBundle) -> None:
    bundle = make_bundle(with_doubled_logits())
    assert [result.name for result in check_bundle(bundle, run=False) if not result.passed] == []
    assert tuple(result.name for result in check_bundle(bundle, run=False)) == NAMES[:-3]


def test_a_file_that_the_card_does_not_list(tiny_bundle: Bundle) -> None:
    (tiny_bundle.folder / "notes.txt").write_text("hello")
    assert "not in the card: ['notes.txt']" in failures(tiny_bundle)["files"]
    (tiny_bundle.folder / "notes.txt").unlink()
    (tiny_bundle.folder / "folder").mkdir()
    assert "['folder']" in failures(tiny_bundle)["files"]


def test_a_file_that_changed_or_went_after_it_was_read(tiny_bundle: Bundle) -> None:
    with tiny_bundle.reference_path.open("ab") as stream:
        stream.write(b"x")
    assert "another sha256 than the card's: ['reference.npz']" in failures(tiny_bundle)["files"]
    tiny_bundle.reference_path.unlink()
    found = failures(tiny_bundle)
    assert "missing: ['reference.npz']" in found["files"]
    assert "reference set" in found


def test_a_link_in_place_of_a_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.npz"
    tiny_bundle.golden_path.rename(elsewhere)
    tiny_bundle.golden_path.symlink_to(elsewhere)
    assert "not plain files: ['golden.npz']" in failures(tiny_bundle)["files"]


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({"limits": []}, "limits"),
        ({"limits": ["Unknown."]}, "limits"),
        ({"metrics": []}, "metrics"),
        ({"modalities": []}, "modalities"),
        ({"acquisition": {}}, "an acquisition range"),
        ({"intended_use": " TODO "}, "an intended use"),
        ({"labels": [{"name": name, "title": name} for name in ("absent", "there")]}, "labels absent, there"),
    ],
)
def test_a_card_that_is_not_complete(make_bundle: MakeBundle, change: dict[str, Any], missing: str) -> None:
    found = failures(make_bundle(**change))
    assert list(found) == ["card"]
    assert missing in found["card"]


def test_a_label_that_no_finding_counts_needs_no_code(make_bundle: MakeBundle, tmp_path: Path) -> None:
    card = make_bundle().card.model_dump(mode="json")
    findings = [finding for finding in card["findings"] if finding["name"] == "there"]
    labels = [card["labels"][0] | {"code": None}, card["labels"][1]]
    golden = tiny_golden()
    bundle = make_bundle(findings=findings, labels=labels)
    assert failures(with_arrays(bundle, GOLDEN_FILE, golden | {"scores": golden["scores"][:, :1]})) == {}


@pytest.mark.parametrize("licence", ["", "unknown", "None", "n/a"])
def test_no_licence(make_bundle: MakeBundle, licence: str) -> None:
    assert list(failures(make_bundle(licence=licence))) == ["licence"]


def test_training_data_without_a_licence_or_none_at_all(make_bundle: MakeBundle) -> None:
    stated = SOURCE | {"dvc_hash": "md5:" + "1" * 32}
    assert failures(make_bundle(training_data=[stated])) == {}
    assert list(failures(make_bundle(training_data=[stated | {"licence": "?"}]))) == ["training data"]
    assert list(failures(make_bundle(training_data=[]))) == ["training data", "training data's DVC hash"]


def test_a_missing_dvc_hash_is_said_and_can_be_waived(make_bundle: MakeBundle) -> None:
    stated = SOURCE | {"dvc_hash": "md5:" + "1" * 32}
    (failed,) = [result for result in check_bundle(make_bundle(training_data=[stated, SOURCE])) if not result.passed]
    assert failed.name == "training data's DVC hash"
    assert failed.detail.startswith("not stated for set")
    assert failed.waivable


def test_missing_criteria_are_said_and_can_be_waived(make_bundle: MakeBundle) -> None:
    (failed,) = [result for result in check_bundle(make_bundle(acceptance=None)) if not result.passed]
    assert failed.name == "acceptance criteria"
    assert "never replace a champion" in failed.detail
    assert failed.waivable
    assert not CheckResult(name="outputs", passed=False, detail="x").waivable


def test_a_graph_that_is_none(make_bundle: MakeBundle) -> None:
    found = failures(make_bundle(b"not a graph"))
    assert list(found) == ["ONNX graph", "opset", "outputs", "golden run", "reference set fits the model"]
    assert "not ONNX" in found["ONNX graph"]


def test_a_graph_that_the_checker_refuses(make_bundle: MakeBundle) -> None:
    model = tiny_graph()
    model.graph.node.append(helper.make_node("NoSuchOperator", ["logits"], ["nowhere"]))
    assert "NoSuchOperator" in failures(make_bundle(model))["ONNX graph"]


def test_weights_outside_the_file(make_bundle: MakeBundle) -> None:
    assert "some are outside" in failures(make_bundle(with_external_kernel()))["ONNX graph"]


def test_another_opset_than_the_card_s(make_bundle: MakeBundle) -> None:
    assert failures(make_bundle(opset=18)) == {"opset": "the card says opset 18, the graph 17"}
    model = onnx.version_converter.convert_version(tiny_graph(), 18)
    model.ir_version = 8
    assert failures(make_bundle(model)) == {"opset": "the card says opset 17, the graph 18"}


@pytest.mark.parametrize("graph", [without_output("embedding"), with_doubled_logits()], ids=["no output", "doubled"])
def test_outputs_that_do_not_fit(make_bundle: MakeBundle, graph: onnx.ModelProto) -> None:
    found = failures(make_bundle(graph))
    assert list(found) == ["outputs", "golden run", "reference set fits the model"]
    assert found["outputs"]


def test_another_bias_than_when_the_bundle_was_made(make_bundle: MakeBundle) -> None:
    model = tiny_graph()
    for entry in model.graph.initializer:
        if entry.name == "head.bias":
            entry.raw_data = np.array([0.1, -0.1], dtype=np.float32).tobytes()
    found = failures(make_bundle(model))
    assert list(found) == ["golden run"]
    assert "0.01 is allowed" in found["golden run"]


def test_golden_inputs_missing_unfitting_or_all_alike(make_bundle: MakeBundle, tiny_bundle: Bundle) -> None:
    files = {name: digest for name, digest in tiny_bundle.card.files.items() if name != GOLDEN_FILE}
    bundle = make_bundle(golden=None, files=files)
    bundle.golden_path.unlink()
    assert list(failures(bundle)) == ["golden inputs", "golden run"]

    colour = with_arrays(
        make_bundle(), GOLDEN_FILE, tiny_golden() | {"pictures": np.zeros((3, 16, 16, 3), dtype=np.uint8)}
    )
    assert list(failures(colour)) == ["golden inputs", "golden run"]

    alike = {name: np.repeat(array[:1], 3, axis=0) for name, array in tiny_golden().items()}
    found = failures(with_arrays(make_bundle(), GOLDEN_FILE, alike))
    assert list(found) == ["golden inputs"]
    assert "ignores its input" in found["golden inputs"]


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"mean_map": None}, "missing: mean_map"),
        ({name: array[:63] for name, array in tiny_reference().items()}, "at least 64"),
        ({"scores": tiny_reference()["scores"][:-1]}, "scores are [79, 1], [80, 1] is expected"),
        ({"scores": tiny_reference()["scores"] + 1}, "from 0 to 1"),
        ({"finding_names": np.array(["elsewhere"])}, "it has elsewhere"),
        ({"statistics": np.full((80, 7), np.nan, np.float32)}, "finite"),
        ({"statistic_names": np.array(["one"], dtype=object)}, "plain arrays"),
    ],
)
def test_a_reference_set_that_drift_could_not_use(
    make_bundle: MakeBundle, arrays: dict[str, Any], expected: str
) -> None:
    found = failures(with_arrays(make_bundle(), REFERENCE_FILE, tiny_reference() | arrays))
    assert expected in found["reference set"]


def test_a_reference_set_of_another_model(make_bundle: MakeBundle) -> None:
    wide = tiny_reference() | {"embeddings": np.zeros((80, 5), np.float16)}
    found = failures(with_arrays(make_bundle(), REFERENCE_FILE, wide))
    assert list(found) == ["reference set fits the model"]
    assert "embeddings of 4" in found["reference set fits the model"]
    grid = tiny_reference() | {"mean_map": np.zeros((3, 3), np.float32)}
    assert "[3, 3]" in failures(with_arrays(make_bundle(), REFERENCE_FILE, grid))["reference set fits the model"]


def test_a_folder_that_is_no_bundle_fails_without_its_place(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    with pytest.raises(BundleError) as refused:
        load_bundle(folder)
    result = unloadable(folder, refused.value)
    assert (result.name, result.passed) == ("files", False)
    assert str(folder) not in result.detail


def test_what_the_tiny_card_states_is_whole(tiny_bundle: Bundle) -> None:
    """The fixtures of other tests rest on it."""
    assert tiny_card(tiny_bundle.folder)["acceptance"]["criteria"]
    assert tiny_bundle.card.golden is not None
