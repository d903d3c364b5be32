"""Targets: classes, labels that exclude none, or numbers, and all that follows from it.

What an estimator does with `y` stands here alone: it is encoded into columns of numbers
(*encoded* below), trained on, and decoded from the outputs of the head.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from torch import nn

from sktransfer.finetuning._head import (
    Solution,
    class_priors,
    solve_classes,
    solve_labels,
    solve_values,
)
from sktransfer.finetuning._loss import ClassLoss, WeightedLoss

# Of float64, with a margin: targets that vary less than this share are equal.
_ROUNDING = 1e-12


class Targets:
    """What all kinds of targets have; what is here does nothing."""

    # Loss of one row, a class of torch, and how its mean over a batch is taken.
    loss: ClassVar[type[nn.Module]]
    criterion: ClassVar[type[WeightedLoss]] = WeightedLoss
    # How a part is set aside for validation.
    splitter: ClassVar[type] = ShuffleSplit

    def counts(self, encoded) -> dict:
        """Return fitted attributes that add up over calls."""
        return {}

    def weighted(self, encoded, weights) -> np.ndarray:
        """Return the weights of the examples times those of their classes."""
        return weights

    def standardised(self, examples, rows, weight_before: float) -> tuple:
        """Return the targets in units of their own, and the encoded ones in these.

        By the examples at these rows and, of some weight, those of the calls before.
        """
        return self, examples.targets


@dataclass(frozen=True, eq=False)
class ClassTargets(Targets):
    """One class for each image; encoded, the number of the class.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The labels, sorted.
    class_weight : dict, "balanced" or None
    """

    classes: np.ndarray
    class_weight: dict | str | None = None

    loss = nn.CrossEntropyLoss
    criterion = ClassLoss
    splitter = StratifiedShuffleSplit

    @property
    def n_outputs(self) -> int:
        return len(self.classes)

    @property
    def attributes(self) -> dict:
        return {"classes_": self.classes, "multilabel_": False}

    def encode(self, y, weights) -> np.ndarray:
        unknown = np.setdiff1d(y[weights > 0], self.classes)
        if len(unknown):
            raise ValueError(
                f"y has labels {unknown[:5].tolist()} that are not among the classes "
                f"{self.classes[:10].tolist()}. Pass all of them as classes to the "
                "first partial_fit, or fit anew with warm_start=False."
            )
        if self.n_outputs < 2:
            raise ValueError(
                f"y has only one class, {self.classes.tolist()[0]!r}, and a classifier "
                "needs two. Pass examples of another class too (of positive sample "
                "weight)."
            )
        # Labels that weigh nothing may be unknown, and stand for any class.
        return (np.searchsorted(self.classes, y) % self.n_outputs)[:, None]

    def counts(self, encoded) -> dict:
        return {"class_count_": np.bincount(encoded[:, 0], minlength=self.n_outputs)}

    def weighted(self, encoded, weights) -> np.ndarray:
        if self.class_weight is None:
            return weights
        codes = encoded[:, 0]
        if self.class_weight == "balanced":
            # Weighted counts, so that a weight of k stays the same as k copies.
            counts = np.bincount(codes, weights=weights, minlength=self.n_outputs)
            each = weights.sum() / (self.n_outputs * np.maximum(counts, 1e-12))
            return weights * each[codes]
        factors = compute_class_weight(
            self.class_weight, classes=self.classes, y=self.classes[codes]
        )
        if factors.min() < 0:
            raise ValueError(
                f"class_weight={self.class_weight!r} has a negative weight. Accepted "
                "are weights from 0, which leaves a class out."
            )
        return weights * factors[codes]

    def prior_scores(self, encoded, weights) -> np.ndarray:
        """Scores that give each class its weighted frequency, whatever the image."""
        return class_priors(encoded[:, 0].astype(int), weights, self.n_outputs)

    def solve(self, Z, examples, penalty) -> Solution:
        return solve_classes(Z, examples, self.n_outputs, penalty)

    def row_losses(self, scores, encoded) -> np.ndarray:
        codes = encoded[:, 0].astype(int)
        return -log_softmax(scores, axis=1)[np.arange(len(codes)), codes]

    def validation_score(self, scores, encoded, weights) -> float:
        """Accuracy."""
        right = scores.argmax(axis=1) == encoded[:, 0]
        return float(np.average(right, weights=weights))

    def predictions(self, scores) -> np.ndarray:
        return self.classes[scores.argmax(axis=1)]

    def probabilities(self, scores) -> np.ndarray:
        return softmax(scores, axis=1)

    def decisions(self, scores) -> np.ndarray:
        return scores[:, 1] - scores[:, 0] if self.n_outputs == 2 else scores


@dataclass(frozen=True, eq=False)
class LabelTargets(Targets):
    """Any number of labels for each image: an indicator matrix of 0 and 1.

    Parameters
    ----------
    classes : ndarray of shape (n_labels,)
        The numbers of the columns.
    """

    classes: np.ndarray

    loss = nn.BCEWithLogitsLoss

    @property
    def n_outputs(self) -> int:
        return len(self.classes)

    @property
    def attributes(self) -> dict:
        return {"classes_": self.classes, "multilabel_": True}

    def encode(self, y, weights) -> np.ndarray:
        if not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"y is a matrix with the values {np.unique(y)[:5].tolist()}. Accepted "
                "for several labels is an indicator matrix of 0 and 1: pass y == "
                "<the value that means yes>."
            )
        return y.astype(np.float64)

    def counts(self, encoded) -> dict:
        return {"class_count_": encoded.sum(axis=0).astype(np.int64)}

    def prior_scores(self, encoded, weights) -> np.ndarray:
        """Scores that give each label its weighted frequency, whatever the image."""
        least = 0.5 / len(weights)
        shares = np.average(encoded, axis=0, weights=weights)
        return logit(shares.clip(least, 1 - least))

    def solve(self, Z, examples, penalty) -> Solution:
        return solve_labels(Z, examples, penalty)

    def row_losses(self, scores, encoded) -> np.ndarray:
        return np.logaddexp(0, np.where(encoded > 0.5, -scores, scores)).mean(axis=1)

    def validation_score(self, scores, encoded, weights) -> float:
        """Mean accuracy of the labels."""
        right = ((scores > 0) == (encoded > 0.5)).mean(axis=1)
        return float(np.average(right, weights=weights))

    def predictions(self, scores) -> np.ndarray:
        return (scores > 0).astype(np.int64)

    def probabilities(self, scores) -> np.ndarray:
        return expit(scores)

    def decisions(self, scores) -> np.ndarray:
        return scores


@dataclass(frozen=True, eq=False)
class ValueTargets(Targets):
    """One or several numbers for each image; encoded, they are standardised to train.

    Parameters
    ----------
    multi_output : bool
        Whether predictions are to have columns.
    mean, variance, scale : ndarray of shape (n_outputs,)
        Of the targets that were trained on; the scale is the root of the variance, or
        1 for equal targets.
    """

    multi_output: bool
    mean: np.ndarray
    variance: np.ndarray
    scale: np.ndarray

    loss = nn.MSELoss

    @classmethod
    def of(cls, y) -> "ValueTargets":
        """Targets of this shape, which are not standardised yet."""
        zeros = np.zeros(1 if y.ndim == 1 else y.shape[1])
        return cls(y.ndim == 2, zeros, zeros, zeros + 1)

    @property
    def n_outputs(self) -> int:
        return len(self.mean)

    @property
    def attributes(self) -> dict:
        return {
            "multi_output_": self.multi_output,
            "target_mean_": self.mean,
            "target_variance_": self.variance,
            "target_scale_": self.scale,
        }

    def encode(self, y, weights) -> np.ndarray:
        try:
            columns = y.astype(np.float64).reshape(len(y), -1)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"y has what is no number ({error}). Accepted are numbers, one or more "
                "for each image. Nothing was fitted. Labels are for FineTuneClassifier."
            ) from error
        if columns.shape[1] != self.n_outputs:
            raise ValueError(
                f"y has {columns.shape[1]} targets, and the first fit had "
                f"{self.n_outputs}. Pass as many, or fit anew."
            )
        return columns

    def standardised(self, examples, rows, weight_before) -> tuple:
        y, weights = examples.targets[rows], examples.weights[rows]
        mean = np.average(y, axis=0, weights=weights)
        variance = np.average((y - mean) ** 2, axis=0, weights=weights)
        if weight_before:
            so_far = self.mean, self.variance, weight_before
            mean, variance = _joined((mean, variance, weights.sum()), so_far)
        scale = np.sqrt(variance)
        # The rounding of equal targets is no scale, and nothing to train on either.
        equal = ~(scale > _ROUNDING * np.abs(mean))
        mean = np.where(equal, y[0], mean)
        scale = np.where(equal, 1.0, scale)
        # A head that goes on speaks in these units: in others, of targets that are a
        # thousand times as large, it would have all of them to learn by its bias.
        found = replace(self, mean=mean, variance=variance, scale=scale)
        return found, (examples.targets - mean) / scale

    def prior_scores(self, encoded, weights) -> np.ndarray:
        return np.zeros(self.n_outputs)

    def solve(self, Z, examples, penalty) -> Solution:
        return solve_values(Z, examples, penalty)

    def row_losses(self, scores, encoded) -> np.ndarray:
        return ((scores - encoded) ** 2).mean(axis=1)

    def validation_score(self, scores, encoded, weights) -> float:
        """R2, the mean of that of each target."""
        mean = np.average(encoded, axis=0, weights=weights)
        left = weights @ (encoded - scores) ** 2
        total = weights @ (encoded - mean) ** 2
        return float(np.mean(1 - left / np.maximum(total, 1e-12)))

    def predictions(self, scores) -> np.ndarray:
        y = scores * self.scale + self.mean
        return y if self.multi_output else y[:, 0]


def label_targets(
    y, weights, classes=None, before=None, class_weight=None
) -> ClassTargets | LabelTargets:
    """Make the targets of a classifier.

    Parameters
    ----------
    y : ndarray of shape (n,) or (n, n_labels)
    weights : ndarray of shape (n,)
    classes : array-like, optional
        All labels that will ever come; by default those of positive weight.
    before : ClassTargets or LabelTargets, optional
        Those that a fit goes on from, with the same classes.
    class_weight : dict, "balanced" or None
    """
    multilabel = _is_indicator(y)
    if before is not None:
        _check_same(before, y, multilabel, classes)
    if multilabel:
        if class_weight is not None:
            raise ValueError(
                "class_weight does not apply to multilabel targets. Use "
                "class_weight=None, and sample_weight to weigh images."
            )
        return LabelTargets(np.arange(y.shape[1]))
    if before is not None:
        classes = before.classes
    classes = np.unique(y[weights > 0] if classes is None else classes)
    return ClassTargets(classes, class_weight)


def _is_indicator(y) -> bool:
    """Whether y has several labels for an image, if it is anything to classify."""
    kind = type_of_target(y)
    if kind.startswith("unknown"):
        kinds = sorted({type(value).__name__ for value in y.ravel()})
        raise ValueError(
            f"Unknown label type: y, of dtype {y.dtype}, has values of types {kinds}. "
            "Accepted is one label for each image, all of str, int or bool. Nothing "
            "was fitted. Pass numpy.array(list(y)) of labels of one type; of several "
            "labels for an image, the indicator matrix of "
            "sklearn.preprocessing.MultiLabelBinarizer."
        )
    check_classification_targets(y)
    if kind == "multiclass-multioutput":
        raise ValueError(
            f"y of shape {y.shape} has several targets of several classes. Accepted "
            "are one label for each image, and an indicator matrix of 0 and 1 "
            "(multilabel). Fit one classifier for each column, as "
            "sklearn.multioutput.MultiOutputClassifier does."
        )
    return kind == "multilabel-indicator"


def _check_same(before, y, multilabel, classes) -> None:
    """Refuse targets of another kind than those that a fit goes on from."""
    if classes is not None and not np.array_equal(before.classes, np.unique(classes)):
        raise ValueError(
            f"classes={np.unique(classes)[:10].tolist()} is not the same as in the "
            f"first fit, {before.classes[:10].tolist()}. Leave classes out after the "
            "first call, or fit anew."
        )
    was = isinstance(before, LabelTargets)
    if multilabel != was or (multilabel and y.shape[1] != before.n_outputs):
        many = f"an indicator matrix of {before.n_outputs} columns"
        raise ValueError(
            f"y has shape {y.shape}, and the model was fitted on "
            f"{many if was else 'one label'} for each image. Pass targets of that "
            "kind, or fit anew with warm_start=False."
        )


def fitted_targets(estimator) -> ClassTargets | LabelTargets | ValueTargets:
    """Return the targets that an estimator was fitted on, by its attributes."""
    if hasattr(estimator, "target_mean_"):
        return ValueTargets(
            estimator.multi_output_,
            estimator.target_mean_,
            estimator.target_variance_,
            estimator.target_scale_,
        )
    kind = LabelTargets if estimator.multilabel_ else ClassTargets
    return kind(estimator.classes_)


def _joined(one, other) -> tuple:
    """Mean and variance of two parts, each given as (mean, variance, weight).

    Chan, Golub and LeVeque, "Algorithms for computing the sample variance", The
    American Statistician 37, 1983.
    """
    (mean, variance, weight), (before, variance_before, weight_before) = one, other
    share = weight / (weight + weight_before)
    away = mean - before
    joined = share * variance + (1 - share) * variance_before
    return before + share * away, joined + share * (1 - share) * away**2
