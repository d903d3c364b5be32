"""Whether a million images cost a million times one: extraction, cache, and fit.

    python -m benchmarks.speed.scale [--images N ...] [--rows N] [--fit-images N]

Three tables. The first one is of extraction with "tiny" from `--images` arrays of noise
of 32 pixels: time of the processor and memory of a process of its own. The second one
is of a cache on disk of `--rows` embeddings: seconds to open it, and to look rows up
that were stored one after the other, or at random. The third one is of a fit whose
frozen outputs are kept in memory, read from a cache on disk in each step, or computed
in each step, with the limit of memory lowered.

The arrays of a million images take 3 GB, and their cache 2 GB of the disk.
"""

import argparse
import hashlib
import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.side_by_side import measure, print_machine, print_table, ratio
from sktransfer import EmbeddingCache, FineTuneClassifier, PretrainedFeatureExtractor
from sktransfer.finetuning import _examples

SIDE = 32
WIDTH = 384


def status(name):
    """Return a size of this process in MB; Linux only."""
    lines = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", lines)[1]) / 1000


def noise(count):
    """Return so many different images."""
    shape = (count, SIDE, SIDE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def extraction(count):
    """Return microseconds of the processor for an image, and MB of the peak."""
    X = noise(count)
    extractor = PretrainedFeatureExtractor(cache=None).fit(X[:1])
    extractor.transform(X[:64])
    held, start = status("VmRSS"), time.process_time()
    embeddings = extractor.transform(X)
    used = 1e6 * (time.process_time() - start) / count
    return used, X.nbytes / 1e6, embeddings.nbytes / 1e6, status("VmHWM") - held


def print_extraction(counts):
    """Print time and memory of more and more images."""
    rows = []
    for count in counts:
        fresh = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=fresh) as pool:
            used, given, made, more = pool.submit(extraction, count).result()
        sizes = f"{given:,.0f}", f"{made:,.0f}", f"{more:,.0f}"
        rows.append([f"{count:,}", f"{used:.0f}", *sizes, f"{1e3 * more / count:.2f}"])
    head = ["images", "us of the processor, each", "images, MB", "embeddings, MB"]
    print_table([*head, "more memory than the images, MB", "each, kB"], rows)


def key(number):
    """Return the key of a row."""
    return hashlib.sha256(int(number).to_bytes(8, "little")).digest()


def fill(folder, count, limit):
    """Store so many rows, as extraction does; return microseconds a row."""
    cache, rng = EmbeddingCache(folder, max_bytes=limit), np.random.default_rng(0)
    step, seconds = 2**23 // (4 * WIDTH), 0
    for first in range(0, count, step):
        values = rng.random((min(step, count - first), WIDTH), dtype=np.float32)
        rows = {key(first + i): value for i, value in enumerate(values)}
        start = time.perf_counter()
        cache.put_many(rows)
        seconds += time.perf_counter() - start
    return 1e6 * seconds / count


def print_cache(count, n_read=40_000):
    """Print how long it takes to store rows, open a cache of them, and find some."""
    rng, limit = np.random.default_rng(1), 4 * WIDTH * count * 2
    orders = {
        "one after the other": np.arange(min(n_read, count)),
        "at random": rng.choice(count, min(n_read, count), replace=False),
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = [["store a row", f"{fill(folder, count, limit):.1f} us"]]
        cache, held = EmbeddingCache(folder, max_bytes=limit), status("VmRSS")
        start = time.perf_counter()
        assert cache.info().rows == count
        rows.append(["open", f"{time.perf_counter() - start:.2f} s"])
        rows.append(["memory once it is open", f"{status('VmRSS') - held:.0f} MB"])
        for name, order in orders.items():
            keys = [key(number) for number in order]
            for step in (32, 1024):
                start = time.perf_counter()
                found = sum(
                    len(cache.get_many(keys[i : i + step]))
                    for i in range(0, len(keys), step)
                )
                assert found == len(keys)
                took = 1e6 * (time.perf_counter() - start) / found
                rows.append([f"find a row, {name}, {step} at once", f"{took:.1f} us"])
    print_table([f"a cache of {count:,} rows of {WIDTH} numbers", "takes"], rows)


def print_fit(count, rounds):
    """Print a fit with its frozen outputs in memory, on the disk, or not kept."""
    X, y = noise(count), np.arange(count) % 10
    model = FineTuneClassifier(freeze="layer3", max_epochs=5, random_state=0)
    limit = _examples._MAX_BYTES

    def fit(least, cache):
        _examples._MAX_BYTES = least
        try:
            model.set_params(cache=cache).fit(X, y)
        finally:
            _examples._MAX_BYTES = limit

    with tempfile.TemporaryDirectory() as folder:
        on_disk = EmbeddingCache(folder, max_bytes=2**34)
        seconds = measure(
            {
                "kept in memory": lambda: fit(limit, on_disk),
                "read from the disk in each step": lambda: fit(0, on_disk),
                "computed in each step": lambda: fit(0, None),
            },
            rounds,
        )
    rows = [
        [name, f"{np.median(times):.2f}", ratio(times, seconds["kept in memory"])]
        for name, times in seconds.items()
    ]
    title = f"a fit to {count:,} images, 5 epochs, frozen up to layer3"
    print_table([title, "seconds", "as long as in memory"], rows)


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, nargs="*", default=[10**4, 10**5, 10**6])
    parser.add_argument("--rows", type=int, default=10**6)
    parser.add_argument("--fit-images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine()
    print_cache(arguments.rows)
    print_fit(arguments.fit_images, arguments.rounds)
    print_extraction(arguments.images)


if __name__ == "__main__":
    main()
