"""
From your own source task to a target task
==========================================

The first recipe of every introduction to transfer learning: train on a task with many
labels, and start from there on one with few.
"""

# %%
# The source task: the digits 0 to 4, with all of their labels, and a small network of
# our own, from scratch. Each of its blocks is a stage.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from torch import nn

from sktransfer import FineTuneClassifier


def block(n_in, n_out):
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.BatchNorm2d(n_out), nn.ReLU()
    )


def network():
    return nn.Sequential(
        *[block(3, 16), block(16, 32), block(32, 48)],
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


X, y = load_digits(return_X_y=True)
is_source = y < 5
source = FineTuneClassifier(
    network,
    weights=None,
    image_size=32,
    lr=1e-2,
    backbone_lr_mult=1.0,
    batch_size=16,
    random_state=0,
)
source.fit(X[is_source], y[is_source])

# %%
# The target task: the digits 5 to 9, with few labels. The fitted classifier is the
# backbone of the next one: its first two blocks are frozen, and the last is tuned with
# a new head. Beside it, the same network from scratch. Both have the same epochs, and
# three random choices of the labelled images.

X, y = X[~is_source], y[~is_source]
settings = {"lr": 1e-2, "backbone_lr_mult": 1.0, "batch_size": 16, "max_epochs": 30}
models = {
    "transferred": FineTuneClassifier(source, freeze=2, random_state=0, **settings),
    "from scratch": clone(source).set_params(**settings),
}
n_labels = [5, 10, 20, 40]
scores = {
    name: [
        cross_val_score(
            model,
            X,
            y,
            cv=StratifiedShuffleSplit(3, train_size=n, test_size=400, random_state=0),
        )
        for n in n_labels
    ]
    for name, model in models.items()
}
for name, folds in scores.items():
    print(f"{name:>12}: {np.mean(folds, axis=1).round(3)}")

# %%
# Transfer is worth most where labels are few. With more of them, the network learns the
# new digits by itself.

figure, ax = plt.subplots(layout="constrained", figsize=(5, 3.5))
for (name, folds), marker in zip(scores.items(), "os", strict=True):
    mean, spread = np.mean(folds, axis=1), np.std(folds, axis=1)
    ax.errorbar(n_labels, mean, spread, marker=marker, capsize=3, label=name)
ax.set(xscale="log", xlabel="labels of the target task", ylabel="accuracy")
ax.set_xticks(n_labels, map(str, n_labels))
ax.minorticks_off()
ax.legend(loc="lower right")
plt.show()
