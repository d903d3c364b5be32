"""Training and scoring where some samples cannot be read."""

import re
import warnings

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import (
    GridSearchCV,
    TunedThresholdClassifierCV,
    cross_val_score,
)

from sktransfer import (
    EmbeddingCache,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
)
from sktransfer.inputs._images import ImageReader
from tests.small_network import small_backbone, text_backbone
from tests.small_tasks import make_task, make_texts

# What each of the ways to train does with the frozen stages.
WAYS = {
    "solved": {"freeze": "all"},
    "trained": {"freeze": 2, "max_epochs": 2},
    "from scratch": {"weights": None, "max_epochs": 1},
    "augmented": {"freeze": 1, "augment": "mild", "max_epochs": 1},
    "stopped early": {"max_epochs": 2, "early_stopping": True},
    "without a cache": {"freeze": 1, "max_epochs": 1, "cache": None},
}
BAD = [2, 7, 13]


@pytest.fixture
def task(tmp_path):
    """Files, of which one is none, one is cut off and one is missing, and labels."""
    images, y = make_task(24)
    X = [str(tmp_path / f"{row}.png") for row in range(len(y))]
    for path, image in zip(X, images, strict=True):
        PIL.Image.fromarray(image).save(path)
    (tmp_path / "2.png").write_text("This is no image.")
    whole = (tmp_path / "7.png").read_bytes()
    (tmp_path / "7.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "13.png").unlink()
    return np.array(X, dtype=object), y


def classifier(**parameters):
    own = {"freeze": "all", "random_state": 0, "cache": EmbeddingCache()} | parameters
    return FineTuneClassifier(small_backbone(), **own)


def without(*parts):
    return [np.delete(np.asarray(part), BAD, axis=0) for part in parts]


def skips(outcome="left out of the fit"):
    return pytest.warns(
        UserWarning, match=rf"3 of 24 images .*{outcome}.*: rows \[2, 7"
    )


def proba(model, X):
    return model.set_params(on_error="raise").predict_proba(X)


@pytest.mark.parametrize("way", WAYS)
def test_a_fit_is_that_on_the_samples_that_can_be_read(way, task):
    X, y = task
    weights, groups = np.arange(24.0) % 5, np.arange(24) // 2
    there = without(X, y, weights, groups)
    expected = classifier(**WAYS[way]).fit(*there)
    model = classifier(**WAYS[way], on_error="skip")
    with skips():
        model.fit(X, y, weights, groups)
    np.testing.assert_array_equal(proba(model, there[0]), proba(expected, there[0]))
    assert model.n_images_ == expected.n_images_ == (there[2] > 0).sum()
    np.testing.assert_array_equal(model.class_count_, expected.class_count_)


def test_a_single_warning_names_files_and_reasons_and_points_at_the_caller(task):
    with pytest.warns(UserWarning, match="3 of 24 images") as told:
        classifier(on_error="skip").fit(*task)
    assert [warning.filename for warning in told] == [__file__]
    text = str(told[0].message)
    assert "rows [2, 7, 13]. " in text
    reasons = {2: "its first bytes", 7: "truncated", 13: "No such file"}
    for row, reason in reasons.items():
        assert re.search(rf"row {row} \('[^']*[/\\]+{row}\.png'\): [^;]*{reason}", text)
    assert "in cross-validation a fold of yours" in text


def test_samples_without_weight_need_not_be_read(task):
    X, y = task
    weights = np.ones(24)
    weights[BAD] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        classifier(on_error="skip").fit(X, y, weights)


def test_the_weights_that_were_passed_stay(task):
    weights = np.ones(24)
    with skips():
        classifier(on_error="skip").fit(*task, weights)
    assert weights.tolist() == [1.0] * 24


def test_calls_of_partial_fit_and_further_fits_skip_too(task):
    X, y = task
    there = without(X, y)
    one, other = classifier(freeze=1, on_error="skip"), classifier(freeze=1)
    for _ in range(2):
        with skips():
            one.partial_fit(X, y, classes=np.unique(y))
        other.partial_fit(*there, classes=np.unique(y))
    assert one.n_images_ == 2 * 21
    settings = {"warm_start": True, "max_epochs": 1}
    with skips():
        one.set_params(**settings).fit(X, y)
    other.set_params(**settings).fit(*there)
    np.testing.assert_array_equal(proba(one, there[0]), proba(other, there[0]))


def test_a_call_of_partial_fit_may_lose_a_class_but_not_all(task):
    X, y = task
    model = classifier(freeze=1, on_error="skip")
    with pytest.warns(UserWarning, match="1 of 3"):
        model.partial_fit(X[[2, 3, 5]], y[[2, 3, 5]], classes=np.unique(y))
    before = model.n_images_
    with pytest.raises(ValueError, match=r"None of the 2 images can be read.*row 0 \("):
        model.partial_fit(X[[2, 7]], y[[2, 7]])
    assert model.n_images_ == before == 2


def test_a_class_that_loses_all_its_samples_is_an_error(task):
    X, y = task
    y = y.astype(object)
    y[[2, 13]] = "rare"
    model = classifier(on_error="skip")
    expected = r"No image of the classes \['rare'\] can be read.*row 2 .*row 7"
    with pytest.raises(ValueError, match=expected):
        model.fit(X, y)
    assert not hasattr(model, "classes_")
    many = np.c_[y == "dark", y == "rare"].astype(int)
    with pytest.raises(ValueError, match=r"No image of the classes \[1\] can be read"):
        model.fit(X, many)


def test_what_is_in_the_cache_is_not_decoded_again(task, monkeypatch):
    X, y = task
    decoded, read = [], ImageReader.read
    monkeypatch.setattr(
        ImageReader, "read", lambda self, x: decoded.append(1) or read(self, x)
    )
    model = classifier(on_error="skip")
    with skips():
        model.fit(X, y)
    # Each is looked at first; one of the bad files is not even opened.
    assert len(decoded) == 23 + 21
    decoded.clear()
    with skips():
        model.fit(X, y)
    assert len(decoded) == 2


@pytest.mark.parametrize("freeze", [0, 2, "all"])
def test_predictions_for_what_cannot_be_read_are_missing(freeze, task):
    X, y = task
    there, labels = without(X, y)
    model = classifier(freeze=freeze, max_epochs=1).fit(there, labels)
    model.set_params(on_error="nan")
    for method in ["predict_proba", "decision_function", "predict"]:
        with skips("their predictions are missing"):
            rows = getattr(model, method)(X)
        assert np.flatnonzero(pd.isna(rows.reshape(24, -1)[:, 0])).tolist() == BAD
        expected = getattr(model, method)(there)
        np.testing.assert_array_equal(without(rows)[0], expected)
    assert [rows[row] for row in BAD] == [None] * 3
    assert model.predict(there).dtype == labels.dtype


def test_nothing_that_learns_from_predictions_gets_nan(task):
    """A single NaN would make a calibration, or a threshold, the same for all rows."""
    X, y = task
    advice = r"After fit, set_params\(on_error='nan'\) predicts a missing value"
    there = without(X, y)
    for on_error in ["raise", "skip"]:
        model = classifier().fit(*there).set_params(on_error=on_error)
        for method in ["predict", "predict_proba", "decision_function"]:
            with pytest.raises(ValueError, match=advice):
                getattr(model, method)(X)
    for tool in [CalibratedClassifierCV, TunedThresholdClassifierCV]:
        told = pytest.warns(UserWarning, match="images .* left out of the fit")
        with told, pytest.raises(ValueError, match=advice):
            tool(classifier(on_error="skip", C=1.0), cv=2).fit(X, y == "dark")


def test_all_predictions_may_be_missing(task):
    X, y = task
    model = classifier(freeze=1, max_epochs=1).fit(*without(X, y))
    with pytest.warns(UserWarning, match="3 of 3 images cannot be read"):
        assert np.isnan(model.set_params(on_error="nan").predict_proba(X[BAD])).all()


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        (np.arange(24) % 2, np.nan),
        (np.arange(24) % 2 + 2**60, None),
        (np.arange(24) % 2 == 1, None),
        (np.arange(24) % 2 + 0.0, np.nan),
        (np.eye(2, dtype=int)[np.arange(24) % 2], [np.nan, np.nan]),
    ],
)
def test_a_missing_label_is_none_or_nan_but_no_class(labels, missing, task):
    X, _ = task
    model = classifier(on_error="skip", C=1.0)
    with skips():
        model.fit(X, labels)
    with skips("their predictions are missing"):
        predicted = model.set_params(on_error="nan").predict(X)
    np.testing.assert_array_equal(predicted[2], missing)
    readable, expected = without(predicted, labels)
    assert readable.tolist() == expected.tolist()
    np.testing.assert_array_equal(expected, model.predict(without(X)[0]))
    # scikit-learn first warns of the conversion of NaN to an integer.
    with np.errstate(invalid="ignore"), pytest.raises((TypeError, ValueError)):
        accuracy_score(labels, predicted)


def test_numbers_are_left_out_and_predicted_as_nan(task):
    X, _ = task
    for y in [np.arange(24.0), np.c_[np.arange(24.0), -np.arange(24.0)]]:
        there, targets = without(X, y)
        model = FineTuneRegressor(small_backbone(), freeze="all", on_error="skip")
        expected = FineTuneRegressor(small_backbone(), freeze="all").fit(there, targets)
        with skips():
            model.fit(X, y)
        with skips("their predictions are missing"):
            predicted = model.set_params(on_error="nan").predict(X)
        assert np.isnan(predicted[BAD]).all()
        np.testing.assert_array_equal(without(predicted)[0], expected.predict(there))
        with skips("left out of the score"):
            score = model.set_params(on_error="skip").score(X, y)
        assert score == expected.score(there, targets)


def test_scores_leave_out_or_refuse_what_cannot_be_read(task):
    X, y = task
    weights = np.arange(24.0)
    there, labels, some = without(X, y, weights)
    model = classifier().fit(there, labels)
    wrong = np.roll(y, 1)
    wrong[:5] = y[:5]
    expected = model.score(there, *without(wrong), some)
    assert 0 < expected < 1
    model.set_params(on_error="skip")
    with skips("left out of the score"):
        assert model.score(X, list(wrong), weights) == expected
    for on_error in ["nan", "raise"]:
        model.set_params(on_error=on_error)
        with pytest.raises(
            ValueError, match=r"row .*'skip' leaves it out of the score"
        ):
            model.score(X, y)


def test_searches_skip_in_each_fold_by_its_own_rows(task):
    X, y = task
    model = classifier(on_error="skip")
    one = pytest.warns(UserWarning, match=r"1 of 12 images .* row 1 \('[^']*13.png'\)")
    with pytest.warns(UserWarning, match="2 of 12 images cannot be read"), one:
        scores = cross_val_score(model, X, y, cv=2)
    search = GridSearchCV(model, {"C": [0.1, 1.0]}, cv=2)
    two = pytest.warns(UserWarning, match="2 of 12 images cannot be read")
    one = pytest.warns(UserWarning, match="1 of 12 images cannot be read")
    with one, two, skips():
        search.fit(X, y)
    assert np.isfinite([*search.cv_results_["mean_test_score"], *scores]).all()
    assert search.best_estimator_.n_images_ == 21


def test_texts_are_skipped_too():
    X, y = make_texts(24)
    model = FineTuneClassifier(text_backbone(), freeze=2, max_epochs=1, random_state=0)
    expected = model.fit(X, y).predict_proba(X)
    for missing in [None, 3]:
        more, labels = [missing, *X], ["no", *y]
        with pytest.warns(UserWarning, match=r"1 of 25 texts.*rows \[0\]\. row 0"):
            model.set_params(on_error="skip").fit(more, labels)
        with pytest.warns(UserWarning, match="their predictions are missing"):
            rows = model.set_params(on_error="nan").predict_proba(more)
        assert np.isnan(rows[0]).all()
        np.testing.assert_array_equal(rows[1:], expected)


def test_the_advice_is_one_that_can_be_followed(task):
    X, y = task
    with pytest.raises(ValueError, match="'skip' leaves it out of the fit") as refused:
        classifier().fit(X, y)
    assert "'nan'" not in str(refused.value)
    with pytest.raises(ValueError, match="on_error='nan' gives a row of NaN"):
        PretrainedFeatureExtractor(small_backbone()).transform(X)


def test_a_teacher_has_to_predict_all_that_is_learnt(task):
    class Teacher(LogisticRegression):
        def predict_proba(self, X):
            return np.full((len(X), 2), np.nan)

    teacher = Teacher().fit([[0], [1]], ["dark", "light"])
    with pytest.raises(ValueError, match="it predicts NaN for 21 of 21 training"):
        classifier(teacher=teacher).fit(*without(*task))


def test_nothing_to_score_is_an_error(task):
    X, y = task
    model = classifier().fit(*without(X, y)).set_params(on_error="skip")
    told = pytest.warns(UserWarning, match="3 of 3 images")
    with told, pytest.raises(ValueError, match="None of the 3 samples can be read"):
        model.score(X[BAD], y[BAD])
