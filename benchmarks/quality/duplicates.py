"""Which near copies of photographs does find_duplicates find, and what else?

    python -m benchmarks.quality.duplicates IMAGES [IMAGES ...]

IMAGES is a folder of images, or a zip of them; `digits` are those of scikit-learn. Of
some of its images, copies of one kind at a time are put beside all of them. A copy is
found (recall) if its similarity with its original reaches the threshold. Precision is
the part of all pairs from the threshold on that are an original and its copy; near
copies that the set holds itself count as errors. "samples" is the part of the originals
with another original that is as similar.
"""

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
from sklearn.datasets import load_digits

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import PretrainedFeatureExtractor
from sktransfer.datasets import list_images
from sktransfer.embedding._duplicates import Copies


def compressed(image, quality):
    """Return the image as a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def scaled(image, factor):
    """Return the image with sides of another length."""
    sides = (max(1, round(side * factor)) for side in image.size)
    return image.resize(tuple(sides), PIL.Image.Resampling.LANCZOS)


def cropped(image, part, rng):
    """Return a part of the image, at a random place."""
    sides = [max(1, round(side * part)) for side in image.size]
    left, top = (
        rng.integers(0, whole - side + 1)
        for whole, side in zip(image.size, sides, strict=True)
    )
    return image.crop((left, top, left + sides[0], top + sides[1]))


def lit(image, factor):
    """Return the image lighter or darker."""
    return PIL.ImageEnhance.Brightness(image).enhance(factor)


KINDS = {
    "JPEG of quality 75": lambda image, rng: compressed(image, 75),
    "JPEG of quality 30": lambda image, rng: compressed(image, 30),
    "half the size": lambda image, rng: scaled(image, 0.5),
    "double the size": lambda image, rng: scaled(image, 2),
    "95 % of each side": lambda image, rng: cropped(image, 0.95, rng),
    "90 % of each side": lambda image, rng: cropped(image, 0.9, rng),
    "80 % of each side": lambda image, rng: cropped(image, 0.8, rng),
    "mirrored": lambda image, rng: PIL.ImageOps.mirror(image),
    "lighter (1.2)": lambda image, rng: lit(image, 1.2),
    "darker (0.7)": lambda image, rng: lit(image, 0.7),
    "grey": lambda image, rng: PIL.ImageOps.grayscale(image),
    "turned by 5 degrees": lambda image, rng: image.rotate(
        5, PIL.Image.Resampling.BICUBIC
    ),
    "several of these": lambda image, rng: compressed(
        lit(PIL.ImageOps.mirror(cropped(scaled(image, 0.8), 0.9, rng)), 1.1), 75
    ),
}


def images_of(given, count, rng):
    """Return some of the images of a set."""
    if given == "digits":
        found = list(load_digits().images.astype(np.uint8) * 15)
    elif zipfile.is_zipfile(given):
        with zipfile.ZipFile(given) as file:
            names = [n for n in file.namelist() if n.lower().endswith((".jpeg", "jpg"))]
            rows = rng.permutation(len(names))[:count]
            return [file.read(names[row]) for row in rows]
    else:
        found = [Path(path).read_bytes() for path in list_images(given)]
    return [found[row] for row in rng.permutation(len(found))[:count]]


def opened(given):
    """Return an image, to make a copy of."""
    if isinstance(given, bytes):
        return PIL.Image.open(io.BytesIO(given)).convert("RGB")
    return PIL.Image.fromarray(given).convert("RGB")


def rows_of(extractor, images, n_copies, thresholds, rng):
    """Yield a row for each kind of copy: recall and precision by threshold."""
    originals = np.arange(len(images))
    alone = Copies.of(extractor, images)
    similar = alone.directions @ alone.directions.T - 2 * np.eye(len(images))
    false = [f"{np.mean(similar.max(axis=1) >= t):.3f}" for t in thresholds]
    chosen = images[: min(n_copies, len(images))]
    for name, change in KINDS.items():
        copied = [change(opened(image), rng) for image in chosen]
        copies = Copies.of(extractor, [*images, *copied])
        similar = copies.directions @ copies.directions.T
        pairs = np.triu(similar, 1)
        own = similar[originals[: len(chosen)], len(images) + np.arange(len(chosen))]
        cells = []
        for threshold in thresholds:
            right, all_ = (own >= threshold).sum(), (pairs >= threshold).sum()
            precision = f"{right / all_:.2f}" if all_ else "-"
            cells.append(f"{right / len(own):.2f} / {precision}")
        yield name, *cells
    yield "samples", *false


def main():
    """Print a table for each set and network."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="+", metavar="IMAGES")
    parser.add_argument("--network", default="tiny")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--copies", type=int, default=100)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.5, 0.6, 0.7])
    arguments = parser.parse_args()
    extractor = PretrainedFeatureExtractor(
        arguments.network, weights=arguments.weights, image_size=arguments.image_size
    )
    print_machine()
    for given in arguments.images:
        rng = np.random.default_rng(0)
        images = images_of(given, arguments.count, rng)
        head = f"{Path(given).name}, {len(images)} images, {arguments.network}"
        columns = [
            f"{threshold} (recall / precision)" for threshold in arguments.thresholds
        ]
        found = rows_of(extractor, images, arguments.copies, arguments.thresholds, rng)
        print_table([head, *columns], found)


if __name__ == "__main__":
    main()
