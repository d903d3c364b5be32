"""How good are the features of "tiny", and how fast is it?

    python -m benchmarks.tiny.quality --hymenoptera DIR --cifar10 DIR --teacher WEIGHTS

DIR holds `train` and `test` (or `val`), with one folder of images for each class;
WEIGHTS is a file of torchvision's mobilenet_v2. `--photos DIR` adds a set, with one
folder of images for each class: 30 of each train, and the others test. `--weights`
tries another file in place of the bundled one. Needs scikit-image, for its HOG features
and its photographs.

Every column is the test accuracy of the same linear probe, StandardScaler and
LogisticRegression(C=0.01), on the same split.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from skimage.feature import hog
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor, load_backbone
from sktransfer.backbones._fusion import fuse
from sktransfer.datasets import load_image_folder

PHOTOS = [
    "astronaut", "brick", "camera", "cell", "chelsea", "coffee", "coins", "grass",
    "gravel", "hubble_deep_field", "immunohistochemistry", "microaneurysms", "moon",
    "page", "retina", "rocket", "stereo_motorcycle", "text",
]  # fmt: skip


def folders(path):
    """Photographs in folders, split as they come."""
    train = load_image_folder(path / "train")
    test = load_image_folder(path / ("test" if (path / "test").exists() else "val"))
    X = [Image.open(file).convert("RGB") for file in [*train.data, *test.data]]
    y = np.concatenate([train.target, test.target])
    return X, y, np.arange(len(X)) < len(train.data)


def few_photographs(path, n_images=30):
    """Photographs in one folder for each class, of which a few train."""
    data = load_image_folder(path)
    shuffled = np.random.default_rng(0).permutation(len(data.target))
    trains = np.zeros(len(data.target), dtype=bool)
    for label in range(len(data.target_names)):
        trains[shuffled[data.target[shuffled] == label][:n_images]] = True
    X = [Image.open(file).convert("RGB") for file in data.data]
    return X, data.target, trains


def digits():
    """Scikit-learn's handwritten digits: the first half trains."""
    X, y = load_digits(return_X_y=True)
    images = np.uint8(X.reshape(-1, 8, 8) / 16 * 255)
    return list(map(Image.fromarray, images)), y, np.arange(len(y)) < len(y) // 2


def faces():
    """Is it a face? Two hundred grey pictures of scikit-image: every other trains."""
    images = np.uint8(skimage.data.lfw_subset() * 255)
    y = np.arange(len(images)) < 100
    return list(map(Image.fromarray, images)), y, np.arange(len(images)) % 2 == 0


def photographs():
    """Yield scikit-image's photographs, as uint8 arrays."""
    for name in PHOTOS:
        loaded = getattr(skimage.data, name)()
        photo = np.asarray(loaded[0] if isinstance(loaded, tuple) else loaded)
        if photo.dtype != np.uint8:
            photo = np.uint8(255 * (photo / photo.max()))
        yield photo


def patches(side=64):
    """From which photograph is a patch? The left half of each trains."""
    X, y, trains = [], [], []
    for label, photo in enumerate(photographs()):
        height, width = photo.shape[:2]
        for top in range(0, height - side + 1, side):
            for left in range(0, width - side + 1, side):
                if left < width // 2 < left + side:
                    continue  # on both sides of the middle
                X.append(Image.fromarray(photo[top : top + side, left : left + side]))
                y.append(label)
                trains.append(left < width // 2)
    return X, np.array(y), np.array(trains)


def turned_patches(n_patches=30, smallest=24):
    """The same of grey patches of any size and place, turned: the harder question."""
    rng = np.random.default_rng(0)
    X, y, trains = [], [], []
    for label, photo in enumerate(photographs()):
        image = Image.fromarray(photo).convert("L")
        middle = image.width // 2
        for first, last in ((0, middle), (middle, image.width)):
            largest = min(image.height, last - first) // 2
            for side in rng.integers(smallest, largest + 1, size=n_patches):
                left = rng.integers(first, last - side + 1)
                top = rng.integers(image.height - side + 1)
                patch = image.crop((left, top, left + side, top + side))
                X.append(patch.rotate(90 * int(rng.integers(4))))
                y.append(label)
                trains.append(first == 0)
    return X, np.array(y), np.array(trains)


def as_pixels(images):
    """Return the 32 x 32 pixels of pictures, as rows."""
    size, how = (32, 32), Image.BILINEAR
    squares = [image.convert("RGB").resize(size, how) for image in images]
    return np.stack(squares).reshape(len(images), -1) / 255


def as_hog(images):
    """Return histograms of oriented gradients of 64 x 64 pixels, as rows."""
    squares = [image.convert("L").resize((64, 64), Image.BILINEAR) for image in images]
    return np.stack([hog(np.asarray(square)) for square in squares])


def speeds(networks, n_images=16, repetitions=15):
    """Return images per second of each network on one core, interleaved, fused."""
    seconds = {name: [] for name in networks}
    ready = {}
    for name, (backbone, side) in networks.items():
        images = torch.randn(n_images, 3, side, side)
        channels_last = torch.channels_last
        ready[name] = (
            fuse(backbone.stages).to(memory_format=channels_last),
            images.contiguous(memory_format=channels_last),
        )
    with torch.inference_mode():
        for _ in range(repetitions):
            for name, (network, images) in ready.items():
                start = time.perf_counter()
                network(images)
                seconds[name].append(time.perf_counter() - start)
    return {name: n_images / np.median(times) for name, times in seconds.items()}


def accuracy(features, y, trains):
    """Return the test accuracy of the linear probe."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    return probe.fit(features[trains], y[trains]).score(features[~trains], y[~trains])


def tune(images, y, trains, arguments):
    """Return the test accuracy of "tiny" tuned, and from scratch."""
    X = [np.asarray(image) for image in images]
    train = [x for x, one in zip(X, trains, strict=True) if one]
    test = [x for x, one in zip(X, trains, strict=True) if not one]
    for name, weights in (("fine-tuned", arguments.weights), ("from scratch", None)):
        model = FineTuneClassifier(
            weights=weights, max_epochs=arguments.epochs, random_state=0
        )
        yield name, model.fit(train, y[trains]).score(test, y[~trains])


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hymenoptera", type=Path, required=True)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--epochs", type=int, default=30, help="of fine-tuning")
    arguments = parser.parse_args()

    print_machine()
    teacher = {"backbone": "mobilenet_v2", "weights": arguments.teacher}
    columns = {
        "pixels": as_pixels,
        "HOG": as_hog,
        "untrained": PretrainedFeatureExtractor("tiny", weights=None).fit_transform,
        "tiny": PretrainedFeatureExtractor(weights=arguments.weights).fit_transform,
        "MobileNetV2": PretrainedFeatureExtractor(**teacher).fit_transform,
    }
    sets = {
        "hymenoptera": folders(arguments.hymenoptera),
        "CIFAR-10": folders(arguments.cifar10),
        "digits": digits(),
        "faces": faces(),
        "patches": patches(),
        "turned patches": turned_patches(),
    }
    if arguments.photos:
        sets["photos"] = few_photographs(arguments.photos)
    print_table(["data", "train + test", *columns, "tiny / MobileNetV2"], [])
    seconds = dict.fromkeys(columns, 0.0)
    for name, (images, y, trains) in sets.items():
        row = []
        for column, embed in columns.items():
            start = time.perf_counter()
            row.append(accuracy(embed(images), y, trains))
            seconds[column] += time.perf_counter() - start
        cells = [name, f"{trains.sum()} + {(~trains).sum()}"]
        cells += [f"{value:.3f}" for value in [*row, row[-2] / row[-1]]]
        print("|", " | ".join(cells), "|", flush=True)
    print("seconds of all:", {name: round(value) for name, value in seconds.items()})

    torch.set_num_threads(1)
    found = speeds(
        {
            "tiny": (load_backbone("tiny", weights=arguments.weights), 64),
            "MobileNetV2": (load_backbone(**teacher), 224),
        }
    )
    ratio = found["tiny"] / found["MobileNetV2"]
    print({name: round(value, 1) for name, value in found.items()}, "images per second")
    print(f"tiny is {ratio:.1f} times as fast, on one core")
    for name, value in tune(*sets["CIFAR-10"], arguments):
        print(f"CIFAR-10, {name}, {arguments.epochs} epochs: {value:.3f}", flush=True)


if __name__ == "__main__":
    main()
