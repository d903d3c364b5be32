"""
From your own source task to a target task
==========================================

The first recipe of every introduction to transfer learning: train on a task with many
labels, and start from there on one with few.
"""

# %%
# The source task: the digits 0 to 4, with a thousand labels. The target: 5 to 9, with
# forty.

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sktransfer import FineTuneClassifier

X, y = load_digits(return_X_y=True)
is_source = y < 5
source = FineTuneClassifier(
    weights=None, max_epochs=4, backbone_lr_mult=1.0, random_state=0
)
source.fit(X[is_source][:600], y[is_source][:600])

X_train, X_test, y_train, y_test = train_test_split(
    X[~is_source], y[~is_source], train_size=40, stratify=y[~is_source], random_state=0
)
X_test, y_test = X_test[:400], y_test[:400]

# %%
# The fitted classifier is the backbone of the next one. Its stages are frozen here, so
# that only a new head is trained; beside it, the same network from scratch.

settings = {"max_epochs": 10, "batch_size": 8, "random_state": 0}
transferred = FineTuneClassifier(backbone=source, freeze="all", **settings)
scratch = FineTuneClassifier(weights=None, backbone_lr_mult=1.0, **settings)
for name, model in {"transferred": transferred, "from scratch": scratch}.items():
    score = model.fit(X_train, y_train).score(X_test, y_test)
    print(f"{name:>12}: {score:.3f}")
