import dataclasses
import time

import numpy as np
import pytest
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import (
    EmbeddingCache,
    FineTuneClassifier,
    FineTuneRegressor,
    PretrainedFeatureExtractor,
    search_cost,
)
from sktransfer.choosing._search_time import Seconds, _some_of, search_seconds
from sktransfer.embedding._prefix import process_cache
from tests.small_network import counts, small_backbone, text_backbone
from tests.small_tasks import make_texts

N = 96
X = np.random.default_rng(0).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)
y = np.arange(N) % 2
FOLDS = KFold(3)
# A class in rows that no four evenly spaced ones hit.
BLOCK = np.repeat(["a", "b", "a"], [40, 20, 36])


def model(kind=FineTuneClassifier, **parameters):
    settings = {"max_epochs": 1, "head_epochs": 0, "random_state": 0}
    settings |= {"cache": EmbeddingCache()} | parameters
    return kind(small_backbone(), **settings)


def rows_computed():
    return float(sum(counts.values()))


@pytest.fixture
def clock_of_rows(monkeypatch):
    """A clock that ticks with each row that a stage of the network computes."""
    monkeypatch.setattr(time, "perf_counter", rows_computed)


@pytest.mark.usefixtures("clock_of_rows")
@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize(
    ("settings", "grid"),
    [
        ({}, {"freeze": [0]}),
        ({}, {"freeze": [1, 2, "all"]}),
        ({"head_epochs": 1}, {"freeze": [2]}),
        ({"augment": "light"}, {"freeze": [1, 2]}),
        ({"cache": None}, {"freeze": [1, "all"]}),
        ({"weights": None, "random_state": None}, {"freeze": [1]}),
        ({"weights": None}, {"freeze": [0, 1]}),
    ],
)
def test_seconds_are_those_of_the_search(settings, grid, refit):
    search = GridSearchCV(model(**settings), grid, cv=FOLDS, refit=refit)
    cost = search_cost(search, X, y, n_timed=64)
    counts.clear()
    search.fit(X, y)
    taken = rows_computed()
    assert 0 < cost.min_seconds <= cost.seconds
    # Batches of a pass are filled up, which 96 images are not, or not in each fold.
    assert 0.9 * cost.min_seconds <= taken <= 1.1 * cost.seconds
    if not refit:
        assert cost.min_seconds == cost.seconds


@pytest.mark.usefixtures("clock_of_rows")
@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("train_score", [True, False])
def test_seconds_of_a_pipeline(cached, train_score):
    cache = EmbeddingCache() if cached else None
    embedder = PretrainedFeatureExtractor(small_backbone(), cache=cache)
    pipe = make_pipeline(embedder, StandardScaler(), LogisticRegression())
    grid = {"logisticregression__C": [0.1, 1]}
    search = GridSearchCV(pipe, grid, cv=FOLDS, return_train_score=train_score)
    cost = search_cost(search, X, y, n_timed=64)
    counts.clear()
    search.fit(X, y)
    assert cost.seconds == pytest.approx(rows_computed(), rel=0.1)


@pytest.mark.usefixtures("clock_of_rows")
@pytest.mark.parametrize(
    "options", [{}, {"resource": "max_epochs", "max_resources": 2}]
)
def test_seconds_of_a_halving_search(options):
    grid = {"freeze": [0, 2]}
    search = HalvingGridSearchCV(
        model(), grid, cv=FOLDS, factor=2, random_state=0, **options
    )
    cost = search_cost(search, X, y, n_timed=64)
    counts.clear()
    search.fit(X, y)
    assert cost.n_iterations == search.n_iterations_
    # It depends on the survivors.
    assert 0.9 * cost.min_seconds < rows_computed() < 1.1 * cost.seconds
    assert cost.min_seconds < cost.seconds


@pytest.mark.usefixtures("clock_of_rows")
def test_seconds_grow_with_candidates_folds_and_epochs():
    def seconds(max_epochs=1, cv=2, **grid):
        search = GridSearchCV(model(max_epochs=max_epochs), grid, cv=cv)
        return search_cost(search, X, y, n_timed=32).seconds

    least = seconds(freeze=[0])
    assert seconds(freeze=[0, 1]) > least
    assert seconds(freeze=[0], cv=4) > least
    assert seconds(freeze=[0], max_epochs=2) > 1.4 * least


@dataclasses.dataclass
class Rung:
    count: int
    train_sizes: list
    test_sizes: list
    n_seen: int
    seconds: list


def test_seconds_of_rungs_are_summed():
    search = GridSearchCV(model(), {})
    dear, cheap = Seconds(0.5, 1.0, 0.1, 0.01), Seconds(0.0, 0.5, 0.0, 0.01)
    first = Rung(2, [20, 20], [10, 10], 30, [dear, cheap])
    fits = (2 * 1 + 40 * 0.1 + 20 * 0.01) + (2 * 0.5 + 20 * 0.01)
    refits = 0.5, 1 + 40 * 0.1
    # Of the 40 samples, 10 are in no fold, and pass the network for the refit.
    expected = [30 * 0.5 + fits + 10 * 0.5 + refit for refit in refits]
    assert search_seconds([first], 40, search) == pytest.approx(expected)
    search.set_params(refit=False, return_train_score=True)
    expected = 30 * 0.5 + fits + 2 * 40 * 0.01
    assert search_seconds([first], 40, search) == pytest.approx([expected] * 2)
    second = Rung(1, [40], [20], 40, [dear, cheap])
    found = search_seconds([first, second], 40, search)
    last = 0.5 + 60 * 0.01, 1 + 40 * 0.1 + 60 * 0.01
    assert found == pytest.approx([expected + 10 * 0.5 + one for one in last])


def test_nothing_is_left_behind():
    cache, part = EmbeddingCache(), model()
    part.set_params(cache=cache)
    folds, before = KFold(3), process_cache().info()
    search = GridSearchCV(part, {"freeze": [1, 2], "cache": [cache, "auto"]}, cv=folds)
    parameters = str(search.get_params())
    cost = search_cost(search, X, y, n_timed=32)
    assert cost.seconds > 0
    assert cache.info()[:5] == EmbeddingCache().info()[:5]
    assert process_cache().info() == before
    assert str(search.get_params()) == parameters
    assert not hasattr(search, "cv_results_")
    assert not part._is_fitted()
    untimed = search_cost(search, X, y)
    assert untimed.seconds is untimed.min_seconds is None
    assert dataclasses.replace(cost, seconds=None, min_seconds=None) == untimed


def test_clones_are_timed_with_the_parameters_of_their_candidate(monkeypatch):
    fits, fit = [], FineTuneClassifier.fit

    def watched(self, X, y, *args):
        fits.append((self.freeze, self.max_epochs, self.batch_size, len(X)))
        return fit(self, X, y, *args)

    monkeypatch.setattr(FineTuneClassifier, "fit", watched)
    grid = {"freeze": [0, 1], "max_epochs": [1, 2], "batch_size": [32, 48]}
    search_cost(GridSearchCV(model(), grid), X, y, n_timed=40)
    # The first fit is a warm-up. The others have a whole batch of the larger size.
    assert {(f, e, b) for f, e, b, _ in fits[1:]} == {
        (f, e, b) for f in (0, 1) for e in (1, 2) for b in (32, 48)
    }
    assert {n for *_, n in fits} == {48}
    fits.clear()
    search_cost(GridSearchCV(model(), {"freeze": [0]}), X, y, n_timed=1000)
    assert {n for *_, n in fits} == {N, 32}


@pytest.mark.parametrize("labels", [BLOCK, np.eye(3)[y]])
def test_some_samples_have_all_classes(labels):
    rows, chosen = _some_of(np.arange(N), labels, 4)
    assert len(np.unique(chosen, axis=0)) == len(np.unique(labels, axis=0))
    np.testing.assert_array_equal(labels[rows], chosen)
    assert len(set(rows)) == 4


def test_some_numbers_span_the_range_of_all():
    numbers = np.random.default_rng(0).normal(size=N)
    _, chosen = _some_of(list(X), numbers, 8)
    assert (chosen.min(), chosen.max()) == (numbers.min(), numbers.max())
    assert _some_of(list(X), None, 8)[1] is None


def test_kinds_of_estimators():
    values = np.sin(np.arange(N))
    search = GridSearchCV(model(FineTuneRegressor), {"freeze": [1, "all"]}, cv=3)
    assert search_cost(search, list(X), values, n_timed=16).seconds > 0
    texts, labels = make_texts()
    search = GridSearchCV(
        FineTuneClassifier(text_backbone(), max_epochs=1), {"freeze": [1]}, cv=2
    )
    assert search_cost(search, texts, labels, n_timed=8).seconds > 0


def test_fits_that_refuse_few_samples_are_proportional():
    # Of 32 samples, 5 are set aside, which cannot be of 8 classes.
    part = model(early_stopping=True, validation_fraction=0.15)
    classes = np.arange(N) % 8
    search = GridSearchCV(part, {"freeze": [1]}, cv=3)
    assert search_cost(search, X, classes, n_timed=64).seconds > 0


@pytest.mark.parametrize("n_timed", [0, -3, 2.5, "64", True])
def test_invalid_numbers_of_samples(n_timed):
    search = GridSearchCV(model(), {"freeze": [1]})
    with pytest.raises(ValueError, match=r"Invalid n_timed=.* positive int"):
        search_cost(search, X, y, n_timed=n_timed)


@pytest.mark.parametrize(
    ("span", "text"),
    [
        ((3.14, 3.14), "about 3.1 seconds"),
        ((47, 119), "about 47 to 119 seconds"),
        ((90, 1200), "about 1.5 to 20 minutes"),
        ((7000, 9000), "about 1.9 to 2.5 hours"),
    ],
)
def test_times_are_told_in_a_fitting_unit(span, text):
    cost = search_cost(GridSearchCV(model(), {"freeze": [1]}), X, y)
    assert "Time" not in str(cost)
    cost = dataclasses.replace(cost, min_seconds=span[0], seconds=span[1])
    assert str(cost).endswith(f"\nTime: {text}, in one process.")
