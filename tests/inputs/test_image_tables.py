from functools import partial

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor
from sktransfer.inputs._image_tables import row_shape
from tests.small_network import small_backbone
from tests.small_tasks import make_picture


@pytest.mark.parametrize(
    ("n_values", "size"),
    [(1, "1 x 1"), (3, "1 x 1 x 3"), (4, "2 x 2"), (49, "7 x 7"), (12, "2 x 2 x 3")],
)
def test_rows_that_make_tiny_pictures_are_warned_of(n_values, size):
    X = np.linspace(0, 1, 9 * n_values).reshape(9, n_values)
    with pytest.warns(UserWarning, match=f"Rows of {n_values} .* {size} .*image_shape"):
        row_shape(X, None)
    # What is said to be pictures is not doubted, nor is what is large enough.
    row_shape(X, (1, n_values))
    row_shape(np.zeros((9, 64)), None)


@pytest.mark.parametrize("width", [61, 64, 75, 432])
def test_a_table_that_seems_to_be_one_picture_is_warned_of(width):
    grey = make_picture(0, 60, width)[:, :, 0]
    with pytest.warns(UserWarning, match=r"seems to be a single image.*\[X\]"):
        row_shape(grey, None)


def test_many_small_pictures_do_not_seem_to_be_one():
    stack = np.stack([make_picture(seed, 9, 9)[:, :, 0] for seed in range(81)])
    row_shape(stack.reshape(81, -1), None)


def test_a_warning_of_odd_rows_is_given_once_and_points_to_the_caller():
    X = np.random.default_rng(0).random((6, 4))
    extractor = PretrainedFeatureExtractor(small_backbone(), device="cpu")
    tuned = FineTuneClassifier(small_backbone(), max_epochs=1, device="cpu")
    pipeline = make_pipeline(extractor, StandardScaler())
    fit = partial(tuned.fit, y=[0, 1] * 3)
    for call in [extractor.transform, pipeline.fit_transform, fit, tuned.predict]:
        with pytest.warns(UserWarning, match="Rows of 4 values") as caught:
            call(X)
        assert [warning.filename for warning in caught] == [__file__]
