"""export_onnx: a fitted model with its preprocessing as an ONNX graph."""

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

# The first version whose exporter makes graphs for any number of images.
_OLDEST_TORCH = "2.9"
# The first version of ONNX whose Resize has antialiasing.
_OPSET = 18


def export_onnx(estimator, path):
    """Export a fitted model to ONNX, for use without Python, torch or this package.

    The graph includes the preprocessing: it takes decoded images, and resizes, crops
    and normalises them itself.

    Parameters
    ----------
    estimator : PretrainedFeatureExtractor, FineTuneClassifier or FineTuneRegressor
        The fitted estimator to export.
    path : str or path-like
        The path of the file. An existing file is replaced once the new one has been
        written completely.

    Raises
    ------
    ImportError
        If the packages of the ``onnx`` extra are not installed, or torch is older than
        the extra requires.
    ValueError
        If the estimator is of another kind, or its network is bound to one batch size.

    Notes
    -----
    The input is ``images``, an array of dtype uint8 and shape (n, height, width, 3),
    which contains RGB images that are upright and have no alpha channel. The sizes n,
    height and width can be chosen freely. The output is a float32 array: the
    ``embeddings`` (n, n_features) of an extractor, the ``probabilities``
    (n, n_classes) of a classifier, or the ``values`` (n, n_outputs) of a regressor. The
    metadata of the file contain ``classes`` (JSON), ``recipe`` (JSON) and the version
    of this package.

    The graph resizes with antialiasing as Pillow does, up to rounding: pixel values
    differ by one level of 255, and occasionally by two. The differences are larger at
    sharp edges of images that are more than twice as high as wide, whose height Pillow
    resizes first since version 13.

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
    if not isinstance(reader, ImageReader):
        raise ValueError(
            f"export_onnx expects a model of images, got one of {reader.kind}s. "
            "Nothing was written."
        )
    # Opened first, so that a bad path is an error before the export, not after it.
    with whole_file(path) as partial:
        graph = _network_graph(network, reader, output)
        # The names in the network are arbitrary, and must not clash with those of the
        # preprocessing.
        graph = onnx.compose.add_prefix(graph, "network/", rename_outputs=False)
        before = image_graph(onnx, reader, graph)
        entry = graph.graph.input[0].name
        model = onnx.compose.merge_models(before, graph, io_map=[(INPUTS, entry)])
        properties |= {"recipe": json.dumps(reader.to_record())}
        properties |= {"sktransfer": __version__}
        onnx.helper.set_model_props(model, properties)
        onnx.checker.check_model(model)
        onnx.save_model(model, partial)


def _import_onnx():
    try:
        import onnx
        import onnx.compose
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise ImportError(
            "export_onnx needs the packages onnx and onnxscript. Install them: pip "
            "install 'sktransfer[onnx]'."
        ) from error
    return onnx


def _parts_of(estimator):
    """Return the network, its reader, the name of its output, and the metadata."""
    kinds = (PretrainedFeatureExtractor, BaseFineTune)
    if not isinstance(estimator, kinds):
        raise ValueError(
            "export_onnx expects a fitted PretrainedFeatureExtractor, "
            "FineTuneClassifier or FineTuneRegressor, got a "
            f"{type(estimator).__name__}. For a pipeline, export that step, and "
            "scikit-learn's own steps by the skl2onnx package."
        )
    check_is_fitted(estimator)
    properties = {"estimator": type(estimator).__name__}
    if isinstance(estimator, PretrainedFeatureExtractor):
        prefix = estimator._prefix()
        return _Embedding(prefix), prefix.backbone.reader, "embeddings", properties
    backbone = estimator.backbone_
    # The whole network up to the head, as in predict.
    embedding = _Embedding(Prefix(backbone, len(backbone.stages), "avg"))
    if hasattr(estimator, "classes_"):
        kind = nn.Sigmoid() if estimator.multilabel_ else nn.Softmax(dim=1)
        output = "probabilities"
        # Labels that are not JSON, such as dates, are written as text.
        classes = np.asarray(estimator.classes_).tolist()
        properties["classes"] = json.dumps(classes, default=str)
    else:
        mean, scale = estimator.target_mean_, estimator.target_scale_
        kind, output = _Affine(mean, scale), "values"
    network = nn.Sequential(embedding, estimator.head_, kind)
    return network, backbone.reader, output, properties


class _Embedding(nn.Module):
    """Compute embeddings of normalised inputs, as a prefix does."""

    def __init__(self, prefix: Prefix):
        super().__init__()
        self.stages = prefix.backbone.stages[: prefix.depth]
        self.pooling = prefix.pooling

    def forward(self, x):
        return pool(self.stages(x), self.pooling)


class _Affine(nn.Module):
    """Convert standardised predictions to the scale of the targets."""

    def __init__(self, mean, scale):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))

    def forward(self, x):
        return x * self.scale + self.mean


def _network_graph(network, reader: ImageReader, output: str):
    """Export the network from normalised inputs to its output."""
    # torch.__version__ is a TorchVersion, which compares as versions do.
    if torch.__version__ < _OLDEST_TORCH:
        raise ImportError(
            f"export_onnx needs torch {_OLDEST_TORCH} or later, whose exporter makes "
            f"graphs for any number of images; this is {torch.__version__}. Upgrade: "
            "pip install 'sktransfer[onnx]'."
        )
    # Two images, since the exporter takes sizes of 1 for constant.
    inputs = reader.normalise(reader.example(2))
    with warnings.catch_warnings():
        # The exporter warns about its own internals.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(),
            (inputs,),
            input_names=[INPUTS],
            output_names=[output],
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    graph = program.model_proto
    # The exporter silently keeps the size of a batch that the network depends on.
    if not graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ValueError(
            "This network computes only batches of the size that it was exported "
            "with, so that no graph for any number of images can be made of it."
        )
    return graph
