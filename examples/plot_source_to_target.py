"""
From your own source task to a target task
==========================================

The first recipe of every introduction to transfer learning: train on a task with many
labels, and start from there on one with few.
"""

# %%
# The source task: the digits 0 to 4, with six hundred labels, and a small network of
# our own, from scratch. Each of its blocks is a stage.

from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
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
source.fit(X[is_source][:600], y[is_source][:600])

# %%
# The target task: the digits 5 to 9, with forty labels. The fitted classifier is the
# backbone of the next one; its stages are frozen here, so that only a new head is
# trained. Beside it, the same network from scratch.

X_train, X_test, y_train, y_test = train_test_split(
    X[~is_source], y[~is_source], train_size=40, stratify=y[~is_source], random_state=0
)
transferred = FineTuneClassifier(
    source, freeze="all", lr=1e-2, batch_size=16, random_state=0
)
transferred.fit(X_train, y_train)
print(f"transferred: {transferred.score(X_test, y_test):.3f}")
scratch = clone(source).fit(X_train, y_train)
print(f"from scratch: {scratch.score(X_test, y_test):.3f}")
