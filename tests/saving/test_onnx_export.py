import json

import numpy as np
import PIL.Image
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from sktransfer import (
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    export_onnx,
)
from sktransfer.inputs._image_graph import image_graph
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._processor import ProcessorReader
from sktransfer.saving import _onnx
from sktransfer.saving._onnx import _import_onnx, _parts_of
from tests.small_network import small_backbone

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def photos(*sizes):
    """Smooth images (height, width, 3) uint8, of any size."""
    rng = np.random.default_rng(0)
    small = [rng.integers(0, 256, (5, 4, 3), dtype=np.uint8) for _ in sizes]
    return [
        np.asarray(PIL.Image.fromarray(x).resize(size[::-1], PIL.Image.BICUBIC))
        for x, size in zip(small, sizes, strict=True)
    ]


def run(path, images):
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    return (
        output.name,
        session.run(None, {"images": images})[0],
        session.get_modelmeta().custom_metadata_map,
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size", [(40, 40), (41, 64), (100, 33), (7, 9), (18, 18), (19, 300), (1, 40)]
)
@pytest.mark.parametrize("crop", [15, 18])
@pytest.mark.parametrize("noise", [False, True])
def test_pixels_are_those_of_the_reader_up_to_rounding(
    size, interpolation, crop, noise, tmp_path
):
    reader = ImageReader(resize=18, crop=crop, interpolation=interpolation)
    like = onnx.helper.make_model(
        onnx.GraphProto(), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    like.ir_version = 8
    path = str(tmp_path / "before.onnx")
    onnx.save_model(image_graph(_import_onnx(), reader, like), path)
    (photo,) = photos(size)
    if noise:
        black_or_white = np.random.default_rng(0).integers(0, 2, photo.shape)
        photo = (255 * black_or_white).astype(np.uint8)
    _, found, _ = run(path, np.stack([photo, photo[::-1]]))
    for one, image in zip(found, (photo, photo[::-1]), strict=True):
        expected = reader.read(image)
        mean, std = (np.reshape(v, (3, 1, 1)) for v in (reader.mean, reader.std))
        levels = (one * std + mean) * 255
        away = np.abs(levels - expected.numpy())
        # Pillow 13 resizes the height of slender images first.
        if noise and size[0] > 2 * size[1]:
            assert away.mean() < 4
            continue
        assert away.max() < (2.01 if noise else 1.01)
        assert (away < 0.01).mean() > 0.7


@pytest.fixture(scope="module")
def task():
    return photos(*[(20 + i, 30 - i) for i in range(12)])


LABELS = np.eye(3, dtype=int)[np.arange(12) % 3]
INSECTS = np.array(["ants", "bees", "wasps"])[np.arange(12) % 3]


MODELS = {
    "probabilities": (
        FineTuneClassifier(hidden_layer_sizes=(4,), dropout=0.5),
        INSECTS,
    ),
    "labels": (
        FineTuneClassifier(dropout=0.5),
        np.eye(3, dtype=int)[np.arange(12) % 3],
    ),
    "values": (FineTuneRegressor(freeze=2), np.arange(24.0).reshape(12, 2)),
    "embeddings": (PretrainedFeatureExtractor(stage=2, pooling="avgmax"), None),
}


def fitted(kind, task):
    """A model of a kind, and its method that the graph is to compute."""
    model, y = MODELS[kind]
    model = clone(model).set_params(backbone=small_backbone(), device="cpu")
    if y is not None:
        model.set_params(max_epochs=2, lr=0.01, random_state=0)
    model.fit(task, y)
    names = ("predict_proba", "predict", "transform")
    return model, next(getattr(model, name) for name in names if hasattr(model, name))


@pytest.mark.parametrize("kind", MODELS)
def test_the_network_computes_what_the_estimator_does(kind, task):
    model, method = fitted(kind, task)
    network, reader, output, _ = _parts_of(model)
    inputs = torch.stack([reader.read(image) for image in task])
    with torch.inference_mode():
        found = network.eval()(reader.normalise(inputs)).numpy()
    assert output == kind.replace("labels", "probabilities")
    np.testing.assert_allclose(found, method(task), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.9", reason="its exporter is not enough")
@pytest.mark.parametrize("kind", ["probabilities", "embeddings"])
def test_the_graph_computes_what_the_estimator_does(kind, task, tmp_path):
    model, method = fitted(kind, task)
    path = str(tmp_path / "model.onnx")
    export_onnx(model, path)
    for photo in task[:3]:
        turned = [photo, photo[:, ::-1], photo[::-1]]
        output, found, properties = run(path, np.stack(turned))
        assert output == kind
        np.testing.assert_allclose(found, method(turned), atol=0.02, rtol=0.01)
    assert json.loads(properties["recipe"])["crop"] == 16
    if kind == "probabilities":
        assert json.loads(properties["classes"]) == ["ants", "bees", "wasps"]


def test_a_graph_of_a_model_that_decodes_fast_is_announced(monkeypatch, tmp_path):
    # What comes after the warning is not tested here.
    monkeypatch.setattr(_onnx, "_network_graph", lambda *_: 1 / 0)
    fast = PretrainedFeatureExtractor(small_backbone(), decoding="fast")
    with (
        pytest.warns(UserWarning, match="decoding='fast'.*thousandths") as caught,
        pytest.raises(ZeroDivisionError),
    ):
        export_onnx(fast, tmp_path / "model.onnx")
    assert caught[0].filename == __file__
    # Here, a warning would be an error of another kind.
    with pytest.raises(ZeroDivisionError):
        export_onnx(fast.set_params(decoding="exact"), tmp_path / "model.onnx")


@pytest.mark.skipif(torch.__version__ < "2.9", reason="its exporter is not enough")
def test_what_cannot_be_exported(task, tmp_path, monkeypatch):
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="'LogisticRegression', a L.*Accepted"):
        export_onnx(LogisticRegression(), path)
    with pytest.raises(ValueError, match="not fitted"):
        export_onnx(FineTuneClassifier(), path)
    backbone = small_backbone().with_reader(ProcessorReader(resize=18, crop=16))
    with pytest.raises(ValueError, match="not how this ProcessorReader does"):
        export_onnx(PretrainedFeatureExtractor(backbone), path)
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install 'sktransfer\[onnx\]'"):
        export_onnx(PretrainedFeatureExtractor(small_backbone()), path)
    monkeypatch.undo()
    monkeypatch.setattr(_onnx, "_OLDEST_TORCH", "99.0")
    with pytest.raises(ImportError, match=r"needs torch 99.0 or later"):
        export_onnx(PretrainedFeatureExtractor(small_backbone()), path)
    assert not path.exists()
