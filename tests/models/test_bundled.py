"""The bundles that ship: whole, small, and doing what their cards say."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from PIL import Image
from sklearn.metrics import roc_auc_score

from models.card import Bundle, Metric, load_bundle
from models.dvc import dvc_hash
from models.golden import golden_inputs, read_golden
from models.preprocess import Frame, prepare
from models.quality import judge_quality
from xai.gradcam import gradcam
from xai.summary import EXPLANATION_NAMES

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = ROOT / "models/bundled"
FOLDERS = [BUNDLED / name / version for name in ("retinopathy", "chest-triage") for version in ("1", "2")]
FUNDUS = ROOT / "../shared/data/fundus"
CHEST = ROOT / "../shared/data/cxr/test"
LARGEST_BUNDLE_BYTES = 10_000_000
LARGEST_GOLDEN_BYTES = 400_000


@pytest.fixture(params=FOLDERS, ids=lambda folder: f"{folder.parent.name}-{folder.name}")
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return load_bundle(request.param)


def session_of(bundle: Bundle) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def batches(bundle: Bundle, frames: Iterator[Frame]) -> Iterator[np.ndarray]:
    tensors = [prepare(frame, bundle.card.pixel_contract).tensor for frame in frames]
    for start in range(0, len(tensors), 8):
        yield np.stack(tensors[start : start + 8])


def test_folder_names_the_version_and_is_small(bundle: Bundle) -> None:
    assert (bundle.card.name, str(bundle.card.version)) == (bundle.folder.parent.name, bundle.folder.name)
    assert {path.name for path in bundle.folder.iterdir()} == {"card.yaml", "golden.npz", "model.onnx", "reference.npz"}
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) <= LARGEST_BUNDLE_BYTES
    assert bundle.card.demonstration
    assert any("no clinical validation" in limit for limit in bundle.card.limits)


def test_golden_inputs_are_small_gradable_and_made_by_the_script_that_is_here(bundle: Bundle) -> None:
    path = ROOT / "scripts/training/golden_pictures.py"
    spec = importlib.util.spec_from_file_location("golden_pictures", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    golden = read_golden(bundle)

    assert bundle.golden_path.stat().st_size < LARGEST_GOLDEN_BYTES
    # Drawing may round otherwise with another Pillow; a picture of a patient would differ everywhere.
    expected = np.stack(script.golden_pictures(bundle.card.name)).astype(np.int16)
    assert np.abs(golden.pictures - expected).mean() < 0.5
    for prepared in golden_inputs(golden.pictures, bundle.card.pixel_contract):
        assert judge_quality(prepared.statistics, bundle.card.quality) == ()
    assert golden.tells_pictures_apart


@pytest.mark.parametrize(("name", "folder"), [("retinopathy", FUNDUS), ("chest-triage", CHEST.parent / "train")])
def test_the_dvc_hash_is_of_the_images_that_were_trained_on(name: str, folder: Path) -> None:
    """Both hashes were also made by DVC 3.67.1 (``dvc add``), see docs/models.md."""
    if not folder.is_dir():
        pytest.skip("the shared images are not here")
    hashes = {load_bundle(BUNDLED / name / version).card.training_data[0].dvc_hash for version in ("1", "2")}
    assert hashes == {dvc_hash(folder)}


def test_criteria_are_written_in_the_card(bundle: Bundle) -> None:
    acceptance = bundle.card.acceptance
    assert acceptance is not None
    assert {(criterion.metric, criterion.statistic) for criterion in acceptance.criteria} >= {
        ("auc_roc", "low"),
        ("sensitivity", "low"),
        ("auc_roc", "difference_low"),
    }


# What was shipped before a bundle had golden inputs: model and reference set are the same to this day.
UNCHANGED = {
    ("retinopathy", 1): (
        "40ccc83bb31c6122367da90ccbdcac0f28f55731d575cb77acc2478fa3f4975d",
        "b3c93da410b76572cbcbc53d3b12d2c20fdf5eb18ce568bba539a776b6fa7b8f",
    ),
    ("retinopathy", 2): (
        "d986bdc6b4e2a8190b31adad3faddb258d36064eb42c4fee7bb871291ad7cc65",
        "615baca3cf2ceabbe13fecc6c9008608a522d5a271dbb9033739c898c988ebb2",
    ),
    ("chest-triage", 1): (
        "10146d60d40e11096ad592604d45dff28a91faa69300e86047d93344991144a0",
        "bcc923666210b059e29b92804b6ba7d639e2701998d8499bf9526f77adc87f36",
    ),
    ("chest-triage", 2): (
        "1d7d067ba61a5fc3a162298cb127b6c558cbdb474c435578a5d11a3ec21755bb",
        "8d06820fc53188efb640719f8767edda21daa3ec7c1ec8c9811817f2fb92bc2b",
    ),
}


def test_the_model_and_its_reference_are_those_of_the_first_release(bundle: Bundle) -> None:
    files = bundle.card.files
    assert UNCHANGED[bundle.card.name, bundle.card.version] == (files["model.onnx"], files["reference.npz"])


def test_graph_has_the_agreed_inputs_and_outputs(bundle: Bundle) -> None:
    model = onnx.load(bundle.model_path)
    onnx.checker.check_model(model, full_check=True)
    size = bundle.card.pixel_contract.size
    shape = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]

    assert [value.name for value in model.graph.input] == ["image"]
    assert shape == ["N", bundle.card.pixel_contract.channels, size.rows, size.columns]
    assert [value.name for value in model.graph.output] == ["logits", "embedding", "feature_map"]
    assert {opset.version for opset in model.opset_import} == {bundle.card.opset} == {17}


def test_embedding_is_the_pooled_map_and_the_head_is_linear(bundle: Bundle) -> None:
    size = bundle.card.pixel_contract.size
    tensors = np.random.default_rng(0).normal(0, 1, (3, 3, size.rows, size.columns)).astype(np.float32)
    logits, embedding, feature_map = session_of(bundle).run(["logits", "embedding", "feature_map"], {"image": tensors})
    head = {
        value.name: numpy_helper.to_array(value)
        for value in onnx.load(bundle.model_path).graph.initializer
        if value.name in ("head.weight", "head.bias")
    }

    assert logits.shape == (3, len(bundle.card.labels))
    assert feature_map.shape[:2] == embedding.shape == (3, head["head.weight"].shape[1])
    assert {value.dtype for value in head.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(feature_map.mean(axis=(2, 3)), embedding, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedding @ head["head.weight"].T + head["head.bias"], logits, rtol=1e-3, atol=1e-3)


def test_reference_is_whole_and_free_of_pickles(bundle: Bundle) -> None:
    with np.load(bundle.reference_path, allow_pickle=False) as file:
        reference = dict(file)
    count, width = reference["embeddings"].shape
    weight = next(
        numpy_helper.to_array(value)
        for value in onnx.load(bundle.model_path).graph.initializer
        if value.name == "head.weight"
    )

    assert width == weight.shape[1]
    assert 200 <= count <= 1000
    assert reference["embeddings"].dtype == np.float16
    assert reference["finding_names"].tolist() == [finding.name for finding in bundle.card.findings]
    assert reference["explanation_names"].tolist() == list(EXPLANATION_NAMES)
    assert reference["scores"].shape == (count, len(bundle.card.findings))
    assert reference["explanations"].shape == (count, len(EXPLANATION_NAMES))
    assert reference["statistics"].shape == (count, len(reference["statistic_names"]))
    assert all(np.isfinite(reference[name]).all() for name in ("embeddings", "scores", "explanations", "statistics"))
    # Each map has a mass of 1, but for those of pictures in which nothing speaks for the finding.
    with_heat = reference["explanations"][:, EXPLANATION_NAMES.index("peak")] > 0
    assert reference["mean_map"].sum() == pytest.approx(with_heat.mean(), abs=1e-3)
    names = reference["statistic_names"].tolist()
    for row in reference["statistics"]:
        assert judge_quality(dict(zip(names, map(float, row), strict=True)), bundle.card.quality) == ()


def test_reference_scores_follow_from_the_reference_embeddings(bundle: Bundle) -> None:
    head = {value.name: numpy_helper.to_array(value) for value in onnx.load(bundle.model_path).graph.initializer}
    with np.load(bundle.reference_path) as file:
        embeddings, scores = file["embeddings"].astype(np.float32), file["scores"]
    chances = softmax(embeddings @ head["head.weight"].T + head["head.bias"])
    for position, finding in enumerate(bundle.card.findings):
        expected = chances[:, bundle.card.label_indices(finding)].sum(axis=1)
        np.testing.assert_allclose(scores[:, position], expected, atol=0.01)


def test_statistics_of_the_limits_are_measured(bundle: Bundle) -> None:
    quality = bundle.card.quality
    assert quality is not None
    with np.load(bundle.reference_path) as file:
        known = set(file["statistic_names"].tolist())
    assert set(quality.minimum) | set(quality.maximum) <= known


def test_the_document_gives_the_card_s_figures(bundle: Bundle) -> None:
    column = 3 + bundle.card.version - 1
    rows = [
        [cell.strip() for cell in line.split("|")]
        for line in (ROOT / "docs/models.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    stated = {(row[1], row[2]): row[column] for row in rows if len(row) == 6}
    for metric in bundle.card.metrics:
        interval = "" if metric.low is None else f" ({metric.low:.3f} to {metric.high:.3f})"
        assert stated[metric.name, metric.dataset] == f"{metric.value:.3f}{interval}"


def headline(bundle: Bundle) -> Metric:
    return bundle.card.metrics[0]


def test_headline_figure_is_what_the_project_asks(bundle: Bundle) -> None:
    metric = headline(bundle)
    least = {"retinopathy": ("AUC, referable DR", 0.93), "chest-triage": ("AUC, pneumonia", 0.95)}[bundle.card.name]

    assert metric.name == least[0]
    assert metric.value >= least[1]
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low < metric.value < metric.high


@pytest.mark.skipif(not CHEST.is_dir(), reason="the shared radiographs are not here")
@pytest.mark.parametrize("version", ["1", "2"])
def test_chest_triage_on_the_test_folder(version: str) -> None:
    """Every third image, scored by the shipped graph, reaches an area within the card's interval, widened by 0.02."""
    bundle = load_bundle(BUNDLED / "chest-triage" / version)
    paths = sorted(CHEST.glob("*/*.jpeg"))[::3]
    truth = [path.parent.name == "PNEUMONIA" for path in paths]
    session = session_of(bundle)

    def frames() -> Iterator[Frame]:
        for path in paths:
            with Image.open(path) as image:
                yield Frame.from_greyscale(np.asarray(image.convert("L"), dtype=np.float32) / 255)

    logits = np.concatenate([session.run(["logits"], {"image": batch})[0] for batch in batches(bundle, frames())])
    area = float(roc_auc_score(truth, softmax(logits)[:, 1]))

    metric = headline(bundle)
    assert metric.low is not None
    assert metric.high is not None
    assert metric.low - 0.02 <= area <= metric.high + 0.02


@pytest.mark.skipif(not FUNDUS.is_dir(), reason="the shared photographs are not here")
@pytest.mark.parametrize("version", ["1", "2"])
def test_retinopathy_on_photographs_of_known_grade(version: str) -> None:
    """These were trained on, so this shows that the graph is the trained one, not how good it is."""
    bundle = load_bundle(BUNDLED / "retinopathy" / version)
    with (FUNDUS / "labels.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["icdr_grade"]][::8]
    truth = [int(float(row["icdr_grade"])) >= 2 for row in rows]
    session = session_of(bundle)

    def frames() -> Iterator[Frame]:
        for row in rows:
            with Image.open(FUNDUS / "images" / row["image"]) as image:
                yield Frame.from_rgb(np.asarray(image.convert("RGB")))

    logits = np.concatenate([session.run(["logits"], {"image": batch})[0] for batch in batches(bundle, frames())])
    assert float(roc_auc_score(truth, softmax(logits)[:, 2:].sum(axis=1))) > 0.95


@pytest.mark.skipif(not FUNDUS.is_dir(), reason="the shared photographs are not here")
def test_explanation_of_the_reference_can_be_made_again() -> None:
    bundle = load_bundle(BUNDLED / "retinopathy/1")
    with (FUNDUS / "labels.csv").open(encoding="utf-8") as stream:
        first = next(csv.DictReader(stream))["image"]
    with Image.open(FUNDUS / "images" / first) as image:
        prepared = prepare(Frame.from_rgb(np.asarray(image.convert("RGB"))), bundle.card.pixel_contract)
    logits, feature_map = session_of(bundle).run(["logits", "feature_map"], {"image": prepared.tensor[None]})
    weight = next(
        numpy_helper.to_array(value)
        for value in onnx.load(bundle.model_path).graph.initializer
        if value.name == "head.weight"
    )
    heat = gradcam(feature_map[0], softmax(logits)[0], weight, (2, 3, 4), "softmax")
    with np.load(bundle.reference_path) as file:
        peak = file["explanations"][0, EXPLANATION_NAMES.index("peak")]
    assert float(heat.max()) == pytest.approx(float(peak), rel=0.05)
