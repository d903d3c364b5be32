"""Size of a saved model, time to load it, and whether it predicts the same.

    python -m benchmarks.speed.persistence [--backbone resnet50] [--weights FILE]

Fits a head on the frozen backbone, saves the classifier by sktransfer.save and by
pickle, and prints what each takes. Without a file, the backbone has random weights:
their values change neither size nor time.
"""

import argparse
import pickle
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from sktransfer import FineTuneClassifier, load, save


def timed(call, *args):
    """Return what a call returns, and its seconds."""
    start = time.perf_counter()
    result = call(*args)
    return result, time.perf_counter() - start


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--weights", default=None, help="a local file")
    parser.add_argument("--image-size", type=int, default=64)
    arguments = parser.parse_args()

    X, y = load_digits(n_class=3, return_X_y=True)
    model = FineTuneClassifier(
        arguments.backbone,
        weights=arguments.weights,
        image_size=arguments.image_size,
        freeze="all",
        random_state=0,
    )
    model.fit(X[:30], y[:30])
    expected = model.predict_proba(X[30:40])
    tuned = sum(value.nbytes for value in model.head_.state_dict().values())
    print(f"{arguments.backbone}: {model.backbone_.n_parameters:,} parameters, frozen")
    print(f"tuned tensors: {tuned / 1e6:.3f} MB")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        _, seconds = timed(save, model, path)
        size = path.stat().st_size
        print(
            f"save: {seconds:.2f} s, {(size - tuned) / 1e6:.3f} MB beyond the tensors"
        )
        loaded, seconds = timed(load, path)
        equal = np.array_equal(loaded.predict_proba(X[30:40]), expected)
        print(f"load: {seconds:.2f} s, predictions equal to the last bit: {equal}")
    content, seconds = timed(pickle.dumps, model)
    extra = (len(content) - tuned) / 1e6
    print(f"pickle: {seconds:.2f} s, {extra:.3f} MB beyond the tensors")


if __name__ == "__main__":
    main()
