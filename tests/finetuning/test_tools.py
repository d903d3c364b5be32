"""Tools of scikit-learn that demand a 2-D `X`, and what of it they accept."""

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    StackingClassifier,
    VotingClassifier,
)
from sklearn.feature_selection import RFE, SequentialFeatureSelector
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    FixedThresholdClassifier,
    TunedThresholdClassifierCV,
    learning_curve,
)
from sklearn.multiclass import OneVsOneClassifier, OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.semi_supervised import SelfTrainingClassifier

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor
from tests.small_network import colour_backbone
from tests.small_tasks import make_task

IMAGES, LABELS = make_task(24)
Y = (LABELS == "light").astype(int)
# Where the labels are unknown for self-training.
SOME = np.where(np.arange(24) % 3, Y, -1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for row, image in enumerate(IMAGES):
        PIL.Image.fromarray(image).save(folder / f"{row}.png")
    return [str(folder / f"{row}.png") for row in range(24)]


def model():
    return FineTuneClassifier(colour_backbone(), freeze="all", C=1.0, random_state=0)


def fitted(tool, y=Y):
    return lambda X: tool.fit(X, y).predict(X)


def importances(X):
    options = {"n_repeats": 2, "random_state": 0}
    return permutation_importance(model().fit(X, Y), X, Y, **options).values()


def curve(X):
    options = {"cv": 2, "train_sizes": [0.5, 1.0], "error_score": "raise"}
    return learning_curve(model(), X, Y, shuffle=True, random_state=0, **options)


def several(tool):
    return fitted(tool, np.c_[Y, 1 - Y])


BAGGING = fitted(BaggingClassifier(model(), 2, max_samples=0.8, random_state=0))
BOOSTING = fitted(AdaBoostClassifier(model(), n_estimators=2, random_state=0))
# These take samples in any form.
OPEN = {
    "CalibratedClassifierCV": fitted(CalibratedClassifierCV(model(), cv=2)),
    "StackingClassifier": fitted(StackingClassifier([("a", model())], cv=2)),
    "VotingClassifier": fitted(VotingClassifier([("a", model()), ("b", model())])),
    "OneVsRestClassifier": fitted(OneVsRestClassifier(model())),
    "MultiOutputClassifier": several(MultiOutputClassifier(model())),
    "TunedThresholdClassifierCV": fitted(TunedThresholdClassifierCV(model(), cv=2)),
    "FixedThresholdClassifier": fitted(FixedThresholdClassifier(model())),
    "learning_curve": curve,
}
# These take columns of any type.
COLUMNS = {
    "BaggingClassifier": BAGGING,
    "AdaBoostClassifier": BOOSTING,
    "permutation_importance": importances,
}
# These take numbers alone.
NUMBERS = {
    "SelfTrainingClassifier": lambda m: fitted(SelfTrainingClassifier(m), SOME),
    "OneVsOneClassifier": lambda m: fitted(OneVsOneClassifier(m)),
    "ClassifierChain": lambda m: several(ClassifierChain(m)),
    "RFE": lambda m: fitted(RFE(m, importance_getter=lambda _: np.ones(4))),
    "SequentialFeatureSelector": lambda m: fitted(
        make_pipeline(SequentialFeatureSelector(m, cv=2, n_features_to_select=1), m)
    ),
}
# Of those, the ones that leave the columns together.
WHOLE = ["SelfTrainingClassifier", "OneVsOneClassifier"]


def same(one, other):
    if isinstance(one, np.ndarray):
        np.testing.assert_array_equal(one, other)
        assert (one.reshape(24, -1)[:, 0] == Y).mean() > 0.7
        return
    for part, like in zip(one, other, strict=True):
        np.testing.assert_array_equal(part, like)


@pytest.mark.parametrize("tool", OPEN | COLUMNS)
def test_a_column_of_files_works_in_all_that_do_not_demand_numbers(tool, paths):
    run = (OPEN | COLUMNS)[tool]
    column = np.array(paths, dtype=object)[:, None]
    expected = run(column)
    same(expected, run(pd.DataFrame({"image": paths})))
    if tool in OPEN:
        same(expected, run(paths))
        same(expected, run(np.stack(IMAGES)))


@pytest.mark.parametrize("tool", [*COLUMNS, *NUMBERS])
def test_the_others_say_that_two_dimensions_are_expected(tool, paths):
    run = COLUMNS[tool] if tool in COLUMNS else NUMBERS[tool](model())
    # scikit-learn's own message; `array.reshape(-1, 1)` is a column of files.
    with pytest.raises(
        ValueError, match=r"(?s)Expected 2D array, got 1D.*reshape\(-1, 1"
    ):
        run(paths)


@pytest.mark.parametrize("tool", NUMBERS)
def test_embeddings_work_in_all_that_demand_numbers(tool, paths):
    with pytest.raises(ValueError, match="could not convert string to float"):
        NUMBERS[tool](model())(np.array(paths, dtype=object)[:, None])
    extractor = PretrainedFeatureExtractor(colour_backbone())
    Z = extractor.transform(paths)
    run = NUMBERS[tool](LogisticRegression())
    assert (np.reshape(run(Z).T, (-1, 24))[0] == Y).mean() > 0.7


@pytest.mark.parametrize("tool", WHOLE)
def test_tables_of_pixels_and_row_numbers_work_where_columns_stay_together(tool, paths):
    flat = np.stack(IMAGES).reshape(24, -1)
    table = model().set_params(image_shape=(20, 20, 3))
    expected = NUMBERS[tool](table)(flat)
    files = np.array(paths, dtype=object)
    look_up = FunctionTransformer(lambda rows: files[rows[:, 0]])
    rows = np.arange(24)[:, None]
    same(expected, NUMBERS[tool](make_pipeline(look_up, model()))(rows))
    assert (expected == Y).mean() > 0.7
