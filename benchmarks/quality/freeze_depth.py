"""A linear probe, fine-tuning at freeze depths, and training from scratch.

    python -m benchmarks.quality.freeze_depth TRAIN TEST WEIGHTS [--image-size N]

TRAIN and TEST are folders with one folder of images for each class, and WEIGHTS is a
file of mobilenet_v2's. `--depths` are values of `freeze`.
"""

import argparse
import time

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor
from sktransfer.datasets import load_image_folder


def scores(model, seeds, train, test):
    for seed in range(seeds):
        if "random_state" in model.get_params():
            model.set_params(random_state=seed)
        model.fit(train.data, train.target)
        yield model.score(test.data, test.target)


parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("train")
parser.add_argument("test")
parser.add_argument("weights")
parser.add_argument("--depths", nargs="*", default=["all", "-2"])
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--image-size", type=int, default=None)
parser.add_argument("--scratch-size", type=int, default=None)
parser.add_argument("--threads", type=int, default=None)
arguments = parser.parse_args()
if arguments.threads:
    torch.set_num_threads(arguments.threads)
train, test = load_image_folder(arguments.train), load_image_folder(arguments.test)
source = {
    "backbone": "mobilenet_v2",
    "weights": arguments.weights,
    "image_size": arguments.image_size,
}
scratch_size = arguments.scratch_size or arguments.image_size
depths = [depth if depth == "all" else int(depth) for depth in arguments.depths]
models = {
    "linear probe (LogisticRegression)": make_pipeline(
        PretrainedFeatureExtractor(**source),
        StandardScaler(),
        LogisticRegression(C=0.01),
    ),
    **{f"freeze={d!r}": FineTuneClassifier(**source, freeze=d) for d in depths},
    f"from scratch at {scratch_size or 224} pixels": FineTuneClassifier(
        "mobilenet_v2", weights=None, image_size=scratch_size
    ),
}
print("| model | test accuracy, mean (range) | seeds | seconds for each |")
print("|---|---|---|---|")
for name, model in models.items():
    start = time.perf_counter()
    seeds = 1 if "probe" in name else arguments.seeds
    found = list(scores(model, seeds, train, test))
    each = (time.perf_counter() - start) / seeds
    spread = f"{np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"
    print(f"| {name} | {spread} | {seeds} | {each:.0f} |", flush=True)
