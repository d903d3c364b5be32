"""Do the transferability scores rank networks as a cross-validated probe does?

    python -m benchmarks.quality.ranking FOLDER NAME=WEIGHTS [NAME=WEIGHTS ...]

FOLDER has one folder of images for each class. Each network NAME is ranked with the
file WEIGHTS and with random weights, beside "tiny"; Kendall's tau tells how far the
order by a score agrees with the order by accuracy.
"""

import argparse

import numpy as np
from scipy.stats import kendalltau

from sktransfer import PretrainedFeatureExtractor, rank_backbones
from sktransfer.datasets import load_image_folder

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder")
parser.add_argument("networks", nargs="+", metavar="NAME=WEIGHTS")
parser.add_argument("--image-size", type=int, default=None)
parser.add_argument("--stages", default=None, help="'all' to rank the stages, too")
arguments = parser.parse_args()

photos = load_image_folder(arguments.folder)
names = dict(network.split("=", 1) for network in arguments.networks)
candidates = ["tiny"]
for name, path in names.items():
    for weights in (path, None):
        candidates.append(
            PretrainedFeatureExtractor(
                name, weights=weights, image_size=arguments.image_size
            )
        )
ranking = rank_backbones(
    photos.data, photos.target, candidates, stages=arguments.stages, cv=5, verbose=1
)
print(ranking)
probe = np.array([row["probe"] for row in ranking])
for score in ("logme", "h_score", "knn"):
    values = [row[score] for row in ranking]
    print(f"Kendall's tau of {score} and the probe: {kendalltau(values, probe)[0]:.2f}")
