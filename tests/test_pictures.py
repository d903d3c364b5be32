import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from small_network import small_backbone
from test_displays import no_text_overlaps
from test_ranking import make_task
from torch import nn
from torchvision import models

from sktransfer import (
    AttributionDisplay,
    Backbone,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    TopLossesDisplay,
)
from sktransfer._backbones import Recipe


@pytest.fixture(scope="module")
def fitted():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), max_epochs=3, random_state=0)
    return model.fit(X, y)


def test_top_losses_are_the_highest(fitted):
    X, y = make_task(seed=1)
    display = TopLossesDisplay.from_estimator(fitted, X, y, n_pictures=5)
    proba = fitted.predict_proba(X)
    losses = -np.log(proba[np.arange(len(y)), (y == "light").astype(int)])
    np.testing.assert_allclose(display.losses, np.sort(losses)[::-1][:5])
    np.testing.assert_allclose(losses[display.rows], display.losses)
    assert list(display.labels) == list(y[display.rows])
    assert list(display.predictions) == list(fitted.predict(X)[display.rows])
    assert display.pictures[0].shape == (160, 160, 3)
    assert abs(display.pictures[0].mean() - X[display.rows[0]].mean()) < 3
    title = f"{display.labels[0]} ({display.label_probabilities[0]:.2f})\nas "
    assert display.ax_[0].get_title().startswith(title)
    no_text_overlaps(display.figure_)


def test_top_losses_of_a_pipeline_of_flattened_images():
    X, y = make_task()
    table = np.array(X).reshape(len(X), -1)
    model = make_pipeline(
        PretrainedFeatureExtractor(small_backbone(), image_shape=(20, 20, 3)),
        LogisticRegression(),
    ).fit(table, y)
    display = TopLossesDisplay.from_estimator(model, table, y, n_pictures=2)
    assert len(display.ax_) == 2
    for picture, row in zip(display.pictures, display.rows, strict=True):
        assert abs(picture.mean() - X[row].mean()) < 3


def searched(model, name="max_epochs", refit=True):
    return GridSearchCV(model, {name: [1]}, cv=2, refit=refit)


@pytest.mark.parametrize(
    "wrap",
    [
        searched,
        lambda model: make_pipeline(FunctionTransformer(), searched(model)),
        lambda model: searched(
            make_pipeline(FunctionTransformer(), model),
            "finetuneclassifier__max_epochs",
        ),
    ],
)
def test_top_losses_of_a_search_are_the_pictures_of_its_best(wrap):
    X, y = make_task()
    # Not square, so that no guess of the shape is right.
    table = np.array(X)[:, :10].reshape(len(X), -1)
    model = FineTuneClassifier(
        small_backbone(), image_shape=(10, 20, 3), max_epochs=1, random_state=0
    )
    display = TopLossesDisplay.from_estimator(wrap(model).fit(table, y), table, y)
    expected = TopLossesDisplay.from_estimator(model.fit(table, y), table, y)
    np.testing.assert_array_equal(display.rows, expected.rows)
    np.testing.assert_array_equal(display.pictures, expected.pictures)


def test_top_losses_refuse_what_cannot_be(fitted):
    X, y = make_task()
    with pytest.raises(ValueError, match=r"labels \['bird'\] that are not among"):
        TopLossesDisplay.from_estimator(fitted, X[:1], ["bird"])
    with pytest.raises(ValueError, match="one label for each image"):
        TopLossesDisplay.from_estimator(fitted, X[:1], [[0, 1]])


class Places(nn.Module):
    """Mean colour of each quarter of the picture."""

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2)


def test_attribution_before_a_linear_head_is_the_class_activation_map():
    """Zhou et al. (2016), of which Selvaraju et al. prove the equality."""
    X, y = make_task()
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stages = nn.Sequential(Places(), pool)
    backbone = Backbone(stages, Recipe(resize=20, crop=20))
    model = FineTuneClassifier(backbone, freeze="all", max_epochs=5, random_state=0)
    model.fit(X, y)
    display = AttributionDisplay.from_estimator(model, X[:3], target="light")
    standardise, output = model.head_
    weights = (output.weight[1] / standardise.scale).detach()
    for picture, places, found in zip(X, display.pictures, display.maps, strict=False):
        np.testing.assert_array_equal(picture, places)
        pixels = torch.from_numpy(picture).permute(2, 0, 1)[None]
        maps = Places()(backbone.recipe.normalise(pixels))[0]
        expected = torch.einsum("c,chw->hw", weights, maps).clamp(min=0)
        expected = expected / max(expected.max(), 1e-12)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert display.titles == ["light"] * 3
    no_text_overlaps(display.figure_)


def test_attribution_is_of_what_is_predicted():
    X, y = make_task()
    options = {"max_epochs": 1, "hidden_layer_sizes": (8,), "dropout": 0.9}
    model = FineTuneClassifier(small_backbone(), random_state=0, **options).fit(X, y)
    model.head_.train()
    one, two = (AttributionDisplay.from_estimator(model, X[:4]) for _ in range(2))
    np.testing.assert_array_equal(one.maps, two.maps)
    assert one.titles == list(model.predict(X[:4]))
    assert model.head_.training


def test_attribution_of_a_search_is_that_of_its_best():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), random_state=0)
    search = searched(model).fit(X, y)
    one = AttributionDisplay.from_estimator(search, X[:2])
    two = AttributionDisplay.from_estimator(search.best_estimator_, X[:2])
    np.testing.assert_array_equal(one.maps, two.maps)


def test_attribution_tells_what_it_is_for(fitted):
    X, y = make_task()
    with pytest.raises(NotFittedError):
        AttributionDisplay.from_estimator(searched(fitted), X[:1])
    pipe = make_pipeline(FunctionTransformer(), fitted).fit(X, y)
    with pytest.raises(TypeError, match=r"a Pipeline.*Pass the last step"):
        AttributionDisplay.from_estimator(pipe, X[:1])
    AttributionDisplay.from_estimator(pipe[-1], pipe[:-1].transform(X[:1]))
    unrefitted = searched(fitted, refit=False).fit(X, y)
    with pytest.raises(TypeError, match=r"a GridSearchCV\. Accepted are Fine"):
        AttributionDisplay.from_estimator(unrefitted, X[:1])


@pytest.mark.parametrize(("stage", "side"), [("0", 8), ("1", 4), (None, 2)])
def test_attribution_on_any_stage(fitted, stage, side):
    X, _ = make_task()
    before = fitted.backbone_.digest
    display = AttributionDisplay.from_estimator(fitted, X[:4], stage=stage)
    assert display.maps.shape == (4, side, side)
    assert display.maps.min() >= 0
    assert display.maps.max() <= 1
    assert display.titles == list(fitted.predict(X[:4]))
    assert fitted.backbone_.digest == before
    assert not any(p.requires_grad for p in fitted.backbone_.stages.parameters())


def test_attribution_on_tokens():
    X, y = make_task()
    torch.manual_seed(0)
    network = models.VisionTransformer(
        image_size=20,
        patch_size=5,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
    )
    backbone = Backbone(
        PretrainedFeatureExtractor(network)._load().stages, Recipe(20, 20)
    )
    model = FineTuneClassifier(backbone, max_epochs=1, random_state=0).fit(X, y)
    display = AttributionDisplay.from_estimator(model, X[:2], stage=2)
    assert display.maps.shape == (2, 4, 4)
    assert np.isfinite(display.maps).all()
    assert display.maps.max() > 0


def test_attribution_of_a_regressor():
    X, _ = make_task()
    y = [[picture.mean(), -picture.mean()] for picture in X]
    model = FineTuneRegressor(small_backbone(), max_epochs=1, random_state=0).fit(X, y)
    one = AttributionDisplay.from_estimator(model, X[:2])
    two = AttributionDisplay.from_estimator(model, X[:2], target=1)
    assert one.titles == ["", ""]
    assert not np.array_equal(one.maps, two.maps)


def test_attribution_refuses_what_cannot_be(fitted, tmp_path):
    X, _ = make_task()
    with pytest.raises(ValueError, match=r"no places .*Choose .*\['0', '1', '2'\]"):
        AttributionDisplay.from_estimator(fitted, X[:1], stage=4)
    with pytest.raises(ValueError, match="target='bird' is none of the classes"):
        AttributionDisplay.from_estimator(fitted, X[:1], target="bird")
    with pytest.raises(ValueError, match=r"row 1 .*no\.jpg"):
        AttributionDisplay.from_estimator(fitted, [X[0], tmp_path / "no.jpg"])
