"""One fitted estimator and one cache, used by several threads at the same time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from sktransfer import EmbeddingCache, FineTuneClassifier, PretrainedFeatureExtractor
from tests.small_network import backbone_of_blocks
from tests.small_tasks import make_task

N_THREADS = 4
X, y = make_task(24)


def at_once(*works):
    """Call functions in threads that begin together, and return what they return."""
    begin = threading.Barrier(len(works), timeout=60)

    def wait_and(work):
        begin.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(wait_and, works))


def parts():
    """Overlapping parts of the task, one for each thread: they look up, and store."""
    return [np.arange(4 * i, 4 * i + 12) for i in range(N_THREADS)]


@pytest.fixture(params=["memory", "disk", "none"])
def cache(request, tmp_path):
    found = {"memory": EmbeddingCache(), "disk": EmbeddingCache(tmp_path)}
    return found.get(request.param)


def test_threads_share_an_extractor_and_a_cache(cache):
    # Without a cache of its own, the network is still to be fused and cut.
    alone = PretrainedFeatureExtractor(backbone_of_blocks(), cache=None)
    expected = alone.fit_transform(X)
    shared = PretrainedFeatureExtractor(backbone_of_blocks(), cache=cache).fit(X)
    stages = [shared, *(clone_at(shared, stage) for stage in ["a", "b"])]
    works = [
        lambda model=model, rows=rows: model.transform([X[row] for row in rows])
        for model in stages
        for rows in parts()
    ]
    for _ in range(3):
        found = at_once(*works)
        for rows, embeddings in zip(parts(), found[:N_THREADS], strict=True):
            np.testing.assert_array_equal(embeddings, expected[rows])
        if cache is not None:
            assert cache.verify() == []
            assert cache.info().rows > 0


def clone_at(extractor, stage):
    params = {"stage": stage, "cache": extractor.cache}
    return PretrainedFeatureExtractor(extractor.backbone, **params).fit(X)


@pytest.mark.parametrize("freeze", [1, "all"])
def test_threads_share_a_classifier(freeze, cache):
    params = {"freeze": freeze, "max_epochs": 1, "random_state": 0}
    backbone = backbone_of_blocks()
    model = FineTuneClassifier(backbone, cache=cache, **params).fit(X, y)
    alone = FineTuneClassifier(backbone_of_blocks(), cache=None, **params)
    expected = alone.fit(X, y).predict_proba(X)
    works = [
        lambda rows=rows: model.predict_proba([X[row] for row in rows])
        for rows in parts()
    ]
    for rows, proba in zip(parts(), at_once(*works), strict=True):
        np.testing.assert_array_equal(proba, expected[rows])


def test_threads_fit_side_by_side(cache):
    backbone = backbone_of_blocks()

    def fit(freeze, cache=cache):
        params = {"freeze": freeze, "max_epochs": 2, "dropout": 0.2, "random_state": 0}
        model = FineTuneClassifier(backbone, cache=cache, **params).fit(X, y)
        return model.predict_proba(X)

    depths = [0, 1, 2, 1]
    found = at_once(*(lambda freeze=freeze: fit(freeze) for freeze in depths))
    for freeze, proba in zip(depths, found, strict=True):
        np.testing.assert_array_equal(proba, fit(freeze, cache=None))


def test_a_search_in_threads_gives_what_one_thread_gives():
    model = FineTuneClassifier(
        backbone_of_blocks(), max_epochs=1, random_state=0, cache=EmbeddingCache()
    )
    grid = {"freeze": [1, 2, "all"]}
    alone = GridSearchCV(model, grid, cv=2).fit(X, y)
    with joblib.parallel_backend("threading", n_jobs=2):
        search = GridSearchCV(model.set_params(cache=EmbeddingCache()), grid, cv=2)
        search.fit(X, y)
    for split in range(2):
        name = f"split{split}_test_score"
        np.testing.assert_array_equal(search.cv_results_[name], alone.cv_results_[name])
    np.testing.assert_array_equal(search.predict_proba(X), alone.predict_proba(X))
