"""Does transfer help? A model beside its baselines, on the same folds."""

from collections import OrderedDict

import numpy as np
from scipy.sparse import issparse
from scipy.stats import t as student_t
from sklearn.base import clone, is_classifier
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import r2_score
from sklearn.model_selection import check_cv, cross_validate
from sklearn.model_selection._search import BaseSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_consistent_length
from sklearn.utils.multiclass import type_of_target
from torch import nn
from tqdm.auto import tqdm

from sktransfer._tables import Table
from sktransfer.backbones._backbone import Backbone
from sktransfer.choosing._ranking import linear_steps
from sktransfer.embedding._extractor import PretrainedFeatureExtractor
from sktransfer.finetuning._base import BaseFineTune
from sktransfer.finetuning._classifier import FineTuneClassifier
from sktransfer.finetuning._parts import ends_of, find_source, is_within
from sktransfer.finetuning._regressor import FineTuneRegressor

AS_GIVEN, SCRATCH = "as given", "from scratch"
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
# Fewer do not tell how much a difference varies: at two, one that is the same in both
# by chance has an interval without width.
_LEAST_FOLDS = 3
# Of the largest score: differences that vary by less are the same.
_ROUNDING = 1e-9
_ALIKE = "cannot be distinguished from"
# By the side of the model from scratch on which the estimator is.
_VERDICTS = {
    1: ("transfer helps", "is above"),
    0: ("no evidence", _ALIKE),
    -1: ("negative transfer", "is below"),
}
_SIMPLER = {
    "linear probe": "A linear probe",
    "guessing": "Guessing",
}


class TransferReport(Table):
    """What `transfer_report` has found: a table of models, and a verdict.

    Parameters
    ----------
    rows : list of dict
        The table: a row for each model.
    scores : dict of str to ndarray of shape (n_folds,)
        Test score of each model in each fold.
    verdict : {"transfer helps", "no evidence", "negative transfer"}
        By the interval of the difference to the model from scratch. Of two folds, or
        of differences that are the same in all folds, there is no evidence.
    explanation : str
        The verdict in a few sentences; where there is no evidence, they say how small
        a difference could not have been seen.
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
        The images of the task.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Labels, or numbers for a regressor.
    cv : int, splitter or iterable, default=5
        Folds, at least two; for a verdict, at least three.
    groups : array-like of shape (n_samples,), optional
        For splitters that keep groups of images together.
    scoring : str or callable, optional
        A single score, as in scikit-learn, greater being better. None is that of a
        search that is given, else accuracy, or R2.
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
        If the estimator holds no pretrained network or several, there are several
        scores or fewer than two folds, or a fold has one image to get an R2 from.

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
    y = y.toarray() if issparse(y) else np.asarray(y)
    if scoring is None:
        scoring = _own_scoring(estimator)
    if not (scoring is None or isinstance(scoring, str) or callable(scoring)):
        raise ValueError(_not_one(f"scoring={scoring!r} is not one score"))
    multilabel = type_of_target(y) == "multilabel-indicator"
    models = _models(estimator, multilabel)
    splitter = check_cv(cv, y, classifier=is_classifier(estimator))
    folds = list(splitter.split(X, y, groups))
    if len(folds) < 2:
        raise ValueError(
            f"cv={cv!r} makes {len(folds)} fold, and differences need at least two to "
            "be judged. Nothing was fitted. Pass cv=5."
        )
    _check_that_r2_is_defined(estimator, scoring, folds)
    settings = {"cv": folds, "scoring": scoring, "n_jobs": n_jobs}
    settings |= {"return_estimator": True, "error_score": "raise"}
    found = {}
    for name, model in tqdm(models.items(), unit="model", disable=not verbose):
        found[name] = cross_validate(model, X, y, **settings)
        if "test_score" not in found[name]:
            raise ValueError(_not_one(f"scoring={scoring!r} gives several scores"))
    scores = {name: result["test_score"] for name, result in found.items()}
    test_share = np.mean([len(test) / len(train) for train, test in folds])
    rows = [_row(name, found[name], scores[AS_GIVEN], test_share) for name in found]
    sizes = sorted({len(test) for _, test in folds})
    return TransferReport(rows, scores, *_judge(rows, scores, sizes))


def corrected_interval(differences, test_share: float, level: float = 0.95) -> tuple:
    """Confidence interval of a mean over folds whose training sets overlap.

    `test_share` is the number of test samples for each training sample.
    """
    k = len(differences)
    deviation = np.sqrt((1 / k + test_share) * np.var(differences, ddof=1))
    reach = student_t.ppf((1 + level) / 2, k - 1) * deviation
    return float(np.mean(differences) - reach), float(np.mean(differences) + reach)


def _own_scoring(estimator):
    """Scoring by which an estimator scores itself; None is that of its kind."""
    for end in ends_of(estimator):
        scoring = end.scoring if isinstance(end, BaseSearchCV) else None
        if isinstance(scoring, list | tuple | dict | set) and isinstance(
            end.refit, str
        ):
            # Of several, that is the one that chooses the best candidate.
            return scoring[end.refit] if isinstance(scoring, dict) else end.refit
        if scoring is not None:
            return scoring
    return None


def _not_one(found: str) -> str:
    return (
        f"{found}, and models are compared by one. Accepted are the "
        "name of a score, a callable (estimator, X, y) -> float, and None. No report "
        "was made. Pass one after the other, such as scoring='balanced_accuracy'."
    )


def _check_that_r2_is_defined(estimator, scoring, folds) -> None:
    is_r2 = scoring == "r2" or getattr(scoring, "_score_func", None) is r2_score
    if not is_r2 and (scoring is not None or is_classifier(estimator)):
        return
    for number, (_, test) in enumerate(folds, start=1):
        if len(test) < 2:
            raise ValueError(
                f"Fold {number} of {len(folds)} has {len(test)} image to test on, and "
                "R2 is defined for two and more. Nothing was fitted. Pass fewer "
                "folds, such as cv=5, or scoring='neg_mean_absolute_error'."
            )


def _models(estimator, multilabel=False) -> dict:
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
    scale, linear = linear_steps(classes)
    if classes and multilabel:
        linear = OneVsRestClassifier(linear)
    return {
        AS_GIVEN: estimator,
        SCRATCH: scratch,
        "linear probe": make_pipeline(extractor, scale, linear),
        **{
            plain: make_pipeline(values, scale, linear)
            for plain, values in _plain_values(extractor).items()
        },
        "guessing": DummyClassifier() if classes else DummyRegressor(),
    }


def _plain_values(extractor) -> dict[str, PretrainedFeatureExtractor]:
    """Make what gives the values that a network would be given, by their name."""
    plain = extractor._prefix().backbone.reader.plain()
    if plain is None:
        return {}
    name, reader = plain
    backbone = Backbone(
        nn.Sequential(OrderedDict(flat=nn.Flatten())), reader, name=name
    )
    shared = {"image_shape": extractor.image_shape, "cache": extractor.cache}
    return {name: PretrainedFeatureExtractor(backbone, **shared)}


def _unsearched(estimator, name):
    """Put what is searched in the place of each search around the part of that name.

    A search would freeze random stages again. One that is elsewhere stays: without it,
    the model from scratch would be at a disadvantage.
    """
    parts = {"": estimator, **estimator.get_params(deep=True)}
    around = [
        outer
        for outer, part in parts.items()
        if isinstance(part, BaseSearchCV) and is_within(name, outer)
    ]
    # Inner ones first: their names are those of parts of the outer ones.
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
    """Number of parameters that a fit has trained, where it can be told."""
    *_, fitted = ends_of(fitted)
    if isinstance(fitted, BaseFineTune):
        return fitted.n_trained_parameters_
    if isinstance(fitted, OneVsRestClassifier):
        return sum(_n_trained(one) or 0 for one in fitted.estimators_)
    if hasattr(fitted, "coef_"):
        return int(np.size(fitted.coef_) + np.size(fitted.intercept_))
    return 0 if isinstance(fitted, DummyClassifier | DummyRegressor) else None


def _judge(rows, scores, sizes) -> tuple[str, str]:
    """Verdict, and its explanation; `sizes` are the numbers of images of the folds."""
    by_name = {row["model"]: row for row in rows}
    scratch = by_name[SCRATCH]
    side, unknown = _side(scratch, scores)
    verdict, how = _VERDICTS[side]
    text = (
        f"{verdict.capitalize()}: {by_name[AS_GIVEN]['score']:.3f} {how} the "
        f"{scratch['score']:.3f} from scratch"
    )
    low, high = scratch["low"], scratch["high"]
    if unknown:
        text += f", since {unknown}."
    else:
        text += f" (95 % interval of the difference {low:+.3f} to {high:+.3f})."
    if not unknown and side == 0:
        text += (
            f" Differences below {(high - low) / 2:.2g} could not be seen with "
            f"{len(scores[AS_GIVEN])} folds of {_images(sizes)}."
        )
    for name in [name for name in by_name if name not in (AS_GIVEN, SCRATCH)]:
        what = _SIMPLER.get(name, f"A linear model of the {name}")
        side, _ = _side(by_name[name], scores)
        if side <= 0:
            how = "is better than" if side < 0 else _ALIKE
            text += f" {what} ({by_name[name]['score']:.3f}) {how} it."
    return verdict, text


def _side(row, scores) -> tuple[int, str | None]:
    """1 if the estimator is better than a model, -1 if worse, 0 if that is open; why.

    The reason is None where it is only that the interval has zero in it.
    """
    unknown = _why_open(scores[AS_GIVEN], scores[row["model"]])
    side = 0 if unknown else int(row["low"] > 0) - int(row["high"] < 0)
    return side, unknown


def _why_open(given, other) -> str | None:
    """Why scores in folds cannot tell models apart, whatever their interval is."""
    differences, n_folds = given - other, len(given)
    if not np.isfinite(differences).all():
        fold = np.flatnonzero(~np.isfinite(differences))[0]
        return f"the scores of fold {fold + 1} are {given[fold]} and {other[fold]}"
    if n_folds < _LEAST_FOLDS:
        return (
            f"{n_folds} folds are too few to tell how much the difference varies: pass "
            f"at least {_LEAST_FOLDS}, such as cv=5"
        )
    if np.ptp(differences) <= _ROUNDING * np.abs([given, other]).max():
        return (
            f"the difference is {differences.mean():+.3f} in each of the {n_folds} "
            "folds, and without spread nothing tells how much it would vary: pass "
            "more images or, for classes, scoring='neg_log_loss'"
        )
    return None


def _images(sizes) -> str:
    """Tell the numbers of images of folds, from the least to the most."""
    count = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
    return f"{count} image{'s' * (sizes[-1] > 1)}"
