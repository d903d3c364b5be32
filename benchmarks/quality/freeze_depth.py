"""Test accuracy by freeze depth, beside training from scratch.

    python -m benchmarks.quality.freeze_depth TRAIN TEST [--images N] [--figure FILE]

TRAIN and TEST are folders with one folder of images for each class. `--images N` trains
on N images of each class, others for each seed. `--backbone` and `--weights` name
another network than "tiny", and `--depths` are values of `freeze`. `--figure` draws the
curve of the depths into a file, as the README shows it.

Seconds are those of the processor, so that neighbours on the machine count little.
"""

import argparse
import time

import numpy as np
import torch

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import FineTuneClassifier, FreezeDepthDisplay
from sktransfer.datasets import load_image_folder

DEPTHS = ["0", "stem", "layer1", "layer2", "layer3", "all"]
SCRATCH = "0, from scratch"


def taken(data, n_images, seed):
    """Return `n_images` of each class at random, or all if it is None."""
    if n_images is None:
        return data.data, data.target
    rng = np.random.default_rng(seed)
    rows = [
        rng.choice(np.flatnonzero(data.target == label), n_images, replace=False)
        for label in range(len(data.target_names))
    ]
    rows = np.concatenate(rows)
    return data.data[rows], data.target[rows]


def measured(settings, train, test, options):
    """Return the test accuracies of the seeds, and the seconds of a fit."""
    scores, seconds = [], []
    for seed in range(options.seeds):
        X, y = taken(train, options.images, seed)
        model = FineTuneClassifier(**settings, random_state=seed, cache=None)
        start = time.process_time()
        model.fit(X, y)
        seconds.append(time.process_time() - start)
        scores.append(model.score(test.data, test.target))
    return np.array(scores), float(np.median(seconds))


def draw(results, depths, file):
    """Draw the accuracy of each depth, and a line for training from scratch."""
    # The display is made for folds; here, each seed is one.
    scores = np.array([results[depth][0] for depth in depths])
    seconds = np.array([results[depth][1] for depth in depths])
    display = FreezeDepthDisplay(depths, scores, seconds, "test accuracy").plot()
    display.figure_.set_size_inches(6, 4)
    scratch = results[SCRATCH][0].mean()
    display.ax_[0].axhline(scratch, color="grey", linestyle="--")
    place = {"xytext": (0, 4), "textcoords": "offset points", "color": "dimgrey"}
    display.ax_[0].annotate("from scratch", (0, scratch), **place)
    display.ax_[0].get_legend().get_texts()[0].set_text("draws of the training images")
    display.figure_.savefig(file)


def main():
    """Print the table, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("train")
    parser.add_argument("test")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--weights", default="default", help="a file, or an entry")
    parser.add_argument("--depths", nargs="*", default=DEPTHS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, help="of each class; all by default")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--figure", help="file of the curve, .svg or .png")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print_machine()
    train, test = load_image_folder(options.train), load_image_folder(options.test)
    network = {"backbone": options.backbone, "image_size": options.image_size}
    rows = {SCRATCH: network | {"weights": None}}
    for depth in options.depths:
        freeze = int(depth) if depth.lstrip("-").isdigit() else depth
        rows[depth] = network | {"weights": options.weights, "freeze": freeze}
    print_table(["freeze", "test accuracy, mean (range)", "seconds of a fit"], [])
    results = {}
    for name, settings in rows.items():
        scores, seconds = results[name] = measured(settings, train, test, options)
        spread = f"{scores.mean():.3f} ({scores.min():.3f} to {scores.max():.3f})"
        print(f"| {name} | {spread} | {seconds:.1f} |", flush=True)
    if options.figure:
        draw(results, options.depths, options.figure)


if __name__ == "__main__":
    main()
