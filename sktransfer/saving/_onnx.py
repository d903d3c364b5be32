"""export_onnx: a fitted model, preprocessing included, as an ONNX graph."""

import json
import warnings

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sktransfer._version import __version__
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._prefix import Prefix, pool
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.inputs._image_graph import INPUTS, image_graph
from sktransfer.inputs._images import ImageReader
from sktransfer.saving._atomic import whole_file

_OLDEST_TORCH = "2.9"
_OPSET = 18


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
    network, reader, output, properties = _parts_of(estimator)
    graph = _network_graph(network, reader, output)
    # The network's own names may be any; those of the preprocessing must differ.
    graph = onnx.compose.add_prefix(graph, "network/", rename_outputs=False)
    before = image_graph(onnx, reader, graph)
    entry = graph.graph.input[0].name
    model = onnx.compose.merge_models(before, graph, io_map=[(INPUTS, entry)])
    properties |= {"recipe": json.dumps(reader.to_record())}
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
    """Network from squares to outputs, its reader, name of the output, metadata."""
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
        prefix = estimator._prefix()
        return _Embedding(prefix), prefix.backbone.reader, "embeddings", properties
    backbone = estimator.backbone_
    embedding = _Embedding(Prefix(backbone, len(backbone.stages), "avg"))
    if hasattr(estimator, "classes_"):
        kind = nn.Sigmoid() if estimator.multilabel_ else nn.Softmax(dim=1)
        output = "probabilities"
        classes = np.asarray(estimator.classes_).tolist()
        properties["classes"] = json.dumps(classes, default=str)
    else:
        mean, scale = estimator.target_mean_, estimator.target_scale_
        kind, output = _Affine(mean, scale), "values"
    network = nn.Sequential(embedding, estimator.head_, kind)
    return network, backbone.reader, output, properties


class _Embedding(nn.Module):
    """Squares, normalised -> rows, as a prefix computes them."""

    def __init__(self, prefix: Prefix):
        super().__init__()
        self.stages = prefix.backbone.stages[: prefix.depth]
        self.pooling = prefix.pooling

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


def _network_graph(network, reader: ImageReader, output: str):
    # A TorchVersion, which compares as versions do.
    if torch.__version__ < _OLDEST_TORCH:
        raise ImportError(
            f"export_onnx needs torch {_OLDEST_TORCH} or later, whose exporter makes "
            f"graphs for any number of images; this is {torch.__version__}. Upgrade: "
            "pip install 'sktransfer[onnx]'."
        )
    squares = reader.normalise(reader.example(2))
    with warnings.catch_warnings():
        # The exporter warns of matters of its own.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (squares,),
            input_names=[INPUTS],
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
