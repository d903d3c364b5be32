"""Does transfer help? A model beside its baselines, on the same folds."""

from collections import OrderedDict

import numpy as np
from scipy.stats import t as student_t
from sklearn.base import clone, is_classifier
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.model_selection import check_cv, cross_validate
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import check_consistent_length
from torch import nn
from tqdm.auto import tqdm

from sktransfer._backbones import Backbone, Recipe
from sktransfer._classifier import FineTuneClassifier
from sktransfer._extractor import PretrainedFeatureExtractor
from sktransfer._finetune import BaseFineTune
from sktransfer._ranking import linear_steps
from sktransfer._regressor import FineTuneRegressor
from sktransfer._sources import find_source
from sktransfer._tables import Table

AS_GIVEN, SCRATCH = "as given", "from scratch"
_PIXELS_SIDE = 32
# What says where a network comes from and how it is run, in every estimator.
_SOURCE = ("backbone", "image_shape", "image_size", "device", "precision", "cache")
# Nothing of a network that starts from scratch is to be kept, or kept slow.
_TRAIN_ALL = {
    "weights": None,
    "freeze": 0,
    "backbone_lr_mult": 1.0,
    "layer_decay": 1.0,
    "l2_sp": 0.0,
    "unfreeze_every": 0,
    "teacher": None,
}


class TransferReport(Table):
    """What `transfer_report` has found: a table of models, and a verdict.

    Attributes
    ----------
    scores : dict of str to ndarray of shape (n_folds,)
        Test score of each model in each fold.
    verdict : {"transfer helps", "no evidence", "negative transfer"}
        By the interval of the difference to the model from scratch.
    explanation : str
        The verdict in a sentence or two.
    """

    def __init__(self, rows, scores, verdict, explanation):
        super().__init__(rows)
        self.scores = scores
        self.verdict = verdict
        self.explanation = explanation

    def __repr__(self):
        return f"{super().__repr__()}\n\n{self.explanation}"

    def _repr_html_(self):
        return f"{super()._repr_html_()}<p>{self.explanation}</p>"


def transfer_report(
    estimator, X, y, cv=5, *, groups=None, scoring=None, n_jobs=None, verbose=0
):
    """Compare a model with the same network from scratch, and simpler models.

    All are scored on the same folds:

    - "as given": the estimator;
    - "from scratch": the same network from random weights, all of it trained, at one
      learning rate. Of a search of it, be it the whole or a part of the estimator,
      that is what it searches, at parameters of its own;
      of a pipeline with a `PretrainedFeatureExtractor`, that is a
      `FineTuneClassifier` or `FineTuneRegressor` of its network;
    - "linear probe": a linear model of the pretrained network's embeddings;
    - "pixels": a linear model of the pixels, at 32 x 32;
    - "guessing": the most frequent class, or the mean.

    Parameters
    ----------
    estimator : FineTuneClassifier, FineTuneRegressor, Pipeline or search
        Of a pipeline or a search, one part has to be one of these, or a
        `PretrainedFeatureExtractor`, and `X` has to be images.
    X : sequence of images, or array-like of shape (n_samples, n_pixels)
    y : array-like of shape (n_samples,)
        Labels, or numbers for a regressor.
    cv : int, splitter or iterable, default=5
        Folds, at least two.
    groups : array-like of shape (n_samples,), optional
        For splitters that keep groups of images together.
    scoring : str or callable, optional
        As in scikit-learn, greater being better; None is accuracy, or R2.
    n_jobs : int or None, default=None
        Number of folds that are fitted at the same time.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    TransferReport
        A list of dict, a row for each model: ``model``, ``score`` (mean over the
        folds) and its standard error ``se``, ``difference`` (of the estimator as
        given to this model; positive is in its favour) with its 95 % interval from
        ``low`` to ``high``, ``seconds`` to fit and score a fold, and ``trained``, the
        number of trained parameters. Attributes: ``scores``, ``verdict`` and
        ``explanation``.

    Raises
    ------
    ValueError
        If the estimator holds no pretrained network or several, or there are fewer
        than two folds.

    Notes
    -----
    Training sets of folds overlap, so that their scores are not independent. The
    interval widens the variance ``s^2`` of the ``k`` differences for that [1]_:
    ``mean +- t(k - 1) * sqrt((1 / k + n_test / n_train) * s^2)``.

    ``seconds`` are what the fits took in this order. Embeddings that an earlier model
    has left in the cache are not computed again for a later one.

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
    y = np.asarray(y)
    models = _models(estimator)
    splitter = check_cv(cv, y, classifier=is_classifier(estimator))
    folds = list(splitter.split(X, y, groups))
    if len(folds) < 2:
        raise ValueError(
            f"cv={cv!r} makes {len(folds)} fold, and differences need at least two to "
            "be judged. Pass cv=5."
        )
    settings = {"cv": folds, "scoring": scoring, "n_jobs": n_jobs}
    settings |= {"return_estimator": True, "error_score": "raise"}
    found = {
        name: cross_validate(model, X, y, **settings)
        for name, model in tqdm(models.items(), unit="model", disable=not verbose)
    }
    scores = {name: result["test_score"] for name, result in found.items()}
    test_share = np.mean([len(test) / len(train) for train, test in folds])
    rows = [_row(name, found[name], scores[AS_GIVEN], test_share) for name in found]
    return TransferReport(rows, scores, *_judge(rows))


def corrected_interval(differences, test_share: float, level: float = 0.95) -> tuple:
    """Confidence interval of a mean over folds whose training sets overlap.

    `test_share` is the number of test samples for each training sample.
    """
    k = len(differences)
    deviation = np.sqrt((1 / k + test_share) * np.var(differences, ddof=1))
    reach = student_t.ppf((1 + level) / 2, k - 1) * deviation
    return float(np.mean(differences) - reach), float(np.mean(differences) + reach)


def _models(estimator) -> dict:
    """Make the models to compare, by name."""
    classes = is_classifier(estimator)
    name, source = find_source(estimator)
    shared = {key: getattr(source, key) for key in _SOURCE}
    extractor = PretrainedFeatureExtractor(**shared, weights=source.weights)
    if isinstance(source, BaseFineTune):
        known, prefix = source.get_params(), f"{name}__" if name else ""
        changes = {f"{prefix}{key}": v for key, v in _TRAIN_ALL.items() if key in known}
        scratch = _unsearched(clone(estimator).set_params(**changes), name)
    else:
        tuner = FineTuneClassifier if classes else FineTuneRegressor
        scratch = tuner(**shared, weights=None, backbone_lr_mult=1.0, random_state=0)
    pixels = PretrainedFeatureExtractor(
        _pixels(), image_shape=source.image_shape, cache=source.cache
    )
    return {
        AS_GIVEN: estimator,
        SCRATCH: scratch,
        "linear probe": make_pipeline(extractor, *linear_steps(classes)),
        "pixels": make_pipeline(pixels, *linear_steps(classes)),
        "guessing": DummyClassifier() if classes else DummyRegressor(),
    }


def _unsearched(estimator, name):
    """Put what is searched in the place of each search around the part of that name.

    A search would freeze random stages again. One that is elsewhere stays: without it,
    the model from scratch would be at a disadvantage.
    """
    parts = {"": estimator, **estimator.get_params(deep=True)}
    around = [
        outer
        for outer, part in parts.items()
        if isinstance(part, BaseSearchCV) and _is_around(outer, name)
    ]
    # Inner ones first: their names are those of parts of the outer ones.
    for outer in sorted(around, key=len, reverse=True):
        if not outer:
            return estimator.estimator
        estimator.set_params(**{outer: parts[outer].estimator})
    return estimator


def _is_around(outer, name) -> bool:
    return not outer or name.startswith(f"{outer}__")


def _pixels() -> Backbone:
    """Make a network that gives the pixels themselves."""
    recipe = Recipe(_PIXELS_SIDE, _PIXELS_SIDE, mean=(0.0,) * 3, std=(1.0,) * 3)
    stages = nn.Sequential(OrderedDict(pixels=nn.Flatten()))
    return Backbone(stages, recipe, name="pixels")


def _row(name, found, given_scores, test_share) -> dict:
    scores = found["test_score"]
    differences = given_scores - scores
    low, high = corrected_interval(differences, test_share)
    compared = name != AS_GIVEN
    return {
        "model": name,
        "score": float(scores.mean()),
        "se": float(scores.std(ddof=1) / np.sqrt(len(scores))),
        "difference": float(differences.mean()) if compared else None,
        "low": low if compared else None,
        "high": high if compared else None,
        "seconds": float((found["fit_time"] + found["score_time"]).mean()),
        "trained": _n_trained(found["estimator"][0]),
    }


def _n_trained(fitted) -> int | None:
    """Number of parameters that a fit has trained, where it can be told."""
    if hasattr(fitted, "best_estimator_"):
        return _n_trained(fitted.best_estimator_)
    if isinstance(fitted, Pipeline):
        return _n_trained(fitted[-1])
    if isinstance(fitted, BaseFineTune):
        return fitted.n_trained_parameters_
    if hasattr(fitted, "coef_"):
        return int(np.size(fitted.coef_) + np.size(fitted.intercept_))
    return 0 if isinstance(fitted, DummyClassifier | DummyRegressor) else None


def _judge(rows) -> tuple[str, str]:
    """Verdict, and its explanation."""
    by_name = {row["model"]: row for row in rows}
    given, scratch = by_name[AS_GIVEN], by_name[SCRATCH]
    if scratch["low"] > 0:
        verdict, sign = "transfer helps", "above"
    elif scratch["high"] < 0:
        verdict, sign = "negative transfer", "below"
    else:
        verdict, sign = "no evidence", "not to be told from"
    text = (
        f"{verdict.capitalize()}: {given['score']:.3f} is {sign} the "
        f"{scratch['score']:.3f} from scratch (95 % interval of the difference "
        f"{scratch['low']:+.3f} to {scratch['high']:+.3f})."
    )
    simpler = {
        "linear probe": "A linear probe",
        "pixels": "A linear model of the pixels",
        "guessing": "Guessing",
    }
    for name, what in simpler.items():
        row = by_name[name]
        if row["low"] <= 0:
            better = "better than" if row["high"] < 0 else "not to be told from"
            text += f" {what} ({row['score']:.3f}) is {better} it."
    return verdict, text
