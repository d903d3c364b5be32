import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from torch import nn

from sktransfer import FineTuneClassifier, FineTuneRegressor
from sktransfer.finetuning._loss import ClassLoss, DistillingLoss, WeightedLoss
from sktransfer.finetuning._train import Rows
from tests.small_network import small_backbone

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def model(**parameters):
    defaults = {"max_epochs": 1, "batch_size": 4, "lr": 0.01, "random_state": 0}
    return FineTuneClassifier(small_backbone(), **{**defaults, **parameters})


def mean_loss(weights, batch_size, training=False):
    """Mean over all rows, as an epoch sees it."""
    outputs = torch.randn(len(weights), 3, generator=torch.manual_seed(0))
    targets = np.arange(len(weights))[:, None] % 3
    rows = Rows(outputs.__getitem__, targets, np.array(weights), training)
    total = 0.0
    for first in range(0, len(rows), batch_size):
        batch = range(first, min(first + batch_size, len(rows)))
        output, target = rows.__getitems__(batch)
        total += len(batch) * float(ClassLoss(nn.CrossEntropyLoss)(output, target))
    losses = nn.functional.cross_entropy(
        outputs.double(), torch.from_numpy(targets[:, 0]), reduction="none"
    )
    return total / len(rows), float(np.average(losses, weights=weights))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize(
    "weights",
    [[1] * 7, [1, 2, 3, 4, 5, 6, 7], [1e-50] * 7, [1e39] * 7, [1e-60, *[1] * 6]],
)
def test_a_row_weighs_the_same_in_any_batch(weights, batch_size, training):
    found, expected = mean_loss(weights, batch_size, training)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_loss_is_weighed_by_row():
    output, target = torch.randn(5, 2), torch.rand(5, 2)
    weight = torch.arange(5.0)
    loss = WeightedLoss(nn.L1Loss)
    found = loss(output, torch.cat([target, weight[:, None]], dim=1))
    rows = (output - target).abs().mean(dim=1)
    torch.testing.assert_close(found, (rows * weight).sum() / 4)


def test_a_criterion_of_the_user_trains():
    y = np.random.default_rng(0).normal(size=12)
    options = {"max_epochs": 1, "random_state": 0}
    fitted = FineTuneRegressor(
        small_backbone(), net_params={"criterion": nn.HuberLoss}, **options
    ).fit(IMAGES, y)
    assert isinstance(fitted.net_.criterion_.loss, nn.HuberLoss)
    given = {"criterion": nn.L1Loss()}
    with pytest.raises(ValueError, match="Pass its class, L1Loss"):
        FineTuneRegressor(small_backbone(), net_params=given).fit(IMAGES, y)


def test_distillation_has_the_scale_of_its_temperature():
    output, teacher = torch.randn(2, 4, 3, generator=torch.manual_seed(0))
    target = torch.column_stack([torch.tensor([0, 1, 2, 0]), teacher, torch.ones(4)])
    heat, share = 3.0, 0.25
    soft, softer = (x / heat for x in (teacher, output))
    gap = nn.functional.kl_div(
        softer.log_softmax(1), soft.softmax(1), reduction="batchmean"
    )
    hard = nn.functional.cross_entropy(output, target[:, 0].long())
    expected = share * heat**2 * gap + (1 - share) * hard
    loss = DistillingLoss(nn.CrossEntropyLoss, heat, share)
    torch.testing.assert_close(loss(output, target), expected)


def test_copies_are_taught_the_same_by_a_teacher_that_depends_on_the_batch():
    class Teacher(BaseEstimator):
        classes_ = np.arange(3)

        def fit(self, X, y):
            return self

        def __sklearn_is_fitted__(self):
            return True

        def predict_proba(self, X):
            noise = 1e-15 * np.arange(3 * len(X)).reshape(-1, 3)
            return np.full((len(X), 3), 1 / 3) + noise

    weights = np.array([2, *[1] * 10, 2])
    rows = np.array([11, *range(12), 0])
    X, y = list(IMAGES), LABELS
    one = model(teacher=Teacher()).fit(X, y, sample_weight=weights)
    other = model(teacher=Teacher()).fit([X[row] for row in rows], y[rows])
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
