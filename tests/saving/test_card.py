import importlib.metadata
import re

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

import sktransfer
from sktransfer import (
    BackboneSelector,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    model_card,
)
from tests.small_network import small_backbone


@pytest.fixture(scope="module")
def task():
    X = np.random.default_rng(0).random((12, 256))
    return X, np.array(["ant|s"] * 4 + ["bees"] * 8)


def tuned(**options):
    settings = {"max_epochs": 2, "random_state": 0} | options
    return FineTuneClassifier(small_backbone(), **settings)


def cells(card, title):
    """Rows of the first table below a title, as lists of text."""
    lines = card.split(f"## {title}\n")[1].split("\n## ")[0].split("\n")
    rows = [line for line in lines if line.startswith("| ")]
    return [row.strip("| ").replace("\\|", "/").split(" | ") for row in rows]


def test_a_card_tells_of_data_network_training_scores_and_versions(task):
    model = tuned(freeze=2).fit(*task)
    card = model_card(model, {"accuracy": 0.9}, title="Insects", description="Mine.")
    assert card.startswith("# Insects\n\nMine.\n\n## Data\n\n12 images, 2 classes.\n")
    assert cells(card, "Data")[2:] == [["ant/s", "4"], ["bees", "8"]]
    states = [row[-1] for row in cells(card, "Network")[2:]]
    assert states == ["frozen", "frozen", "trained", "trained"]
    assert f"{model.n_trained_parameters_:,} trained" in card
    epochs = cells(card, "Training")
    assert epochs[0][:3] == ["phase", "epoch", "train_loss"]
    assert [row[:2] for row in epochs[2:]] == [
        ["head", "1"],
        ["tune", "1"],
        ["tune", "2"],
    ]
    assert cells(card, "Scores")[2:] == [["accuracy", "0.9"]]
    versions = dict(cells(card, "Versions")[2:])
    assert versions["sktransfer"] == sktransfer.__version__
    assert versions["torch"] == importlib.metadata.version("torch")


def test_images_are_counted_over_partial_fits(task):
    X, y = task
    weights = np.arange(12) != 0
    model = tuned().partial_fit(X, y, classes=["ant|s", "bees"], sample_weight=weights)
    model.partial_fit(X[:5], y[:5])
    assert model.n_images_ == 16
    np.testing.assert_array_equal(model.class_count_, [7, 9])
    model.fit(X, y)
    np.testing.assert_array_equal(model.class_count_, [4, 8])
    labels = np.array([[1, 0, 1]] * 12)
    np.testing.assert_array_equal(model.fit(X, labels).class_count_, [12, 0, 12])


def test_regression_and_many_classes(task):
    X, _ = task
    y = np.arange(12.0)
    model = FineTuneRegressor(small_backbone(), max_epochs=0).fit(X, y)
    assert cells(model_card(model), "Data")[2:] == [["0", "5.5", "3.452"]]
    X = np.random.default_rng(0).random((123, 256))
    many = tuned(max_epochs=0).fit(X, np.arange(123) % 61)
    assert "123 images, 61 classes. Of each, between 2 and 3" in model_card(many)


@pytest.mark.parametrize(
    ("kind", "options", "n_targets", "expected"),
    [
        (FineTuneClassifier, {"C": 0.0316}, 1, "with C = 0.0316."),
        (FineTuneRegressor, {"alpha": 20}, 2, "with alpha = 20."),
        (FineTuneRegressor, {}, 2, r"with alpha between \S+ and \S+\."),
    ],
)
def test_a_card_tells_the_penalty_of_a_solved_head(kind, options, n_targets, expected):
    rng = np.random.default_rng(0)
    X, y = rng.random((12, 256)), np.arange(12) % 2
    if n_targets == 2:
        # Of the second, the embeddings tell nothing.
        y = np.column_stack([X.mean(axis=1), y])
    model = kind(small_backbone(), freeze="all", **options).fit(X, y)
    training = model_card(model).split("## Training")[1].split("## ")[0]
    assert re.search("The head was solved, " + expected, training)
    model.partial_fit(X, y)
    assert "was solved" not in model_card(model)


@pytest.mark.parametrize(
    ("backbone", "weights", "expected"),
    [
        (small_backbone(), "default", "Source: small, given by the user; licence not"),
        ("tiny", "default", "Source: tiny, weights default; licence: BSD-3-Clause."),
        ("tiny", None, "Source: tiny, random weights (seed "),
    ],
)
def test_the_source_and_its_licence(backbone, weights, expected, task):
    options = {"weights": weights, "max_epochs": 0, "freeze": "all"}
    model = tuned(**options).set_params(backbone=backbone).fit(*task)
    card = model_card(model)
    assert expected in card
    assert f"`{model.backbone_.origin.source.digest[:16]}`" in card


def test_parts_of_other_estimators(task):
    X, y = task
    probe = make_pipeline(
        PretrainedFeatureExtractor(small_backbone()), LogisticRegression()
    )
    selector = make_pipeline(
        BackboneSelector([small_backbone()], scoring="knn"), LogisticRegression()
    )
    search = GridSearchCV(tuned(max_epochs=0), {"freeze": [1, "all"]}, cv=2)
    for model in (probe, selector, search):
        card = model_card(model.fit(X, y))
        assert card.startswith(f"# {type(model).__name__}\n\n## Model\n")
        assert card.count("## Network") == 1


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (3, "got 3"),
        (tuned(), "not fitted"),
        (LogisticRegression().fit([[0], [1]], [0, 1]), "contains no fitted estimator"),
    ],
)
def test_what_has_no_card(estimator, message):
    with pytest.raises(Exception, match=message):
        model_card(estimator)
