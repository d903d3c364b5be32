"""PretrainedFeatureExtractor: a transformer from samples to embeddings."""

from numbers import Integral, Real

from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils._param_validation import Interval, StrOptions

from sktransfer.embedding._embed import embed
from sktransfer.embedding._mixin import LOADING, SourceMixin, StagesReprMixin, Summary
from sktransfer.embedding._prefix import (
    POOLINGS,
    Prefix,
    resolve_cache,
    resolve_device,
    resolve_precision,
)
from sktransfer.embedding._reading import advising
from sktransfer.embedding._tasks import (
    CallbackSupportMixin,
    Task,
    is_watched,
    with_callbacks,
)
from sktransfer.embedding._tensors import gives_tensors
from sktransfer.inputs._images import ImageReader
from sktransfer.inputs._validate import as_samples, check_samples


class PretrainedFeatureExtractor(
    CallbackSupportMixin,
    StagesReprMixin,
    SourceMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Embed images, texts or sounds with a pretrained network.

    The kind of the samples is that of the network. It is frozen: it runs in evaluation
    mode and is never changed. The transformer is stateless, so `transform` can be
    called without `fit`.

    Parameters
    ----------
    backbone : str, callable, torch.nn.Module, Backbone or fitted estimator, \
            default="tiny"
        The pretrained network; see `load_backbone` for the accepted values.
        ``"tiny"`` is included in the package and needs no download.
    weights : str, enum member, path, (path, "sha256:...") or None, default="default"
        The weights of the network; see `load_backbone` for the accepted values. If
        None, the network is initialised randomly.
    stage : int, str or None, default=None
        The stage whose output is the embedding, given by its name or as the number
        of leading stages to run. If None, the last stage is used. "layer4.1" stands
        for the second block of a stage that has blocks (`Backbone.block_names`).
    pooling : {"avg", "max", "avgmax", "none"}, default="avg"
        How the feature maps (or tokens) of a stage are reduced to one vector per
        sample. "avgmax" concatenates the average and the maximum. "none" requires a
        stage whose output is already flat.
    image_shape : tuple of int or None, default=None
        For images: the shape of the image in each row of a 2-D numeric `X`, as in
        `numpy.reshape`: ``(8, 8)``, ``(32, 32, 3)``; one dimension may be -1. If None,
        a square grey or RGB image is inferred. If the numbers are neither uint8 nor
        uint16, a row within [0, 1] is used unchanged, and any other row is scaled by
        its own minimum and maximum.
    image_size : int or None, default=None
        For images: the side length in pixels of the square input of the network.
        Smaller images are cheaper to compute. If None, the size that the weights were
        trained for is used.
    max_length : int, float or None, default=None
        The length at which samples are cut: of texts in tokens, of sounds in seconds.
        Shorter samples are cheaper. If None, it is the length that the weights were
        trained for.
    sampling_rate : int or None, default=None
        The number of values per second of sounds that are arrays without a rate.
        Files, and pairs ``(rate, array)``, have their own.
    decoding : {"exact", "fast"}, default="exact"
        For images: how photographs larger than the input are decoded and resized.
        "exact" decodes and resizes all their pixels. "fast" lets the decoder of a JPEG
        leave out details as long as three times the size of the input is left: a file
        of 12 megapixels takes less than half of the time, and embeddings move by a
        cosine distance of less than 1e-3. Other large files, and images that are
        decoded already, are only resized in two steps, which saves less and moves them
        as much. Use one value, and one form of images, in training and prediction.
    on_error : {"raise", "nan"}, default="raise"
        What to do with a sample that cannot be read. "raise" raises an error that names
        the row and the file; "nan" returns a row of NaN and issues a single warning
        that lists all such rows.
    batch_size : int or None, default=None
        The batch size used in `transform`. Every batch is padded to this size, so that
        the embedding of a sample never depends on the other samples. If None, it is
        chosen according to the device.
    device : str, default="auto"
        The device used for computation: "cpu", "cuda", "cuda:1" or "mps". "auto"
        uses a GPU if one is available.
    precision : {"float32", "bfloat16"}, default="float32"
        The precision used for computation; the embeddings are float32 in both cases.
        "bfloat16" needs hardware that supports it and is refused on any other, where
        it would be slower.
    n_jobs : int or None, default=None
        The number of joblib workers that the samples are distributed over. None
        computes in this process, which already uses all its cores. The parameter is
        ignored if the samples are computed on a GPU of this machine, which the workers
        would have to share.
    cache : str, path, EmbeddingCache or None, default="auto"
        Where embeddings are stored under the content of their sample, so that none is
        computed twice. "auto" stores them in memory, shared by all estimators of this
        process; a folder is shared between processes and runs; None disables caching.
    random_state : int, RandomState instance or None, default=0
        Seeds the random initialisation if ``weights=None``.
    verbose : int, default=0
        Controls the verbosity: 1 shows a progress bar.

    Attributes
    ----------
    n_features_out_ : int
        The number of features of an embedding.
    n_features_in_ : int
        The number of columns of `X` seen during `fit`. Defined only if `X` was
        two-dimensional.
    feature_names_in_ : ndarray of str
        The names of the columns of `X` seen during `fit`. Defined only if `X` had
        column names.

    See Also
    --------
    FineTuneClassifier : Trains the network, or its last stages, end to end.

    Notes
    -----
    A text is given as a `str`, and a sound as a file, a pair ``(rate, array)``, or an
    array with `sampling_rate`. `X` is a list, array, series or one-column frame of
    them.

    An image is given as a file, a PIL image, or an array or tensor (uint8, uint16 or
    float in [0, 1]). `X` is a list, array, series or one-column frame of images, a
    stack of shape (n, H, W) or (n, H, W, C), or a 2-D table of flattened images. The
    EXIF orientation is applied, 16-bit grey images are scaled by their range, and
    transparent images are composed on white.

    A file is given as a path, as encoded bytes, as an object with a method
    ``read_bytes`` (such as `zipfile.Path`, or a path of universal_pathlib or
    cloudpathlib), as an open file, as a file of ``fsspec.open``, or as a dict of
    Hugging Face datasets, ``{"bytes": ..., "path": ...}``. An open file is read from
    its beginning, whatever its position, and the position is left as it was. It has to
    be seekable, as it is read more than once.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import PretrainedFeatureExtractor
    >>> X, y = load_digits(return_X_y=True)
    >>> PretrainedFeatureExtractor().fit_transform(X[:20]).shape
    (20, 384)
    """

    # Parameters without validation are resolved by functions that raise more helpful
    # errors, which name what is available.
    _parameter_constraints: dict = {
        "backbone": "no_validation",
        "weights": "no_validation",
        "device": "no_validation",
        "cache": "no_validation",
        "stage": [str, Integral, None],
        "pooling": [StrOptions(set(POOLINGS))],
        "image_shape": [list, tuple, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "max_length": [Interval(Real, 0, None, closed="neither"), None],
        "sampling_rate": [Interval(Integral, 1, None, closed="left"), None],
        "decoding": [StrOptions(set(ImageReader.decodings))],
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
        max_length=None,
        sampling_rate=None,
        decoding="exact",
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
        self.max_length = max_length
        self.sampling_rate = sampling_rate
        self.decoding = decoding
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
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to check. None of them is decoded.
        y : Ignored
            Not used, present here for API consistency by convention.

        Returns
        -------
        PretrainedFeatureExtractor
            The fitted estimator.
        """
        with Task.of(self, "fit", 0, X=X, y=y):
            return self._fit(X)

    @with_callbacks
    def fit_transform(self, X, y=None):
        """Load the network, check that it can embed `X`, and embed it.

        Callbacks of scikit-learn are told of the batches, which they are not told of
        by `transform`.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to embed.
        y : Ignored
            Not used, present here for API consistency by convention.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out), float32
            The embedding of each sample, as `transform` returns it.
        """
        if not is_watched(self):
            return super().fit_transform(X, y)
        self._validate_params()
        with Task.of(self, "fit", 1, X=X, y=y) as task:
            self._fit(X)
            return self._embed(X, gives_tensors(self, X), task)

    def _fit(self, X):
        # Fitting again loads the network again: the module or the weights file may
        # have changed although the parameters are the same.
        self._loaded = None
        prefix = self._prefix()
        check_samples(self, X, reader=prefix.backbone.reader, reset=True)
        resolve_cache(self.cache)
        self._loaded = (self._specification(), prefix.backbone, prefix.depth)
        self.n_features_out_ = prefix.shape[0]
        return self

    def transform(self, X):
        """Compute the embeddings of samples.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to embed.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features_out), float32
            The embedding of each sample. It is a tensor on the device that computed it
            after ``set_output(transform="torch")``, or if `X` is a tensor and
            ``sklearn.set_config(array_api_dispatch=True)`` is set.

        Raises
        ------
        ValueError
            If a sample cannot be read and ``on_error="raise"``. The message names the
            row and the file.
        """
        return self._embed(X, gives_tensors(self, X))

    def _embed(self, X, on_device: bool, task: Task | None = None):
        # `fit`, which validates the parameters otherwise, may not have been called.
        self._validate_params()
        prefix = self._prefix()
        reader = prefix.backbone.reader
        checked = check_samples(self, X, reader=reader, reset=False)
        with advising("on_error='nan' gives a row of NaN for it."):
            (embeddings,) = embed(
                as_samples(reader, checked, self.image_shape),
                [prefix],
                cache=resolve_cache(self.cache),
                n_jobs=self.n_jobs,
                on_error=self.on_error,
                on_device=on_device,
                task=task,
                verbose=self.verbose,
            )
        return embeddings

    def _specification(self):
        return [getattr(self, name) for name in (*LOADING, "random_state")]

    def _load(self):
        """Return the backbone, loaded again if the parameters changed since `fit`."""
        loaded = getattr(self, "_loaded", None)
        if loaded is not None and _same(loaded[0], self._specification()):
            return loaded[1]
        return self._load_backbone(self.random_state)

    def _prefix(self) -> Prefix:
        backbone = self._load().cut(self.stage)
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
                f"Invalid stage={self.stage!r} with pooling={self.pooling!r}: expected "
                f"one vector per sample, but this stage of backbone {backbone.name!r} "
                f"has outputs of shape {prefix.shape}. Choose pooling='avg', 'max' or "
                "'avgmax', or a later stage."
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
        # Embeddings are float32, whatever the dtype of `X`.
        tags.transformer_tags.preserves_dtype = []
        return tags


def _same(one, other) -> bool:
    # Only plain values are compared with ==: modules and arrays must be identical, as
    # comparing their contents would be costly or would not yield a bool.
    return all(
        a is b or (type(a) is type(b) and isinstance(a, str | int | tuple) and a == b)
        for a, b in zip(one, other, strict=True)
    )
