import copy

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import LinearSVC

from sktransfer import (
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    TopLossesDisplay,
)
from tests.figures import texts_are_legible
from tests.small_network import small_backbone
from tests.small_tasks import make_task, searched


@pytest.fixture(scope="module")
def fitted():
    X, y = make_task()
    model = FineTuneClassifier(small_backbone(), max_epochs=3, random_state=0)
    return model.fit(X, y)


def test_top_losses_are_the_highest_of_the_misclassified(fitted):
    X, y = make_task(seed=1)
    # Half of the labels are wrong.
    y = np.where(np.arange(len(y)) % 4 < 2, y, np.where(y == "dark", "light", "dark"))
    wrong = np.flatnonzero(fitted.predict(X) != y)
    proba = fitted.predict_proba(X)
    losses = -np.log(proba[np.arange(len(y)), (y == "light").astype(int)])
    expected = wrong[np.argsort(-losses[wrong], kind="stable")]
    for count in (5, len(y)):
        display = TopLossesDisplay.from_estimator(fitted, X, y, n_pictures=count)
        np.testing.assert_array_equal(display.rows, expected[:count])
        np.testing.assert_allclose(display.losses, losses[display.rows])
        assert list(display.labels) == list(y[display.rows])
        assert list(display.predictions) == list(fitted.predict(X)[display.rows])
    assert 5 < len(display.ax_) < len(y)
    assert display.pictures[0].shape == (160, 160, 3)
    assert abs(display.pictures[0].mean() - X[display.rows[0]].mean()) < 3
    label, row, own = display.labels[0], display.rows[0], proba[display.rows[0]].min()
    title = f"row {row}: wrong\nlabel ({own:.2f}): {label}\npredicted ({1 - own:.2f}): "
    assert display.ax_[0].get_title("left").startswith(title)
    texts_are_legible(display.figure_)


def test_top_losses_of_a_classifier_without_errors(fitted):
    X, _ = make_task()
    y = fitted.predict(X)
    display = TopLossesDisplay.from_estimator(fitted, X, y)
    assert len(display.rows) == len(display.ax_) == 0
    (axes,) = display.figure_.axes
    assert axes.get_title("left") == "No image is misclassified."
    assert display.figure_.get_figheight() < 1
    texts_are_legible(display.figure_)


LONG = [
    "Camponotus pennsylvanicus (black carpenter ant)",
    "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerk",
    "A NAME IN CAPITALS, MOST OF WHICH ARE WIDE: WWWWWWWWWW WWWWWW",
    "ant",
]


@pytest.mark.parametrize("count", [1, 2, 4, 9, 13])
def test_long_classes_are_in_full_above_their_pictures(count):
    names = np.resize(LONG, count)
    pictures = [np.zeros((8, 8, 3), np.uint8)] * count
    numbers = np.full(count, 0.5)
    display = TopLossesDisplay(
        pictures, np.arange(count) + 1000, names, names[::-1], numbers, numbers
    ).plot()
    texts_are_legible(display.figure_)
    for row, axes in enumerate(display.ax_):
        title = "".join(axes.get_title("left").split())
        same = "right" if names[row] == names[::-1][row] else "wrong"
        assert title.startswith(f"row{1000 + row}:{same}label(0.50):")
        assert "".join(names[row].split()) in title
        assert title.endswith("".join(names[::-1][row].split()))


def test_top_losses_of_a_pipeline_of_flattened_images():
    X, y = make_task()
    table = np.array(X).reshape(len(X), -1)
    model = make_pipeline(
        PretrainedFeatureExtractor(small_backbone(), image_shape=(20, 20, 3)),
        LogisticRegression(),
    ).fit(table, y)
    display = TopLossesDisplay.from_estimator(model, table, y, n_pictures=2)
    assert len(display.ax_) == 2
    for image, row in zip(display.pictures, display.rows, strict=True):
        assert abs(image.mean() - X[row].mean()) < 3


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
    with pytest.raises(NotFittedError):
        TopLossesDisplay.from_estimator(FineTuneClassifier(), X, y)


@pytest.mark.parametrize(
    ("last", "lacks"), [(Ridge(), "classes_"), (LinearSVC(), "predict_proba")]
)
def test_top_losses_are_of_a_classifier_with_probabilities(last, lacks):
    X, y = make_task()
    model = make_pipeline(PretrainedFeatureExtractor(small_backbone()), last)
    y = (y == "dark").astype(int)
    with pytest.raises(TypeError, match=f"Pipeline has no {lacks}, .*PredictionErrorD"):
        TopLossesDisplay.from_estimator(model.fit(X, y), X, y)


def test_images_that_cannot_be_read_are_left_out(fitted):
    X, y = make_task(seed=1)
    wrong = np.where(y == "dark", "light", "dark")
    model = copy.copy(fitted).set_params(on_error="nan")
    with pytest.warns(UserWarning, match="1 of 25 images cannot be read"):
        display = TopLossesDisplay.from_estimator(
            model, [None, *X], ["light", *wrong], n_pictures=25
        )
    assert 0 not in display.rows
    assert len(display.rows) > 5
