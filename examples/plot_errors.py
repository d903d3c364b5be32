"""
Looking at errors
=================

Which pictures does a classifier get most wrong, and where does it look?
"""

# %%
# Patches of two photographs, five labelled ones of each; the network's last stage and
# its head are tuned.

import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.model_selection import train_test_split

from sktransfer import AttributionDisplay, FineTuneClassifier, TopLossesDisplay

photos = load_sample_images().images
corners = [(i, j) for i in range(0, 364, 40) for j in range(0, 576, 40)]
patches = np.array([p[i : i + 64, j : j + 64] for p in photos for i, j in corners])
y = np.repeat(["china", "flower"], len(corners))
X_train, X_test, y_train, y_test = train_test_split(
    patches, y, train_size=10, stratify=y, random_state=0
)
model = FineTuneClassifier(freeze="layer3", max_epochs=3, random_state=0)
model.fit(X_train, y_train).score(X_test, y_test)

# %%
# The misclassified pictures with the highest losses: their row, their label, and what
# was predicted, with the probabilities.

top = TopLossesDisplay.from_estimator(model, X_test, y_test, n_pictures=6)

# %%
# Where on those pictures the evidence for the predicted class lies (Grad-CAM): each as
# it is, and beside it with its map.

maps = AttributionDisplay.from_estimator(model, X_test[top.rows], stage="layer3")
