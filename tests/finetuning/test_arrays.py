"""Predictions that are tensors, with array API dispatch."""

import numpy as np
import pytest
import torch
from sklearn import config_context
from sklearn.model_selection import cross_val_predict, cross_val_score

from sktransfer import FineTuneClassifier, FineTuneRegressor
from tests.small_network import small_backbone
from tests.small_tasks import make_task

try:
    with config_context(array_api_dispatch=True):
        pass
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)

X, LABELS = make_task()
STACK = torch.from_numpy(np.stack(X)).permute(0, 3, 1, 2)
CODES = np.arange(24) % 2
SEVERAL = np.column_stack([CODES, 1 - CODES, CODES])


@pytest.fixture
def dispatch():
    with config_context(array_api_dispatch=True):
        yield


def classifier(**params):
    params = {"freeze": "all", "device": "cpu", "random_state": 0, **params}
    return FineTuneClassifier(small_backbone(), **params)


@pytest.mark.parametrize("freeze", ["all", 1, 0])
@pytest.mark.parametrize("y", [CODES, SEVERAL], ids=["classes", "labels"])
def test_predictions_for_a_tensor_are_tensors(freeze, y):
    model = classifier(freeze=freeze, max_epochs=1).fit(X, y)
    methods = ["predict", "predict_proba", "predict_log_proba", "decision_function"]
    for method in methods:
        expected = getattr(model, method)(STACK)
        assert isinstance(expected, np.ndarray)
        with config_context(array_api_dispatch=True):
            found = getattr(model, method)(STACK)
            assert isinstance(getattr(model, method)(X), np.ndarray)
        assert isinstance(found, torch.Tensor)
        assert found.numpy().dtype == expected.dtype
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
        found += 0  # which an inference tensor would refuse


def test_a_fit_on_tensors_equals_one_on_arrays(dispatch):
    weights, groups = np.linspace(1, 2, 24), np.arange(24) // 4
    given = [torch.from_numpy(values) for values in (CODES, weights, groups)]
    one = classifier().fit(STACK, *given)
    other = classifier().fit(X, CODES, weights, groups)
    assert isinstance(one.classes_, np.ndarray)
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    assert one.score(STACK, *given[:2]) == other.score(X, CODES, weights)


def test_labels_that_are_strings_stay_an_array(dispatch):
    model = classifier().fit(STACK, LABELS)
    found = model.predict(STACK)
    np.testing.assert_array_equal(found, model.predict(X))
    assert isinstance(model.predict_proba(STACK), torch.Tensor)


@pytest.mark.parametrize("y", [CODES * 1.0, SEVERAL * 3.0], ids=["one", "several"])
def test_predicted_numbers_are_tensors(y, dispatch):
    model = FineTuneRegressor(small_backbone(), freeze="all", device="cpu")
    found = model.fit(STACK, torch.from_numpy(y)).predict(STACK)
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.numpy(), model.predict(X), rtol=1e-12)


def test_missing_predictions_are_nan(dispatch):
    table = torch.rand(6, 64, generator=torch.Generator().manual_seed(0))
    model = classifier(image_shape=(8, 8), on_error="nan", cache=None)
    model.fit(table, CODES[:6])
    # Only an estimator's own reader can refuse a row of a tensor.
    reader = type(model.backbone_.reader)
    draft, calls = reader.read, []

    def read(self, content):
        calls.append(None)
        if len(calls) == 2:
            raise ValueError("broken")
        return draft(self, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "read", read)
        with pytest.warns(UserWarning, match="cannot be read"):
            found = model.predict(table)
    assert isinstance(found, torch.Tensor)
    assert found.isnan().sum() == 1


def test_a_teacher_may_predict_tensors(dispatch):
    teacher = classifier().fit(STACK, CODES)
    params = {"teacher": teacher, "max_epochs": 1}
    one = classifier(**params).fit(STACK, CODES)
    other = classifier(**params).fit(X, CODES)
    expected = other.predict_proba(X)
    np.testing.assert_allclose(one.predict_proba(X), expected, atol=1e-6)


def test_cross_validation_on_tensors(dispatch):
    y = torch.from_numpy(CODES)
    assert isinstance(cross_val_predict(classifier(), STACK, y, cv=2), torch.Tensor)
    expected = cross_val_score(classifier(), X, CODES, cv=2)
    scores = cross_val_score(classifier(), STACK, y, cv=2)
    np.testing.assert_array_equal(scores, expected)
