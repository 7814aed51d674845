"""The closed form against torch's autograd, the independent source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xai.errors import ExplanationError
from xai.gradcam import gradcam, logit_gradient

ROOT = Path(__file__).resolve().parents[2]
RETINOPATHY = ROOT / "models/bundled/retinopathy/1"
FUNDUS = (ROOT / "../shared/data/fundus/images").resolve()


def autograd_gradcam(feature_map, weight, bias, label_indices, activation):
    """Grad-CAM as the paper does it: feature map -> pooling -> linear -> activation -> log odds, then backward."""
    torch = pytest.importorskip("torch")
    leaf = torch.tensor(np.asarray(feature_map, dtype=np.float64), requires_grad=True)
    logits = torch.tensor(np.asarray(weight, dtype=np.float64)) @ leaf.mean(dim=(1, 2)) + torch.tensor(
        np.asarray(bias, dtype=np.float64)
    )
    if activation == "softmax":
        log_p = torch.log_softmax(logits, dim=0)
        rest = [index for index in range(len(logits)) if index not in label_indices]
        target = torch.logsumexp(log_p[list(label_indices)], dim=0) - torch.logsumexp(log_p[rest], dim=0)
        probabilities = log_p.exp()
    else:
        (index,) = label_indices
        probabilities = torch.sigmoid(logits)
        target = torch.log(probabilities[index]) - torch.log1p(-probabilities[index])
    target.backward()
    alpha = leaf.grad.mean(dim=(1, 2))
    cam = torch.relu((alpha[:, None, None] * leaf).sum(dim=0))
    return cam.detach().numpy(), probabilities.detach().numpy()


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("activation", "label_indices"), [("softmax", (2, 3, 4)), ("softmax", (1,)), ("sigmoid", (0,)), ("sigmoid", (3,))]
)
def test_equals_autograd(seed, activation, label_indices):
    rng = np.random.default_rng(seed)
    feature_map = rng.normal(size=(32, 7, 9)).astype(np.float32)
    weight = rng.normal(scale=2.0, size=(5, 32)).astype(np.float32)
    bias = rng.normal(size=5).astype(np.float32)
    expected, probabilities = autograd_gradcam(feature_map, weight, bias, label_indices, activation)

    cam = gradcam(feature_map, probabilities.astype(np.float32), weight, label_indices, activation)

    assert cam.dtype == np.float32
    assert cam.shape == (7, 9)
    assert expected.max() > 0
    np.testing.assert_allclose(cam, expected, atol=1e-4, rtol=0)


def test_equals_autograd_where_the_model_is_sure():
    rng = np.random.default_rng(11)
    feature_map = rng.normal(size=(8, 4, 4)).astype(np.float32)
    weight = rng.normal(size=(3, 8)).astype(np.float32)
    bias = np.array([30.0, 0.0, 0.0], dtype=np.float32)  # P of the finding is below 1e-12
    expected, probabilities = autograd_gradcam(feature_map, weight, bias, (1, 2), "softmax")
    cam = gradcam(feature_map, probabilities.astype(np.float32), weight, (1, 2), "softmax")
    np.testing.assert_allclose(cam, expected, atol=1e-4, rtol=0)


def real_pictures(count: int) -> list[Path]:
    paths = sorted(path for path in FUNDUS.iterdir() if path.suffix.lower() in {".jpg", ".png"})
    return paths[:: max(1, len(paths) // count)][:count]


@pytest.mark.skipif(not (RETINOPATHY / "model.onnx").is_file(), reason="the retinopathy bundle is not there")
@pytest.mark.skipif(not FUNDUS.is_dir(), reason="shared/data, with the real images, is not there")
def test_equals_autograd_on_ten_real_images():
    import onnxruntime

    from models.card import load_bundle
    from models.preprocess import Frame, prepare
    from models.session import ModelSession

    bundle = load_bundle(RETINOPATHY)
    session = ModelSession(bundle, providers=["CPUExecutionProvider"])
    plain = onnxruntime.InferenceSession(bundle.model_path, providers=["CPUExecutionProvider"])
    finding = bundle.card.findings[0]
    indices = bundle.card.label_indices(finding)
    heated = 0
    pictures = real_pictures(10)
    assert len(pictures) == 10
    for path in pictures:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        frame = Frame(pixels=pixels, source_rows=pixels.shape[0], source_columns=pixels.shape[1])
        tensor = prepare(frame, bundle.card.pixel_contract).tensor[np.newaxis]
        (prediction,) = session.run(tensor)
        logits, feature_map = plain.run(["logits", "feature_map"], {"image": tensor})
        bias = logits[0] - session.head_weight @ feature_map[0].mean(axis=(1, 2))
        expected, probabilities = autograd_gradcam(
            feature_map[0], session.head_weight, bias, indices, bundle.card.activation
        )
        np.testing.assert_allclose(prediction.probabilities, probabilities, atol=1e-5)
        cam = gradcam(
            prediction.feature_map, prediction.probabilities, session.head_weight, indices, bundle.card.activation
        )
        np.testing.assert_allclose(cam, expected, atol=1e-4, rtol=0)
        heated += bool(expected.max() > 1e-3)
    assert heated >= 5


@pytest.mark.parametrize(
    ("probabilities", "label_indices", "activation"),
    [
        ([0.2, 0.8], (), "softmax"),
        ([0.2, 0.8], (0, 0), "softmax"),
        ([0.2, 0.8], (2,), "softmax"),
        ([0.2, 0.8], (0, 1), "softmax"),
        ([0.2, 0.8], (0, 1), "sigmoid"),
        ([1.0, 0.0, 0.0], (1, 2), "softmax"),
        ([0.1, float("nan"), 0.3], (1, 2), "softmax"),
    ],
)
def test_refuses_a_target_without_gradient(probabilities, label_indices, activation):
    with pytest.raises(ExplanationError):
        logit_gradient(np.array(probabilities), label_indices, activation)


@pytest.mark.parametrize(
    ("features", "weight"),
    [
        (np.ones((4, 4)), np.ones((2, 4))),
        (np.ones((4, 2, 2)), np.ones((2, 5))),
        (np.ones((0, 2, 2)), np.ones((2, 0))),
        (np.full((4, 2, 2), np.nan), np.ones((2, 4))),
    ],
)
def test_refuses_arrays_that_do_not_fit(features, weight):
    with pytest.raises(ExplanationError):
        gradcam(features, np.array([0.5, 0.5]), weight, (1,), "softmax")
