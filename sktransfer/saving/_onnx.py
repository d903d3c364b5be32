"""export_onnx: a fitted model with its preprocessing as an ONNX graph."""

import json
import warnings

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
from sktransfer.saving._onnx_steps import (
    Affine,
    classes_of,
    predictor,
    refusal,
    steps_of,
    transformer,
)

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
    estimator : estimator
        The fitted estimator to export: a `PretrainedFeatureExtractor`,
        `FineTuneClassifier` or `FineTuneRegressor`; a pipeline of an extractor, scalers
        and a linear model of scikit-learn; or a search over one of these, whose best
        estimator is exported.
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
        For a pipeline, the error names the step that cannot be exported.

    Notes
    -----
    The input is ``images``, an array of dtype uint8 and shape (n, height, width, 3),
    which contains RGB images that are upright and have no alpha channel. The sizes n,
    height and width can be chosen freely. The output is a float32 array: the
    ``embeddings`` (n, n_features) of an extractor, the ``probabilities``
    (n, n_classes) of a classifier, the ``scores`` (n, n_classes) of one that has no
    probabilities, such as `LinearSVC`, or the ``values`` (n, n_outputs) of a regressor.
    The column of the largest probability or score is that of the predicted class, also
    if there are two classes. The metadata of the file contain ``classes`` (JSON),
    ``recipe`` (JSON) and the version of this package.

    Of a pipeline, the steps that select features or are one of `StandardScaler`,
    `MinMaxScaler`, `MaxAbsScaler`, `RobustScaler`, `Normalizer`, `PCA` and
    `TruncatedSVD`, and the linear models for one target or several values, become
    layers of the graph.

    The graph resizes with antialiasing as Pillow does, up to rounding: pixel values
    differ by one level of 255, and occasionally by two. The differences are larger at
    sharp edges of images that are more than twice as high as wide, whose height Pillow
    resizes first since version 13. The graph resizes in one step, as with
    ``decoding="exact"``; a model with ``decoding="fast"`` is exported with a warning.

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
    if reader.decoding != "exact":
        warnings.warn(
            "The graph resizes images in one step, as decoding='exact' does, but this "
            f"model has decoding={reader.decoding!r}: for large images, its outputs "
            "may differ by some thousandths. Fit it with decoding='exact' for a graph "
            "that agrees up to rounding.",
            UserWarning,
            stacklevel=2,
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
    steps = steps_of(estimator, type(estimator).__name__)
    (name, first), *rest = steps
    # A BackboneSelector has fitted an extractor.
    first = getattr(first, "extractor_", first)
    if not isinstance(first, PretrainedFeatureExtractor | BaseFineTune):
        raise refusal(name, first)
    check_is_fitted(first)
    network, reader, output, properties = _own_part(first)
    for number, (name, step) in enumerate(rest, 2):
        if number == len(steps) and hasattr(step, "predict"):
            module, output, properties = predictor(name, step)
        else:
            module = transformer(name, step)
        network.append(module)
    properties |= {"estimator": type(steps[-1][1]).__name__}
    return network, reader, output, properties


def _own_part(estimator):
    """Return what `_parts_of` does, for an estimator of this package."""
    if isinstance(estimator, PretrainedFeatureExtractor):
        prefix = estimator._prefix()
        embedding = nn.Sequential(_Embedding(prefix))
        return embedding, prefix.backbone.reader, "embeddings", {}
    backbone = estimator.backbone_
    # The whole network up to the head, as in predict.
    embedding = _Embedding(Prefix(backbone, len(backbone.stages), "avg"))
    if hasattr(estimator, "classes_"):
        kind = nn.Sigmoid() if estimator.multilabel_ else nn.Softmax(dim=1)
        output, properties = "probabilities", classes_of(estimator)
    else:
        kind = Affine(estimator.target_mean_, estimator.target_scale_)
        output, properties = "values", {}
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
