"""
Few labels: embeddings against pixels
=====================================

Transfer pays most where labels are few: here 2 to 20 of each class, by the same linear
model from pixels and from the embeddings of the bundled network.
"""

# %%
# Each number of labels is tried on ten random choices of them; all other images are the
# test. Every image is embedded once, in the first line.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import PretrainedFeatureExtractor

X, y = load_digits(return_X_y=True)
X, y = X[:1000], y[:1000]
features = {"pixels": X, "embeddings": PretrainedFeatureExtractor().fit_transform(X)}
counts = [2, 5, 10, 20]
probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
scores = {
    name: [
        cross_val_score(
            probe,
            values,
            y,
            cv=StratifiedShuffleSplit(10, train_size=10 * count, random_state=0),
        )
        for count in counts
    ]
    for name, values in features.items()
}

# %%
# The bars are the standard deviation over the choices of labels.

figure, axes = plt.subplots(layout="constrained", figsize=(6, 3.5))
for (name, values), marker, colour in zip(
    scores.items(), "so", ["#E69F00", "#0072B2"], strict=True
):
    axes.errorbar(
        counts,
        np.mean(values, axis=1),
        yerr=np.std(values, axis=1),
        marker=marker,
        color=colour,
        capsize=4,
        label=name,
    )
axes.set(xlabel="labels of each class", ylabel="accuracy", xticks=counts)
axes.legend()
plt.show()
