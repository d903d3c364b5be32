"""Photos as large as those of phones: what decoding them fast saves and costs.

    python -m benchmarks.speed.photos FOLDER [--weights NAME=FILE ...] [--files N]

FOLDER holds photographs in folders "train" and "val", each with a folder per class.
They are enlarged, and get the grain of a sensor, as no details of their own are left at
that size. Each of `--weights` is a network of torchvision with its weights; "tiny" is
measured as well.
"""

import argparse
import tempfile
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.side_by_side import measure, print_machine, print_table, ratio
from benchmarks.speed import peers
from sktransfer import PretrainedFeatureExtractor, load_backbone
from sktransfer.datasets import load_image_folder

WAYS = ("exact", "fast")
PHOTOS = 48


def enlarged(file, megapixels, folder):
    """Write a photo in the given size, as a camera would, and return its path."""
    image = Image.open(file).convert("RGB")
    scale = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    size = round(image.width * scale), round(image.height * scale)
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    rng = np.random.default_rng(0)
    pixels += rng.integers(-6, 7, pixels.shape, dtype=np.int16)
    # Two folders may have files of the same name.
    path = folder / "-".join([str(megapixels), *Path(file).parts[-3:]])
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return str(path)


def time_decoding(files, sizes, folder, rounds):
    """Print the milliseconds of one core from a file to pixels, by size of photo."""
    rows = []
    for megapixels in sizes:
        contents = [
            Path(enlarged(file, megapixels, folder)).read_bytes() for file in files
        ]
        for side in (64, 224):
            backbone = load_backbone("tiny" if side == 64 else "resnet18", weights=None)
            readers = {way: backbone.reader.decoded(way) for way in WAYS}
            seconds = measure(
                {
                    way: lambda reader=reader, contents=contents: [
                        reader.read(content) for content in contents
                    ]
                    for way, reader in readers.items()
                },
                rounds,
            )
            each = [1000 * np.median(seconds[way]) / len(contents) for way in WAYS]
            faster = ratio(seconds["exact"], seconds["fast"])
            rows.append([megapixels, side, *(f"{ms:.1f}" for ms in each), faster])
    head = ["megapixels", "input", "exact, ms", "fast, ms", "faster by"]
    print_table(head, rows)


def compare_embeddings(folder, weights, megapixels, into, n_files):
    """Print how far embeddings move, and what a linear probe makes of them."""
    sets = []
    for part in ("train", "val"):
        data = load_image_folder(Path(folder) / part)
        step = max(len(data.data) // n_files, 1)
        files = [enlarged(file, megapixels, into) for file in data.data[::step]]
        sets.append((files, data.target[::step]))
    (train, y), (test, expected) = sets
    rows = []
    for name, file in {"tiny": "default", **weights}.items():
        extractor = PretrainedFeatureExtractor(name, weights=file)
        found = {}
        for way in WAYS:
            extractor.set_params(decoding=way).fit(train)
            found[way] = [extractor.transform(files) for files in (train, test)]
        moved = torch.nn.functional.cosine_similarity(
            *(torch.from_numpy(np.vstack(found[way])).double() for way in WAYS)
        )
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)
        )
        scores = [
            f"{probe.fit(found[a][0], y).score(found[b][1], expected):.3f}"
            for a, b in (("exact", "exact"), ("fast", "fast"), ("exact", "fast"))
        ]
        away = f"{(1 - moved).mean():.1e}", f"{(1 - moved).max():.1e}"
        rows.append([megapixels, name, *away, *scores])
    head = ["megapixels", "network", "mean cosine distance", "largest"]
    print_table([*head, "probe: exact", "fast", "fitted exact, used fast"], rows)


def against_others(files, megapixels, folder, rounds):
    """Print how many photos a second each embeds with resnet18."""
    photos = [enlarged(file, megapixels, folder) for file in files]
    # Enough for batches on all cores.
    photos = list(islice(cycle(photos), PHOTOS))
    variants = {}
    for way in WAYS:
        extractor = PretrainedFeatureExtractor(
            "resnet18", weights=None, cache=None, decoding=way
        ).fit(photos)
        variants[f"sktransfer, {way}"] = lambda one=extractor: one.transform(photos)
    for name, embed in peers.installed().items():
        variants[name] = lambda embed=embed: embed(photos)
    seconds = measure(variants, rounds)
    rows = [
        [
            name,
            f"{len(photos) / np.median(times):.1f}",
            ratio(times, seconds["sktransfer, fast"]),
        ]
        for name, times in seconds.items()
    ]
    head = [f"resnet18, {megapixels} megapixels", "photos per second"]
    print_table([*head, "fast is faster by"], rows)


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--weights", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--files", type=int, default=6)
    parser.add_argument("--compared", type=int, default=400)
    parser.add_argument("--megapixels", type=int, nargs="*", default=[2, 5, 12, 48])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    weights = dict(given.split("=", 1) for given in arguments.weights)
    print_machine()
    data = load_image_folder(Path(arguments.folder) / "train").data
    files = list(data)[:: max(len(data) // arguments.files, 1)][: arguments.files]
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder)
        torch.set_num_threads(1)
        time_decoding(files, arguments.megapixels, into, arguments.rounds)
        torch.set_num_threads(torch.get_num_interop_threads())
        for megapixels in arguments.megapixels[:3]:
            against_others(files, megapixels, into, arguments.rounds)
            compare_embeddings(
                arguments.folder, weights, megapixels, into, arguments.compared
            )


if __name__ == "__main__":
    main()
