"""What the cache costs when it is cold and saves when it is warm; growth of memory.

    python -m benchmarks.speed.caching FOLDER [--files N]

FOLDER holds photographs in class folders.
"""

import argparse
import multiprocessing
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from benchmarks.side_by_side import measure, print_machine, print_table, ratio
from sktransfer import EmbeddingCache, PretrainedFeatureExtractor, load_backbone
from sktransfer.datasets import load_image_folder


def cold_and_warm(network, files, rounds):
    """Print extraction without a cache, with an empty one, and with a full one."""
    backbone = load_backbone(network, weights=None, random_state=0)
    extractor = PretrainedFeatureExtractor(backbone).fit(files)

    def run(cache):
        extractor.set_params(cache=cache).transform(files)

    def cold_on_disk():
        with tempfile.TemporaryDirectory() as folder:
            run(EmbeddingCache(folder))

    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(
            {
                "without": lambda: run(None),
                "cold, in memory": lambda: run(EmbeddingCache()),
                "cold, on disk": cold_on_disk,
                "warm, on disk": lambda: run(EmbeddingCache(folder)),
            },
            3 * rounds,
        )
    rows = []
    for name, times in seconds.items():
        more = np.median(np.subtract(times, seconds["without"])) / len(files)
        cells = f"{np.median(times):.3f}", ratio(times, seconds["without"])
        rows.append([name, *cells, f"{1e6 * more:.0f}" if "cold" in name else ""])
    name = f"{network}, {len(files)} files, cache"
    print_table([name, "seconds", "ratio to none", "more, us a file"], rows)
    faster = ratio(seconds["cold, on disk"], seconds["warm, on disk"])
    print(f"\nwarm is faster than cold by {faster}")


def peak(files):
    """Return the most memory, in MB, that this process has held after extraction."""
    extractor = PretrainedFeatureExtractor("resnet18", weights=None, cache=None)
    extractor.fit_transform(files)
    # Linux only; getrusage's peak is handed down from the process that started this.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1000


def growth(files):
    """Print the peak of memory of processes that embed more and more files."""
    rows = []
    for count in (250, 1000):
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            some = list(islice(cycle(files), count))
            rows.append([count, pool.submit(peak, some).result()])
    ratio_ = rows[-1][1] / rows[0][1]
    print_table(["files", "peak memory, MB"], [[n, f"{mb:.0f}"] for n, mb in rows])
    print(f"\nratio: {ratio_:.3f}")


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--files", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine()
    files = list(load_image_folder(arguments.folder).data)
    # With the small network, what the cache itself takes is not lost in the noise.
    for network in ("resnet18", "tiny"):
        cold_and_warm(network, files[: arguments.files], arguments.rounds)
    growth(files)


if __name__ == "__main__":
    main()
