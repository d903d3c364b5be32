"""BackboneSelector: the choice of a backbone as a part of the model."""

from numbers import Integral

from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sktransfer._tables import Table
from sktransfer.choosing._candidates import listed, make_candidates, reader_of
from sktransfer.choosing._ranking import rank, resolve_scoring
from sktransfer.embedding._prefix import resolve_cache
from sktransfer.inputs._validate import as_samples, check_samples

_SHARED = (
    "image_shape",
    "image_size",
    "device",
    "precision",
    "cache",
    "random_state",
)


class BackboneSelector(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator
):
    """Embed images with the backbone whose embeddings suit the targets best.

    The choice is made in `fit`, from the training part alone: so cross-validation of
    a pipeline that holds a selector is honest about having chosen.

    Parameters
    ----------
    candidates : list, default=("tiny",)
        Each a name or any other ``backbone=`` of `PretrainedFeatureExtractor`, or
        such an extractor, which may have weights, a stage and a size of its own.
        (Of a fitted `FineTuneClassifier`, pass its ``backbone_``.) The images are read
        once for all: its ``image_shape`` is None, or `image_shape`.
    scoring : str, callable or list of these, default="logme"
        See `rank_backbones`; of several, the best mean rank decides.
    stages : "all", list of str or None, default=None
        The stages to choose from; None is the last one of each backbone. Of those
        whose embeddings are the same, the last is one to choose.
    image_shape, image_size, device, precision, cache, random_state : optional
        As in `PretrainedFeatureExtractor`.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    ranking_ : Table
        As `rank_backbones` returns it, without the probe.
    best_backbone_ : Backbone
        The one that was chosen.
    best_stage_ : str
        The stage of it that was chosen.
    extractor_ : PretrainedFeatureExtractor
        What embeds with it. Where an extractor was the candidate, all else is as in
        it, but for the cache, which is that of the selector.
    n_features_in_ : int
        Number of columns of `X` seen in `fit`, where `X` was two-dimensional.
    feature_names_in_ : ndarray of str
        Names of the columns of `X` seen in `fit`, where it had any.

    See Also
    --------
    rank_backbones : The table alone, with more columns.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import BackboneSelector
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> selector = BackboneSelector(["tiny"], stages=["layer2", "layer4"])
    >>> len(selector.fit(X[:90], y[:90]).ranking_)
    2
    """

    # What is resolved where it is used, with errors of its own.
    _parameter_constraints: dict = {
        "candidates": "no_validation",
        "scoring": [str, callable, list, tuple],
        "stages": [StrOptions({"all"}), list, tuple, None],
        "image_shape": [list, tuple, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "device": "no_validation",
        "precision": [StrOptions({"float32", "bfloat16"})],
        "cache": "no_validation",
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        candidates=("tiny",),
        scoring="logme",
        *,
        stages=None,
        image_shape=None,
        image_size=None,
        device="auto",
        precision="float32",
        cache="auto",
        random_state=0,
        verbose=0,
    ):
        self.candidates = candidates
        self.scoring = scoring
        self.stages = stages
        self.image_shape = image_shape
        self.image_size = image_size
        self.device = device
        self.precision = precision
        self.cache = cache
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y):
        """Choose the backbone.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to choose by.
        y : array-like of shape (n_samples,)
            Labels, or numbers to regress on.

        Returns
        -------
        BackboneSelector
            This estimator.
        """
        given = listed("candidates", self.candidates, (list, tuple))
        shared = {name: getattr(self, name) for name in _SHARED}
        candidates = make_candidates(given, shared, self.stages)
        reader = reader_of(candidates)
        checked, y = check_samples(self, X, y, reader=reader, reset=True)
        samples = as_samples(reader, checked, self.image_shape)
        scores = resolve_scoring(self.scoring, y)
        cache = resolve_cache(self.cache)
        results = rank(samples, y, candidates, scores, cache, self.verbose)
        self.ranking_ = Table(result.row for result in results)
        best = results[0]
        self.best_backbone_, self.best_stage_ = best.prefix.backbone, best.row["stage"]
        self.extractor_ = self._extractor(best.candidate.extractor).fit(X)
        return self

    def _extractor(self, candidate):
        """Make an extractor of what was chosen, otherwise like the candidate."""
        chosen = {
            "backbone": self.best_backbone_,
            "weights": "default",
            "image_size": None,
            "stage": self.best_stage_,
            "image_shape": self.image_shape,
            # Where the ranking has put the embeddings.
            "cache": self.cache,
        }
        # No clone: that would copy the network of the candidate.
        return type(candidate)(**candidate.get_params(deep=False) | chosen)

    def transform(self, X):
        """Embed images with the backbone that was chosen.

        Parameters
        ----------
        X : sequence of images, or array-like of shape (n_samples, n_pixels)
            The images to embed.

        Returns
        -------
        ndarray of shape (n_samples, n_features), float32
            The embedding of each image.
        """
        check_is_fitted(self)
        return self.extractor_.transform(X)

    @property
    def _n_features_out(self):
        return self.extractor_.n_features_out_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = []
        return tags
