"""
Images beside tabular columns
=============================

A `ColumnTransformer` embeds the image column of a frame and scales the others, and one
model learns from both.
"""

# %%
# Patches of two photographs, with the height at which each was cut and the time of day
# as noted by a careless observer. Which photograph is a patch from?

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_sample_images
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktransfer import PretrainedFeatureExtractor

rng = np.random.default_rng(0)
photos = load_sample_images().images
corners = [(i, j) for i in range(0, 384, 32) for j in range(0, 608, 64)]
patches = [photo[i : i + 8, j : j + 8] for photo in photos for i, j in corners]
y = np.repeat(["china", "flower"], len(corners))
table = pd.DataFrame(
    {
        "picture": patches,
        "height": [i for _ in photos for i, _ in corners],
        "hour": rng.normal(12, 2, len(y)) + np.where(y == "flower", 2, 0),
    }
)
table.head(3)[["height", "hour"]]

# %%
# The same model on the columns, on the pictures, and on both.

embed = make_pipeline(PretrainedFeatureExtractor(), StandardScaler())
parts = {
    "columns": [(StandardScaler(), ["height", "hour"])],
    "pictures": [(embed, ["picture"])],
    "both": [(StandardScaler(), ["height", "hour"]), (embed, ["picture"])],
}
scores = {}
for name, transformers in parts.items():
    model = make_pipeline(
        make_column_transformer(*transformers), LogisticRegression(C=0.01)
    )
    scores[name] = cross_val_score(model, table, y, cv=4)
    print(f"{name:>8}: {scores[name].mean():.3f} +- {scores[name].std():.3f}")

# %%
# The bars are means, and the points are the folds.

figure, ax = plt.subplots(layout="constrained", figsize=(5, 3.5))
for name, folds in scores.items():
    ax.bar(name, folds.mean(), width=0.6, color="C0", alpha=0.5)
    ax.plot([name] * len(folds), folds, "o", color="C0")
ax.set(ylim=(0.5, 1.02), ylabel="accuracy in 4 folds (0.5 is guessing)")
plt.show()
