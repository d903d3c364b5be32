"""PretrainedFeatureExtractor: images in, embeddings out."""

from numbers import Integral

from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils._param_validation import Interval, StrOptions

from sktransfer.backbones._load import load_backbone
from sktransfer.embedding._embed import embed
from sktransfer.embedding._mixin import SourceMixin, StagesReprMixin, Summary
from sktransfer.embedding._prefix import (
    POOLINGS,
    Prefix,
    resolve_cache,
    resolve_device,
    resolve_precision,
)
from sktransfer.inputs._validate import as_samples, check_samples


class PretrainedFeatureExtractor(
    StagesReprMixin,
    SourceMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Embed images with a pretrained network.

    The network is frozen: it runs in evaluation mode and nothing of it ever changes.
    The transformer is stateless, so `transform` works without `fit`.

    Parameters
    ----------
    backbone : str, callable, torch.nn.Module, Backbone or fitted estimator, \
            default="tiny"
        The network; see `load_backbone`. ``"tiny"`` is part of the package and needs
        no download.
    weights : str, enum member, path, (path, "sha256:...") or None, default="default"
        Its weights; see `load_backbone`. None are random ones.
    stage : int, str or None, default=None
        The stage whose output becomes the embedding: its name, or a number of
        leading stages. None is the last one.
    pooling : {"avg", "max", "avgmax", "none"}, default="avg"
        How the feature maps (or tokens) of a stage become one row. "avgmax" puts both
        after one another. "none" is for stages whose output is flat already.
    image_shape : tuple of int or None, default=None
        How to read the rows of a 2-D numeric `X`, as in `numpy.reshape`: ``(8, 8)``,
        ``(32, 32, 3)``, one -1 allowed. None infers a square grey or RGB image.
        Of numbers that are not uint8 or uint16, a row within [0, 1] is taken as it
        is, and any other is stretched between its own minimum and maximum.
    image_size : int or None, default=None
        Side in pixels of the square input of the network. None is the recipe of the
        weights; smaller is cheaper.
    on_error : {"raise", "nan"}, default="raise"
        What an image that cannot be read leads to: an error that names the row and
        file, or a row of NaN and one warning that lists all such rows.
    batch_size : int or None, default=None
        Images per forward pass. None chooses by the device. Every batch is filled up
        to this size, so that an image's embedding never depends on the others.
    device : str, default="auto"
        "cpu", "cuda", "cuda:1", "mps"; "auto" takes what is there.
    precision : {"float32", "bfloat16"}, default="float32"
        Of the computation; the result is float32. "bfloat16" is for hardware made for
        it, and refused elsewhere, where it would be slower.
    n_jobs : int or None, default=None
        Number of joblib workers among which the images are spread. None computes in
        this process, which uses all its cores, too; so does any number where this
        machine's GPU computes, which is one for all.
    cache : str, path, EmbeddingCache or None, default="auto"
        Where embeddings are kept by the content of the image, so that none is
        computed twice: "auto" in memory, shared by all estimators of the process; a
        folder, shared between processes and runs; None nowhere.
    random_state : int, RandomState instance or None, default=0
        Seed of the random initialisation when ``weights=None``.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    n_features_out_ : int
        Length of an embedding.
    n_features_in_ : int
        Number of columns of `X` seen in `fit`, where `X` was two-dimensional.
    feature_names_in_ : ndarray of str
        Names of the columns of `X` seen in `fit`, where it had any.

    See Also
    --------
    FineTuneClassifier : Trains the network, or its last stages, end to end.

    Notes
    -----
    An image is a path, a PIL image, an array or tensor (uint8, uint16 or float in
    [0, 1]) or encoded bytes; `X` is a list, array, series or one-column frame of
    those, a stack of shape (n, H, W) or (n, H, W, C), or a 2-D table of flattened
    images. EXIF orientation is applied, 16-bit grey is scaled by its range, and alpha
    is composed on white.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import PretrainedFeatureExtractor
    >>> X, y = load_digits(return_X_y=True)
    >>> PretrainedFeatureExtractor().fit_transform(X[:20]).shape
    (20, 384)
    """

    # What is resolved where it is used, with errors of its own.
    _parameter_constraints: dict = {
        "backbone": "no_validation",
        "weights": "no_validation",
        "device": "no_validation",
        "cache": "no_validation",
        "stage": [str, Integral, None],
        "pooling": [StrOptions(set(POOLINGS))],
        "image_shape": [list, tuple, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "on_error": [StrOptions({"raise", "nan"})],
        "batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "precision": [StrOptions({"float32", "bfloat16"})],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backbone="tiny",
        *,
        weights="default",
        stage=None,
        pooling="avg",
        image_shape=None,
        image_size=None,
        on_error="raise",
        batch_size=None,
        device="auto",
        precision="float32",
        n_jobs=None,
        cache="auto",
        random_state=0,
        verbose=0,
    ):
        self.backbone = backbone
        self.weights = weights
        self.stage = stage
        self.pooling = pooling
        self.image_shape = image_shape
        self.image_size = image_size
        self.on_error = on_error
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.n_jobs = n_jobs
        self.cache = cache
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Load the network and check that it can embed `X`.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            None of them is decoded.
        y : ignored
            Not used; present for the API's sake.

        Returns
        -------
        PretrainedFeatureExtractor
            This estimator.
        """
        self._loaded = None
        prefix = self._prefix()
        check_samples(self, X, reader=prefix.backbone.reader, reset=True)
        resolve_cache(self.cache)
        self._loaded = (self._specification(), prefix.backbone, prefix.depth)
        self.n_features_out_ = prefix.shape[0]
        return self

    def transform(self, X):
        """Embed images.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to embed.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out), float32
            The embedding of each image.

        Raises
        ------
        ValueError
            If an image cannot be read and ``on_error="raise"``: names row and file.
        """
        self._validate_params()
        prefix = self._prefix()
        reader = prefix.backbone.reader
        checked = check_samples(self, X, reader=reader, reset=False)
        (embeddings,) = embed(
            as_samples(reader, checked, self.image_shape),
            [prefix],
            cache=resolve_cache(self.cache),
            n_jobs=self.n_jobs,
            on_error=self.on_error,
            verbose=self.verbose,
        )
        return embeddings

    def _specification(self):
        return self.backbone, self.weights, self.image_size, self.random_state

    def _load(self):
        """The backbone of the present parameters: that of `fit`, if they are those."""
        loaded = getattr(self, "_loaded", None)
        if loaded is not None and _same(loaded[0], self._specification()):
            return loaded[1]
        return load_backbone(
            self.backbone,
            weights=self.weights,
            image_size=self.image_size,
            random_state=self.random_state,
        )

    def _prefix(self) -> Prefix:
        backbone = self._load()
        device = resolve_device(self.device)
        prefix = Prefix(
            backbone,
            backbone.depth(self.stage),
            self.pooling,
            self.batch_size,
            device,
            resolve_precision(self.precision, device),
        )
        if len(prefix.shape) != 1 or not prefix.depth:
            raise ValueError(
                f"stage={self.stage!r} of backbone {backbone.name!r} puts out features "
                f"of shape {prefix.shape}, which pooling={self.pooling!r} leaves as "
                "they are. Choose pooling='avg', 'max' or 'avgmax', or a later stage."
            )
        return prefix

    @property
    def _n_features_out(self):
        return self.n_features_out_

    def _summary(self):
        if not hasattr(self, "n_features_out_"):
            return None
        _, backbone, depth = self._loaded
        return Summary(backbone, depth, 0, depth, self.n_features_out_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def _same(one, other) -> bool:
    return all(
        a is b or (type(a) is type(b) and isinstance(a, str | int | tuple) and a == b)
        for a, b in zip(one, other, strict=True)
    )
