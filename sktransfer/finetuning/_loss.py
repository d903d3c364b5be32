"""Losses of the training, weighted by row, and distillation.

A loss more is a class here, a line in `make_criterion` and a parameter of an estimator.
"""

import functools

import numpy as np
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted
from torch import nn


class WeightedLoss(nn.Module):
    """Mean of a loss over rows, each times its weight, the last column of the target.

    Parameters
    ----------
    loss : type of nn.Module
        Of torch, or made as those are: with a value for each row and output, where
        ``reduction="none"``.
    **options
        For the loss, such as ``label_smoothing``.
    """

    def __init__(self, loss: type[nn.Module], **options):
        super().__init__()
        self.loss = loss(reduction="none", **options)

    def forward(self, output, target):
        rows, weight = self.rows(output, target[:, :-1]), target[:, -1]
        # A row that only fills up a batch weighs nothing, and does not count.
        return (rows * weight).sum() / (weight > 0).sum().clamp(min=1)

    def rows(self, output, target):
        return self.loss(output, target).mean(dim=1)


class ClassLoss(WeightedLoss):
    """A loss on the number of the class, the first column of the target."""

    def rows(self, output, target):
        return self.loss(output, target[:, 0].long())


class DistillingLoss(ClassLoss):
    """Distillation: log-probabilities of a teacher follow the class in the target.

    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.

    Parameters
    ----------
    loss : type of nn.Module
    temperature : float
    distill_weight : float
        Weight of the teacher's term; the labels have the rest.
    **options
        For the loss.
    """

    def __init__(self, loss, temperature: float, distill_weight: float, **options):
        super().__init__(loss, **options)
        self.temperature = temperature
        self.distill_weight = distill_weight

    def rows(self, output, target):
        rows = super().rows(output, target)
        return rows + self.distill_weight * (
            self._from_teacher(output, target[:, 1:]) - rows
        )

    def _from_teacher(self, output, teacher):
        heat = self.temperature
        student = nn.functional.log_softmax(output / heat, dim=1)
        teacher = nn.functional.log_softmax(teacher / heat, dim=1)
        gap = (teacher.exp() * (teacher - student)).sum(dim=1)
        # The gradient of softened scores shrinks with the square of the temperature.
        return heat**2 * gap


def make_criterion(estimator, targets):
    """Make what skorch is to call for the loss of a batch.

    The parameters of the estimator say which loss it is, if not that of its targets.
    """
    loss = _users_loss(estimator.net_params) or targets.loss
    if not distils(estimator):
        return functools.partial(targets.criterion, loss)
    return functools.partial(
        DistillingLoss,
        loss,
        temperature=estimator.temperature,
        distill_weight=estimator.distill_weight,
    )


def distils(estimator) -> bool:
    # A regressor has no such parameter.
    return getattr(estimator, "teacher", None) is not None


def teacher_scores(estimator, targets, X, rows) -> np.ndarray:
    """Log-probabilities by the teacher of an estimator, of these rows of X."""
    teacher = estimator.teacher
    check_is_fitted(teacher)
    taught = getattr(teacher, "classes_", None)
    one_each = issubclass(targets.criterion, ClassLoss)
    if not one_each or not np.array_equal(taught, targets.classes):
        raise ValueError(
            f"The teacher knows the classes {taught}, and y has {targets.classes}. "
            "Distillation needs a classifier fitted on the same labels, one for each "
            "image."
        )
    # Of each image once: what a teacher says may depend on its neighbours, by a
    # rounding, and copies of an image are to be taught the same.
    X = X[rows] if hasattr(X, "detach") else _safe_indexing(X, rows)
    proba = np.asarray(teacher.predict_proba(X), dtype=np.float64)
    return np.log(np.maximum(proba, 1e-12))


def _users_loss(net_params: dict | None) -> type | None:
    """Loss of the user, which ours is to weigh by row."""
    loss = (net_params or {}).get("criterion")
    if isinstance(loss, nn.Module):
        kind = type(loss).__name__
        raise ValueError(
            f"net_params has the criterion {loss!r}, which gives one value for a "
            f"batch. Pass its class, {kind}, and its arguments as 'criterion__<name>': "
            "it is made with reduction='none', since each row has a weight."
        )
    return loss
