"""Spoken digits by a pretrained encoder of sounds, and by loudness in bands alone.

    python -m benchmarks.quality.sounds FOLDER BACKBONE [--max-length SECONDS]

FOLDER has files <digit>_<speaker>_<n>.wav, and BACKBONE is "hf/<folder>" of an encoder,
such as Whisper's. `--depths` are values of `freeze`, each of which trains a classifier.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    LeaveOneGroupOut,
    StratifiedKFold,
    StratifiedShuffleSplit,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sktransfer import (
    Backbone,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    load_backbone,
)
from sktransfer.datasets import list_sounds


def probe(backbone, **source):
    """A linear model of embeddings."""
    linear = LogisticRegression(max_iter=1000)
    return make_pipeline(
        PretrainedFeatureExtractor(backbone, **source), StandardScaler(), linear
    )


def seconds_per_clip(seconds, clips):
    extractor = PretrainedFeatureExtractor(source, max_length=seconds, cache=None)
    extractor.transform(clips[:1])
    start = time.perf_counter()
    extractor.transform(clips)
    return (time.perf_counter() - start) / len(clips)


splitters = {
    "5-fold": StratifiedKFold(5, shuffle=True, random_state=0),
    "100 labels": StratifiedShuffleSplit(5, train_size=100, random_state=0),
    "new speaker": LeaveOneGroupOut(),
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder")
parser.add_argument("backbone")
parser.add_argument("--max-length", type=float, default=1.0)
parser.add_argument("--depths", nargs="*", default=["layer3"])
parser.add_argument("--tasks", nargs="*", default=list(splitters))
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--threads", type=int, default=None)
arguments = parser.parse_args()
if arguments.threads:
    torch.set_num_threads(arguments.threads)
paths = list_sounds(arguments.folder)
names = [Path(path).stem.split("_") for path in paths]
digits, speakers = (np.array([name[i] for name in names]) for i in (0, 1))
source = load_backbone(arguments.backbone)
shared = {"max_length": arguments.max_length}
name = Path(arguments.backbone).name
baseline, reader = source.at_size(arguments.max_length).reader.plain()
bands = Backbone(nn.Sequential(nn.Flatten()), reader, name=baseline)
models = {
    baseline: probe(bands),
    f"{name}, linear probe": probe(source, **shared),
    **{
        f"{name}, freeze={depth!r}": FineTuneClassifier(
            source, freeze=depth, max_epochs=arguments.epochs, random_state=0, **shared
        )
        for depth in arguments.depths
    },
}
print(f"{len(paths)} clips of {', '.join(sorted({*speakers}))}\n")
print("| model | task | accuracy, mean (of each fold) | seconds |")
print("|---|---|---|---|")
for name, model in models.items():
    for task in arguments.tasks:
        groups = speakers if task == "new speaker" else None
        folds = list(splitters[task].split(paths, digits, groups))
        start = time.perf_counter()
        found = cross_val_score(model, paths, digits, cv=folds)
        seconds = time.perf_counter() - start
        each = ", ".join(f"{score:.3f}" for score in found)
        row = f"| {name} | {task} | {found.mean():.3f} ({each}) | {seconds:.0f} |"
        print(row, flush=True)
print("\n| window | milliseconds per clip |")
print("|---|---|")
for seconds in (arguments.max_length, source.reader.size):
    print(f"| {seconds} s | {1000 * seconds_per_clip(seconds, paths[:20]):.0f} |")
