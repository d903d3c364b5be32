"""Accuracy on a folder of photos: probe, frozen, partly frozen and from scratch.

Usage: python benchmarks/hymenoptera.py DATA WEIGHTS, where DATA has the folders train
and val, each with one folder for each class, and WEIGHTS is a file of mobilenet_v2.
"""

import argparse
import time

from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import FineTuneClassifier, PretrainedFeatureExtractor
from sktransfer.datasets import load_image_folder

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("data")
parser.add_argument("weights")
parser.add_argument("--scratch-size", type=int, default=None)
arguments = parser.parse_args()
train = load_image_folder(f"{arguments.data}/train")
val = load_image_folder(f"{arguments.data}/val")
source = {"backbone": "mobilenet_v2", "weights": arguments.weights}
scratch = {"weights": None, "image_size": arguments.scratch_size}
rows = {
    "linear probe (LogisticRegression)": make_pipeline(
        PretrainedFeatureExtractor(**source),
        StandardScaler(),
        LogisticRegression(C=0.01),
    ),
    "fine-tuned, all frozen": FineTuneClassifier(
        **source, freeze="all", random_state=0
    ),
    "fine-tuned, last stages": FineTuneClassifier(**source, freeze=-3, random_state=0),
    "from scratch": FineTuneClassifier(**source | scratch, random_state=0),
}
print("| model | accuracy on val | seconds |\n|---|---|---|")
for name, model in rows.items():
    start = time.perf_counter()
    score = model.fit(train.data, train.target).score(val.data, val.target)
    seconds = time.perf_counter() - start
    print(f"| {name} | {score:.3f} | {seconds:.0f} |", flush=True)
