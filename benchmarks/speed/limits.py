"""From pictures to embeddings on one device: against the two limits of a machine.

    python -m benchmarks.speed.limits FOLDER [--device cuda] [--images N]

The limits are what all cores prepare (read, decode and resize), and what the network
computes of batches that are on the device already. A GPU does its part beside the
cores, so that the slower of the two is the limit; on a CPU they take turns. All weights
are random.
"""

import argparse
import functools
from itertools import cycle, islice

import numpy as np
import torch
from PIL import Image

from benchmarks.side_by_side import (
    finish,
    measure,
    precisions,
    print_machine,
    print_table,
    ratio,
    tf32,
)
from sktransfer import PretrainedFeatureExtractor, load_backbone
from sktransfer.datasets import load_image_folder
from sktransfer.embedding._prefix import Prefix
from sktransfer.embedding._reading import read_samples
from sktransfer.inputs._reader import Samples

NETWORKS = ("resnet50", "vit_b_16", "mobilenet_v3_small")
ARRAY_SIDE = 256


def network_alone(prefix, n_images):
    """Return the network, in extraction's form and batches, on what is there."""
    stages = prefix.backbone.inference_stages(prefix.device)
    side, kind = prefix.backbone.reader.crop, torch.device(prefix.device).type
    batch = torch.randn(prefix.size, 3, side, side, device=prefix.device)
    batch = batch.contiguous(memory_format=torch.channels_last)
    low = prefix.precision == "bfloat16"

    def run():
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=low):
            for _ in range(-(-n_images // prefix.size)):
                stages(batch)
        finish(prefix.device)

    return run


def compare(backbone, X, device, precision, rounds):
    """Return the cells of a row: speeds, and ours as a part of the limit's."""
    lower = precision if precision == "bfloat16" else "float32"
    samples = Samples(X, backbone.reader)
    prefix = Prefix(backbone, 0, device=device, precision=lower).whole()
    extractor = PretrainedFeatureExtractor(
        backbone, device=device, precision=lower, cache=None
    )
    with tf32(precision == "tf32"):
        seconds = measure(
            {
                "ours": functools.partial(extractor.fit(X).transform, X),
                "prepared": lambda: read_samples(
                    samples, range(len(X)), backbone.reader.read
                ),
                "computed": network_alone(prefix, len(X)),
            },
            rounds,
        )
    together = np.sum if torch.device(device).type == "cpu" else np.max
    limits = together([seconds["prepared"], seconds["computed"]], axis=0)
    speeds = [f"{len(X) / np.median(times):.0f}" for times in seconds.values()]
    return [*speeds, ratio(limits, seconds["ours"])]


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine(arguments.device)
    photos = islice(cycle(load_image_folder(arguments.folder).data), arguments.images)
    files = list(photos)
    arrays = []
    for file in files:
        picture = Image.open(file).convert("RGB").resize((ARRAY_SIDE, ARRAY_SIDE))
        arrays.append(np.asarray(picture))
    rows = []
    for name in arguments.networks:
        backbone = load_backbone(name, weights=None, random_state=0)
        for precision in precisions(arguments.device):
            for kind, X in {"files": files, "arrays": arrays}.items():
                cells = compare(
                    backbone, X, arguments.device, precision, arguments.rounds
                )
                rows.append([name, precision, kind, *cells])
    head = [f"images per second, {len(files)} on {arguments.device}", "", "from"]
    print_table([*head, "ours", "prepared", "computed", "ours, of the limit"], rows)


if __name__ == "__main__":
    main()
