"""Whether transfer helps: a model and its baselines on the same folds."""

import numpy as np
from scipy.sparse import issparse
from scipy.stats import t as student_t
from sklearn.base import clone, is_classifier
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import check_cv, cross_validate
from sklearn.model_selection._search import BaseSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import type_of_target
from torch import nn
from tqdm.auto import tqdm

from sktransfer._tables import Table
from sktransfer.backbones._backbone import Backbone
from sktransfer.backbones._load import kind_of
from sktransfer.choosing._leaks import find_leaks, told
from sktransfer.choosing._ranking import linear_pipeline, linear_steps
from sktransfer.choosing._verdict import AS_GIVEN, SCRATCH, folds_told, judge
from sktransfer.embedding._duplicates import Copies
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.embedding._mixin import LOADING
from sktransfer.embedding._prefix import resolve_cache
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._classifier import FineTuneClassifier
from sktransfer.finetuning._parts import ends_of, find_source, is_within
from sktransfer.finetuning._regressor import FineTuneRegressor
from sktransfer.finetuning._skipping import unreadable
from sktransfer.inputs._reader import Reader
from sktransfer.inputs._validate import as_samples, check_samples

# The parameters of every estimator that determine its network and how it is run.
_SOURCE = (
    *(name for name in LOADING if name != "weights"),
    "image_shape",
    "device",
    "precision",
    "cache",
)
# Random weights are not worth preserving. So nothing may freeze them, slow down their
# training or pull them towards where they, or a teacher, are.
_TRAIN_ALL = {
    "weights": None,
    "freeze": 0,
    "train_only": "all",
    "backbone_lr_mult": 1.0,
    "layer_decay": 1.0,
    "l2_sp": 0.0,
    "unfreeze_every": 0,
    "teacher": None,
}


class TransferReport(Table):
    """The result of `transfer_report`: a table of models and a verdict.

    Parameters
    ----------
    rows : list of dict
        The rows of the table, one for each model.
    scores : dict of str to ndarray of shape (n_folds,)
        The test scores of each model, one for each fold.
    verdict : {"transfer helps", "no evidence", "negative transfer"}
        The conclusion from the confidence interval of the difference to the model
        from scratch. Two folds, or differences that are the same in all folds, give
        no evidence.
    explanation : str
        The verdict in a few sentences. If there is no evidence, they include the size
        below which a difference could not have been detected.
    leaks : list of dict
        The test samples that have a copy in the training set of their fold, as a table
        with one row for each of them and each such fold: the number of the ``fold``
        from 0, the rows of ``X`` of the ``test`` sample and of its most similar copy in
        the training set (``train``), whether it is an "exact" or a "near" ``copy``, and
        the ``similarity``; see `datasets.find_duplicates`.
    leaks_explanation : str
        The number of leaks in a sentence, and what to do about them.
    """

    def __init__(self, rows, scores, verdict, explanation, leaks, leaks_explanation):
        super().__init__(rows)
        self.scores = scores
        self.verdict = verdict
        self.explanation = explanation
        self.leaks = leaks
        self.leaks_explanation = leaks_explanation

    def __repr__(self):
        texts = super().__repr__(), self.explanation, self.leaks_explanation
        return "\n\n".join(texts)

    def _repr_html_(self):
        texts = self.explanation, self.leaks_explanation
        return super()._repr_html_() + "".join(f"<p>{text}</p>" for text in texts)


def transfer_report(
    estimator, X, y, cv=5, *, groups=None, scoring=None, n_jobs=None, verbose=0
):
    """Compare a model with the same network from scratch and with simpler models.

    All models are scored on the same folds:

    - "as given": the estimator;
    - "from scratch": the same network with random initial weights, all of which are
      trained at one learning rate. A search over the network, whether it is the whole
      estimator or a part of it, is replaced by the estimator that it searches, with
      that estimator's own parameters. In place of a pipeline with a
      `PretrainedFeatureExtractor` stands a `FineTuneClassifier` or
      `FineTuneRegressor` with the same network;
    - "linear probe": a linear model on the embeddings of the pretrained network;
    - "pixels", "TF-IDF" or "log-mel statistics": a linear model without a network, of
      the pixels of images at 32 x 32, of the words and pairs of words of texts, or of
      how loud sounds are in each of 40 bands (mean and standard deviation);
    - "guessing": the most frequent class, or the mean.

    Parameters
    ----------
    estimator : FineTuneClassifier, FineTuneRegressor, Pipeline or search
        The model to judge. A pipeline or search must contain exactly one of these
        estimators or one `PretrainedFeatureExtractor`, and must take `X` as it is.
    X : sequence of samples, or array-like of shape (n_samples, n_pixels)
        The samples of the task.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        The class labels, an indicator matrix of several labels, or the real values
        for a regressor.
    cv : int, cross-validation splitter or iterable, default=5
        The folds. At least two are required, and at least three for a verdict.
    groups : array-like of shape (n_samples,), optional
        The group labels of the samples, passed to the splitter.
    scoring : str or callable, optional
        A single score, as in scikit-learn, where greater is better. If None, the score
        is that of the search if `estimator` is or ends in one, otherwise the accuracy
        or R2. For several labels it is their mean "average_precision", since few
        samples have all labels right, and most labels of a sample are right if none is
        predicted.
    n_jobs : int or None, default=None
        The number of folds that are fitted in parallel.
    verbose : int, default=0
        The verbosity level. If 1, a progress bar is shown.

    Returns
    -------
    TransferReport
        A list of dict with one row per model. Its attributes are ``scores``,
        ``verdict``, ``explanation`` and ``leaks``, and its columns:

        - ``model``: the name of the model;
        - ``score`` and ``se``: the mean score over the folds and its standard error;
        - ``difference``: the mean score of the estimator as given minus that of this
          model, so that positive values favour the estimator;
        - ``low`` and ``high``: the 95 % confidence interval of ``difference``;
        - ``seconds``: the mean time to fit and score one fold;
        - ``trained``: the number of trained parameters.

    Raises
    ------
    ValueError
        If the estimator does not contain exactly one pretrained network, `scoring`
        gives several scores, there are fewer than two folds, or the score is R2 and a
        fold has a single test sample.

    Notes
    -----
    The training sets of different folds overlap, so their scores are not independent.
    To correct for that, the interval widens the variance ``s^2`` of the ``k``
    differences [1]_: ``mean +- t(k - 1) * sqrt((1 / k + n_test / n_train) * s^2)``.

    The models are fitted in the order of the table, and ``seconds`` depends on it:
    embeddings that an earlier model has left in the cache are not computed again for
    a later one.

    Samples that cannot be read are left out of all folds, with a warning, if the
    network has ``on_error="skip"`` or ``"nan"``.

    Leaks are found by the digests of samples and by the embeddings of the linear probe,
    which are in the cache by then. With ``cache=None``, the samples are embedded once
    more.

    References
    ----------
    .. [1] Nadeau and Bengio, "Inference for the generalization error", Machine
       Learning 52, 2003.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktransfer import FineTuneClassifier, transfer_report
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> model = FineTuneClassifier(freeze="layer4", max_epochs=1, random_state=0)
    >>> report = transfer_report(model, X[:60], y[:60], cv=2)
    >>> [row["model"] for row in report]
    ['as given', 'from scratch', 'linear probe', 'pixels', 'guessing']
    """
    check_consistent_length(X, y)
    # np.asarray would wrap a sparse matrix in an array of one object.
    y = y.toarray() if issparse(y) else np.asarray(y)
    multilabel = type_of_target(y) == "multilabel-indicator"
    scoring = _one_scoring(estimator, scoring, multilabel)
    extractor = _extractor(find_source(estimator)[1])
    models = _models(estimator, multilabel)
    splitter = check_cv(cv, y, classifier=is_classifier(estimator))
    folds = list(splitter.split(X, y, groups))
    if len(folds) < 2:
        raise ValueError(
            f"Invalid cv={cv!r}, which makes {len(folds)} fold: expected at least two "
            "folds, to judge differences by. Nothing was fitted. Pass, for example, "
            "cv=5."
        )
    folds = _readable(folds, extractor, X)
    _check_that_r2_is_defined(estimator, scoring, folds)
    settings = {"cv": folds, "scoring": scoring, "n_jobs": n_jobs}
    settings |= {"return_estimator": True, "error_score": "raise"}
    found = {}
    for name, model in tqdm(models.items(), unit="model", disable=not verbose):
        found[name] = cross_validate(model, X, y, **settings)
        # Only its result shows that a callable returns a dict of scores.
        if "test_score" not in found[name]:
            several = f"scoring={scoring!r}, which gives several scores"
            raise ValueError(_not_one(several))
    scores = {name: result["test_score"] for name, result in found.items()}
    test_share = np.mean([len(test) / len(train) for train, test in folds])
    rows = [_row(name, found[name], scores[AS_GIVEN], test_share) for name in found]
    kind = kind_of(extractor.backbone)
    verdict = judge(rows, scores, folds_told(folds, kind))
    # After the models, which have computed most embeddings by now, so that the seconds
    # are what they are without this.
    leaks = find_leaks(Copies.of(extractor, X), folds)
    return TransferReport(rows, scores, *verdict, leaks, told(leaks, len(y), kind))


def corrected_interval(differences, test_share: float, level: float = 0.95) -> tuple:
    """Return the confidence interval of a mean over folds with overlapping training.

    `test_share` is the ratio of the number of test samples to training samples.
    """
    k = len(differences)
    deviation = np.sqrt((1 / k + test_share) * np.var(differences, ddof=1))
    reach = student_t.ppf((1 + level) / 2, k - 1) * deviation
    return float(np.mean(differences) - reach), float(np.mean(differences) + reach)


def _one_scoring(estimator, scoring, multilabel):
    """Return the score to compare models by; None is that of the estimators."""
    if scoring is None:
        scoring = _own_scoring(estimator)
    if scoring is None and multilabel and is_classifier(estimator):
        return "average_precision"
    if scoring is None or isinstance(scoring, str) or callable(scoring):
        return scoring
    raise ValueError(_not_one(f"scoring={scoring!r}"))


def _own_scoring(estimator):
    """Return the scoring that a search inside an estimator has, or None."""
    for end in ends_of(estimator):
        scoring = end.scoring if isinstance(end, BaseSearchCV) else None
        if isinstance(scoring, list | tuple | dict | set) and isinstance(
            end.refit, str
        ):
            # Of several scores, this one chooses the best candidate.
            return scoring[end.refit] if isinstance(scoring, dict) else end.refit
        if scoring is not None:
            return scoring
    return None


def _not_one(found: str) -> str:
    return (
        f"Invalid {found}: expected the name of a score, a callable "
        "(estimator, X, y) -> float, or None. No report was made. Pass several scores "
        "one after the other, such as scoring='balanced_accuracy'."
    )


def _check_that_r2_is_defined(estimator, scoring, folds) -> None:
    is_r2 = scoring == "r2" or getattr(scoring, "_score_func", None) is r2_score
    if not is_r2 and (scoring is not None or is_classifier(estimator)):
        return
    for number, (_, test) in enumerate(folds, start=1):
        if len(test) < 2:
            raise ValueError(
                f"Fold {number} of {len(folds)} has {len(test)} test sample, and R2 is "
                "defined for two or more. Nothing was fitted. Pass fewer folds, such "
                "as cv=5, or scoring='neg_mean_absolute_error'."
            )


def _readable(folds, extractor, X) -> list:
    """Leave out of the folds what cannot be read, unless that is an error."""
    if extractor.on_error == "raise":
        return folds
    prefix = extractor._prefix()
    reader = prefix.backbone.reader
    checked = check_samples(extractor, X, reader=reader, reset=False)
    samples = as_samples(reader, checked, extractor.image_shape)
    cache = resolve_cache(extractor.cache)
    refusals = unreadable(samples, range(len(samples)), prefix, cache)
    refusals.warn_of_refused("they were left out of all folds with their targets")
    left_out = list(refusals.rows)
    return [
        tuple(rows[~np.isin(rows, left_out)] for rows in map(np.asarray, fold))
        for fold in folds
    ]


def _extractor(source) -> PretrainedFeatureExtractor:
    """Return an extractor of the embeddings that a network begins with."""
    shared = {key: getattr(source, key) for key in _SOURCE}
    on_error = "raise" if source.on_error == "raise" else "nan"
    return PretrainedFeatureExtractor(
        **shared, weights=source.weights, on_error=on_error
    )


def _models(estimator, multilabel=False) -> dict:
    """Return the models to compare, by name."""
    classes = is_classifier(estimator)
    name, source = find_source(estimator)
    shared = {key: getattr(source, key) for key in _SOURCE}
    extractor = _extractor(source)
    if isinstance(source, BaseFineTune):
        # A regressor has no teacher, for example.
        known, prefix = source.get_params(), f"{name}__" if name else ""
        changes = {f"{prefix}{key}": v for key, v in _TRAIN_ALL.items() if key in known}
        scratch = _unsearched(clone(estimator).set_params(**changes), name)
    else:
        tuner = FineTuneClassifier if classes else FineTuneRegressor
        scratch = tuner(**shared, weights=None, backbone_lr_mult=1.0, random_state=0)
    probe = linear_pipeline(extractor, *linear_steps(classes), multilabel=multilabel)
    return {
        AS_GIVEN: estimator,
        SCRATCH: scratch,
        "linear probe": probe,
        **_plain_models(extractor, classes, multilabel),
        "guessing": DummyClassifier() if classes else DummyRegressor(),
    }


def _plain_models(extractor, classes, multilabel) -> dict:
    """Return the linear model that needs no network, by the name of its features."""
    plain = extractor._prefix().backbone.reader.plain()
    if plain is None:
        return {}
    name, features = plain
    if not isinstance(features, Reader):
        # The weights of words have a scale of their own.
        linear = LogisticRegression(max_iter=1000) if classes else Ridge()
        return {name: linear_pipeline(features, linear, multilabel=multilabel)}
    values = _plain_values(extractor, name, features)
    return {
        name: linear_pipeline(values, *linear_steps(classes), multilabel=multilabel)
    }


def _plain_values(extractor, name, reader) -> PretrainedFeatureExtractor:
    """Make an extractor of the values that a network would be given."""
    backbone = Backbone(nn.Sequential(nn.Flatten()), reader, name=name)
    shared = {"image_shape": extractor.image_shape, "cache": extractor.cache}
    return PretrainedFeatureExtractor(backbone, **shared)


def _unsearched(estimator, name):
    """Replace each search around the part of that name by what it searches.

    Such a search would set the freeze depth again, and so freeze random stages. A
    search elsewhere in the estimator stays: without it, the model from scratch would
    be at a disadvantage.
    """
    parts = {"": estimator, **estimator.get_params(deep=True)}
    around = [
        outer
        for outer, part in parts.items()
        if isinstance(part, BaseSearchCV) and is_within(name, outer)
    ]
    # Inner searches are replaced first, since replacing an outer one changes the names
    # of its parts.
    for outer in sorted(around, key=len, reverse=True):
        if not outer:
            return estimator.estimator
        estimator.set_params(**{outer: parts[outer].estimator})
    return estimator


def _row(name, found, given_scores, test_share) -> dict:
    scores = found["test_score"]
    differences = given_scores - scores
    low, high = corrected_interval(differences, test_share)
    compared = {"difference": float(differences.mean()), "low": low, "high": high}
    if name == AS_GIVEN:
        compared = dict.fromkeys(compared)
    return {
        "model": name,
        "score": float(scores.mean()),
        "se": float(scores.std(ddof=1) / np.sqrt(len(scores))),
        **compared,
        "seconds": float((found["fit_time"] + found["score_time"]).mean()),
        "trained": _n_trained(found["estimator"][0]),
    }


def _n_trained(fitted) -> int | None:
    """Return the number of parameters that a fit has trained, or None if unknown."""
    *_, fitted = ends_of(fitted)
    if isinstance(fitted, BaseFineTune):
        return fitted.n_trained_parameters_
    if isinstance(fitted, OneVsRestClassifier):
        return sum(_n_trained(one) or 0 for one in fitted.estimators_)
    if hasattr(fitted, "coef_"):
        return int(np.size(fitted.coef_) + np.size(fitted.intercept_))
    return 0 if isinstance(fitted, DummyClassifier | DummyRegressor) else None
