"""
A first pipeline
================

Digits and patches of photographs, all from scikit-learn itself, classified from the
embeddings of the bundled network: no download, no GPU.
"""

# %%
# Handwritten digits, 8 x 8 pixels, as the flat table that scikit-learn gives.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits, load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import PretrainedFeatureExtractor

probe = make_pipeline(
    PretrainedFeatureExtractor(), StandardScaler(), LogisticRegression(C=0.01)
)
X, y = load_digits(return_X_y=True)
scores = cross_val_score(probe, X, y, cv=3)
print(f"digits: {scores.mean():.3f} accuracy in 3 folds")

# %%
# Patches of two photographs, as arrays of uint8: which one is a patch from?

photos = load_sample_images().images
corners = [(i, j) for i in range(0, 384, 32) for j in range(0, 608, 32)]
patches = [photo[i : i + 32, j : j + 32] for photo in photos for i, j in corners]
labels = np.repeat(["china", "flower"], len(corners))
search = GridSearchCV(
    probe,
    {
        "logisticregression__C": [0.001, 0.01, 0.1],
        "pretrainedfeatureextractor__pooling": ["avg", "max"],
    },
    cv=3,
)
search.fit(patches, labels)
print(f"photo patches: {search.best_score_:.3f} accuracy with {search.best_params_}")

# %%
# What the best of these pipelines predicts for patches that it was not fitted to, for
# every 25th of them and some that it gets wrong (in red).

predicted = cross_val_predict(search.best_estimator_, patches, labels, cv=3)
is_wrong = predicted != labels
rows = [*np.flatnonzero(is_wrong)[:6], *np.flatnonzero(~is_wrong)[::25]][:16]
figure, axes = plt.subplots(2, 8, layout="constrained", figsize=(8, 2.6))
for ax, row in zip(axes.flat, rows, strict=True):
    ax.imshow(patches[row])
    ax.set_title(predicted[row], fontsize=9, color="C3" if is_wrong[row] else "black")
    ax.axis("off")
plt.show()
