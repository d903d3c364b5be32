"""Extraction by two workers of dask against this process, and what is sent to them.

    python -m benchmarks.speed.scaling_out FOLDER [--images N]

FOLDER holds pictures in class folders.
"""

import argparse
import time
from itertools import cycle, islice
from unittest import mock

import cloudpickle
import dask
import joblib
import numpy as np
from distributed import Client, LocalCluster

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import PretrainedFeatureExtractor
from sktransfer.datasets import load_image_folder


def sent(extractor, files):
    """Return the bytes of each task, as joblib's engines pickle it."""
    sizes, delayed = [], joblib.delayed

    def weighed(function):
        def call(*args):
            sizes.append(len(cloudpickle.dumps((function, args))))
            return delayed(function)(*args)

        return call

    with mock.patch("sktransfer.embedding._embed.delayed", weighed):
        extractor.set_params(n_jobs=2).transform(files)
    return sizes


# Dask has its workers give all free memory back, to be asked for again in each layer.
KEPT = {"MALLOC_TRIM_THRESHOLD_": 2**28, "MALLOC_MMAP_THRESHOLD_": 2**25}


def on_dask(extractor, files, environment):
    """Return embeddings and seconds of two workers that have the network already."""
    key = "distributed.nanny.pre-spawn-environ"
    with (
        dask.config.set({f"{key}.{name}": n for name, n in environment.items()}),
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        return timed(extractor.set_params(n_jobs=-1), files)


def timed(extractor, files):
    """Return embeddings and seconds."""
    extractor.transform(files[:200])
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
    alone = timed(extractor, files)
    default, kept = (on_dask(extractor, files, some) for some in ({}, KEPT))
    rows = {
        "this process, two lanes": alone,
        "two workers of dask": default,
        "two workers that keep their memory": kept,
    }
    print_table(
        [f"mobilenet_v3_small, {len(files)} files", "seconds"],
        [[name, f"{seconds:.1f}"] for name, (_, seconds) in rows.items()],
    )
    equal = [np.array_equal(alone[0], found) for found, _ in (default, kept)]
    print("\nequal to the last bit:", all(equal))
    sizes = sent(extractor, files)
    print(f"{len(sizes)} tasks of at most {max(sizes):,} bytes")


if __name__ == "__main__":
    main()
