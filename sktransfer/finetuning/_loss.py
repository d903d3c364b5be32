"""Training losses, weighted by row, and distillation.

To add a loss, add a class here, a line to `make_criterion` and a parameter to an
estimator.
"""

import functools

import numpy as np
import torch
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted
from torch import nn

from sktransfer.inputs._validate import on_host


class WeightedLoss(nn.Module):
    """Mean of a loss over rows, weighted by the last column of the target.

    Parameters
    ----------
    loss : type of nn.Module
        A loss of torch, or a class that, like those, gives a value for each row and
        output with ``reduction="none"``.
    **options
        Further arguments of the loss, such as ``label_smoothing``.
    """

    def __init__(self, loss: type[nn.Module], **options):
        super().__init__()
        self.loss = loss(reduction="none", **options)

    def forward(self, output, target):
        rows, weight = self.rows(output, target[:, :-1]), target[:, -1]
        # Rows that only fill up a batch have no weight, and do not count. The divisor
        # is not the sum of the weights, so that a row weighs the same in any batch.
        return (rows * weight).sum() / (weight > 0).sum().clamp(min=1)

    def rows(self, output, target):
        return self.loss(output, target).mean(dim=1)


class ClassLoss(WeightedLoss):
    """A loss of the class index, which is the first column of the target."""

    def rows(self, output, target):
        return self.loss(output, target[:, 0].long())


class LabelLoss(WeightedLoss):
    """A loss of each label, averaged over the labels.

    Parameters
    ----------
    loss : type of nn.Module
        The loss of a label.
    factors : ndarray of shape (2, n_labels), optional
        What the loss of a label is multiplied by, where it is absent and present.
    **options
        Further arguments of the loss.
    """

    def __init__(self, loss, factors=None, **options):
        super().__init__(loss, **options)
        if factors is not None:
            factors = torch.tensor(factors, dtype=torch.float32)
        self.register_buffer("factors", factors)

    def rows(self, output, target):
        if self.factors is None:
            return super().rows(output, target)
        absent, present = self.factors
        factors = torch.where(target > 0.5, present, absent)
        return (self.loss(output, target) * factors).mean(dim=1)


class DistillingLoss(ClassLoss):
    """Distillation from the log-probabilities of a teacher, which follow the class.

    The method is from Hinton, Vinyals and Dean, "Distilling the knowledge in a neural
    network", 2015.

    Parameters
    ----------
    loss : type of nn.Module
        The loss of the labels.
    temperature : float
        The temperature that softens the scores of teacher and student.
    distill_weight : float
        The weight of the teacher's term. The loss of the labels has the remaining one.
    **options
        Further arguments of the loss of the labels.
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
        # The gradient of softened scores decreases with the square of the temperature.
        return heat**2 * gap


def make_criterion(estimator, targets):
    """Return the criterion for skorch, which computes the loss of a batch.

    The parameters of the estimator may choose another loss than that of its targets.
    """
    loss = _users_loss(estimator.net_params) or targets.loss
    if not distils(estimator):
        options = targets.criterion_options
        return functools.partial(targets.criterion, loss, **options)
    return functools.partial(
        DistillingLoss,
        loss,
        temperature=estimator.temperature,
        distill_weight=estimator.distill_weight,
    )


def distils(estimator) -> bool:
    # A regressor has no parameter `teacher`.
    return getattr(estimator, "teacher", None) is not None


def teacher_scores(estimator, targets, X, rows) -> np.ndarray:
    """Return the log-probabilities that a teacher predicts for these rows of X."""
    teacher = estimator.teacher
    check_is_fitted(teacher)
    taught = getattr(teacher, "classes_", None)
    one_each = issubclass(targets.criterion, ClassLoss)
    if not one_each or not np.array_equal(taught, targets.classes):
        raise ValueError(
            f"Invalid teacher: expected the classes {targets.classes} of y, got "
            f"{taught}. Distillation needs a classifier that was fitted on the same "
            "labels, one for each sample."
        )
    # The teacher sees each sample only once. Its rounding errors may depend on the
    # neighbours of a sample, and copies of a sample must have the same target.
    X = X[rows] if hasattr(X, "detach") else _safe_indexing(X, rows)
    proba = np.asarray(on_host(teacher.predict_proba(X)), dtype=np.float64)
    unknown = np.isnan(proba).any(axis=1).sum()
    if unknown:
        raise ValueError(
            f"Invalid teacher: it predicts NaN for {unknown} of {len(proba)} training "
            "samples. Leave out those that it cannot read."
        )
    # A tree or a nearest neighbour may predict a probability of exactly 0.
    return np.log(np.maximum(proba, 1e-12))


def _users_loss(net_params: dict | None) -> type | None:
    """Return the loss class that the user has set by `net_params`, if any."""
    loss = (net_params or {}).get("criterion")
    if isinstance(loss, nn.Module):
        kind = type(loss).__name__
        raise ValueError(
            f"Invalid criterion={loss!r} in net_params: expected a class, got an "
            f"instance. Pass its class, {kind}, and its arguments as "
            "'criterion__<name>'. It is created with reduction='none', since each row "
            "has a weight of its own."
        )
    return loss
