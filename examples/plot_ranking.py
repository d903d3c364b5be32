"""
Which network, which stage?
===========================

`rank_backbones` scores the embeddings of each candidate, or of each stage of one, by
measures that need no training, beside a cross-validated linear probe.
"""

# %%
# The stages of the bundled network, for telling which of two photographs a patch is
# from.

import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from sktransfer import BackboneRankingDisplay, BackboneSelector, rank_backbones

photos = load_sample_images().images
corners = [(i, j) for i in range(0, 384, 32) for j in range(0, 608, 64)]
patches = [photo[i : i + 32, j : j + 32] for photo in photos for i, j in corners]
y = np.repeat(["china", "flower"], len(corners))
ranking = rank_backbones(patches, y, ["tiny"], stages="all", cv=4)
ranking

# %%
# The first stages know colours and edges, the last ones what their source task asks
# for. Which is better depends on the task.

display = BackboneRankingDisplay.from_ranking(ranking)

# %%
# Inside a model, the choice is made from the training part alone.

model = make_pipeline(
    BackboneSelector(["tiny"], stages="all"), StandardScaler(), LinearSVC(C=0.01)
)
print(f"{cross_val_score(model, patches, y, cv=4).mean():.3f}")
