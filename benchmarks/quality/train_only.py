"""What is lost, and saved, by tuning norms or biases alone.

    python -m benchmarks.quality.train_only FOLDER ... --networks tiny mobilenet_v2=FILE

Each FOLDER has one folder of images for each class; "digits" stands for those of
scikit-learn. For each seed, other images are drawn: `--images` of each class to learn
from, and up to `--test-images` to test. FILE holds the weights of a network. "tiny" is
run at its own 64 pixels, the others at `--image-size`.

`--ratios` are values of `backbone_lr_mult` for norms and biases. That of "auto" was
chosen by this table for some sets, and need not be the best for others.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import FineTuneClassifier, save
from sktransfer.datasets import load_image_folder

COLUMNS = ["accuracy (sd)", "log loss (sd)", "trained", "kB in a file", "seconds"]


def images_of(source):
    """Return all images and labels of a folder, or scikit-learn's digits."""
    if source == "digits":
        return load_digits(return_X_y=True)
    folder = load_image_folder(source)
    return folder.data, folder.target


def drawn(X, y, count, test_count, seed):
    """Return so many training and test images of each class, and their labels."""
    order = np.random.default_rng(seed).permutation(len(y))
    parts = [order[y[order] == label] for label in np.unique(y)]
    train = np.concatenate([part[:count] for part in parts])
    test = np.concatenate([part[count : count + test_count] for part in parts])
    return X[train], y[train], X[test], y[test]


def figures(model, data):
    """Fit a model; return what it scores, what was trained, its file and seconds."""
    X, y, X_test, y_test = data
    start = time.perf_counter()
    model.fit(X, y)
    seconds = time.perf_counter() - start
    proba = model.predict_proba(X_test)
    accuracy = accuracy_score(y_test, model.classes_[proba.argmax(axis=1)])
    loss = log_loss(y_test, proba, labels=model.classes_)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        save(model, path)
        size = path.stat().st_size / 1000
    return accuracy, loss, model.n_trained_parameters_, size, seconds


def ways(ratios):
    """Yield the name and the parameters of each way to train."""
    yield "a linear probe", {"freeze": "all"}
    yield "all", {}
    for kind, ratio in itertools.product(("norms", "biases"), ratios):
        parameters = {"train_only": kind, "backbone_lr_mult": ratio}
        yield f"{kind}, {ratio}", parameters


def rows(network, source, arguments):
    """Yield a row for each way: means and deviations over seeds."""
    X, y = images_of(source)
    for name, parameters in ways(arguments.ratios):
        found = []
        for seed in range(arguments.seeds):
            settings = {**network, **parameters, "max_epochs": arguments.epochs}
            model = FineTuneClassifier(**settings, random_state=seed)
            counts = arguments.images, arguments.test_images
            found.append(figures(model, drawn(X, y, *counts, seed)))
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        cells = [f"{mean[i]:.3f} ({spread[i]:.3f})" for i in range(2)]
        yield name, *cells, f"{mean[2]:,.0f}", f"{mean[3]:,.0f}", f"{mean[4]:.1f}"


def ratio(text):
    """Return a value of `backbone_lr_mult`."""
    return text if text == "auto" else float(text)


def main():
    """Print a table for each network and set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="FOLDER")
    parser.add_argument("--networks", nargs="+", default=["tiny"])
    parser.add_argument("--ratios", nargs="+", default=["auto"], type=ratio)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--test-images", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=96)
    arguments = parser.parse_args()

    print_machine()
    for pair, source in itertools.product(arguments.networks, arguments.sets):
        name, _, weights = pair.partition("=")
        size = None if name == "tiny" else arguments.image_size
        network = {
            "backbone": name,
            "weights": weights or "default",
            "image_size": size,
        }
        title = f"{name}, {Path(source).name}, {arguments.images} of each class"
        print_table([title, *COLUMNS], rows(network, source, arguments))


if __name__ == "__main__":
    main()
