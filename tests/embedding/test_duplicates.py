import io

import numpy as np
import PIL.Image
import pytest
from sklearn.model_selection import GroupKFold

from sktransfer import PretrainedFeatureExtractor
from sktransfer.datasets import find_duplicates
from sktransfer.embedding import _duplicates
from sktransfer.embedding._duplicates import Copies, _joined, _whitened
from tests.small_network import small_backbone, text_backbone
from tests.small_tasks import make_picture, make_texts


def make_pictures(n=40):
    return [make_picture(seed) for seed in range(n)]


def encoded(picture, form="JPEG", **options):
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, form, **options)
    return file.getvalue()


def copies_of(picture):
    """Near copies: compressed, smaller, cropped, darker, and as another file."""
    return [
        encoded(picture, quality=95),
        np.asarray(PIL.Image.fromarray(picture).resize((48, 36))),
        picture[1:-1, 1:-1],
        (picture * 0.95).astype(np.uint8),
        encoded(picture, "PNG"),
    ]


def test_groups_are_numbered_by_their_first_sample():
    X = make_pictures(5)
    given = [X[0], X[1], X[0].copy(), X[2], X[1].copy(), X[0], X[3]]
    found = find_duplicates(given, threshold=None)
    np.testing.assert_array_equal(found, [0, 1, 0, 2, 1, 0, 3])
    assert found.dtype == np.int64


def test_near_copies_of_pictures_are_found_and_no_others():
    X = make_pictures()
    given = [*X, *copies_of(X[3]), *copies_of(X[17])]
    expected = np.r_[np.arange(40), [3] * 5, [17] * 5]
    np.testing.assert_array_equal(find_duplicates(given), expected)
    np.testing.assert_array_equal(
        find_duplicates(given, threshold=None), np.arange(len(given))
    )


def test_groups_do_not_depend_on_the_order_nor_on_the_blocks(monkeypatch):
    X = make_pictures()
    given = [*X, *copies_of(X[3]), *copies_of(X[17])]
    order = np.random.default_rng(0).permutation(len(given))
    expected = find_duplicates(given)[order]
    monkeypatch.setattr(_duplicates, "_BLOCK", 3 * len(given))
    found = find_duplicates([given[row] for row in order])
    same = expected[:, None] == expected
    np.testing.assert_array_equal(found[:, None] == found, same)
    _, firsts = np.unique(found, return_index=True)
    assert (np.diff(firsts) > 0).all()


def test_many_exact_copies_do_not_hide_a_near_one():
    X = make_pictures()
    given = [*X, *[X[5]] * 200, (X[5] * 0.8).astype(np.uint8)]
    groups = find_duplicates(given)
    assert (groups[40:] == 5).all()
    assert len(np.unique(groups)) == 40


def test_they_are_groups_of_a_splitter():
    X = make_pictures(12)
    given = [*X, *X]
    groups = find_duplicates(given, threshold=None)
    for train, test in GroupKFold(3).split(given, groups=groups):
        assert set(train % 12).isdisjoint(test % 12)


def test_texts_and_settings_of_an_extractor():
    X, _ = make_texts(20)
    extractor = PretrainedFeatureExtractor(text_backbone(), cache=None)
    found = find_duplicates([*X, X[4]], extractor, threshold=None)
    assert found[-1] == found[4]
    assert find_duplicates([X[0], X[0].upper()], extractor, threshold=None)[1] == 1


def test_what_cannot_be_read_is_a_group_of_its_own():
    X = make_pictures(6)
    given = [*X, b"", b"", X[2]]
    with pytest.raises(ValueError, match="row 6.*on_error='nan' leaves it out"):
        find_duplicates(given)
    with pytest.warns(UserWarning, match="2 of 9 images .* compared with nothing"):
        found = find_duplicates(given, on_error="nan")
    np.testing.assert_array_equal(found, [0, 1, 2, 3, 4, 5, 6, 7, 2])
    # Files that have content, of which no image can be made.
    given[6:8] = [b"GIF89a", b"GIF89a"]
    with pytest.warns(UserWarning, match="2 of 9 images"):
        found = find_duplicates(given, on_error="nan")
    np.testing.assert_array_equal(found, [0, 1, 2, 3, 4, 5, 6, 7, 2])


@pytest.mark.parametrize("threshold", [0, -0.5, 1.5, float("nan")])
def test_bad_thresholds(threshold):
    with pytest.raises(ValueError, match="expected a cosine greater than 0"):
        find_duplicates(make_pictures(2), threshold=threshold)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_hardly_any_samples(n):
    X = make_pictures(n)
    np.testing.assert_array_equal(find_duplicates(X, small_backbone()), np.arange(n))
    np.testing.assert_array_equal(find_duplicates([*X, X[0]])[[0, -1]], [0, 0])


def whitened_by_definition(values, ridge):
    scaled = (values - values.mean(0)) / values.std(0)
    eigenvalues, vectors = np.linalg.eigh(np.cov(scaled.T, bias=True))
    white = scaled @ vectors / np.sqrt(eigenvalues + ridge)
    return white / np.linalg.norm(white, axis=1, keepdims=True)


def test_whitening_depends_on_how_many_samples_there_are():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(8, 8))
    for n in (6, 200):
        values = (rng.normal(size=(n, 8)) @ mix + 5).astype(np.float32)
        found = _whitened(values, values)
        expected = whitened_by_definition(values.astype(float), 1 + 8 / n)
        # Any root of the inverse gives these cosines.
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_constant_features_do_not_count():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 4)).astype(np.float32)
    more = np.c_[values, np.full((30, 1), 7, np.float32)]
    found = [_whitened(each, each) for each in (more, more)]
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(*found)
    same = np.full((3, 4), 7, np.float32)
    np.testing.assert_array_equal(_whitened(same, same), np.zeros((3, 4)))


def test_wide_embeddings_are_projected(monkeypatch):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 600)).astype(np.float32)
    near = values[:1] + 0.1 * rng.normal(size=(1, 600)).astype(np.float32)
    monkeypatch.setattr(_duplicates, "_WIDEST", 100)
    found = _whitened(np.r_[values, near], np.r_[values, near])
    assert found.shape == (51, 100)
    similar = found @ found.T - np.eye(51)
    assert similar.argmax() in (50, 50 * 51)
    assert similar.max() > 0.9


def test_nearest_of_others():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(9, 4)).astype(np.float32)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    copies = Copies([b"x"] * 9, None, directions)
    rows, others = np.array([1, 4, 6]), np.array([0, 2, 8])
    cosines = directions[rows] @ directions[others].T
    nearest, similarities = copies.nearest(rows, others)
    np.testing.assert_array_equal(nearest, others[cosines.argmax(axis=1)])
    np.testing.assert_allclose(similarities, cosines.max(axis=1), rtol=1e-6)
    assert [len(part) for part in copies.nearest(rows[:0], others)] == [0, 0]


def test_groups_are_joined_along_chains():
    labels = np.array([0, 1, 2, 3, 1, 5])
    joined = _joined(labels, np.array([4, 3]), np.array([5, 5]))
    np.testing.assert_array_equal(joined, [0, 1, 2, 1, 1, 1])
