import copy

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from torch import nn
from torchvision import models

from sktransfer import (
    AttributionDisplay,
    Backbone,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
)
from sktransfer.inputs._images import ImageReader
from tests.figures import labels_of, texts_are_legible
from tests.small_network import backbone_of_blocks, small_backbone
from tests.small_tasks import make_task, searched


@pytest.fixture(scope="module")
def fitted():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), max_epochs=3, random_state=0)
    return model.fit(X, y)


def titles_of(model, X, label=None):
    """What stands above images: the predicted class, or a given one."""
    proba, classes = model.predict_proba(X), list(model.classes_)
    numbers = proba.argmax(axis=1)
    numbers = numbers if label is None else [classes.index(label)] * len(X)
    rows = zip(proba, numbers, strict=True)
    return [f"{classes[number]} ({row[number]:.2f})" for row, number in rows]


def first_lines(display):
    return [title.split("\n")[0] for title in display.titles]


class Places(nn.Module):
    """Mean colour of each quarter of the image."""

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 2)


def test_attribution_before_a_linear_head_is_the_class_activation_map():
    """Zhou et al. (2016), of which Selvaraju et al. prove the equality."""
    X, y = make_task()
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    stages = nn.Sequential(Places(), pool)
    backbone = Backbone(stages, ImageReader(resize=20, crop=20))
    model = FineTuneClassifier(backbone, freeze="all", max_epochs=5, random_state=0)
    model.fit(X, y)
    display = AttributionDisplay.from_estimator(model, X[:3], target="light")
    standardise, output = model.head_
    weights = (output.weight[1] / standardise.scale).detach()
    for image, places, found in zip(X, display.pictures, display.maps, strict=False):
        np.testing.assert_array_equal(image, places)
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        maps = Places()(backbone.reader.normalise(pixels))[0]
        expected = torch.einsum("c,chw->hw", weights, maps).clamp(min=0)
        expected = expected / max(expected.max(), 1e-12)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert first_lines(display) == titles_of(model, X[:3], "light")
    texts_are_legible(display.figure_)


def test_attribution_is_of_what_is_predicted():
    X, y = make_task()
    options = {"max_epochs": 1, "hidden_layer_sizes": (8,), "dropout": 0.9}
    model = FineTuneClassifier(small_backbone(), random_state=0, **options).fit(X, y)
    model.head_.train()
    one, two = (AttributionDisplay.from_estimator(model, X[:4]) for _ in range(2))
    np.testing.assert_array_equal(one.maps, two.maps)
    assert first_lines(one) == titles_of(model, X[:4])
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
    with pytest.raises(TypeError, match=r"Expected .* got a GridSearchCV\."):
        AttributionDisplay.from_estimator(unrefitted, X[:1])


@pytest.mark.parametrize(("stage", "side"), [("0", 8), ("1", 4), (None, 2)])
def test_attribution_on_any_stage(fitted, stage, side):
    X, _ = make_task()
    before = fitted.backbone_.digest
    display = AttributionDisplay.from_estimator(fitted, X[:4], stage=stage)
    assert display.maps.shape == (4, side, side)
    assert display.maps.min() >= 0
    assert display.maps.max() <= 1
    assert first_lines(display) == titles_of(fitted, X[:4])
    assert fitted.backbone_.digest == before
    assert not any(p.requires_grad for p in fitted.backbone_.stages.parameters())


def test_attribution_after_a_block():
    X, y = make_task()
    model = FineTuneClassifier(backbone_of_blocks(), max_epochs=1, random_state=0)
    model.fit(X, y)
    sides = [
        AttributionDisplay.from_estimator(model, X[:1], stage=stage).maps.shape[1:]
        for stage in ("a", "b.0", "b.1", "b")
    ]
    assert sides == [(16, 16), (8, 8), (4, 4), (2, 2)]


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
        PretrainedFeatureExtractor(network)._load().stages, ImageReader(20, 20)
    )
    model = FineTuneClassifier(backbone, max_epochs=1, random_state=0).fit(X, y)
    display = AttributionDisplay.from_estimator(model, X[:2], stage=2)
    assert display.maps.shape == (2, 4, 4)
    assert np.isfinite(display.maps).all()
    assert display.maps.max() > 0


def test_attribution_says_that_there_is_no_evidence(fitted):
    X, _ = make_task()
    model = copy.deepcopy(fitted)
    with torch.no_grad():
        model.head_[-1].weight.zero_()
    display = AttributionDisplay.from_estimator(model, X[:1])
    assert not display.maps.any()
    assert display.titles[0].endswith("\nno evidence for it at any place")


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("name", ["a", "Camponotus pennsylvanicus, carpenter ant"])
def test_attribution_is_beside_the_picture(count, name):
    pictures = [np.full((8, 8, 3), 200, np.uint8)] * count
    maps = np.linspace(0, 1, 16 * count).reshape(count, 4, 4)
    display = AttributionDisplay(pictures, maps, [f"{name} (0.98)"] * count).plot()
    texts_are_legible(display.figure_)
    *_, bar = display.figure_.axes
    assert labels_of(bar.xaxis) == ["none", "strongest"]
    for axes in display.ax_:
        plain, grey, places = axes.images
        # The image itself is under no map.
        assert plain.get_extent()[1] < places.get_extent()[0]
        assert grey.get_extent() == places.get_extent()
        alphas = places.cmap(np.linspace(0, 1, 5))[:, 3]
        np.testing.assert_allclose(alphas, np.linspace(0, 0.7, 5), atol=0.01)


def test_attribution_in_given_axes():
    pictures, maps = [np.zeros((8, 8, 3), np.uint8)] * 2, np.ones((2, 4, 4))
    display = AttributionDisplay(pictures, maps, ["a", "$10 and $20"])
    figure, axes = plt.subplots(1, 3)
    assert display.plot(axes, colorbar=False).figure_ is figure
    assert [each.axison for each in axes] == [False] * 3
    assert len(figure.axes) == 3
    assert axes[1].get_title("left") == "$10 and $20"
    assert not axes[1]._left_title.get_parse_math()
    with pytest.raises(ValueError, match="ax of 1 axes: expected .* 2 images"):
        display.plot(axes[0])


def probe(*steps):
    return make_pipeline(PretrainedFeatureExtractor(small_backbone()), *steps)


def test_attribution_of_a_probe_advises_the_same_with_maps():
    X, y = make_task()
    advice = (
        r"ends in a LogisticRegression.*FineTuneClassifier\(freeze=\"all\"\), a lin"
    )
    pipe = probe(StandardScaler(), LogisticRegression()).fit(X, y)
    with pytest.raises(TypeError, match=advice) as error:
        AttributionDisplay.from_estimator(pipe, X[:1])
    assert "pipeline[-1]" not in str(error.value)
    model = FineTuneClassifier(small_backbone(), freeze="all", random_state=0)
    AttributionDisplay.from_estimator(model.fit(X, y), X[:1])
    pipe = probe(Ridge()).fit(X, np.arange(len(X)))
    with pytest.raises(TypeError, match=r"FineTuneRegressor\(freeze=\"all\"\), a lin"):
        AttributionDisplay.from_estimator(pipe, X[:1])


def test_attribution_of_one_of_several_labels():
    X, y = make_task()
    table = np.column_stack([y == "light", y == "dark", np.arange(len(y)) % 2])
    model = FineTuneClassifier(small_backbone(), max_epochs=1, random_state=0)
    model.fit(X, table.astype(int))
    display = AttributionDisplay.from_estimator(model, X[:2], target=2)
    assert first_lines(display) == titles_of(model, X[:2], 2)


def test_attribution_of_a_regressor():
    X, _ = make_task()
    y = [[image.mean(), -image.mean()] for image in X]
    model = FineTuneRegressor(small_backbone(), max_epochs=1, random_state=0).fit(X, y)
    one = AttributionDisplay.from_estimator(model, X[:2])
    two = AttributionDisplay.from_estimator(model, X[:2], target=1)
    assert one.titles == ["", ""]
    assert not np.array_equal(one.maps, two.maps)
    for target in (2, [0], np.array([0, 1]), "0"):
        with pytest.raises(ValueError, match=r"expected one of \[0, 1\], or None"):
            AttributionDisplay.from_estimator(model, X[:1], target=target)


def test_attribution_refuses_what_cannot_be(fitted, tmp_path):
    X, _ = make_task()
    with pytest.raises(ValueError, match=r"not spatial .*Choose .*\['0', '1', '2'\]"):
        AttributionDisplay.from_estimator(fitted, X[:1], stage=4)
    accepted = r"expected one of \['dark', 'light'\], or None for the predicted"
    for target, got in (
        ("bird", "='bird', which is not known"),
        (0, "=0, which is not known"),
        (np.nan, "=nan, which is not known"),
        (["light"], r"=\['light'\], which is of type list"),
        (np.array(["dark", "light"]), "is of type ndarray"),
        ([[1], [1, 2]], "is of type list"),
        (torch.tensor([0, 1]), "is of type Tensor"),
        (pd.Series(["dark"]), "is of type Series"),
        ({}, "is of type dict"),
    ):
        with pytest.raises(ValueError, match=f"(?s){got}.*{accepted}"):
            AttributionDisplay.from_estimator(fitted, X[:1], target=target)
    with pytest.raises(ValueError, match=r"Nothing was drawn. Pass one of them\.$"):
        AttributionDisplay.from_estimator(fitted, X[:1], target="bird")
    with pytest.raises(ValueError, match=r"Of these, \['0', '1', '2'\] have spatial"):
        AttributionDisplay.from_estimator(fitted, X[:1], stage="nope")
    with pytest.raises(ValueError, match=r"row 1 .*no\.jpg"):
        AttributionDisplay.from_estimator(fitted, [X[0], tmp_path / "no.jpg"])
