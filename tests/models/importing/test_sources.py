"""What is read, what is refused, and the reason given."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from odd_networks import GENERAL_HEADS, LINEAR_HEADS, SIDE, contract, network, pictures, pooled, traced_onnx
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from models.errors import ImportRefusedError
from models.importing import network as importing
from models.importing.network import load_network, make_graph
from models.session import activate


def make(path: Path, **options: Any) -> importing.ImportedNetwork:
    return make_graph(
        load_network(str(path), contract=contract()), contract=contract(), **{"activation": None} | options
    )


def saved(folder: Path, model: onnx.ModelProto | bytes) -> Path:
    path = folder / "source.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def run(model: onnx.ModelProto, tensors: Any) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(
        zip([e.name for e in session.get_outputs()], session.run(None, {"image": tensors.numpy()}), strict=True)
    )


def linear() -> Any:
    return network(LINEAR_HEADS["one layer"])


# Ends of a graph -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layers", "activation"),
    [
        ([nn.Linear(12, 3), nn.Softmax(1)], "softmax"),
        ([nn.Linear(12, 3), nn.LogSoftmax(1)], "softmax"),
        ([nn.Linear(12, 3), nn.Sigmoid()], "sigmoid"),
    ],
)
def test_an_activation_at_the_end_is_left_out(layers: list[nn.Module], activation: Any, tmp_path: Path) -> None:
    module = network(lambda: pooled(*layers))
    result = make(saved(tmp_path, traced_onnx(module)))
    assert result.anatomy.final_activation == activation
    tensors = pictures(4)
    raw = module(tensors).detach().numpy()
    expected = np.exp(raw) if isinstance(layers[1], nn.LogSoftmax) else raw
    np.testing.assert_allclose(
        activate(run(result.assembled.model, tensors)["logits"], activation), expected, atol=1e-5
    )


def test_an_activation_that_contradicts_the_card_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, traced_onnx(network(lambda: pooled(nn.Linear(12, 3), nn.Softmax(1)))))
    with pytest.raises(ImportRefusedError, match="the source ends in softmax, the card says sigmoid"):
        make(path, activation="sigmoid")


@pytest.mark.parametrize("layers", [[], [nn.Sigmoid()], [nn.Flatten(0)]], ids=["logit", "sigmoid", "no second axis"])
def test_one_output_becomes_two_labels(layers: list[nn.Module], tmp_path: Path) -> None:
    module = network(lambda: pooled(nn.Linear(12, 1), *layers))
    result = make(saved(tmp_path, traced_onnx(module)))
    assert (result.anatomy.single_output, result.anatomy.label_count) == (True, 2)
    assert result.assembled.linear_head
    tensors = pictures(4)
    value = module(tensors).detach().reshape(-1)
    expected = value if layers and isinstance(layers[0], nn.Sigmoid) else torch.sigmoid(value)
    found = activate(run(result.assembled.model, tensors)["logits"], "softmax")
    np.testing.assert_allclose(found[:, 1], expected.numpy(), atol=1e-5)
    with pytest.raises(ImportRefusedError, match="has to be softmax"):
        make(tmp_path / "source.onnx", activation="sigmoid")


def test_several_outputs_need_a_name(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Any) -> Any:
            features = self.inner.body(x)
            return features, self.inner.head(features)

    stream = io.BytesIO()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Two(), (pictures(2),), stream, dynamo=False, output_names=["a", "b"], input_names=["x"],
                          dynamic_axes={"x": {0: "N"}})  # fmt: skip
    path = saved(tmp_path, stream.getvalue())
    with pytest.raises(ImportRefusedError, match=r"2 outputs \(a, b\)"):
        make(path)
    assert make(path, output="b").assembled.linear_head
    with pytest.raises(ImportRefusedError, match="no output c"):
        make(path, output="c")


# Inputs --------------------------------------------------------------------------------------------------------------
def test_channels_last(tmp_path: Path) -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, x: Any) -> Any:
            return self.inner(x.permute(0, 3, 1, 2))

    module, stream = Last().eval(), io.BytesIO()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (torch.zeros(2, SIDE, SIDE, 3),), stream, dynamo=False, input_names=["x"],
                          dynamic_axes={"x": {0: "N"}})  # fmt: skip
    result = make(saved(tmp_path, stream.getvalue()))
    assert result.form.channels_last
    tensors = pictures(2)
    expected = module.inner(tensors).detach().numpy()
    np.testing.assert_allclose(run(result.assembled.model, tensors)["logits"], expected, atol=1e-5)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    import warnings

    module, stream = linear(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(linear().half(), (pictures(2).half(),), stream, dynamo=False, input_names=["x"],
                          dynamic_axes={"x": {0: "N"}})  # fmt: skip
    result = make(saved(tmp_path, stream.getvalue()))
    assert result.form.half
    tensors = pictures(2)
    found = run(result.assembled.model, tensors)["logits"]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, module(tensors).detach().numpy(), atol=5e-3)


def hand_made(
    nodes: list[Any], *, element: int = TensorProto.FLOAT, shape: Any = ("N", 3, SIDE, SIDE), **more: Any
) -> Any:
    graph = helper.make_graph(
        nodes,
        "hand",
        more.pop("inputs", [helper.make_tensor_value_info("x", element, list(shape))]),
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        more.pop("initializers", []),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17), *more.pop("domains", [])], ir_version=8)


def test_an_integer_input_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["x"], ["f"], to=1), helper.make_node("GlobalAveragePool", ["f"], ["y"])]
    with pytest.raises(ImportRefusedError, match="input x is UINT8; the gateway gives float32"):
        make(saved(tmp_path, hand_made(nodes, element=TensorProto.UINT8)))


def test_two_inputs_are_refused(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, SIDE, SIDE]) for name in ("x", "age")]
    model = hand_made([helper.make_node("Add", ["x", "age"], ["y"])], inputs=inputs)
    with pytest.raises(ImportRefusedError, match=r"2 inputs \(x, age\)"):
        make(saved(tmp_path, model))


@pytest.mark.parametrize("shape", [("N", 1, SIDE, SIDE), ("N", 3, 96, 96), ("N", 3, SIDE), ("N", 30)])
def test_another_size_than_the_card_s_is_refused(shape: Any, tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match="input x"):
        make(saved(tmp_path, hand_made([helper.make_node("Identity", ["x"], ["y"])], shape=shape)))


def test_what_scikit_learn_writes_is_refused(tmp_path: Path) -> None:
    node = helper.make_node(
        "LinearClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml", coefficients=[1.0, 2.0], classlabels_ints=[0, 1]
    )
    model = hand_made([node], shape=("N", 2), domains=[helper.make_opsetid("ai.onnx.ml", 3)])
    with pytest.raises(ImportRefusedError, match="2 axes"):
        make(saved(tmp_path, model))
    model = hand_made([node], domains=[helper.make_opsetid("ai.onnx.ml", 3)])
    with pytest.raises(ImportRefusedError, match=r"ai\.onnx\.ml\.LinearClassifier"):
        make(saved(tmp_path, model))


# What cannot be explained --------------------------------------------------------------------------------------------
class Transformer(nn.Module):
    """Patches, then four blocks of attention over them: nothing spatial is left."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.mixing = nn.ModuleList([nn.Linear(16, 48) for _ in range(4)])
        self.last = nn.Linear(16, 2)

    def forward(self, x: Any) -> Any:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.mixing:
            query, key, value = layer(tokens).chunk(3, -1)
            tokens = tokens + torch.softmax(query @ key.transpose(1, 2) / 4, -1) @ value
        return self.last(tokens.mean(1))


def test_a_vision_transformer_is_refused_with_the_reason(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.raises(ImportRefusedError, match=r"no spatial feature map before pooling.*4 attention layers"):
        make(saved(tmp_path, traced_onnx(Transformer().eval())))


def test_a_picture_that_decides_nothing_is_refused(tmp_path: Path) -> None:
    constant = numpy_helper.from_array(np.ones((1, 2), np.float32), "c")
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
        helper.make_node("Concat", ["s", "two"], ["t"], axis=0),
        helper.make_node("Expand", ["c", "t"], ["y"]),
    ]
    two = numpy_helper.from_array(np.array([2], np.int64), "two")
    with pytest.raises(ImportRefusedError, match="do not depend on the picture"):
        make(saved(tmp_path, hand_made(nodes, initializers=[constant, two])))


def test_an_operator_without_a_gradient_is_named(tmp_path: Path) -> None:
    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(5, 2)

        def forward(self, x: Any) -> Any:
            return self.last(torch.topk(x.mean((2, 3)), 5).values)

    with pytest.raises(ImportRefusedError, match="no gradient is known of TopK"):
        make(saved(tmp_path, traced_onnx(network(Sorted))))


def test_a_network_whose_pictures_see_each_other_is_refused(tmp_path: Path) -> None:
    class Together(nn.Module):
        def forward(self, x: Any) -> Any:
            pooled = x.mean((2, 3))
            return (pooled - pooled.mean(0, keepdim=True))[:, :2] * 50

    with pytest.raises(ImportRefusedError, match="pictures are not kept apart"):
        make(saved(tmp_path, traced_onnx(network(Together))))


def test_maps_for_an_output_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportRefusedError, match=r"has the shape \[N, 2, 12, 12\]"):
        make(saved(tmp_path, traced_onnx(network(lambda: nn.Conv2d(12, 2, 1)))))


# Files ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "content", [b"", b"garbage", os.urandom(4096), b"\x08\x08\x12\x07pytorch", b"PK\x03\x04 no zip"]
)
def test_garbage_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "garbage.bin"
    path.write_bytes(content)
    with pytest.raises(ImportRefusedError, match=r"garbage\.bin"):
        make(path)


def test_external_data_beside_the_file_is_taken_in(tmp_path: Path) -> None:
    module = linear()
    model = onnx.load_model_from_string(traced_onnx(module))
    path = tmp_path / "source.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    result = make(path)
    assert all(each.data_location != TensorProto.EXTERNAL for each in result.assembled.model.graph.initializer)
    tensors = pictures(2)
    np.testing.assert_allclose(
        run(result.assembled.model, tensors)["logits"], module(tensors).detach().numpy(), atol=1e-5
    )
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(ImportRefusedError, match=r"weights in weights\.bin, which is not beside it"):
        make(path)


def test_external_data_elsewhere_is_refused(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(traced_onnx(linear()))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../secret"
    (tmp_path / "secret").write_bytes(bytes(100_000))
    folder = tmp_path / "inner"
    folder.mkdir()
    with pytest.raises(ImportRefusedError, match="outside its folder"):
        make(saved(folder, model))


def test_too_large_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    with path.open("wb") as stream:
        stream.write(b"\x08\x08")
        stream.truncate(2_000_000_000)
    with pytest.raises(ImportRefusedError, match="at most 1500000000 are taken"):
        make(path)


def test_a_zip_bomb_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as entry:
        for _ in range(300):
            entry.write(bytes(1_000_000))
    assert path.stat().st_size < 10_000_000
    with pytest.raises(ImportRefusedError, match="unpacks to 300000000 bytes"):
        make(path)


class Runs:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_a_pickled_module_is_not_opened(tmp_path: Path) -> None:
    trace = tmp_path / "it-ran"
    torch.save({"a": Runs(trace)}, tmp_path / "module.pt")
    torch.save(linear(), tmp_path / "network.pt")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Runs(trace)))
    for name in ("module.pt", "network.pt", "plain.pkl"):
        with pytest.raises(ImportRefusedError, match="would run whatever code it holds"):
            make(tmp_path / name)
    with pytest.raises(ImportRefusedError, match="holds other things than tensors"):
        load_network("torchvision:resnet18", contract=contract(), label_count=2, weights=tmp_path / "module.pt")
    assert not trace.exists()


def test_a_program_with_a_poisoned_pickle_is_refused(tmp_path: Path) -> None:
    """torch.export.load itself falls back to opening pickles in full."""
    trace = tmp_path / "it-ran"
    module = linear()
    program = torch.export.export(module, (pictures(2),))
    torch.export.save(program, tmp_path / "good.pt2")
    poisoned = io.BytesIO()
    torch.save({"x": Runs(trace)}, poisoned)
    with zipfile.ZipFile(tmp_path / "good.pt2") as source, zipfile.ZipFile(tmp_path / "bad.pt2", "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            name = entry.filename
            if name.endswith(".pt"):
                content = poisoned.getvalue()
            target.writestr(name, content)
    with pytest.raises(ImportRefusedError):
        make(tmp_path / "bad.pt2")
    assert not trace.exists()


def test_torchscript(tmp_path: Path) -> None:
    import warnings

    module = network(GENERAL_HEADS["generalised mean"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, pictures(2)).save(str(tmp_path / "script.pt"))
    result = make(tmp_path / "script.pt")
    tensors = pictures(3)
    np.testing.assert_allclose(
        run(result.assembled.model, tensors)["logits"], module(tensors).detach().numpy(), atol=1e-5
    )


def test_a_torch_export_program(tmp_path: Path) -> None:
    module = network(GENERAL_HEADS["gelu and layer norm"])
    shapes = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(module, (pictures(2),), dynamic_shapes=shapes), tmp_path / "program.pt2")
    result = make(tmp_path / "program.pt2")
    tensors = pictures(3)
    np.testing.assert_allclose(
        run(result.assembled.model, tensors)["logits"], module(tensors).detach().numpy(), atol=1e-5
    )


def test_a_python_callable_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from odd_networks import LINEAR_HEADS, network\n"
        "def build():\n    return network(LINEAR_HEADS['one layer'], seed=5)\n"
        "def number():\n    return 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.save({"state_dict": {f"module.{k}": v for k, v in linear().state_dict().items()}}, tmp_path / "weights.pth")
    loaded = load_network("my_networks:build", contract=contract(), weights=tmp_path / "weights.pth")
    result = make_graph(loaded, contract=contract(), activation="softmax")
    tensors = pictures(3)
    expected = linear()(tensors).detach().numpy()
    np.testing.assert_allclose(run(result.assembled.model, tensors)["logits"], expected, atol=1e-5)
    assert any("autograd of the network" in check.name for check in result.checks)
    with pytest.raises(ImportRefusedError, match="gives a int"):
        load_network("my_networks:number", contract=contract())
    with pytest.raises(ImportRefusedError, match="cannot be called"):
        load_network("my_networks:absent", contract=contract())


def test_control_flow_on_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "branching.py").write_text(
        "import torch\n"
        "class Branching(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.a = torch.nn.Conv2d(3, 4, 3)\n"
        "        self.b = torch.nn.Linear(4, 2)\n"
        "    def forward(self, x):\n        x = self.a(x)\n"
        "        if x.sum() > 0:\n            x = x * 2\n        return self.b(x.mean((2, 3)))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportRefusedError, match="dynamic control flow"):
        load_network("branching:Branching", contract=contract())


def test_weights_are_never_fetched() -> None:
    with pytest.raises(ImportRefusedError, match="nothing is downloaded"):
        load_network("torchvision:resnet18", contract=contract(), label_count=2)
    with pytest.raises(ImportRefusedError, match="no such file"):
        load_network("nowhere.onnx", contract=contract())


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(linear().state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ImportRefusedError, match="the weights do not fit torchvision:resnet18"):
        load_network("torchvision:resnet18", contract=contract(), label_count=2, weights=tmp_path / "weights.pth")
    with pytest.raises(ImportRefusedError, match="no classification network"):
        load_network("torchvision:nosuch", contract=contract(), label_count=2, weights=tmp_path / "weights.pth")
