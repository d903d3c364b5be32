from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.metrics import r2_score
from sklearn.model_selection import LeaveOneOut, cross_val_predict, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from sktransfer import h_score, knn_score, logme_score


def make_task(n=40, n_features=8, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    return rng.normal(size=(n, n_features)) + 1.5 * y[:, None] * (
        np.arange(n_features) < 3
    ), y


def marginal_evidence(features, target):
    """Log density of a target, its weights integrated out, at the best precisions."""
    n = len(target)

    def negative(logs):
        weights, noise = np.exp(logs)
        covariance = weights * features @ features.T + noise * np.eye(n)
        return -multivariate_normal(np.zeros(n), covariance).logpdf(target) / n

    options = {"xatol": 1e-6, "fatol": 1e-11}
    return -min(
        minimize(negative, start, method="Nelder-Mead", options=options).fun
        for start in [(0.0, -1.0), (-4.0, 0.0), (-1.0, -4.0)]
    )


@pytest.mark.parametrize("n_features", [4, 60])
def test_logme_is_the_maximum_of_the_marginal_likelihood(n_features):
    X, y = make_task(n_features=n_features)
    expected = np.mean([marginal_evidence(X, 1.0 * (y == c)) for c in range(3)])
    assert logme_score(X, y) == pytest.approx(expected, abs=1e-6)


def test_logme_of_dependent_features():
    X, y = make_task(n_features=4)
    X = np.column_stack([X, X @ [[1.0, 3.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    expected = np.mean([marginal_evidence(X, 1.0 * (y == c)) for c in range(3)])
    assert logme_score(X, y) == pytest.approx(expected, abs=1e-6)


def test_logme_of_a_regression():
    X, _ = make_task()
    targets = X[:, :2] @ [[1.0, 0.2], [0.5, -1.0]]
    targets += np.random.default_rng(1).normal(size=targets.shape)
    expected = np.mean([marginal_evidence(X, target) for target in targets.T])
    assert logme_score(X, targets) == pytest.approx(expected, abs=1e-6)


def test_h_score_by_its_formula():
    X, y = make_task(n=40, n_features=70)
    centred, n = X - X.mean(axis=0), len(X)
    between = np.zeros((70, 70))
    for label in np.unique(y):
        mean = centred[y == label].mean(axis=0)
        between += (y == label).mean() * np.outer(mean, mean)
    # Ledoit and Wolf (2004), lemmas 3.2 to 3.4.
    sample = centred.T @ centred / n
    target = np.trace(sample) / 70 * np.eye(70)
    apart = ((sample - target) ** 2).sum()
    error = sum(((np.outer(x, x) - sample) ** 2).sum() for x in centred) / n**2
    shrinkage = min(error / apart, 1)
    shrunk = (1 - shrinkage) * sample + shrinkage * target
    expected = np.trace(np.linalg.inv(shrunk) @ ((1 - shrinkage) * between))
    assert h_score(X, y) == pytest.approx(expected, rel=1e-8)


def test_h_score_is_bounded_by_the_number_of_classes():
    _, y = make_task(n=300)
    apart = 100.0 * (y[:, None] == np.arange(5))
    apart += np.random.default_rng(0).normal(size=apart.shape)
    assert 1.9 < h_score(apart, y) < 2


def knn_by_hand(X, y, k=5):
    """Each neighbour by itself, in fractions: no two distances are equal by chance."""
    units = X / np.linalg.norm(X, axis=1, keepdims=True)
    hits = []
    for i, row in enumerate(units):
        near = np.delete(units @ row, i).round(9)
        last = np.sort(near)[-k]
        left = Fraction(k - int((near > last).sum()), int((near == last).sum()))
        votes = Counter()
        for similarity, label in zip(near, np.delete(y, i), strict=True):
            votes[label] += (similarity > last) + left * (similarity == last)
        most = [label for label in votes if votes[label] == max(votes.values())]
        hits.append(Fraction(int(y[i] in most), len(most)))
    return float(sum(hits) / len(y))


def test_knn_score_is_leave_one_out():
    X, y = make_task(n_classes=2)
    # Of an odd number of neighbours and two classes, one class has most votes.
    model = KNeighborsClassifier(5, metric="cosine")
    expected = cross_val_score(model, X, y, cv=LeaveOneOut()).mean()
    assert knn_score(X, y) == pytest.approx(expected)
    target = X[:, 0] + X[:, 3]
    model = KNeighborsRegressor(3, metric="cosine")
    found = cross_val_predict(model, X, target, cv=LeaveOneOut())
    expected = pytest.approx(r2_score(target, found))
    assert knn_score(X, target, n_neighbors=3) == expected


@pytest.mark.parametrize("k", [1, 4, 5, 39])
def test_ties_of_distances_and_of_votes_are_shared(k):
    X, y = make_task(n_features=3)
    ties = X.round()
    ties[(ties == 0).all(axis=1)] = 1
    assert knn_score(X, y, k) == pytest.approx(knn_by_hand(X, y, k))
    assert knn_score(ties, y, k) == pytest.approx(knn_by_hand(ties, y, k))
    # Lengths make no difference but one of rounding, which parts no ties.
    lengths = np.random.default_rng(1).uniform(1, 3, (40, 1))
    assert knn_score(ties * lengths, y, k) == knn_score(ties, y, k)
    # Where all are equally near, each class gets what it has among the others.
    assert knn_score(np.ones((6, 2)), [0, 0, 0, 0, 1, 1], k) == pytest.approx(4 / 6)
    # One neighbour of each class: a hit in two.
    corners = [[0, 1], [1, 0], [1, 1], [1, 1]]
    assert knn_score(corners, [0, 1, 0, 1], 1) == pytest.approx((0.5 + 0.5) / 4)


@pytest.mark.parametrize("digits", [0, 1, 8])
def test_no_digit_of_the_knn_score_depends_on_the_order(digits, monkeypatch):
    X, y = make_task(n=60, n_features=30)
    X = X.round(digits)
    X[30:] = X[:30]
    targets = X[:, :2] + np.random.default_rng(1).normal(size=(60, 2))
    expected = knn_score(X, y), knn_score(X, targets)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(60)
        found = knn_score(X[order], y[order]), knn_score(X[order], targets[order])
        assert found == expected
    # Nor does any depend on how many similarities are in memory at a time.
    monkeypatch.setattr("sktransfer.choosing._scores._BLOCK", 7 * 60)
    assert knn_score(X, y) == expected[0]


@pytest.mark.parametrize("n_neighbors", [0, -1, 2.5, "5", None])
def test_a_number_of_neighbours_is_a_positive_integer(n_neighbors):
    X, y = make_task()
    with pytest.raises(ValueError, match="n_neighbors=.* positive integer.* as 5"):
        knn_score(X, y, n_neighbors)
    # More than there are count as all.
    assert knn_score(X, y, 39) == knn_score(X, y, 1000)


@pytest.mark.parametrize("score", [logme_score, h_score, knn_score])
class TestEveryScore:
    def test_informative_features_score_higher(self, score):
        X, y = make_task(n=200)
        noise = np.random.default_rng(1).normal(size=X.shape)
        assert score(X, y) > score(noise, y)

    def test_labels_are_only_names(self, score):
        X, y = make_task()
        named = np.array(["ant", "bee", "cat"])[y]
        assert score(X.tolist(), named) == pytest.approx(score(X, y), rel=1e-12)

    def test_order_of_the_rows_does_not_matter(self, score):
        X, y = make_task()
        order = np.random.default_rng(0).permutation(len(y))
        assert score(X[order], y[order]) == pytest.approx(score(X, y), rel=1e-9)

    @pytest.mark.parametrize("n_features", [1, 300])
    def test_dead_and_repeated_features(self, score, n_features):
        X, y = make_task()
        wide = np.hstack([np.repeat(X[:, :1], n_features, axis=1), np.zeros((40, 2))])
        assert np.isfinite(score(wide, y))
        assert np.isfinite(score(np.zeros((40, 4)), y))

    def test_bad_input(self, score):
        X, y = make_task()
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            score(X, y[:-1])
        X[3, 1] = np.nan
        with pytest.raises(ValueError, match="contains NaN"):
            score(X, y)


def test_h_score_refuses_numbers():
    X, _ = make_task()
    with pytest.raises(ValueError, match="continuous"):
        h_score(X, X[:, 0])


def make_labels(n=60, seed=1):
    """Features, and labels that some of them show; the last is in no sample."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 4)) < [0.5, 0.3, 0.2, 0.0]).astype(int)
    return rng.normal(size=(n, 8)) + 2 * np.hstack([y, 0 * y]), y


@pytest.mark.parametrize("score", [logme_score, h_score, knn_score])
def test_scores_of_labels_are_the_means_over_the_labels(score):
    features, y = make_labels()
    expected = np.mean([score(features, column) for column in y.T[:3]])
    assert score(features, y) == pytest.approx(expected, rel=1e-9)
    assert score(features, y.astype(bool)) == score(features, y)
    assert score(features, y) > score(features[::-1], y)
    with pytest.raises(ValueError, match="that some samples have and others do not"):
        score(features, np.zeros((len(y), 2), dtype=int))
