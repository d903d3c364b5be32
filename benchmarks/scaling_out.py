"""Extraction by two workers of dask against one, and what is sent to them.

    python benchmarks/scaling_out.py FOLDER [--images N]

FOLDER holds pictures in class folders.
"""

import argparse
import time
from itertools import cycle, islice
from unittest import mock

import cloudpickle
import joblib
import numpy as np
from distributed import Client, LocalCluster
from side_by_side import print_machine, print_table

from sktransfer import PretrainedFeatureExtractor, _embeddings
from sktransfer.datasets import load_image_folder


def sent(extractor, files):
    """Return the bytes of each task, as joblib's engines pickle it."""
    sizes, delayed = [], joblib.delayed

    def weighed(function):
        def call(*args):
            sizes.append(len(cloudpickle.dumps((function, args))))
            return delayed(function)(*args)

        return call

    with mock.patch.object(_embeddings, "delayed", weighed):
        extractor.set_params(n_jobs=2).transform(files)
    return sizes


def timed(extractor, files, n_workers):
    """Return embeddings and seconds of a cluster that is up and has the network."""
    with (
        LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        extractor.set_params(n_jobs=-1).transform(files[:200])
        start = time.perf_counter()
        found = extractor.transform(files)
        return found, time.perf_counter() - start


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    print_machine()
    files = list(load_image_folder(arguments.folder).data)
    files = list(islice(cycle(files), arguments.images))
    extractor = PretrainedFeatureExtractor(
        "mobilenet_v3_small", weights=None, cache=None
    )
    seconds, found = {}, {}
    for n_workers in (1, 2):
        found[n_workers], seconds[n_workers] = timed(extractor, files, n_workers)
    print_table(
        [f"mobilenet_v3_small, {len(files)} files, workers", "seconds"],
        [[n, f"{value:.1f}"] for n, value in seconds.items()],
    )
    print(f"\nfaster by {seconds[1] / seconds[2]:.2f}")
    print("equal to the last bit:", np.array_equal(found[1], found[2]))
    sizes = sent(extractor, files)
    print(f"{len(sizes)} tasks of at most {max(sizes):,} bytes")


if __name__ == "__main__":
    main()
