"""BackboneSelector: a transformer that chooses the backbone during fit."""

from numbers import Integral, Real

from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sktransfer._tables import Table
from sktransfer.backbones._load import kind_of
from sktransfer.choosing._candidates import check_for, listed, make_candidates
from sktransfer.choosing._ranking import rank, resolve_scoring
from sktransfer.embedding._mixin import set_input_tags
from sktransfer.embedding._prefix import resolve_cache
from sktransfer.embedding._tasks import CallbackSupportMixin, Task
from sktransfer.embedding._tensors import gives_tensors
from sktransfer.inputs._images import ImageReader

_SHARED = (
    "image_shape",
    "image_size",
    "max_length",
    "sampling_rate",
    "decoding",
    "device",
    "precision",
    "cache",
    "random_state",
)


class BackboneSelector(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    BaseEstimator,
):
    """Embed samples with the backbone whose embeddings suit the targets best.

    The choice is made in `fit`, from the training data alone. The cross-validated score
    of a pipeline that contains a selector is therefore not biased by the choice.

    Parameters
    ----------
    candidates : list, default=("tiny",)
        The candidates. Each is a name, anything else that the ``backbone`` parameter of
        `PretrainedFeatureExtractor` accepts, or such an extractor, which may have its
        own weights, stage and size. To pass the network of a fitted
        `FineTuneClassifier`, use its ``backbone_``. Since the samples are read once for
        all candidates, the ``image_shape`` of an extractor must be None or equal to
        `image_shape`.
    scoring : str, callable or list of these, default="logme"
        The scores to choose by, as in `rank_backbones`. If there are several, the
        candidate with the best mean rank is chosen.
    stages : "all", list of str or None, default=None
        The stages of each backbone to choose from. If None, only the last stage is a
        candidate. Among stages with the same embeddings, only the last is a candidate.
        "all" are whole stages; a list may name blocks, such as "layer4.1", as well.
    image_shape, image_size, max_length, sampling_rate, decoding : optional
        The parameters of the same name of `PretrainedFeatureExtractor`.
    device, precision, cache, random_state : optional
        The parameters of the same name of `PretrainedFeatureExtractor`.
    verbose : int, default=0
        The verbosity level. If 1, a progress bar is shown.

    Attributes
    ----------
    ranking_ : Table
        The table that `rank_backbones` returns, without the columns of the probe and
        the costs.
    best_backbone_ : Backbone
        The chosen backbone.
    best_stage_ : str
        The name of the chosen stage.
    extractor_ : PretrainedFeatureExtractor
        The fitted extractor of the chosen stage. If the candidate was an extractor, it
        has the other parameters of that extractor, except for `cache` and
        `image_shape`, which are those of the selector.
    n_features_in_ : int
        Number of columns of `X` seen during `fit`. Defined only when `X` is
        two-dimensional.
    feature_names_in_ : ndarray of str
        Names of the columns of `X` seen during `fit`. Defined only when `X` has column
        names.

    See Also
    --------
    rank_backbones : Ranks backbones without choosing one, with more columns.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import BackboneSelector
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> selector = BackboneSelector(["tiny"], stages=["layer2", "layer4"])
    >>> len(selector.fit(X[:90], y[:90]).ranking_)
    2
    """

    # What is not validated here is resolved where it is used, with errors of its own.
    _parameter_constraints: dict = {
        "candidates": "no_validation",
        "scoring": [str, callable, list, tuple],
        "stages": [StrOptions({"all"}), list, tuple, None],
        "image_shape": [list, tuple, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), None],
        "max_length": [Interval(Real, 0, None, closed="neither"), None],
        "sampling_rate": [Interval(Integral, 1, None, closed="left"), None],
        "decoding": [StrOptions(set(ImageReader.decodings))],
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
        max_length=None,
        sampling_rate=None,
        decoding="exact",
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
        self.max_length = max_length
        self.sampling_rate = sampling_rate
        self.decoding = decoding
        self.device = device
        self.precision = precision
        self.cache = cache
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y):
        """Rank the candidates and choose the best.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples of the task.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The class labels, the indicator matrix of a multilabel task, or the real
            values to regress on.

        Returns
        -------
        BackboneSelector
            The fitted selector.
        """
        with Task.of(self, "fit", 1, X=X, y=y) as task:
            return self._fit(X, y, task)

    def _fit(self, X, y, task):
        given = listed("candidates", self.candidates, (list, tuple))
        shared = {name: getattr(self, name) for name in _SHARED}
        candidates = make_candidates(given, shared, self.stages)
        _, samples, y = check_for(candidates, self, X, y)
        scores = resolve_scoring(self.scoring, y)
        cache = resolve_cache(self.cache)
        results = rank(samples, y, candidates, scores, cache, self.verbose, task=task)
        self.ranking_ = Table(result.row for result in results)
        best = results[0]
        self.best_backbone_, self.best_stage_ = best.prefix.backbone, best.row["stage"]
        self.extractor_ = self._extractor(best.candidate.extractor).fit(X)
        return self

    def _extractor(self, candidate):
        """Make an extractor of the chosen stage, otherwise like the candidate."""
        chosen = {
            # The chosen backbone already has its weights and its size.
            "backbone": self.best_backbone_,
            "weights": "default",
            "image_size": None,
            "max_length": None,
            "sampling_rate": None,
            "decoding": "exact",
            "stage": self.best_stage_,
            "image_shape": self.image_shape,
            # This is where the ranking has stored the embeddings.
            "cache": self.cache,
        }
        # clone would copy the network of the candidate, only for it to be replaced.
        return type(candidate)(**candidate.get_params(deep=False) | chosen)

    def transform(self, X):
        """Embed samples with the chosen backbone.

        Parameters
        ----------
        X : sequence of samples, or array-like of shape (n_samples, n_pixels)
            The samples to embed.

        Returns
        -------
        ndarray or Tensor of shape (n_samples, n_features), float32
            The embedding of each sample; a tensor where that of a
            `PretrainedFeatureExtractor` would be.
        """
        check_is_fitted(self)
        return self.extractor_._embed(X, gives_tensors(self, X))

    @property
    def _n_features_out(self):
        return self.extractor_.n_features_out_

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        # All candidates read the same samples, so the first one tells their kind.
        first = next(iter(self.candidates), "tiny")
        set_input_tags(tags.input_tags, kind_of(first))
        tags.transformer_tags.preserves_dtype = []
        return tags
