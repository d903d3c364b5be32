"""Which recipe makes the best model of few images: a probe, ours, or the tutorials'?

    python -m benchmarks.quality.defaults DATA --networks tiny mobilenet_v2=FILE

DATA holds the folders `hymenoptera` and `cifar10`, each with `train` and `test` (or
`val`), which have one folder of images for each class; `--sets NAME=NUMBER` takes so
many training images of each class, others for each seed. FILE holds the weights of a
network. "tiny" is run at its own 64 pixels, the others at `--image-size`.

Accuracy, log loss and expected calibration error are of the test images, the seconds
those of the fit. Nothing is cached between fits.
"""

import argparse
import copy
import functools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torchvision.transforms import v2

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor, load_backbone
from sktransfer.datasets import load_image_folder

# The recipes that are parameters of FineTuneClassifier; what is not named is default.
OURS = {
    "freeze=all": {"freeze": "all"},
    "freeze=-2": {"freeze": -2},
    "freeze=-3": {"freeze": -3},
    "freeze=0": {},
    "mild": {"augment": "mild"},
    "light": {"augment": "light"},
    # As fine_tune(4): a head of two layers, an epoch of it alone, then one-cycle with
    # rates down to a hundredth; but its batch norms stay, and its head has none.
    "fastai": {
        "hidden_layer_sizes": (512,),
        "dropout": 0.5,
        "head_epochs": 1,
        "max_epochs": 4,
        "lr_schedule": "one-cycle",
        "backbone_lr_mult": 0.1,
        "layer_decay": 0.6,
        "weight_decay": 1e-2,
        "batch_size": 64,
    },
    "from scratch": {"weights": None},
}


def ours(parameters, network, seed):
    """Return a FineTuneClassifier."""
    settings = {**network, **parameters}
    return FineTuneClassifier(**settings, random_state=seed, cache=None)


def probe(network, seed):
    """Return the linear probe of the textbook, C by the cross-validated log loss."""
    model = LogisticRegression(max_iter=2000)
    grid = {"C": np.logspace(-4, 2, 13)}
    return make_pipeline(
        PretrainedFeatureExtractor(**network, cache=None),
        StandardScaler(),
        GridSearchCV(model, grid, scoring="neg_log_loss"),
    )


def calibrated(network, seed):
    """Return a FineTuneClassifier whose scores are divided by a temperature.

    It is found by the predictions of two halves for each other (scikit-learn 1.8).
    """
    model = ours({}, network, seed)
    folds = StratifiedKFold(2, shuffle=True, random_state=seed)
    return CalibratedClassifierCV(model, method="temperature", cv=folds, ensemble=False)


@dataclass
class Phase:
    """Some epochs of a tutorial: how, and whether the whole network is trained."""

    epochs: int
    optimizer: functools.partial
    schedule: functools.partial | None = None
    whole: bool = True


@dataclass
class Tutorial:
    """A network with a new linear head, as tutorials train it in plain PyTorch."""

    network: dict
    seed: int
    phases: tuple
    augment: tuple
    batch_size: int = 32
    dropout: float = 0.0
    fixed_norms: bool = False

    def fit(self, X, y):
        """Train in phases."""
        torch.manual_seed(self.seed)
        source = load_backbone(**self.network)
        self.reader, self.stages = source.reader, copy.deepcopy(source.stages)
        output = nn.Linear(source.n_features, int(y.max()) + 1)
        self.head = nn.Sequential(nn.Dropout(self.dropout), output)
        squares, y = self._read(X), torch.from_numpy(y)
        for phase in self.phases:
            self._train(phase, squares, y)
        return self

    def _train(self, phase, squares, y):
        self.stages.train(not self.fixed_norms).requires_grad_(phase.whole)
        network = nn.Sequential(self.stages, self.head.train())
        optimizer = phase.optimizer(
            [p for p in network.parameters() if p.requires_grad]
        )
        schedule = phase.schedule and phase.schedule(optimizer)
        augment = v2.Compose([step(self.reader.crop) for step in self.augment])
        for _ in range(phase.epochs):
            for rows in torch.randperm(len(y)).split(self.batch_size):
                x = torch.stack([augment(square) for square in squares[rows]])
                optimizer.zero_grad()
                output = network(self.reader.normalise(x))
                nn.functional.cross_entropy(output, y[rows]).backward()
                optimizer.step()
            if schedule:
                schedule.step()

    def predict_proba(self, X):
        """Return probabilities of test images."""
        network = nn.Sequential(self.stages, self.head).eval()
        batches = self._read(X).split(32)
        with torch.inference_mode():
            found = [network(self.reader.normalise(x)).softmax(dim=1) for x in batches]
        return torch.cat(found).numpy()

    def _read(self, X):
        return torch.stack([self.reader.read(Path(x).read_bytes()) for x in X])


def flip(side):
    """Turn pictures left to right, by chance."""
    return v2.RandomHorizontalFlip()


# https://pytorch.org/tutorials/beginner/transfer_learning_tutorial.html
PYTORCH = functools.partial(
    Tutorial,
    phases=(
        Phase(
            25,
            functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
            functools.partial(StepLR, step_size=7, gamma=0.1),
        ),
    ),
    augment=(v2.RandomResizedCrop, flip),
    batch_size=4,
)
# https://keras.io/guides/transfer_learning, with as many epochs as TensorFlow's.
KERAS = functools.partial(
    Tutorial,
    phases=(
        Phase(10, functools.partial(torch.optim.Adam, lr=1e-3), whole=False),
        Phase(10, functools.partial(torch.optim.Adam, lr=1e-5)),
    ),
    augment=(flip, lambda side: v2.RandomRotation(36)),
    dropout=0.2,
    fixed_norms=True,
)
RECIPES = {
    "probe": probe,
    **{name: functools.partial(ours, how) for name, how in OURS.items()},
    "calibrated": calibrated,
    "PyTorch": PYTORCH,
    "Keras": KERAS,
}


def folders(path, per_class, seed):
    """Return training images, drawn by the seed, and all test images."""
    train = load_image_folder(path / "train")
    test = load_image_folder(path / ("test" if (path / "test").exists() else "val"))
    order = np.random.default_rng(seed).permutation(len(train.data))
    if per_class is not None:
        of_each = [order[train.target[order] == label] for label in set(train.target)]
        order = np.concatenate([rows[:per_class] for rows in of_each])
    return train.data[order], train.target[order], test.data, test.target


def calibration_error(y, proba, n_bins=10):
    """Return by how much confidence and accuracy differ, in bins of confidence."""
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, confidence - right, minlength=n_bins)
    return np.abs(gaps).sum() / len(y)


def figures(recipe, network, data, seed):
    """Fit a recipe; return accuracy, log loss, calibration error and seconds."""
    X, y, X_test, y_test = data
    start = time.perf_counter()
    model = RECIPES[recipe](network=network, seed=seed).fit(X, y)
    seconds = time.perf_counter() - start
    proba = model.predict_proba(X_test)
    accuracy = accuracy_score(y_test, proba.argmax(axis=1))
    loss, error = log_loss(y_test, proba), calibration_error(y_test, proba)
    return accuracy, loss, error, seconds


def rows(recipes, network, path, per_class, seeds):
    """Yield a row of the table for each recipe: mean and deviation over seeds."""
    for recipe in recipes:
        found = [
            figures(recipe, network, folders(path, per_class, seed), seed)
            for seed in range(seeds)
        ]
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        cells = [f"{mean[i]:.3f} ({spread[i]:.3f})" for i in range(3)]
        yield recipe, *cells, f"{mean[3]:.1f}"


def main():
    """Print a table for each network and set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--networks", nargs="+", default=["tiny"])
    parser.add_argument("--sets", nargs="+", default=["hymenoptera", "cifar10=50"])
    parser.add_argument(
        "--recipes", nargs="+", default=[*RECIPES], choices=RECIPES, metavar="RECIPE"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=96)
    arguments = parser.parse_args()

    print_machine()
    columns = ["accuracy (sd)", "log loss (sd)", "calibration error (sd)", "seconds"]
    for pair in arguments.networks:
        name, _, weights = pair.partition("=")
        size = None if name == "tiny" else arguments.image_size
        weights = weights or "default"
        network = {"backbone": name, "weights": weights, "image_size": size}
        for chosen in arguments.sets:
            folder, _, number = chosen.partition("=")
            path, number = arguments.data / folder, int(number) if number else None
            found = rows(arguments.recipes, network, path, number, arguments.seeds)
            print_table([f"{name}, {chosen}", *columns], found)


if __name__ == "__main__":
    main()
