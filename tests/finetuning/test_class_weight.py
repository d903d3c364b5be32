import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import compute_class_weight

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor
from sktransfer.finetuning._class_weight import class_factors, label_factors
from sktransfer.finetuning._loss import LabelLoss
from sktransfer.finetuning._targets import label_targets
from tests.small_network import small_backbone
from tests.small_tasks import make_task

MATRIX = np.array([[0, 1], [1, 1], [0, 0], [0, 1], [0, 1], [0, 1]])
WEIGHTS = np.array([1.0, 2, 1, 1, 1, 2])
FORMS = [
    ("balanced", [[4 / 6, 4], [2, 4 / 7]]),
    ({1: 3}, [[1, 1], [3, 3]]),
    ([{0: 2}, {0: 0, 1: 5.0}], [[2, 0], [1, 5]]),
]


@pytest.mark.parametrize(("given", "expected"), FORMS)
def test_weights_of_labels_in_each_form(given, expected):
    np.testing.assert_allclose(label_factors(given, MATRIX, WEIGHTS), expected)
    assert label_factors(None, MATRIX, WEIGHTS) is None


def test_balanced_as_in_scikit_learn():
    ones = np.ones(6)
    for column in range(2):
        codes = MATRIX[:, column]
        expected = compute_class_weight("balanced", classes=np.arange(2), y=codes)
        found = label_factors("balanced", MATRIX, ones)[:, column]
        np.testing.assert_allclose(found, expected)
        found = class_factors("balanced", np.arange(2), codes, ones)
        np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize(
    "given",
    [
        [{0: 1}],
        [{0: 1}] * 3,
        {"ant": 2},
        [{0: 1}, {2: 1}],
        [{0: -1}, {}],
        [{0: 0, 1: 0}, {}],
        [{0: "2"}, {}],
        ["balanced", "balanced"],
    ],
)
def test_other_weights_of_labels_are_refused(given):
    with pytest.raises(ValueError, match="for 2 labels, a dict of the weights of 0 an"):
        label_targets(MATRIX, WEIGHTS, class_weight=given)


def test_a_list_is_for_labels():
    targets = label_targets(np.array(["a", "b"]), np.ones(2), class_weight=[{}, {}])
    with pytest.raises(ValueError, match="a list is for multilabel targets"):
        targets.weighted(np.array([[0], [1]]), np.ones(2))


def rare_labels(n=80):
    """Pictures, and labels of which the second is rare and hard to tell."""
    X, y = make_task(n)
    rare = (np.arange(n) % 8 == 1).astype(int)
    return X, np.column_stack([(y == "light").astype(int), rare])


def model(**parameters):
    settings = {"max_epochs": 3, "random_state": 0, "freeze": "all"} | parameters
    return FineTuneClassifier(small_backbone(), **settings)


@pytest.mark.parametrize(
    "weights", ["balanced", [{0: 1, 1: 4}, {0: 2, 1: 0.5}], [{}, {0: 0}]], ids=repr
)
def test_a_solved_head_is_that_of_each_label_alone(weights):
    X, Y = rare_labels()
    found = model(class_weight=weights, C=0.5).fit(X, Y).predict_proba(X)
    for i, codes in enumerate(Y.T):
        weight = weights if isinstance(weights, str) else weights[i]
        if weight == {0: 0}:
            # All samples that are left have the label.
            assert (found[:, i] > 0.9).all()
            continue
        linear = LogisticRegression(C=0.5, class_weight=weight, tol=1e-8, max_iter=5000)
        embed = PretrainedFeatureExtractor(small_backbone())
        alone = make_pipeline(embed, StandardScaler(), linear).fit(X, codes)
        expected = alone.predict_proba(X)[:, 1]
        np.testing.assert_allclose(found[:, i], expected, atol=1e-3)


@pytest.mark.parametrize("freeze", ["all", 1])
def test_balancing_finds_more_of_a_rare_label(freeze):
    X, Y = rare_labels()
    settings = {"freeze": freeze, "solve_head": False, "lr": 0.01}
    plain = model(**settings).fit(X, Y)
    balanced = model(**settings, class_weight="balanced").fit(X, Y)
    assert plain.predict(X)[:, 1].sum() == 0
    assert balanced.predict(X)[Y[:, 1] == 1, 1].mean() > 0.5
    # What is not rare has the same labels, up to a few.
    assert (plain.predict(X)[:, 0] == balanced.predict(X)[:, 0]).mean() > 0.9
    # One step more starts from the prior of the weighted labels.
    again = model(**settings, class_weight=[{}, {1: 7}]).fit(X, Y)
    assert abs(again.predict_proba(X)[:, 1].mean() - 0.5) < 0.2


def test_a_loss_weighs_each_label_by_itself():
    output = torch.tensor([[0.3, -1.0], [2.0, 0.1]])
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    factors = np.array([[2.0, 3.0], [5.0, 7.0]])
    plain = torch.nn.BCEWithLogitsLoss(reduction="none")(output, target)
    expected = (plain * torch.tensor([[5.0, 3.0], [2.0, 7.0]])).mean(dim=1)
    loss = LabelLoss(torch.nn.BCEWithLogitsLoss, factors=factors)
    torch.testing.assert_close(loss.rows(output, target), expected)
    weights = [{0: 2, 1: 5}, {0: 3, 1: 7}]
    targets = label_targets(target.int().numpy(), np.ones(2), class_weight=weights)
    found = targets.row_losses(output.numpy(), target.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6)
