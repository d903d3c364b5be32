"""The same numbers on a cluster as in one process."""

import joblib
import numpy as np
import PIL.Image
import pytest
from sklearn.model_selection import GridSearchCV

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor

N_IMAGES = 70


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [str(folder / f"{i:03}.png") for i in range(N_IMAGES)]
    for path in paths:
        pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return paths, np.arange(N_IMAGES) % 2


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


def tasks_done(client):
    return client.run(lambda dask_worker: dask_worker.state.executed_count)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_chunks_on_dask_give_the_embeddings_of_one_process(photos, cluster):
    paths, _ = photos
    extractor = PretrainedFeatureExtractor(cache=None)
    alone = extractor.fit_transform(paths)
    before = tasks_done(cluster)
    with joblib.parallel_config(backend="dask"):
        spread = extractor.transform(paths)
    assert np.array_equal(spread, alone)
    after = tasks_done(cluster)
    assert all(after[worker] > before[worker] for worker in after)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_search_on_dask_gives_the_scores_of_one_process(photos, cluster, tmp_path):
    paths, y = photos
    model = FineTuneClassifier(max_epochs=1, cache=tmp_path, random_state=0)
    search = GridSearchCV(model, {"freeze": ["layer4", "all"]}, cv=2, refit=False)
    alone = search.fit(paths, y).cv_results_["mean_test_score"].copy()
    with joblib.parallel_config(backend="dask"):
        spread = search.fit(paths, y).cv_results_["mean_test_score"]
    assert np.array_equal(spread, alone)
