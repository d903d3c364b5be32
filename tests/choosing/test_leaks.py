import numpy as np
import pytest

from sktransfer import PretrainedFeatureExtractor
from sktransfer.choosing._leaks import find_leaks, told
from sktransfer.embedding._duplicates import Copies
from tests.small_tasks import make_picture


@pytest.fixture(scope="module")
def copies():
    X = [make_picture(seed) for seed in range(30)]
    # Rows 30 and 31 are exact copies of row 4, and row 32 is a near copy of row 7.
    return Copies.of(
        PretrainedFeatureExtractor(),
        [*X, X[4].copy(), X[4].copy(), (X[7] * 0.8).astype(np.uint8)],
    )


def folds_of(*tests, n=33):
    return [(np.setdiff1d(np.arange(n), test), np.array(test)) for test in tests]


def test_leaks_are_test_samples_with_a_copy_in_the_training_set(copies):
    leaks = find_leaks(copies, folds_of([0, 30, 31], [4, 32], [7, 32], [4, 30, 31]))
    assert [(leak["fold"], leak["test"], leak["train"]) for leak in leaks] == [
        (0, 30, 4),
        (0, 31, 4),
        (1, 4, 30),
        (1, 32, 7),
    ]
    assert [leak["copy"] for leak in leaks] == ["exact"] * 3 + ["near"]
    assert [leak["similarity"] for leak in leaks[:3]] == [1.0] * 3
    assert 0.6 <= leaks[3]["similarity"] < 1
    text = told(leaks, 33, "image")
    assert "of 33 images, 3 have an exact copy" in text
    assert "and 1 more a near copy" in text
    assert "groups=datasets.find_duplicates(X)" in text


def test_a_sample_that_leaks_in_several_folds_is_counted_once(copies):
    leaks = find_leaks(copies, folds_of([4], [4, 5], [30]))
    assert len(leaks) == 3
    assert "2 have an exact copy" in told(leaks, 33, "image")


def test_no_leaks_are_said_to_be_none(copies):
    leaks = find_leaks(copies, folds_of(range(30, 33), n=10)[:0])
    assert told(leaks, 33, "text").startswith("Leaks: no text of a test set has a copy")
    assert leaks == []


def test_groups_leave_no_leaks(copies):
    groups = copies.groups(0.6)
    tests = [np.flatnonzero(groups % 3 == k) for k in range(3)]
    assert find_leaks(copies, folds_of(*tests)) == []
