"""Grid searches: a linear probe, its C and a freeze depth, against the plain way.

    python -m benchmarks.speed.searches FOLDER [--images N] [--one-core]

FOLDER holds images in class folders. All weights are random, which changes no time but
that of a solved head: for random features it takes longer than for trained ones. Plain
skorch trains the head where all else is frozen, and so do we for the first columns
(``solve_head=False``); by default, in the last one, the head is solved.
"""

import argparse
import functools
import os
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from joblib import Memory
from safetensors.torch import save_file
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from torchvision.models import resnet18

from benchmarks.side_by_side import (
    measure,
    precisions,
    print_machine,
    print_table,
    ratio,
)
from benchmarks.speed import peers
from sktransfer import (
    EmbeddingCache,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    load_backbone,
)
from sktransfer.datasets import load_image_folder

SIDE, EPOCHS, FOLDS = 64, 3, 3
PARTS = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]
# Value of `freeze` -> the parts of ResNet-18 that are trained.
TRAINED = {"all": PARTS[-1:], "layer3": PARTS[-2:], "layer2": PARTS[-3:], 0: PARTS}
GRID = {"head__C": list(np.logspace(-3, 1, 5))}
DEPTHS = {
    "head alone, after another search": ["all"],
    "head alone": ["all"],
    "without 'none'": ["all", "layer3", "layer2"],
    "all four": ["all", "layer3", "layer2", 0],
}


class PlainEmbedding(TransformerMixin, BaseEstimator):
    """The transformer that one writes by hand around torchvision."""

    def __init__(self, name="mobilenet_v3_small"):
        self.name = name

    def fit(self, X, y=None):
        torch.manual_seed(0)
        self.embed_ = peers.tutorial(self.name)
        return self

    def transform(self, X):
        return self.embed_(X)


def probe_grid(files, y, rounds):
    """Print 5 values of C in 5 folds, and the refit, on embeddings."""

    def search(embedding, memory=None):
        head = LogisticRegression(max_iter=200)
        steps = Pipeline([("embed", embedding), ("head", head)], memory=memory)
        GridSearchCV(steps, GRID, cv=5, error_score="raise").fit(files, y)

    forwards = []

    def with_ours():
        cache = EmbeddingCache()
        extractor = PretrainedFeatureExtractor(
            "mobilenet_v3_small", weights=None, cache=cache
        )
        search(extractor)
        forwards.append(cache.info().rows)

    def with_memory():
        with tempfile.TemporaryDirectory() as folder:
            search(PlainEmbedding(), Memory(folder, verbose=0))

    seconds = measure(
        {
            "sktransfer": with_ours,
            "a plain transformer": lambda: search(PlainEmbedding()),
            "a plain transformer, Pipeline(memory=)": with_memory,
        },
        rounds,
    )
    rows = [
        [name, f"{np.median(times):.1f}", ratio(times, seconds["sktransfer"])]
        for name, times in seconds.items()
    ]
    print_table(
        [f"probe grid, {len(files)} files", "seconds", "sktransfer is faster by"], rows
    )
    print(f"\nimages embedded by sktransfer: {max(forwards)}")


def head_grid(files, y, rounds):
    """Print 6 values of C in 5 folds, and the refit, once the images are embedded."""
    cache, values = EmbeddingCache(), np.logspace(-3, 0, 6)
    embeddings = PretrainedFeatureExtractor(cache=cache).fit_transform(files)
    ours = FineTuneClassifier(freeze="all", cache=cache)
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    path = LogisticRegressionCV(Cs=values, cv=5, max_iter=2000)
    searches = {
        "FineTuneClassifier": GridSearchCV(ours, {"C": values}, cv=5),
        "LogisticRegression": GridSearchCV(
            linear, {"logisticregression__C": values}, cv=5
        ),
    }
    variants = {
        f"GridSearchCV of {name}": functools.partial(
            search.fit, files if search.estimator is ours else embeddings, y
        )
        for name, search in searches.items()
    }
    path = make_pipeline(StandardScaler(), path)
    variants["LogisticRegressionCV"] = functools.partial(path.fit, embeddings, y)
    # By default, C is chosen in the fit.
    variants["FineTuneClassifier, C=None"] = functools.partial(ours.fit, files, y)
    with warnings.catch_warnings():
        # scikit-learn's own, of parameters whose meaning will change.
        warnings.simplefilter("ignore", FutureWarning)
        seconds = measure(variants, rounds)
    rows = [
        [name, f"{np.median(times):.2f}", ratio(times, seconds["LogisticRegressionCV"])]
        for name, times in seconds.items()
    ]
    title = f"grid over C, {len(files)} images, {len(np.unique(y))} classes"
    print_table([title, "seconds", "LogisticRegressionCV is faster by"], rows)


class PartlyFrozen(torch.nn.Module):
    """ResNet-18 that trains some of its parts, the others in evaluation mode."""

    def __init__(self, trained=("fc",), n_classes=10):
        super().__init__()
        self.network = resnet18(weights=None, num_classes=n_classes)
        self.trained = trained
        for name, part in self.network.named_children():
            part.requires_grad_(name in trained)

    def train(self, mode=True):
        super().train(mode)
        for name, part in self.network.named_children():
            if name not in self.trained:
                part.eval()
        return self

    def forward(self, x):
        return self.network(x)


def plain_search(X, y, depths):
    """Search over freeze depths with skorch alone."""
    net = NeuralNetClassifier(
        PartlyFrozen,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        max_epochs=EPOCHS,
        batch_size=32,
        train_split=None,
        verbose=0,
        iterator_train__shuffle=True,
    )
    grid = {"module__trained": [TRAINED[depth] for depth in depths]}
    return GridSearchCV(net, grid, cv=FOLDS, refit=False, error_score="raise").fit(X, y)


def our_search(
    images, y, depths, weights, precision="float32", cache=None, solve_head=False
):
    """Search over the same freeze depths with FineTuneClassifier."""
    model = FineTuneClassifier(
        "resnet18",
        weights=weights,
        image_size=SIDE,
        max_epochs=EPOCHS,
        head_epochs=0,
        batch_size=32,
        precision=precision,
        cache=cache or EmbeddingCache(max_bytes=2**32),
        solve_head=solve_head,
        random_state=0,
    )
    return GridSearchCV(
        model, {"freeze": depths}, cv=FOLDS, refit=False, error_score="raise"
    ).fit(images, y)


def freeze_grids(files, y, rounds, names=DEPTHS):
    """Print searches over the freeze depths of ResNet-18."""
    backbone = load_backbone("resnet18", weights=None, image_size=SIDE)
    read = backbone.reader.read
    squares = np.stack([read(Path(file).read_bytes()) for file in files])
    # Decoded and small already, for both sides.
    images = list(np.ascontiguousarray(squares.transpose(0, 2, 3, 1)))
    X, y = squares.astype(np.float32) / 255, y.astype(np.int64)
    kinds, rows = precisions("cpu"), []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "resnet18.safetensors")
        save_file(resnet18(weights=None).state_dict(), weights)
        for name in names:
            depths = DEPTHS[name]
            variants = {"plain": functools.partial(plain_search, X, y, depths)}
            settings = {precision: (precision, False) for precision in kinds}
            settings["float32, head solved"] = "float32", True
            for variant, (precision, solve_head) in settings.items():
                # The first, unmeasured call fills it.
                kept = EmbeddingCache(max_bytes=2**32) if "after" in name else None
                variants[variant] = functools.partial(
                    our_search, images, y, depths, weights, precision, kept, solve_head
                )
            seconds = measure(variants, rounds)
            ratios = [ratio(seconds["plain"], seconds[one]) for one in settings]
            rows.append([name, f"{np.median(seconds['plain']):.1f}", *ratios])
    head = [f"freeze grid, {len(X)} images of {SIDE} pixels", "plain skorch, seconds"]
    print_table([*head, *(f"sktransfer, {one}: faster by" for one in settings)], rows)


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--probe-images", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--grids", nargs="+", choices=DEPTHS, default=list(DEPTHS))
    parser.add_argument("--one-core", action="store_true", help="Linux only")
    arguments = parser.parse_args()
    if arguments.one_core:
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        torch.set_num_threads(1)
        print("on one core of ", end="")
    print_machine()
    photos = load_image_folder(arguments.folder)
    order = np.random.default_rng(0).permutation(len(photos.data))
    files = [photos.data[row] for row in order]
    y = np.unique(photos.target[order], return_inverse=True)[1]
    if few := arguments.probe_images:
        probe_grid(files[:few], y[:few], arguments.rounds)
    some = arguments.images
    head_grid(files[:some], y[:some], arguments.rounds)
    freeze_grids(files[:some], y[:some], arguments.rounds, arguments.grids)


if __name__ == "__main__":
    main()
