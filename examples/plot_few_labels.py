"""
Five, ten, twenty labels
========================

What a pretrained network is for: with a handful of labels in each class, its embeddings
tell apart what pixels do not.
"""

# %%
# Patches of two photographs, 32 pixels wide: which one is a patch from?

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import PretrainedFeatureExtractor

photos = load_sample_images().images
corners = [(i, j) for i in range(0, 416, 32) for j in range(0, 608, 32)]
patches = np.array(
    [photo[i : i + 32, j : j + 32] for photo in photos for i, j in corners]
)
y = np.repeat(["china", "flower"], len(corners))

# %%
# A linear model on embeddings and on pixels, ten random choices of the labelled ones.


def learning_curve(features, y, n_labels=(5, 10, 20)):
    """Mean and standard deviation of the accuracy for numbers of labels in a class."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    n_classes = len(np.unique(y))
    scores = [
        cross_val_score(
            probe,
            features,
            y,
            cv=StratifiedShuffleSplit(
                10, train_size=n * n_classes, test_size=len(y) // 2, random_state=0
            ),
        )
        for n in n_labels
    ]
    return np.mean(scores, axis=1), np.std(scores, axis=1)


embeddings = PretrainedFeatureExtractor().fit_transform(patches)
curves = {
    "embeddings": learning_curve(embeddings, y),
    "pixels": learning_curve(patches.reshape(len(patches), -1) / 255, y),
}
figure, ax = plt.subplots(layout="constrained", figsize=(5, 3.5))
for (name, (mean, spread)), marker in zip(curves.items(), "os", strict=True):
    ax.errorbar([5, 10, 20], mean, spread, marker=marker, capsize=3, label=name)
    print(f"{name}: {np.round(mean, 3)}")
ax.set(xlabel="labels in each class", ylabel="accuracy", xticks=[5, 10, 20])
ax.legend()
plt.show()

# %%
# Drawings of eight by eight pixels are far from the photographs that the network
# learnt from. There its earlier stages, which know strokes and corners rather than
# things, serve better than its last one, with the strongest answer of each filter
# beside its mean.

X, digit = load_digits(return_X_y=True)
extractor = PretrainedFeatureExtractor()
early = PretrainedFeatureExtractor(stage="layer3", pooling="avgmax")
for name, features in {
    "pixels": X,
    "last stage": extractor.fit_transform(X),
    "layer3, avgmax": early.fit_transform(X),
}.items():
    print(f"{name:15}", np.round(learning_curve(features, digit)[0], 3))
