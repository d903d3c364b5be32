"""
The recipes of the textbooks
============================

The four recipes that introductions to transfer learning teach, each in a few lines,
and each beside training from scratch. This one takes long, and needs a network for the
weights::

    python examples/textbook_recipes.py TRAIN TEST

TRAIN and TEST hold pictures in class folders. Without a network, local files stand in:
``--vgg NAME FILE`` and ``--resnet NAME FILE`` name other architectures and their
weights.

With SqueezeNet in the place of VGG16 and MobileNetV2 in that of ResNet-50, on 2,000 +
1,000 pictures of CIFAR-10, ``--image-size 64 --epochs 5``, on one core:

===========================================  =============  ============  =======
recipe                                       test accuracy  from scratch  seconds
===========================================  =============  ============  =======
squeezenet1_0, pooled, hidden layer of 1024  0.657          0.250         3
mobilenet_v2, last layer by SGD              0.510          0.351         2
squeezenet1_0, tuned whole                   0.709          0.250         19
mobilenet_v2, own source task moved          0.360          0.200         1
===========================================  =============  ============  =======
"""

# sphinx_gallery_thumbnail_path = '_static/textbook_recipes.png'
import argparse
import time

import numpy as np

from sktransfer import FineTuneClassifier
from sktransfer.datasets import load_image_folder

parser = argparse.ArgumentParser()
parser.add_argument("train")
parser.add_argument("test")
parser.add_argument("--vgg", nargs=2, default=("vgg16", "default"))
parser.add_argument("--resnet", nargs=2, default=("resnet50", "default"))
parser.add_argument("--image-size", type=int, default=64)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--figure", help="file of a chart of the results")
arguments = parser.parse_args()
(vgg, vgg_weights), (resnet, resnet_weights) = arguments.vgg, arguments.resnet
train, test = load_image_folder(arguments.train), load_image_folder(arguments.test)
settings = {
    "image_size": arguments.image_size,
    "max_epochs": arguments.epochs,
    "random_state": 0,
}
scratch = settings | {"weights": None, "backbone_lr_mult": 1.0}

# %%
# VGG16 with global average pooling, and a hidden layer of 1024 on top: only the new
# layers are trained.

features = FineTuneClassifier(
    vgg, weights=vgg_weights, freeze="all", hidden_layer_sizes=(1024,), **settings
)

# %%
# ResNet-50, of which only the new last layer is trained, by SGD with momentum 0.9.
# Without ``solve_head=False`` it would be solved, as a logistic regression.

last_layer = FineTuneClassifier(
    resnet,
    weights=resnet_weights,
    freeze="all",
    solve_head=False,
    optimizer="sgd",
    lr=0.001,
    **settings,
)

# %%
# VGG16, tuned whole, at a tenth of the rate of its new layer.

whole = FineTuneClassifier(vgg, weights=vgg_weights, freeze=0, lr=0.001, **settings)

# %%
# A model trained on one's own source task, half of the classes, and moved to the other
# half, of which there are ten pictures each.

classes = np.unique(train.target)
source_classes = classes[: len(classes) // 2]
in_source = np.isin(train.target, source_classes)


def part(data, rows):
    """Pictures and labels of some rows."""
    rows = np.flatnonzero(rows)
    return [data.data[row] for row in rows], data.target[rows]


own_source = FineTuneClassifier(resnet, **scratch).fit(*part(train, in_source))
moved = FineTuneClassifier(own_source, freeze=0, lr=0.001, **settings)
few = np.zeros(len(train.target), dtype=bool)
for name in classes[len(classes) // 2 :]:
    few[np.flatnonzero(train.target == name)[:10]] = True

# %%
# All of them, beside the same network from scratch on the same pictures.

everything = [np.ones(len(data.target), dtype=bool) for data in (train, test)]
other_half = few, ~np.isin(test.target, source_classes)
print("| recipe | test accuracy | from scratch | seconds |\n|---|---|---|---|")
known, results = {}, {}
for name, model, network, (train_rows, test_rows) in (
    (f"{vgg}, pooled, hidden layer of 1024", features, vgg, everything),
    (f"{resnet}, last layer by SGD", last_layer, resnet, everything),
    (f"{vgg}, tuned whole", whole, vgg, everything),
    (f"{resnet}, own source task moved", moved, resnet, other_half),
):
    start = time.perf_counter()
    model.fit(*part(train, train_rows))
    seconds = time.perf_counter() - start
    key = network, train_rows.sum()
    if key not in known:
        baseline = FineTuneClassifier(network, **scratch).fit(*part(train, train_rows))
        known[key] = baseline.score(*part(test, test_rows))
    score = model.score(*part(test, test_rows))
    results[name] = known[key], score
    print(f"| {name} | {score:.3f} | {known[key]:.3f} | {seconds:.0f} |", flush=True)

# %%
# The same as a chart: a line from training from scratch to the recipe.
#
# .. image:: /_static/textbook_recipes.png
#     :alt: Test accuracy of each recipe, beside training from scratch

if arguments.figure:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(layout="constrained", figsize=(6, 2.6))
    for name, (from_scratch, score) in reversed(results.items()):
        ax.plot([from_scratch, score], [name, name], color="C0")
        ax.plot(from_scratch, name, "o", color="grey")
        ax.plot(score, name, "o", color="C0")
    ax.set(xlabel="test accuracy (grey: from scratch)", xlim=(0, 1))
    ax.margins(y=0.15)
    figure.savefig(arguments.figure)
