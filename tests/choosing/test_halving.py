import numpy as np
import pytest
from scipy import stats
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.model_selection import HalvingGridSearchCV, HalvingRandomSearchCV
from sklearn.tree import DecisionTreeClassifier

from sktransfer import FineTuneClassifier, search_cost
from sktransfer.choosing._halving import iterations_of, resources_of
from tests.small_network import small_backbone

N = 120
X = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
y = np.arange(N) % 2
GRID = {"max_depth": range(1, 8)}
DRAWN = {"max_depth": stats.randint(1, 9), "min_samples_leaf": stats.randint(1, 9)}


@pytest.mark.parametrize(
    ("kind", "values", "options"),
    [
        (HalvingGridSearchCV, GRID, {}),
        (HalvingGridSearchCV, GRID, {"factor": 2, "min_resources": "smallest"}),
        (HalvingGridSearchCV, GRID, {"factor": 2, "max_resources": 50}),
        (
            HalvingGridSearchCV,
            GRID,
            {"aggressive_elimination": True, "min_resources": 60, "factor": 2},
        ),
        (
            HalvingGridSearchCV,
            GRID,
            {"resource": "max_leaf_nodes", "max_resources": 30, "min_resources": 2},
        ),
        (HalvingRandomSearchCV, DRAWN, {}),
        (HalvingRandomSearchCV, DRAWN, {"n_candidates": 9, "factor": 2}),
        (
            HalvingRandomSearchCV,
            DRAWN,
            {"n_candidates": 9, "min_resources": "exhaust", "factor": 2.5},
        ),
    ],
)
def test_the_iterations_are_those_of_scikit_learn(kind, values, options):
    tree = DecisionTreeClassifier(random_state=0)
    search = kind(tree, values, cv=3, random_state=0, **options)
    search.fit(X.reshape(N, -1), y)
    least, most = resources_of(search, y, N, 3)
    found = iterations_of(search, search.n_candidates_[0], least, most)
    assert [count for count, _ in found] == search.n_candidates_
    assert [amount for _, amount in found] == search.n_resources_
    if isinstance(search, HalvingRandomSearchCV) and "n_candidates" not in options:
        assert most // least == search.n_candidates_[0]


def model(**parameters):
    return FineTuneClassifier(small_backbone(), random_state=0, **parameters)


def test_a_halving_search_computes_what_was_told(monkeypatch):
    grid = {"freeze": [0, 1, 2, 3]}
    estimator = model(max_epochs=2, head_epochs=0)
    search = HalvingGridSearchCV(estimator, grid, cv=2, factor=2, random_state=0)
    cost = search_cost(search, X, y)
    fits, fit = [], FineTuneClassifier.fit

    def counted(self, X, *args):
        fits.append(self.max_epochs * len(X) * (self.freeze < 3))
        return fit(self, X, *args)

    monkeypatch.setattr(FineTuneClassifier, "fit", counted)
    search.fit(X, y)
    assert cost.n_iterations == search.n_iterations_ == 3
    assert cost.n_candidates == 4
    assert cost.n_fits == len(fits) == 2 * (4 + 2 + 1) + 1
    # A frozen survivor would train nothing.
    assert cost.n_steps >= sum(fits)
    assert "4 candidates in 2 folds, halved over 3 iterations, and the b" in str(cost)
    assert "once more" not in str(search_cost(search.set_params(refit=False), X, y))


def test_survivors_count_as_the_costliest():
    estimator = model(head_epochs=0)
    grid = {"max_epochs": [1, 2, 3, 10]}
    options = {"cv": 2, "factor": 2, "min_resources": 30, "refit": False}
    search = HalvingGridSearchCV(estimator, grid, random_state=0, **options)
    # Half of 30, 60 and 120 samples is trained on, in each of two folds.
    expected = 30 * (1 + 2 + 3 + 10) + 60 * (3 + 10) + 120 * 10
    assert search_cost(search, X, y).n_steps == expected


def test_epochs_as_resource():
    search = HalvingGridSearchCV(
        model(head_epochs=0),
        {"lr": [0.1, 0.01, 0.001, 1e-4]},
        resource="max_epochs",
        max_resources=4,
        factor=2,
        cv=2,
        random_state=0,
    )
    cost = search_cost(search, X, y)
    assert cost.n_steps == N * (4 * 1 + 2 * 2 + 1 * 4) + 4 * N


def test_too_few_samples_are_refused():
    search = HalvingGridSearchCV(model(), {"freeze": [0]}, min_resources=500)
    with pytest.raises(ValueError, match="would have 500 of 'n_samples'"):
        search_cost(search, X, y)
