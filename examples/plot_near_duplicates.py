"""
Near-duplicates across a train-test split
=========================================

Pictures of the same scene on both sides of a split make a score too good. Embeddings
find them: what is nearly the same picture has nearly the same embedding.
"""

# %%
# Patches of two photographs, cut at random places, so that some of them overlap.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from sktransfer import PretrainedFeatureExtractor

rng, side = np.random.default_rng(0), 96
photos = load_sample_images().images
corners = [
    (photo, i, j)
    for photo in (0, 1)
    for i, j in rng.integers(0, [427 - side, 640 - side], (100, 2))
]
patches = np.array([photos[k][i : i + side, j : j + side] for k, i, j in corners])
# Sky and dark leaves look alike wherever they are cut.
shows = patches.std(axis=(1, 2, 3)) > 45
patches, corners = patches[shows], np.array(corners)[shows]
train, test = train_test_split(np.arange(len(patches)), random_state=0)

# %%
# The nearest picture of the training part, by cosine, for each one of the test part;
# six of the nearest 24 are shown.

embeddings = normalize(PretrainedFeatureExtractor().fit_transform(patches))
index = NearestNeighbors(n_neighbors=1, metric="cosine").fit(embeddings[train])
distances, neighbours = (a[:, 0] for a in index.kneighbors(embeddings[test]))
order = np.argsort(distances)

figure, axes = plt.subplots(2, 6, layout="constrained", figsize=(8, 3.2))
for column, row in zip(axes.T, order[:24:4], strict=True):
    column[0].imshow(patches[test[row]])
    column[0].set_title(f"{distances[row]:.3f}", fontsize="small")
    column[1].imshow(patches[train[neighbours[row]]])
for ax in axes.ravel():
    ax.set_xticks([])
    ax.set_yticks([])
axes[0, 0].set_ylabel("test")
axes[1, 0].set_ylabel("train")
plt.show()

# %%
# Do the nearest ones really show the same place? Here it can be told: patches overlap
# if their corners are less than 96 pixels apart in the same photograph.


def overlap(one, other):
    (photo, i, j), (photo_2, i_2, j_2) = corners[one], corners[other]
    return photo == photo_2 and abs(i - i_2) < side and abs(j - j_2) < side


found = [overlap(test[row], train[neighbours[row]]) for row in order]
print(f"of the nearest 20, {sum(found[:20])} overlap; of {len(found)}, {sum(found)}")
