"""What `search_cost` estimates beside what a search takes.

    python -m benchmarks.speed.search_cost FOLDER [--backbone NAME] [--weights FILE]

FOLDER holds images in class folders. Each search is estimated just before it runs. A
search whose refit, or whose survivors, may be cheap or costly has a span of estimates;
the ratio is 1 within it. `--image-size` and `--epochs` make it shorter.
"""

import argparse
import time

import numpy as np
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV
from sklearn.pipeline import make_pipeline

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import (
    EmbeddingCache,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    search_cost,
)
from sktransfer.datasets import load_image_folder

DEPTHS = [-4, -3, -2, "all"]


def searches(network, max_epochs):
    """Return the searches by name, each with a cache of its own."""

    def tuned(**parameters):
        settings = {"max_epochs": max_epochs, "random_state": 0, **parameters}
        return FineTuneClassifier(**network, cache=EmbeddingCache(), **settings)

    embedder = PretrainedFeatureExtractor(**network, cache=EmbeddingCache())
    probe = make_pipeline(embedder, LogisticRegression(max_iter=300))
    options = {"factor": 2, "random_state": 0}
    return {
        "depths": GridSearchCV(tuned(), {"freeze": DEPTHS}),
        "depths, no refit": GridSearchCV(tuned(), {"freeze": DEPTHS}, refit=False),
        "depths, augmented": GridSearchCV(
            tuned(augment="light"), {"freeze": DEPTHS[1:]}, cv=3
        ),
        "solved head": GridSearchCV(tuned(freeze="all"), {"C": [None, 0.01, 0.1, 1]}),
        "probe": GridSearchCV(probe, {"logisticregression__C": [0.001, 0.01, 0.1]}),
        "depths, halving": HalvingGridSearchCV(tuned(), {"freeze": DEPTHS}, **options),
    }


def compared(name, search, X, y, n_timed):
    """Return a row: what was estimated, what it took, and their ratio."""
    start = time.perf_counter()
    cost = search_cost(search, X, y, n_timed=n_timed)
    timing = time.perf_counter() - start
    start = time.perf_counter()
    search.fit(X, y)
    taken = time.perf_counter() - start
    nearest = np.clip(taken, cost.min_seconds, cost.seconds)
    span = f"{cost.min_seconds:.1f} to {cost.seconds:.1f}"
    return [name, span, f"{taken:.1f}", f"{nearest / taken:.2f}", f"{timing:.1f}"]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", default="default")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--n-timed", type=int, default=64)
    parser.add_argument("--searches", nargs="+", default=list(searches({}, 1)))
    arguments = parser.parse_args()
    photos = load_image_folder(arguments.folder)
    order = np.random.default_rng(0).permutation(len(photos.data))[: arguments.images]
    X, y = [photos.data[row] for row in order], photos.target[order]
    names = "backbone", "weights", "image_size"
    network = {name: getattr(arguments, name) for name in names}
    print_machine()
    rows = [
        compared(name, search, X, y, arguments.n_timed)
        for name, search in searches(network, arguments.epochs).items()
        if name in arguments.searches
    ]
    head = f"{arguments.backbone}, {len(X)} images, timed with {arguments.n_timed}"
    columns = [head, "estimated seconds", "taken", "ratio", "seconds of timing"]
    print_table(columns, rows)


if __name__ == "__main__":
    main()
