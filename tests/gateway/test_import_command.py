"""``gateway models import`` from the command line to a bundle that registration takes."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from odd_networks import GENERAL_HEADS, LINEAR_HEADS, SIDE, network, pooled, traced_onnx
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage
from torch import nn

from drift.reference import load_reference
from gateway.cli import main
from gateway.pipeline import head_gradients
from gateway.reference_set import ReferenceCount, picture_files, reference_arrays
from models.bundle_check import check_bundle
from models.card import Bundle, Card, load_bundle
from models.golden import run_golden
from models.importing.network import load_network, make_graph
from models.preprocess import Frame, prepare
from models.session import ModelSession
from xai.gradcam import gradcam
from xai.summary import EXPLANATION_NAMES

CODE = {"value": "1", "scheme": "99TEST", "meaning": "Test"}


def card(**more: Any) -> dict[str, Any]:
    return {
        "name": "imported",
        "version": 1,
        "title": "Imported",
        "demonstration": True,
        "intended_use": "Tests.",
        "limits": ["Random weights."],
        "modalities": ["OP"],
        "labels": [{"name": "absent", "title": "Absent"}, {"name": "there", "title": "There", "code": CODE}],
        "activation": "softmax",
        "findings": [{"name": "there", "title": "There", "labels": ["there"], "operating_point": 0.5, "code": CODE}],
        "pixel_contract": {
            "photometric_interpretation": "RGB",
            "channels": 3,
            "size": {"rows": SIDE, "columns": SIDE},
            "crop": "none",
            "intensity": "eight_bit",
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "reason": "Tests.",
        },
        "acquisition": {"values": {"manufacturer": []}},
        "training_data": [
            {"name": "none", "source": "drawn", "licence": "CC0", "count": 1, "split": "none", "sha256": "0" * 64}
        ],
        "metrics": [{"name": "AUC", "dataset": "none", "value": 0.5, "method": "guessed"}],
        "licence": "Apache-2.0",
        "algorithm_family": CODE,
    } | more


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 photographs, a greyscale one, a text file and an empty one."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(4)
    for number in range(70):
        levels = random.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(levels).resize((70, 60), Image.Resampling.BICUBIC).save(folder / f"{number:03}.png")
    (folder / "notes.txt").write_text("no picture")
    (folder / "empty.jpg").write_bytes(b"")
    return folder


def written(folder: Path, module: Any, **more: Any) -> list[str]:
    """Arguments for a network and a card in `folder`."""
    (folder / "source.onnx").write_bytes(traced_onnx(module))
    (folder / "card.yaml").write_text(yaml.safe_dump(card(**more)), encoding="utf-8")
    return ["models", "import", str(folder / "source.onnx"), "--card", str(folder / "card.yaml")]


@pytest.mark.parametrize("name", ["one layer", "generalised mean"])
def test_a_bundle_that_registration_takes(
    name: str, tmp_path: Path, pictures_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = network({**LINEAR_HEADS, **GENERAL_HEADS}[name])
    arguments = written(tmp_path, module)
    out = tmp_path / "bundle"
    assert main([*arguments, "--out", str(out), "--reference", str(pictures_folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["linear_head"] == (name == "one layer")
    assert report["reference"].startswith("70 pictures; left out: 2 ")
    assert all(found <= limit for _, found, limit in report["checks"])
    assert "Grad-CAM against torch's" in [check[0] for check in report["checks"]]
    bundle = load_bundle(out)
    assert {result.name for result in check_bundle(bundle) if not result.passed} == set(report["waivable"])
    session = ModelSession(bundle)
    assert run_golden(session, bundle).passed
    assert (session.head_weight is None) == (name != "one layer")
    _compare_with_torch(session, module, pictures_folder)
    _compare_reference(session, out, pictures_folder)
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".import")] == []


def _tensor(session: ModelSession, path: Path) -> Any:
    with Image.open(path) as image:
        return prepare(Frame.from_rgb(np.asarray(image.convert("RGB"))), session.bundle.card.pixel_contract)


def _compare_with_torch(session: ModelSession, module: Any, folder: Path) -> None:
    """Probability and Grad-CAM of one photograph, with torch's autograd on the module itself."""
    tensor = _tensor(session, folder / "003.png").tensor
    (prediction,) = session.run(tensor[None])
    leaf = module.body(torch.from_numpy(tensor[None])).detach().requires_grad_()
    logits = module.head(leaf)[0]
    assert prediction.scores["there"] == pytest.approx(float(torch.softmax(logits, 0)[1].detach()), abs=1e-5)
    (gradient,) = torch.autograd.grad(logits[1] - logits[0], leaf)
    expected = torch.relu((gradient.mean((2, 3))[0][:, None, None] * leaf[0]).sum(0)).detach().numpy()
    found = gradcam(
        prediction.feature_map, prediction.probabilities, head_gradients(prediction, session), (1,), "softmax"
    )
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(float(expected.max()), 1e-6))


def _compare_reference(session: ModelSession, folder: Path, pictures: Path) -> None:
    reference = load_reference(folder / "reference.npz")
    assert reference.embeddings.shape == (70, 12)
    assert reference.finding_names == ("there",)
    assert reference.explanation_names == EXPLANATION_NAMES
    prepared = _tensor(session, pictures / "005.png")
    (prediction,) = session.run(prepared.tensor[None])
    np.testing.assert_allclose(reference.embeddings[5], prediction.embedding, rtol=1e-2, atol=1e-3)
    assert reference.scores[5, 0] == pytest.approx(prediction.scores["there"], abs=1e-5)
    stated = dict(zip(reference.statistic_names, reference.statistics[5], strict=True))
    assert stated == pytest.approx(dict(prepared.statistics), abs=1e-5)


def test_all_that_is_missing_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = written(tmp_path, network(LINEAR_HEADS["one layer"]))
    values = card(activation="softer", title="TODO")
    del values["licence"], values["pixel_contract"]["mean"]
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert main(arguments) == 1
    said = capsys.readouterr().err
    for words in ("no --out", "no --reference", "lacks 4 things", "licence: missing", "title: still TODO"):
        assert words in said
    assert "pixel_contract.mean: missing" in said
    assert "activation: Input should be 'softmax' or 'sigmoid'" in said


def dicom_photograph(pixels: np.ndarray) -> bytes:
    """A secondary capture, uint8 [rows, columns, 3], as a Part 10 file."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "2.25.7"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *pixels.shape[:2], 3
    dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def test_dicom_files_serve_as_reference_and_damaged_ones_are_counted(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    whole = dicom_photograph(random.integers(0, 256, (40, 50, 3), dtype=np.uint8))
    for number in range(60):
        content = bytearray(whole)
        for place in random.integers(132, 600, 4 if number % 2 else 0):
            content[place] = random.integers(0, 256)
        (tmp_path / f"{number:02}.dcm").write_bytes(
            content[: random.integers(200, len(content))] if number % 3 == 1 else content
        )
    values = Card.model_validate(card() | {"files": {"model.onnx": "", "reference.npz": ""}, "opset": 17})
    arguments, count = written(tmp_path, network(LINEAR_HEADS["one layer"])), ReferenceCount()
    bundle = tmp_path / "model.onnx"
    loaded = load_network(arguments[2], contract=values.pixel_contract)
    imported = make_graph(loaded, contract=values.pixel_contract, activation="softmax")
    bundle.write_bytes(imported.assembled.model.SerializeToString())
    session = ModelSession(Bundle(folder=tmp_path, card=values))
    files = picture_files(tmp_path, 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom says what is wrong with damaged files
        arrays = reference_arrays(session, files, count)
    assert count.taken == len(arrays["embeddings"]) >= 20
    assert count.taken + count.left_out.total() == len(files)
    assert count.left_out.total() >= 20


def test_looking_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "source.onnx").write_bytes(traced_onnx(network(GENERAL_HEADS["gated pool"])))
    arguments = ["models", "import", str(tmp_path / "source.onnx"), "--look"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["feature_map"] == [12, 12, 12]
    assert not found["linear_head"]
    assert main(arguments) == 0
    assert "feature map: 12 channels, 12 x 12; 2 labels; opset 17" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["source.onnx"]


def test_a_template_is_what_the_card_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = network(lambda: pooled(nn.Linear(12, 3), nn.Sigmoid()))
    (tmp_path / "source.onnx").write_bytes(traced_onnx(module))
    path = tmp_path / "template.yaml"
    assert main(["models", "import", str(tmp_path / "source.onnx"), "--card-template", str(path)]) == 0
    values = yaml.safe_load(path.read_text())
    assert values["activation"] == "sigmoid"
    assert len(values["labels"]) == 3
    assert values["pixel_contract"]["size"] == {"rows": SIDE, "columns": SIDE}
    capsys.readouterr()
    assert main(["models", "import", str(tmp_path / "source.onnx"), "--card", str(path), "--out", "x"]) == 1
    said = capsys.readouterr().err
    assert "labels.2.code.value: still TODO" in said
    assert "Tuple" not in said
    assert main(["models", "import", str(tmp_path / "source.onnx"), "--card-template", str(path)]) == 1
    assert "overwrites nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"labels": [{"name": str(place), "title": "x"} for place in range(3)] + [{"name": "there", "title": "x"}]},
         "the network has 2 outputs, the card names 4 labels"),
        ({"licence": "unknown"}, "licence: a licence of the model is expected"),
        ({"quality": {"minimum": {"level": 0.99}}}, "at least 64 gradable pictures"),
    ],
    ids=["labels", "licence", "ungradable"],
)  # fmt: skip
def test_a_refused_import_leaves_nothing(
    more: dict[str, Any], words: str, tmp_path: Path, pictures_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = written(tmp_path, network(LINEAR_HEADS["one layer"]), **more)
    out = tmp_path / "made" / "bundle"
    assert main([*arguments, "--out", str(out), "--reference", str(pictures_folder)]) == 1
    assert words in capsys.readouterr().err
    assert not out.exists()
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_a_bundle_is_never_written_over(
    tmp_path: Path, pictures_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = written(tmp_path, network(LINEAR_HEADS["one layer"]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "card.yaml").write_text("x")
    assert main([*arguments, "--out", str(tmp_path / "full"), "--reference", str(pictures_folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "full" / "card.yaml").read_text() == "x"


def test_python_code_is_run_only_with_a_word(
    tmp_path: Path, pictures_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text(
        "from odd_networks import LINEAR_HEADS, network\ndef build():\n    return network(LINEAR_HEADS['one layer'])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = written(tmp_path, network(LINEAR_HEADS["one layer"]))
    arguments[2] = "theirs:build"
    out = tmp_path / "bundle"
    assert main([*arguments, "--out", str(out), "--reference", str(pictures_folder)]) == 0
    said = capsys.readouterr()
    assert "this runs the Python code of theirs:build" in said.err
    assert f"next: gateway models register {out} --allow-missing REASON" in said.out
