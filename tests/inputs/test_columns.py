"""The names of columns: known by `fit`, checked by what follows."""

import warnings

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from sklearn.base import clone
from sklearn.ensemble import VotingClassifier
from sklearn.inspection import permutation_importance
from sklearn.multiclass import OneVsRestClassifier

from sktransfer import (
    BackboneSelector,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
)
from tests.small_network import small_backbone
from tests.small_tasks import make_picture

TUNED = {"lr": 0.01, "max_epochs": 1, "random_state": 0, "device": "cpu"}
ESTIMATORS = [
    FineTuneClassifier(small_backbone(), **TUNED),
    FineTuneRegressor(small_backbone(), **TUNED),
    BackboneSelector([small_backbone()], device="cpu"),
]
WRAPPED = [
    VotingClassifier([("one", ESTIMATORS[0])], voting="soft"),
    OneVsRestClassifier(ESTIMATORS[0]),
]
Y = [0, 1, 0, 1, 1, 0]


@pytest.fixture
def frame(tmp_path):
    paths = [str(tmp_path / f"{row}.png") for row in range(6)]
    for row, path in enumerate(paths):
        PIL.Image.fromarray(make_picture(row)).save(path)
    return pd.DataFrame({"img": paths, "label": Y})


def use(estimator, X):
    return getattr(estimator, "predict", getattr(estimator, "transform", None))(X)


@pytest.mark.parametrize("estimator", [*ESTIMATORS, *WRAPPED])
def test_the_column_of_fit_is_taken_and_a_renamed_one_refused(estimator, frame):
    X, y = frame[["img"]], frame["label"]
    fitted = clone(estimator).fit(X, y)
    assert fitted.feature_names_in_.tolist() == ["img"]
    assert fitted.n_features_in_ == 1
    assert len(use(fitted, X)) == len(X)
    with pytest.raises(ValueError, match=r"(?s)feature names should match.*- photo"):
        use(fitted, X.rename(columns={"img": "photo"}))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_images_without_a_column_are_not_asked_for_its_name(estimator, frame):
    fitted = clone(estimator).fit(frame[["img"]], Y)
    for X in [frame["img"], frame["img"].tolist()]:
        np.testing.assert_array_equal(use(fitted, X), use(fitted, frame[["img"]]))
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        use(fitted, frame[["img"]].to_numpy())


@pytest.mark.parametrize("estimator", [*ESTIMATORS, PretrainedFeatureExtractor("tiny")])
def test_a_fit_without_columns_forgets_those_of_an_earlier_one(estimator, frame):
    fitted = clone(estimator).fit(frame[["img"]], Y).fit(frame["img"].tolist(), Y)
    assert not hasattr(fitted, "feature_names_in_")
    assert not hasattr(fitted, "n_features_in_")
    use(fitted, frame[["img"]].rename(columns={"img": "photo"}))


@pytest.mark.parametrize("estimator", ESTIMATORS[:2])
@pytest.mark.parametrize("how", ["partial_fit", "warm_start"])
def test_a_further_fit_keeps_and_checks_the_names(estimator, how, frame):
    X = frame[["img"]]
    if how == "warm_start":
        fitted = clone(estimator).set_params(warm_start=True).fit(X, Y)
        further = fitted.fit
    else:
        fitted = clone(estimator).fit(X, Y)
        further = fitted.partial_fit
    further(X, Y)
    further(frame["img"].tolist(), Y)
    assert fitted.feature_names_in_.tolist() == ["img"]
    with pytest.raises(ValueError, match="feature names should match"):
        further(X.rename(columns={"img": "photo"}), Y)


def test_a_permuted_column_keeps_its_name(frame):
    model = clone(ESTIMATORS[0]).fit(frame[["img"]], Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = permutation_importance(model, frame[["img"]], Y, n_repeats=2)
    assert found.importances.shape == (1, 2)


@pytest.mark.parametrize("hole", [None, float("nan"), pd.NA, np.float32("nan")])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_missing_target_is_named_by_its_row(estimator, hole, frame):
    labels = ["a", hole, "b", "a", hole, "b"]
    numbers = [1.0, hole, 0.0, 2.0, hole, 3.0]
    for X in [frame["img"], frame[["img"]], np.eye(6)]:
        for y in [labels, numbers, pd.Series(labels), np.array(labels, dtype=object)]:
            with pytest.raises(ValueError, match=r"2 of 6 targets.*rows \[1, 4\]\."):
                clone(estimator).fit(X, y)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_without_targets_it_is_said_that_they_are_needed(estimator, frame):
    for X in [frame["img"], np.eye(6)]:
        with pytest.raises(ValueError, match="target y is None"):
            clone(estimator).fit(X, None)
