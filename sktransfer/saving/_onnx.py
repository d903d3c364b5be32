"""export_onnx: a fitted model, preprocessing included, as an ONNX graph."""

import json
import warnings
from dataclasses import asdict

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sktransfer._version import __version__
from sktransfer.backbones._backbone import MAX_ASPECT, Recipe
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._prefix import Pass, pool
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.saving._atomic import whole_file

_OLDEST_TORCH = "2.9"
_OPSET = 18
_PIXELS, _SQUARES = "images", "squares"


def export_onnx(estimator, path):
    """Write a fitted model as ONNX, for use without Python, torch or this package.

    The graph takes decoded pictures and resizes, cuts and normalises them itself.

    Parameters
    ----------
    estimator : PretrainedFeatureExtractor, FineTuneClassifier or FineTuneRegressor
        Fitted.
    path : str or path-like
        A file there is replaced, once the new one is whole.

    Raises
    ------
    ImportError
        If the packages of the ``onnx`` extra are not installed, or torch is older than
        they ask for.
    ValueError
        If the estimator is of another kind.

    Notes
    -----
    Input is ``images``, uint8 of shape (n, height, width, 3), RGB, upright and without
    alpha; n, height and width are free. Output is ``embeddings`` (n, n_features) of an
    extractor, ``probabilities`` (n, n_classes) of a classifier and ``values``
    (n, n_outputs) of a regressor, float32. The metadata of the file holds ``classes``
    (JSON), ``recipe`` (JSON) and the version of this package.

    The graph resizes with antialiasing as Pillow does, up to rounding: pixels differ
    by one level of 255, now and then by two. In those that are more than twice as high
    as wide, whose height Pillow resizes first since version 13, they differ by more at
    sharp edges.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import FineTuneClassifier, export_onnx
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> model = FineTuneClassifier(freeze="all", random_state=0).fit(X[:40], y[:40])
    >>> export_onnx(model, "digits.onnx")  # doctest: +SKIP
    """
    onnx = _import_onnx()
    network, recipe, output, properties = _parts_of(estimator)
    graph = _network_graph(network, recipe, output)
    # The network's own names may be any; those of the preprocessing must differ.
    graph = onnx.compose.add_prefix(graph, "network/", rename_outputs=False)
    before = _preprocessing(onnx, recipe, graph)
    entry = graph.graph.input[0].name
    model = onnx.compose.merge_models(before, graph, io_map=[(_SQUARES, entry)])
    properties |= {"recipe": json.dumps(asdict(recipe))}
    properties |= {"sktransfer": __version__}
    onnx.helper.set_model_props(model, properties)
    onnx.checker.check_model(model)
    with whole_file(path) as partial:
        onnx.save_model(model, partial)


def _import_onnx():
    try:
        import onnx
        import onnx.compose
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ImportError(
            "export_onnx needs the packages onnx and onnxscript: pip install "
            "'sktransfer[onnx]'."
        ) from error
    return onnx


def _parts_of(estimator):
    """Network from squares to outputs, its recipe, name of the output, metadata."""
    kinds = (PretrainedFeatureExtractor, BaseFineTune)
    if not isinstance(estimator, kinds):
        raise ValueError(
            f"export_onnx takes a fitted PretrainedFeatureExtractor, "
            f"FineTuneClassifier or FineTuneRegressor, and got a "
            f"{type(estimator).__name__}. Of a pipeline, export that step; "
            "scikit-learn's own steps are what the skl2onnx package exports."
        )
    check_is_fitted(estimator)
    properties = {"estimator": type(estimator).__name__}
    if isinstance(estimator, PretrainedFeatureExtractor):
        way = estimator._pass()
        return _Embedding(way), way.backbone.recipe, "embeddings", properties
    backbone = estimator.backbone_
    embedding = _Embedding(Pass(backbone, len(backbone.stages), "avg"))
    if hasattr(estimator, "classes_"):
        kind = nn.Sigmoid() if estimator.multilabel_ else nn.Softmax(dim=1)
        output = "probabilities"
        classes = np.asarray(estimator.classes_).tolist()
        properties["classes"] = json.dumps(classes, default=str)
    else:
        mean, scale = estimator.target_mean_, estimator.target_scale_
        kind, output = _Affine(mean, scale), "values"
    network = nn.Sequential(embedding, estimator.head_, kind)
    return network, backbone.recipe, output, properties


class _Embedding(nn.Module):
    """Squares, normalised -> rows, as a pass computes them."""

    def __init__(self, way: Pass):
        super().__init__()
        self.stages = way.backbone.stages[: way.depth]
        self.pooling = way.pooling

    def forward(self, x):
        return pool(self.stages(x), self.pooling)


class _Affine(nn.Module):
    """Standardised targets -> targets."""

    def __init__(self, mean, scale):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, x):
        return x * self.scale + self.mean


def _network_graph(network, recipe: Recipe, output: str):
    # A TorchVersion, which compares as versions do.
    if torch.__version__ < _OLDEST_TORCH:
        raise ImportError(
            f"export_onnx needs torch {_OLDEST_TORCH} or later, whose exporter makes "
            f"graphs for any number of images; this is {torch.__version__}. Upgrade: "
            "pip install 'sktransfer[onnx]'."
        )
    squares = torch.zeros(2, 3, recipe.crop, recipe.crop)
    with warnings.catch_warnings():
        # The exporter warns of matters of its own.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (squares,),
            input_names=[_SQUARES],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    graph = program.model_proto
    if not graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ValueError(
            "This network computes only batches of the size that it was exported "
            "with, and a graph for any number of images cannot be made of it."
        )
    return graph


def _preprocessing(onnx, recipe: Recipe, like):
    """Graph from pictures to normalised squares."""
    make, types = onnx.helper, onnx.TensorProto
    cubic = recipe.interpolation == "bicubic"
    how = {"antialias": 1, "exclude_outside": 1}
    how |= {"mode": "cubic", "cubic_coeff_a": -0.5} if cubic else {"mode": "linear"}
    node = make.make_node
    nodes = [
        node("Shape", [_PIXELS], ["shape"]),
        node("Slice", ["shape", "one", "channels"], ["size"]),
        node("ReduceMin", ["size"], ["short"], keepdims=1),
        node("Transpose", [_PIXELS], ["planes"], perm=[0, 3, 1, 2]),
        node("Cast", ["planes"], ["pixels"], to=types.FLOAT),
        # The ends of a picture longer than any are cut before it is resized.
        node("Mul", ["short", "aspect"], ["most"]),
        node("Min", ["size", "most"], ["kept"]),
        *_centre(make, types, "pixels", "size", "kept", "middle"),
        node("Mul", ["kept", "resize"], ["area"]),
        node("Div", ["area", "short"], ["resized_size"]),
        node("Slice", ["shape", "zero", "one"], ["n"]),
        *_resized(node, how),
        *_centre(make, types, "resized", "resized_size", "crop", "cut"),
        node("Sub", ["cut", "mean"], ["centred"]),
        node("Div", ["centred", "std"], [_SQUARES]),
    ]
    constants = [
        onnx.numpy_helper.from_array(value, name)
        for name, value in _numbers_of(recipe).items()
    ]
    side = recipe.crop
    entry = make.make_tensor_value_info(
        _PIXELS, types.UINT8, ["n", "height", "width", 3]
    )
    out = make.make_tensor_value_info(_SQUARES, types.FLOAT, ["n", 3, side, side])
    graph = make.make_graph(nodes, "preprocessing", [entry], [out], constants)
    return make.make_model(
        graph, ir_version=like.ir_version, opset_imports=like.opset_import
    )


def _numbers_of(recipe: Recipe) -> dict[str, np.ndarray]:
    return {
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2], dtype=np.float32),
        "spatial": np.array([2, 3]),
        "channels": np.array([3]),
        "aspect": np.array([MAX_ASPECT]),
        "resize": np.array([recipe.resize]),
        "crop": np.array([recipe.crop, recipe.crop]),
        "half": np.array(0.5, dtype=np.float32),
        "low": np.array(0, dtype=np.float32),
        "high": np.array(255, dtype=np.float32),
        "mean": 255 * np.array(recipe.mean, dtype=np.float32).reshape(1, 3, 1, 1),
        "std": 255 * np.array(recipe.std, dtype=np.float32).reshape(1, 3, 1, 1),
    }


def _resized(node, how: dict) -> list:
    """Resize the width, then the height, each to whole pixels, as Pillow does."""
    nodes = [
        node("Split", ["kept"], ["height", "width"], num_outputs=2),
        node("Split", ["resized_size"], ["new_height", "new_width"], num_outputs=2),
        node("Concat", ["height", "new_width"], ["between_size"], axis=0),
    ]
    for source, name in (("middle", "between"), ("between", "resized")):
        nodes += [
            node("Concat", ["n", "channels", f"{name}_size"], [f"{name}_4d"], axis=0),
            node("Resize", [source, "", "", f"{name}_4d"], [f"{name}_raw"], **how),
            # Halves go up; the operator Round would take them to the next even number.
            node("Add", [f"{name}_raw", "half"], [f"{name}_higher"]),
            node("Floor", [f"{name}_higher"], [f"{name}_whole"]),
            node("Clip", [f"{name}_whole", "low", "high"], [name]),
        ]
    return nodes


def _centre(make, types, x, size, wanted, out):
    """Nodes that cut the centre; half a pixel is rounded to even, as in torchvision."""
    names = [f"{out}_{name}" for name in ("spare", "float", "half", "start", "begin")]
    spare, as_float, half, start, begin = names
    return [
        make.make_node("Sub", [size, wanted], [spare]),
        make.make_node("Cast", [spare], [as_float], to=types.FLOAT),
        make.make_node("Div", [as_float, "two"], [half]),
        make.make_node("Round", [half], [start]),
        make.make_node("Cast", [start], [begin], to=types.INT64),
        make.make_node("Add", [begin, wanted], [f"{out}_end"]),
        make.make_node("Slice", [x, begin, f"{out}_end", "spatial"], [out]),
    ]
