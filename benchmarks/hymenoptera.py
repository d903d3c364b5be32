"""Accuracy on a folder of photos: probe, frozen, partly frozen and from scratch.

Usage: python benchmarks/hymenoptera.py DATA WEIGHTS, where DATA has the folders train
and val, each with one folder for each class, and WEIGHTS is a file of mobilenet_v2.
"""

import argparse
import time

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor
from sktransfer.datasets import load_image_folder

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data")
parser.add_argument("weights")
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--scratch-size", type=int, default=None)
arguments = parser.parse_args()
train = load_image_folder(f"{arguments.data}/train")
val = load_image_folder(f"{arguments.data}/val")
source = {"backbone": "mobilenet_v2", "weights": arguments.weights}
scratch = {"weights": None, "image_size": arguments.scratch_size}
probe = make_pipeline(
    PretrainedFeatureExtractor(**source), StandardScaler(), LogisticRegression(C=0.01)
)
rows = {
    "linear probe (LogisticRegression)": probe,
    "fine-tuned, all frozen": FineTuneClassifier(**source, freeze="all"),
    "fine-tuned, last stages": FineTuneClassifier(**source, freeze=-3),
    "from scratch": FineTuneClassifier(**source | scratch),
}
print("| model | accuracy on val, mean (range) of the seeds | seconds for all |")
print("|---|---|---|")
for name, model in rows.items():
    start, scores = time.perf_counter(), []
    for seed in range(1 if model is probe else arguments.seeds):
        if model is not probe:
            model.set_params(random_state=seed)
        model.fit(train.data, train.target)
        scores.append(model.score(val.data, val.target))
    seconds = time.perf_counter() - start
    spread = f"{np.mean(scores):.3f} ({min(scores):.3f} to {max(scores):.3f})"
    print(f"| {name} | {spread} | {seconds:.0f} |", flush=True)
