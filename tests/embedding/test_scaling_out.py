"""The same numbers on a cluster as in one process."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

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


SPREAD = """
import pickle
import sys

import numpy as np
import torch
from accelerate import Accelerator

from sktransfer import FineTuneClassifier
from tests.small_network import small_backbone

torch.set_num_threads(1)
X = np.random.default_rng(0).integers(0, 256, (32, 16, 16, 3), dtype=np.uint8)
accelerator = Accelerator(cpu=True)
model = FineTuneClassifier(
    small_backbone(),
    freeze=1,
    l2_sp=0.01,
    max_epochs=2,
    batch_size=8 // accelerator.num_processes,
    cache=None,
    device="cpu",
    random_state=0,
    net_params={"accelerator": accelerator, "iterator_train__shuffle": False},
).fit(X, np.arange(32) % 2)
model.partial_fit(X, np.arange(32) % 2)
pickle.loads(pickle.dumps(model.set_params(net_params=None)))
found = model.backbone_.digest, model.predict_proba(X)
with open(f"{sys.argv[1]}-{accelerator.process_index}", "wb") as file:
    pickle.dump((accelerator.num_processes, *found), file)
"""


def run_spread(folder, n_processes):
    script, out = folder / "spread.py", folder / f"of-{n_processes}"
    script.write_text(SPREAD)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc_per_node={n_processes}", script, out,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.getcwd(),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "epoch" not in done.stdout
    return [pickle.loads(Path(f"{out}-{i}").read_bytes()) for i in range(n_processes)]


@pytest.mark.slow
def test_two_processes_of_accelerate_fit_what_one_does(tmp_path):
    pytest.importorskip("accelerate")
    ((count, _, alone),) = run_spread(tmp_path, 1)
    (two, digest, spread), (_, other, _) = run_spread(tmp_path, 2)
    assert (count, two) == (1, 2)
    assert digest == other
    # Gradients of half batches, averaged, are those of the whole one.
    np.testing.assert_allclose(spread, alone, rtol=1e-4)
