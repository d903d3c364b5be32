"""Targets: classes, several labels or numbers, and what an estimator does with them.

No other module depends on the kind of `y`. Targets are encoded into columns of numbers
(called *encoded* below), trained on, and decoded from the outputs of the head.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from scipy.special import logit
from sklearn.model_selection import ShuffleSplit, StratifiedShuffleSplit
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from torch import nn

from sktransfer.finetuning._arrays import (
    expit,
    log_expit,
    log_softmax,
    matching,
    positive,
    softmax,
    taken,
)
from sktransfer.finetuning._class_weight import class_factors, label_factors
from sktransfer.finetuning._head import (
    Solution,
    class_priors,
    solve_classes,
    solve_labels,
    solve_values,
)
from sktransfer.finetuning._loss import ClassLoss, LabelLoss, WeightedLoss

# Targets whose relative variation is below this count as equal. It is the rounding
# error of float64, with a margin.
_ROUNDING = 1e-12


class Targets:
    """Base class of all kinds of targets, with defaults that change nothing."""

    # The loss class of torch for a single row, and the one that averages over a batch.
    loss: ClassVar[type[nn.Module]]
    criterion: ClassVar[type[WeightedLoss]] = WeightedLoss
    # Further arguments of the latter.
    criterion_options: ClassVar[dict] = {}
    # The splitter that sets a part aside for validation.
    splitter: ClassVar[type] = ShuffleSplit

    def counts(self, encoded) -> dict:
        """Return the fitted attributes that add up over calls of `partial_fit`."""
        return {}

    def weighted(self, encoded, weights) -> np.ndarray:
        """Return the weights of the examples, multiplied by those of their classes."""
        return weights

    def standardised(self, examples, rows, weight_before: float) -> tuple:
        """Return targets with the standardisation, and the encoded ones standardised.

        It is computed from the examples at `rows` and, with a total weight of
        `weight_before`, from those of earlier calls.
        """
        return self, examples.targets


@dataclass(frozen=True, eq=False)
class ClassTargets(Targets):
    """Targets with one class for each sample, which is encoded as its index.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)
        The sorted labels.
    class_weight : dict, "balanced" or None
        The weight of each class.
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
        # Samples without weight are dropped later, whatever their labels are.
        unknown = np.setdiff1d(y[weights > 0], self.classes)
        if len(unknown):
            raise ValueError(
                f"Invalid y: labels {unknown[:5].tolist()} are not among the classes "
                f"{self.classes[:10].tolist()}. Pass all labels as classes to the "
                "first call of partial_fit, or fit again with warm_start=False."
            )
        if self.n_outputs < 2:
            raise ValueError(
                "Invalid y: expected at least two classes, got only one class, "
                f"{self.classes.tolist()[0]!r}. Pass samples of another class, too, "
                "with a positive sample weight."
            )
        # The remainder turns the index of an unknown label, which has no weight, into
        # some valid index.
        return (np.searchsorted(self.classes, y) % self.n_outputs)[:, None]

    def counts(self, encoded) -> dict:
        return {"class_count_": np.bincount(encoded[:, 0], minlength=self.n_outputs)}

    def weighted(self, encoded, weights) -> np.ndarray:
        if self.class_weight is None:
            return weights
        codes = encoded[:, 0]
        given = self.class_weight, self.classes
        return weights * class_factors(*given, codes, weights)[codes]

    def prior_scores(self, encoded, weights) -> np.ndarray:
        """Return scores that predict the weighted class frequencies for any sample."""
        return class_priors(encoded[:, 0].astype(int), weights, self.n_outputs)

    def solve(self, Z, examples, penalty) -> Solution:
        return solve_classes(Z, examples, self.n_outputs, penalty)

    def row_losses(self, scores, encoded) -> np.ndarray:
        codes = encoded[:, 0].astype(int)
        return -log_softmax(scores)[np.arange(len(codes)), codes]

    def validation_score(self, scores, encoded, weights) -> float:
        """Return the weighted accuracy."""
        right = scores.argmax(axis=1) == encoded[:, 0]
        return float(np.average(right, weights=weights))

    def predictions(self, scores):
        return taken(self.classes, scores.argmax(1))

    def probabilities(self, scores):
        return softmax(scores)

    def log_probabilities(self, scores):
        return log_softmax(scores)

    def decisions(self, scores):
        # scikit-learn expects a single column for two classes.
        return scores[:, 1] - scores[:, 0] if self.n_outputs == 2 else scores


@dataclass(frozen=True, eq=False)
class LabelTargets(Targets):
    """Targets with any number of labels for each sample: an indicator matrix.

    Parameters
    ----------
    classes : ndarray of shape (n_labels,)
        The indices of the columns.
    factors : ndarray of shape (2, n_labels) or None
        What the loss of a label is multiplied by, where it is absent and present.
    """

    classes: np.ndarray
    factors: np.ndarray | None = None

    loss = nn.BCEWithLogitsLoss
    criterion = LabelLoss

    @property
    def criterion_options(self) -> dict:
        return {} if self.factors is None else {"factors": self.factors}

    @property
    def n_outputs(self) -> int:
        return len(self.classes)

    @property
    def attributes(self) -> dict:
        return {"classes_": self.classes, "multilabel_": True}

    def encode(self, y, weights) -> np.ndarray:
        if not np.isin(y, (0, 1)).all():
            raise ValueError(
                "Invalid y: expected an indicator matrix of 0 and 1 for several "
                f"labels, got the values {np.unique(y)[:5].tolist()}. Pass y == <the "
                "value that means yes>."
            )
        return y.astype(np.float64)

    def counts(self, encoded) -> dict:
        return {"class_count_": encoded.sum(axis=0).astype(np.int64)}

    def prior_scores(self, encoded, weights) -> np.ndarray:
        """Return scores that predict the weighted label frequencies for any sample."""
        # Half an example, as for classes, since the score of a label that all samples
        # have, or none, would be infinite.
        least = 0.5 / len(weights)
        shares = np.average(encoded, axis=0, weights=weights)
        if self.factors is not None:
            absent, present = self.factors * [1 - shares, shares]
            shares = present / np.maximum(absent + present, np.finfo(float).tiny)
        return logit(shares.clip(least, 1 - least))

    def solve(self, Z, examples, penalty) -> Solution:
        return solve_labels(Z, examples, penalty, self.factors)

    def row_losses(self, scores, encoded) -> np.ndarray:
        # The binary cross-entropy from logits, in a form that does not overflow.
        losses = np.logaddexp(0, np.where(encoded > 0.5, -scores, scores))
        if self.factors is not None:
            losses = losses * np.where(encoded > 0.5, *self.factors[::-1])
        return losses.mean(axis=1)

    def validation_score(self, scores, encoded, weights) -> float:
        """Return the weighted accuracy, averaged over the labels."""
        right = ((scores > 0) == (encoded > 0.5)).mean(axis=1)
        return float(np.average(right, weights=weights))

    def predictions(self, scores):
        # A logit of 0 is a probability of one half.
        return positive(scores)

    def probabilities(self, scores):
        return expit(scores)

    def log_probabilities(self, scores):
        return log_expit(scores)

    def decisions(self, scores):
        return scores


@dataclass(frozen=True, eq=False)
class ValueTargets(Targets):
    """Targets with one or more numbers for each sample, standardised for training.

    Parameters
    ----------
    multi_output : bool
        Whether predictions have two dimensions.
    mean, variance, scale : ndarray of shape (n_outputs,)
        The statistics of the training targets. The scale is the square root of the
        variance, or 1 for equal targets.
    """

    multi_output: bool
    mean: np.ndarray
    variance: np.ndarray
    scale: np.ndarray

    loss = nn.MSELoss

    @classmethod
    def of(cls, y) -> "ValueTargets":
        """Make targets of the shape of `y` that do not standardise yet."""
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
                "Invalid y: expected one or more numbers for each sample, got another "
                f"value ({error}). Nothing was fitted. For labels, use "
                "FineTuneClassifier."
            ) from error
        if columns.shape[1] != self.n_outputs:
            raise ValueError(
                f"Invalid y: expected {self.n_outputs} targets for each sample, as in "
                f"the first fit, got {columns.shape[1]}. Pass as many, or fit again."
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
        # Equal targets vary by the rounding of their mean alone, which must not be
        # scaled up and trained on. Relative to the first of them, they are exactly 0.
        equal = ~(scale > _ROUNDING * np.abs(mean))
        mean = np.where(equal, y[0], mean)
        scale = np.where(equal, 1.0, scale)
        # A head that is trained further predicts in these units. In those of earlier
        # targets, it would have to learn targets a thousand times as large by its bias.
        found = replace(self, mean=mean, variance=variance, scale=scale)
        return found, (examples.targets - mean) / scale

    def prior_scores(self, encoded, weights) -> np.ndarray:
        return np.zeros(self.n_outputs)

    def solve(self, Z, examples, penalty) -> Solution:
        return solve_values(Z, examples, penalty)

    def row_losses(self, scores, encoded) -> np.ndarray:
        return ((scores - encoded) ** 2).mean(axis=1)

    def validation_score(self, scores, encoded, weights) -> float:
        """Return the weighted R2, averaged over the targets."""
        mean = np.average(encoded, axis=0, weights=weights)
        left = weights @ (encoded - scores) ** 2
        total = weights @ (encoded - mean) ** 2
        # The targets of a validation set may all be equal.
        return float(np.mean(1 - left / np.maximum(total, 1e-12)))

    def predictions(self, scores):
        y = scores * matching(self.scale, scores) + matching(self.mean, scores)
        return y if self.multi_output else y[:, 0]


def label_targets(
    y, weights, classes=None, before=None, class_weight=None
) -> ClassTargets | LabelTargets:
    """Make the targets of a classifier.

    Parameters
    ----------
    y : ndarray of shape (n_samples,) or (n_samples, n_labels)
        The labels, or an indicator matrix.
    weights : ndarray of shape (n_samples,)
        The sample weights.
    classes : array-like, optional
        All labels that any call may contain. By default, these are the labels with a
        positive weight.
    before : ClassTargets or LabelTargets, optional
        The targets of the fit that this one continues, with the same classes.
    class_weight : dict, list of dict, "balanced" or None
        The weight of each class.
    """
    multilabel = _is_indicator(y)
    if before is not None:
        _check_same(before, y, multilabel, classes)
    if multilabel:
        factors = label_factors(class_weight, y, weights)
        return LabelTargets(np.arange(y.shape[1]), factors)
    if before is not None:
        classes = before.classes
    classes = np.unique(y[weights > 0] if classes is None else classes)
    return ClassTargets(classes, class_weight)


def _is_indicator(y) -> bool:
    """Whether y has several labels for each sample; refuse what are not labels."""
    kind = type_of_target(y)
    if kind.startswith("unknown"):
        kinds = sorted({type(value).__name__ for value in y.ravel()})
        raise ValueError(
            f"Unknown label type: y, of dtype {y.dtype}, has values of types {kinds}. "
            "Expected one label for each sample, all of type str, int or bool. Nothing "
            "was fitted. For labels of a single type, pass numpy.array(list(y)); for "
            "several labels for each sample, pass the indicator matrix of "
            "sklearn.preprocessing.MultiLabelBinarizer."
        )
    check_classification_targets(y)
    if kind == "multiclass-multioutput":
        raise ValueError(
            "Invalid y: expected one label for each sample, or an indicator matrix of "
            "0 and 1 (multilabel), got several targets of several classes, of shape "
            f"{y.shape}. Fit one classifier for each column, as "
            "sklearn.multioutput.MultiOutputClassifier does."
        )
    return kind == "multilabel-indicator"


def _check_same(before, y, multilabel, classes) -> None:
    """Refuse targets of another kind than in the fit that is continued."""
    if classes is not None and not np.array_equal(before.classes, np.unique(classes)):
        raise ValueError(
            f"Invalid classes={np.unique(classes)[:10].tolist()}: expected the "
            f"classes of the first fit, {before.classes[:10].tolist()}. Leave classes "
            "out after the first call, or fit again."
        )
    was = isinstance(before, LabelTargets)
    if multilabel != was or (multilabel and y.shape[1] != before.n_outputs):
        many = f"an indicator matrix of {before.n_outputs} columns"
        raise ValueError(
            f"Invalid y of shape {y.shape}: the model was fitted on "
            f"{many if was else 'one label for each sample'}. Pass targets of that "
            "kind, or fit again with warm_start=False."
        )


def fitted_targets(estimator) -> ClassTargets | LabelTargets | ValueTargets:
    """Return the targets that an estimator was fitted on, from its attributes."""
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
    """Return the mean and variance of two parts given as (mean, variance, weight).

    The formula is from Chan, Golub and LeVeque, "Algorithms for computing the sample
    variance", The American Statistician 37, 1983.
    """
    (mean, variance, weight), (before, variance_before, weight_before) = one, other
    share = weight / (weight + weight_before)
    away = mean - before
    joined = share * variance + (1 - share) * variance_before
    return before + share * away, joined + share * (1 - share) * away**2
